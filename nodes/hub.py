"""Whether the Hugging Face hub can be asked at all; its own libraries try for a minute before they give up."""

from __future__ import annotations

import socket
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies

_TIMEOUT_S = 4.0


@lru_cache(maxsize=1)
def hub_may_answer() -> bool:
    """False where neither the hub nor a proxy can be reached; True in the hub libraries' own offline mode."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies().get(address.scheme):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True
