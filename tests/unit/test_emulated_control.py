"""A whole emulated bench in this process: addresses, the control port, stages in the world, and the end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_backend.emulators.host import Emulators
from testbed.core.errors import ConfigError, DeviceError
from tests.benches import small_bench


class Line:
    """One connection that speaks in lines."""

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10.0)
        self._lines = self.socket.makefile("rb")

    def say(self, text: bytes) -> None:
        self.socket.sendall(text)

    def hear(self) -> bytes:
        return self._lines.readline()

    def ask(self, request: object) -> Any:
        """A request of the control port and its answer."""
        self.say(json.dumps(request).encode() + b"\n")
        return json.loads(self.hear())

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


@contextmanager
def line(place: str) -> Iterator[Line]:
    """A connection, closed at the end."""
    opened = Line(place)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def emulators() -> Iterator[Emulators]:
    with Emulators(small_bench(), seed=4) as made:
        yield made


@pytest.fixture
def control(emulators: Emulators) -> Iterator[Line]:
    with line(emulators.control) as opened:
        yield opened


def test_every_radio_and_stage_has_an_address_and_answers(emulators: Emulators) -> None:
    addresses = emulators.addresses
    assert list(addresses["radios"]) == ["receiver-0", "receiver-1", "receiver-2", "node-00", "node-01", "node-02"]
    assert list(addresses["stages"]) == ["stage-0", "stage-1"]
    for uri in addresses["radios"].values():
        with line(uri.removeprefix("ip:")) as radio:
            radio.say(b"VERSION\r\n")
            assert radio.hear().startswith(b"0.")
    for stage in addresses["stages"].values():
        with line(stage["url"].removeprefix("socket://")) as port:
            port.say(b"?")
            assert port.hear().startswith(b"<Alarm")
    chips = {name: radio.chip for name, radio in emulators.radios.items()}
    assert chips["node-01"].identity.serial == "emulated-node-01-4", "radio of world 4"
    assert all(chip.identity.triggered for chip in chips.values())


def test_radios_are_those_of_the_bench_file() -> None:
    array = small_bench().array.model_dump() | {"radios": [{"channels": 2, "serial": "abc"}, {}]}
    bench = small_bench(array=array, carrier_hz=5.8e9, limits={"frequencies_hz": [[5.725e9, 5.875e9]]})
    with Emulators(bench) as made:
        receivers = [made.radios["receiver-0"], made.radios["receiver-1"]]
        assert [radio.antennas for radio in receivers] == [(0, 1), (2,)]
        assert [radio.chip.identity.two_channels for radio in receivers] == [True, False]
        assert receivers[0].chip.identity.serial == "abc"
        receivers[1].chip.write("ad9361-phy", "altvoltage1", True, "frequency", value="5800000000")
        assert "receiver-2" not in made.radios


def test_time_passes_on_request(control: Line) -> None:
    assert control.ask({"do": "now"}) == {"now_s": 0.0}
    assert control.ask({"do": "advance", "to_s": 2.5}) == {"now_s": 2.5}
    assert control.ask({"do": "pulse", "at_s": 3.0}) == {"now_s": 3.0}
    assert control.ask({"do": "pulse", "at_s": 1.0}) == {"now_s": 3.0}


def test_the_state_tells_what_radios_and_stages_do(emulators: Emulators, control: Line) -> None:
    node = emulators.radios["node-00"]
    node.chip.write("ad9361-phy", "voltage0", True, "hardwaregain", value="-20")
    node.open_transmit(8, 0b11, True, 1).write(np.full((8, 2), 16_384, "<i2").tobytes())
    state = control.ask({"do": "state"})
    radio = state["radios"]["node-00"]
    assert radio["uri"] == emulators.addresses["radios"]["node-00"]
    assert (radio["transmitting"], radio["buffers"], radio["powerdown"], radio["dds"]) == (True, 1, False, False)
    # half of full scale on both branches: 3 dB below the 23 dBm of full scale, and 20 dB of attenuation
    assert radio["radiated_dbm"] == pytest.approx(23 - 3.01 - 20, abs=0.01)
    assert radio["tx_gain_db"] == -20
    assert radio["tx_lo_hz"] == pytest.approx(node.chip.tx_lo_hz)
    assert state["radios"]["node-01"]["radiated_dbm"] is None
    stage = state["stages"]["stage-1"]
    assert (stage["state"], stage["moving"], stage["tcp"]) == (
        "Alarm",
        False,
        emulators.addresses["stages"]["stage-1"]["url"],
    )
    # before homing the carriage stands somewhere on its way
    assert all(0 < value < 0.375 for value in stage["position_m"])


def test_faults_are_ordered_seen_and_forgotten(emulators: Emulators, control: Line) -> None:
    assert control.ask({"do": "fault", "device": "node-01", "kind": "stall", "seconds": 0.5, "after": 2}) == {
        "ok": True
    }
    assert control.ask({"do": "fault", "device": "stage-0", "kind": "lost-steps", "value": 0.001}) == {"ok": True}
    found = control.ask({"do": "faults"})["faults"]
    assert [(fault["device"], fault["kind"], fault["after"]) for fault in found] == [
        ("node-01", "stall", 2),
        ("stage-0", "lost-steps", 0),
    ]
    assert emulators.radios["node-01"].faults.take("stall") is None
    assert control.ask({"do": "clear"}) == {"ok": True}
    assert control.ask({"do": "faults"}) == {"faults": []}


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"do": "fly"}, "fly"),
        ({}, "do"),
        ({"do": "advance"}, "to_s"),
        ({"do": "advance", "to_s": "soon"}, "to_s"),
        ({"do": "advance", "to_s": float("inf")}, "finite"),
        ({"do": "now", "please": 1}, "please"),
        ({"do": "fault", "device": "node-09", "kind": "stall"}, "no device 'node-09'"),
        ({"do": "fault", "device": "node-00", "kind": "lost-steps"}, "no fault 'lost-steps'"),
        ({"do": "fault", "device": "node-00", "kind": "stall", "count": 0}, "count"),
        ([1], "object"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_connection_stays(control: Line, request_: object, word: str) -> None:
    assert word in control.ask(request_)["error"]
    assert control.ask({"do": "now"}) == {"now_s": 0.0}


def test_garbage_and_endless_lines_harm_nobody_else(emulators: Emulators, control: Line) -> None:
    with line(emulators.control) as other:
        other.say(b"\xff\x00 nonsense\n")
        assert "error" in json.loads(other.hear())
        other.say(b"x" * 65_536)
        assert "error" in json.loads(other.hear())
        assert other.hear() == b""
    assert control.ask({"do": "now"}) == {"now_s": 0.0}


def test_whoever_waits_in_real_time_blocks_nobody_and_ends_with_the_emulators() -> None:
    with Emulators(small_bench(), mode="real") as made, line(made.control) as waiting, line(made.control) as other:
        waiting.say(b'{"do": "advance", "to_s": 1e6}\n')
        first = other.ask({"do": "now"})["now_s"]
        pulsed_s = other.ask({"do": "pulse", "at_s": first + 0.05})["now_s"]
        assert pulsed_s >= first + 0.05
        made.close()
        assert json.loads(waiting.hear() or b'{"now_s": 0}')["now_s"] < 1e3


def test_a_stage_moves_its_antenna_in_the_world(emulators: Emulators, control: Line) -> None:
    """Homed and moved by its own language, while a radio listens that remembers its way."""
    receiver = emulators.radios["receiver-0"]
    receiver.chip.write("ad9361-phy", "voltage0", False, "sampling_frequency", value="2100000")
    receiver.open_receive(60_000_000, 0b11, 1)
    with line(emulators.addresses["stages"]["stage-0"]["url"].removeprefix("socket://")) as port:
        port.say(b"$H\n")
        control.ask({"do": "advance", "to_s": 20.0})
        assert port.hear() == b"ok\r\n"
        state = control.ask({"do": "state"})["stages"]["stage-0"]
        assert state["state"] == "Idle"
        np.testing.assert_allclose(state["position_m"], [0.375, 0.375], atol=1e-5)
        port.say(b"$J=G53 G90 X-101 Y-201 F6000\n")
        assert port.hear() == b"ok\r\n"
        moving = control.ask({"do": "advance", "to_s": 21.0})
        assert moving == {"now_s": 21.0}
        state = control.ask({"do": "state"})["stages"]["stage-0"]
        assert state["moving"]
        assert 0.176 < state["position_m"][1] < 0.374
        control.ask({"do": "advance", "to_s": 28.0})
        state = control.ask({"do": "state"})["stages"]["stage-0"]
    assert not state["moving"]
    np.testing.assert_allclose(state["array_m"], [0.275, 0.175], atol=1e-5)
    track = emulators.ether._track
    np.testing.assert_allclose(track.at(28.0)[0], [0.275, 0.175], atol=1e-5)
    # on its way the world knew where it was, finer than the time between two requests
    way = [track.at(at_s)[0, 1] for at_s in np.arange(20.2, 21.0, 0.05)]
    assert len({round(float(value), 6) for value in way}) == len(way)
    assert (np.diff(way) < 0).all()


def test_a_stage_lies_in_the_array_as_the_bench_file_says(tmp_path: Path) -> None:
    stage = {
        "origin_m": [0.2, 0.1],
        "rotation_deg": 90.0,
        "travel_m": [[0.0, 0.1], [0.0, 0.0]],
        "device": {"axes": "y", "machine_zero_m": [-0.15, 0.0]},
    }
    array = small_bench().array.model_dump(mode="json")
    array["antennas"][0]["stage"] = array["antennas"][1]["stage"] = None
    array["antennas"][2] = {"home_m": [0.2, 0.12], "stage": stage}
    with Emulators(small_bench(array=array), links=tmp_path) as made, line(made.control) as control:
        assert list(made.addresses["stages"]) == ["stage-2"]
        assert (tmp_path / "stage-2").is_symlink()
        with line(made.addresses["stages"]["stage-2"]["url"].removeprefix("socket://")) as port:
            port.say(b"$H\n")
            control.ask({"do": "advance", "to_s": 120.0})
            assert port.hear() == b"ok\r\n"
            port.say(b"$J=G53 G90 Y-110 F600\n")
            assert port.hear() == b"ok\r\n"
            control.ask({"do": "advance", "to_s": 200.0})
        state = control.ask({"do": "state"})["stages"]["stage-2"]
        np.testing.assert_allclose(state["position_m"], [0.04, 0.0], atol=1e-5)
        np.testing.assert_allclose(state["array_m"], [0.2, 0.14], atol=1e-5)
    assert not (tmp_path / "stage-2").exists()


def test_a_stage_beyond_its_switches_is_refused() -> None:
    array = small_bench().array.model_dump(mode="json")
    array["antennas"][0]["stage"]["device"]["machine_zero_m"] = (-0.1, -0.1)
    with pytest.raises(ConfigError, match="beyond the switch at 0") as caught:
        Emulators(small_bench(array=array))
    assert caught.value.key == "array.antennas.0.stage.device.machine_zero_m"


def test_two_radios_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'receiver-0'"):
        Emulators(small_bench(nodes=[{"name": "receiver-0"}]))


def test_ports_in_use_are_refused_and_nothing_is_left_open() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=str(port)) as caught:
            Emulators(small_bench(), control_port=port)
        assert caught.value.remedy
        with pytest.raises(ConfigError, match=str(port)) as caught_config:
            Emulators(small_bench(), first_port=port)
        assert caught_config.value.remedy
    assert threading.active_count() == before


def test_the_end_is_asked_for_and_closing_ends_all_there_is() -> None:
    before = threading.active_count()
    made = Emulators(small_bench(), mode="real")
    with line(made.control) as control, line(made.addresses["radios"]["node-00"].removeprefix("ip:")) as radio:
        assert not made.ended.is_set()
        assert control.ask({"do": "end"}) == {"ok": True}
        assert made.ended.is_set()
        radio.say(b"OPEN cf-ad9361-lpc 100000000 00000003\r\n")
        made.close()
        made.close()
    assert threading.active_count() == before


def test_time_starts_when_it_is_told_to() -> None:
    with Emulators(small_bench(), start_s=-100.0) as made, line(made.control) as control:
        assert control.ask({"do": "now"}) == {"now_s": -100.0}
        buffer = made.radios["receiver-0"].open_receive(1024, 0b11, 1)
        buffer.read()
        assert -100.0 < made.now() < -99.99
        with line(made.addresses["stages"]["stage-0"]["url"].removeprefix("socket://")) as port:
            port.say(b"$H\n")
            control.ask({"do": "advance", "to_s": 0.0})
            assert port.hear() == b"ok\r\n"
