"""Ten rolls of four machines leave memory, descriptors, processes and disk where they were."""

import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from bench.echo import define
from tests.support.siege import Siege
from tests.support.site import BakedEcho, EchoSite
from tests.support.traces import groups, leftovers, loop_devices, mount_points, namespaces
from toolkit.machines import cgroups
from toolkit.state import RAM_ROOT, RUNTIME_ROOT

pytestmark = pytest.mark.host

ROLLS = 10
MACHINES = 4
MEMORY_SHARE = 1.25
"""Of what it was before: machines of the same images differ by some pages."""
LEDGER_LIMIT_BYTES = 200_000
"""For one roll: measured are 20 KB."""


@dataclass(frozen=True)
class Footprint:
    """What an environment takes of the host.

    Attributes:
        processes: Of machines and balancer.
        groups: Control groups.
        namespaces: Named network namespaces.
        mounts: In the host's own mount namespace.
        loops: Loop devices over this site's layers.
        ports: Links in the environment's namespace.
        nspawn: What systemd-nspawn keeps on the host.
        files: In runtime and RAM directory and the state directory.
        balancer_fds: Open files of the balancer.
        balancer_kib: Its memory.
        machines_kib: Resident memory of all processes in machines.
        disk_bytes: Of the state directory without the ledger, runtime and RAM directory.
        ledger_bytes: Of the ledger.
    """

    processes: int
    groups: int
    namespaces: int
    mounts: int
    loops: int
    ports: int
    nspawn: int
    files: int
    balancer_fds: int
    balancer_kib: int
    machines_kib: int
    disk_bytes: int
    ledger_bytes: int


def resident_kib(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def measure(site: EchoSite) -> Footprint:
    state_id = site.state_id
    with site.opened() as opened:
        balancer = opened.balancer._process.processes()
    machines = list(set(cgroups.processes(f"toolkit-{state_id}/{site.environment}")))
    tops = [site.state, RUNTIME_ROOT / state_id, RAM_ROOT / f"toolkit-{state_id}"]
    files = [path for top in tops for path in top.rglob("*") if path.is_file()]
    ledger = [path for path in files if path.name.startswith("ledger.db")]
    # What has not been brought into the database file yet comes and goes.
    with_size = {path: path.stat().st_size for path in files if path not in ledger}
    links = subprocess.run(
        ["ip", "-n", f"tk{state_id}-{site.environment}", "-o", "link"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    logs = sum(size for path, size in with_size.items() if path.suffix == ".log")
    return Footprint(
        processes=len(balancer) + len(machines),
        groups=len(groups(state_id)),
        namespaces=len(namespaces(state_id)),
        mounts=len(mount_points(site.state, state_id)),
        loops=len(loop_devices(site.state)),
        ports=len(links.splitlines()),
        nspawn=len(list(Path("/run/systemd/nspawn").rglob(f"*{state_id}*"))),
        files=len(with_size),
        balancer_fds=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in balancer),
        balancer_kib=resident_kib(balancer),
        machines_kib=resident_kib(machines),
        disk_bytes=sum(with_size.values()) - logs,
        ledger_bytes=(site.state / "ledger.db").stat().st_size,
    )


@pytest.fixture
def site(baked_echo: BakedEcho, tmp_path: Path) -> Iterator[EchoSite]:
    """Layers are copies: a loop device is then this site's own and nobody else's."""
    site = EchoSite(tmp_path / "s", baked_echo, is_linked=False)
    yield site
    site.remove()


def test_ten_rolls_leave_no_trace(site: EchoSite, record_property):
    define(site.project, echo={"machines": MACHINES, "strategy": "blue-green"})
    site.start("v1")
    siege = Siege(site)

    def roll() -> None:
        result = site.toolkit.result("roll", site.environment, "echo", "--image", siege.other())
        assert result["outcome"] == "rolled"

    roll()
    footprints = [measure(site)]
    for _ in range(ROLLS):
        roll()
        footprints.append(measure(site))
    first, middle, last = (asdict(footprints[number]) for number in (0, ROLLS // 2, ROLLS))
    print(f"before  {first}\nafter   {last}")
    for name in ("groups", "namespaces", "mounts", "loops", "ports", "nspawn", "files"):
        assert last[name] == first[name], (name, first, last)
    # A machine may be caught while it runs something for a moment.
    assert last["processes"] <= first["processes"] + MACHINES
    assert last["balancer_fds"] <= first["balancer_fds"] + 4
    for name in ("balancer_kib", "machines_kib"):
        assert last[name] <= first[name] * MEMORY_SHARE, (name, first, last)
    assert last["disk_bytes"] <= first["disk_bytes"] + 4096
    # The ledger keeps everything: as much in the second half as in the first.
    sizes = [one["ledger_bytes"] for one in (first, middle, last)]
    halves = [sizes[1] - sizes[0], sizes[2] - sizes[1]]
    record_property("ledger_bytes_per_roll", sum(halves) // ROLLS)
    print(f"the ledger grows by {sum(halves) // ROLLS} bytes a roll")
    assert halves[1] <= 1.5 * halves[0] + 65536
    assert sum(halves) / ROLLS < LEDGER_LIMIT_BYTES
    assert leftovers(site.state, site.state_id, site.machines(), site.environment) == []
    siege.check_settled(image=siege.current(), capacity=MACHINES)
