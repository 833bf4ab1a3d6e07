"""Hand-written providers that keep everything in memory, and the world that they share.

`FakePool` passes `tests/contract/pool.py`, as the real balancer's pool does. What a provider does
happens at once: time passes only where a test lets it.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.errors import (
    ConfigurationError,
    NotFound,
    OutsideError,
    ToolkitError,
    Unhealthy,
)
from toolkit.ledger.ledger import Ledger
from toolkit.model import (
    Counters,
    Image,
    LaunchOrder,
    Layer,
    Machine,
    MachineState,
    Release,
    Secret,
    SmokeCheck,
    Snapshot,
    Target,
    TargetState,
    release_of,
)
from toolkit.pools.local import LocalBalancer
from toolkit.progress import Silence
from toolkit.project.model import (
    BaseSpec,
    Canary,
    Deployment,
    Environment,
    KeySetting,
    LayerSpec,
    Project,
    RoleSpec,
    Soak,
    Timeouts,
)
from toolkit.roll.site import Site

NOWHERE = Path("/nowhere")
NETWORK = ipaddress.IPv4Network("10.9.0.0/26")

Moment = Callable[[str], None]
"""Called with a name just before and just after whatever a provider changes."""


def nothing(_name: str) -> None:
    """Do nothing at a moment."""


@dataclass
class Place:
    """A place of a pool that is in use."""

    address: str
    is_ready: bool = False
    is_held: bool = False
    is_healthy: bool = False
    weight: float = 100.0
    sessions: int = 0
    requests: int = 0
    errors: int = 0
    turn: float = 0.0


@dataclass
class World:
    """Which addresses answer, what every pool has heard, who has passed.

    Attributes:
        answering: Addresses whose service answers.
        tested: Addresses whose machine has passed its smoke tests since it was started.
        breaches: What must never happen, and did.
        error_share: Address to the share of its requests that fail.
        response_ms: Address to the time it takes to answer; 10 if not here.
    """

    answering: set[str] = field(default_factory=set)
    tested: set[str] = field(default_factory=set)
    breaches: list[str] = field(default_factory=list)
    error_share: dict[str, float] = field(default_factory=dict)
    response_ms: dict[str, float] = field(default_factory=dict)
    at: Moment = nothing

    @contextmanager
    def change(self, name: str) -> Iterator[None]:
        """Have something happen between two moments."""
        self.at(f"{name} before")
        yield
        self.at(f"{name} after")


def _state(place: Place) -> TargetState:
    if place.is_held:
        return TargetState.MAINTENANCE
    return TargetState.READY if place.is_ready else TargetState.DRAINING


class FakePool:
    """A `toolkit.ports.Pool` in memory.

    Args:
        world: Which machines answer.
        places: How many there are.
    """

    def __init__(self, world: World, *, places: int) -> None:
        self.world = world
        self.is_reachable = True
        self.places: list[Place | None] = [None] * places

    def targets(self) -> Sequence[Target]:
        self._need_reachable()
        # What the last check has seen: who has failed since is found out with the next.
        seen = [
            Target(
                slot=f"slot{number}",
                address=place.address,
                state=_state(place),
                is_healthy=place.is_healthy,
                sessions=place.sessions,
                percent=place.weight,
            )
            for number, place in enumerate(self.places)
            if place is not None
        ]
        self._check()
        return seen

    def register(self, addresses: Collection[str]) -> None:
        self._need_reachable()
        new = [a for a in dict.fromkeys(addresses) if a not in self._by_address()]
        # Those held for somebody else last.
        free = sorted(
            (n for n, place in enumerate(self.places) if place is None or place.is_held),
            key=lambda n: self.places[n] is not None,
        )
        if len(new) > len(free):
            raise OutsideError(f"{len(free)} places are free, {len(new)} are needed")
        self._need_tested(new, "registered")
        own = {p.address: n for n in free if (p := self.places[n]) and p.address in new}
        rest = (number for number in free if number not in own.values())
        for address in new:
            number = own[address] if address in own else next(rest)
            with self.world.change("register"):
                self.places[number] = Place(address)

    def await_healthy(self, addresses: Collection[str], *, deadline_s: float) -> None:
        self._need_reachable()
        if deadline_s > 0:
            self._check()
        bad = [place.address for place in self._require(addresses) if not place.is_healthy]
        if bad:
            raise Unhealthy(f"{', '.join(bad)} not healthy after {deadline_s:g} s", addresses=bad)

    def weigh(self, addresses: Collection[str], percent: float) -> None:
        self._need_reachable()
        for place in self._require(addresses):
            with self.world.change("weigh"):
                place.weight = percent

    def admit(self, addresses: Collection[str]) -> None:
        self._need_reachable()
        self._need_tested(addresses, "admitted")
        for place in self._require(addresses):
            with self.world.change("admit"):
                place.is_ready = True

    def counters(self) -> Mapping[str, Counters]:
        self._need_reachable()
        return {
            p.address: Counters(
                p.requests, p.errors, self.world.response_ms.get(p.address, 10.0) * bool(p.requests)
            )
            for p in self._used()
            if not p.is_held
        }

    def count_anew(self) -> None:
        self._need_reachable()
        for place in self._used():
            place.requests = place.errors = 0

    def drain(self, addresses: Collection[str]) -> None:
        self._need_reachable()
        for place in self._used():
            if place.address in addresses:
                with self.world.change("drain"):
                    place.is_ready = False

    def await_drained(self, addresses: Collection[str], *, deadline_s: float) -> bool:
        self._need_reachable()
        return not any(p.sessions for p in self._used() if p.address in addresses)

    def deregister(self, addresses: Collection[str]) -> None:
        self._need_reachable()
        for number, place in enumerate(self.places):
            if place is not None and place.address in addresses:
                with self.world.change("deregister"):
                    self.places[number] = None

    def declare(self, places: int) -> None:
        """Have so many places from now on."""
        with self.world.change("reload"):
            self.places = (self.places + [None] * places)[:places]

    def hold(self, addresses: Collection[str]) -> None:
        """Put places into maintenance, as an operator does by hand."""
        for place in self._require(addresses):
            place.is_ready, place.is_held = False, True

    def serving(self) -> set[str]:
        """Return the addresses that get requests and answer them."""
        return {p.address for p in self._used() if p.is_ready and self._answers(p)}

    def send(self) -> Place | None:
        """Send a request as the balancer would; return where it went."""
        ready = [p for p in self._used() if p.is_ready and p.is_healthy and self._answers(p)]
        if not ready:
            return None
        place = min(ready, key=lambda one: (one.turn, one.address))
        place.turn += 1.0 / place.weight
        place.requests += 1
        share = self.world.error_share.get(place.address, 0.0)
        place.errors = max(place.errors, int(place.requests * share))
        return place

    def _check(self) -> None:
        for place in self._used():
            place.is_healthy = self._answers(place)

    def _answers(self, place: Place) -> bool:
        return place.address in self.world.answering

    def _used(self) -> list[Place]:
        return [place for place in self.places if place is not None]

    def _by_address(self) -> dict[str, Place]:
        return {place.address: place for place in self._used() if not place.is_held}

    def _require(self, addresses: Collection[str]) -> list[Place]:
        known = self._by_address()
        unknown = set(addresses) - set(known)
        if unknown:
            raise OutsideError(f"no place for {', '.join(sorted(unknown))}")
        return [known[address] for address in dict.fromkeys(addresses)]

    def _need_reachable(self) -> None:
        if not self.is_reachable:
            raise OutsideError("the balancer does not answer")

    def _need_tested(self, addresses: Collection[str], what: str) -> None:
        untested = set(addresses) - self.world.tested
        if untested:
            self.world.breaches.append(f"{what} before its tests: {sorted(untested)}")


class FakeProvider:
    """A `toolkit.ports.MachineProvider` in memory."""

    def __init__(self, world: World, environment: str) -> None:
        self._world = world
        self._environment = environment
        self.found: dict[str, Machine] = {}
        self.is_starting_broken = False
        self.copies: list[str] = []

    def publish(self, images: Collection[str]) -> None:
        pass

    def launch(self, orders: Sequence[LaunchOrder]) -> None:
        for order in orders:
            there = self.found.get(order.name)
            if there is not None and there.state is not MachineState.STOPPED:
                continue
            taken = [m.name for m in self.found.values() if m.address == order.address]
            if taken not in ([], [order.name]):
                raise OutsideError(f"{order.address} is in use by {taken}")
            owners = {
                one.name
                for one in self.found.values()
                if one.role == order.role and one.state is not MachineState.STOPPED
            }
            if order.volumes and owners:
                self._world.breaches.append(f"the volumes of {order.role} have two owners")
                raise OutsideError(f"{owners} runs with the volumes of {order.role}")
            with self._world.change("launch"):
                self._world.tested.discard(order.address)
                self.found[order.name] = Machine(
                    order.name, self._environment, order.role, order.image, order.address,
                    MachineState.RUNNING, 0.0,
                )  # fmt: skip
                if not self.is_starting_broken:
                    self._world.answering.add(order.address)
                else:
                    self.end(order.name)

    def await_running(self, names: Collection[str], *, deadline_s: float) -> None:
        for name in names:
            if name not in self.found or self.found[name].state is not MachineState.RUNNING:
                raise OutsideError(f"{name} ended while starting")

    def machines(self) -> Sequence[Machine]:
        return list(self.found.values())

    def snapshot(self, role: str, label: str) -> Sequence[str]:
        if f"{role}-{label}" not in self.copies:
            self.copies.append(f"{role}-{label}")
        return [f"{role}-{label}"]

    def snapshots(self) -> Sequence[Snapshot]:
        found = [name.rpartition("-roll-") for name in self.copies]
        return [Snapshot(volume, f"roll-{number}") for volume, _, number in found]

    def remove_snapshots(self, snapshots: Collection[Snapshot]) -> None:
        gone = {one.name for one in snapshots}
        with self._world.change("remove snapshots"):
            self.copies = [name for name in self.copies if name not in gone]

    def destroy(self, names: Collection[str], *, deadline_s: float) -> None:
        for name in names:
            if name in self.found:
                with self._world.change("destroy"):
                    self.end(name)
                    del self.found[name]

    def end(self, name: str) -> None:
        """Let a machine end by itself."""
        machine = self.found[name]
        self.found[name] = replace(machine, state=MachineState.STOPPED)
        self._world.answering.discard(machine.address)


class FakeSmoke:
    """A `toolkit.ports.SmokeRunner` whose verdict a test chooses."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.bad_images: set[str] = set()
        self.has_tests = True

    def need_tests(self, role: str) -> None:
        if not self.has_tests:
            raise ConfigurationError(f"role {role} has no smoke tests")

    def test(self, machines: Sequence[Machine], *, deadline_s: float) -> list[SmokeCheck]:
        checks = []
        for machine in machines:
            is_good = (
                machine.state is MachineState.RUNNING
                and machine.image not in self.bad_images
                and machine.address in self._world.answering
            )
            message = "" if is_good else "E   it answers 500"
            checks.append(SmokeCheck(machine.name, "test_it", is_good, 0.0, message))
            if is_good:
                self._world.tested.add(machine.address)
        return checks


