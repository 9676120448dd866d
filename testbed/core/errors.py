"""The errors a user meets: each says what is wrong, where, and how to mend it."""

from __future__ import annotations

from pathlib import Path


class BenchError(Exception):
    """Base of every error the testbed raises on purpose.

    Args:
        message: what is wrong, one sentence.
        file: the file that has to be mended, if there is one.
        key: the key inside that file, dotted.
        remedy: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, file: str | Path | None = None, key: str | None = None, remedy: str | None = None
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.key = key
        self.remedy = remedy
        super().__init__(self.__str__())

    @property
    def headline(self) -> str:
        """Where and what, without the remedy."""
        return ": ".join(part for part in (self.file, self.key, self.message) if part)

    def __str__(self) -> str:
        return f"{self.headline}\n  remedy: {self.remedy}" if self.remedy else self.headline


class ConfigError(BenchError):
    """Mend the file (or the command line): nothing was started."""

    exit_code = 2


class ConfigErrors(ConfigError):
    """All that is wrong in one file at once."""

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


class LimitError(BenchError):
    """The order breaks a limit of the bench and was refused: nothing moved, nothing radiated."""

    exit_code = 3


class DeviceError(BenchError):
    """Mend the bench."""

    exit_code = 4


class LinkTimeout(DeviceError):
    """A node did not answer in time, or never connected."""


class StageFault(DeviceError):
    """A stage did not reach its target, or lost its position."""


class RadioFault(DeviceError):
    """A radio lost samples, its lock or its connection."""


class ProtocolError(BenchError):
    """Mend the code: one side said what the other does not understand."""

    exit_code = 5


class ReplayDeparture(BenchError):
    """The scheme asked something else than what the run recorded."""

    exit_code = 6
