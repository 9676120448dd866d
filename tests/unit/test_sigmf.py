import datetime
import hashlib
import importlib
import json
import os
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sigmf

from drivers.sigmf_capture import CapturingRadio
from drivers.sigmf_radio import SigmfRadio
from testbed.core.bench import WaveformSpec
from testbed.core.devices import Capabilities, Radio
from testbed.core.errors import ConfigError, DeviceError, LimitError, ProtocolError, RadioFault
from testbed.engine.checks import check_radio

NUM_ANTENNAS, CARRIER_HZ, RATE_HZ = 3, 2.45e9, 5e6
BAND = {"frequency_hz": CARRIER_HZ, "sample_rate_hz": RATE_HZ}
POSITIONS_M = np.array([[0.0, 0.0], [0.0625, 0.01], [0.125, 1 / 3]])
COMBINER = np.array([0.5, 0.5j, -0.5 + 0.5j])
FACTS: dict[str, Any] = {
    "positions_m": POSITIONS_M,
    "serials": {"receiver": "104473222a870012"},
    "calibration_ids": ["phase-2026-11-20"],
    "bench": "desk",
    "order_index": np.int64(7),
    "order_label": "Sound",
    "hw": "three receivers",
}


class NoiseRadio:
    """A receiver that hears noise, says what was asked of it and remembers what it delivered."""

    def __init__(self, seed: int = 1) -> None:
        self.generator = np.random.default_rng(seed)
        self.calls: list[Any] = []
        self.delivered: list[np.ndarray] = []
        self.armed: int | None = None
        self.capabilities = Capabilities(
            timed_tx=True,
            shared_clock=True,
            phase_coherent=False,
            full_duplex=False,
            num_antennas=NUM_ANTENNAS,
            max_power_w=0.0,
            frequencies_hz=((2.4e9, 2.4835e9),),
            sample_rate_hz=(RATE_HZ, RATE_HZ),
        )

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        if not 2.4e9 <= frequency_hz <= 2.4835e9:
            raise LimitError("outside the band")
        self.calls.append(("tune", frequency_hz, sample_rate_hz))

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        self.calls.append(("transmit", samples.size, at_s))

    def arm(self, num_samples: int, *, at_s: float) -> None:
        if num_samples < 1:
            raise LimitError("nothing to capture")
        self.calls.append(("arm", num_samples, at_s))
        self.armed = num_samples

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        if self.armed is None:
            raise RadioFault("nothing was armed")
        assert combiner is None, "the record needs every antenna"
        normals = self.generator.standard_normal((NUM_ANTENNAS, self.armed, 2), np.float32)
        self.armed = None
        self.delivered.append(1e-6 * normals.view(np.complex64)[..., 0])
        return self.delivered[-1]

    def mute(self) -> None:
        self.calls.append("mute")

    def close(self) -> None:
        self.calls.append("close")


def recorder(folder: Path, **options: Any) -> tuple[CapturingRadio, NoiseRadio]:
    inner = NoiseRadio()
    radio = CapturingRadio(inner, folder, **{"facts": lambda: FACTS, **options})
    radio.tune(**BAND)
    return radio, inner


def record(folder: Path, *windows: tuple[int, float], **options: Any) -> list[np.ndarray]:
    """Record captures of so many samples at such instants; what the antennas heard."""
    radio, inner = recorder(folder, **options)
    for num_samples, at_s in windows:
        radio.arm(num_samples, at_s=at_s)
        radio.read()
    radio.close()
    return inner.delivered


def metadata_of(folder: Path, index: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"capture-{index:06d}.sigmf-meta").read_text())


def rewrite(folder: Path, change: Any, index: int = 0) -> Path:
    """Let `change` mend the metadata of a recording."""
    path = folder / f"capture-{index:06d}.sigmf-meta"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))
    return path


def foreign(folder: Path, raw: np.ndarray, datatype: str, **whole: Any) -> Path:
    """A recording that another program made."""
    folder.mkdir(exist_ok=True)
    (folder / "walk.v2.sigmf-data").write_bytes(raw.tobytes())
    path = folder / "walk.v2.sigmf-meta"
    whole = {"core:datatype": datatype, "core:version": "1.2.0", "core:sample_rate": RATE_HZ, **whole}
    captures = [{"core:sample_start": 0, "core:frequency": CARRIER_HZ}]
    path.write_text(json.dumps({"global": whole, "captures": captures, "annotations": []}))
    return path


