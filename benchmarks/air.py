"""The air: speed of the simulated superposition and of the chains, and every error against its closed form.

    .venv/bin/python benchmarks/air.py [section ...] [--seed 0] [--trials 100000]

Without sections all but `memory` and `false-packets` run.

superposition   K = 20 bursts through N = 8 antennas: pace over that of a plain complex64 product of that shape in the
                same run; with noise, and combined before the noise. With all cores for both and with one for both
chains          samples a second of transmit and receive chains on one core, over the 5 MS/s that a PlutoSDR sustains
aggregation     squared error of sounded, forced means over d sigma^2 / (eta D_S^2), eleven steps of 1 dB for every K, N
floors          what impairments leave without noise, over their closed forms
votes           share of wrong non-coherent votes under Rayleigh fading, over its closed form
packets         share of packets lost around every scheme's threshold; errors of uncoded QPSK against theory, in dB
sync            preambles found, preambles found in noise; EVM and symbol errors of frames with carrier offsets
fast            symbol level against sample level: mean and variance of the squared error, and time
memory          peak memory of a process that collects d = 10^7 values from K = 20 nodes on N = 8 antennas
false-packets   packets accepted out of noise, in captures of 4096 samples with and without a preamble

Ratios are the claim; times depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import erfc, ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests is no installed package

from sim_backend.air import AirPort
from testbed.core.bench import BenchSpec, WaveformSpec
from testbed.core.orders import Collect, MajorityVote
from testbed.core.units import from_db, to_db
from testbed.phy import coherence, flexframe, frames, ofdm, overair, papr, preamble, sounding, voting
from testbed.phy.coding_schemes import SCHEMES, CodingScheme, scheme_named
from testbed.phy.packets import Packet
from testbed.phy.subcarriers import allocate
from tests import air_orders
from tests.loopback import loopback

WAVEFORM = WaveformSpec()
RATE_HZ = 5e6
PLUTO_MS_S = 5.0
FULL = allocate({"a": 3.75e6}, WAVEFORM, RATE_HZ)["a"]
MIDDLE = allocate(dict.fromkeys("abc", 1.25e6), WAVEFORM, RATE_HZ)["b"]
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def noise(shape: tuple[int, ...], power_w: float, generator: np.random.Generator) -> np.ndarray:
    """White circular Gaussian noise, complex64."""
    pairs = generator.standard_normal((*shape, 2), dtype=np.float32)
    pairs *= np.float32(np.sqrt(power_w / 2))
    return pairs.view(np.complex64)[..., 0]


def seconds_of(action: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of each repeat, after one warm-up."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found[1:]


# --- speed ----------------------------------------------------------------------------------------------------------


def superposition(options: argparse.Namespace) -> None:
    """The simulated receiver against a plain product, alternately, so that both meet the same machine."""
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1" and sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the receiver has threads of its own
    num_nodes, num_antennas, size = 20, 8, 1_000_000
    generator = np.random.default_rng(options.seed)
    bursts = noise((num_nodes, size), 1e-6, generator)
    channel = noise((num_antennas, num_nodes), 1.0, generator)
    product = np.empty((num_antennas, size), np.complex64)
    combiner = np.full(num_antennas, num_antennas**-0.5, np.complex128)
    print(f"K = {num_nodes}, N = {num_antennas}, {size} samples, with {_threads()}")
    for name, kelvin, weights in (
        ("every antenna, noise aside", 0.0, None),
        ("every antenna, with noise", 290.0, None),
        ("combined first, noise aside", 0.0, combiner),
        ("combined first, with noise", 290.0, combiner),
    ):
        bench = air_orders.air_bench(num_nodes, num_antennas, level="samples", temperature_k=kelvin)
        updates = air_orders.alike_updates(bench, 2, options.seed)
        plain, ours = [], []
        with tempfile.TemporaryDirectory() as folder, loopback(bench, updates, Path(folder), options.seed) as air:
            port = AirPort(str(air.live.devices.node_devices["air"]))
            radio = air.live.devices.radio
            for repeat in range(18):
                for node, burst in zip(bench.node_names, bursts, strict=True):
                    port.post(node, float(repeat), burst)
                radio.arm(size, at_s=float(repeat))
                _wait()
                began = time.perf_counter()
                radio.read(weights)
                ours.append(time.perf_counter() - began)
                began = time.perf_counter()
                np.matmul(channel, bursts, out=product)
                plain.append(time.perf_counter() - began)
            port.close()
        pace = np.quantile(statistics.median(plain[2:]) / np.array(ours[2:]), (0.1, 0.5, 0.9))
        took_ms, product_ms = (1e3 * statistics.median(times[2:]) for times in (ours, plain))
        print(
            f"  {name:28s} {took_ms:6.1f} ms, product {product_ms:6.1f} ms: pace {pace[1]:5.2f} "
            f"(10-90 %: {pace[0]:.2f} to {pace[2]:.2f})"
        )


def _wait(seconds: float = 0.06) -> None:
    """Busy until the product's threads, which spin for some 30 ms after it, have let go of their cores."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _threads() -> str:
    count = os.environ.get("OPENBLAS_NUM_THREADS")
    return "one thread" if count == "1" else "all threads"


