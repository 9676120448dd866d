"""One round's decision: who sends, and where the antennas stand for them, given channels that are known so well.

Clients that may send together are ranked where the antennas are; for the best few sets the antennas are placed anew,
and the set whose Phi is best there is taken. Places are judged by the gain that is reached in nine cases of ten over
what is not known of channels and positions. Antennas stay where they are unless that gain rises enough to be worth the
way: this rule and the ranking at the present places are our choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.errors import ConfigError
from testbed.phy.aperture import Aperture, PathSet
from testbed.phy.field_model import PathField
from testbed.phy.ports import nearest_assignment
from testbed.problems.ma_ota.placements import PLACERS
from testbed.problems.ma_ota.selection import Criterion, rank
from testbed.problems.ma_ota.selectors import choose
from testbed.problems.ma_ota.survey import robust_gain
from testbed.problems.multicast import multicast


@dataclass(frozen=True)
class Decision:
    """Who sends in a round, and from where the array listens.

    Attributes:
        selected: indices of the clients, ascending; empty where nobody is heard.
        positions_m: where the antennas shall stand, shape [num_antennas, 2].
        gain: gain of the weakest of them that is expected there in nine cases of ten.
        gain_here: the same where the antennas stand now.
        phi: Phi(S) at `gain`.
        moves: whether the antennas leave their places.
    """

    selected: tuple[int, ...]
    positions_m: np.ndarray
    gain: float
    gain_here: float
    phi: float
    moves: bool


@dataclass(frozen=True)
class Manner:
    """How a round is decided.

    Attributes:
        concurrency: K, clients at a time; any number if None.
        selection: "exact", or one of `selectors.SELECTORS`.
        placement: one of `PLACERS`, or "stay".
        num_starts: of the placement.
        screened: sets for which antennas are placed before the best is taken.
        least_rise: antennas move where the gain rises by this factor at least.
        position_std_m: how well stages know where they are, each axis.
    """

    concurrency: int | None
    selection: str
    placement: str
    num_starts: int = 6
    screened: int = 2
    least_rise: float = 1.0
    position_std_m: float = 0.0


def check_concurrency(concurrency: int | None, num_clients: int) -> None:
    """Raises ConfigError where more clients are to send at once than there are."""
    if concurrency is not None and concurrency > num_clients:
        raise ConfigError(
            f"{concurrency} nodes are to send at once, the bench has {num_clients}",
            key="scheme.concurrency",
            remedy=f"choose at most {num_clients}, or leave it out for any number",
        )


def decide(
    manner: Manner,
    criterion: Criterion,
    fields: Sequence[PathField],
    factor: np.ndarray,
    aperture: Aperture,
    here_m: np.ndarray,
    rng: np.random.Generator,
    *,
    turn: int = 0,
) -> Decision:
    """The round's decision; see the module.

    Args:
        manner: how it is decided.
        criterion: what sets are judged by.
        fields: channels of the clients.
        factor: sqrt(P_m) / (D_m nu_m) of each, which makes the channels the auxiliary ones, shape [num_clients].
        aperture: where antennas may be.
        here_m: where they are, shape [num_antennas, 2].
        rng: draws.
        turn: rounds before this one.
    """
    paths = PathSet.of(fields).scaled(factor)
    best: Decision | None = None
    for members in _candidates(manner, criterion, paths.channel(here_m), rng, turn):
        chosen = [fields[index] for index in members]
        scale, part = factor[list(members)], paths.part(members)

        def expected(
            positions_m: np.ndarray,
            combiner: np.ndarray,
            chosen: Sequence[PathField] = chosen,
            scale: np.ndarray = scale,
        ) -> float:
            return robust_gain(chosen, scale, positions_m, combiner, rng, position_std_m=manner.position_std_m)

        gain_here = gain = expected(here_m, multicast(part.channel(here_m)).point)
        positions_m = here_m
        if manner.placement != "stay" and aperture.movable.any():
            place = PLACERS[manner.placement]
            placed = place(part, aperture, rng=rng, num_starts=manner.num_starts, warm=here_m).point
            there = expected(placed.positions_m, placed.combiner)
            if there >= manner.least_rise * gain_here and not np.array_equal(placed.positions_m, here_m):
                positions_m, gain = placed.positions_m.copy(), there
                movable = aperture.movable
                positions_m[movable] = nearest_assignment(positions_m[movable], here_m[movable])
        phi, score = criterion.judge(members, gain)
        if best is None or score < best.phi - criterion.credit(best.selected):
            best = Decision(tuple(members), positions_m, gain, gain_here, phi, positions_m is not here_m)
    return best or Decision((), here_m, 0.0, 0.0, np.inf, False)


def _candidates(
    manner: Manner, criterion: Criterion, channel: np.ndarray, rng: np.random.Generator, turn: int
) -> Sequence[tuple[int, ...]]:
    if manner.selection == "exact":
        kept = manner.screened if manner.placement != "stay" else 1
        return [found.selected for found in rank(criterion, channel, manner.concurrency, kept=kept).point]
    chosen = choose(manner.selection, criterion, channel, manner.concurrency, rng, turn=turn)
    return [chosen] if chosen else []