def armed(radio: SigmfRadio, num_samples: int, at_s: float) -> np.ndarray:
    radio.arm(num_samples, at_s=at_s)
    return radio.read()


# --- recording --------------------------------------------------------------------------------------------------------


def test_a_recording_validates_and_holds_the_antennas_sample_by_sample(tmp_path: Path) -> None:
    # longer than the stretch that is interleaved at a time
    (heard,) = record(tmp_path, (70_001, 1.25))
    path = tmp_path / "capture-000000.sigmf-meta"
    recording = sigmf.fromfile(path)  # checks the SHA-512 too
    recording.validate()
    np.testing.assert_array_equal(recording.read_samples(), heard.T)
    raw = (tmp_path / "capture-000000.sigmf-data").read_bytes()
    assert struct.unpack("<6f", raw[:24]) == tuple(heard[:, 0].copy().view(np.float32))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["capture-000000.sigmf-data", path.name]


def test_the_metadata_say_where_when_and_with_what(tmp_path: Path) -> None:
    record(tmp_path, (640, 1.25))
    metadata = metadata_of(tmp_path)
    whole, (capture,) = metadata["global"], metadata["captures"]
    assert whole["core:datatype"] == "cf32_le"
    assert whole["core:num_channels"] == NUM_ANTENNAS
    assert whole["core:sample_rate"] == RATE_HZ
    assert whole["core:hw"] == "three receivers"
    assert whole["core:extensions"] == [{"name": "testbed", "version": "1.0.0", "optional": True}]
    assert whole["testbed:unit"] == "square-root watts at the antenna port"
    assert whole["testbed:serials"] == FACTS["serials"]
    assert whole["testbed:calibration_ids"] == FACTS["calibration_ids"]
    assert whole["testbed:bench"] == "desk"
    assert whole["testbed:capabilities"]["shared_clock"] is True
    assert "core:author" not in whole
    assert capture["core:frequency"] == CARRIER_HZ
    assert capture["testbed:at_s"] == 1.25
    assert capture["testbed:order_index"] == 7
    assert capture["testbed:order_label"] == "Sound"
    np.testing.assert_array_equal(capture["testbed:positions_m"], POSITIONS_M)
    # a virtual clock is no date
    assert "core:datetime" not in capture
    digest = hashlib.sha512((tmp_path / "capture-000000.sigmf-data").read_bytes()).hexdigest()
    assert whole["core:sha512"] == digest


def test_a_wall_clock_dates_the_first_sample(tmp_path: Path) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    start = datetime.datetime(2026, 11, 20, 1, 30, tzinfo=zone)
    record(tmp_path, (64, 2.5), utc=lambda at_s: start + datetime.timedelta(seconds=at_s))
    assert metadata_of(tmp_path)["captures"][0]["core:datetime"] == "2026-11-19T23:30:02.500000Z"
    sigmf.fromfile(tmp_path / "capture-000000.sigmf-meta").validate()


def test_a_combiner_leaves_every_antenna_in_the_record(tmp_path: Path) -> None:
    radio, inner = recorder(tmp_path)
    radio.arm(500, at_s=0.0)
    combined = radio.read(COMBINER)
    assert combined.shape == (1, 500)
    assert combined.dtype == np.complex64
    np.testing.assert_allclose(combined, COMBINER.conj()[None] @ inner.delivered[0], rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(armed(SigmfRadio(tmp_path), 500, 0.0), inner.delivered[0])


def test_every_verb_reaches_the_radio(tmp_path: Path) -> None:
    radio, inner = recorder(tmp_path)
    assert isinstance(radio, Radio)
    radio.transmit(np.zeros(5, np.complex64), at_s=1.0)
    radio.arm(8, at_s=2.0)
    radio.mute()
    radio.close()
    radio.close()
    assert inner.calls == [
        ("tune", CARRIER_HZ, RATE_HZ),
        ("transmit", 5, 1.0),
        ("arm", 8, 2.0),
        "mute",
        "close",
        "close",
    ]
    assert radio.capabilities is inner.capabilities
    # what was armed and never read leaves nothing behind
    assert list(tmp_path.iterdir()) == []


def test_a_recorded_radio_keeps_its_contract(tmp_path: Path) -> None:
    radio = CapturingRadio(NoiseRadio(), tmp_path, facts=dict)
    check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: 1.0)