def chains(options: argparse.Namespace) -> None:
    """Everything a node computes to send, and everything the controller computes from a capture."""
    generator = np.random.default_rng(options.seed)
    update = generator.standard_normal(400_000, dtype=np.float32)
    symbols = overair.symbols_of(update, 0.0, 1.0)
    burst = frames.build(symbols, WAVEFORM, 0.1)
    guard = 32
    capture = np.pad(burst, (guard, guard))[None] + noise((1, burst.size + 2 * guard), 1e-4, generator)
    four = np.concatenate([capture] * 4)
    one, halves = np.ones(1), np.full(4, 0.5)

    def read(samples: np.ndarray, combiner: np.ndarray, reach: int) -> None:
        found = frames.read(samples, WAVEFORM, symbols.size, combiner=combiner, start=guard, guard=reach, reference=0.1)
        overair.mean_of(found.symbols, scale=0.1, weights=one, means=0 * one, num_values=update.size)

    ballot = voting.signs(update[:200_000])
    voted = frames.build(voting.fsk_symbols(ballot, WAVEFORM, seed=1), WAVEFORM, 0.1)
    heard = np.pad(voted, (guard, guard))[None] + noise((1, voted.size + 2 * guard), 1e-4, generator)
    count = 2 * ballot.size

    def count_votes(reach: int) -> None:
        read_symbols, _ = frames.demodulate(heard, WAVEFORM, count, start=guard, guard=reach)
        voting.fsk_decide(read_symbols, ballot.size)

    pilots = np.pad(sounding.build(16, WAVEFORM, 0.01), (guard, guard))[None]
    pilots = pilots + noise(pilots.shape, 1e-5, generator)
    rows: list[tuple[str, int, Callable[[], object]]] = [
        (
            "analogue: transmit",
            burst.size,
            lambda: frames.build(overair.symbols_of(update, 0.0, 1.0), WAVEFORM, 0.1),
        ),
        ("analogue: receive, scheduled", burst.size, lambda: read(capture, one, 0)),
        ("analogue: receive, searched", burst.size, lambda: read(capture, one, guard)),
        ("analogue: receive, 4 antennas", burst.size, lambda: read(four, halves, guard)),
        (
            "votes: transmit",
            voted.size,
            lambda: frames.build(voting.fsk_symbols(voting.signs(update[:200_000]), WAVEFORM, seed=1), WAVEFORM, 0.1),
        ),
        ("votes: receive, scheduled", voted.size, lambda: count_votes(0)),
        ("votes: receive, searched", voted.size, lambda: count_votes(guard)),
        (
            "sounding: receive, searched",
            pilots.shape[1],
            lambda: sounding.read(pilots, WAVEFORM, 16, 0.01, start=guard, guard=guard, correct_cfo=True),
        ),
    ]
    for name in ("bpsk-golay", "qpsk-golay", "qam64-secded"):
        scheme = scheme_named(name)
        packet_bytes = flexframe.best_packet_bytes(scheme, FULL, WAVEFORM)
        packets = [Packet(bytes([index] * 8), generator.bytes(packet_bytes)) for index in range(24)]
        sent = flexframe.modulate(packets, scheme, FULL, WAVEFORM, 0.01)
        received = sent + noise(sent.shape, 1e-6, generator)
        rows.append((f"{name}: transmit", sent.size, _sender(packets, scheme)))
        rows.append((f"{name}: receive", sent.size, _receiver(received)))
    print(f"one core, {_threads()}; over {PLUTO_MS_S:g} MS/s")
    for name, size, action in rows:
        rates = [size / one_s / 1e6 for one_s in seconds_of(action, 7)]
        print(
            f"  {name:32s} {statistics.median(rates):6.1f} MS/s: {statistics.median(rates) / PLUTO_MS_S:5.2f} "
            f"(from {min(rates) / PLUTO_MS_S:.2f} to {max(rates) / PLUTO_MS_S:.2f})"
        )


