"""What all messages between controller and nodes have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Said(BaseModel):
    """Base of every message."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Said):
    """Base of what the controller asks of one node; the answer repeats `serial`."""

    node: str
    serial: int = 0
