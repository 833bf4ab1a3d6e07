"""Assembles the disk that an image boots from on a virtual machine.

    protective MBR, GPT   1 MiB; the only bytes before the layers that depend on the whole image
    boot partition        FAT; EFI/BOOT/BOOTX64.EFI is one unified kernel image
    layer-00-of-NN        the operating system, an erofs file as it is
    …                     each layer at 1 MiB alignment
    layer-NN…             the application
    backup GPT            the last 33 sectors

The kernel image is made of the operating system alone: it holds no digest and no number of layers,
because the boot script (see `toolkit.bake.initramfs`) finds the layers on the disk that the
firmware started from. So two disks whose images differ in the last layer differ in the first 34
sectors (GUIDs, names, checksums, the size), in that layer, and in what follows it: nowhere else.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from toolkit import shell
from toolkit.bake import gpt
from toolkit.errors import BakeFailed, ConfigurationError

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
"""Debian package systemd-boot-efi."""

COMMAND_LINE = "console=tty0 console=ttyS0,115200n8 boot=toolkit panic=10 quiet"
"""The last console is the one that systemd writes to. With `panic=` a machine that cannot start
tries again instead of offering a root shell on its console."""

MAX_LAYERS = 99

_NAMESPACE = UUID("5a3e7a57-8b8e-4d0c-9a0f-6f2d1c64b1a5")
"""Of this toolkit's GUIDs; an arbitrary constant."""

_EPOCH = 315532800
"""1980-01-01, the oldest time that FAT can hold."""

_ESP_STEP_BYTES = 64 * 1024 * 1024
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What an operating system's layer contributes to the boot partition.

    Attributes:
        kernel: The extracted kernel.
        initrd: The extracted initial RAM file system for it.
        os_release: Content of the layer's os-release file.
    """

    kernel: Path
    initrd: Path
    os_release: bytes


# The mount lives in a namespace that ends with this process, and the loop device with the mount.
# A symbolic link would be resolved against the host.
_EXTRACT = """
mount -t erofs -o ro,loop "$1" "$2"
for file in "$2"/boot/vmlinuz-* "$2"/boot/initrd.img-* "$2"/usr/lib/os-release; do
    [ -L "$file" ] || [ ! -f "$file" ] || cp -- "$file" "$3"
