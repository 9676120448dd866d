"""Packets, error-free links and soundings through engine, radios and room, with updates that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core.errors import DeviceError
from testbed.core.orders import Collect, Digital, Ideal, Payload, Sound, Sounding
from testbed.phy import payload as payloads
from testbed.phy.packets import Reassembly
from tests.benches import small_bench
from tests.loopback import Loopback, loopback

NUM_VALUES = 3000


def updates(names: tuple[str, ...], num_values: int = NUM_VALUES, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(num_values).astype(np.float32) for name in names}


def opened(folder: Path, *, num_values: int = NUM_VALUES, seed: int = 0, **changes: Any) -> Any:
    """A bench whose nodes hold random updates."""
    bench = small_bench(**changes)
    return loopback(bench, updates(bench.node_names, num_values), folder, seed)


def sounded(bench: Loopback, num_pilots: int = 8) -> Sounding:
    reply = bench.answer(Sound(num_pilots=num_pilots))
    assert isinstance(reply, Sounding)
    return reply


def packets(bench: Loopback, weights: Mapping[str, float] | None = None, **changes: Any) -> Collect:
    """Equal shares of the band, full power."""
    sounding = sounded(bench)
    share_hz = bench.bench.bandwidth_hz / len(sounding.nodes)
    uplinks = {}
    for index, name in enumerate(sounding.nodes):
        channel = sounding.channel[:, index]
        strength = float(np.sum(np.abs(channel) ** 2))
        snr = 0.01 * strength / (sounding.noise_w / len(sounding.nodes))
        one = Digital(
            weight=1.0 if weights is None else weights[name],
            bandwidth_hz=share_hz,
            power_w=0.01,
            snr=snr,
            combiner=channel / np.sqrt(strength),
            cfo_hz=float(sounding.cfo_hz[index]),
        )
        uplinks[name] = replace(one, **changes)
    return Collect(uplinks)


# --- packets ----------------------------------------------------------------------------------------------------------


def test_packets_bring_the_weighted_mean_bit_by_bit(tmp_path: Path) -> None:
    weights = {"node-00": 1.0, "node-01": 2.5, "node-02": 4.0}
    with opened(tmp_path) as bench:
        collected = bench.collect(packets(bench, weights))
        for name, update in bench.updates.items():
            np.testing.assert_array_equal(collected.updates[name], update)
        expected = sum(weights[name] * update.astype(np.float64) for name, update in bench.updates.items()) / 7.5
        np.testing.assert_allclose(collected.mean, expected, rtol=1e-5, atol=1e-6)
        assert collected.missing == ()
        for delivery in collected.deliveries.values():
            assert delivery.num_bytes == payloads.num_bytes(Payload(), NUM_VALUES)
            assert delivery.sent >= delivery.packets > 1
            assert delivery.snr is not None
        assert collected.spent.air_time_s > 0
        # every node radiates at 10 mW for less than the whole time
        assert 0 < sum(collected.energy_j.values()) < 3 * 0.01 * collected.spent.air_time_s


def test_the_measured_ratio_of_packets_is_the_sounded_one(tmp_path: Path) -> None:
    with opened(tmp_path, world={"excess_loss_db": 45.0}) as bench:
        order = packets(bench)
        collected = bench.collect(order)
        for name, uplink in order.uplinks.items():
            assert isinstance(uplink, Digital)
            measured = collected.deliveries[name].snr
            assert measured is not None
            assert 10 * np.log10(measured / uplink.snr) == pytest.approx(0.0, abs=1.0)


def test_lost_packets_are_sent_again_until_they_arrive(tmp_path: Path) -> None:
    # about 19 to 21 dB: uncoded 16-QAM loses some packets of a kilobyte there
    with opened(tmp_path, world={"excess_loss_db": 45.5}) as bench:
        collected = bench.collect(packets(bench, scheme="qam16", max_tries=40))
        assert collected.missing == ()
        assert sum(delivery.sent - delivery.packets for delivery in collected.deliveries.values()) > 0
        for name, update in bench.updates.items():
            np.testing.assert_array_equal(collected.updates[name], update)


def test_a_node_whose_packets_fail_too_often_is_missing_and_nothing_of_it_counts(tmp_path: Path) -> None:
    with opened(tmp_path, world={"excess_loss_db": 45.0}) as bench:
        order = packets(bench)
        weak = replace(order.uplinks["node-01"], scheme="qam256")  # type: ignore[type-var]
        collected = bench.collect(Collect({**order.uplinks, "node-01": weak}))
        assert collected.missing == ("node-01",)
        assert set(collected.updates) == {"node-00", "node-02"}
        expected = (bench.updates["node-00"] + bench.updates["node-02"]) / 2
        np.testing.assert_allclose(collected.mean, expected, rtol=1e-5, atol=1e-6)
        assert collected.deliveries["node-01"].sent >= 4


def test_where_no_packet_arrives_the_bench_is_at_fault(tmp_path: Path) -> None:
    with opened(tmp_path, world={"excess_loss_db": 45.0}) as bench:
        order = packets(bench, scheme="qam256", max_tries=1)
        with pytest.raises(DeviceError, match="no node delivered") as failure:
            bench.collect(order)
        assert "more robust coding scheme" in (failure.value.remedy or "")


def test_packets_that_pass_their_checks_and_not_the_whole_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong packet in four thousand million passes its CRC-32; the check of the whole sees it."""
    add = Reassembly.add

    def wrong(self: Reassembly, header: bytes, payload: bytes) -> bool:
        return add(self, header, bytes([payload[0] ^ 1]) + payload[1:] if header[1] == 1 else payload)

    monkeypatch.setattr(Reassembly, "add", wrong)
    with opened(tmp_path) as bench:
        collected = bench.collect(packets(bench))
        assert collected.missing == ("node-01",)
        np.testing.assert_array_equal(collected.updates["node-00"], bench.updates["node-00"])


