"""Devices, channels and attributes of an IIO context as the kernel shows them: what may be read, written, and its text.

A value's text has no line end and no closing NUL; those belong to the protocol. Errors are `OSError` with the kernel's
number.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["", "debug", "buffer"]
Show = Callable[[], str]
Store = Callable[[str], None]

_FIXED_POINT = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?: ?dB)?\n?\Z", re.ASCII)
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|\d+)\n?\Z", re.ASCII)
_MICRO_DIGITS = 6


def refusal(number: int) -> OSError:
    """The kernel's answer with that errno."""
    return OSError(number, os.strerror(number))


def integer(text: str, lowest: int = 0, highest: int = (1 << 64) - 1) -> int:
    """A whole number as kstrto*() of the Linux kernel reads it.

    Raises:
        OSError: EINVAL for anything else or outside the bounds, ERANGE beyond 64 bits.
    """
    match = _INTEGER.match(text)
    if match is None:
        raise refusal(errno.EINVAL)
    value = int(match[2], 0 if match[2][:2].lower() == "0x" else 10) * (-1 if match[1] == "-" else 1)
    if abs(value) >= 1 << 64:
        raise refusal(errno.ERANGE)
    if not lowest <= value <= highest:
        raise refusal(errno.EINVAL)
    return value


def millionths(text: str) -> int:
    """A decimal fraction as iio_str_to_fixpoint() of the Linux kernel reads it, in millionths; more digits are cut off.

    Raises:
        OSError: EINVAL for anything else.
    """
    match = _FIXED_POINT.match(text)
    if match is None or not (match[2] or match[3]):
        raise refusal(errno.EINVAL)
    fraction = (match[3] or "")[:_MICRO_DIGITS].ljust(_MICRO_DIGITS, "0")
    value = int(match[2] or "0") * 10**_MICRO_DIGITS + int(fraction)
    if value >= 1 << 62:
        raise refusal(errno.ERANGE)
    return -value if match[1] == "-" else value


def decimal(value: int) -> str:
    """Millionths as the kernel writes them, with six digits."""
    whole, part = divmod(abs(value), 10**_MICRO_DIGITS)
    return f"{'-' if value < 0 else ''}{whole}.{part:06d}"


def switch(text: str) -> bool:
    """On or off as kstrtobool() of the Linux kernel reads it.

    Raises:
        OSError: EINVAL for anything else.
    """
    if text[:1] in ("1", "y", "Y", "t", "T") or text[:2].lower() == "on":
        return True
    if text[:1] in ("0", "n", "N", "f", "F") or text[:2].lower() == "of":
        return False
    raise refusal(errno.EINVAL)


def choice(text: str, choices: Sequence[str]) -> str:
    """One of these words.

    Raises:
        OSError: EINVAL for another.
    """
    word = text.removesuffix("\n")
    if word not in choices:
        raise refusal(errno.EINVAL)
    return word


@dataclass(frozen=True)
class Attribute:
    """One file of the kernel.

    Attributes:
        name: of the attribute inside its channel or device.
        show: what reading gives; None where the file is write-only.
        store: what writing does; None where the file is read-only.
        shared: name of the file where several channels share it, or where it has a name of its own.
    """

    name: str
    show: Show | None = None
    store: Store | None = None
    shared: str | None = None

    def read(self) -> str:
        """Its text.

        Raises:
            OSError: EACCES where nothing can be read, or what `show` raises.
        """
        if self.show is None:
            raise refusal(errno.EACCES)
        return self.show()

    def write(self, value: str) -> None:
        """Set it.

        Raises:
            OSError: EACCES where nothing can be written, or what `store` raises.
        """
        if self.store is None:
            raise refusal(errno.EACCES)
        self.store(value)


def constant(name: str, text: str, shared: str | None = None) -> Attribute:
    """An attribute that can only be read and never changes."""
    return Attribute(name, show=lambda: text, shared=shared)


@dataclass(frozen=True)
class Channel:
    """A channel of a device.

    Attributes:
        id: such as "voltage0".
        output: whether the kernel calls it an output.
        attributes: its own and the shared ones.
        name: its second name, if it has one.
        scan_index: its place in a sample, if it takes part in buffers.
        scan_format: how it lies in memory there.
    """

    id: str
    output: bool
    attributes: tuple[Attribute, ...]
    name: str | None = None
    scan_index: int | None = None
    scan_format: str = ""

    def file_name(self, attribute: Attribute) -> str:
        """The file's name below /sys/bus/iio/devices."""
        if attribute.shared is not None:
            return attribute.shared
        stem = f"{self.id}_{self.name}" if self.name else self.id
        return f"{'out' if self.output else 'in'}_{stem}_{attribute.name}"


@dataclass(frozen=True)
class Device:
    """A device of a context.

    Attributes:
        id: such as "iio:device0".
        name: of its driver.
        channels: those of buffers first, in the order of their places in a sample.
        attributes: of the device as a whole.
        debug: below debugfs.
        buffer: of its buffer.
        label: from the device tree, if it has one.
    """

    id: str
    name: str
    channels: tuple[Channel, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    debug: tuple[Attribute, ...] = ()
    buffer: tuple[Attribute, ...] = ()
    label: str | None = None

    @property
    def scan_mask(self) -> int:
        """One bit for every channel that takes part in buffers."""
        return sum(1 << bit for bit, channel in enumerate(self.channels) if channel.scan_index is not None)

    def channel(self, id_or_name: str, output: bool) -> Channel:
        """Find a channel.

        Raises:
            OSError: ENXIO, there is none.
        """
        for channel in self.channels:
            if channel.output == output and id_or_name in (channel.id, channel.name):
                return channel
        raise refusal(errno.ENXIO)

    def attributes_of(self, channel: str | None, output: bool | None, kind: Kind) -> tuple[Attribute, ...]:
        """All attributes at one place.

        Raises:
            OSError: ENXIO, there is no such channel.
        """
        if channel is not None:
            return self.channel(channel, bool(output)).attributes
        return {"": self.attributes, "debug": self.debug, "buffer": self.buffer}[kind]

    def attribute(self, channel: str | None, output: bool | None, name: str, kind: Kind) -> Attribute:
        """Find an attribute.

        Raises:
            OSError: ENXIO, there is no such channel; ENOENT, it has no such attribute.
        """
        for attribute in self.attributes_of(channel, output, kind):
            if attribute.name == name:
                return attribute
        raise refusal(errno.ENOENT)
