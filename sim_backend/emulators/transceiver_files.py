"""The files in which the Linux driver shows an AD936x, and their texts."""

from __future__ import annotations

import errno
from collections.abc import Callable

from sim_backend.emulators.attribute_tree import (
    Attribute,
    choice,
    decimal,
    integer,
    millionths,
    refusal,
    switch,
)
from sim_backend.emulators.fir import FirPair
from sim_backend.emulators.synthesiser import HIGHEST_RATE_HZ, lowest_rate_hz
from sim_backend.emulators.transceiver import FIRST_ATTENUATION_MDB, RX, TX, Transceiver

_GAIN_MODES = ("manual", "fast_attack", "slow_attack", "hybrid")
_ENSM_MODES = ("sleep", "wait", "alert", "fdd", "pinctrl", "pinctrl_fdd_indep")
_CALIB_MODES = ("auto", "manual", "manual_tx_quad", "tx_quad", "rf_dc_offs", "rssi_gain_step")
_LASTING_CALIB_MODES = ("auto", "manual", "manual_tx_quad")
_GOVERNORS = ("nominal", "highest_osr")
_RECEIVE_PORTS = ("A_BALANCED", "B_BALANCED", "C_BALANCED", "A_N", "A_P", "B_N", "B_P", "C_N", "C_P")
_MONITOR_PORTS = ("TX_MONITOR1", "TX_MONITOR2", "TX_MONITOR1_2")
_PORTS = ((*_RECEIVE_PORTS, *_MONITOR_PORTS), ("A", "B"))
_STEMS = ("in_voltage", "out_voltage")
_SHOWN_WIDEST_HZ = (56_000_000, 40_000_000)
_SHOWN_NARROWEST_HZ = 200_000
_MICRO = 10**6
_LARGEST_INT = (1 << 31) - 1


