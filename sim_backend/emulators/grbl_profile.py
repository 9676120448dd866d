"""How fast a carriage goes along one straight line: pieces of constant acceleration, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

_SMALL = 1e-12


@dataclass(frozen=True)
class Piece:
    """A stretch of constant acceleration.

    Attributes:
        lasts_s: how long.
        from_m_s: speed at its start.
        gains_m_s2: signed acceleration.
    """

    lasts_s: float
    from_m_s: float
    gains_m_s2: float

    def way_m(self, after_s: float) -> float:
        """Way covered by then."""
        return self.from_m_s * after_s + 0.5 * self.gains_m_s2 * after_s**2

    def speed_m_s(self, after_s: float) -> float:
        """Speed by then."""
        return max(0.0, self.from_m_s + self.gains_m_s2 * after_s)

    def reaches_s(self, way_m: float) -> float:
        """When that way, which lies within the piece, is covered."""
        if abs(self.gains_m_s2) < _SMALL:
            return way_m / self.from_m_s
        square = max(0.0, self.from_m_s**2 + 2.0 * self.gains_m_s2 * way_m)
        # the other form of the solution is exact where the speed hardly changes
        return 2.0 * way_m / (self.from_m_s + math.sqrt(square)) if way_m > 0 else 0.0


@dataclass(frozen=True)
class Profile:
    """Pieces one after the other.

    Args:
        pieces: in order; those that last no time are left out.
    """

    pieces: tuple[Piece, ...]
    lasts_s: float = field(init=False)
    way_m: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lasts_s", sum(piece.lasts_s for piece in self.pieces))
        object.__setattr__(self, "way_m", sum(piece.way_m(piece.lasts_s) for piece in self.pieces))

    def at(self, after_s: float) -> tuple[float, float]:
        """Way and speed after so many seconds; at the end and later, those of the end."""
        way_m, speed_m_s = 0.0, self.pieces[0].from_m_s if self.pieces else 0.0
        for piece in self.pieces:
            inside_s = min(after_s, piece.lasts_s)
            way_m += piece.way_m(inside_s)
            speed_m_s = piece.speed_m_s(inside_s)
            after_s -= inside_s
            if after_s <= 0:
                break
        return way_m, speed_m_s

    def reaches_s(self, way_m: float) -> float:
        """When that much way is covered; infinite where the profile ends before."""
        passed_s = 0.0
        for piece in self.pieces:
            piece_m = piece.way_m(piece.lasts_s)
            if way_m <= piece_m + _SMALL:
                return passed_s + min(piece.reaches_s(min(way_m, piece_m)), piece.lasts_s)
            way_m -= piece_m
            passed_s += piece.lasts_s
        return math.inf


def run(way_m: float, *, from_m_s: float, at_most_m_s: float, to_m_s: float, acceleration_m_s2: float) -> Profile:
    """Cover a way as fast as the limits allow.

    Args:
        way_m: how far.
        from_m_s: speed at the start; above the limit it is braked down first.
        at_most_m_s: the limit.
        to_m_s: speed wanted at the end; the end is as near to it as the way allows.
        acceleration_m_s2: up and down alike.

    Returns:
        the profile, which covers exactly the way.
    """
    accel, left_m = acceleration_m_s2, way_m
    pieces: list[Piece] = []
    now_m_s = from_m_s
    if from_m_s > at_most_m_s:
        down_m = min(left_m, (from_m_s**2 - at_most_m_s**2) / (2 * accel))
        now_m_s = math.sqrt(max(0.0, from_m_s**2 - 2 * accel * down_m))
        pieces.append(Piece((from_m_s - now_m_s) / accel, from_m_s, -accel))
        left_m -= down_m
    to_m_s = min(to_m_s, math.sqrt(now_m_s**2 + 2 * accel * left_m))
    peak_m_s = min(at_most_m_s, math.sqrt(accel * left_m + 0.5 * (now_m_s**2 + to_m_s**2)))
    if peak_m_s > now_m_s:
        up = Piece((peak_m_s - now_m_s) / accel, now_m_s, accel)
        pieces.append(up)
        left_m -= up.way_m(up.lasts_s)
        now_m_s = peak_m_s
    down_m = min(left_m, max(0.0, (now_m_s**2 - to_m_s**2) / (2 * accel)))
    if now_m_s > 0 and left_m - down_m > _SMALL:
        pieces.append(Piece((left_m - down_m) / now_m_s, now_m_s, 0.0))
    end_m_s = math.sqrt(max(0.0, now_m_s**2 - 2 * accel * down_m))
    pieces.append(Piece((now_m_s - end_m_s) / accel, now_m_s, -accel))
    return _of(pieces)


def brake(way_m: float, *, from_m_s: float, acceleration_m_s2: float) -> Profile:
    """Slow down as hard as possible, for the whole way or until the carriage stands."""
    stop_m = min(way_m, from_m_s**2 / (2 * acceleration_m_s2))
    end_m_s = math.sqrt(max(0.0, from_m_s**2 - 2 * acceleration_m_s2 * stop_m))
    return _of([Piece((from_m_s - end_m_s) / acceleration_m_s2, from_m_s, -acceleration_m_s2)])


def _of(pieces: Iterable[Piece]) -> Profile:
    return Profile(tuple(piece for piece in pieces if piece.lasts_s > 0))
