"""A session of radios and stages, recorded against emulators and played to the drivers without any of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.grbl import GrblStage
from drivers.lab import open_port
from drivers.pluto_array import PlutoArray
from drivers.pluto_radio import PlutoTransmitter
from drivers.transport import Wire
from drivers.trigger import TriggerLine
from drivers.wire import RecordingWire, ReplayWire
from sim_backend.clock import VirtualClock
from testbed.core.bench import BenchSpec
from testbed.core.devices import Clock
from testbed.core.errors import BenchError, ProtocolError
from testbed.phy.coherence import radio_flags
from tests.emulated_desk import FULL_SCALE_DBM, Desk, desk_bench

TARGETS_M = np.array([[0.05, 0.01], [0.012, 0.044]])
NUM_SAMPLES = 1000
LATER_SAMPLES = 100


@dataclass(frozen=True)
class Heard:
    """What a session gave.

    Attributes:
        samples: of every capture, shape [num_captures, num_antennas, num_samples].
        positions_m: before every capture, shape [num_captures, 2].
        travel_m: of every move.
    """

    samples: np.ndarray
    positions_m: np.ndarray
    travel_m: tuple[float, ...]


@dataclass(frozen=True)
class Session:
    """A recording, and what it gave when it was live."""

    bench: BenchSpec
    folder: Path
    heard: Heard


class NoLine:
    """A trigger's line that leads nowhere: what it started is in the recording."""

    def pulse(self, at_s: float) -> None:
        pass

    def close(self) -> None:
        pass


def converse(
    bench: BenchSpec, wire: Wire, clock: Clock, trigger: TriggerLine, targets_m: np.ndarray = TARGETS_M
) -> Heard:
    """Home, then sound and move by turns, as a run does.

    Args:
        bench: with addresses: one receiver with two channels, one node, one stage.
        wire: to the devices, or to a recording of them.
        clock: the run's time.
        trigger: starts captures and bursts.
        targets_m: where the stage goes, stage frame, shape [num_moves, 2].
    """
    antenna, flags, node = bench.array.antennas[0], radio_flags(bench), bench.boards[0]
    assert antenna.stage is not None
    burst = np.random.default_rng(2).standard_normal(1024).astype(np.float32).view(np.complex64) * np.float32(0.05)
    samples, positions_m, travel_m = [], [], []
    with ExitStack() as opened:
        receiver = PlutoArray(
            bench, [open_port(bench.array.radios[0], wire)], flags=flags, clock=clock, trigger=trigger
        )
        opened.callback(receiver.close)
        transmitter = PlutoTransmitter(
            bench, node.name, open_port(node.radio, wire), flags=flags, clock=clock, full_scale_dbm=FULL_SCALE_DBM
        )
        opened.callback(transmitter.close)
        stage = GrblStage(
            antenna.stage, region_m=bench.array.region_m, home_m=antenna.home_m, clock=clock, wire=wire, name="stage-0"
        )
        opened.callback(stage.close)
        stage.make_ready()
        for radio in (receiver, transmitter):
            radio.tune(frequency_hz=bench.carrier_hz, sample_rate_hz=bench.sample_rate_hz)
        for target_m in [None, *targets_m]:
            if target_m is not None:
                travel_m.append(stage.move_to(target_m).travel_m)
            at_s = clock.now_s() + 1e-3
            receiver.arm(NUM_SAMPLES, at_s=at_s)
            transmitter.transmit(burst, at_s=at_s + LATER_SAMPLES / bench.sample_rate_hz, trigger_s=at_s)
            samples.append(receiver.read())
            positions_m.append(stage.position_m)
    return Heard(np.array(samples), np.array(positions_m), tuple(travel_m))


@pytest.fixture(scope="module", params=["virtual", "real"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Recorded once; the emulators are gone when it is used."""
    folder = tmp_path_factory.mktemp("session")
    with Desk(desk_bench(receivers=(2,), stages=1), folder / "leases", time=request.param) as desk:
        heard = converse(desk.bench, RecordingWire(folder / "wire"), desk.clock, desk.trigger)
        desk.check_mute()
        return Session(desk.bench, folder / "wire", heard)


@pytest.fixture
def replay(session: Session) -> ReplayWire:
    return ReplayWire(session.folder)


def test_the_session_is_worth_recording(session: Session) -> None:
    heard = session.heard
    np.testing.assert_allclose(heard.positions_m, [[0.03, 0.03], *TARGETS_M], atol=1e-5)
    power_w = (np.abs(heard.samples) ** 2).mean(axis=-1)
    assert (power_w[:, 0] / power_w[0, 0])[1:] != pytest.approx(1.0, rel=1e-3), "the moves changed nothing"
    assert (np.abs(heard.samples[..., LATER_SAMPLES + 1]) > 10 * np.abs(heard.samples[..., :90]).max()).all()


def test_a_replay_gives_the_same_samples_and_positions(session: Session, replay: ReplayWire) -> None:
    again = converse(session.bench, replay, VirtualClock(), NoLine())
    np.testing.assert_array_equal(again.samples, session.heard.samples)
    np.testing.assert_array_equal(again.positions_m, session.heard.positions_m)
    assert again.travel_m == session.heard.travel_m
    replay.check_complete()


def changed(bench: BenchSpec, **receiver: Any) -> BenchSpec:
    """The bench with another receiver."""
    [radio] = bench.array.radios
    array = bench.array.model_copy(update={"radios": (radio.model_copy(update=receiver),)})
    return bench.model_copy(update={"array": array})


def departure(session: Session, replay: ReplayWire, name: str, **orders: Any) -> str:
    """Converse otherwise than was recorded; what is said of the first differing byte, on a connection of this name."""
    bench = orders.pop("bench", session.bench)
    with pytest.raises(BenchError) as failed:
        converse(bench, replay, VirtualClock(), NoLine(), **orders)
    # closing fails as well: what cannot be reached may still radiate
    error: BaseException | None = failed.value
    while error is not None and not isinstance(error, ProtocolError):
        error = error.__cause__ or error.__context__
    assert isinstance(error, ProtocolError)
    assert error.message in failed.value.message
    first = min(path.name for path in session.folder.iterdir() if name in path.name)
    assert error.message.startswith(f"{first}: byte ")
    return error.message


def test_another_gain_is_noticed_at_its_first_byte(session: Session, replay: ReplayWire) -> None:
    address = str(session.bench.array.radios[0].uri).removeprefix("ip:").replace(":", "-")
    message = departure(session, replay, f"tcp-{address}", bench=changed(session.bench, gain_db=26.0))
    assert "sent differs: expected b'5.000000" in message
    assert "got b'6.000000" in message


def test_another_target_is_noticed_at_its_first_byte(session: Session, replay: ReplayWire) -> None:
    targets_m = TARGETS_M.copy()
    targets_m[1, 0] += 1e-3
    message = departure(session, replay, "serial-socket-127.0.0.1", targets_m=targets_m)
    assert "sent differs: expected b'" in message


def test_what_was_not_ordered_again_is_noticed(session: Session, replay: ReplayWire) -> None:
    with pytest.raises(BenchError, match="byte \\d+ sent differs"):
        converse(session.bench, replay, VirtualClock(), NoLine(), TARGETS_M[:0])
    with pytest.raises(ProtocolError, match="was never sent|never opened"):
        replay.check_complete()
