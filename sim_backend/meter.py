"""A node's seconds and joules by the cost model of the bench file."""

from __future__ import annotations

from testbed.core.bench import NodeSpec
from testbed.core.errors import LimitError
from testbed.core.orders import Spent
from testbed.phy.budget import compute_joules, compute_seconds

_TOLERANCE = 1e-9


class SimMeter:
    """See `testbed.core.devices.Meter`: cycles over frequency, and switched capacitance. Wall time does not count.

    Args:
        board: the node's cost model.
    """

    def __init__(self, board: NodeSpec) -> None:
        self._board = board

    def begin(self, cpu_hz: float | None = None) -> None:
        """Work begins; the frequency counts at its end."""

    def end(self, *, num_tokens: int, cpu_hz: float | None, work_share: float = 1.0) -> Spent:
        """What work on so many tokens takes.

        seconds = C n s / f,   joules = kappa C n s f^2

        Args:
            num_tokens: n.
            cpu_hz: f; the board's highest frequency if None.
            work_share: s, a token's operations relative to the whole model.

        Returns:
            seconds and joules.

        Raises:
            LimitError: the board cannot run at that frequency.
        """
        board = self._board
        frequency_hz = board.cpu_hz if cpu_hz is None else cpu_hz
        if not 0 < frequency_hz <= board.cpu_hz * (1 + _TOLERANCE):
            raise LimitError(f"{board.name} cannot run at {frequency_hz:g} Hz; its range is up to {board.cpu_hz:g} Hz")
        tokens = num_tokens * work_share
        return Spent(
            seconds=compute_seconds(tokens, board.cycles_per_token, frequency_hz),
            joules=compute_joules(tokens, board.cycles_per_token, frequency_hz, board.kappa),
        )