class FakeHooks:
    """A `toolkit.ports.HookRunner` that notes what it ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.is_failing = False

    def run(self, playbook: str, machine: str) -> None:
        if self.is_failing:
            raise ToolkitError(f"hook {playbook} failed on {machine}")
        self.ran.append((playbook, machine))


class FakeSwitch:
    """A network or a balancer that is there or not."""

    def __init__(self) -> None:
        self.is_on = True
        self.has_newest = True
        self.renewals = 0

    def up(self) -> None:
        self.is_on = True

    def down(self) -> None:
        self.is_on = False

    def is_up(self) -> bool:
        return self.is_on

    def ensure(self) -> None:
        self.is_on = True

    def stop(self) -> None:
        self.is_on = False

    def is_running(self) -> bool:
        return self.is_on

    def is_current(self) -> bool:
        return self.has_newest

    def renew(self) -> None:
        self.renewals += 1


class FakeBalancer(FakeSwitch):
    """A balancer whose pool has as many places as the local one would declare.

    A reload drops whoever has a place that is not declared any more, as HAProxy does.
    """

    def __init__(self, pool: "FakePool", deployment: Deployment) -> None:
        super().__init__()
        self._pool = pool
        config = LocalBalancer(
            make_project(deployment),
            make_environment(deployment),
            namespace="test",
            runtime=NOWHERE / "balancer",
            ram=NOWHERE,
            edge_secrets=dict,
            newest_version=lambda: None,
        ).config
        self.places = config.pools[0].slots

    def ensure(self) -> None:
        super().ensure()
        self._pool.declare(self.places)

    def stop(self) -> None:
        super().stop()
        self._pool.declare(0)


class FakeSecrets:
    """Grants nothing to anybody."""

    def secrets(self, environment: str, role: str) -> Mapping[str, Secret]:
        return {}


class FakeImages:
    """A `toolkit.ports.ImageCatalog` of one role in several versions, newest last."""

    def __init__(self, role: str, count: int) -> None:
        self._images = [make_image(role, number) for number in range(1, count + 1)]
        self._releases = [
            Release(f"r{number}", "shop", "c" * 40, False, {role: image.digest}, float(number))
            for number, image in enumerate(self._images, start=1)
        ]

    def image(self, digest: str) -> Image:
        for image in self._images:
            if image.digest == digest:
                return image
        raise NotFound(digest)

    def images(self) -> Sequence[Image]:
        return self._images[::-1]

    def forget(self, digest: str) -> None:
        """Lose an image and its releases."""
        self._images = [one for one in self._images if one.digest != digest]
        self._releases = [one for one in self._releases if digest not in one.images.values()]

    def release(self, release_id: str) -> Release:
        for one in self._releases:
            if one.id == release_id:
                return one
        raise NotFound(release_id)

    def releases(self) -> Sequence[Release]:
        return self._releases[::-1]

    def release_of(self, digest: str) -> Release | None:
        return release_of(digest, self.releases())


def make_image(role: str, number: int, *layers: str) -> Image:
    return Image(
        digest=f"sha256:{number:064x}",
        role=role,
        layers=tuple(Layer(name, f"sha256:{name}", 1) for name in layers),
        parent=None,
        commit="c" * 40,
        is_dirty=False,
        created=float(number),
    )


def make_role(name: str = "app", *, is_stateful: bool = False) -> RoleSpec:
    return RoleSpec(
        name=name,
        layers=(LayerSpec(name, (), {}),),
        port=8000,
        protocol="http",
        health="/healthz",
        uses=(),
        volumes={"data": "/data"} if is_stateful else {},
        before_hook="before.yml",
        after_hook="after.yml",
    )


def make_deployment(role: str = "app", **settings: object) -> Deployment:
    values: dict[str, object] = {
        "role": role,
        "machines": 2,
        "public": None,
        "strategy": "rolling",
        "batch": 1,
        "canary": Canary(1, 10, 0.0),
        "soak": Soak(0.0, 1.0, 50, 0.0),
        "keep_warm_s": 0.0,
        "has_snapshot": False,
        "timeouts": Timeouts(60.0, 60.0, 60.0, 60.0, 60.0),
    }
    return Deployment(**{**values, **settings})


@dataclass(frozen=True)
class FakeSite:
    """A `toolkit.roll.site.Site` of one role, with its parts under the names of what they are."""

    world: World
    pool: FakePool
    provider: FakeProvider
    smoke: FakeSmoke
    hooks: FakeHooks
    balancer: FakeBalancer
    site: Site

    def with_deployment(self, deployment: Deployment) -> "FakeSite":
        """Return the same world under another definition of the environment."""
        environment = replace(self.site.environment, deployments={deployment.role: deployment})
        balancer = FakeBalancer(self.pool, deployment)
        balancer.is_on = self.balancer.is_on
        site = replace(self.site, environment=environment, balancer=balancer)
        return replace(self, balancer=balancer, site=site)


def make_project(deployment: Deployment) -> Project:
    spec = make_role(deployment.role, is_stateful=deployment.strategy == "stateful")
    base = BaseSpec("bookworm", None, ())
    return Project(NOWHERE, "shop", "/src", base, {deployment.role: spec})


def make_environment(
    deployment: Deployment, network: ipaddress.IPv4Network = NETWORK
) -> Environment:
    keys = KeySetting(NOWHERE, None)
    return Environment("test", NOWHERE, network, keys, {deployment.role: deployment})


def make_site(ledger: Ledger, deployment: Deployment, *, versions: int = 3) -> FakeSite:
    """Put an environment of one role together; the ledger has it up."""
    role = deployment.role
    world = World()
    pool = FakePool(world, places=0)
    provider, smoke = FakeProvider(world, "test"), FakeSmoke(world)
    hooks, balancer = FakeHooks(), FakeBalancer(pool, deployment)
    balancer.ensure()
    site = Site(
        project=make_project(deployment),
        environment=make_environment(deployment),
        network=FakeSwitch(),
        balancer=balancer,
        pools={role: pool},
        provider=provider,
        smoke=smoke,
        hooks=hooks,
        secrets=FakeSecrets(),
        images=FakeImages(role, versions),
        ledger=ledger,
        progress=Silence(),
    )
    if not ledger.is_up("test"):
        ledger.set_up("test", is_up=True)
    return FakeSite(world, pool, provider, smoke, hooks, balancer, site)
