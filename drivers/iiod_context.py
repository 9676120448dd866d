"""What an iiod serves, read from the XML that describes its context: devices, channels, attributes, sample formats.

The elements are those that libiio 0.x writes; the document type it puts in front is allowed, entities are not.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field

from testbed.core.errors import DeviceError, ProtocolError


@dataclass(frozen=True)
class ScanFormat:
    """How one element lies in a buffer, written `le:S12/16>>0`.

    Attributes:
        little_endian: lowest byte first.
        signed: two's complement.
        num_bits: meaningful bits.
        length_bit: bits it occupies.
        shift: bits to shift right.
    """

    little_endian: bool
    signed: bool
    num_bits: int
    length_bit: int
    shift: int

    @classmethod
    def parse(cls, text: str) -> ScanFormat:
        """Read it.

        Raises:
            ProtocolError: it is written otherwise, or one element repeats.
        """
        found = re.fullmatch(r"([bl])e:([suSU])(\d+)/(\d+)>>(\d+)", text)
        if found is None:
            raise ProtocolError(f"the sample format {text!r} is not understood", remedy=_REMEDY)
        order, sign, num_bits, length_bit, shift = found.groups()
        return cls(order == "l", sign in "sS", int(num_bits), int(length_bit), int(shift))


@dataclass(frozen=True)
class ChannelEntry:
    """One channel of a device.

    Attributes:
        identity: such as voltage0.
        name: such as TX_LO; empty where it has none.
        label: empty where it has none.
        output: whether it goes out.
        attributes: their names.
        scan_index: its place in a buffer's mask, None where it has no samples.
        scan_format: how its samples lie in a buffer.
    """

    identity: str
    name: str
    label: str
    output: bool
    attributes: frozenset[str]
    scan_index: int | None
    scan_format: ScanFormat | None


@dataclass(frozen=True)
class DeviceEntry:
    """One device of a context.

    Attributes:
        identity: such as iio:device0.
        name: such as ad9361-phy.
        label: empty where it has none.
        channels: in the order of the description.
        attributes: names of its own attributes.
        debug_attributes: names of those for experts.
        buffer_attributes: names of those of its buffer.
    """

    identity: str
    name: str
    label: str
    channels: tuple[ChannelEntry, ...]
    attributes: frozenset[str]
    debug_attributes: frozenset[str]
    buffer_attributes: frozenset[str]

    def find(self, channel: str, *, output: bool) -> ChannelEntry | None:
        """The channel of that identity or name, None where there is none."""
        return next(
            (each for each in self.channels if each.output == output and channel in (each.identity, each.name)), None
        )

    def channel(self, channel: str, *, output: bool) -> ChannelEntry:
        """The same. Raises DeviceError where there is none."""
        found = self.find(channel, output=output)
        if found is None:
            kind = "output" if output else "input"
            raise DeviceError(f"{self.name} has no {kind} channel {channel}", remedy=_REMEDY)
        return found

    def scanned(self, *, output: bool) -> tuple[ChannelEntry, ...]:
        """Channels with samples, in the order of the mask."""
        found = [each for each in self.channels if each.scan_index is not None and each.output == output]
        return tuple(sorted(found, key=lambda each: each.scan_index or 0))

    @property
    def mask_words(self) -> int:
        """32-bit words of a buffer's mask."""
        return max(1, -(-sum(each.scan_index is not None for each in self.channels) // 32))


_REMEDY = "check that an AD936x radio, such as a PlutoSDR, answers there, with its usual firmware"


@dataclass(frozen=True)
class IioContext:
    """All that one iiod serves.

    Attributes:
        attributes: of the context: hw_model, hw_serial, fw_version and more.
        devices: in the order of the description.
        uri: where it answers, for messages.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceEntry, ...] = ()
    uri: str = "context"

    def find(self, device: str) -> DeviceEntry | None:
        """The device of that identity, name or label, None where there is none."""
        return next((each for each in self.devices if device in (each.identity, each.name, each.label)), None)

    def device(self, device: str) -> DeviceEntry:
        """The same.

        Raises:
            DeviceError: there is none; the message lists those there are.
        """
        found = self.find(device)
        if found is None:
            others = ", ".join(each.label or each.name or each.identity for each in self.devices) or "no device at all"
            raise DeviceError(
                f"{self.uri}: no device {device} there, but {others}; is this a PlutoSDR?", remedy=_REMEDY
            )
        return found


def parse_context(data: bytes, uri: str = "context") -> IioContext:
    """Read a context's description.

    Args:
        data: the XML, UTF-8.
        uri: where it came from, for messages.

    Raises:
        ProtocolError: it is no such XML, or it declares entities.
    """
    try:
        text = data.decode("utf-8")
        if "<!ENTITY" in text:
            raise ProtocolError(
                f"{uri}: the description of the devices declares XML entities, which none needs", remedy=_REMEDY
            )
        root = ElementTree.fromstring(text)
        if root.tag != "context":
            raise ValueError(f"the root is <{root.tag}>, not <context>")
        return IioContext(
            {each.attrib["name"]: each.attrib["value"] for each in root.iterfind("context-attribute")},
            tuple(_device(each) for each in root.iterfind("device")),
            uri,
        )
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError, KeyError) as error:
        raise ProtocolError(
            f"{uri}: the description of the devices cannot be read ({type(error).__name__}: {error})", remedy=_REMEDY
        ) from error


def _device(element: ElementTree.Element) -> DeviceEntry:
    return DeviceEntry(
        identity=element.attrib["id"],
        name=element.attrib.get("name", ""),
        label=element.attrib.get("label", ""),
        channels=tuple(_channel(each) for each in element.iterfind("channel")),
        attributes=_names(element, "attribute"),
        debug_attributes=_names(element, "debug-attribute"),
        buffer_attributes=_names(element, "buffer-attribute"),
    )


def _channel(element: ElementTree.Element) -> ChannelEntry:
    scan = element.find("scan-element")
    return ChannelEntry(
        identity=element.attrib["id"],
        name=element.attrib.get("name", ""),
        label=element.attrib.get("label", ""),
        output=element.attrib["type"] == "output",
        attributes=_names(element, "attribute"),
        scan_index=None if scan is None else int(scan.attrib["index"]),
        scan_format=None if scan is None else ScanFormat.parse(scan.attrib["format"]),
    )


def _names(element: ElementTree.Element, tag: str) -> frozenset[str]:
    return frozenset(each.attrib["name"] for each in element.iterfind(tag))
