"""An update's bytes become numbered packets, and packets become the update again or nothing.

The header of a packet has 8 bytes, little-endian: transfer, node, sequence number, count, payload length. The CRC-32 of
the whole transfer travels behind the data, so that no mixture of packets passes for an update.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

HEADER = struct.Struct("<BBHHH")
CHECK_BYTES = 4
MAX_PACKETS = 0xFFFF
MAX_PACKET_BYTES = 9216


@dataclass(frozen=True)
class Packet:
    """Header and payload of one packet."""

    header: bytes
    payload: bytes


def num_packets(num_bytes: int, packet_bytes: int) -> int:
    """Packets that carry so many bytes and their CRC-32.

    Raises:
        ValueError: a packet may not have so many bytes, or there would be too many packets.
    """
    if not 1 <= packet_bytes <= MAX_PACKET_BYTES:
        raise ValueError(f"packet_bytes = {packet_bytes} is outside 1 to {MAX_PACKET_BYTES}")
    if num_bytes < 0:
        raise ValueError(f"num_bytes = {num_bytes} is negative")
    count = -(-(num_bytes + CHECK_BYTES) // packet_bytes)
    if count > MAX_PACKETS:
        raise ValueError(f"{num_bytes} bytes need {count} packets, at most {MAX_PACKETS} can be counted; enlarge them")
    return count


def segment(data: bytes, packet_bytes: int, *, node: int, transfer: int) -> list[Packet]:
    """Cut a transfer into packets.

    Args:
        data: the whole transfer.
        packet_bytes: payload of every packet but the last, which may be shorter.
        node: index of the sender, 0 to 255.
        transfer: number of the transfer, taken modulo 256.

    Returns:
        the packets in order; at least one.

    Raises:
        ValueError: the node's index or the number of bytes do not fit the header.
    """
    count = num_packets(len(data), packet_bytes)
    if not 0 <= node <= 0xFF:
        raise ValueError(f"node = {node} does not fit the header; indices are 0 to 255")
    if transfer < 0:
        raise ValueError(f"transfer = {transfer} is negative")
    checked = data + zlib.crc32(data).to_bytes(CHECK_BYTES, "little")
    packets = []
    for sequence in range(count):
        payload = checked[sequence * packet_bytes : (sequence + 1) * packet_bytes]
        packets.append(Packet(HEADER.pack(transfer % 256, node, sequence, count, len(payload)), payload))
    return packets


class Reassembly:
    """Collects the packets of one transfer, in any order and as often as they come.

    Args:
        num_bytes: length of the transfer, known beforehand.
        packet_bytes: as given to `segment`.
        node: index of the sender.
        transfer: number of the transfer, taken modulo 256.

    Raises:
        ValueError: as `num_packets`.
    """

    def __init__(self, num_bytes: int, packet_bytes: int, *, node: int, transfer: int) -> None:
        self._count = num_packets(num_bytes, packet_bytes)
        self._num_bytes, self._packet_bytes = num_bytes, packet_bytes
        self._node, self._transfer = node, transfer % 256
        self._payloads: dict[int, bytes] = {}

    @property
    def missing(self) -> tuple[int, ...]:
        """Sequence numbers that have not come yet."""
        return tuple(sequence for sequence in range(self._count) if sequence not in self._payloads)

    def add(self, header: bytes, payload: bytes) -> bool:
        """Take a packet whose own check holds; False for one of somebody else, one known already, and nonsense."""
        if len(header) != HEADER.size:
            return False
        transfer, node, sequence, count, length = HEADER.unpack(header)
        if (transfer, node, count) != (self._transfer, self._node, self._count) or sequence >= count:
            return False
        if len(payload) != length or length != self._length_of(sequence) or sequence in self._payloads:
            return False
        self._payloads[sequence] = bytes(payload)
        return True

    def data(self) -> bytes:
        """The transfer.

        Raises:
            ValueError: packets are missing, or the CRC-32 of the whole does not hold. In the latter case every packet
                is forgotten, since nothing says which of them is wrong.
        """
        if self.missing:
            raise ValueError(f"{len(self.missing)} of {self._count} packets are missing")
        checked = b"".join(self._payloads[sequence] for sequence in range(self._count))
        data, check = checked[:-CHECK_BYTES], checked[-CHECK_BYTES:]
        if zlib.crc32(data).to_bytes(CHECK_BYTES, "little") != check:
            self._payloads.clear()
            raise ValueError("the transfer's CRC-32 does not hold; all packets have to be sent again")
        return data

    def _length_of(self, sequence: int) -> int:
        return min(self._packet_bytes, self._num_bytes + CHECK_BYTES - sequence * self._packet_bytes)
