"""Non-coherent over-the-air majority vote (FSK-MV): the mode that radios without a common clock can really do.

Papers. A. Sahin, "A Demonstration of Over-the-Air Computation for Federated Edge Learning", Globecom Workshops 2022
(arXiv 2209.09954), and signSGD with majority vote (Bernstein et al., ICML 2018). From the papers: every node votes on
the sign of every value with the energy of one of two subcarriers, small values abstain (absentee votes), the receiver
compares the energies, and every value moves by the same step in the direction that won. Our choice: the votes are cast
on the LoRA update of several local steps instead of a gradient; the step is a multiple of the nodes' mean update
spread, which travels as side information; powers are aligned so that every vote arrives equally loud, within each
node's limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import MajorityVote, Sounding, Steps, Trained, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme


@dataclass(frozen=True)
class FskMvState:
    """The fleet, the global adapter [num_values], and the step of the last round."""

    fleet: Fleet
    adapter: np.ndarray
    step: float = 0.0


class FskMv(Scheme[FskMvState]):
    """Majority vote on pairs of subcarriers, energy detection."""

    needs = frozenset({"timed_tx"})

    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    step: float = Field(1.0, gt=0, description="how far a vote moves a value, in mean spreads of the nodes' updates")
    abstain: float = Field(0.0, ge=0, description="values below this many spreads of their node's update abstain")
    align_power: bool = Field(True, description="every vote arrives equally loud; false: full power everywhere")

    def start(self, fleet: Fleet, adapter: Adapter) -> FskMvState:
        return FskMvState(fleet, adapter.initial)

    def round(self, state: FskMvState, rng: np.random.Generator) -> Steps[FskMvState]:
        trained = yield from train({name: Work() for name in state.fleet.names})
        sounding = yield from sound(num_pilots=self.num_pilots)
        votes = self._votes(state.fleet, sounding, trained)
        adapter, step = state.adapter, 0.0
        if votes:
            collected = yield from collect(votes)
            step = self.step * float(np.mean([trained.results[name].update_std for name in votes]))
            adapter = adapter + np.float32(step) * collected.mean
        yield from publish(adapter)
        return FskMvState(state.fleet, adapter, step)

    def report(self, state: FskMvState) -> dict[str, float | str]:
        return {"step": state.step}

    def _votes(self, fleet: Fleet, sounding: Sounding, trained: Trained) -> dict[str, MajorityVote]:
        """p_m = min_j P_j ||h_j||^2 / ||h_m||^2, so that every node arrives with the weakest one's power."""
        names = [name for name in sounding.nodes if name in trained.results]
        columns = {name: sounding.nodes.index(name) for name in names}
        loudness = {name: float(np.sum(np.abs(sounding.channel[:, columns[name]]) ** 2)) for name in names}
        limit_w = {name: fleet.node(name).max_power_w for name in names}
        weakest = min((limit_w[name] * loudness[name] for name in names), default=0.0)
        return {
            name: MajorityVote(
                power_w=min(limit_w[name], weakest / loudness[name]) if self.align_power else limit_w[name],
                threshold=self.abstain * trained.results[name].update_std,
                cfo_hz=float(sounding.cfo_hz[columns[name]]),
            )
            for name in names
        }
