"""What the radios of this package need of one AD936x, however it is reached: natively or through libiio.

Samples are the chip's own numbers, int16, interleaved I and Q; attributes are in its own units. Every setting is read
back. After any timeout or broken connection a port has closed and reopened its link and verified its settings before it
raises, or it says that it could not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

FULL_SCALE_TX = 32_768
"""Largest transmit code plus one; the twelve most significant bits count."""
FULL_SCALE_RX = 2_048
"""Largest receive code plus one."""
MUTED_DB = -89.75
"""The lowest transmit gain, `hardwaregain` of the output channels."""


@dataclass(frozen=True)
class PlutoFacts:
    """Who answers.

    Attributes:
        uri: as `testbed.core.hardware.PlutoSpec` writes it.
        serial: hw_serial.
        firmware: fw_version.
        model: hw_model.
        num_rx: complex receive channels of the context, 1 or 2.
        num_tx: complex transmit channels.
        triggered: whether it has the transfer trigger (the device iio-axi-tdd-0).
    """

    uri: str
    serial: str
    firmware: str
    model: str
    num_rx: int
    num_tx: int
    triggered: bool


@dataclass(frozen=True)
class PlutoSettings:
    """What is set, and read back.

    Attributes:
        frequency_hz: of both synthesisers, as near as the chip's step allows.
        sample_rate_hz: of both directions, one clock.
        bandwidth_hz: analogue bandwidth of both directions.
        rx_gain_db: manual gain of every receive channel.
        tx_gain_db: 0 down to -89.75.
        xo_correction: crystal frequency the chip reckons with; None leaves it.
    """

    frequency_hz: int
    sample_rate_hz: int
    bandwidth_hz: int
    rx_gain_db: float
    tx_gain_db: float
    xo_correction: int | None = None


class Capture(Protocol):
    """A receive buffer whose transfer is running, or waits for the trigger."""

    def wait(self, timeout_s: float) -> np.ndarray:
        """The samples, shape [num_samples, 2 * num_channels] int16, contiguous in time.

        Raises RadioFault when they do not come in time; the buffer is destroyed then.
        """

    def close(self) -> None:
        """Destroy the buffer; may be repeated."""


class Burst(Protocol):
    """A transmit buffer that is loaded and waits for its release or for the trigger."""

    def release(self) -> None:
        """Send it now. Not for a burst that waits for the trigger."""

    def close(self) -> None:
        """Destroy the buffer: nothing of it radiates any more; may be repeated."""


@runtime_checkable
class PlutoPort(Protocol):
    """One AD936x."""

    @property
    def facts(self) -> PlutoFacts: ...

    def configure(self, settings: PlutoSettings) -> PlutoSettings:
        """Set everything in the order that keeps it (rate first, then frequency, then gains), and read it back.

        Returns what is set. Raises RadioFault when the chip took something else than its own rounding explains, and
        LimitError for what it cannot do, before anything is written. A transmit frequency more than 100 MHz away is
        refused while a transmit buffer lives: the chip would calibrate at full power.
        """

    def settings(self) -> PlutoSettings:
        """What is set, read now."""

    def capture(self, num_samples: int, *, triggered: bool = False, channels: int = 1) -> Capture:
        """Destroy any old receive buffer and open a fresh one; when this returns the transfer runs, or waits for the
        trigger."""

    def burst(self, codes: np.ndarray, *, delay_samples: int | None = None) -> Burst:
        """Load one burst, shape [num_samples, 2] int16; silence follows it.

        With `delay_samples` it goes out so many samples after the trigger; without it waits for `release`.
        """

    def cyclic(self, codes: np.ndarray) -> Burst:
        """Repeat a waveform, shape [num_samples, 2] int16, from now on until it is closed."""

    def silence(self) -> None:
        """Stop radiating at once: lowest gain, tones off, synthesiser down, transmit buffer destroyed. Uses a
        connection of its own, so it works while the data path hangs; from any thread; may be repeated."""

    def unsilence(self) -> None:
        """Undo `silence`: what `configure` set holds again."""

    def close(self) -> None:
        """Silence and let go; may be repeated."""