done
"""


def extract_boot_files(os_layer: Path, into: Path) -> BootFiles:
    """Copy kernel, initial RAM file system and os-release out of a sealed layer. Needs root.

    fsck.erofs 1.5 can extract everything only, which takes 2 s; this takes less than 0.1 s.

    Args:
        os_layer: An erofs file.
        into: Empty directory for the files; made if it is missing.

    Raises:
        BakeFailed: The layer does not hold exactly one kernel with its initial RAM file system.
        OutsideError: It cannot be mounted.
    """
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".mount-") as mount_point:
        private = ["unshare", "--mount", "--propagation", "private"]
        shell.run(
            [*private, "sh", "-euc", _EXTRACT, "sh", os_layer.resolve(), mount_point, into],
            env=shell.environment(),
            timeout_s=_TIMEOUT_S,
        )
    kernels = sorted(into.glob("vmlinuz-*"))
    if len(kernels) != 1:
        names = ", ".join(kernel.name for kernel in kernels) or "none"
        raise BakeFailed(
            f"{os_layer.name}: /boot must hold one kernel, found {names}",
            hint="keep one linux-image package in the base image",
        )
    version = kernels[0].name.removeprefix("vmlinuz-")
    initrd = into / f"initrd.img-{version}"
    release = into / "os-release"
    for file in (initrd, release):
        if not file.is_file():
            raise BakeFailed(f"{os_layer.name}: {file.name} is missing")
    return BootFiles(kernels[0], initrd, release.read_bytes())


def assemble_disk(
    layers: Sequence[Path],
    *,
    kernel: Path,
    initrd: Path,
    os_release: bytes,
    digest: str,
    output: Path,
) -> None:
    """Write an image's disk: the same inputs give the same bytes.

    The file appears under its name when it is complete and on stable storage. It is sparse where
    the boot partition is empty.

    Args:
        layers: The erofs files, the operating system first.
        kernel: Linux with an EFI stub, out of the operating system's layer.
        initrd: Its initial RAM file system.
        os_release: Content of the layer's os-release file.
        digest: The image's; the disk's and the partitions' GUIDs follow from it.
        output: The raw disk file; replaced if it exists.

    Raises:
        ConfigurationError: There are no layers, or too many.
        OutsideError: A host tool failed.
    """
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise ConfigurationError(f"an image has 1 to {MAX_LAYERS} layers, this has {len(layers)}")
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        uki = _unified_kernel(Path(scratch), kernel=kernel, initrd=initrd, os_release=os_release)
        esp = _boot_partition(Path(scratch), uki)
        disk = Path(scratch) / "disk"
        _write_disk(disk, [esp, *layers], digest)
        disk.replace(output)
    directory = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unified_kernel(scratch: Path, *, kernel: Path, initrd: Path, os_release: bytes) -> Path:
    """Append kernel, initial RAM file system and command line to systemd's stub."""
    (scratch / "osrel").write_bytes(os_release)
    (scratch / "cmdline").write_bytes(COMMAND_LINE.encode() + b"\0")
    sections = {
        ".osrel": scratch / "osrel",
        ".cmdline": scratch / "cmdline",
        ".initrd": initrd,
        ".linux": kernel,
    }
    # The stub finds sections by name, but the firmware loads each at its address: overlapping
    # ones would silently overwrite each other.
    address, alignment = _image_end(STUB.read_bytes())
    arguments: list[str] = []
    for name, file in sections.items():
        address = -(-address // alignment) * alignment
        arguments += ["--add-section", f"{name}={file}"]
        arguments += ["--change-section-vma", f"{name}={address:#x}"]
        address += file.stat().st_size
    uki = scratch / "BOOTX64.EFI"
    shell.run(
        ["objcopy", *arguments, STUB, uki],
        env=shell.environment(),
        timeout_s=_TIMEOUT_S,
    )
    # objcopy 2.40 writes the time of day, whatever SOURCE_DATE_EPOCH says, and a checksum over it.
    # Firmware reads neither; zero is "not set".
    with uki.open("r+b") as program:
        start = _pe_header(program.read(4096))
        os.pwrite(program.fileno(), bytes(4), start + 8)
        os.pwrite(program.fileno(), bytes(4), start + 24 + 64)
    return uki


def _pe_header(portable_executable: bytes) -> int:
    """Return where the header of a PE file begins."""
    (start,) = struct.unpack_from("<I", portable_executable, 0x3C)
    return int(start)


def _image_end(portable_executable: bytes) -> tuple[int, int]:
    """Return the first free address of a PE32+ file, and its section alignment, both in bytes."""
    start = _pe_header(portable_executable)
    (count,) = struct.unpack_from("<H", portable_executable, start + 6)
    (optional_bytes,) = struct.unpack_from("<H", portable_executable, start + 20)
    base, alignment = struct.unpack_from("<QI", portable_executable, start + 24 + 24)
    table = start + 24 + optional_bytes
    ends = []
    for index in range(count):
        size, address = struct.unpack_from("<II", portable_executable, table + 40 * index + 8)
        ends.append(base + address + size)
    return max(ends), alignment


def _boot_partition(scratch: Path, uki: Path) -> Path:
    """Make a FAT file system that holds the kernel image, without mounting anything."""
    size = uki.stat().st_size
    esp = scratch / "esp"
    with esp.open("wb") as file:
        # A 16th more for the file allocation tables and for the directories.
        file.truncate(-(-(size + size // 16) // _ESP_STEP_BYTES) * _ESP_STEP_BYTES)
    os.utime(uki, (_EPOCH, _EPOCH))
    env = shell.environment(
        SOURCE_DATE_EPOCH=str(_EPOCH), MTOOLS_SKIP_CHECK="1", MTOOLSRC=os.devnull
    )
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("mkfs.fat", "--invariant", "-F", "32", "-n", "BOOT", esp),
        ("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"),
        ("mcopy", "-m", "-i", esp, uki, "::/EFI/BOOT/BOOTX64.EFI"),
    )
    for command in commands:
        shell.run(command, env=env, timeout_s=_TIMEOUT_S)
    return esp


def _write_disk(disk: Path, contents: Sequence[Path], digest: str) -> None:
    """Write the boot partition and the layers, and the tables around them."""
    sizes = [file.stat().st_size for file in contents]
    guids = [uuid5(_NAMESPACE, f"{digest}/partition/{index}") for index in range(len(contents))]
    # The boot script knows the GUID of the boot partition, but sees only names: so they are equal.
    total = len(contents) - 1
    names = [str(guids[0]), *(f"layer-{index:02d}-of-{total:02d}" for index in range(total))]
    partitions = [
        gpt.Partition(
            name=name,
            kind=gpt.LINUX_DATA if index else gpt.EFI_SYSTEM,
            guid=guid,
            offset_bytes=offset,
            size_bytes=size,
            attributes=gpt.READ_ONLY | gpt.NO_AUTOMOUNT if index else 0,
        )
        for index, (name, guid, offset, size) in enumerate(
            zip(names, guids, gpt.place(sizes), sizes, strict=True)
        )
    ]
    size_bytes = gpt.disk_size(partitions)
    primary, backup = gpt.tables(uuid5(_NAMESPACE, f"{digest}/disk"), partitions, size_bytes)
    with disk.open("wb") as target:
        target.truncate(size_bytes)
        for source, partition in zip(contents, partitions, strict=True):
            _copy(source, target.fileno(), partition.offset_bytes)
        os.pwrite(target.fileno(), primary, 0)
        os.pwrite(target.fileno(), backup, size_bytes - len(backup))
        os.fsync(target.fileno())


def _copy(source: Path, target: int, offset: int) -> None:
    """Copy what `source` holds, but not its holes, to `offset` of an empty file."""
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            while position < end:
                position += _copy_some(file.fileno(), position, end, target, offset + position)


def _copy_some(source: int, begin: int, end: int, target: int, offset: int) -> int:
    """Copy at least one byte; where the file system can, blocks are shared instead of copied."""
    try:
        copied = os.copy_file_range(source, target, end - begin, begin, offset)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        os.lseek(target, offset, os.SEEK_SET)
        copied = os.sendfile(target, source, begin, end - begin)
    if copied == 0:
        raise BakeFailed("a layer became shorter while it was copied")
    return copied
