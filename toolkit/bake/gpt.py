"""The bytes of a GUID partition table. Pure: no I/O, no clock, nothing random.

Layout and checksums follow the UEFI specification 2.10, chapter 5, for sectors of 512 bytes.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

SECTOR_BYTES = 512
ALIGNMENT_BYTES = 1024 * 1024
"""Where partitions begin, so that no block of a disk or of a snapshot belongs to two of them."""

EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

READ_ONLY = 1 << 60
NO_AUTOMOUNT = 1 << 63

MAX_PARTITIONS = 128
MAX_NAME_LENGTH = 36

_ENTRY_BYTES = 128
_ENTRIES_SECTORS = MAX_PARTITIONS * _ENTRY_BYTES // SECTOR_BYTES
_HEADER_BYTES = 92
_FIRST_USABLE = 2 + _ENTRIES_SECTORS


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the table.

    Attributes:
        name: At most `MAX_NAME_LENGTH` UTF-16 units.
        kind: Type GUID.
        guid: The partition's own GUID.
        offset_bytes: Where it begins; a multiple of `ALIGNMENT_BYTES`.
        size_bytes: At least 1; the partition ends with the sector that holds the last byte.
        attributes: Bits such as `READ_ONLY`.
    """

    name: str
    kind: UUID
    guid: UUID
    offset_bytes: int
    size_bytes: int
    attributes: int = 0

    @property
    def first_sector(self) -> int:
        """Number of its first sector."""
        return self.offset_bytes // SECTOR_BYTES

    @property
    def last_sector(self) -> int:
        """Number of its last sector."""
        return (self.offset_bytes + self.size_bytes - 1) // SECTOR_BYTES


def place(sizes_bytes: Sequence[int]) -> tuple[int, ...]:
    """Return the offsets, in bytes, of partitions of these sizes, one after the other.

    An offset depends on the sizes before it only.
    """
    offsets = []
    offset = ALIGNMENT_BYTES
    for size in sizes_bytes:
        offsets.append(offset)
        offset = _align(offset + size)
    return tuple(offsets)


def disk_size(partitions: Sequence[Partition]) -> int:
    """Return the size, in bytes, of the smallest aligned disk that holds partitions and tables."""
    end = max((partition.last_sector + 1 for partition in partitions), default=_FIRST_USABLE)
    return _align((end + _ENTRIES_SECTORS + 1) * SECTOR_BYTES)


def tables(guid: UUID, partitions: Sequence[Partition], size_bytes: int) -> tuple[bytes, bytes]:
    """Return the bytes for the beginning and for the end of a disk.

    Args:
        guid: The disk's own GUID.
        partitions: In the order of their numbers; they must not overlap.
        size_bytes: Of the whole disk; a multiple of `SECTOR_BYTES`.

    Returns:
        The protective MBR with the primary table, and the backup table, which ends the disk.

    Raises:
        ValueError: The partitions do not fit, overlap, or have names that are too long.
    """
    sectors = size_bytes // SECTOR_BYTES
    last_usable = sectors - 2 - _ENTRIES_SECTORS
    _check(partitions, last_usable)
    entries = b"".join(_entry(partition) for partition in partitions)
    entries = entries.ljust(MAX_PARTITIONS * _ENTRY_BYTES, b"\0")

    def header(own: int, other: int, first_entry: int) -> bytes:
        def pack(checksum: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART",
                0x00010000,
                _HEADER_BYTES,
                checksum,
                0,
                own,
                other,
                _FIRST_USABLE,
                last_usable,
                guid.bytes_le,
                first_entry,
                MAX_PARTITIONS,
                _ENTRY_BYTES,
                binascii.crc32(entries),
            )

        return pack(binascii.crc32(pack(0))).ljust(SECTOR_BYTES, b"\0")

    primary = header(1, sectors - 1, 2)
    backup = header(sectors - 1, 1, last_usable + 1)
    return _protective_mbr(sectors) + primary + entries, entries + backup


def _check(partitions: Sequence[Partition], last_usable: int) -> None:
    if len(partitions) > MAX_PARTITIONS:
        raise ValueError(f"{len(partitions)} partitions; a table holds {MAX_PARTITIONS}")
    end = _FIRST_USABLE
    for partition in sorted(partitions, key=lambda each: each.offset_bytes):
        if partition.offset_bytes % ALIGNMENT_BYTES or partition.size_bytes < 1:
            raise ValueError(f"partition {partition.name} is not aligned, or empty")
        if partition.first_sector < end:
            raise ValueError(f"partition {partition.name} overlaps the one before it")
        end = partition.last_sector + 1
        if end - 1 > last_usable:
            raise ValueError(f"partition {partition.name} does not fit on the disk")


def _entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le")
    if len(name) > 2 * MAX_NAME_LENGTH:
        raise ValueError(f"partition name {partition.name} is longer than {MAX_NAME_LENGTH}")
    return struct.pack(
        "<16s16sQQQ72s",
        partition.kind.bytes_le,
        partition.guid.bytes_le,
        partition.first_sector,
        partition.last_sector,
        partition.attributes,
        name,
    )


def _protective_mbr(sectors: int) -> bytes:
    """One entry of type 0xEE over the whole disk, so that old tools leave it alone."""
    entry = struct.pack(
        "<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    return b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa"


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
