"""The digital uplink over simulated air: real frames, real noise, real neighbours."""

import resource

import numpy as np
import pytest
from scipy.special import erfc

from testbed.core.bench import WaveformSpec
from testbed.core.errors import ConfigError
from testbed.core.units import from_db, to_db
from testbed.phy import flexframe, liquid
from testbed.phy.coding_schemes import SCHEMES, scheme_named
from testbed.phy.packets import Packet
from testbed.phy.subcarriers import MIN_SHARE, allocate, max_nodes

WAVEFORM = WaveformSpec()
RATE_HZ = 5e6
BAND_HZ = 3.75e6

FULL = allocate({"a": BAND_HZ}, WAVEFORM, RATE_HZ)["a"]
LOW, MIDDLE, HIGH = allocate(dict.fromkeys("abc", BAND_HZ / 3), WAVEFORM, RATE_HZ).values()
NARROW = list(allocate(dict.fromkeys("abcdefghij", BAND_HZ / 10), WAVEFORM, RATE_HZ).values())
QPSK = scheme_named("qpsk")


def packets_of(count, num_bytes, generator, node=0):
    return [Packet(bytes([9, node, i % 256, i // 256, 0, 0, 0, 0]), generator.bytes(num_bytes)) for i in range(count)]


def noise(num_samples, power_w, generator):
    normals = generator.standard_normal((num_samples, 2), dtype=np.float32).view(np.complex64)[:, 0]
    return np.float32(np.sqrt(power_w / 2)) * normals


def noise_w_of(snr, allocation):
    """Noise power of a sample at which a subcarrier of a 1 W burst has this signal-to-noise ratio."""
    return allocation.size / np.count_nonzero(allocation) / snr


def turned(samples, cfo):
    return (samples * np.exp(2j * np.pi * cfo * np.arange(samples.size))).astype(np.complex64)


def sent_and_heard(scheme, allocation, snr, count, num_bytes, generator):
    packets = packets_of(count, num_bytes, generator)
    burst = flexframe.modulate(packets, scheme, allocation, WAVEFORM, 1.0)
    heard = burst + noise(burst.size, noise_w_of(snr, allocation), generator)
    return packets, flexframe.demodulate(heard, allocation, WAVEFORM)


def accepted(received):
    return [(one.header, one.payload) for one in received if one.payload_valid]


def as_sent(packets):
    return [(packet.header, packet.payload) for packet in packets]


# --- without noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_every_scheme_brings_its_packets_through_a_quiet_channel(scheme):
    packets = packets_of(3, 701, np.random.default_rng(0))
    burst = flexframe.modulate(packets, scheme, LOW, WAVEFORM, 0.01)
    received = flexframe.demodulate(burst, LOW, WAVEFORM)
    assert accepted(received) == as_sent(packets)
    # filters and tapers leave errors far below what 256-QAM bears
    assert min(one.snr for one in received) > from_db(38)


@pytest.mark.parametrize("allocation", [FULL, LOW, MIDDLE, HIGH, *NARROW])
def test_a_burst_has_the_length_that_was_announced_and_frames_are_where_they_belong(allocation):
    generator, scheme = np.random.default_rng(1), scheme_named("qpsk-golay")
    lengths = [1, 17, 500, 33]
    packets = [Packet(bytes(8), generator.bytes(length)) for length in lengths]
    burst = flexframe.modulate(packets, scheme, allocation, WAVEFORM, 2.0)
    assert burst.dtype == np.complex64
    assert burst.size == flexframe.burst_length(lengths, scheme, allocation, WAVEFORM)
    late = np.concatenate([np.zeros(777, np.complex64), burst])
    received = flexframe.demodulate(late, allocation, WAVEFORM)
    assert accepted(received) == as_sent(packets)
    starts = [777 + flexframe.burst_length(lengths[:i], scheme, allocation, WAVEFORM) for i in range(4)]
    tail = flexframe.burst_length([1], scheme, allocation, WAVEFORM) * 2 - flexframe.burst_length(
        [1, 1], scheme, allocation, WAVEFORM
    )
    np.testing.assert_allclose([one.start for one in received], [starts[0], *(s - tail for s in starts[1:])], atol=2)


def test_the_average_power_over_the_frames_is_what_was_asked():
    packets = packets_of(5, 300, np.random.default_rng(2))
    scheme = scheme_named("qam16")
    for allocation in (FULL, MIDDLE):
        burst = flexframe.modulate(packets, scheme, allocation, WAVEFORM, 0.02)
        symbols = 5 * flexframe.frame_symbols(300, scheme, allocation)
        assert np.vdot(burst, burst).real == pytest.approx(0.02 * symbols * 320, rel=1e-5)
    assert not flexframe.modulate(packets, scheme, FULL, WAVEFORM, 0.0).any()


def test_a_share_stays_within_its_guards():
    packets = packets_of(8, 800, np.random.default_rng(3))
    burst = flexframe.modulate(packets, QPSK, MIDDLE, WAVEFORM, 1.0)
    blocks = burst[: burst.size // 4096 * 4096].reshape(-1, 4096) * np.hanning(4096)
    spectrum = np.mean(np.abs(np.fft.fft(blocks)) ** 2, axis=0)
    inside = np.zeros(256, bool)
    for own in np.flatnonzero(MIDDLE):
        inside[np.arange(own - 8, own + 9) % 256] = True
    outside = ~np.repeat(inside, 16)
    passed = np.repeat(MIDDLE > 0, 16)
    assert to_db(float(spectrum[outside].max() / spectrum[passed].mean())) < -45


def test_frames_last_as_long_as_liquid_says():
    for allocation in (FULL, NARROW[0]):
        for scheme in SCHEMES:
            with liquid.generator(allocation, 64, 0, scheme.modulation, scheme.fec0, scheme.fec1) as generator:
                for length in (1, 100, 999):
                    symbols = generator.frame(bytes(8), bytes(length)).size / 320
                    assert flexframe.frame_symbols(length, scheme, allocation) == symbols


@pytest.mark.parametrize(
    ("num_subcarriers", "num_active", "cyclic_prefix"),
    [(64, 48, 16), (128, 96, 8), (256, 192, 0), (256, 254, 64), (512, 300, 256), (1024, 800, 72)],
)
def test_other_numerologies_work(num_subcarriers, num_active, cyclic_prefix):
    waveform = WaveformSpec(num_subcarriers=num_subcarriers, num_active=num_active, cyclic_prefix=cyclic_prefix)
    generator = np.random.default_rng(4)
    band_hz = 5e6 * num_active / num_subcarriers
    for allocation in allocate({"a": band_hz / 3, "b": band_hz / 2}, waveform, 5e6).values():
        packets = packets_of(3, 400, generator)
        burst = flexframe.modulate(packets, scheme_named("qpsk-golay"), allocation, waveform, 1.0)
        heard = burst + noise(burst.size, noise_w_of(from_db(15), allocation), generator)
        assert accepted(flexframe.demodulate(heard, allocation, waveform)) == as_sent(packets)


# --- neighbours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delays", [(0, 0, 0), (0, 31, 17), (0, 130, 301)], ids=str)
@pytest.mark.parametrize("weak", [0, 1, 2])
def test_three_nodes_at_once_20_db_apart_all_get_through(weak, delays):
    generator = np.random.default_rng(5)
    cfos = np.array([200.0, -150.0, 80.0]) / RATE_HZ
    schemes = [scheme_named("qpsk-golay" if node == weak else "qam16-secded") for node in range(3)]
    total, sent = np.zeros(400_000, np.complex64), []
    for node, allocation in enumerate((LOW, MIDDLE, HIGH)):
        sent.append(packets_of(4, 500, generator, node))
        burst = flexframe.modulate(sent[node], schemes[node], allocation, WAVEFORM, 1e-4 if node == weak else 1e-2)
        phase = np.exp(2j * np.pi * generator.random())
        total[600 + delays[node] : 600 + delays[node] + burst.size] += np.complex64(phase) * turned(burst, cfos[node])
    # 13 dB for the weakest
    total += noise(total.size, 1e-4 * noise_w_of(from_db(13), MIDDLE), generator)
    for node, allocation in enumerate((LOW, MIDDLE, HIGH)):
        received = flexframe.demodulate(total, allocation, WAVEFORM)
        assert accepted(received) == as_sent(sent[node])
        assert len(received) == 4
        assert np.mean([one.cfo for one in received]) == pytest.approx(cfos[node], abs=120 / RATE_HZ)
        # what the neighbours add to the noise costs less than half a decibel more than estimation does
        if node == weak:
            assert to_db(float(np.mean([one.snr for one in received]))) > 12


def test_stronger_neighbours_leave_little_in_a_share():
    generator = np.random.default_rng(19)
    for delays in ((0, 0, 0), (0, 130, 301)):
        total = np.zeros(120_000, np.complex64)
        for node, (allocation, delay) in enumerate(zip((LOW, MIDDLE, HIGH), delays, strict=True)):
            packets = packets_of(4, 500, generator, node)
            burst = flexframe.modulate(packets, QPSK, allocation, WAVEFORM, 1.0 if node == 1 else 100.0)
            total[delay : delay + burst.size] += burst
        received = flexframe.demodulate(total, MIDDLE, WAVEFORM)
        assert [one.payload_valid for one in received] == [True] * 4
        assert min(one.snr for one in received) > from_db(32)


def test_as_many_narrow_shares_as_fit_get_through_at_once():
    generator = np.random.default_rng(6)
    assert len(NARROW) == max_nodes(WAVEFORM) == 10
    assert min(np.count_nonzero(allocation) for allocation in NARROW) == MIN_SHARE == 12
    total, sent, scheme = np.zeros(400_000, np.complex64), [], scheme_named("qpsk-golay")
    for node, allocation in enumerate(NARROW):
        sent.append(packets_of(2, 200, generator, node))
        burst = flexframe.modulate(sent[node], scheme, allocation, WAVEFORM, 100.0 if node % 2 else 1.0)
        total[200 * node : 200 * node + burst.size] += burst
    total += noise(total.size, noise_w_of(from_db(15), NARROW[0]), generator)
    for node, allocation in enumerate(NARROW):
        assert accepted(flexframe.demodulate(total, allocation, WAVEFORM)) == as_sent(sent[node])


# --- carrier offset, channels, scale --------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", [FULL, HIGH, NARROW[3]], ids=["full", "third", "narrow"])
@pytest.mark.parametrize("cfo_hz", [-120e3, -61e3, -19.5e3, 3e3, 20e3, 99e3, 120e3])
def test_a_single_node_is_found_50_ppm_off(allocation, cfo_hz):
    generator = np.random.default_rng(7)
    packets = packets_of(2, 100, generator)
    burst = flexframe.modulate(packets, scheme_named("qpsk-golay"), allocation, WAVEFORM, 1.0)
    heard = turned(np.concatenate([np.zeros(999, np.complex64), burst]), cfo_hz / RATE_HZ)
    heard += noise(heard.size, noise_w_of(from_db(12), allocation), generator)
    received = flexframe.demodulate(heard, allocation, WAVEFORM, max_cfo=125e3 / RATE_HZ)
    assert accepted(received) == as_sent(packets)
    assert np.mean([one.cfo for one in received]) * RATE_HZ == pytest.approx(cfo_hz, abs=300)


def test_without_a_search_offsets_up_to_the_stated_bound_are_borne():
    generator = np.random.default_rng(8)
    bound = flexframe.max_cfo_without_search(WAVEFORM)
    assert bound * RATE_HZ == pytest.approx(1302, abs=1)
    for cfo in (-bound, bound):
        packets = packets_of(5, 200, generator)
        burst = turned(flexframe.modulate(packets, scheme_named("qpsk-golay"), MIDDLE, WAVEFORM, 1.0), cfo)
        burst += noise(burst.size, noise_w_of(from_db(10), MIDDLE), generator)
        assert accepted(flexframe.demodulate(burst, MIDDLE, WAVEFORM)) == as_sent(packets)


def test_echoes_within_the_prefix_are_equalised():
    generator = np.random.default_rng(9)
    packets = packets_of(4, 500, generator)
    burst = flexframe.modulate(packets, scheme_named("qam16-golay"), MIDDLE, WAVEFORM, 1.0)
    heard = np.convolve(burst, np.array([1, 0, 0.3j, 0, 0, -0.15])).astype(np.complex64)
    heard += noise(heard.size, noise_w_of(from_db(25), MIDDLE), generator)
    assert accepted(flexframe.demodulate(heard, MIDDLE, WAVEFORM)) == as_sent(packets)


@pytest.mark.parametrize("power_w", [1e-16, 1.0, 1e6])
def test_no_power_is_too_small_or_too_large(power_w):
    packets = packets_of(2, 100, np.random.default_rng(10))
    burst = flexframe.modulate(packets, QPSK, MIDDLE, WAVEFORM, power_w)
    assert accepted(flexframe.demodulate(burst, MIDDLE, WAVEFORM)) == as_sent(packets)


# --- noise ----------------------------------------------------------------------------------------------------------


def test_uncoded_qpsk_errs_as_theory_says():
    # the equaliser's five coefficients come from one symbol of n subcarriers, each symbol's phase from its pilots:
    # noise grows by 1 + 5 / n + 1 / (2 pilots), 0.2 dB for the full band
    generator = np.random.default_rng(11)
    num_used, num_pilots = np.count_nonzero(FULL), np.count_nonzero(FULL == 1)
    estimation = 1 + 5 / num_used + 1 / (2 * num_pilots)
    assert to_db(estimation) == pytest.approx(0.2, abs=0.05)
    for snr in (from_db(6), from_db(8)):
        packets, received = sent_and_heard(QPSK, FULL, snr, 40, 4000, generator)
        known = {packet.header: packet.payload for packet in packets}
        heard = [one for one in received if one.header_valid]
        assert len(heard) >= 34
        wrong = sum(
            int(np.unpackbits(np.frombuffer(one.payload, np.uint8) ^ np.frombuffer(known[one.header], np.uint8)).sum())
            for one in heard
        )
        rate = wrong / (8 * 4000 * len(heard))
        # the ratio at which ideal QPSK errs as often
        grid = np.linspace(snr / 2, snr, 2001)
        theory = 0.5 * erfc(np.sqrt(grid / 2))
        effective = float(grid[np.argmin(np.abs(theory - rate))])
        assert to_db(snr / effective) == pytest.approx(to_db(estimation), abs=0.2)


@pytest.mark.parametrize("name", ["qpsk-secded", "qam16", "qam256-secded"])
def test_losses_fall_with_the_signal_to_noise_ratio(name):
    generator, scheme = np.random.default_rng(12), scheme_named(name)
    lost = []
    for offset in (-2.0, -1.0, 0.0, 2.0):
        snr = scheme.threshold_snr * from_db(offset)
        packets, received = sent_and_heard(scheme, MIDDLE, snr, 60, 1000, generator)
        lost.append(1 - len(accepted(received)) / 60)
        assert set(accepted(received)) <= set(as_sent(packets)), "nothing wrong is accepted"
    assert lost[0] > 0.5
    assert lost[0] > lost[1] > lost[2]
    # a binomial of 60 with 0.1 stays below 0.25 with probability 0.999
    assert lost[2] < 0.25
    assert lost[3] < 0.05


@pytest.mark.parametrize("name", ["bpsk-golay", "qpsk-golay", "qam16-golay"])
def test_at_its_threshold_a_coded_scheme_loses_one_packet_in_ten(name):
    scheme = scheme_named(name)
    packets, received = sent_and_heard(scheme, MIDDLE, scheme.threshold_snr, 40, 1000, np.random.default_rng(21))
    # a binomial of 40 with 0.1 stays at or below 11 with probability 0.999
    assert len(packets) - len(accepted(received)) <= 11


def test_preambles_are_found_well_below_every_threshold():
    generator = np.random.default_rng(13)
    for snr, share in ((from_db(0), 0.97), (from_db(3), 0.99)):
        packets = packets_of(100, 1, generator)
        burst = flexframe.modulate(packets, QPSK, MIDDLE, WAVEFORM, 1.0)
        burst += noise(burst.size, noise_w_of(snr, MIDDLE), generator)
        assert share * 100 <= len(flexframe.demodulate(burst, MIDDLE, WAVEFORM)) <= 101


def false_accepts(num_trials, generator, trial_samples=4096):
    """Packets that are accepted out of noise alone, in so many captures of so many samples, over all shares."""
    wrong, shares = 0, (FULL, LOW, NARROW[5])
    for trial in range(0, num_trials, 64):
        samples = noise(64 * trial_samples, 1.0, generator)
        wrong += len(accepted(flexframe.demodulate(samples, shares[trial // 64 % 3], WAVEFORM)))
    return wrong


def test_nothing_is_accepted_out_of_noise():
    assert false_accepts(640, np.random.default_rng(14)) == 0


def test_nothing_wrong_is_accepted_where_headers_fail():
    generator = np.random.default_rng(15)
    packets, received = sent_and_heard(QPSK, MIDDLE, from_db(3), 60, 100, generator)
    assert not set(accepted(received)) - set(as_sent(packets))


def test_a_burst_of_noise_costs_the_packets_it_hits_and_no_other():
    generator, scheme = np.random.default_rng(16), scheme_named("qpsk-hamming")
    packets = packets_of(5, 500, generator)
    burst = flexframe.modulate(packets, scheme, MIDDLE, WAVEFORM, 1.0)
    frame = flexframe.burst_length([500, 500], scheme, MIDDLE, WAVEFORM) - flexframe.burst_length(
        [500], scheme, MIDDLE, WAVEFORM
    )
    burst[2 * frame + 3000 : 2 * frame + 6000] += noise(3000, 30.0, generator)
    received = flexframe.demodulate(burst, MIDDLE, WAVEFORM)
    assert accepted(received) == as_sent(packets[:2] + packets[3:])
    assert [one.payload_valid for one in received] == [True, True, False, True, True]


def test_a_preamble_whose_payload_is_cut_is_a_loss_that_counts():
    generator, scheme = np.random.default_rng(17), scheme_named("qpsk-hamming")
    packets = packets_of(3, 500, generator)
    burst = flexframe.modulate(packets, scheme, MIDDLE, WAVEFORM, 1.0)
    frame = burst.size // 3
    # the capture ends within the last frame
    received = flexframe.demodulate(burst[: 2 * frame + 3000], MIDDLE, WAVEFORM)
    assert [one.payload_valid for one in received] == [True, True, False]
    assert received[-1].payload == b""
    # the node falls silent within the second frame
    silenced = burst.copy()
    silenced[frame + 3000 : 2 * frame - 400] = 0
    silenced += noise(silenced.size, noise_w_of(from_db(20), MIDDLE), generator)
    received = flexframe.demodulate(silenced, MIDDLE, WAVEFORM)
    assert accepted(received) == as_sent([packets[0], packets[2]])
    assert len(received) == 3


# --- the edges ------------------------------------------------------------------------------------------------------


def test_silence_and_short_captures_hold_nothing():
    assert flexframe.demodulate(np.zeros(0, np.complex64), FULL, WAVEFORM) == []
    assert flexframe.demodulate(np.ones(100, np.complex64), FULL, WAVEFORM) == []
    assert flexframe.demodulate(np.zeros(50_000, np.complex64), FULL, WAVEFORM) == []
    assert flexframe.modulate([], QPSK, FULL, WAVEFORM, 1.0).size == 0
    assert flexframe.burst_length([], QPSK, FULL, WAVEFORM) == 0


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(5000, np.complex128),
        np.zeros(5000, np.float32),
        np.zeros((2, 5000), np.complex64),
        np.full(5000, np.nan, np.complex64),
        np.full(5000, complex(0, np.inf), np.complex64),
    ],
)
def test_samples_that_are_none_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        flexframe.demodulate(samples, FULL, WAVEFORM)


@pytest.mark.parametrize(
    ("waveform", "complaint"),
    [
        (WaveformSpec(num_subcarriers=16, num_active=12, cyclic_prefix=4), "at least 32"),
        (WaveformSpec(num_subcarriers=65, num_active=48, cyclic_prefix=4), "even"),
        (WaveformSpec(num_subcarriers=64, num_active=48, cyclic_prefix=40), "at most half"),
    ],
)
def test_waveforms_that_carry_no_frames_are_refused(waveform, complaint):
    allocation = np.full(waveform.num_subcarriers, 2, np.uint8)
    allocation[:4] = 1
    with pytest.raises(ValueError, match=complaint):
        flexframe.burst_length([100], QPSK, allocation, waveform)


def test_offsets_that_are_none_are_refused():
    for max_cfo in (-1e-3, 0.25, float("nan")):
        with pytest.raises(ValueError, match="max_cfo"):
            flexframe.demodulate(np.zeros(5000, np.complex64), FULL, WAVEFORM, max_cfo=max_cfo)


@pytest.mark.parametrize(
    "allocation",
    [
        FULL[:-1],
        np.full(256, 3, np.uint8),
        np.zeros(256, np.uint8),
        np.full(256, 2, np.uint8),
        np.full(256, 1, np.uint8),
        # a comb around bin 8: its preamble, on every other subcarrier from there, would be empty
        np.isin(np.arange(256), [3, 5, 11, 13]) * 2 + np.isin(np.arange(256), [7, 9]),
    ],
)
def test_allocations_that_are_none_are_refused(allocation):
    with pytest.raises(ValueError, match="allocation"):
        flexframe.demodulate(np.zeros(5000, np.complex64), allocation, WAVEFORM)
    with pytest.raises(ValueError, match="allocation"):
        flexframe.modulate([Packet(bytes(8), b"x")], QPSK, allocation, WAVEFORM, 1.0)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (Packet(bytes(7), b"x"), "8 bytes"),
        (Packet(bytes(8), b""), "1 to 9216"),
        (Packet(bytes(8), bytes(9217)), "1 to 9216"),
    ],
)
def test_packets_that_do_not_fit_are_refused(packet, complaint):
    with pytest.raises(ValueError, match=complaint):
        flexframe.modulate([packet], QPSK, FULL, WAVEFORM, 1.0)


def test_powers_that_are_none_are_refused():
    for power_w in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no power"):
            flexframe.modulate([Packet(bytes(8), b"x")], QPSK, FULL, WAVEFORM, power_w)


def test_codes_that_the_library_lacks_are_refused_before_they_crash_it():
    for code in ("v27", "rs8", "secded2216", "nonsense"):
        with pytest.raises(ValueError, match="not in liquid-dsp"):
            liquid.number_of("fec", code)
    with pytest.raises(ValueError, match="knows no mod"):
        liquid.number_of("mod", "nonsense")


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    liquid.library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        with pytest.raises(ConfigError, match="pip install liquid-dsp"):
            liquid.library()
    finally:
        liquid.library.cache_clear()


def test_objects_are_destroyed_on_every_path():
    packets = packets_of(2, 50, np.random.default_rng(18))
    bad = [*packets, Packet(bytes(8), b"")]
    burst = flexframe.modulate(packets, QPSK, MIDDLE, WAVEFORM, 1.0)

    def all_paths(times):
        for _ in range(times):
            flexframe.modulate(packets, QPSK, MIDDLE, WAVEFORM, 1.0)
            with (
                pytest.raises(ValueError, match="payload"),
                liquid.generator(MIDDLE, 64, 16, "qpsk", "none", "none") as generator,
            ):
                generator.frame(bad[-1].header, bad[-1].payload)
            flexframe.demodulate(burst, MIDDLE, WAVEFORM)

    all_paths(30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    all_paths(200)
    # one generator and one synchroniser hold about 50 kB together
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4000


def test_the_best_packet_weighs_overhead_against_losses():
    scheme = scheme_named("qpsk")
    without_loss = flexframe.best_packet_bytes(scheme, FULL, WAVEFORM, loss=0.0)
    assert without_loss > 8000
    assert flexframe.best_packet_bytes(scheme, FULL, WAVEFORM, loss=0.5) < flexframe.best_packet_bytes(
        scheme, FULL, WAVEFORM
    )
    # by hand: the best of a coarse grid is not better than what is returned
    best = flexframe.best_packet_bytes(scheme, FULL, WAVEFORM)

    def goodput(length):
        return length * 0.9 ** (length / 1000) / flexframe.burst_length([length], scheme, FULL, WAVEFORM)

    assert goodput(best) > 0.98 * max(goodput(length) for length in range(100, 9000, 300))
    with pytest.raises(ValueError, match="outside"):
        flexframe.best_packet_bytes(scheme, FULL, WAVEFORM, loss=1.0)