def test_a_resumed_run_goes_on_numbering_and_overwrites_nothing(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.0), (64, 1.0))
    (tmp_path / "capture-000002.sigmf-data").write_bytes(b"killed before its metadata")
    (tmp_path / "capture-000003.sigmf-data.part").write_bytes(b"killed while writing")
    record(tmp_path, (64, 2.0))
    assert metadata_of(tmp_path, 3)["captures"][0]["testbed:at_s"] == 2.0
    assert (tmp_path / "capture-000002.sigmf-data").read_bytes() == b"killed before its metadata"
    # the orphan is not played, and the unfinished file is gone
    assert armed(SigmfRadio(tmp_path), 64, 2.0).shape == (NUM_ANTENNAS, 64)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("survived", [0, 1])
def test_a_process_that_dies_while_writing_leaves_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    radio, _ = recorder(tmp_path)
    radio.arm(64, at_s=0.0)
    replace, calls = os.replace, []

    def dies(*names: Any) -> None:
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(names)
        replace(*names)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        radio.read()
    assert not list(tmp_path.glob("*.sigmf-meta"))
    with pytest.raises(ConfigError, match="no recordings here"):
        SigmfRadio(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_armed(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    with pytest.raises(ConfigError, match="remedy: name a folder"):
        CapturingRadio(NoiseRadio(), occupied / "captures", facts=dict)
    radio, inner = recorder(tmp_path / "captures")
    shutil.rmtree(tmp_path / "captures")
    with pytest.raises(ConfigError, match=r"captures cannot be recorded here.*\n.*remedy: name a folder"):
        radio.arm(64, at_s=0.0)
    assert inner.armed is None


def test_a_disk_that_is_too_small_is_refused_before_anything_is_armed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radio, inner = recorder(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DeviceError, match="100,000 bytes left\n.*remedy: make room"):
        radio.arm(10_000, at_s=0.0)
    assert inner.armed is None
    assert list(tmp_path.iterdir()) == []
    radio.arm(1000, at_s=0.0)


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    radio, _ = recorder(tmp_path)
    radio.arm(64, at_s=0.5)
    # a folder where the data file should go
    (tmp_path / "capture-000000.sigmf-data.part").unlink()
    (tmp_path / "capture-000000.sigmf-data.part").mkdir()
    with pytest.raises(RadioFault, match=r"capture-000000.sigmf-data: the capture of 0.5 s .*\n.*remedy: make room"):
        radio.read()


def test_a_capture_without_a_carrier_or_without_arming_is_refused(tmp_path: Path) -> None:
    radio = CapturingRadio(NoiseRadio(), tmp_path, facts=dict)
    with pytest.raises(RadioFault, match="before the radio was tuned"):
        radio.arm(64, at_s=0.0)
    radio.tune(**BAND)
    with pytest.raises(RadioFault, match="nothing was armed"):
        radio.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fact", [{"at_s": 1.0}, {"two words": 1}, {"gain": float("nan")}, {"thing": object()}])
def test_a_fact_that_cannot_be_kept_is_refused(tmp_path: Path, fact: dict[str, Any]) -> None:
    radio, _ = recorder(tmp_path, facts=lambda: fact)
    radio.arm(64, at_s=0.0)
    with pytest.raises(ProtocolError, match="cannot carry"):
        radio.read()
    assert not list(tmp_path.glob("*.sigmf-meta"))


def test_without_the_library_the_remedy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    for use in (lambda: CapturingRadio(NoiseRadio(), tmp_path, facts=dict), lambda: SigmfRadio(tmp_path)):
        with pytest.raises(ConfigError, match="remedy: pip install 'sigmf"):
            use()


# --- playing back -----------------------------------------------------------------------------------------------------


def test_captures_come_back_bit_for_bit(tmp_path: Path) -> None:
    heard = record(tmp_path, (640, 0.1), (70_001, 0.2), (640, 0.3))
    radio = SigmfRadio(tmp_path)
    radio.tune(**BAND)
    # in another order, and twice
    for index, at_s in ((2, 0.3), (0, 0.1), (1, 0.2), (2, 0.3)):
        samples = armed(radio, heard[index].shape[1], at_s)
        assert samples.dtype == np.complex64
        assert samples.tobytes() == heard[index].tobytes()
    np.testing.assert_array_equal(radio.positions_m, POSITIONS_M)
    radio.arm(640, at_s=0.1)
    combined = radio.read(COMBINER)
    np.testing.assert_allclose(combined, COMBINER.conj()[None] @ heard[0], rtol=1e-5, atol=1e-12)


def test_a_played_recording_keeps_the_contract_of_a_receiver(tmp_path: Path) -> None:
    record(tmp_path, (512, 1.0), (512, 3.0))
    radio = SigmfRadio(tmp_path)
    assert isinstance(radio, Radio)
    check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: 3.0)
    can = radio.capabilities
    assert (can.timed_tx, can.shared_clock, can.phase_coherent, can.full_duplex) == (True, True, False, False)
    assert can.frequencies_hz == ((CARRIER_HZ - RATE_HZ / 2, CARRIER_HZ + RATE_HZ / 2),)
    assert can.max_power_w == 0.0


def test_an_instant_holds_within_half_a_sample(tmp_path: Path) -> None:
    record(tmp_path, (64, 5.0))
    radio = SigmfRadio(tmp_path)
    for late in (-0.45, 0.0, 0.45):
        radio.arm(64, at_s=5.0 + late / RATE_HZ)
    for late in (-0.55, 0.55):
        with pytest.raises(RadioFault, match="no recording of 64 samples"):
            radio.arm(64, at_s=5.0 + late / RATE_HZ)


def test_what_was_not_recorded_is_refused_with_what_the_folder_holds(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.5), (128, 2.0))
    radio = SigmfRadio(tmp_path)
    with pytest.raises(RadioFault) as caught:
        radio.arm(100, at_s=1.9)
    message = str(caught.value)
    assert "no recording of 100 samples from 1.9 s on: it holds 2 recordings" in message
    assert "capture-000001.sigmf-meta with 128 samples from 2 s on; capture-000000.sigmf-meta with 64" in message
    for num_samples, at_s in ((63, 0.5), (64, float("nan"))):
        with pytest.raises(RadioFault, match="no recording of"):
            radio.arm(num_samples, at_s=at_s)
    with pytest.raises(LimitError, match="0 samples"):
        radio.arm(0, at_s=0.5)
    # a refused capture leaves nothing armed
    with pytest.raises(RadioFault, match="before it was armed"):
        radio.read()


