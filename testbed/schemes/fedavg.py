"""Federated averaging of LoRA updates over error-free digital links: the reference every other scheme is held against.

Paper: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(Algorithm 1); applied to LoRA factors as in FedIT (arXiv 2305.05644). From the papers: the weighted mean of the
clients' updates, weights D_m. Our choice: how long the link takes. Every node gets an equal share B / K of the band,
sends at its highest power, and its rate is the Shannon rate of its sounded channel, with maximum-ratio combining at the
array, a gap to capacity included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from testbed.core.adapter import Adapter
from testbed.core.fleet import Fleet
from testbed.core.orders import Digital, Sounding, Steps, Trained, Work, collect, publish, sound, train
from testbed.core.scheme import Scheme
from testbed.phy.rate import capacity_bit_s, mrc_snr


@dataclass(frozen=True)
class FedAvgState:
    """The fleet, and the global adapter [num_values]."""

    fleet: Fleet
    adapter: np.ndarray


class FedAvg(Scheme[FedAvgState]):
    """FedAvg with equal bandwidth shares."""

    num_pilots: int = Field(4, ge=1, description="OFDM pilot symbols of each node")
    snr_gap_db: float = Field(3.0, ge=0, description="distance of real modulation and coding from the Shannon rate")

    def start(self, fleet: Fleet, adapter: Adapter) -> FedAvgState:
        return FedAvgState(fleet, adapter.initial)

    def round(self, state: FedAvgState, rng: np.random.Generator) -> Steps[FedAvgState]:
        sounding = yield from sound(num_pilots=self.num_pilots)
        trained = yield from train({name: Work() for name in sounding.nodes})
        collected = yield from collect(self._shares(state.fleet, sounding, trained))
        adapter = state.adapter + collected.mean
        yield from publish(adapter)
        return FedAvgState(state.fleet, adapter)

    def _shares(self, fleet: Fleet, sounding: Sounding, trained: Trained) -> dict[str, Digital]:
        """Equal shares of the band, each at its Shannon rate: R_m = (B / K) log2(1 + snr_m / gap)."""
        names = [name for name in sounding.nodes if name in trained.results]
        share_hz = fleet.bandwidth_hz / max(len(names), 1)
        uplinks = {}
        for name in names:
            power_w = fleet.node(name).max_power_w
            # noise in a share of the band is that share of the noise in the whole band
            snr = mrc_snr(sounding.channel[:, [sounding.nodes.index(name)]], power_w, sounding.noise_w / len(names))
            rate_bit_s = float(capacity_bit_s(share_hz, snr, 10.0 ** (self.snr_gap_db / 10.0))[0])
            uplinks[name] = Digital(trained.results[name].num_samples, share_hz, power_w, rate_bit_s)
        return uplinks
