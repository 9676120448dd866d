"""The description of a radio's devices that an iiod gives on PRINT."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from sim_backend.emulators.attribute_tree import Attribute, Channel, Device
from sim_backend.emulators.chip import Chip

VERSION = (0, 24, "v0.24")
"""Of libiio, as whose server the emulator presents itself."""
_ELEMENTS = {
    "context": "(device | context-attribute)*",
    "context-attribute": "EMPTY",
    "device": "(channel | attribute | debug-attribute | buffer-attribute)*",
    "channel": "(scan-element?, attribute*)",
    "attribute": "EMPTY",
    "scan-element": "EMPTY",
    "debug-attribute": "EMPTY",
    "buffer-attribute": "EMPTY",
}
_ATTRIBUTES = {
    "context": ("name!", "version-major!", "version-minor!", "version-git!", "description"),
    "context-attribute": ("name!", "value!"),
    "device": ("id!", "name", "label"),
    "channel": ("id!", "type!", "name"),
    "scan-element": ("index!", "format!", "scale"),
    "attribute": ("name!", "filename"),
    "debug-attribute": ("name!",),
    "buffer-attribute": ("name!",),
}
"""An exclamation mark means that libiio requires it."""


def _document_type() -> str:
    # libxml2 warns of a context without its grammar, so the grammar comes along.
    elements = "".join(f"<!ELEMENT {name} {content}>" for name, content in _ELEMENTS.items())
    lists = []
    for element, names in _ATTRIBUTES.items():
        declared = " ".join(
            f"{name.rstrip('!')} CDATA {'#REQUIRED' if name.endswith('!') else '#IMPLIED'}" for name in names
        )
        lists.append(f"<!ATTLIST {element} {declared}>")
    return f"<!DOCTYPE context [{elements}{''.join(lists)}]>"


def _tag(element: str, attributes: Mapping[str, str | None], content: str | None = None) -> str:
    given = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items() if value is not None)
    return f"<{element}{given}/>" if content is None else f"<{element}{given}>{content}</{element}>"


def _channel(channel: Channel) -> str:
    parts = [_tag("attribute", {"name": each.name, "filename": channel.file_name(each)}) for each in channel.attributes]
    if channel.scan_index is not None:
        parts.insert(0, _tag("scan-element", {"index": str(channel.scan_index), "format": channel.scan_format}))
    kind = "output" if channel.output else "input"
    return _tag("channel", {"id": channel.id, "name": channel.name, "type": kind}, "".join(parts))


def _plain(element: str, attributes: tuple[Attribute, ...]) -> str:
    return "".join(_tag(element, {"name": each.name}) for each in attributes)


def _device(device: Device) -> str:
    parts = [_channel(channel) for channel in device.channels]
    parts.append(_plain("attribute", device.attributes))
    parts.append(_plain("buffer-attribute", device.buffer))
    parts.append(_plain("debug-attribute", device.debug))
    return _tag("device", {"id": device.id, "name": device.name, "label": device.label}, "".join(parts))


def context_xml(chip: Chip, *, serial: str | None = None) -> str:
    """Describe a radio.

    Args:
        chip: the radio.
        serial: to be given instead of its own.

    Returns:
        one line of XML with its grammar inside.
    """
    identity = chip.identity
    facts = {
        "hw_model": identity.model,
        "hw_model_variant": "1" if identity.two_channels else "0",
        "hw_serial": identity.serial if serial is None else serial,
        "fw_version": identity.firmware,
        "ad9361-phy,xo_correction": str(identity.xo_hz),
        "ad9361-phy,model": identity.transceiver,
        "local,kernel": "5.15.0",
        "uri": "local:",
    }
    content = "".join(_tag("context-attribute", {"name": name, "value": value}) for name, value in facts.items())
    content += "".join(_device(device) for device in chip.devices)
    major, minor, tag = VERSION
    attributes = {
        "name": "local",
        "version-major": str(major),
        "version-minor": str(minor),
        "version-git": tag,
        "description": f"emulated {identity.model}",
    }
    return f'<?xml version="1.0" encoding="utf-8"?>{_document_type()}{_tag("context", attributes, content)}'
