"""The transfer trigger of an AD936x radio's FPGA: a pulse on a pin starts receive and transmit transfers.

It is the generic TDD engine of Analog Devices' hdl (pull requests #1184 and #1215), which PlutoSDR firmware has from
0.38 on, as the device iio-axi-tdd-0. Our reading of it, which hardware has yet to confirm: enabled for one burst with
external synchronisation, a receive buffer that is opened while channel1 is enabled delivers the samples from the pulse
plus channel1's `on_raw` on, a transmit buffer that is written while channel2 is enabled begins at the pulse plus
channel2's `on_raw`, counted in samples. Disabled, buffers run freely. Registers are locked while it is enabled.
"""

from __future__ import annotations

from drivers.iiod_client import IiodClient
from testbed.core.errors import DeviceError, LimitError, RadioFault

DEVICE = "iio-axi-tdd-0"
_SWITCHES = "one-bit-adc-dac"
_SWITCH_LABELS = ("phaser_enable", "tdd_ext_sync")
_RECEIVE, _TRANSMIT = "channel1", "channel2"
_LONGEST = 2**32 - 1
_TAIL = 1024
"""Samples by which a frame outlasts what happens in it."""


class TransferTrigger:
    """The trigger of one radio.

    Args:
        client: where the radio is.
    """

    def __init__(self, client: IiodClient) -> None:
        self._client = client
        self._device = client.context.find(DEVICE)
        self._identity = DEVICE if self._device is None else self._device.identity

    @property
    def present(self) -> bool:
        """Whether the radio has one."""
        return self._device is not None

    def release(self) -> None:
        """Let buffers run freely."""
        if self._device is not None and self._read("enable") != "0":
            self._set("enable", 0)

    def hold_receive(self, num_samples: int) -> None:
        """Hold a receive buffer, opened after this, until the pulse."""
        self._hold(_RECEIVE, 0, num_samples)

    def hold_transmit(self, delay_samples: int, num_samples: int) -> None:
        """Hold a transmit buffer, opened after this, until so many samples after the pulse."""
        self._hold(_TRANSMIT, delay_samples, num_samples)

    def _hold(self, channel: str, delay_samples: int, num_samples: int) -> None:
        if self._device is None:
            raise DeviceError(
                f"{self._client.uri}: this radio has no external trigger (no device {DEVICE})",
                remedy='install PlutoSDR firmware 0.38 or later, or set radio.trigger = "network"',
            )
        end = delay_samples + num_samples
        if delay_samples < 0 or end + _TAIL > _LONGEST:
            raise LimitError(
                f"{self._client.uri}: a transfer {delay_samples} samples after the trigger is not possible",
                remedy=f"stay within 0 and {_LONGEST - _TAIL - num_samples} samples",
            )
        self.release()
        self._close_switches()
        for name in ("startup_delay_raw", "sync_internal", "sync_reset"):
            self._set(name, 0)
        self._set("frame_length_raw", end + _TAIL)
        self._set("burst_count", 1)
        self._set("sync_external", 1)
        for each in (_RECEIVE, _TRANSMIT):
            self._set("enable", int(each == channel), channel=each)
        self._set("polarity", 0, channel=channel)
        self._set("on_raw", delay_samples, channel=channel)
        self._set("off_raw", end, channel=channel)
        self._set("enable", 1)

    def _close_switches(self) -> None:
        """Lead the pin to the engine, where outputs of the FPGA switch that."""
        device = self._client.context.find(_SWITCHES)
        for channel in device.channels if device is not None else ():
            if device is None or not channel.output or "raw" not in channel.attributes:
                continue
            label = channel.label or channel.name
            if "label" in channel.attributes:
                label = self._client.read(device.identity, "label", channel=channel.identity, output=True)
            if label.lower() in _SWITCH_LABELS:
                self._client.write(device.identity, "raw", "1", channel=channel.identity, output=True)

    def _read(self, name: str, channel: str | None = None) -> str:
        return self._client.read(self._identity, name, channel=channel, output=True)

    def _set(self, name: str, value: int, *, channel: str | None = None) -> None:
        """Write and read back: a locked register takes nothing and says nothing."""
        self._client.write(self._identity, name, str(value), channel=channel, output=True)
        found = self._read(name, channel)
        if found != str(value):
            where = f"{channel} {name}" if channel else name
            raise RadioFault(
                f"{self._client.uri}: the trigger took {where} = {found} where {value} was set",
                remedy="check that no other program uses this radio's TDD engine",
            )