def test_a_silent_node_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as bench:
        order = packets(bench)
        bench.link.deaf = {"node-02"}
        collected = bench.collect(order)
        assert collected.missing == ("node-02",)


def test_more_nodes_than_fit_side_by_side_send_in_waves(tmp_path: Path) -> None:
    with opened(tmp_path, num_values=400, nodes=[{"count": 13, "max_power_dbm": 10.0}]) as bench:
        collected = bench.collect(packets(bench))
        assert collected.missing == ()
        np.testing.assert_allclose(collected.mean, bench.mean(), rtol=1e-4, atol=1e-6)


def test_radios_with_offsets_deliver(tmp_path: Path) -> None:
    impairments = {
        "oscillator_ppm": 5.0,
        "phase_jumps": "burst",
        "phase_noise_deg": 1.0,
        "adc_bits": 12,
        "agc": "block",
    }
    with opened(tmp_path, num_values=800, world={"impairments": impairments}) as bench:
        collected = bench.collect(packets(bench))
        assert collected.missing == ()
        np.testing.assert_allclose(collected.mean, bench.mean(), rtol=1e-4, atol=1e-6)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "sign", "topk"])
def test_error_feedback_loses_nothing_over_the_rounds(tmp_path: Path, kind: Any) -> None:
    coded = Payload(kind, keep=0.05, error_feedback=True)
    with opened(tmp_path) as bench:
        order = Collect({name: Ideal(1.0, 1e6, 0.01, 1e6, coded) for name in bench.updates})
        received = dict.fromkeys(bench.updates, np.zeros(NUM_VALUES))
        for bench.live.round_index in range(1, 7):
            collected = bench.collect(order)
            received = {name: received[name] + collected.updates[name] for name in received}
        residuals = bench.live.residuals()
        assert set(residuals) == set(bench.updates)
        for name, update in bench.updates.items():
            np.testing.assert_allclose(received[name] + residuals[name], 6 * update.astype(np.float64), atol=1e-3)


def test_what_payloads_left_out_is_given_back_to_a_resumed_run(tmp_path: Path) -> None:
    coded = Payload("topk", keep=0.05, error_feedback=True)
    with opened(tmp_path) as bench:
        order = Collect({name: Ideal(1.0, 1e6, 0.01, 1e6, coded) for name in bench.updates})
        bench.live.round_index = 1
        bench.collect(order)
        kept = {name: residual.copy() for name, residual in bench.live.residuals().items()}
        bench.live.round_index = 2
        second = bench.collect(order).mean
    with opened(tmp_path) as bench:
        bench.live.crew.give_residuals(kept)
        bench.live.round_index = 2
        np.testing.assert_array_equal(bench.collect(order).mean, second)


