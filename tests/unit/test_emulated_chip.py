"""The emulated AD936x: what it accepts, what it makes of it, and what it says."""

from __future__ import annotations

import errno
import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from sim_backend.emulators.attribute_tree import decimal, integer, millionths, switch
from sim_backend.emulators.chip import PHY, RECEIVE, TRANSMIT, Chip, Identity
from sim_backend.emulators.context_xml import context_xml
from sim_backend.emulators.fir import FirPair
from sim_backend.emulators.transceiver import Calibration

RX_LO, TX_LO = ("altvoltage0", True), ("altvoltage1", True)
RX, TX = ("voltage0", False), ("voltage0", True)


class Board:
    """A chip with shorter words."""

    def __init__(self, **identity: object) -> None:
        self.chip = Chip(Identity("a-serial", **identity))  # type: ignore[arg-type]

    def get(self, place: tuple[str, bool] | None, attribute: str, device: str = PHY) -> str:
        channel, output = place or (None, None)
        return self.chip.read(device, channel, output, attribute)

    def put(self, place: tuple[str, bool] | None, attribute: str, value: object, device: str = PHY) -> None:
        channel, output = place or (None, None)
        self.chip.write(device, channel, output, attribute, value=str(value))

    def refuses(self, place: tuple[str, bool] | None, attribute: str, value: object, device: str = PHY) -> int:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what the caller looks at
            self.put(place, attribute, value, device)
        assert caught.value.errno is not None
        return caught.value.errno


def fir_text(taps: int = 128, factor: int = 4, tap: int = 512) -> str:
    rows = "".join(f"{tap},{tap}\n" for _ in range(taps))
    return f"# a filter\nRX 3 GAIN -6 DEC {factor}\nTX 3 GAIN 0 INT {factor}\n{rows}"


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("30.0", 30_000_000), ("-0.25", -250_000), ("7", 7_000_000), (".5", 500_000), ("-10 dB", -(10**7))],
)
def test_decimals_are_read_as_the_kernel_does(text: str, value: int) -> None:
    assert millionths(text) == value


def test_digits_beyond_the_sixth_are_cut_off() -> None:
    assert millionths("0.1234567") == 123_456
    assert decimal(-123_456) == "-0.123456"


@pytest.mark.parametrize("text", ["", "-", "1e6", "nan", "1.2.3", " 5", "0x10.0", "five"])
def test_what_is_no_decimal_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        millionths(text)


