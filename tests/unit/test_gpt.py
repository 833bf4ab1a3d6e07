"""The bytes of the partition table, read back with a parser and a checksum of the test's own."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from toolkit.bake import gpt

DISK = UUID("11111111-2222-3333-4444-555555555555")
MIB = 1024 * 1024


def crc32(data: bytes) -> int:
    """CRC-32 as the UEFI specification defines it, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def partition(name: str, offset_mib: int, size_bytes: int) -> gpt.Partition:
    return gpt.Partition(
        name=name,
        kind=gpt.LINUX_DATA,
        guid=UUID(int=offset_mib),
        offset_bytes=offset_mib * MIB,
        size_bytes=size_bytes,
        attributes=gpt.READ_ONLY,
    )


TWO = (partition("first", 1, 3 * MIB), partition("second", 4, 513))


HEADER_FIELDS = (
    *("signature", "revision", "size", "checksum", "reserved", "own", "other", "first", "last"),
    *("guid", "entries", "count", "entry_size", "entries_checksum"),
)


def header(sector: bytes) -> dict[str, object]:
    values = struct.unpack_from("<8sIIIIQQQQ16sQIII", sector)
    return dict(zip(HEADER_FIELDS, values, strict=True))


def test_header_and_entries_carry_the_right_checksums():
    size = gpt.disk_size(TWO)
    primary, backup = gpt.tables(DISK, TWO, size)
    entries = primary[2 * 512 :]
    assert len(primary) == 34 * 512
    assert len(backup) == 33 * 512
    assert backup[: 32 * 512] == entries
    for sector in (primary[512:1024], backup[-512:]):
        fields = header(sector)
        assert fields["signature"] == b"EFI PART"
        assert fields["checksum"] == crc32(sector[:16] + bytes(4) + sector[20:92])
        assert fields["entries_checksum"] == crc32(entries)
        assert fields["guid"] == DISK.bytes_le
        assert sector[92:] == bytes(420)


def test_the_two_headers_point_at_each_other():
    size = gpt.disk_size(TWO)
    sectors = size // 512
    primary, backup = gpt.tables(DISK, TWO, size)
    first, second = header(primary[512:1024]), header(backup[-512:])
    assert (first["own"], first["other"], first["entries"]) == (1, sectors - 1, 2)
    assert (second["own"], second["other"], second["entries"]) == (sectors - 1, 1, sectors - 33)
    assert (first["first"], first["last"]) == (34, sectors - 34)


def test_an_entry_names_its_first_and_last_sector():
    primary, _ = gpt.tables(DISK, TWO, gpt.disk_size(TWO))
    kind, guid, first, last, attributes, name = struct.unpack_from(
        "<16s16sQQQ72s", primary, 2 * 512 + 128
    )
    assert kind == gpt.LINUX_DATA.bytes_le
    assert guid == UUID(int=4).bytes_le
    assert (first, last) == (8192, 8193)
    assert attributes == 1 << 60
    assert name.decode("utf-16-le").rstrip("\0") == "second"
    assert not any(primary[2 * 512 + 2 * 128 :])


@pytest.mark.parametrize(
    ("size_bytes", "protected"), [(8 * MIB, 8 * 2048 - 1), (4 * 1024**4, 0xFFFFFFFF)]
)
def test_the_protective_mbr_covers_the_disk(size_bytes, protected):
    mbr = gpt.tables(DISK, TWO, size_bytes)[0][:512]
    assert mbr[450] == 0xEE
    assert struct.unpack_from("<II", mbr, 454) == (1, protected)
    assert mbr[510:] == b"\x55\xaa"


@pytest.mark.parametrize(
    ("sizes", "offsets"),
    [
        ([], ()),
        ([1], (MIB,)),
        ([MIB, 1], (MIB, 2 * MIB)),
        ([MIB + 1, 5 * MIB, 4096], (MIB, 3 * MIB, 8 * MIB)),
    ],
)
def test_partitions_are_placed_one_after_the_other(sizes, offsets):
    assert gpt.place(sizes) == offsets


def test_what_comes_later_does_not_move_what_came_before():
    assert gpt.place([7, 3 * MIB, 9])[:2] == gpt.place([7, 3 * MIB, 800 * MIB, 5])[:2]


def test_the_disk_has_room_for_the_backup_table():
    # The last partition ends 16 KiB before a boundary: 33 sectors do not fit any more.
    assert gpt.disk_size((partition("only", 1, MIB - 16384),)) == 3 * MIB
    assert gpt.disk_size((partition("only", 1, MIB - 33 * 512),)) == 2 * MIB


@pytest.mark.parametrize(
    ("partitions", "reason"),
    [
        ((partition("a", 1, MIB + 1), partition("b", 2, 1)), "overlaps"),
        ((partition("a", 7, MIB),), "does not fit"),
        ((partition("a", 1, 0),), "empty"),
        ((partition("a", 0, 1),), "overlaps"),
        ((partition("n" * 37, 1, 1),), "longer than 36"),
        (tuple(partition("a", 1 + index, 1) for index in range(129)), "holds 128"),
    ],
)
def test_impossible_tables_are_refused(partitions, reason):
    with pytest.raises(ValueError, match=reason):
        gpt.tables(DISK, partitions, 8 * MIB)


def test_a_name_of_36_characters_fits():
    primary, _ = gpt.tables(DISK, (partition("n" * 36, 1, 1),), 8 * MIB)
    assert primary[2 * 512 + 56 : 2 * 512 + 128] == ("n" * 36).encode("utf-16-le")