def test_in_order_the_instant_does_not_matter_but_the_length_does(tmp_path: Path) -> None:
    heard = record(tmp_path, (64, 0.5), (128, 2.0))
    radio = SigmfRadio(tmp_path, in_order=True)
    np.testing.assert_array_equal(armed(radio, 64, 100.0), heard[0])
    with pytest.raises(
        RadioFault, match="64 samples from 101 s on: next is capture-000001.sigmf-meta with 128 samples"
    ):
        radio.arm(64, at_s=101.0)
    np.testing.assert_array_equal(armed(radio, 128, 101.0), heard[1])
    with pytest.raises(RadioFault, match="all 2 recordings have been played"):
        radio.arm(128, at_s=102.0)


def test_tuning_chooses_among_carriers(tmp_path: Path) -> None:
    radio, inner = recorder(tmp_path)
    for carrier_hz in (2.45e9, 2.46e9):
        radio.tune(frequency_hz=carrier_hz, sample_rate_hz=RATE_HZ)
        radio.arm(64, at_s=1.0)
        radio.read()
    player = SigmfRadio(tmp_path)
    player.tune(frequency_hz=2.46e9, sample_rate_hz=RATE_HZ)
    np.testing.assert_array_equal(armed(player, 64, 1.0), inner.delivered[1])
    for band in ({**BAND, "frequency_hz": 2.47e9}, {**BAND, "sample_rate_hz": 4e6}):
        with pytest.raises(LimitError, match="remedy: it holds 2450000000 Hz, 5000000 samples/s, 2460000000 Hz"):
            player.tune(**band)


