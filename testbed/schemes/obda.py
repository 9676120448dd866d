"""One-bit over-the-air aggregation (OBDA): signs on QPSK symbols that add up coherently, and the majority decides.

Paper: G. Zhu, Y. Du, D. Gunduz, K. Huang, "One-bit over-the-air aggregation for communication-efficient federated edge
learning", IEEE Trans. Wireless Commun. 2021 (arXiv 2001.05713). From the paper: one-bit quantisation, two signs on each
QPSK symbol, channel inversion with truncation, and the receiver's majority decision by sign. Our choice: one inversion
for the whole band behind a max-min receive combiner; whole nodes are left out where the paper truncates subcarriers;
the votes are cast on the LoRA update of several local steps, and the step is a multiple of the nodes' mean update
spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import Collect, OneBit, Sounding, Steps, Trained, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.phy.overair import max_min_combiner, uniform_forcing


@dataclass(frozen=True)
class ObdaState:
    """The fleet, the global adapter [num_values], and the step of the last round."""

    fleet: Fleet
    adapter: np.ndarray
    step: float = 0.0


class Obda(Scheme[ObdaState]):
    """Coherent one-bit majority vote."""

    needs = frozenset({"timed_tx", "phase_coherent"})

    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    step: float = Field(1.0, gt=0, description="how far a vote moves a value, in mean spreads of the nodes' updates")
    truncate_db: float | None = Field(None, gt=0, description="leave out nodes this much weaker than the strongest")

    def start(self, fleet: Fleet, adapter: Adapter) -> ObdaState:
        return ObdaState(fleet, adapter.initial)

    def round(self, state: ObdaState, rng: np.random.Generator) -> Steps[ObdaState]:
        trained = yield from train({name: Work() for name in state.fleet.names})
        sounding = yield from sound(num_pilots=self.num_pilots)
        order = self._plan(state.fleet, sounding, trained)
        adapter, step = state.adapter, 0.0
        if order is not None:
            collected = yield from collect(order.uplinks, combiner=order.combiner, scale=order.scale)
            step = self.step * float(np.mean([trained.results[name].update_std for name in order.uplinks]))
            adapter = adapter + np.float32(step) * collected.mean
        yield from publish(adapter)
        return ObdaState(state.fleet, adapter, step)

    def report(self, state: ObdaState) -> dict[str, float | str]:
        return {"step": state.step}

    def _plan(self, fleet: Fleet, sounding: Sounding, trained: Trained) -> Collect | None:
        """b_m = sqrt(eta) / (f^H h_m): every vote arrives with the same amplitude. None if nobody can vote."""
        names = [name for name in sounding.nodes if name in trained.results]
        if not names:
            return None
        columns = np.array([sounding.nodes.index(name) for name in names])
        power_w = np.array([fleet.node(name).max_power_w for name in names])
        if self.truncate_db is not None:
            strength = power_w * np.sum(np.abs(sounding.channel[:, columns]) ** 2, axis=0)
            kept = np.flatnonzero(strength >= strength.max() * 10.0 ** (-self.truncate_db / 10.0))
            names, columns, power_w = [names[index] for index in kept], columns[kept], power_w[kept]
        # [num_antennas, num_nodes]
        channel = sounding.channel[:, columns]
        combiner = max_min_combiner(channel * np.sqrt(power_w))
        forcing = uniform_forcing(channel, combiner, np.ones(len(names)), np.ones(len(names)), power_w)
        uplinks = {
            name: OneBit(
                precoder=complex(forcing.precoder[index]),
                cfo_hz=float(sounding.cfo_hz[columns[index]]),
                cfo_from_s=float(sounding.heard_s[columns[index]]),
            )
            for index, name in enumerate(names)
        }
        return Collect(uplinks, combiner, forcing.scale)