def _sender(packets: list[Packet], scheme: CodingScheme) -> Callable[[], object]:
    return lambda: flexframe.modulate(packets, scheme, FULL, WAVEFORM, 0.01)


def _receiver(received: np.ndarray) -> Callable[[], object]:
    def listen() -> None:
        assert sum(one.payload_valid for one in flexframe.demodulate(received, FULL, WAVEFORM)) >= 23

    return listen


def memory(options: argparse.Namespace) -> None:
    """Twenty nodes share one update, so that the process holds what a controller and one node hold, and all bursts."""
    num_values = 10_000_000
    for level, kind in (("samples", "analogue"), ("symbols", "analogue"), ("samples", "votes")):
        script = (
            f"from benchmarks import air; air.collect_ten_million({level!r}, {kind!r}, {num_values}, {options.seed})"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[1])


def collect_ten_million(level: str, kind: str, num_values: int, seed: int) -> None:
    """Collect through the engine's windows; prints time and peak memory of this process."""
    import resource

    bench = air_orders.air_bench(20, 8, level=level, excess_loss_db=20)
    update = np.random.default_rng(seed).standard_normal(num_values, dtype=np.float32)
    update.flags.writeable = False
    updates = dict.fromkeys(bench.node_names, update)
    with tempfile.TemporaryDirectory() as folder, loopback(bench, updates, Path(folder), seed) as air:
        air.live.audit = False
        one = np.ones(20)
        facts = air_orders.Facts(bench.node_names, one, 0 * one, one, 0.01 * one)
        if kind == "votes":
            order = Collect({name: MajorityVote(0.009) for name in bench.node_names})
        else:
            channel = air_orders.true_channel(bench, seed, bench.node_names)
            order = air_orders.forced(channel, facts, noise_w=air_orders.noise_of(bench), num_values=num_values)
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.perf_counter()
        collected = air.collect(order)
        took_s = time.perf_counter() - began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    said = ""
    if order.expected_mse is not None:
        error = float(np.sum(np.square(collected.mean - update, dtype=np.float64)))
        said = f", error {error / order.expected_mse:.4f} of its closed form"
    print(
        f"  {kind} at level {level}, d = {num_values:g}, K = 20, N = 8: peak {peak_mib:.0f} MiB, of which "
        f"{before_mib:.0f} before (interpreter, libraries, one update of {update.nbytes / 2**20:.0f} MiB); "
        f"{took_s:.1f} s{said}"
    )


# --- errors ---------------------------------------------------------------------------------------------------------


def aggregation(options: argparse.Namespace) -> None:
    """Level symbols for the whole grid, samples for its corners."""
    num_values = 100_000
    print(f"d = {num_values}: standard error {np.sqrt(2 / num_values):.4f}; 16 pilot blocks add K / 3072 at most")
    with tempfile.TemporaryDirectory() as folder:
        for level, nodes, antennas, each_antenna in (
            ("symbols", (1, 2, 5, 20), (1, 2, 4, 8), False),
            ("symbols", (5,), (4,), True),
            ("samples", (2, 20), (1, 8), False),
            ("samples", (5,), (4,), True),
        ):
            for num_nodes in nodes:
                for num_antennas in antennas:
                    ratios = [
                        air_orders.sounded_error(
                            air_orders.air_bench(num_nodes, num_antennas, level=level, excess_loss_db=loss_db),
                            num_values,
                            options.seed + 1000 * num_nodes + 100 * num_antennas + loss_db,
                            Path(folder),
                            each_antenna=each_antenna,
                        )[0]
                        for loss_db in range(30, 41)
                    ]
                    print(
                        f"  {level}, {'every antenna read' if each_antenna else 'combined first'}: K = {num_nodes:2d}, "
                        f"N = {num_antennas}: mean {np.mean(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}"
                    )


