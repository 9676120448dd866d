"""Transfers of an emulated radio: what is stale, what waits for the trigger, what plays."""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sim_backend.emulators.buffers import ReceiveBuffer
from sim_backend.emulators.converters import OVERFLOW, RECEIVE, STATUS_REGISTER, TRANSMIT, UNDERFLOW
from sim_backend.emulators.radio import VirtualRadio
from testbed.core.units import dbm_to_w
from tests.emulated_air import QUIET, RATE_HZ, Air, air, arm, complex_codes, pulse, set_phy, steady, tone

BLOCK = 256
CODES = 0.5 * math.sqrt(dbm_to_w(23.0) / dbm_to_w(-20.0)) * 2048
"""Of a carrier of half scale through a channel of gain 1: the nodes' full scale is 23 dBm, the receiver's -20 dBm."""


@pytest.fixture
def quiet() -> Iterator[Air]:
    with air(world=QUIET) as made:
        yield made


def level(buffer: ReceiveBuffer) -> float:
    """Mean magnitude of the next block's codes."""
    return float(np.abs(complex_codes(buffer.read())).mean())


def places_after_a_move(made: Air, buffer: ReceiveBuffer, count: int) -> list[str]:
    """Let the buffer lie idle, move the antenna, let it lie again, and say from which place each block comes."""
    old = abs(made.channel(0)[0])
    made.timebase.advance(made.timebase.now_s() + 1.0)
    made.home_m = made.home_m + np.array([0.02, 0.08])
    new = abs(made.channel(0)[0])
    assert not 0.95 < old / new < 1.05
    made.timebase.advance(made.timebase.now_s() + 1.0)
    # a block that holds both places would lie between them
    found = [level(buffer) / CODES for _ in range(count)]
    return ["old" if np.isclose(here, old, rtol=0.02) else "new" if np.isclose(here, new, rtol=0.02) else "?"
            for here in found]  # fmt: skip


def sounding(made: Air) -> VirtualRadio:
    """A node that sends a carrier."""
    node = made.node(0)
    node.open_transmit(64, 0b11, True, 4).write(steady().tobytes())
    return node


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(4, ["old"] * 4 + ["new"] * 3), (1, ["old", "new", "new"]), (2, ["old", "old", "new"])],
)
def test_the_past_comes_first_after_a_move(quiet: Air, num_blocks: int, expected: list[str]) -> None:
    sounding(quiet)
    buffer = quiet.receiver().open_receive(BLOCK, 0b11, num_blocks)
    assert places_after_a_move(quiet, buffer, len(expected)) == expected


def test_a_buffer_that_is_opened_again_knows_no_past(quiet: Air) -> None:
    sounding(quiet)
    radio = quiet.receiver()
    buffer = radio.open_receive(BLOCK, 0b11, 4)
    assert places_after_a_move(quiet, buffer, 4) == ["old"] * 4
    buffer.close()
    fresh = radio.open_receive(BLOCK, 0b11, 4)
    before_s = quiet.timebase.now_s()
    first = level(fresh)
    assert quiet.timebase.now_s() == pytest.approx(before_s + BLOCK / RATE_HZ, abs=1e-12)
    assert first == pytest.approx(level(fresh))


def test_a_full_buffer_stops_and_says_so(quiet: Air) -> None:
    buffer = quiet.receiver().open_receive(BLOCK, 0b11, 4)
    for _ in range(6):
        buffer.read()
    assert (buffer.overflow, buffer.sequence) == (False, 6)
    quiet.timebase.advance(quiet.timebase.now_s() + 4 * BLOCK / RATE_HZ)
    assert not buffer.overflow or buffer.sequence == 6
    quiet.timebase.advance(quiet.timebase.now_s() + 1.0)
    buffer.read()
    assert buffer.overflow


def test_blocks_that_are_read_in_time_follow_each_other_without_a_gap(quiet: Air) -> None:
    node, cycles = quiet.node(0), 7
    node.open_transmit(1000, 0b11, True, 4).write(tone(1000, cycles).tobytes())
    buffer = quiet.receiver().open_receive(BLOCK, 0b11, 4)
    heard = np.concatenate([complex_codes(buffer.read())[0] for _ in range(9)])
    turning = np.exp(2j * np.pi * cycles / 1000 * np.arange(heard.size))
    rest = heard / turning
    assert np.abs(rest - rest.mean()).max() < 3.0  # codes: rounding and no more
    assert abs(rest.mean()) > 100


