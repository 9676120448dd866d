import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from testbed.core.orders import Payload
from testbed.phy import payload as codec
from testbed.phy.packets import Reassembly, segment

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
UPDATES = arrays(np.float32, st.integers(0, 600), elements=FINITE)
PAYLOADS = st.builds(
    Payload,
    kind=st.sampled_from(["float32", "float16", "int8", "sign", "topk"]),
    keep=st.floats(1e-6, 1.0),
)


@given(UPDATES, PAYLOADS)
@settings(max_examples=200, deadline=None)
def test_every_update_survives_as_finite_values_of_known_length(values, payload):
    data = codec.encode(values, payload)
    assert len(data) == codec.num_bytes(payload, values.size)
    decoded = codec.decode(data, values.size)
    assert decoded.shape == values.shape
    assert np.all(np.isfinite(decoded))


@given(UPDATES, PAYLOADS)
@settings(max_examples=200, deadline=None)
def test_no_kind_adds_energy_to_what_is_left_out(values, payload):
    decoded = codec.decode(codec.encode(values, payload), values.size).astype(np.float64)
    exact = values.astype(np.float64)
    # contraction: sending is never worse than sending nothing, up to the rounding of subnormal numbers
    assert np.sum((exact - decoded) ** 2) <= np.sum(exact**2) * (1 + 1e-6) + 1e-80


@given(st.binary(max_size=400), st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_no_bytes_do_more_than_raise_a_value_error(data, num_values):
    try:
        codec.decode(data, num_values)
    except ValueError:
        return
    raise AssertionError("random bytes passed for an update")


@given(st.binary(max_size=3000), st.integers(1, 500), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_packets_in_any_order_give_the_transfer(data, packet_bytes, order):
    packets = segment(data, packet_bytes, node=7, transfer=300)
    doubled = packets * 2
    order.shuffle(doubled)
    whole = Reassembly(len(data), packet_bytes, node=7, transfer=300)
    for packet in doubled:
        whole.add(packet.header, packet.payload)
    assert whole.missing == ()
    assert whole.data() == data
