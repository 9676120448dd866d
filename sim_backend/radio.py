"""The radios of the simulated bench.

Modelled: what `testbed.core.bench.ImpairmentsSpec` lists, and the start jitter of the bench's radios. Not modelled:
lost bursts, filters other than their loss, memory of amplifiers, phase noise of the receiver, which is common to all
antennas. Bursts that nothing delays start on the receiver's sample grid.
"""

from __future__ import annotations

from sim_backend.capabilities import radio_capabilities
from sim_backend.receiver import SimReceiver
from sim_backend.transmitter import SimTransmitter

__all__ = ["SimReceiver", "SimTransmitter", "radio_capabilities"]