def test_symbols_are_played_at_the_rate_of_symbols(tmp_path: Path) -> None:
    waveform = WaveformSpec(level="symbols")
    (heard,) = record(tmp_path, (192, 1.0), waveform=waveform)
    whole = metadata_of(tmp_path)["global"]
    assert whole["core:sample_rate"] == pytest.approx(RATE_HZ * 192 / 320)
    assert whole["testbed:level"] == "symbols"
    player = SigmfRadio(tmp_path)
    player.tune(**BAND)  # a radio is tuned to its samples, whatever the capture counts
    np.testing.assert_array_equal(armed(player, 192, 1.0 + 0.4 / whole["core:sample_rate"]), heard)


def test_a_player_refuses_to_transmit_and_ends_as_often_as_asked(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.0))
    radio = SigmfRadio(tmp_path / "capture-000000.sigmf-meta")
    with pytest.raises(LimitError, match="nothing can be transmitted"):
        radio.transmit(np.ones(4, np.complex64), at_s=0.0)
    radio.arm(64, at_s=0.0)
    for _ in range(2):
        radio.mute()
        radio.close()
    with pytest.raises(RadioFault, match="before it was armed"):
        radio.read()


# --- foreign recordings -----------------------------------------------------------------------------------------------


def test_captures_are_cut_out_of_a_foreign_recording(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    # [num_samples, channels, I and Q]
    raw = generator.integers(-32768, 32768, (1000, 2, 2), endpoint=False).astype("<i2")
    foreign(tmp_path, raw, "ci16_le", **{"core:num_channels": 2})
    radio = SigmfRadio(tmp_path, full_scale_w=1e-4)
    check_radio(radio, frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, soon_s=lambda: 0.0)
    # full scale is 2^15, and one volt of it the square root of 1e-4 W
    expected = 0.01 * (raw[..., 0] + 1j * raw[..., 1]).T / 32768
    np.testing.assert_allclose(armed(radio, 300, 500.2 / RATE_HZ), expected[:, 500:800], rtol=1e-6)
    np.testing.assert_allclose(armed(radio, 1000, 0.0), expected, rtol=1e-6)
    assert radio.positions_m is None
    assert not any(getattr(radio.capabilities, flag) for flag in Capabilities.FLAGS)
    for num_samples, position in ((1001, 0), (501, 500), (10, -1)):
        with pytest.raises(RadioFault, match="walk.v2.sigmf-meta with 1000 samples from 0 s on"):
            radio.arm(num_samples, at_s=position / RATE_HZ)


def test_a_foreign_recording_in_order_goes_on_where_the_last_capture_ended(tmp_path: Path) -> None:
    normals = np.random.default_rng(5).standard_normal((100, 2)).astype("<f4")
    checksum = hashlib.sha512(normals.tobytes()).hexdigest().upper()
    path = foreign(tmp_path, normals, "cf32_le", **{"core:sha512": checksum})
    expected = 2.0 * normals.view("<c8").T
    radio = SigmfRadio(path, in_order=True, full_scale_w=4.0)
    np.testing.assert_array_equal(armed(radio, 60, 9.0), expected[:, :60])
    np.testing.assert_array_equal(armed(radio, 30, 9.0), expected[:, 60:90])
    with pytest.raises(RadioFault, match="with 100 samples from 0 s on, 90 of them played"):
        radio.arm(11, at_s=9.0)
    np.testing.assert_array_equal(armed(radio, 10, 9.0), expected[:, 90:])
    with pytest.raises(RadioFault, match="all 1 recordings have been played"):
        radio.arm(1, at_s=9.0)


def test_a_part_of_a_split_recording_stands_where_it_was_cut(tmp_path: Path) -> None:
    normals = np.random.default_rng(5).standard_normal((100, 2)).astype("<f4")
    foreign(tmp_path, normals, "cf32_le", **{"core:offset": 5_000_000})
    radio = SigmfRadio(tmp_path, full_scale_w=1.0)
    np.testing.assert_array_equal(armed(radio, 5, 1.0 + 20 / RATE_HZ)[0], normals.view("<c8")[20:25, 0])


def test_a_namespace_that_nobody_declared_is_no_obstacle(tmp_path: Path) -> None:
    foreign(tmp_path, np.ones((8, 2), "<f4"), "cf32_le", **{"lab:gain": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert armed(SigmfRadio(tmp_path, full_scale_w=1.0), 8, 0.0).shape == (1, 8)


def test_a_foreign_recording_needs_its_full_scale(tmp_path: Path) -> None:
    foreign(tmp_path, np.ones((8, 2), "<f4"), "cf32_le")
    with pytest.raises(ConfigError, match="walk.v2.sigmf-meta: testbed:unit: .*\n.*remedy: give full_scale_w"):
        SigmfRadio(tmp_path)
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="full_scale_w"):
            SigmfRadio(tmp_path, full_scale_w=nonsense)


@pytest.mark.parametrize(
    ("whole", "key", "remedy"),
    [
        ({"core:datatype": "rf32_le"}, "core:datatype", "convert them to cf32_le or ci16_le"),
        ({"core:datatype": "cf128"}, "global.core:datatype", "sigmf_validate"),
        ({"core:num_channels": 0}, "global.core:num_channels", "sigmf_validate"),
        ({"core:num_channels": 3}, "core:datatype", "fetch both files"),
        ({"core:dataset": "walk.wav"}, "core:dataset", "convert it to"),
        ({"core:trailing_bytes": 8}, "core:trailing_bytes", "convert it to"),
        ({"core:sample_rate": float("nan")}, "core:sample_rate", "add the key"),
    ],
)
def test_a_foreign_recording_that_cannot_be_played_says_why(
    tmp_path: Path, whole: dict[str, Any], key: str, remedy: str
) -> None:
    foreign(tmp_path, np.ones((8, 2), "<f4"), "cf32_le", **whole)
    with pytest.raises(ConfigError) as caught:
        SigmfRadio(tmp_path, full_scale_w=1.0)
    assert caught.value.key == key
    assert Path(str(caught.value.file)).name.startswith("walk.v2.sigmf-")
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("captures", "key"),
    [
        ([], "core:frequency"),
        ([{"core:sample_start": 0}], "core:frequency"),
        ([{"core:sample_start": at, "core:frequency": 1e9 + at} for at in (0, 4)], "core:frequency"),
        ([{"core:sample_start": 0, "core:frequency": 1e9, "core:header_bytes": 4}], "core:header_bytes"),
        ([{"core:frequency": 1e9}], "captures.0"),
    ],
)
def test_segments_that_cannot_be_played_say_why(tmp_path: Path, captures: list[Any], key: str) -> None:
    path = foreign(tmp_path, np.ones((8, 2), "<f4"), "cf32_le")
    path.write_text(json.dumps({**json.loads(path.read_text()), "captures": captures}))
    with pytest.raises(ConfigError) as caught:
        SigmfRadio(tmp_path, full_scale_w=1.0)
    assert caught.value.key == key


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 7, 8 * NUM_ANTENNAS * 63, 8 * NUM_ANTENNAS * 64 - 1, 8 * NUM_ANTENNAS * 65])
def test_a_cut_file_is_refused_when_it_is_opened(tmp_path: Path, left: int) -> None:
    record(tmp_path, (64, 0.0))
    data = tmp_path / "capture-000000.sigmf-data"
    data.write_bytes(data.read_bytes()[:left].ljust(left, b"\0"))
    with pytest.raises(ConfigError, match=r"capture-000000.sigmf-data: testbed:num_samples: .*\n.*remedy: fetch both"):
        SigmfRadio(tmp_path)