def test_the_chip_shows_gaps_and_calibrations_that_a_buffer_lived_through(quiet: Air) -> None:
    node = quiet.node(0)

    def status(device: str) -> int:
        node.chip.write(device, None, None, "direct_reg_access", "debug", value=str(STATUS_REGISTER))
        return int(node.chip.read(device, None, None, "direct_reg_access", "debug"), 0)

    receive, transmit = node.open_receive(BLOCK, 0b11, 2), node.open_transmit(BLOCK, 0b11, False, 2)
    before = node.chip.calibration_bursts
    set_phy(node, "altvoltage1", True, "frequency", 2_700_000_000)
    assert node.chip.calibration_bursts == before + 1
    transmit.write(steady().tobytes())
    assert (status(RECEIVE) & OVERFLOW, status(TRANSMIT) & UNDERFLOW) == (0, 0)
    quiet.timebase.advance(1.0)
    transmit.write(steady().tobytes())
    receive.read()
    assert (status(RECEIVE) & OVERFLOW, status(TRANSMIT) & UNDERFLOW) == (OVERFLOW, UNDERFLOW)
    transmit.close()
    set_phy(node, "altvoltage1", True, "frequency", 2_400_000_000)
    assert node.chip.calibration_bursts == before + 1


def test_an_ordered_overflow_loses_what_was_captured(quiet: Air) -> None:
    radio = quiet.receiver()
    sounding(quiet)
    buffer = radio.open_receive(BLOCK, 0b11, 4)
    quiet.timebase.advance(1.0)
    quiet.home_m = quiet.home_m + 0.02
    quiet.timebase.advance(2.0)
    radio.faults.add("overflow")
    first = level(buffer)
    assert buffer.overflow
    assert first == pytest.approx(level(buffer))
    assert quiet.timebase.now_s() == pytest.approx(2.0 + 2 * BLOCK / RATE_HZ)


def test_only_one_buffer_lives_in_each_direction(quiet: Air) -> None:
    radio = quiet.receiver()
    first = radio.open_receive(BLOCK, 0b11, 4)
    radio.open_transmit(BLOCK, 0b11, False, 4)
    for opening in (lambda: radio.open_receive(1, 1, 1), lambda: radio.open_transmit(1, 1, True, 1)):
        with pytest.raises(OSError, match="busy") as caught:
            opening()
        assert caught.value.errno == errno.EBUSY
    first.close()
    first.close()
    radio.open_receive(BLOCK, 0b11, 4)


@pytest.mark.parametrize(
    ("num_samples", "mask", "num_blocks", "code"),
    [(0, 3, 4, errno.EINVAL), (8, 0, 4, errno.EINVAL), (8, 0b100, 4, errno.EINVAL), (8, 3, 0, errno.EINVAL),
     (1 << 25, 3, 4, errno.ENOMEM)],
)  # fmt: skip
def test_impossible_buffers_are_refused(quiet: Air, num_samples: int, mask: int, num_blocks: int, code: int) -> None:
    radio = quiet.receiver()
    for opening in (
        lambda: radio.open_receive(num_samples, mask, num_blocks),
        lambda: radio.open_transmit(num_samples, mask, False, num_blocks),
    ):
        with pytest.raises(OSError, match=r".+") as caught:
            opening()
        assert caught.value.errno == code


def test_a_closed_buffer_delivers_and_takes_nothing(quiet: Air) -> None:
    radio = quiet.receiver()
    receive, transmit = radio.open_receive(BLOCK, 0b11, 4), radio.open_transmit(BLOCK, 0b11, False, 4)
    receive.close()
    transmit.close()
    for use in (receive.read, lambda: transmit.write(steady().tobytes())):
        with pytest.raises(OSError, match=r".+") as caught:
            use()
        assert caught.value.errno == errno.EBADF


def test_a_reader_without_a_trigger_gives_up_or_is_woken_by_the_end(quiet: Air) -> None:
    radio = quiet.receiver()
    arm(radio)
    buffer = radio.open_receive(BLOCK, 0b11, 1)
    assert buffer.waits
    with pytest.raises(OSError, match=r".+") as caught:
        buffer.read(lambda: True)
    assert caught.value.errno == errno.ETIMEDOUT
    ends: list[int | None] = []

    def wait() -> None:
        try:
            buffer.read()
        except OSError as error:
            ends.append(error.errno)

    reader = threading.Thread(target=wait)
    reader.start()
    buffer.close()
    reader.join(10.0)
    assert ends == [errno.EBADF]
    assert quiet.timebase.now_s() == 0.0


