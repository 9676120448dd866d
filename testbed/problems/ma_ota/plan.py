"""How many rounds a run is worth, and each round's batches and CPU frequencies, within a run's budgets.

The numbers of rounds come from the bound on the final loss once the first clients and places are known; batches and
frequencies of every round follow for the clients that were chosen (`schedule`, `budget`). What a round may take is the
budget's equal share: our choice, since later channels are not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet, NodeFacts
from testbed.core.orders import Work
from testbed.problems.instance import InstanceSpec
from testbed.problems.ma_ota.bound import Constants
from testbed.problems.ma_ota.budget import ClientCosts, choose_batches, importance, uplink_s
from testbed.problems.ma_ota.schedule import Air, Budget, Grid, Schedule, Server, best_rounds


class PlanSpec(InstanceSpec):
    """Budgets of a whole run, and what the bound has to know."""

    latency_s: float = Field(gt=0, description="T_max, of all rounds together")
    energy_j: float | None = Field(
        None, gt=0, description="E_max, of all nodes and rounds together; no limit if absent"
    )
    local_steps: int = Field(10, ge=1, description="optimiser steps of a round; every step takes a batch")
    tokens_per_row: int = Field(128, ge=1, description="tokens of a row, for what computing takes")
    max_rounds: int = Field(100, ge=1, description="most rounds that are tried")
    constants: Constants = Field(description="of the bound; `testbed calibrate loss-model` measures them")

    def rounds(
        self, fleet: Fleet, nodes: Sequence[NodeFacts], num_values: int, noise_w: float, gain: float
    ) -> Schedule:
        """The best number of rounds for these clients.

        Args:
            fleet: everybody, and the band.
            nodes: who sends.
            num_values: d.
            noise_w: sigma^2.
            gain: of the weakest of them, in the auxiliary channel.

        Raises:
            ConfigError: not even one round fits the budgets; says which and by how much.
        """
        weights = np.array([node.num_samples for node in nodes], np.float64)
        total = float(sum(node.num_samples for node in fleet.nodes))
        air_s = uplink_s(num_values, fleet.bandwidth_hz)
        air = Air(
            uplink_s=air_s,
            transmit_j=np.array([node.max_power_w for node in nodes]) * air_s,
            error=num_values * noise_w / (float(weights.sum()) ** 2 * gain) if gain > 0 else math.inf,
        )
        found = best_rounds(
            self.constants,
            self._costs(nodes),
            weights,
            1.0 - float(weights.sum()) / total,
            air=air,
            budget=Budget(self.latency_s, math.inf if self.energy_j is None else self.energy_j),
            grid=Grid(tuple(range(1, self.max_rounds + 1))),
            server=Server(1.0, 0.0, 1.0),
        )
        if found.point is None:
            key = "energy_j" if found.message.startswith("energy") else "latency_s"
            raise ConfigError(
                f"no plan keeps the budgets: {found.message}",
                key=f"scheme.plan.{key}",
                remedy="allow more, or ask for less: fewer local_steps, shorter rows",
            )
        return found.point

    def work(self, schedule: Schedule, nodes: Sequence[NodeFacts], num_values: int, fleet: Fleet) -> dict[str, Work]:
        """Batch and CPU frequency of each client in one of the schedule's rounds.

        Args:
            schedule: of the run.
            nodes: who sends.
            num_values: d.
            fleet: the band.
        """
        rounds = schedule.fine_tuning
        air_s = uplink_s(num_values, fleet.bandwidth_hz)
        window_s = self.latency_s / rounds - air_s
        weights = np.array([node.num_samples for node in nodes], np.float64)
        transmit_j = np.array([node.max_power_w for node in nodes]) * air_s
        found = choose_batches(
            self._costs(nodes),
            window_s,
            importance=importance(weights, self.constants.gradient_variance),
            transmit_j=transmit_j,
            energy_j=math.inf if self.energy_j is None else self.energy_j / rounds,
        )
        batches = found.point
        if not found.found:
            # clients slower than those of the plan: the least they can do
            return {node.name: Work(local_steps=self.local_steps, batch_size=1) for node in nodes}
        return {
            node.name: Work(
                local_steps=self.local_steps,
                batch_size=int(batches.batch_sizes[index]),
                cpu_hz=float(min(batches.cpu_hz[index], node.cpu_hz)),
            )
            for index, node in enumerate(nodes)
        }

    def _costs(self, nodes: Sequence[NodeFacts]) -> ClientCosts:
        rows = self.tokens_per_row * self.local_steps
        return ClientCosts(
            num_samples=np.array([node.num_samples for node in nodes]),
            cycles_per_sample=np.array([node.cycles_per_token * rows for node in nodes]),
            capacitance=np.array([node.kappa for node in nodes]),
            max_cpu_hz=np.array([node.cpu_hz for node in nodes]),
            max_energy_j=np.full(len(nodes), math.inf),
        )