def test_a_missing_data_file_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.0))
    (tmp_path / "capture-000000.sigmf-data").unlink()
    with pytest.raises(ConfigError, match="capture-000000.sigmf-data: the samples are missing"):
        SigmfRadio(tmp_path)


def test_a_file_that_is_cut_while_it_is_played_is_a_fault(tmp_path: Path) -> None:
    raw = np.ones((64, 2), "<f4")
    path = foreign(tmp_path, raw, "cf32_le")
    for left in (0, 100, None):
        path.with_suffix(".sigmf-data").write_bytes(raw.tobytes())
        radio = SigmfRadio(tmp_path, full_scale_w=1.0)
        radio.arm(64, at_s=0.0)
        if left is None:
            path.with_suffix(".sigmf-data").unlink()
        else:
            path.with_suffix(".sigmf-data").write_bytes(raw.tobytes()[:left])
        with pytest.raises(RadioFault) as caught:
            radio.read()
        assert "walk.v2.sigmf-data" in str(caught.value.file)
        assert caught.value.remedy


def test_samples_that_changed_are_refused(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.0))
    data = tmp_path / "capture-000000.sigmf-data"
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    data.write_bytes(changed)
    radio = SigmfRadio(tmp_path)
    radio.arm(64, at_s=0.0)
    with pytest.raises(RadioFault, match=r"capture-000000.sigmf-data: core:sha512: .*\n.*remedy: fetch both files"):
        radio.read()


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    raw = np.ones((64, 2), "<f4")
    raw[40, 1] = np.nan
    foreign(tmp_path, raw, "cf32_le")
    radio = SigmfRadio(tmp_path, full_scale_w=1.0)
    assert armed(radio, 40, 0.0).shape == (1, 40)
    with pytest.raises(RadioFault, match="walk.v2.sigmf-data: 1 samples are not finite, the first is sample 40"):
        armed(radio, 20, 30 / RATE_HZ)


