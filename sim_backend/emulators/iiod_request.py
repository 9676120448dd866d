"""Requests of the iiod text protocol, as libiio 0.24's server understands them.

Keywords are upper or lower case, never mixed; words are parted by blanks or tabs; a line may end in blanks but not
begin with one. Whatever does not fit is answered with EINVAL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sim_backend.emulators.attribute_tree import Kind

_WORD = re.compile(rb"[^ \t]+")
_NUMBER = re.compile(r"\s*([+-]?\d+)", re.ASCII)
_PLACES = ("INPUT", "OUTPUT", "DEBUG", "BUFFER")


class NotUnderstood(ValueError):
    """No request of this protocol."""


@dataclass(frozen=True)
class Place:
    """Where an attribute is: a device, perhaps one of its channels.

    Attributes:
        device: id, name or label.
        channel: id or name, None for the device's own attributes.
        output: whether the channel is an output.
        attribute: name; None for all at that place.
        kind: "debug" or "buffer" for those of a device.
    """

    device: str
    channel: str | None
    output: bool | None
    attribute: str | None
    kind: Kind


@dataclass(frozen=True)
class Request:
    """One line.

    Attributes:
        verb: upper case.
        words: the rest, as it came.
    """

    verb: str
    words: tuple[str, ...]

    @property
    def number(self) -> int:
        """Its last word as atol() of C reads it: what is no number is 0."""
        match = _NUMBER.match(self.words[-1])
        return int(match[1]) if match else 0

    def place(self, *, counted: bool) -> Place:
        """Where READ and WRITE go; WRITE's last word counts the bytes that follow.

        Raises:
            NotUnderstood: too few or too many words.
        """
        words = list(self.words[:-1] if counted else self.words)
        if not words:
            raise NotUnderstood
        device = words.pop(0)
        keyword = next((place for place in _PLACES if words and words[0] in (place, place.lower())), None)
        if keyword is not None:
            words.pop(0)
        channel = None
        if keyword in ("INPUT", "OUTPUT"):
            if not words:
                raise NotUnderstood
            channel = words.pop(0)
        if len(words) > 1:
            raise NotUnderstood
        kind: Kind = "debug" if keyword == "DEBUG" else "buffer" if keyword == "BUFFER" else ""
        return Place(device, channel, keyword == "OUTPUT" if channel else None, words[0] if words else None, kind)


def _exactly(*counts: int) -> Callable[[int], bool]:
    return lambda count: count in counts


_COUNTS: dict[str, Callable[[int], bool]] = {
    "VERSION": _exactly(0),
    "HELP": _exactly(0),
    "EXIT": _exactly(0),
    "QUIT": _exactly(0),
    "PRINT": _exactly(0),
    "TIMEOUT": _exactly(1),
    "READ": lambda count: 1 <= count <= 4,
    "WRITE": lambda count: 2 <= count <= 5,
    "OPEN": _exactly(3, 4),
    "CLOSE": _exactly(1),
    "READBUF": _exactly(2),
    "WRITEBUF": _exactly(2),
    "GETTRIG": _exactly(1),
    "SETTRIG": _exactly(1, 2),
    "SET": _exactly(3),
}


def parse(line: bytes) -> Request | None:
    """Understand a line.

    Returns:
        None for a line of blanks.

    Raises:
        NotUnderstood: it is no request.
    """
    line = line.removesuffix(b"\r")
    if not line.strip(b" \t"):
        return None
    if line[:1] in b" \t":
        raise NotUnderstood
    try:
        verb, *words = (word.decode("ascii") for word in _WORD.findall(line))
    except UnicodeDecodeError:
        raise NotUnderstood from None
    if verb.upper() not in _COUNTS or verb not in (verb.upper(), verb.lower()):
        raise NotUnderstood
    if not _COUNTS[verb.upper()](len(words)):
        raise NotUnderstood
    return Request(verb.upper(), tuple(words))
