"""What calibrations have found, in the form in which a run uses it: errors of radios to put right, and channels."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from testbed.core.specs import Spec

Complex = tuple[float, float]
"""Real and imaginary part: JSON has no complex numbers."""


class TransmitCorrection(Spec):
    """Of one node's radio.

    Its burst starts `delay_s` late, its oscillator is off by `offset` (relative to the receiver's), and for s it sends
    sqrt(power_error) (s + image conj(s) + leak).
    """

    offset: float = 0.0
    delay_s: float = 0.0
    image: Complex = (0.0, 0.0)
    leak: Complex = (0.0, 0.0)
    power_error: float = Field(1.0, gt=0)


class ReceiveCorrection(Spec):
    """Of one antenna's receive chain: for s it delivers sqrt(gain_error) (s + image conj(s)) + dc."""

    dc: Complex = (0.0, 0.0)
    image: Complex = (0.0, 0.0)
    gain_error: float = Field(1.0, gt=0)


class Corrections(Spec):
    """Of a whole bench.

    Attributes:
        nodes: name -> what is wrong with its transmitter; absent where nothing is known.
        antennas: in their order; empty where nothing is known.
        fields: node -> the plane waves of its channel, rows (u_x, u_y, Re a, Im a); absent where nothing is known.
        calibration_ids: of the profiles that say so.
    """

    nodes: dict[str, TransmitCorrection] = Field(default_factory=dict)
    antennas: tuple[ReceiveCorrection, ...] = ()
    fields: dict[str, tuple[tuple[float, float, float, float], ...]] = Field(default_factory=dict)
    calibration_ids: tuple[str, ...] = ()

    def for_nodes(self) -> dict[str, Any]:
        """As it travels to the nodes with their devices."""
        return {name: correction.model_dump(mode="json") for name, correction in self.nodes.items()}
