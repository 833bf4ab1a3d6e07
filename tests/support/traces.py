"""What a toolkit leaves on a host, told by its state directory."""

import os
from collections.abc import Collection
from pathlib import Path

from toolkit.machines import cgroups
from toolkit.state import RAM_ROOT, RUNTIME_ROOT

HAPROXY_PROCESSES = 2


def leftovers(state: Path, state_id: str, machines: Collection[str], environment: str) -> list[str]:
    """Return everything that belongs to a state directory and to none of the machines.

    Args:
        state: The state directory.
        state_id: What stands for it in names.
        machines: Those that should run; with any, their network and balancer should be there too.
        environment: Where they run.
    """
    found = []
    expected_groups = {f"{environment}/{name}" for name in machines}
    found += [f"control group {name}" for name in groups(state_id) - expected_groups]
    network = f"tk{state_id}-{environment}"
    expected = {network, f"{network}@host"} if machines else set()
    expected |= {f"tk{state_id}-{environment}.{name}" for name in machines}
    found += [f"network namespace {name}" for name in namespaces(state_id) - expected]
    balancers, others = processes(state, state_id)
    if len(balancers) != (HAPROXY_PROCESSES if machines else 0):
        found += [f"process {line}" for line in balancers]
    found += [f"process {line}" for line in others]
    mounts = [line for line in mount_points(state, state_id) if Path(line).name not in expected]
    found += [f"mount {line}" for line in mounts]
    if not machines:
        found += [f"loop device of {name}" for name in loop_devices(state)]
    found += [f"file {path}" for path in files(state, state_id, machines, environment)]
    return found


def groups(state_id: str) -> set[str]:
    """Return control groups: `ENVIRONMENT/MACHINE`, and those of bakes and of Ansible."""
    top = f"toolkit-{state_id}"
    found = set()
    for name in cgroups.groups_below(top):
        inner = cgroups.groups_below(f"{top}/{name}")
        found |= {name} if "@" in name or not inner else {f"{name}/{one}" for one in inner}
    return found


def namespaces(state_id: str) -> set[str]:
    return {path.name for path in Path("/run/netns").glob(f"tk{state_id}*")}


def processes(state: Path, state_id: str) -> tuple[list[str], list[str]]:
    """Return the balancer's processes, and those that are neither its nor a machine's.

    The others are known by their arguments, or by where they are: what was started inside a
    machine from outside is in its namespaces, but not in its control group. What tests that run
    beside this one have started is theirs, whatever its arguments name: one of them searches files
    all over the host.
    """
    balancers, others = [], []
    needles = (os.fsencode(state), f"/run/toolkit/{state_id}".encode())
    spaces = {Path(f"/run/netns/{name}").stat().st_ino for name in namespaces(state_id)}
    spaces.discard(Path("/proc/self/ns/net").stat().st_ino)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            control_groups = (entry / "cgroup").read_text()
            is_inside = (entry / "ns" / "net").stat().st_ino in spaces
        except OSError:
            continue
        if f"/toolkit-{state_id}/" in control_groups:
            # A machine's processes; the group itself is looked at by its name.
            continue
        if int(entry.name) == os.getpid():
            continue
        if not is_inside and not any(needle in words for needle in needles):
            continue
        if is_of_another_worker(int(entry.name)) or not entry.exists():
            continue
        line = f"{entry.name} {words.replace(bytes(1), b' ').decode(errors='replace')}"
        (balancers if words.startswith(b"haproxy\0") else others).append(line)
    return balancers, others


def is_of_another_worker(pid: int) -> bool:
    """Tell whether tests that run in parallel with this one started a process.

    One that has outlived who started it is nobody's, so that it counts as left behind.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return False
    controller = os.getppid()
    parent = parent_of(pid)
    while parent not in (None, controller):
        pid, parent = parent, parent_of(parent)
    return parent == controller and pid != os.getpid()


def parent_of(pid: int) -> int | None:
    """Return the process id of a process's parent; None for one that is gone or has none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]) or None


def mount_points(state: Path, state_id: str) -> list[str]:
    """Return mount points in this process's own mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [one for one in points if state_id in one or one.startswith(f"{state}/")]


def loop_devices(state: Path) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = path.read_text().strip()
        except OSError:
            continue
        if name.startswith(f"{state}/"):
            found.append(name)
    return found


def files(state: Path, state_id: str, machines: Collection[str], environment: str) -> list[Path]:
    """Return scratch and runtime files that belong to nothing that runs."""
    runtime, ram = RUNTIME_ROOT / state_id, RAM_ROOT / f"toolkit-{state_id}"
    found = list((state / "work").rglob("*"))
    found += list((state / "store").rglob(".*"))
    found += list((state / "environments").glob("*/snapshots/.*"))
    found += list((runtime / environment / "smoke").glob("*"))
    found += [path for path in Path("/tmp").glob("*") if state_id in path.name]
    if not machines:
        return found + [path for path in (runtime, ram) if path.exists()]
    for path in runtime.rglob("*"):
        top = path.relative_to(runtime).parts[0]
        if path.parent == runtime / environment / "machines":
            is_expected = path.name.partition(".")[0] in machines
        else:
            is_expected = top == environment
        if not is_expected:
            found.append(path)
    found += [path for path in ram.rglob("*") if path.relative_to(ram).parts[0] != environment]
    return found


def store_listing(store: Path) -> dict[str, tuple[int, int]]:
    """Return every file of a store with its size and time of change."""
    return {
        str(path.relative_to(store)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }
