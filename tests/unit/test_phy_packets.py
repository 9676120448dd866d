import struct

import numpy as np
import pytest

from testbed.phy.packets import Packet, Reassembly, num_packets, segment

DATA = np.random.default_rng(0).bytes(2500)


def reassembly(**other):
    settings = {"num_bytes": len(DATA), "packet_bytes": 1000, "node": 3, "transfer": 9} | other
    return Reassembly(
        settings["num_bytes"], settings["packet_bytes"], node=settings["node"], transfer=settings["transfer"]
    )


def test_headers_say_which_part_of_which_transfer_follows():
    packets = segment(DATA, 1000, node=3, transfer=9)
    assert [struct.unpack("<BBHHH", packet.header) for packet in packets] == [
        (9, 3, 0, 3, 1000),
        (9, 3, 1, 3, 1000),
        (9, 3, 2, 3, 504),
    ]
    assert b"".join(packet.payload for packet in packets)[:-4] == DATA


@pytest.mark.parametrize("num_bytes", [0, 1, 995, 996, 997, 1000, 1996])
def test_the_number_of_packets_is_known_beforehand(num_bytes):
    packets = segment(DATA[:num_bytes], 1000, node=0, transfer=0)
    assert len(packets) == num_packets(num_bytes, 1000) == -(-(num_bytes + 4) // 1000)
    whole = reassembly(num_bytes=num_bytes, node=0, transfer=0)
    for packet in packets:
        assert whole.add(packet.header, packet.payload)
    assert whole.data() == DATA[:num_bytes]


def test_missing_packets_are_named_and_nothing_is_returned():
    packets = segment(DATA, 1000, node=3, transfer=9)
    whole = reassembly()
    assert whole.missing == (0, 1, 2)
    whole.add(packets[2].header, packets[2].payload)
    whole.add(packets[0].header, packets[0].payload)
    assert whole.missing == (1,)
    with pytest.raises(ValueError, match="1 of 3 packets are missing"):
        whole.data()
    whole.add(packets[1].header, packets[1].payload)
    assert whole.data() == DATA


def test_transfers_are_numbered_modulo_256():
    packets = segment(DATA, 1000, node=3, transfer=9 + 256)
    whole = reassembly(transfer=9 + 512)
    assert all(whole.add(packet.header, packet.payload) for packet in packets)


@pytest.mark.parametrize("other", [{"node": 4}, {"transfer": 10}, {"num_bytes": 4000}, {"packet_bytes": 999}])
def test_packets_of_others_are_ignored(other):
    whole = reassembly(**other)
    before = whole.missing
    for packet in segment(DATA, 1000, node=3, transfer=9):
        assert not whole.add(packet.header, packet.payload)
    assert whole.missing == before


def test_nonsense_and_duplicates_are_ignored():
    first = segment(DATA, 1000, node=3, transfer=9)[0]
    whole = reassembly()
    for wrong in (
        Packet(b"", first.payload),
        Packet(first.header + b"\0", first.payload),
        Packet(first.header, first.payload[:-1]),
        Packet(first.header, b""),
        Packet(struct.pack("<BBHHH", 9, 3, 3, 3, 1000), first.payload),
        Packet(struct.pack("<BBHHH", 9, 3, 2, 3, 1000), first.payload),
        Packet(struct.pack("<BBHHH", 9, 3, 0, 4, 1000), first.payload),
    ):
        assert not whole.add(wrong.header, wrong.payload)
    assert whole.missing == (0, 1, 2)
    assert whole.add(first.header, first.payload)
    assert not whole.add(first.header, bytes(1000))
    assert whole.missing == (1, 2)


def test_a_packet_of_an_older_transfer_with_the_same_number_never_gives_a_wrong_update():
    old = segment(bytes(2500), 1000, node=3, transfer=9)
    new = segment(DATA, 1000, node=3, transfer=9)
    whole = reassembly()
    whole.add(old[1].header, old[1].payload)
    for packet in new:
        whole.add(packet.header, packet.payload)
    with pytest.raises(ValueError, match="CRC-32 does not hold"):
        whole.data()
    assert whole.missing == (0, 1, 2), "and it starts again"
    for packet in new:
        whole.add(packet.header, packet.payload)
    assert whole.data() == DATA


def test_what_does_not_fit_the_header_is_refused():
    for packet_bytes in (0, -1, 9217):
        with pytest.raises(ValueError, match="outside 1 to 9216"):
            segment(DATA, packet_bytes, node=0, transfer=0)
    for node in (-1, 256):
        with pytest.raises(ValueError, match="0 to 255"):
            segment(DATA, 100, node=node, transfer=0)
    with pytest.raises(ValueError, match="negative"):
        segment(DATA, 100, node=0, transfer=-1)
    with pytest.raises(ValueError, match="enlarge"):
        num_packets(70_000, 1)
    with pytest.raises(ValueError, match="negative"):
        num_packets(-1, 10)