class TransceiverFiles:
    """Attributes of one AD936x.

    Args:
        phy: the chip.
    """

    def __init__(self, phy: Transceiver) -> None:
        self._phy = phy

    def carrier(self, direction: int) -> tuple[Attribute, ...]:
        """Of the channel altvoltage0, the receiver's carrier, or altvoltage1."""
        phy = self._phy

        def power(value: str) -> None:
            phy.now.powerdown[direction] = bool(integer(value, highest=1))

        return (
            Attribute("external", lambda: "0", _only_zero),
            Attribute(
                "frequency",
                lambda: str(phy.carrier_hz(direction)),
                lambda value: phy.tune(direction, integer(value)),
            ),
            Attribute("frequency_available", lambda: _span(phy.grade.lowest_hz, phy.grade.highest_hz)),
            Attribute("powerdown", lambda: str(int(phy.now.powerdown[direction])), power),
        )

    def receive(self, channel: int) -> tuple[Attribute, ...]:
        """Of the input voltage0 or voltage1."""
        phy = self._phy

        def show_gain() -> str:
            now = phy.now
            manual = now.gain_modes[channel] == "manual"
            return f"{(now.manual_gain_db if manual else now.agc_gain_db)[channel]}.000000 dB"

        def store_gain(value: str) -> None:
            micro_db = millionths(value)
            phy.set_gain(channel, abs(micro_db) // _MICRO * (-1 if micro_db < 0 else 1))

        return (
            Attribute(
                "gain_control_mode",
                lambda: phy.now.gain_modes[channel],
                lambda value: phy.set_gain_mode(channel, choice(value, _GAIN_MODES)),
            ),
            Attribute("gain_control_mode_available", lambda: " ".join(_GAIN_MODES)),
            Attribute("hardwaregain", show_gain, store_gain),
            Attribute("hardwaregain_available", lambda: _span(*phy.gain_range_db)),
            Attribute("rssi", lambda: f"{round(phy.now.rssi_db[channel] * 4) / 4:.2f} dB"),
            *(self._switch(f"{name}_tracking_en") for name in ("bb_dc_offset", "quadrature", "rf_dc_offset")),
            *self._shared(RX),
        )

    def transmit(self, channel: int) -> tuple[Attribute, ...]:
        """Of the output voltage0 or voltage1."""
        phy = self._phy

        def store_gain(value: str) -> None:
            micro_db = millionths(value)
            if micro_db > 0:
                raise refusal(errno.EINVAL)
            phy.set_attenuation(channel, -micro_db // 1000)

        return (
            Attribute("hardwaregain", lambda: f"{decimal(-1000 * phy.now.attenuation_mdb[channel])} dB", store_gain),
            Attribute("hardwaregain_available", lambda: "[-89.750000 0.250000 0.000000]"),
            Attribute("rssi", lambda: "0.00 dB"),
            *self._shared(TX),
        )

    def both_firs(self) -> Attribute:
        """The file in_out_voltage_filter_fir_en, which switches both directions' filters."""
        return self._fir_switch("voltage_filter_fir_en", (RX, TX), "in_out_voltage_filter_fir_en")

    def device(self) -> tuple[Attribute, ...]:
        """Of the device as a whole."""
        phy = self._phy

        def store_crystal(value: str) -> None:
            phy.now.crystal_hz = integer(value, *phy.crystal_range_hz)

        return (
            Attribute("calib_mode", lambda: phy.now.calib_mode, self._store_calib_mode),
            Attribute("calib_mode_available", lambda: " ".join(_CALIB_MODES)),
            Attribute("ensm_mode", lambda: phy.now.ensm_mode, self._store_ensm_mode),
            Attribute("ensm_mode_available", lambda: " ".join(_ENSM_MODES)),
            Attribute(
                "filter_fir_config", lambda: phy.now.firs.text, lambda value: phy.load_firs(FirPair.parse(value))
            ),
            Attribute("rx_path_rates", lambda: self._path_rates("ADC R2 R1 RF RXSAMP", transmit=False)),
            Attribute("tx_path_rates", lambda: self._path_rates("DAC T2 T1 TF TXSAMP", transmit=True)),
            Attribute("trx_rate_governor", lambda: phy.now.governor, self._store_governor),
            Attribute("trx_rate_governor_available", lambda: " ".join(_GOVERNORS)),
            Attribute("xo_correction", lambda: str(phy.now.crystal_hz), store_crystal),
            Attribute("xo_correction_available", lambda: _span(*phy.crystal_range_hz)),
        )

    def debug(self) -> tuple[Attribute, ...]:
        """Below debugfs."""
        phy = self._phy

        def loop(value: str) -> None:
            phy.now.loopback = integer(value, highest=2)

        return (
            Attribute("loopback", lambda: str(phy.now.loopback), loop),
            Attribute("direct_reg_access", lambda: "0x0", _only_zero),
            Attribute("adi,2rx-2tx-mode-enable", lambda: str(int(phy.grade.num_channels == 2))),
            Attribute("adi,frequency-division-duplex-mode-enable", lambda: "1"),
            Attribute("adi,tx-attenuation-mdB", lambda: str(FIRST_ATTENUATION_MDB)),
        )

    def _shared(self, direction: int) -> tuple[Attribute, ...]:
        """Files that the channels of one direction share, and the port."""
        phy, stem, ports = self._phy, _STEMS[direction], _PORTS[direction]

        def store_port(value: str) -> None:
            phy.now.others[stem] = choice(value, ports)

        def shared(name: str, show: Callable[[], str], store: Callable[[str], None] | None = None) -> Attribute:
            return Attribute(name, show, store, f"{stem}_{name}")

        return (
            self._fir_switch("filter_fir_en", (direction,), f"{stem}_filter_fir_en"),
            shared(
                "rf_bandwidth",
                lambda: str(phy.now.bandwidth_hz[direction]),
                lambda value: phy.set_bandwidth(direction, integer(value, highest=_LARGEST_INT)),
            ),
            shared("rf_bandwidth_available", lambda: _span(_SHOWN_NARROWEST_HZ, _SHOWN_WIDEST_HZ[direction])),
            Attribute("rf_port_select", lambda: phy.now.others.get(stem, ports[0]), store_port),
            shared("rf_port_select_available", lambda: " ".join(ports)),
            shared(
                "sampling_frequency",
                lambda: str(phy.now.chain.shown_hz(phy.now.crystal_hz, transmit=direction == TX)[-1]),
                lambda value: phy.set_rate(millionths(value) // _MICRO),
            ),
            shared("sampling_frequency_available", self._show_rates),
        )

    def _show_rates(self) -> str:
        now = self._phy.now
        return _span(lowest_rate_hz(now.firs.receive.factor if now.fir_enabled[RX] else 1), HIGHEST_RATE_HZ)

    def _fir_switch(self, name: str, directions: tuple[int, ...], shared: str) -> Attribute:
        phy = self._phy
        return Attribute(
            name,
            lambda: str(int(all(phy.now.fir_enabled[direction] for direction in directions))),
            lambda value: phy.enable_firs(directions, switch(value)),
            shared,
        )

    def _switch(self, name: str) -> Attribute:
        """A switch that is on at first, and does nothing here."""
        phy = self._phy

        def store(value: str) -> None:
            phy.now.others[name] = str(int(switch(value)))

        return Attribute(name, lambda: phy.now.others.get(name, "1"), store, f"in_voltage_{name}")

    def _store_calib_mode(self, value: str) -> None:
        mode = choice(value.removesuffix("\n").partition(" ")[0], _CALIB_MODES)
        if mode == "tx_quad":
            self._phy.calibrate("order")
        elif mode in _LASTING_CALIB_MODES:
            self._phy.now.calib_mode = mode

    def _store_ensm_mode(self, value: str) -> None:
        self._phy.now.ensm_mode = choice(value, _ENSM_MODES)

    def _store_governor(self, value: str) -> None:
        self._phy.now.governor = choice(value, _GOVERNORS)

    def _path_rates(self, stages: str, *, transmit: bool) -> str:
        rates_hz = self._phy.now.chain.shown_hz(self._phy.now.crystal_hz, transmit=transmit)
        return " ".join(f"{stage}:{rate}" for stage, rate in zip(["BBPLL", *stages.split()], rates_hz, strict=True))


def _span(lowest: int, highest: int) -> str:
    return f"[{lowest} 1 {highest}]"


def _only_zero(value: str) -> None:
    if integer(value):
        raise refusal(errno.EINVAL)
