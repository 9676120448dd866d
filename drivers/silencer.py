"""The shortest way to a radio that no longer radiates: a connection of its own, and nothing but iiod attributes."""

from __future__ import annotations

from dataclasses import dataclass

from drivers.iiod_client import IiodClient, IiodRefusal
from testbed.core.errors import BenchError, DeviceError, RadioFault

MUTED = "-89.750000"
"""The lowest transmit gain, dB."""
_CHIP = "ad9361-phy"
_TONES = "cf-ad9361-dds-core-lpc"
_TX_SYNTHESISER = "altvoltage1"
_TIMEOUT_S = 0.6
_ATTEMPTS = 2


@dataclass(frozen=True)
class _Setting:
    device: str
    channel: str
    attribute: str
    value: str


class Silencer:
    """A connection to one radio that waits for the moment when the radio has to be silent.

    It is opened beforehand, so the way is known to work; where it broke since, it is opened anew once.

    Args:
        uri: of the radio.
        timeout_s: for the connection, and for each exchange.

    Raises:
        DeviceError: nothing answers there, or no AD936x does.
    """

    def __init__(self, uri: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.uri = uri
        self._client = IiodClient(uri, timeout_s=timeout_s, connect_timeout_s=timeout_s)
        try:
            self._settings = self._find_settings()
        except BaseException:
            self._client.close()
            raise

    def mute(self) -> None:
        """Lowest gain on every transmit channel, tones off, synthesiser down; may be repeated.

        All is tried, whatever fails on the way.

        Raises:
            RadioFault: something was not taken, or the radio was not reached.
        """
        failure: BenchError | None = None
        for _ in range(_ATTEMPTS):
            try:
                refused = [error for setting in self._settings if (error := self._write(setting)) is not None]
                self._verify()
            except BenchError as error:
                failure = error
            else:
                if refused:
                    raise refused[0]
                return
        raise RadioFault(
            f"{self.uri}: not muted: {failure.message if failure else 'no answer'}",
            remedy="switch the radio off",
        ) from failure

    def close(self) -> None:
        """Let go; may be repeated."""
        self._client.close()

    def _find_settings(self) -> tuple[_Setting, ...]:
        context = self._client.context
        gains = [
            _Setting(_CHIP, each.identity, "hardwaregain", MUTED)
            for each in context.device(_CHIP).channels
            if each.output and "hardwaregain" in each.attributes
        ]
        if not gains:
            raise DeviceError(
                f"{self.uri}: the radio there shows no transmit gain",
                remedy="check that a PlutoSDR with its usual firmware answers there",
            )
        tones = context.find(_TONES)
        return (
            *gains,
            _Setting(_CHIP, _TX_SYNTHESISER, "powerdown", "1"),
            *(
                _Setting(_TONES, each.identity, "raw", "0")
                for each in (tones.channels if tones else ())
                if each.output and "raw" in each.attributes
            ),
        )

    def _write(self, setting: _Setting) -> IiodRefusal | None:
        try:
            self._client.write(setting.device, setting.attribute, setting.value, channel=setting.channel, output=True)
        except IiodRefusal as error:
            return error
        return None

    def _verify(self) -> None:
        for setting in self._settings:
            if setting.attribute == "hardwaregain":
                text = self._client.read(setting.device, setting.attribute, channel=setting.channel, output=True)
                if not text.startswith("-89.75"):
                    raise RadioFault(f"{self.uri}: transmit gain {setting.channel} is {text} after muting")
