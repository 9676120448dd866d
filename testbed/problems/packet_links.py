"""What packets make of a share of the band: the table of codes, and what links have shown of themselves.

A concave rate R(b) is what bandwidth is divided by; packets follow a staircase instead. With n subcarriers of spacing d
in a share b, pilots among them and the code that the signal-to-noise ratio g / b bears, of c bits on a symbol,

    R_table(b) = c(g / b) d (n - pilots).

`PacketLinks` remembers for each node which part of R_table its packets reached: prefixes, preambles, headers and
repetitions. It also keeps a margin m: a node whose packets fail at the ratio that was sounded is given a more robust
code next time, and is brought back slowly (outer-loop link adaptation). The ratio that a code is chosen for is

    1 / (1 / snr + 1 / ceiling) / m,

since radios have a noise of their own that grows with the signal: phase noise, converters, carriers that leak into each
other.

Reference: A. Sampath, P. S. Kumar, J. M. Holtzman, "On setting reverse link target SIR in a CDMA system", IEEE VTC
1997 (the outer loop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.fleet import Fleet
from testbed.core.orders import Collected, Digital, Uplink
from testbed.phy.coding_schemes import SCHEMES, CodingScheme, choose, scheme_named
from testbed.phy.rate import shared_rate_bit_s
from testbed.phy.subcarriers import MIN_PILOTS, MIN_SHARE, PILOT_SPACING
from testbed.problems.digital_order import ShareLimits, UplinkSpec, air_seconds, num_waves

_CEILING = 10**3.35
"""33.5 dB: what arrives of louder signals; simulated radios leave 35 to 37 dB in the mean, and less at times."""

_FIRST = 10**0.2
"""Margin before anything is known: 2 dB, since narrow shares need more than the table says."""

_LEAST, _MOST = 10**0.1, 10.0
"""Margins lie between 1 dB and 10 dB."""

_GIVEN_UP = 10**0.3
"""Margin that a node gains whose packets were tried in vain: 3 dB."""

_TROUBLED = 10**0.1
"""Margin that a node gains which repeated more than a tenth of its packets: 1 dB."""

_RETURN = 10**0.01
"""Margin that a node loses in a round without trouble: a tenth of a decibel."""


def table_rate_bit_s(
    share_hz: np.ndarray, snr: np.ndarray, subcarrier_hz: float, coding: str | None = None
) -> np.ndarray:
    """R_table(b), before prefixes, preambles and headers.

    Args:
        share_hz: b, positive, shape [num_nodes].
        snr: linear signal-to-noise ratio there that a code is chosen for, shape [num_nodes].
        subcarrier_hz: spacing d; 0 for shares that need not be whole subcarriers.
        coding: the code of all, chosen from the signal-to-noise ratio if absent.

    Returns:
        bit/s, shape [num_nodes].
    """
    fixed = None if coding is None else scheme_named(coding)
    found = []
    for share, ratio in zip(share_hz.tolist(), snr.tolist(), strict=True):
        scheme = fixed or choose(ratio) or SCHEMES[0]
        found.append(scheme.bits_per_symbol * _data_hz(share, subcarrier_hz))
    return np.array(found)


def trusted_snr(snr: np.ndarray | float, margin: np.ndarray | float) -> np.ndarray:
    """The ratio that a code is chosen for.

    Args:
        snr: as it was sounded, linear and positive; any shape.
        margin: m, linear; any shape.
    """
    return np.asarray(1.0 / (1.0 / np.asarray(snr) + 1.0 / _CEILING) / margin)


def _data_hz(share_hz: float, subcarrier_hz: float) -> float:
    """The part of a share that carries data."""
    if subcarrier_hz <= 0:
        return share_hz * (1.0 - 1.0 / PILOT_SPACING)
    count = max(round(share_hz / subcarrier_hz), MIN_SHARE)
    return subcarrier_hz * (count - max(MIN_PILOTS, count // PILOT_SPACING))


@dataclass(frozen=True)
class PacketLinks:
    """What was seen of the links.

    Attributes:
        part: node -> part of R_table that its bytes reached.
        margin: node -> linear power ratio by which its sounded signal-to-noise ratio is not trusted.
    """

    part: Mapping[str, float]
    margin: Mapping[str, float]

    @classmethod
    def of(cls, names: Sequence[str], part: float) -> PacketLinks:
        """Links of which nothing is known yet.

        Args:
            names: of all nodes.
            part: assumed.
        """
        return cls(dict.fromkeys(names, part), dict.fromkeys(names, _FIRST))

    def staircase(
        self, names: Sequence[str], gamma_hz: np.ndarray, spec: UplinkSpec, fleet: Fleet
    ) -> Callable[[np.ndarray], np.ndarray] | None:
        """Shares b of these nodes -> the part of R(b) = b log2(1 + gamma / b) that they are expected to reach.

        Args:
            names: whose; all who send. In n waves each has a share n times as wide for an n-th of the time.
            gamma_hz: the gap of `spec` taken off, shape [num_nodes].
            spec: how updates travel.
            fleet: the band and its subcarriers.

        Returns:
            None for error-free links, which keep all of R(b).
        """
        if spec.link == "ideal":
            return None
        margin, part = (np.array([one[name] for name in names]) for one in (self.margin, self.part))
        waves = num_waves(fleet, len(names))

        def attained(share_hz: np.ndarray) -> np.ndarray:
            width_hz = waves * share_hz
            snr = trusted_snr(gamma_hz * spec.snr_gap / width_hz, margin)
            table = part * table_rate_bit_s(width_hz, snr, fleet.subcarrier_hz, spec.coding) / waves
            return np.asarray(table / shared_rate_bit_s(share_hz, gamma_hz))

        return attained

    def trusted(self, names: Sequence[str], limits: ShareLimits) -> ShareLimits:
        """Limits whose widest shares leave the margins.

        Args:
            names: whose.
            limits: of their shares.
        """
        margin = np.array([self.margin[name] for name in names])
        return replace(limits, most_hz=np.maximum(limits.least_hz, limits.most_hz / margin))

    def backed_off(self, uplinks: Mapping[str, Uplink]) -> dict[str, Uplink]:
        """The same uplinks, packets with a signal-to-noise ratio that is trusted.

        Args:
            uplinks: of an order.
        """
        return {
            name: replace(uplink, snr=float(trusted_snr(uplink.snr, self.margin[name])))
            if isinstance(uplink, Digital)
            else uplink
            for name, uplink in uplinks.items()
        }

    def after(
        self, uplinks: Mapping[str, Uplink], collected: Collected, deadline_s: float | None, fleet: Fleet
    ) -> PacketLinks:
        """What is known after an order.

        Args:
            uplinks: as they were ordered.
            collected: its reply.
            deadline_s: of the order.
            fleet: the band and its subcarriers.
        """
        waves = num_waves(fleet, len(uplinks))
        sent_s, part, margin = air_seconds(uplinks, collected), dict(self.part), dict(self.margin)
        for name, delivery in collected.deliveries.items():
            uplink, lost = uplinks[name], name in collected.missing
            if not isinstance(uplink, Digital) or delivery.sent == 0 or not sent_s.get(name, 0.0) > 0:
                continue
            scheme: CodingScheme = scheme_named(delivery.scheme)
            through = delivery.sent / delivery.packets if lost else 1.0
            measured_bit_s = 8.0 * delivery.num_bytes * through / sent_s[name]
            carrying_hz = _data_hz(waves * uplink.bandwidth_hz, fleet.subcarrier_hz)
            part[name] = measured_bit_s / (scheme.bits_per_symbol * carrying_hz)
            # who is late was not in time; who is missing although there was time left gave up
            given_up = lost and (deadline_s is None or sent_s[name] < 0.8 * deadline_s)
            if given_up:
                step = _GIVEN_UP
            elif delivery.sent > 1.1 * delivery.packets:
                step = _TROUBLED
            else:
                step = 1.0 / _RETURN
            margin[name] = float(np.clip(margin[name] * step, _LEAST, _MOST))
        return PacketLinks(part, margin)
