"""What a host must have, as a table: programs, files, versions, room."""

from __future__ import annotations

from dataclasses import dataclass

Version = tuple[int, ...]

GIB = 1024**3

KERNEL_MINIMUM: Version = (5, 14)
"""The first kernel with `cgroup.kill`, which ends a machine's processes at one stroke."""

INOTIFY_OF_MACHINE = 4
MACHINES_ADVISED = 30
"""The kernel's default of 128 inotify instances is just enough for so many."""

FILE_SYSTEMS = ("erofs", "overlay", "tmpfs")

PYTHON_OLDEST: Version = (3, 11)
PYTHON_NEWEST: Version = (3, 13)

DISK_NEEDED_BYTES, DISK_ADVISED_BYTES = 3 * GIB, 10 * GIB
MEMORY_NEEDED_BYTES, MEMORY_ADVISED_BYTES = 2 * GIB, 4 * GIB


@dataclass(frozen=True, slots=True)
class Tool:
    """A program of the host.

    Attributes:
        program: Its name on the search path.
        package: The Debian package that holds it.
        purpose: What does not work without it; None for the main job.
        minimum: The oldest version that will do.
        arguments: What makes it print its version; none when it has no such option.
    """

    program: str
    package: str
    purpose: str | None = None
    minimum: Version | None = None
    arguments: tuple[str, ...] = ("--version",)


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file that must be on the host.

    Attributes:
        id: Of its check.
        subject: Names it for people.
        path: Where Debian puts it.
        package: The Debian package that holds it.
        purpose: What does not work without it; None for the main job.
    """

    id: str
    subject: str
    path: str
    package: str
    purpose: str | None = None


_DISK = "'toolkit images disk'"
_QEMU = "starting an image as a virtual machine"

TOOLS = (
    Tool("mmdebstrap", "mmdebstrap"),
    # 1.5 knows no option for its version: it prints it ahead of a complaint. Later ones know -V.
    Tool("mkfs.erofs", "erofs-utils", minimum=(1, 5), arguments=("-V",)),
    Tool("systemd-nspawn", "systemd-container", minimum=(252,)),
    Tool("haproxy", "haproxy", minimum=(2, 6), arguments=("-v",)),
    Tool("nsenter", "util-linux"),
    Tool("unshare", "util-linux"),
    Tool("mount", "mount"),
    Tool("ip", "iproute2", arguments=("-V",)),
    Tool("git", "git"),
    Tool("tar", "tar"),
    Tool("dpkg-query", "dpkg"),
    Tool("objcopy", "binutils", _DISK),
    Tool("mkfs.fat", "dosfstools", _DISK, arguments=()),
    Tool("mcopy", "mtools", _DISK),
    Tool("qemu-system-x86_64", "qemu-system-x86", _QEMU),
)

FILES = (
    HostFile(
        "debian-keyring",
        "Debian archive keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    HostFile(
        "ca-certificates",
        "CA certificates",
        "/etc/ssl/certs/ca-certificates.crt",
        "ca-certificates",
    ),
    HostFile(
        "efi-stub",
        "systemd's EFI stub",
        "/usr/lib/systemd/boot/efi/linuxx64.efi.stub",
        "systemd-boot-efi",
        _DISK,
    ),
    HostFile("ovmf", "UEFI firmware", "/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", _QEMU),
)
