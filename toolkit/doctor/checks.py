"""Judgements on what was found on a host. No I/O, no clock.

`toolkit.doctor.probe` looks at the host and hands what it finds to the functions here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from toolkit.doctor.needs import (
    GIB,
    INOTIFY_OF_MACHINE,
    KERNEL_MINIMUM,
    MACHINES_ADVISED,
    PYTHON_NEWEST,
    PYTHON_OLDEST,
    HostFile,
    Tool,
    Version,
)

_VERSION = re.compile(r"(?<![\w.])v?(\d+(?:\.\d+)*)")


class Status(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    """The toolkit works, but less well, or not all of it."""
    MISSING = "missing"
    """The toolkit does not work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for.

    Attributes:
        id: Names the check for programs; unique, and stays as it is.
        subject: Names it for people.
        is_needed: Whether the toolkit's main job needs it.
        is_met: Whether it is there.
        found: What was found: a version, a size, the reason of a lack.
        hint: How to mend a lack.
        packages: Debian packages that mend it.
    """

    id: str
    subject: str
    is_needed: bool
    is_met: bool
    found: str
    hint: str | None = None
    packages: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """What the check came to."""
        if self.is_met:
            return Status.OK
        return Status.MISSING if self.is_needed else Status.WARNING


def judge_tool(tool: Tool, output: str | None) -> Check:
    """Judge a program by what it printed when asked for its version.

    Args:
        tool: The program.
        output: What it printed; None when it is not on the host.
    """
    version = None if output is None else parse_version(output)
    minimum = tool.minimum
    if output is None:
        return _of_package(tool.program, tool.program, tool.package, tool.purpose, found=None)
    if minimum is None:
        found = show_version(version) if version else "present"
        return _of_package(tool.program, tool.program, tool.package, tool.purpose, found=found)
    if version is None:
        found = f"does not tell its version; {show_version(minimum)} is needed"
    elif version < minimum:
        found = f"{show_version(version)}, but {show_version(minimum)} is needed"
    else:
        return _of_package(
            tool.program, tool.program, tool.package, tool.purpose, found=show_version(version)
        )
    return Check(
        tool.program,
        tool.program,
        is_needed=tool.purpose is None,
        is_met=False,
        found=found,
        hint=f"install {tool.package} {show_version(minimum)} or newer",
        packages=(tool.package,),
    )


def judge_file(file: HostFile, size_bytes: int | None) -> Check:
    """Judge a file by its size; None when it cannot be read. An empty file is as good as none."""
    found = file.path if size_bytes else None
    return _of_package(file.id, file.subject, file.package, file.purpose, found=found)


def judge_inotify(limit: int) -> Check:
    """Judge how many inotify instances the host's root, and so all machines together, may have.

    systemd in a machine takes four (measured on 252), and ends without a word when there is none.
    """
    machines = limit // INOTIFY_OF_MACHINE
    is_met = machines >= MACHINES_ADVISED
    return Check(
        "inotify",
        "inotify instances",
        is_needed=False,
        is_met=is_met,
        found=f"{limit}, enough for {machines} machines",
        hint=None
        if is_met
        else "run 'sysctl fs.inotify.max_user_instances=1024' for more machines",
    )


def judge_kernel(release: str) -> Check:
    """Judge the kernel by its release, such as `6.1.0-38-amd64`."""
    is_met = (parse_version(release) or ()) >= KERNEL_MINIMUM
    return Check(
        "kernel",
        "Linux kernel",
        is_needed=True,
        is_met=is_met,
        found=release,
        hint=None if is_met else f"boot a kernel {show_version(KERNEL_MINIMUM)} or newer",
        packages=() if is_met else ("linux-image-amd64",),
    )


def judge_file_system(name: str, *, is_registered: bool, is_module: bool, has_kmod: bool) -> Check:
    """Judge whether a file system can be mounted.

    Args:
        name: As `/proc/filesystems` spells it.
        is_registered: Whether it is listed there.
        is_module: Whether there is a kernel module, which the kernel loads when it is first used.
        has_kmod: Whether the host has the program that the kernel loads modules with.
    """
    is_loadable = is_module and has_kmod
    found = "in the kernel" if is_registered else "a module" if is_module else "not in this kernel"
    hint: str | None = None
    packages: tuple[str, ...] = ()
    if not is_registered and is_module and not has_kmod:
        found, hint, packages = "a module, but modprobe is missing", "install kmod", ("kmod",)
    elif not is_registered and not is_module:
        hint = f"run 'modprobe {name}', or boot a kernel that has it, as Debian's own does"
    return Check(
        f"fs-{name}",
        f"{name} file system",
        is_needed=True,
        is_met=is_registered or is_loadable,
        found=found,
        hint=hint,
        packages=packages,
    )


def judge_cgroups(*, is_unified: bool, is_hybrid: bool, is_writable: bool) -> Check:
    """Judge the control groups.

    Args:
        is_unified: Whether the unified hierarchy is mounted at the top.
        is_hybrid: Whether it is mounted beside systemd's named one.
        is_writable: Whether groups can be made.
    """
    found = "unified" if is_unified else "hybrid" if is_hybrid else "neither unified nor hybrid"
    hint = None
    if not (is_unified or is_hybrid):
        hint = "mount it: mount -t cgroup2 none /sys/fs/cgroup"
    elif not is_writable:
        found += ", not writable"
        hint = "mount /sys/fs/cgroup for writing"
    return Check(
        "cgroups", "control groups", is_needed=True, is_met=hint is None, found=found, hint=hint
    )


def judge_room(
    id_: str, subject: str, free_bytes: int, *, needed_bytes: int, advised_bytes: int, hint: str
) -> Check:
    """Judge an amount of something that the toolkit uses up."""
    found = f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < advised_bytes:
        is_short = free_bytes < needed_bytes
        bound = f"{needed_bytes // GIB} GiB are needed" if is_short else "tight"
        found = f"{found}, {bound}; {advised_bytes // GIB} GiB are advised"
    return Check(
        id_,
        subject,
        is_needed=free_bytes < needed_bytes,
        is_met=free_bytes >= advised_bytes,
        found=found,
        hint=None if free_bytes >= advised_bytes else hint,
    )


def judge_python(version: Version) -> Check:
    """Judge the Python that runs the toolkit."""
    is_met = PYTHON_OLDEST <= version[:2] <= PYTHON_NEWEST
    bounds = f"{show_version(PYTHON_OLDEST)} to {show_version(PYTHON_NEWEST)}"
    return Check(
        "python",
        "Python",
        is_needed=True,
        is_met=is_met,
        found=show_version(version),
        hint=None if is_met else f"use Python {bounds}",
        packages=() if is_met else ("python3-venv",),
    )


def is_fit(checks: Iterable[Check]) -> bool:
    """Whether nothing is missing that the toolkit needs."""
    return all(check.status is not Status.MISSING for check in checks)


def install_command(checks: Iterable[Check]) -> str | None:
    """Return the command that installs every package that is missing; None for none."""
    packages = {name for check in checks if not check.is_met for name in check.packages}
    return f"apt-get install {' '.join(sorted(packages))}" if packages else None


def parse_version(text: str) -> Version | None:
    """Return the first version number in a text, which may be one number alone."""
    match = _VERSION.search(text)
    return tuple(map(int, match[1].split("."))) if match else None


def show_version(version: Version) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


def _of_package(
    id_: str, subject: str, package: str, purpose: str | None, *, found: str | None
) -> Check:
    hint = f"install {package}" + (f", for {purpose}" if purpose else "")
    return Check(
        id_,
        subject,
        is_needed=purpose is None,
        is_met=found is not None,
        found="not installed" if found is None else found,
        hint=hint if found is None else None,
        packages=() if found is not None else (package,),
    )