@pytest.mark.parametrize("link", ["ideal", "packets"])
def test_golombs_code_of_places_brings_the_same_update_in_fewer_bytes(tmp_path: Path, link: str) -> None:
    plain = Payload("topk", keep=0.05)
    coded = replace(plain, positions="golomb")
    with opened(tmp_path) as bench:
        means, bits = [], []
        for index, payload in enumerate((plain, coded), start=1):
            bench.live.round_index = index
            if link == "ideal":
                collected = bench.collect(
                    Collect({name: Ideal(1.0, 1e6, 0.01, 1e6, payload) for name in bench.updates})
                )
                bits.append(collected.spent.seconds * 1e6)
            else:
                collected = bench.collect(packets(bench, payload=payload))
                bits.append(8 * max(one.num_bytes for one in collected.deliveries.values()))
            means.append(collected.mean)
    np.testing.assert_array_equal(means[0], means[1])
    # of 3000 values 5 % take 28 bits each in a list, and about 22 with Golomb's code
    assert 8 * payloads.num_bytes(plain, NUM_VALUES) == pytest.approx(bits[0])
    assert bits[1] < 0.82 * bits[0]


def test_an_error_free_link_takes_its_bits_over_its_rate(tmp_path: Path) -> None:
    rates = {"node-00": 1e6, "node-01": 2e6, "node-02": 0.5e6}
    with opened(tmp_path) as bench:
        start_s = bench.live.now_s()
        order = Collect({name: Ideal(1.0, 1e6, 0.01, rate, Payload("float16")) for name, rate in rates.items()})
        collected = bench.collect(order)
        num_bits = 8 * payloads.num_bytes(Payload("float16"), NUM_VALUES)
        assert collected.spent.seconds == pytest.approx(num_bits / 0.5e6)
        assert bench.live.now_s() - start_s == pytest.approx(num_bits / 0.5e6)
        assert collected.energy_j["node-01"] == pytest.approx(0.01 * num_bits / 2e6)
        np.testing.assert_allclose(collected.mean, bench.mean(), atol=2e-3)


# --- soundings --------------------------------------------------------------------------------------------------------


def test_a_sounding_measures_how_late_every_node_starts(tmp_path: Path) -> None:
    radio = {"trigger": "network", "start_jitter_s": 2e-3}
    bench_file = {"radio": radio, "nodes": [{"count": 24}]}
    with opened(tmp_path, num_values=10, **bench_file) as bench:
        sounding = sounded(bench)
        assert sounding.missing == ()
        # a standard deviation of 24 draws is known to about 15 %
        assert np.std(sounding.delay_s) == pytest.approx(2e-3, rel=0.45)
        again = sounded(bench)
        assert np.abs(again.delay_s - sounding.delay_s).max() > 1e-4
        # one symbol's noise is what the world says, wherever the burst begins
        assert sounding.noise_w == pytest.approx(1.380649e-23 * 290 * 10**0.7 * 3.75e6, rel=0.05)


def test_a_sounding_measures_carrier_offsets(tmp_path: Path) -> None:
    world = {"excess_loss_db": 30.0, "impairments": {"oscillator_ppm": 3.0, "sampling_offset": False}}
    with opened(tmp_path, num_values=10, world=world) as bench:
        first, second = sounded(bench), sounded(bench)
        assert np.abs(first.cfo_hz).max() > 1e3
        np.testing.assert_allclose(first.cfo_hz, second.cfo_hz, atol=20.0)


def test_nodes_below_the_noise_are_missing_from_a_sounding(tmp_path: Path) -> None:
    nodes = [
        {"name": "near", "position_m": [0.5, 3.5, 1.0]},
        {"name": "far", "position_m": [9.5, 0.5, 1.0], "max_power_dbm": -70.0},
    ]
    changes = {"nodes": nodes, "radio": {"start_jitter_s": 1e-6}, "world": {"excess_loss_db": 40.0}}
    with opened(tmp_path, num_values=10, **changes) as bench:
        sounding = sounded(bench)
        assert sounding.nodes == ("near",)
        assert sounding.missing == ("far",)
        assert sounding.channel.shape == (3, 1)


def test_a_sounding_of_nobody_says_what_to_look_at(tmp_path: Path) -> None:
    changes = {"nodes": [{"count": 2, "max_power_dbm": -90.0}], "radio": {"start_jitter_s": 1e-6}}
    with (
        opened(tmp_path, num_values=10, **changes) as bench,
        pytest.raises(DeviceError, match="no node's pilots were found"),
    ):
        sounded(bench)