@pytest.mark.parametrize("text", ["915e6", "915000000.0", "", " 1", "1 ", "--1"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        integer(text)


def test_whole_numbers_may_be_hexadecimal_end_a_line_or_overflow() -> None:
    assert integer("0x1F\n") == 31
    with pytest.raises(OSError, match="out of range"):
        integer(str(1 << 64))
    with pytest.raises(OSError, match="Invalid argument"):
        integer("-1")


def test_switches_take_the_kernels_words() -> None:
    assert [switch(text) for text in ("1", "y", "on")] == [True] * 3
    assert [switch(text) for text in ("0", "N", "off")] == [False] * 3
    with pytest.raises(OSError, match="Invalid argument"):
        switch("2")


# --- carriers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency_hz", [325_000_000, 433_920_000, 915_000_000, 2_450_000_000, 3_799_999_998])
def test_a_carrier_is_rounded_to_the_synthesisers_step(frequency_hz: int) -> None:
    board = Board()
    board.put(TX_LO, "frequency", frequency_hz)
    divisor = 2 ** (1 + math.ceil(math.log2(6e9 / frequency_hz) - 1))
    step_hz = 80e6 / 8_388_593 / divisor
    assert abs(board.chip.tx_lo_hz - frequency_hz) <= step_hz / 2 + 1e-6
    shown_hz = int(board.get(TX_LO, "frequency"))
    assert shown_hz % 2 == 0
    assert abs(shown_hz - board.chip.tx_lo_hz) <= 2


def test_neighbouring_carriers_are_a_step_apart() -> None:
    board = Board()
    carriers_hz = []
    for frequency_hz in range(2_400_000_000, 2_400_000_040, 2):
        board.put(RX_LO, "frequency", frequency_hz)
        carriers_hz.append(board.chip.rx_lo_hz)
    steps_hz = {round(after - before, 3) for before, after in pairwise(carriers_hz)}
    assert steps_hz <= {0.0, round(80e6 / 8_388_593 / 4, 3)}
    assert len(steps_hz) == 2


@pytest.mark.parametrize("frequency_hz", [324_999_999, 3_800_000_001, 0])
def test_a_carrier_out_of_range_is_refused_and_changes_nothing(frequency_hz: int) -> None:
    board = Board()
    before = board.get(RX_LO, "frequency")
    assert board.refuses(RX_LO, "frequency", frequency_hz) == errno.EINVAL
    assert board.get(RX_LO, "frequency") == before
    assert board.chip.rx_tunings == 0


def test_the_wide_firmware_reaches_further() -> None:
    board = Board(transceiver="ad9364")
    board.put(RX_LO, "frequency", 5_800_000_000)
    assert board.chip.rx_lo_hz == pytest.approx(5.8e9, abs=5)
    assert board.get(RX_LO, "frequency_available") == "[70000000 1 6000000000]"
    assert board.get(RX, "hardwaregain_available") == "[-10 1 62]"


def test_a_wrong_crystal_moves_what_radiates_and_not_what_is_shown() -> None:
    board = Board(xo_ppm=10.0)
    board.put(TX_LO, "frequency", 2_400_000_000)
    assert board.get(TX_LO, "frequency") == "2400000000"
    assert board.chip.tx_lo_hz == pytest.approx(2.4e9 * (1 + 1e-5), rel=1e-12)
    assert board.chip.sample_rate_hz == pytest.approx(30.72e6 * (1 + 1e-5), rel=1e-7)


def test_correcting_the_crystal_mends_the_next_carrier() -> None:
    board = Board(xo_ppm=10.0)
    board.put(None, "xo_correction", 40_000_400)
    board.put(TX_LO, "frequency", 2_400_000_000)
    assert board.chip.tx_lo_hz == pytest.approx(2.4e9, abs=3)
    assert board.refuses(None, "xo_correction", 40_008_001) == errno.EINVAL
    assert board.get(None, "xo_correction_available") == "[39992000 1 40008000]"


# --- calibration bursts ----------------------------------------------------------------------------------------------


def test_a_far_carrier_calibrates_at_full_drive() -> None:
    board = Board()
    board.put(TX_LO, "frequency", 2_540_000_000)
    assert not board.chip.calibrations
    board.put(TX_LO, "frequency", 2_560_000_000)
    assert list(board.chip.calibrations) == [Calibration("carrier", False)]
    assert board.chip.calibration_bursts == 0


def test_calibrations_into_a_live_buffer_are_counted() -> None:
    board = Board()
    board.chip.transmit_buffer_opened()
    board.put(TX_LO, "frequency", 915_000_000)
    board.put(RX, "sampling_frequency", 3_000_000)
    assert board.chip.calibration_bursts == 2
    board.chip.transmit_buffer_closed()
    board.put(TX_LO, "frequency", 2_400_000_000)
    assert board.chip.calibration_bursts == 2
    assert board.chip.tunings == 2


def test_the_manual_mode_calibrates_on_order_alone() -> None:
    board = Board()
    board.put(None, "calib_mode", "manual")
    board.put(TX_LO, "frequency", 915_000_000)
    board.put(TX, "sampling_frequency", 3_000_000)
    assert not board.chip.calibrations
    board.put(None, "calib_mode", "tx_quad")
    assert [calibration.reason for calibration in board.chip.calibrations] == ["order"]
    assert board.get(None, "calib_mode") == "manual"
    assert board.refuses(None, "calib_mode", "sometimes") == errno.EINVAL


# --- gains -----------------------------------------------------------------------------------------------------------


def test_a_receive_gain_is_ignored_silently_outside_manual_mode() -> None:
    board = Board()
    board.put(RX, "hardwaregain", "30.0")
    assert board.get(RX, "hardwaregain") == "71.000000 dB"
    board.put(RX, "gain_control_mode", "manual")
    board.put(RX, "hardwaregain", "30.0")
    assert board.get(RX, "hardwaregain") == "30.000000 dB"
    assert (board.chip.gain_mode(0), board.chip.rx_gain_db(0)) == ("manual", 30.0)


@pytest.mark.parametrize(("written", "kept"), [("30.9", 30), ("-2.5", -2), ("71", 71), ("-3", -3)])
def test_a_receive_gain_is_cut_to_whole_decibels(written: str, kept: int) -> None:
    board = Board()
    board.put(RX, "gain_control_mode", "manual")
    board.put(RX, "hardwaregain", written)
    assert board.chip.rx_gain_db(0) == kept


def test_receive_gains_end_where_the_table_of_the_carrier_ends() -> None:
    board = Board()
    board.put(RX, "gain_control_mode", "manual")
    assert board.refuses(RX, "hardwaregain", 72) == errno.EINVAL
    board.put(RX, "hardwaregain", -3)
    board.put(RX_LO, "frequency", 915_000_000)
    assert board.chip.rx_gain_db(0) == -1
    board.put(RX, "hardwaregain", 73)
    assert board.get(RX, "hardwaregain_available") == "[-1 1 73]"


def test_the_automatic_gain_shows_what_was_heard_and_leaves_it_to_the_manual_mode() -> None:
    board = Board()
    board.chip.heard(0, gain_db=41.3, rssi_db=57.4)
    assert board.get(RX, "hardwaregain") == "41.000000 dB"
    assert board.get(RX, "rssi") == "57.50 dB"
    board.put(RX, "gain_control_mode", "manual")
    assert board.chip.rx_gain_db(0) == 41
    assert board.refuses(RX, "gain_control_mode", "loud") == errno.EINVAL


@pytest.mark.parametrize(("written", "kept"), [("-10.1", -10.0), ("-0.3", -0.25), ("0", 0.0), ("-89.75", -89.75)])
def test_a_transmit_gain_is_cut_to_quarter_decibels(written: str, kept: float) -> None:
    board = Board()
    board.put(TX, "hardwaregain", written)
    assert board.chip.tx_gain_db(0) == kept
    assert board.get(TX, "hardwaregain") == f"{kept:.6f} dB"


@pytest.mark.parametrize("written", ["0.25", "-89.76", "-90", "loud", "nan"])
def test_an_impossible_transmit_gain_is_refused(written: str) -> None:
    board = Board()
    assert board.refuses(TX, "hardwaregain", written) == errno.EINVAL
    assert board.chip.tx_gain_db(0) == -10.0


def test_a_new_rate_sets_the_transmit_gain_back() -> None:
    board = Board()
    board.put(TX, "hardwaregain", -89.75)
    board.put(RX, "sampling_frequency", 3_000_000)
    assert board.chip.tx_gain_db(0) == -10.0
    kinder = Board(rate_resets_tx_gain=False)
    kinder.put(TX, "hardwaregain", -89.75)
    kinder.put(RX, "sampling_frequency", 3_000_000)
    assert kinder.chip.tx_gain_db(0) == -89.75


# --- rates and filters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [2_083_333, 2_500_000, 3_000_000, 12_345_678, 30_720_000, 61_440_000])
def test_both_directions_run_on_one_rate(rate_hz: int) -> None:
    board = Board()
    board.put(TX, "sampling_frequency", rate_hz)
    assert int(board.get(RX, "sampling_frequency")) == int(board.get(TX, "sampling_frequency"))
    assert abs(int(board.get(RX, "sampling_frequency")) - rate_hz) <= 2
    assert board.chip.sample_rate_hz == pytest.approx(rate_hz, rel=1e-7)
    assert board.get(RX, "sampling_frequency", RECEIVE) == board.get(RX, "sampling_frequency")


@pytest.mark.parametrize("rate_hz", [2_083_332, 1_000_000, 61_440_001, 0, -1, "fast"])
def test_a_rate_out_of_range_is_refused(rate_hz: object) -> None:
    board = Board()
    assert board.refuses(RX, "sampling_frequency", rate_hz) == errno.EINVAL
    assert board.chip.sample_rate_hz == pytest.approx(30.72e6)


def test_path_rates_divide_down_to_the_samples() -> None:
    board = Board()
    board.put(RX, "sampling_frequency", 61_440_000)
    receive = [int(part.split(":")[1]) for part in board.get(None, "rx_path_rates").split()]
    transmit = [int(part.split(":")[1]) for part in board.get(None, "tx_path_rates").split()]
    assert receive[0] == transmit[0]
    assert receive[1] == 2 * transmit[1] <= 640_000_000
    assert receive[-1] == transmit[-1] == 61_440_000


def test_low_rates_need_the_filter_and_keep_it() -> None:
    board = Board()
    assert board.refuses(("out", False), "voltage_filter_fir_en", 1) == errno.EINVAL
    board.put(None, "filter_fir_config", fir_text())
    assert board.get(None, "filter_fir_config") == "FIR Rx: 128,4 Tx: 128,4"
    board.put(RX, "sampling_frequency", 3_000_000)
    board.put(("out", False), "voltage_filter_fir_en", 1)
    board.put(RX, "sampling_frequency", 1_000_000)
    assert board.chip.sample_rate_hz == pytest.approx(1e6)
    assert board.chip.fir_enabled(True)
    assert board.get(RX, "sampling_frequency_available") == "[520833 1 61440000]"
    assert board.refuses(("out", False), "voltage_filter_fir_en", 0) == errno.EINVAL
    board.put(RX, "sampling_frequency", 3_000_000)
    board.put(("out", False), "voltage_filter_fir_en", 0)
    assert not board.chip.fir_enabled(False)
    assert board.chip.sample_rate_hz == pytest.approx(3e6)


def test_more_taps_than_the_clocks_allow_are_refused() -> None:
    board = Board()
    board.put(None, "filter_fir_config", fir_text(factor=2))
    board.put(RX, "sampling_frequency", 61_440_000)
    assert board.refuses(RX, "filter_fir_en", 1) == errno.EINVAL
    board.put(None, "filter_fir_config", fir_text(taps=64, factor=2))
    board.put(("out", False), "voltage_filter_fir_en", 1)
    assert board.chip.fir_enabled(False)


def test_taps_of_a_running_filter_may_change_and_its_factor_may_not() -> None:
    board = Board()
    board.put(None, "filter_fir_config", fir_text())
    board.put(("out", False), "voltage_filter_fir_en", 1)
    board.put(None, "filter_fir_config", fir_text(tap=256))
    assert board.chip.fir_gain(True) == pytest.approx(128 * 256 / 32768 / 4)
    assert board.refuses(None, "filter_fir_config", fir_text(factor=2)) == errno.EINVAL


def test_an_interpolating_filter_may_halve_the_amplitude() -> None:
    board = Board()
    board.put(None, "filter_fir_config", fir_text())
    assert board.chip.fir_gain(True) == 1.0
    board.put(("out", False), "voltage_filter_fir_en", 1)
    assert board.chip.fir_gain(True) == pytest.approx(0.5)
    assert board.chip.fir_gain(False) == pytest.approx(2 * 10 ** (-6 / 20))


@pytest.mark.parametrize(
    "text",
    [
        "",
        fir_text(taps=120),
        fir_text(taps=144),
        fir_text(factor=3),
        fir_text(tap=40_000),
        fir_text().replace("GAIN 0", "GAIN 3"),
        fir_text().replace("RX 3", "RY 3"),
    ],
)
def test_a_broken_filter_text_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        FirPair.parse(text)


def test_a_bandwidth_beyond_the_chip_is_cut_down_silently() -> None:
    board = Board()
    board.put(RX, "rf_bandwidth", 56_000_000)
    assert board.get(RX, "rf_bandwidth") == "20000000"
    assert board.chip.rx_bandwidth_hz == 20e6
    assert board.chip.tx_bandwidth_hz == 18e6
    assert board.refuses(TX, "rf_bandwidth", "1e6") == errno.EINVAL


# --- states ----------------------------------------------------------------------------------------------------------


def test_powering_a_carrier_down_silences_its_direction_alone() -> None:
    board = Board()
    board.put(TX_LO, "powerdown", 1)
    assert (board.chip.tx_powerdown, board.chip.rx_powerdown) == (True, False)
    board.put(TX_LO, "powerdown", 0)
    assert not board.chip.tx_powerdown
    assert board.refuses(TX_LO, "powerdown", 2) == errno.EINVAL


def test_a_sleeping_chip_takes_no_carrier() -> None:
    board = Board()
    board.put(None, "ensm_mode", "sleep")
    assert (board.chip.tx_powerdown, board.chip.rx_powerdown) == (True, True)
    assert board.refuses(TX_LO, "frequency", 915_000_000) == errno.EINVAL
    board.put(None, "ensm_mode", "fdd")
    board.put(TX_LO, "frequency", 915_000_000)


def test_loopback_is_a_debug_attribute() -> None:
    chip = Board().chip
    chip.write(PHY, None, None, "loopback", "debug", "1")
    assert (chip.loopback, chip.read(PHY, None, None, "loopback", "debug")) == (1, "1")
    with pytest.raises(OSError, match="Invalid argument"):
        chip.write(PHY, None, None, "loopback", "debug", "3")


def test_lost_samples_stay_visible_until_they_are_cleared() -> None:
    chip = Board().chip
    for output, device, bit in ((False, RECEIVE, "0x4"), (True, TRANSMIT, "0x1")):
        chip.write(device, None, None, "direct_reg_access", "debug", "0x80000088")
        assert chip.read(device, None, None, "direct_reg_access", "debug") == "0x0"
        chip.lost_samples(output)
        assert chip.read(device, None, None, "direct_reg_access", "debug") == bit
        chip.write(device, None, None, "direct_reg_access", "debug", f"0x80000088 {bit}")
        assert chip.read(device, None, None, "direct_reg_access", "debug") == "0x0"


def test_power_off_and_on_forgets_settings_and_keeps_counts() -> None:
    board = Board(triggered=True)
    board.put(TX_LO, "frequency", 915_000_000)
    board.put(TX, "hardwaregain", -89.75)
    board.put(("altvoltage0", True), "scale", 0.5, TRANSMIT)
    board.put(None, "enable", 1, "iio-axi-tdd-0")
    board.chip.lost_samples(False)
    board.chip.reset()
    assert board.get(TX_LO, "frequency") == "2450000000"
    assert board.chip.tx_gain_db(0) == -10.0
    assert board.chip.tunings == 2
    assert len(board.chip.calibrations) == 1
    assert not board.chip.tdd.enable
    assert board.chip.dds_tones[0][0].scale == 0


def test_every_successful_write_is_told_and_no_other() -> None:
    board = Board()
    told: list[str] = []
    board.chip.changed = told.append
    board.put(RX_LO, "frequency", 915_000_000)
    board.refuses(RX_LO, "frequency", 1)
    board.chip.reset()
    assert told == ["frequency", "reset"]


def test_who_is_told_may_ask_and_write() -> None:
    board = Board()

    def write_back(attribute: str) -> None:
        if attribute == "frequency":
            board.put(TX, "hardwaregain", -20)

    board.chip.changed = write_back
    board.put(TX_LO, "frequency", 915_000_000)
    assert board.chip.tx_gain_db(0) == -20.0


# --- tones -----------------------------------------------------------------------------------------------------------


def test_tones_run_silently_at_first() -> None:
    tones = Board(two_channels=True).chip.dds_tones
    assert [len(channel) for channel in tones] == [4, 4]
    assert all(tone.enabled and tone.scale == 0 for channel in tones for tone in channel)
    assert tones[0][0].frequency_hz == pytest.approx(9_279_985, abs=1)


def test_a_tone_is_set_in_steps() -> None:
    board = Board()
    place = ("TX1_I_F1", True)
    for attribute, value in (("frequency", 100_000), ("scale", 0.5), ("phase", 90_000), ("raw", 1)):
        board.put(place, attribute, value, TRANSMIT)
    tone = board.chip.dds_tones[0][0]
    assert tone.frequency_hz == pytest.approx(100_000, abs=30.72e6 / 65535 / 2)
    assert (tone.scale, tone.phase_rad, tone.enabled) == (0.5, math.pi / 2, True)
    shown = board.get(place, "frequency", TRANSMIT)
    board.put(place, "frequency", shown, TRANSMIT)
    assert board.get(place, "frequency", TRANSMIT) == shown
    for attribute, value in (
        ("frequency", 15_360_001),
        ("scale", 1.1),
        ("scale", -0.1),
        ("phase", 360_001),
        ("raw", 2),
    ):
        assert board.refuses(place, attribute, value, TRANSMIT) == errno.EINVAL


def test_the_fpgas_filters_by_eight_are_listed_and_refused() -> None:
    board = Board()
    assert board.get(RX, "sampling_frequency_available", RECEIVE) == "30720000 3840000"
    board.put(RX, "sampling_frequency", 30_720_000, RECEIVE)
    assert board.refuses(RX, "sampling_frequency", 3_840_000, RECEIVE) == errno.EINVAL


# --- trigger ---------------------------------------------------------------------------------------------------------


def test_the_trigger_exists_where_the_image_has_it() -> None:
    assert Board().chip.tdd.channels[1].enable is False
    with pytest.raises(OSError, match="No such device"):
        Board().get(None, "enable", "iio-axi-tdd-0")


def test_timing_is_locked_while_the_trigger_is_enabled() -> None:
    board = Board(triggered=True)
    for attribute, value in (
        ("startup_delay_raw", 7),
        ("burst_count", 1),
        ("sync_external", 1),
        ("frame_length_ms", 2.5),
    ):
        board.put(None, attribute, value, "iio-axi-tdd-0")
    board.put(("channel1", True), "on_raw", 5, "adi-iio-fakedev")
    board.put(None, "enable", 1, "iio-axi-tdd-0")
    board.put(("channel1", True), "on_raw", 9, "iio-axi-tdd-0")
    board.put(None, "startup_delay_raw", 9, "iio-axi-tdd-0")
    board.put(("channel1", True), "enable", 1, "iio-axi-tdd-0")
    tdd = board.chip.tdd
    assert (tdd.enable, tdd.sync_external, tdd.startup_delay_raw, tdd.burst_count) == (True, True, 7, 1)
    assert tdd.frame_length_raw == 76_800
    assert (tdd.channels[1].enable, tdd.channels[1].on_raw) == (True, 5)
    assert board.get(None, "frame_length_ms", "iio-axi-tdd-0") == "2.500000"


def test_milliseconds_follow_the_sample_rate() -> None:
    board = Board(triggered=True)
    board.put(("channel2", True), "off_raw", 3000, "iio-axi-tdd-0")
    board.put(RX, "sampling_frequency", 3_000_000)
    assert board.get(("channel2", True), "off_ms", "iio-axi-tdd-0") == "1.000000"


def test_the_soft_trigger_pulses_and_cannot_be_read() -> None:
    board = Board(triggered=True)
    pulses: list[bool] = []
    board.chip.soft_trigger = lambda: pulses.append(True)
    board.put(None, "sync_soft", 0, "iio-axi-tdd-0")
    board.put(None, "sync_soft", 1, "iio-axi-tdd-0")
    assert pulses == [True]
    with pytest.raises(PermissionError):
        board.get(None, "sync_soft", "iio-axi-tdd-0")
    assert board.refuses(None, "state", 1, "iio-axi-tdd-0") == errno.EACCES
    assert board.refuses(None, "burst_count", -1, "iio-axi-tdd-0") == errno.EINVAL


# --- the context -----------------------------------------------------------------------------------------------------


def test_devices_go_by_id_name_and_label() -> None:
    chip = Board(triggered=True).chip
    assert chip.device("iio:device5") is chip.device("adi-iio-fakedev") is chip.device("iio-axi-tdd-0")
    assert [device.name for device in Board().chip.devices] == [PHY, "xadc", TRANSMIT, RECEIVE]


@pytest.mark.parametrize(("two_channels", "mask"), [(False, 0b11), (True, 0b1111)])
def test_both_converters_offer_their_channels(two_channels: bool, mask: int) -> None:
    chip = Board(two_channels=two_channels).chip
    assert chip.device(RECEIVE).scan_mask == chip.device(TRANSMIT).scan_mask == mask


def test_unknown_places_have_the_kernels_errors() -> None:
    chip = Board().chip
    for place, number in (
        (("nothing", None, None, "x"), errno.ENODEV),
        ((PHY, "voltage7", False, "x"), errno.ENXIO),
        ((PHY, "voltage0", False, "x"), errno.ENOENT),
        ((PHY, None, None, "x"), errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
            chip.read(*place)
        assert caught.value.errno == number


@pytest.mark.parametrize("two_channels", [False, True])
def test_all_that_the_description_lists_can_be_read(two_channels: bool) -> None:
    chip = Board(triggered=True, two_channels=two_channels).chip
    tree = ElementTree.fromstring(context_xml(chip))
    places: list[tuple[str, str | None, bool | None, str, str]] = []
    for device in tree.iter("device"):
        name = device.attrib["id"]
        for channel in device.iter("channel"):
            output = channel.attrib["type"] == "output"
            places += [
                (name, channel.attrib["id"], output, each.attrib["name"], "") for each in channel.iter("attribute")
            ]
        for tag, kind in (("attribute", ""), ("debug-attribute", "debug"), ("buffer-attribute", "buffer")):
            places += [(name, None, None, each.attrib["name"], kind) for each in device.findall(tag)]
    assert len(places) > 100
    unreadable = set()
    for place in places:
        try:
            assert chip.read(*place)  # type: ignore[arg-type]
        except PermissionError:
            unreadable.add(place[3])
    assert unreadable == {"sync_soft"}


def test_the_description_says_who_it_is() -> None:
    tree = ElementTree.fromstring(context_xml(Board(two_channels=True).chip))
    facts = {each.attrib["name"]: each.attrib["value"] for each in tree.iter("context-attribute")}
    assert facts["hw_serial"] == "a-serial"
    assert facts["ad9361-phy,model"] == "ad9363a"
    assert facts["hw_model_variant"] == "1"
    other = ElementTree.fromstring(context_xml(Board().chip, serial='"<&'))
    assert '"<&' in [each.attrib["value"] for each in other.iter("context-attribute")]


def test_scan_elements_lie_as_libiio_expects() -> None:
    tree = ElementTree.fromstring(context_xml(Board(two_channels=True).chip))
    for name, scan_format in ((RECEIVE, "le:S12/16>>0"), (TRANSMIT, "le:S16/16>>0")):
        device = next(each for each in tree.iter("device") if each.attrib["name"] == name)
        scans = [channel.find("scan-element") for channel in device.findall("channel")][:4]
        assert [scan.attrib["index"] for scan in scans if scan is not None] == ["0", "1", "2", "3"]
        assert {scan.attrib["format"] for scan in scans if scan is not None} == {scan_format}
