"""The FPGA's cores between the AD936x and memory: the receive and the transmit device, with its tone generators.

Facts: Linux drivers cf_axi_adc and cf_axi_dds, and the texts that a PlutoSDR gives.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import NamedTuple

from sim_backend.emulators.attribute_tree import (
    Attribute,
    Channel,
    Device,
    constant,
    decimal,
    integer,
    millionths,
    refusal,
)

RECEIVE, TRANSMIT = "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc"
_PHASE_STEPS = 0xFFFF
_SCALE_STEPS = 1 << 14
_TURN_MILLIDEGREES = 360_000
_DEFAULT_TONE_HZ = 9_279_985
STATUS_REGISTER = 0x80000088
"""Where libiio's users look for lost samples: bit 0 of the transmit core, bit 2 of the receive core."""
UNDERFLOW, OVERFLOW = 1, 4


class Tone(NamedTuple):
    """One tone generator: scale * sin(2 pi frequency t + phase), of full scale."""

    frequency_hz: float
    scale: float
    phase_rad: float
    enabled: bool


class ToneGenerator:
    """One of the two tone generators of a converter.

    Args:
        rate_hz: tells the sample rate as the driver knows it.
        quadrature: whether it feeds the Q converter, whose tone starts a quarter turn behind.
    """

    def __init__(self, rate_hz: Callable[[], int], *, quadrature: bool) -> None:
        self._rate_hz = rate_hz
        self._quadrature = quadrature
        self.reset()

    def reset(self) -> None:
        """As after power-up: it runs, at no level."""
        self._step = self._to_step(min(_DEFAULT_TONE_HZ, self._rate_hz() // 2))
        self._scale = 0
        self._millidegrees = 0 if self._quadrature else 90_000
        self._enabled = True

    @property
    def tone(self) -> Tone:
        """What it makes now."""
        return Tone(
            self._step * self._rate_hz() / _PHASE_STEPS,
            self._scale / _SCALE_STEPS,
            math.radians(self._millidegrees / 1000),
            self._enabled,
        )

    def channel(self, index: int, name: str) -> Channel:
        """Its attributes."""
        return Channel(
            f"altvoltage{index}",
            True,
            (
                Attribute("frequency", self._show_frequency, self._set_frequency),
                Attribute("phase", lambda: str(self._millidegrees), self._set_phase),
                Attribute("raw", lambda: str(int(self._enabled)), self._set_enabled),
                Attribute("scale", lambda: decimal(self._scale * 10**6 // _SCALE_STEPS), self._set_scale),
                Attribute("sampling_frequency", lambda: str(self._rate_hz())),
            ),
            name,
        )

    def _to_step(self, frequency_hz: int) -> int:
        # The driver truncates; half a step keeps what it says itself from creeping down when it is written back.
        return (2 * frequency_hz * _PHASE_STEPS + self._rate_hz()) // (2 * self._rate_hz()) & 0xFFFF

    def _show_frequency(self) -> str:
        return str(self._step * self._rate_hz() // _PHASE_STEPS)

    def _set_frequency(self, value: str) -> None:
        self._step = self._to_step(integer(value, highest=self._rate_hz() // 2))

    def _set_phase(self, value: str) -> None:
        self._millidegrees = integer(value, highest=_TURN_MILLIDEGREES) % _TURN_MILLIDEGREES

    def _set_enabled(self, value: str) -> None:
        self._enabled = bool(integer(value, highest=1))

    def _set_scale(self, value: str) -> None:
        scale = millionths(value)
        if not 0 <= scale <= 10**6:
            raise refusal(errno.EINVAL)
        self._scale = (scale * _SCALE_STEPS + 10**6 // 2) // 10**6


class Core:
    """The FPGA core of one direction.

    Args:
        output: whether it transmits.
        num_channels: complex channels, 1 or 2.
        rate_hz: tells the sample rate as the driver knows it.
    """

    def __init__(self, output: bool, num_channels: int, rate_hz: Callable[[], int]) -> None:
        self._output = output
        self._num_channels = num_channels
        self._rate_hz = rate_hz
        self.status = 0
        """Bits of lost samples, until somebody clears them."""
        self._register = 0
        self.generators = [
            [ToneGenerator(rate_hz, quadrature=quadrature) for quadrature in (False, False, True, True)]
            for _ in range(num_channels if output else 0)
        ]

    def reset(self) -> None:
        """As after power-up."""
        self.status = self._register = 0
        for generator in (generator for channel in self.generators for generator in channel):
            generator.reset()

    def device(self, identifier: str) -> Device:
        """Its attributes."""
        direction = "out" if self._output else "in"
        return Device(
            identifier,
            TRANSMIT if self._output else RECEIVE,
            (*self._converters(), *self._tones()),
            buffer=(
                constant("data_available", "0"),
                constant("direction", direction),
                constant("length_align_bytes", "8"),
                constant("watermark", "1"),
            ),
            debug=(Attribute("direct_reg_access", self._show_register, self._access_register),),
        )

    def _converters(self) -> list[Channel]:
        direction = "out" if self._output else "in"
        scan_format = "le:S16/16>>0" if self._output else "le:S12/16>>0"
        shared = f"{direction}_voltage_sampling_frequency"
        channels = []
        for index in range(2 * self._num_channels):
            attributes = [
                constant("calibphase", "0.000000"),
                constant("calibscale", "1.000000"),
                Attribute("sampling_frequency", lambda: str(self._rate_hz()), self._set_rate, shared),
                Attribute("sampling_frequency_available", self._show_rates, shared=f"{shared}_available"),
            ]
            if not self._output:
                attributes.append(constant("calibbias", "0"))
            channels.append(Channel(f"voltage{index}", self._output, tuple(attributes), None, index, scan_format))
        return channels

    def _tones(self) -> list[Channel]:
        names = [
            f"TX{channel + 1}_{part}_F{tone}"
            for channel in range(len(self.generators))
            for part in "IQ"
            for tone in (1, 2)
        ]
        flat = [generator for channel in self.generators for generator in channel]
        return [generator.channel(index, name) for index, (generator, name) in enumerate(zip(flat, names, strict=True))]

    def _show_rates(self) -> str:
        return f"{self._rate_hz()} {self._rate_hz() // 8}"

    def _set_rate(self, value: str) -> None:
        # The FPGA's filters by eight are listed, as pyadi-iio expects, and cannot be switched on: nothing renders them.
        if abs(integer(value) - self._rate_hz()) > 1:
            raise refusal(errno.EINVAL)

    def _show_register(self) -> str:
        return f"0x{self.status if self._register == STATUS_REGISTER else 0:X}"

    def _access_register(self, value: str) -> None:
        words = value.split()
        if not 1 <= len(words) <= 2:
            raise refusal(errno.EINVAL)
        self._register = integer(words[0], highest=(1 << 32) - 1)
        if len(words) == 2:
            clear = integer(words[1], highest=(1 << 32) - 1)
            if self._register == STATUS_REGISTER:
                self.status &= ~clear
