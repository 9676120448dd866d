"""What a check-up finds, and how an error becomes a finding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from testbed.core.errors import BenchError, ConfigErrors

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: ok; warn: it may do; fail: a run on this bench would not work.
        what: what was found.
        remedy: how to mend it.
    """

    status: Status
    what: str
    remedy: str | None = None

    def line(self) -> str:
        """For people."""
        return f"{self.status:4}  {self.what}" + (f"\n      remedy: {self.remedy}" if self.remedy else "")

    def as_dict(self) -> dict[str, str | None]:
        """For machines."""
        return asdict(self)


def from_error(name: str, error: Exception, *, status: Status = "fail") -> list[Finding]:
    """An error as findings, one for each problem that it carries.

    Args:
        name: of what was looked at.
        error: what was raised.
        status: how bad it is.
    """
    if isinstance(error, ConfigErrors):
        return [finding for each in error.errors for finding in from_error(name, each, status=status)]
    if isinstance(error, BenchError):
        return [Finding(status, f"{name}: {error.headline}", error.remedy)]
    return [Finding(status, f"{name}: {type(error).__name__}: {error}")]
