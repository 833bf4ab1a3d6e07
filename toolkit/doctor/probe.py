"""Looks at the host. Changes nothing, save for a network namespace that lives for an instant."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from toolkit import shell
from toolkit.doctor import checks, needs
from toolkit.doctor.checks import Check
from toolkit.doctor.needs import Tool
from toolkit.errors import OutsideError
from toolkit.machines import cgroups
from toolkit.state import RAM_FILE_SYSTEMS, RAM_ROOT, file_system_of

TOOL_TIMEOUT_S = 5.0
NETWORK_TIMEOUT_S = 10.0

_LOOP_CONTROL = Path("/dev/loop-control")
_RESOLVER = Path("/etc/resolv.conf")
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
_TRY_NETWORK = b"""\
link add name br0 type bridge
link add name tk0 type veth peer name tk1
link set dev tk0 master br0
"""


def examine(state_root: Path) -> tuple[Check, ...]:
    """Look for everything that the toolkit needs.

    Args:
        state_root: The state directory, which need not exist.

    Returns:
        One check for each thing, in the order in which they are worth mending.
    """
    kernel: Sequence[Callable[[], Check]] = (
        _root,
        lambda: checks.judge_kernel(os.uname().release),
        *(lambda name=name: _file_system(name) for name in needs.FILE_SYSTEMS),
        _loop_devices,
        _network,
        _cgroups,
        _ram,
        _memfd,
    )
    room: Sequence[Callable[[], Check]] = (
        lambda: checks.judge_python(sys.version_info[:3]),
        _ansible,
        lambda: _disk_space(state_root),
        _memory,
        _inotify,
        _resolver,
    )
    with ThreadPoolExecutor(4) as pool:
        tools = pool.map(_tool, needs.TOOLS)
        others = [look() for look in (*kernel, *room)]
    files = [
        checks.judge_file(file, _size_bytes(Path(file.path)))
        for file in sorted(needs.FILES, key=lambda one: one.purpose is not None)
    ]
    found = [*others[: len(kernel)], *tools, *others[len(kernel) :], *files]
    return tuple(found)


def _tool(tool: Tool) -> Check:
    path = shutil.which(tool.program, path=shell.MINIMAL_ENVIRONMENT["PATH"])
    if path is None:
        return checks.judge_tool(tool, None)
    if not tool.arguments:
        return checks.judge_tool(tool, "")
    try:
        done = shell.run(
            [path, *tool.arguments],
            env=shell.environment(),
            timeout_s=TOOL_TIMEOUT_S,
            is_checked=False,
        )
    except OutsideError as error:
        return Check(
            tool.program,
            tool.program,
            is_needed=tool.purpose is None,
            is_met=False,
            found=error.message,
            hint=f"install {tool.package} anew",
            packages=(tool.package,),
        )
    return checks.judge_tool(tool, f"{done.text}\n{done.error_text}")


def _root() -> Check:
    is_root = os.geteuid() == 0
    return Check(
        "root",
        "root",
        is_needed=True,
        is_met=is_root,
        found="yes" if is_root else f"user id {os.geteuid()}",
        hint=None if is_root else "run it with sudo",
    )


def _file_system(name: str) -> Check:
    registered = {line.split()[-1] for line in _lines(Path("/proc/filesystems")) if line.strip()}
    listing = Path("/lib/modules", os.uname().release, "modules.dep")
    return checks.judge_file_system(
        name,
        is_registered=name in registered,
        is_module=any(f"/{name}.ko" in line.partition(":")[0] for line in _lines(listing)),
        has_kmod=shutil.which("modprobe", path=shell.MINIMAL_ENVIRONMENT["PATH"]) is not None,
    )


def _loop_devices() -> Check:
    found, hint = str(_LOOP_CONTROL), None
    try:
        # Opening it makes the kernel load the driver, and does not make a device.
        os.close(os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        found = f"{_LOOP_CONTROL}, not tried without root"
    except OSError as error:
        found, hint = f"{_LOOP_CONTROL}: {error.strerror}", "run 'modprobe loop'"
    return Check(
        "loop", "loop devices", is_needed=True, is_met=hint is None, found=found, hint=hint
    )


def _network() -> Check:
    subject = "network namespaces"
    if os.geteuid() != 0:
        return Check(
            "network",
            subject,
            is_needed=False,
            is_met=False,
            found="not tried without root",
            hint="run it with sudo",
        )
    name = f"tkdoctor-{os.getpid()}-{secrets.token_hex(3)}"
    env = shell.environment()
    try:
        try:
            shell.run(["ip", "netns", "add", name], env=env, timeout_s=NETWORK_TIMEOUT_S)
            shell.run(
                ["ip", "-n", name, "-batch", "-"],
                env=env,
                timeout_s=NETWORK_TIMEOUT_S,
                stdin=_TRY_NETWORK,
            )
        finally:
            shell.run(
                ["ip", "netns", "delete", name],
                env=env,
                timeout_s=NETWORK_TIMEOUT_S,
                is_checked=False,
            )
    except OutsideError as error:
        return Check(
            "network",
            subject,
            is_needed=True,
            is_met=False,
            found=" ".join(error.message.split()),
            hint="run 'modprobe -a bridge veth'; in a container, start it privileged",
        )
    return Check(
        "network", subject, is_needed=True, is_met=True, found="with a bridge and a veth pair"
    )


def _cgroups() -> Check:
    tops = cgroups.hierarchies()
    # Root may write wherever the mount does not forbid it; others are told above what they lack.
    is_writable = os.geteuid() != 0 or all(os.access(top, os.W_OK) for top in tops)
    return checks.judge_cgroups(
        is_unified=tops == (cgroups.ROOT,),
        is_hybrid=tops == cgroups.HIERARCHIES,
        is_writable=is_writable,
    )


def _ram() -> Check:
    found = file_system_of(RAM_ROOT)
    is_ram = found in RAM_FILE_SYSTEMS
    return Check(
        "ram",
        f"RAM file system at {RAM_ROOT}",
        is_needed=True,
        is_met=is_ram,
        found=found,
        hint=None if is_ram else f"run 'mount -t tmpfs tmpfs {RAM_ROOT}'",
    )


def _memfd() -> Check:
    try:
        os.close(os.memfd_create("tkdoctor"))
    except OSError as error:
        hint = "use a kernel with CONFIG_MEMFD_CREATE"
        return Check("memfd", "memfd", is_needed=True, is_met=False, found=str(error), hint=hint)
    return Check("memfd", "memfd", is_needed=True, is_met=True, found="yes")


def _ansible() -> Check:
    program = Path(sys.executable).with_name("ansible-playbook")
    try:
        version = metadata.version("ansible-core")
    except metadata.PackageNotFoundError:
        version = None
    is_met = version is not None and os.access(program, os.X_OK)
    return Check(
        "ansible",
        "ansible-core",
        is_needed=True,
        is_met=is_met,
        found=str(version) if is_met else f"no {program}",
        hint=None if is_met else "install the toolkit's own requirements: make setup",
    )


def _disk_space(state_root: Path) -> Check:
    # Not Path.exists: it raises where a parent may not be entered.
    place = next(path for path in (state_root, *state_root.parents) if os.access(path, os.F_OK))
    return checks.judge_room(
        "disk",
        f"disk space for {state_root}",
        shutil.disk_usage(place).free,
        needed_bytes=needs.DISK_NEEDED_BYTES,
        advised_bytes=needs.DISK_ADVISED_BYTES,
        hint="make room, or choose another place with --state",
    )


def _memory() -> Check:
    fields = dict(line.split(":", 1) for line in _lines(Path("/proc/meminfo")) if ":" in line)
    return checks.judge_room(
        "memory",
        "memory",
        int(fields["MemAvailable"].split()[0]) * 1024,
        needed_bytes=needs.MEMORY_NEEDED_BYTES,
        advised_bytes=needs.MEMORY_ADVISED_BYTES,
        hint="end what else runs here, or use a larger host",
    )


def _inotify() -> Check:
    return checks.judge_inotify(int(_INOTIFY_LIMIT.read_text()))


def _resolver() -> Check:
    lines = (line.split() for line in _lines(_RESOLVER))
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and words[1:]]
    return Check(
        "resolver",
        "name resolution",
        is_needed=True,
        is_met=bool(servers),
        found=", ".join(servers) or f"{_RESOLVER} names no server",
        hint=None if servers else f"bakes fetch packages: name a server in {_RESOLVER}",
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