def floors(options: argparse.Namespace) -> None:
    """Known channels, no noise; errors relative to the power of the sum."""
    quiet, seen = air_orders.quiet_bench, air_orders.seen
    share = WAVEFORM.num_active / WAVEFORM.num_subcarriers
    jitter_s, gain, phase_rad = 2e-8, np.sqrt(from_db(0.7)), np.radians(4.0)
    wanted = 0.5 * np.sqrt(1 + 2 * gain * np.cos(phase_rad) + gain**2)
    image = (wanted - 1) ** 2 + wanted**2 / coherence.image_rejection(float(gain), float(phase_rad))
    clipped = papr.clipping(from_db(4.0))
    cases: list[tuple[str, BenchSpec, int, int, float, float | None]] = []
    for num_nodes in (2, 5, 20):
        floor = seen(coherence.phase_std_of_jitter(jitter_s, WAVEFORM, RATE_HZ), num_nodes)
        bench = quiet(num_nodes, radio={"start_jitter_s": jitter_s})
        cases.append((f"start_jitter_s = {jitter_s:g}, K = {num_nodes}", bench, 384, 2000 // num_nodes, floor, None))
    for degrees in (3.0, 12.0):
        impairments = {"phase_noise_deg": degrees, "phase_noise_hz": 0.1}
        bench, floor = quiet(20, impairments=impairments), seen(float(np.radians(degrees)), 20)
        cases.append((f"phase_noise_deg = {degrees:g}, slow, K = 20", bench, 384, 200, floor, None))
    for bits in (4, 6, 8, 12):
        bench = quiet(1, impairments={"adc_bits": bits, "agc": "block"})
        floor = coherence.quantisation_noise(bits, from_db(12.0)) * share
        cases.append((f"adc_bits = {bits}, 12 dB of headroom", bench, 38_400, 4, floor, None))
    for side in ("tx", "rx"):
        bench = quiet(1, impairments={f"{side}_iq_gain_db": 0.7, f"{side}_iq_phase_deg": 4.0})
        cases.append((f"{side}_iq: 0.7 dB, 4 degrees", bench, 38_400, 2, float(image), None))
    floor = (1 - clipped[0]) ** 2 + clipped[1]
    cases.append(("clipped at 4 dB (bound: all in the band)", quiet(1), 38_400, 2, floor, from_db(4.0)))
    with tempfile.TemporaryDirectory() as folder:
        for name, bench, num_values, trials, expected, clip in cases:
            found = air_orders.floors(bench, num_values, trials, options.seed, Path(folder), clip)
            error = np.std(found) / np.sqrt(trials) / expected
            print(
                f"  {name:42s} {to_db(float(found.mean())):7.2f} dB, closed form {to_db(expected):7.2f} dB: ratio "
                f"{found.mean() / expected:.3f} +- {error:.3f}"
            )


def votes(options: argparse.Namespace) -> None:
    """Independent channels for about every tenth of the band in every chunk of the simulated room."""
    with tempfile.TemporaryDirectory() as folder:
        for num_plus, num_minus, snr, num_antennas in (
            (1, 0, 1.0, 1),
            (1, 0, 4.0, 1),
            (3, 0, 1.0, 1),
            (3, 1, 10.0, 1),
            (4, 1, 2.0, 1),
            (12, 8, 5.0, 1),
            (3, 1, 10.0, 2),
            (2, 0, 1.0, 4),
            (3, 2, 5.0, 4),
        ):
            measured = [
                air_orders.vote_error(
                    num_plus, num_minus, snr, num_antennas, 200_000, Path(folder), options.seed + repeat
                )
                for repeat in range(4)
            ]
            expected = float(voting.fsk_vote_error(num_plus, num_minus, snr, num_antennas))
            print(
                f"  {num_plus:2d} against {num_minus}, snr {snr:4.1f}, N = {num_antennas}: {np.mean(measured):.4f}, "
                f"closed form {expected:.4f}: ratio {np.mean(measured) / expected:.3f} +- "
                f"{np.std(measured, ddof=1) / 2 / expected:.3f}"
            )


def packets(options: argparse.Namespace) -> None:
    """Additive white noise, no carrier offset, 60 packets of 1000 bytes in a third of the band."""
    generator = np.random.default_rng(options.seed)
    steps_db = (-2.0, -1.0, 0.0, 1.0, 2.0)
    print("packets lost, at the threshold " + "".join(f"{step:+8.0f} dB" for step in steps_db))
    for scheme in SCHEMES:
        lost = []
        for step_db in steps_db:
            sent = _packets_of(60, 1000, generator)
            burst = flexframe.modulate(sent, scheme, MIDDLE, WAVEFORM, 1.0)
            density_w = MIDDLE.size / np.count_nonzero(MIDDLE) / (scheme.threshold_snr * from_db(step_db))
            received = flexframe.demodulate(burst + noise(burst.shape, density_w, generator), MIDDLE, WAVEFORM)
            whole = {(one.header, one.payload) for one in received if one.payload_valid}
            assert whole <= {(packet.header, packet.payload) for packet in sent}, "a wrong packet was accepted"
            lost.append(1 - len(whole) / 60)
        print(
            f"  {scheme.name:18s} ({to_db(scheme.threshold_snr):5.2f} dB)   " + "".join(f"{one:11.3f}" for one in lost)
        )
    print("uncoded QPSK, whole band: bit errors, and the loss against theory; at the median of the packets")
    for snr_db in (5.0, 6.0, 7.0, 8.0, 9.0):
        sent = _packets_of(60, 4000, generator)
        burst = flexframe.modulate(sent, scheme_named("qpsk"), FULL, WAVEFORM, 1.0)
        density_w = FULL.size / np.count_nonzero(FULL) / from_db(snr_db)
        known = {packet.header: packet.payload for packet in sent}
        rates = []
        for one in flexframe.demodulate(burst + noise(burst.shape, density_w, generator), FULL, WAVEFORM):
            if one.header_valid:
                differing = np.frombuffer(one.payload, np.uint8) ^ np.frombuffer(known[one.header], np.uint8)
                rates.append(float(np.unpackbits(differing).mean()))
        rate, middle = float(np.mean(rates)), float(np.median(rates))
        print(
            f"  {snr_db:4.1f} dB: {rate:.3e}, theory {0.5 * erfc(np.sqrt(from_db(snr_db) / 2)):.3e}, "
            f"loss {_loss_db(snr_db, rate):.2f} dB; {_loss_db(snr_db, middle):.2f} dB"
        )


def _loss_db(snr_db: float, rate: float) -> float:
    """By how much the ratio exceeds that at which ideal QPSK errs as often."""
    return snr_db - 2 * to_db(float(-ndtri(rate)))


def _packets_of(count: int, num_bytes: int, generator: np.random.Generator) -> list[Packet]:
    return [Packet(bytes([9, 0, i % 256, i // 256, 0, 0, 0, 0]), generator.bytes(num_bytes)) for i in range(count)]


def sync(options: argparse.Namespace) -> None:
    """Preambles of analogue frames with carrier offsets up to 50 ppm of 2.4 GHz, in noise and alone."""
    generator = np.random.default_rng(options.seed)
    head = frames.build(np.zeros(1), WAVEFORM)[: preamble.PREAMBLE_BLOCKS * preamble.block_length(WAVEFORM)]
    largest = 50e-6 * 2.4e9 / RATE_HZ
    print("preambles found within 4 samples, carrier offset uniform within 50 ppm")
    for num_antennas in (1, 4):
        shares = []
        for snr_db in (-10, -8, -7, -6, -5, -4, -2, 0):
            found = 0
            for _ in range(200):
                start, cfo = int(generator.integers(200, 1200)), generator.uniform(-largest, largest)
                samples = noise((num_antennas, head.size + 1600), 1 / from_db(snr_db), generator)
                turned = head * np.exp(2j * np.pi * cfo * np.arange(head.size)).astype(np.complex64)
                phases = np.exp(2j * np.pi * generator.random(num_antennas)).astype(np.complex64)
                samples[:, start : start + head.size] += phases[:, None] * turned
                arrival = preamble.detect(samples, WAVEFORM)
                found += arrival is not None and abs(arrival.start - start) <= 4
            shares.append(f"{snr_db:+d} dB {found / 200:.3f}")
        print(f"  N = {num_antennas}: " + ", ".join(shares))
    starts, alarms = 0, 0
    for _ in range(100):
        samples = noise((1, 100_000), 1.0, generator)
        alarms += preamble.detect(samples, WAVEFORM) is not None
        starts += samples.shape[1]
    print(f"  noise alone: {alarms} found in {starts:g} samples")
    print("frames of QPSK, 200 000 symbols at 10 dB: EVM^2 times SNR, symbol errors over theory")
    snr = from_db(10.0)
    for ppm in (-50, -20, 0, 20, 50):
        bits = generator.choice(np.array([-1.0, 1.0], np.float32), 400_000)
        sent = ofdm.pack_values(bits)
        burst = frames.build(sent, WAVEFORM)
        cfo = ppm * 1e-6 * 2.4e9 / RATE_HZ
        turned = burst * np.exp(2j * np.pi * (cfo * np.arange(burst.size) % 1.0)).astype(np.complex64)
        density_w = WAVEFORM.num_subcarriers / WAVEFORM.num_active / snr
        heard = np.pad(turned, (64, 64)) + noise((turned.size + 128,), density_w, generator)
        read = frames.read(heard[None], WAVEFORM, sent.size, combiner=np.ones(1), start=64, guard=64, reference=1.0)
        error = read.symbols - sent
        evm2 = float(np.mean(np.abs(error) ** 2))
        wrong = np.mean(
            (np.sign(read.symbols.real) != np.sign(sent.real)) | (np.sign(read.symbols.imag) != np.sign(sent.imag))
        )
        rate = 0.5 * erfc(np.sqrt(snr / 2))
        theory = 1 - (1 - rate) ** 2
        print(f"  {ppm:+d} ppm: {evm2 * snr:.3f}, {wrong / theory:.2f} ({wrong:.2e}), lost {read.lost}")


def fast(options: argparse.Namespace) -> None:
    """The same order at both levels, K = 5, N = 4; groups of 20 values are trials. Impairments burst by burst."""
    with tempfile.TemporaryDirectory() as folder:
        trials: dict[str, np.ndarray] = {}
        for level in ("symbols", "samples"):
            bench = air_orders.air_bench(5, 4, level=level, excess_loss_db=35)
            errors = [
                air_orders.group_errors(bench, 900_000, 20, options.seed + seed, Path(folder)) for seed in range(6)
            ]
            trials[level] = np.concatenate(errors)
        _print_pair("noise", trials, np.sqrt((2 + 12 / 20) / len(trials["samples"])))
        cases: list[tuple[str, int, dict[str, object]]] = [
            ("phase noise, K = 5", 5, {"impairments": {"phase_noise_deg": 6.0, "phase_noise_hz": 0.1}}),
            ("fixed delays, K = 20", 20, {"impairments": {"start_offset_s": 2e-8}}),
            ("fixed delays, K = 2", 2, {"impairments": {"start_offset_s": 2e-8}}),
            ("unequal branches, K = 5", 5, {"impairments": {"tx_iq_gain_db": 0.7}}),
            ("amplifier, K = 5", 5, {"impairments": {"pa_saturation_dbm": 15.0}}),
        ]
        for name, num_nodes, parts in cases:
            for level in ("symbols", "samples"):
                bench = air_orders.quiet_bench(num_nodes, level, **parts)
                trials[level] = air_orders.floors(bench, 1536, 60, options.seed, Path(folder))
            _print_pair(f"{name}, the same draws at both levels", trials, None)
        took_s = {level: _collect_seconds(level, options.seed, Path(folder)) for level in ("symbols", "samples")}
    ratios = [slow / quick for slow, quick in zip(took_s["samples"], took_s["symbols"], strict=True)]
    print(
        f"  a collection of 900 000 values from 20 nodes: {statistics.median(took_s['symbols']):.2f} s at symbols, "
        f"samples take {statistics.median(ratios):.2f} times as long (from {min(ratios):.2f} to {max(ratios):.2f})"
    )


def _collect_seconds(level: str, seed: int, folder: Path) -> list[float]:
    """Of collections on an open bench."""
    bench = air_orders.air_bench(20, 4, level=level, excess_loss_db=20)
    updates = air_orders.alike_updates(bench, 900_000, seed)
    facts = air_orders.Facts.of(bench, updates, alike=True)
    channel = air_orders.true_channel(bench, seed, facts.names)
    order = air_orders.forced(channel, facts, noise_w=air_orders.noise_of(bench), num_values=900_000)
    with loopback(bench, updates, folder, seed) as air:
        air.live.audit = False
        return seconds_of(lambda: air.collect(order), 7)


def _print_pair(name: str, trials: dict[str, np.ndarray], error: float | None) -> None:
    symbols, samples = trials["symbols"], trials["samples"]
    variance = f"{symbols.var() / samples.var():.4f}" if samples.var() > 1e-6 * samples.mean() ** 2 else "-"
    print(
        f"  {name}: symbols over samples, {len(symbols)} trials: mean {symbols.mean() / samples.mean():.4f}, variance "
        + variance
        + ("" if error is None else f" +- {error:.4f} each")
    )


def false_packets(options: argparse.Namespace) -> None:
    """Captures of 4096 samples: noise alone, and for a tenth of the trials a preamble with noise after it."""
    generator = np.random.default_rng(options.seed)
    began = time.perf_counter()
    for name, trials, with_preamble in (("noise", options.trials, False), ("preambles", options.trials // 10, True)):
        wrong = suspected = done = 0
        while done < trials:
            count, allocation = min(64, trials - done), (FULL, MIDDLE)[done // 64 % 2]
            samples = noise((count, 4096), 1.0, generator)
            if with_preamble:
                packet = _packets_of(1, 400, generator)
                burst = flexframe.modulate(packet, scheme_named("qpsk"), allocation, WAVEFORM, 10.0)
                # up to the end of the preamble behind the transmitter's filter
                head = 3 * preamble.block_length(WAVEFORM) + WAVEFORM.num_subcarriers // 4
                samples[:, 300 : 300 + head] += burst[:head]
            for one in flexframe.demodulate(samples.reshape(-1), allocation, WAVEFORM):
                suspected += 1
                wrong += one.payload_valid
            done += count
        print(
            f"  {done} captures of {name}: {suspected} preambles found, {wrong} packets accepted; "
            f"{time.perf_counter() - began:.0f} s"
        )


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "superposition": superposition,
    "chains": chains,
    "aggregation": aggregation,
    "floors": floors,
    "votes": votes,
    "packets": packets,
    "sync": sync,
    "fast": fast,
    "memory": memory,
    "false-packets": false_packets,
}
SLOW = ("memory", "false-packets")
BY_THREADS = {"superposition": ({}, ONE_THREAD), "chains": (ONE_THREAD,)}
"""Sections that run in processes of their own, whose libraries are told how many threads to use."""


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", choices=[[], *SECTIONS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=100_000, help="of false-packets")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.section or [name for name in SECTIONS if name not in SLOW]:
        if not options.here:
            print(f"-- {name}", flush=True)
        if name in BY_THREADS and not options.here:
            for threads in BY_THREADS[name]:
                command = [sys.executable, __file__, name, "--here", "--seed", str(options.seed)]
                subprocess.run(command, check=True, env={**os.environ, **threads})
        else:
            SECTIONS[name](options)


if __name__ == "__main__":
    main()
