"""What a scheme may know of the bench before the first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.bench import SPEED_OF_LIGHT_M_S, BenchSpec
from testbed.core.units import dbm_to_w


@dataclass(frozen=True)
class NodeFacts:
    """One edge board.

    Attributes:
        num_samples: training rows it owns, D_m.
        max_power_w: highest average transmit power P_m.
        cpu_hz: highest CPU frequency.
        cycles_per_token: CPU cycles to train on one token.
        kappa: joules = kappa * cycles * frequency^2.
        paths: plane waves of its channel from a field calibration, rows (u_x, u_y, Re a, Im a), shape [num_paths, 4];
            None where there is none.
    """

    name: str
    num_samples: int
    max_power_w: float
    cpu_hz: float
    cycles_per_token: float
    kappa: float
    paths: np.ndarray | None = None


@dataclass(frozen=True)
class ArrayFacts:
    """The receive antennas.

    Attributes:
        home_m: where they stand at the start, array frame, shape [num_antennas, 2].
        movable: which of them have a stage, shape [num_antennas], bool.
        region_m: where they may be, [axis, (low, high)], shape [2, 2].
        min_spacing_m: smallest distance of two antennas.
    """

    home_m: np.ndarray
    movable: np.ndarray
    region_m: np.ndarray
    min_spacing_m: float

    @property
    def num_antennas(self) -> int:
        return len(self.home_m)


@dataclass(frozen=True)
class Fleet:
    """Nodes, antennas and band of one experiment.

    Attributes:
        nodes: edge boards.
        array: receive antennas.
        carrier_hz: centre of the band.
        bandwidth_hz: of the subcarriers that carry symbols, B.
        subcarrier_hz: spacing of these subcarriers, of which shares of the band are made; 0 for a band that can be
            divided at will.
    """

    nodes: tuple[NodeFacts, ...]
    array: ArrayFacts
    carrier_hz: float
    bandwidth_hz: float
    subcarrier_hz: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def wavelength_m(self) -> float:
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    def node(self, name: str) -> NodeFacts:
        """The facts of one node. Raises KeyError for a stranger."""
        return next(node for node in self.nodes if node.name == name)

    @classmethod
    def of(
        cls,
        bench: BenchSpec,
        num_samples: Mapping[str, int],
        fields: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> Fleet:
        """The fleet of a bench, for nodes that own so many rows and whose channels have these plane waves."""
        array, known = bench.array, fields or {}
        return cls(
            nodes=tuple(
                NodeFacts(
                    name=board.name,
                    num_samples=num_samples[board.name],
                    max_power_w=dbm_to_w(board.max_power_dbm),
                    cpu_hz=board.cpu_hz,
                    cycles_per_token=board.cycles_per_token,
                    kappa=board.kappa,
                    paths=np.array(known[board.name], np.float64) if board.name in known else None,
                )
                for board in bench.boards
            ),
            array=ArrayFacts(
                home_m=np.array([antenna.home_m for antenna in array.antennas]),
                movable=np.array([antenna.stage is not None for antenna in array.antennas]),
                region_m=np.array(array.region_m),
                min_spacing_m=array.min_spacing_m,
            ),
            carrier_hz=bench.carrier_hz,
            bandwidth_hz=bench.bandwidth_hz,
            subcarrier_hz=bench.sample_rate_hz / bench.waveform.num_subcarriers,
        )