def _without(scope: str, key: str) -> Any:
    def change(metadata: dict[str, Any]) -> None:
        part = metadata["global"] if scope == "global" else metadata["captures"][0]
        del part[key]

    return change


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (_without("captures", "testbed:at_s"), "testbed:at_s"),
        (_without("captures", "testbed:num_samples"), "testbed:num_samples"),
        (_without("captures", "core:frequency"), "core:frequency"),
        (_without("global", "core:sample_rate"), "core:sample_rate"),
        (_without("global", "testbed:sample_rate_hz"), "testbed:sample_rate_hz"),
        (_without("global", "core:extensions"), "core:extensions"),
        (lambda metadata: metadata["global"]["core:extensions"][0].update(version="2.0.0"), "core:extensions"),
        (lambda metadata: metadata["global"].update({"testbed:unit": "volts"}), "testbed:unit"),
        (lambda metadata: metadata["global"].update({"core:datatype": "ci16_le"}), "testbed:unit"),
        (lambda metadata: metadata["global"].update({"core:sample_rate": -1.0}), "global.core:sample_rate"),
        (lambda metadata: metadata["captures"][0].update({"testbed:positions_m": [[0, 0]]}), "testbed:positions_m"),
        (lambda metadata: metadata["captures"][0].update({"testbed:positions_m": "here"}), "testbed:positions_m"),
        (lambda metadata: metadata.pop("captures"), None),
    ],
)
def test_metadata_that_were_tampered_with_name_the_key(tmp_path: Path, change: Any, key: str | None) -> None:
    record(tmp_path, (64, 0.0))
    path = rewrite(tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        SigmfRadio(tmp_path)
    assert (caught.value.file, caught.value.key) == (str(path), key)
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"global": []}'])
def test_metadata_that_are_no_metadata_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "capture-000000.sigmf-meta").write_bytes(content)
    with pytest.raises(ConfigError, match="capture-000000.sigmf-meta.*\n.*remedy: mend the metadata"):
        SigmfRadio(tmp_path)


def test_a_folder_without_recordings_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no recordings here"):
            SigmfRadio(place)
    archive = tmp_path / "all.sigmf"
    archive.write_bytes(b"")
    with pytest.raises(ConfigError, match="remedy: unpack"):
        SigmfRadio(archive)


def test_recordings_of_different_arrays_do_not_mix(tmp_path: Path) -> None:
    record(tmp_path, (64, 0.0))
    foreign(tmp_path, np.ones((8, 2), "<f4"), "cf32_le")
    with pytest.raises(ConfigError, match="walk.v2.sigmf-meta: core:num_channels: 1 channels, but capture-000000"):
        SigmfRadio(tmp_path, full_scale_w=1.0)