def test_transfers_begin_at_the_trigger_to_the_sample(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    arm(node, output=2, delay=37)
    arm(receiver, output=1, delay=10)
    buffer = receiver.open_receive(BLOCK, 0b11, 1)
    transmit = node.open_transmit(100, 0b11, False, 4)
    transmit.write(steady(num_samples=100).tobytes())
    quiet.timebase.advance(0.7)
    assert not node.state()["transmitting"]
    assert buffer.waits
    assert transmit.waits
    pulse(quiet, 0.7123456789)
    heard = np.abs(complex_codes(buffer.read())[0])
    np.testing.assert_array_equal(np.flatnonzero(heard > 100), np.arange(27, 127))
    assert heard[:27].max() == heard[127:].max() == 0
    assert quiet.timebase.now_s() == pytest.approx(0.7123456789 + (10 + BLOCK) / RATE_HZ, abs=1e-12)


def test_a_radio_that_does_not_listen_to_the_line_starts_by_itself_alone(quiet: Air) -> None:
    deaf, other = quiet.receiver(0), quiet.receiver(1)
    arm(deaf, external=False)
    arm(other)
    buffers = deaf.open_receive(BLOCK, 0b11, 1), other.open_receive(BLOCK, 0b11, 1)
    pulse(quiet, 0.5)
    assert [buffer.waits for buffer in buffers] == [True, False]
    deaf.chip.write("iio-axi-tdd-0", None, None, "sync_soft", value="1")
    assert not buffers[0].waits


def test_transfers_run_freely_once_the_trigger_is_off(quiet: Air) -> None:
    radio = quiet.receiver()
    arm(radio)
    buffer = radio.open_receive(BLOCK, 0b11, 1)
    quiet.timebase.advance(2.0)
    radio.chip.write("iio-axi-tdd-0", None, None, "enable", value="0")
    buffer.read()
    assert quiet.timebase.now_s() == pytest.approx(2.0 + BLOCK / RATE_HZ)


def test_a_transfer_that_began_waits_for_the_next_pulse_only_when_opened_anew(quiet: Air) -> None:
    radio = quiet.receiver()
    arm(radio)
    buffer = radio.open_receive(BLOCK, 0b11, 1)
    pulse(quiet, 1.0)
    pulse(quiet, 1.0 + 10 / RATE_HZ)
    buffer.read()
    assert quiet.timebase.now_s() == pytest.approx(1.0 + BLOCK / RATE_HZ)
    buffer.close()
    assert radio.open_receive(BLOCK, 0b11, 1).waits


def test_blocks_of_a_stream_queue_and_play_without_a_gap(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    buffer = receiver.open_receive(6 * BLOCK, 0b11, 1)
    stream = node.open_transmit(BLOCK, 0b11, False, 4)
    whole = tone(6 * BLOCK, 11)
    for block in np.split(whole, 6):
        stream.write(block.tobytes())
    # six blocks through a queue of four: the writer had to wait for two
    assert quiet.timebase.now_s() == pytest.approx(2 * BLOCK / RATE_HZ)
    assert not stream.underflow
    heard = complex_codes(buffer.read())[0]
    rest = heard * np.exp(-2j * np.pi * 11 / whole.shape[0] * np.arange(heard.size))
    assert np.abs(rest - rest.mean()).max() < 3.0  # codes: rounding and no more
    assert abs(rest.mean()) > 100


def test_silence_follows_the_last_block_and_is_noticed(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    buffer = receiver.open_receive(4 * BLOCK, 0b11, 1)
    stream = node.open_transmit(BLOCK, 0b11, False, 4)
    stream.write(steady(num_samples=BLOCK).tobytes())
    quiet.timebase.advance(2 * BLOCK / RATE_HZ)
    assert not node.state()["transmitting"]
    assert not stream.underflow
    stream.write(steady(num_samples=BLOCK).tobytes())
    assert stream.underflow
    sounds = np.abs(complex_codes(buffer.read())[0]) > 100
    assert [bool(part.all()) for part in np.split(sounds, 4)] == [True, False, True, False]
    assert [bool(part.any()) for part in np.split(sounds, 4)] == [True, False, True, False]


def test_an_ordered_underrun_leaves_its_gap(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    buffer = receiver.open_receive(3 * BLOCK, 0b11, 1)
    stream = node.open_transmit(BLOCK, 0b11, False, 4)
    stream.write(steady(num_samples=BLOCK).tobytes())
    node.faults.add("underrun", seconds=BLOCK / 2 / RATE_HZ)
    stream.write(steady(num_samples=BLOCK).tobytes())
    assert stream.underflow
    sounds = np.abs(complex_codes(buffer.read())[0]) > 100
    gap = np.flatnonzero(~sounds)
    np.testing.assert_array_equal(gap, np.r_[BLOCK : 3 * BLOCK // 2, 5 * BLOCK // 2 : 3 * BLOCK])


def test_a_cyclic_buffer_takes_one_block_and_repeats_it_until_it_is_closed(quiet: Air) -> None:
    node, receiver = quiet.node(0), quiet.receiver()
    cyclic = node.open_transmit(100, 0b11, True, 4)
    cyclic.write(tone(100, 3).tobytes())
    with pytest.raises(OSError, match=r".+") as caught:
        cyclic.write(tone(100, 3).tobytes())
    assert caught.value.errno == errno.EPERM
    quiet.timebase.advance(3600.0)
    buffer = receiver.open_receive(1000, 0b11, 1)
    quiet.timebase.advance(3600.0 + 400 / RATE_HZ)
    assert node.state()["transmitting"]
    cyclic.close()
    assert not node.state()["transmitting"]
    heard = complex_codes(buffer.read())[0]
    rest = heard[:400] * np.exp(-2j * np.pi * 0.03 * np.arange(400))
    assert np.abs(rest - rest.mean()).max() < 3.0  # codes: rounding and no more
    assert abs(rest.mean()) > 100
    assert not heard[400:].any()


@pytest.mark.parametrize("size", [0, 3, 4 * BLOCK + 4])
def test_a_block_is_whole_samples_and_fits(quiet: Air, size: int) -> None:
    with pytest.raises(OSError, match=r".+") as caught:
        quiet.node(0).open_transmit(BLOCK, 0b11, False, 4).write(bytes(size))
    assert caught.value.errno == errno.EINVAL


def test_a_writer_gives_up_while_nothing_is_played(quiet: Air) -> None:
    node = quiet.node(0)
    arm(node, output=2)
    stream = node.open_transmit(8, 0b11, False, 2)
    for _ in range(2):
        stream.write(bytes(32))
    with pytest.raises(OSError, match=r".+") as caught:
        stream.write(bytes(32), lambda: True)
    assert caught.value.errno == errno.ETIMEDOUT


def test_digital_loopback_returns_the_twelve_most_significant_bits(quiet: Air) -> None:
    radio = quiet.receiver(0, 1)
    radio.chip.write("ad9361-phy", None, None, "loopback", "debug", value="1")
    codes = np.random.default_rng(5).integers(-32_768, 32_768, (BLOCK, 4)).astype("<i2")
    buffer = radio.open_receive(2 * BLOCK, 0b1111, 1)
    radio.open_transmit(BLOCK, 0b1111, False, 4).write(codes.tobytes())
    heard = np.frombuffer(buffer.read(), "<i2").reshape(-1, 4)
    np.testing.assert_array_equal(heard[:BLOCK], codes >> 4)
    assert not heard[BLOCK:].any()


@pytest.mark.parametrize(
    ("mask", "columns"), [(0b1111, [0, 1, 2, 3]), (0b0001, [0]), (0b1100, [2, 3]), (0b1010, [1, 3])]
)
def test_only_the_enabled_elements_are_delivered(mask: int, columns: list[int]) -> None:
    blocks = []
    for wanted in (0b1111, mask):
        with air() as made:
            made.node(0).open_transmit(64, 0b11, True, 4).write(tone(64, 5).tobytes())
            buffer = made.receiver(0, 1).open_receive(BLOCK, wanted, 1)
            assert buffer.sample_bytes == 2 * wanted.bit_count()
            blocks.append(np.frombuffer(buffer.read(), "<i2").reshape(BLOCK, -1))
    np.testing.assert_array_equal(blocks[1], blocks[0][:, columns])


def test_in_real_time_a_block_takes_the_time_it_takes() -> None:
    with air("real", world=QUIET) as made:
        radio = made.receiver()
        set_phy(radio, "voltage0", False, "sampling_frequency", 5_000_000)
        before_s = made.timebase.now_s()
        buffer = radio.open_receive(500_000, 0b11, 1)
        buffer.read()
        assert 0.1 <= made.timebase.now_s() - before_s < 5.0
