"""Corrections undo what impairments do, and change nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.corrected_radio import CorrectedReceiver, CorrectedTransmitter
from sim_backend.impairments import add_image, rotation, transmit_imbalance
from testbed.core.corrections import Corrections, ReceiveCorrection, TransmitCorrection
from testbed.core.devices import Capabilities, Radio
from testbed.core.errors import LimitError, ProtocolError
from testbed.phy.corrections import equalised, predistorted

CARRIER_HZ, RATE_HZ = 2.44e9, 5e6
RNG = np.random.default_rng(7)
SIGNAL = (RNG.standard_normal((2, 5000)) * 0.05).T.copy().view(np.float64)
SIGNAL = (SIGNAL[:, 0] + 1j * SIGNAL[:, 1]).astype(np.complex64)


def pair(value: complex) -> tuple[float, float]:
    return value.real, value.imag


def test_a_predistorted_burst_leaves_an_imperfect_radio_as_it_was_meant() -> None:
    wanted, image = transmit_imbalance(1.1, 0.05)
    leak, power_error, offset, at_s = 0.003 - 0.002j, 1.3, 1.5e-6, 1234.56789
    # what the radio does: gain and branches, leak, oscillator
    meant = SIGNAL.copy()
    correction = TransmitCorrection(
        offset=offset, image=pair(image / np.conj(wanted)), leak=pair(leak), power_error=power_error
    )
    given = predistorted(meant, correction, at_s=at_s, carrier_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radiated = given.copy()
    add_image(radiated, 1.0, image / np.conj(wanted))
    radiated = np.sqrt(np.float32(power_error)) * (radiated + np.complex64(leak))
    radiated *= rotation(len(radiated), at_s=at_s, rate_hz=RATE_HZ, offset_hz=offset * CARRIER_HZ, drift_hz_s=0.0)
    assert np.max(np.abs(radiated - meant)) < 2e-5 * np.max(np.abs(meant))
    assert np.max(np.abs(given - meant)) > 0.05 * np.max(np.abs(meant)), "it corrects nothing"
    assert np.array_equal(meant, SIGNAL), "the burst that was given has changed"


def test_an_equalised_capture_is_what_arrived() -> None:
    image, dc, gain = 0.02 + 0.05j, 0.004 - 0.001j, 0.7
    delivered = SIGNAL.copy()
    add_image(delivered, 1.0, image)
    delivered = np.sqrt(np.float32(gain)) * delivered + np.complex64(dc)
    correction = ReceiveCorrection(dc=pair(dc), image=pair(image), gain_error=gain)
    assert np.max(np.abs(equalised(delivered, correction) - SIGNAL)) < 1e-6
    assert np.array_equal(equalised(SIGNAL, ReceiveCorrection()), SIGNAL)


def test_phases_of_a_corrected_oscillator_hold_between_bursts() -> None:
    correction = TransmitCorrection(offset=2e-6)
    long = predistorted(
        np.ones(4000, np.complex64), correction, at_s=5.0, carrier_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ
    )
    later = predistorted(
        np.ones(1000, np.complex64),
        correction,
        at_s=5.0 + 3000 / RATE_HZ,
        carrier_hz=CARRIER_HZ,
        sample_rate_hz=RATE_HZ,
    )
    assert np.max(np.abs(later - long[3000:])) < 1e-3


class Mirror:
    """Keeps what it was given, and delivers it."""

    def __init__(self, rows: int = 2) -> None:
        self.sent: list[tuple[np.ndarray, float, float | None]] = []
        self.rows = np.stack([SIGNAL * (1 + row) for row in range(rows)])
        self.verbs: list[str] = []
        self.capabilities = Capabilities(True, True, True, False, rows, 1.0, ((2e9, 3e9),), (RATE_HZ, RATE_HZ))

    def tune(self, *, frequency_hz: float, sample_rate_hz: float) -> None:
        self.verbs.append("tune")

    def transmit(self, samples: np.ndarray, *, at_s: float, trigger_s: float | None = None) -> None:
        if samples.ndim != 1:
            raise LimitError("one row")
        self.sent.append((samples, at_s, trigger_s))

    def arm(self, num_samples: int, *, at_s: float) -> None:
        self.verbs.append("arm")

    def read(self, combiner: np.ndarray | None = None) -> np.ndarray:
        assert combiner is None, "a combination cannot be put right"
        return self.rows

    def mute(self) -> None:
        self.verbs.append("mute")

    def close(self) -> None:
        self.verbs.append("close")


def test_a_late_radio_sends_earlier_but_never_before_its_trigger() -> None:
    mirror = Mirror()
    radio = CorrectedTransmitter(mirror, TransmitCorrection(delay_s=1e-6))
    assert isinstance(radio, Radio)
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.transmit(SIGNAL, at_s=2.0)
    radio.transmit(SIGNAL, at_s=2.0, trigger_s=1.5)
    radio.transmit(SIGNAL, at_s=2.0, trigger_s=2.0)
    assert [at_s for _, at_s, _ in mirror.sent] == pytest.approx([2.0 - 1e-6, 2.0 - 1e-6, 2.0], abs=1e-12)
    assert np.array_equal(mirror.sent[0][0], SIGNAL), "five whole samples move nothing within the burst"
    with pytest.raises(LimitError):
        radio.transmit(np.zeros((2, 3), np.complex64), at_s=2.0)
    radio.mute()
    radio.close()
    assert mirror.verbs == ["tune", "mute", "close"]


def test_a_corrected_burst_has_no_larger_peaks_and_no_more_power_than_was_ordered() -> None:
    mirror = Mirror()
    radio = CorrectedTransmitter(mirror, TransmitCorrection(delay_s=0.5 / RATE_HZ, image=(0.05, 0.05), power_error=0.7))
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    radio.transmit(SIGNAL, at_s=2.0)
    sent = mirror.sent[0][0]
    assert np.max(np.abs(sent.view(np.float32))) <= np.max(np.abs(SIGNAL.view(np.float32)))
    assert np.mean(np.abs(sent) ** 2) < 1.02 * np.mean(np.abs(SIGNAL) ** 2)


def test_a_fraction_of_a_sample_moves_the_burst_within_its_samples() -> None:
    mirror = Mirror()
    radio = CorrectedTransmitter(mirror, TransmitCorrection(delay_s=1.3 / RATE_HZ))
    radio.tune(frequency_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ)
    tone = (0.1 * np.exp(2j * np.pi * 0.1 * np.arange(2000))).astype(np.complex64)
    radio.transmit(tone, at_s=2.0)
    sent, at_s, _ = mirror.sent[0]
    assert at_s == pytest.approx(2.0 - 1 / RATE_HZ, abs=1e-12)
    # what leaves 1.3 samples late, begun one sample early, has to be ahead by 0.3 samples
    ahead = np.angle(np.vdot(tone[200:-200], sent[200:-200])) / (2 * np.pi * 0.1)
    assert ahead == pytest.approx(0.3, abs=1e-3)


def test_a_corrected_receiver_combines_what_was_put_right() -> None:
    mirror = Mirror()
    radio = CorrectedReceiver(mirror, [ReceiveCorrection(gain_error=4.0), ReceiveCorrection(dc=(0.1, 0.0))])
    assert isinstance(radio, Radio)
    both = radio.read()
    assert np.allclose(both[0], SIGNAL / 2)
    assert np.allclose(both[1], 2 * SIGNAL - 0.1, atol=1e-6)
    weights = np.array([1.0, 1j])
    assert np.allclose(radio.read(weights), weights.conj() @ both, atol=1e-6)
    with pytest.raises(ProtocolError, match="2 finite weights"):
        radio.read(np.ones(3))
    with pytest.raises(ProtocolError, match="1 corrections"):
        CorrectedReceiver(mirror, [ReceiveCorrection()])


def test_corrections_travel_as_json() -> None:
    found = Corrections(nodes={"a": TransmitCorrection(offset=1e-6, image=(0.1, -0.2))}, calibration_ids=("x",))
    assert TransmitCorrection.model_validate(found.for_nodes()["a"]) == found.nodes["a"]
    assert Corrections.model_validate_json(found.model_dump_json()) == found
