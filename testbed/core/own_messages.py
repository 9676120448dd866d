"""Messages about the values that a node has for itself, and shares with nobody."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from testbed.core.message_bases import Request
from testbed.core.orders import Part


class SendOwn(Request):
    """Report the values that the node has for itself, so that a run can be resumed and a node can come back."""

    kind: Literal["send-own"] = "send-own"
    shared: Part | None = Field(None, description="values that all nodes share; None: they share nothing")


class Own(Request):
    """Answer to `SendOwn`. Arrays, float32: `own`, its values outside the shared part; `reference`, the same values of
    the policy that its alignment is leashed to, if there is one; `beside`, the whole copy that it trains beside its
    adapter, if there is one. What is not there is empty.
    """

    kind: Literal["own"] = "own"


class SetOwn(Request):
    """Take back values of its own. Arrays as of `Own`."""

    kind: Literal["set-own"] = "set-own"
    shared: Part | None = Field(None, description="as in `SendOwn`")
