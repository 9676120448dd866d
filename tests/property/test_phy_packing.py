import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from testbed.core.bench import WaveformSpec
from testbed.phy import ofdm

VALUES = arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-1e3, 1e3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3),
)


@given(VALUES)
def test_packing_keeps_every_value(values):
    symbols = ofdm.pack_values(values)
    assert symbols.dtype == np.complex64
    assert symbols.shape == (ofdm.num_symbols_of(len(values)),)
    np.testing.assert_allclose(ofdm.unpack_values(symbols, len(values)), values, rtol=3e-7)


@given(VALUES)
def test_two_values_of_unit_variance_make_one_symbol_of_unit_power(values):
    power = np.sum(np.abs(ofdm.pack_values(values).astype(np.complex128)) ** 2)
    np.testing.assert_allclose(2 * power, np.sum(values.astype(np.float64) ** 2), rtol=1e-6)


@given(VALUES, st.sampled_from([8, 16, 64]), st.integers(1, 3), st.integers(0, 8))
def test_values_survive_the_air_interface(values, size, half, prefix):
    waveform = WaveformSpec(num_subcarriers=size, num_active=2 * half, cyclic_prefix=prefix)
    samples = ofdm.modulate(ofdm.pack_values(values), waveform)
    symbols = ofdm.demodulate(samples, waveform, ofdm.num_symbols_of(len(values)))
    peak = float(np.abs(values).max())
    np.testing.assert_allclose(ofdm.unpack_values(symbols, len(values)), values, atol=2e-6 * peak + 1e-12)
