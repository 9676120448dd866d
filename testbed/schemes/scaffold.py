"""Stochastic controlled averaging (SCAFFOLD) of LoRA updates over error-free links: a baseline for unlike data.

Paper: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv
1910.06378 (Algorithm 1). From the paper: every local step follows g_m(y) - c_m + c instead of g_m(y); after K steps of
size eta the node's control variate becomes, by the paper's option II,

    c_m+ = c_m - c + (x - y_m) / (K eta),        c+ = c + sum_{m in S} p_m (c_m+ - c_m),

and the server moves by eta_g times the mean update. Our choice: the mean is weighted by data, p_m = D_m / sum D, where
the paper has 1 / N (the same for equal shares); gradients are shortened to `max_grad_norm` before the correction is
added; and the link. Updates arrive without error, each in an equal share of the band at the Shannon rate less a gap, so
the server computes c_m+ itself from what it receives and no variate travels upwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.errors import ConfigError
from testbed.core.fleet import Fleet
from testbed.core.orders import Ideal, Sounding, Steps, Trained, Uplink, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.core.units import from_db
from testbed.phy.rate import capacity_bit_s, mrc_snr


@dataclass(frozen=True)
class ScaffoldState:
    """What the server remembers between rounds.

    Attributes:
        adapter: global adapter x, shape [num_values].
        control: c, shape [num_values].
        controls: node -> c_m, shape [num_values]; zero for nodes that are not named.
    """

    fleet: Fleet
    adapter: np.ndarray
    control: np.ndarray
    controls: Mapping[str, np.ndarray]


class Scaffold(Scheme[ScaffoldState]):
    """SCAFFOLD with equal bandwidth shares; needs plain gradient descent: optimizer "sgd" without momentum."""

    num_pilots: int = Field(4, ge=2, description="OFDM pilot symbols of each node")
    server_rate: float = Field(1.0, gt=0, description="eta_g: the adapter moves by this times the mean update")
    snr_gap_db: float = Field(3.0, ge=0, description="distance of modulation and coding from the Shannon rate")

    def start(self, fleet: Fleet, adapter: Adapter) -> ScaffoldState:
        return ScaffoldState(fleet, adapter.initial, np.zeros(adapter.size, np.float32), {})

    def round(self, state: ScaffoldState, rng: np.random.Generator) -> Steps[ScaffoldState]:
        sounding = yield from sound(num_pilots=self.num_pilots)
        trained = yield from train({name: Work(drift=_drift(state, name)) for name in sounding.nodes})
        _check_steps(trained)
        collected = yield from collect(self._shares(state.fleet, sounding, trained))
        controls, change = dict(state.controls), np.zeros_like(state.control)
        total = sum(node.num_samples for node in state.fleet.nodes)
        for name, update in sorted(collected.updates.items()):
            result = trained.results[name]
            if result.num_steps == 0:
                continue
            # c_m+ - c_m, with x - y_m = -update
            step = -state.control - update / np.float32(result.num_steps * result.step_size)
            controls[name] = controls.get(name, 0) + step
            change += np.float32(result.num_samples / total) * step
        adapter = state.adapter + np.float32(self.server_rate) * collected.mean
        yield from publish(adapter)
        return ScaffoldState(state.fleet, adapter, state.control + change, controls)

    def report(self, state: ScaffoldState) -> Mapping[str, float | str]:
        """How unlike the nodes' gradients are: the mean length of c_m - c over that of c."""
        if not state.controls:
            return {}
        apart = [float(np.linalg.norm(own - state.control)) for _, own in sorted(state.controls.items())]
        common = float(np.linalg.norm(state.control))
        return {"drift": float(np.mean(apart)) / common if common > 0 else 0.0}

    def _shares(self, fleet: Fleet, sounding: Sounding, trained: Trained) -> dict[str, Uplink]:
        """Equal shares of the band at R_m = (B / K) log2(1 + snr_m / gap)."""
        names = [name for name in sounding.nodes if name in trained.results]
        share_hz = fleet.bandwidth_hz / max(len(names), 1)
        uplinks: dict[str, Uplink] = {}
        for name in names:
            power_w = fleet.node(name).max_power_w
            # [num_antennas, 1]; noise in a share of the band is that share of the noise in the whole band
            channel = sounding.channel[:, [sounding.nodes.index(name)]]
            snr = float(mrc_snr(channel, power_w, sounding.noise_w / len(names))[0])
            rate_bit_s = float(capacity_bit_s(share_hz, snr, from_db(self.snr_gap_db)))
            uplinks[name] = Ideal(trained.results[name].num_samples, share_hz, power_w, rate_bit_s)
        return uplinks


def _drift(state: ScaffoldState, name: str) -> np.ndarray:
    """c - c_m, shape [num_values]."""
    own = state.controls.get(name)
    return state.control if own is None else state.control - own


def _check_steps(trained: Trained) -> None:
    """(x - y_m) / (K eta) is a mean gradient only where the update is a plain sum of gradients."""
    odd = [name for name, result in trained.results.items() if result.step_size == 0]
    if odd:
        raise ConfigError(
            f"SCAFFOLD needs plain gradient descent, and {odd[0]} took steps of another kind",
            key="training.optimizer",
            remedy='set optimizer = "sgd" and momentum = 0 in [training], with a learning rate that suits it',
        )
