import itertools
import math

import pytest
from scipy.optimize import brentq
from scipy.special import erfc

from testbed.core.bench import WaveformSpec
from testbed.core.units import from_db, to_db
from testbed.phy import liquid
from testbed.phy.coding_schemes import SCHEMES, choose, scheme_named
from testbed.phy.subcarriers import GUARD, PILOT, allocate, max_nodes

WAVEFORM = WaveformSpec()


def bit_error_rate(order, snr):
    """Gray-coded QPSK and square QAM over white Gaussian noise, nearest neighbours only."""
    side = math.isqrt(order)
    return 2 * (1 - 1 / side) / math.log2(order) * 2 / 2 * erfc(math.sqrt(1.5 * snr / (order - 1)))


def test_uncoded_thresholds_lie_just_above_theory():
    # 8032 bits with their CRC arrive whole with probability 0.9; estimation costs up to 1.5 dB, and never gains
    for name, order in (("qpsk", 4), ("qam16", 16), ("qam64", 64), ("qam256", 256)):
        ideal = brentq(lambda snr, m=order: (1 - bit_error_rate(m, snr)) ** 8032 - 0.9, 1.0, 1e5)
        assert 0.0 < to_db(scheme_named(name).threshold_snr / ideal) < 1.5


def test_no_threshold_is_below_capacity():
    for scheme in SCHEMES:
        assert scheme.bits_per_symbol < math.log2(1 + scheme.threshold_snr)


def test_more_bits_need_more_power_and_names_are_unique():
    for slower, faster in itertools.pairwise(SCHEMES):
        assert slower.threshold_snr < faster.threshold_snr
        assert slower.bits_per_symbol < faster.bits_per_symbol + 1e-12
    assert len({scheme.name for scheme in SCHEMES}) == len(SCHEMES)


def test_the_library_knows_every_scheme_and_codes_at_its_rate():
    for scheme in SCHEMES:
        assert liquid.number_of("mod", scheme.modulation) > 0
        # 9000 bytes: the CRC and the rounding to code words are below one percent
        assert 9000 / liquid.encoded_bytes(9000, scheme.fec0, scheme.fec1) == pytest.approx(scheme.rate, rel=0.01)


def test_the_fastest_scheme_that_is_borne_is_chosen():
    assert choose(from_db(100)) == scheme_named("qam256")
    assert choose(from_db(0)) is None
    assert choose(0.0) is None
    assert choose(math.inf) == scheme_named("qam256")
    for scheme in SCHEMES:
        exactly = choose(scheme.threshold_snr)
        assert exactly is not None
        assert exactly.bits_per_symbol >= scheme.bits_per_symbol
        below = choose(scheme.threshold_snr * (1 - 1e-9))
        assert below is None or below.threshold_snr < scheme.threshold_snr


def test_a_margin_moves_every_threshold():
    threshold = scheme_named("qpsk").threshold_snr
    assert choose(2 * threshold * 1.001, margin=2.0) == choose(threshold * 1.001)
    assert choose(1.9 * threshold, margin=2.0) == scheme_named("qpsk-secded")


def test_bad_requests_are_refused():
    for snr in (-1.0, math.nan):
        with pytest.raises(ValueError, match="no signal-to-noise ratio"):
            choose(snr)
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="margin"):
            choose(10.0, margin)
    with pytest.raises(ValueError, match="qpsk-golay"):
        scheme_named("qpsk-turbo")


# --- subcarriers ----------------------------------------------------------------------------------------------------


def signed(allocation):
    used = allocation.nonzero()[0]
    return sorted(int(k) if k < 128 else int(k) - 256 for k in used)


def test_one_node_gets_the_whole_band_without_dc():
    (allocation,) = allocate({"a": 3.75e6}, WAVEFORM, 5e6).values()
    assert signed(allocation) == [*range(-96, 0), *range(1, 97)]


def test_shares_are_contiguous_apart_and_in_proportion():
    shares = {"a": 2e6, "b": 0.75e6, "c": 1e6}
    allocations = allocate(shares, WAVEFORM, 5e6)
    bins = {node: signed(allocation) for node, allocation in allocations.items()}
    counts = {node: len(used) for node, used in bins.items()}
    assert sum(counts.values()) == 192 - 2 * 8
    for node, wanted in shares.items():
        assert abs(counts[node] - 176 * wanted / 3.75e6) < 1
        used = [k for k in range(bins[node][0], bins[node][-1] + 1) if k != 0]
        assert bins[node] == used
    assert bins["b"][0] - bins["a"][-1] > GUARD == 8
    assert bins["c"][0] - bins["b"][-1] > 8
    for allocation in allocations.values():
        assert (allocation == PILOT).sum() >= 4


def test_shares_that_leave_room_are_not_shrunk():
    allocations = allocate({"a": 40 * 19531.25, "b": 60 * 19531.25}, WAVEFORM, 5e6)
    assert [len(signed(allocation)) for allocation in allocations.values()] == [40, 60]


def test_small_shares_are_lifted_to_what_a_preamble_needs():
    allocations = allocate({"a": 3.7e6, "b": 1e3, "c": 1e3}, WAVEFORM, 5e6)
    assert [len(signed(allocation)) for allocation in allocations.values()] == [192 - 16 - 24, 12, 12]


def test_as_many_nodes_fit_as_is_said_and_no_more():
    for waveform in (
        WAVEFORM,
        WaveformSpec(num_subcarriers=1024, num_active=800),
        WaveformSpec(num_subcarriers=64, num_active=48),
    ):
        most = max_nodes(waveform)
        band_hz = 5e6 * waveform.num_active / waveform.num_subcarriers
        assert len(allocate({str(n): band_hz / most for n in range(most)}, waveform, 5e6)) == most
        with pytest.raises(ValueError, match=f"at most {most} do; let them send in turn"):
            allocate({str(n): band_hz / (most + 1) for n in range(most + 1)}, waveform, 5e6)


def test_allocations_that_make_no_sense_are_refused():
    assert allocate({}, WAVEFORM, 5e6) == {}
    for bandwidth_hz in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive bandwidth"):
            allocate({"a": 1e6, "b": bandwidth_hz}, WAVEFORM, 5e6)
    with pytest.raises(ValueError, match="add up to"):
        allocate({"a": 2e6, "b": 2e6}, WAVEFORM, 5e6)
