"""The small interfaces behind which providers stand.

Each must fit one Linux host as well as a cloud: names are opaque, calls take many at a time, and
what takes long is asked for first and waited for afterwards with a deadline. Every call that
changes something sets an absolute state, so that repeating it after a crash is harmless. A
provider translates its own exceptions into `toolkit.errors`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from toolkit.model import (
    Counters,
    Image,
    LaunchOrder,
    Machine,
    Release,
    Secret,
    SmokeCheck,
    Snapshot,
    Target,
)


class ImageCatalog(Protocol):
    """Which sealed images and releases there are."""

    def image(self, digest: str) -> Image:
        """Return an image by its digest or a unique beginning of it.

        Raises:
            NotFound: There is none, or more than one.
        """

    def images(self) -> Sequence[Image]:
        """Return every image, newest first."""

    def release(self, release_id: str) -> Release:
        """Return a release by id.

        Raises:
            NotFound: There is none.
        """

    def releases(self) -> Sequence[Release]:
        """Return every release, newest first."""

    def release_of(self, digest: str) -> Release | None:
        """Return the release that an image was baked for, the earliest that holds it."""


class Network(Protocol):
    """The network of one environment."""

    def up(self) -> None:
        """Make the network; harmless when it is there."""

    def down(self) -> None:
        """Remove the network and whatever is attached to it."""

    def is_up(self) -> bool:
        """Whether it is there."""


class Balancer(Protocol):
    """The load balancer of one environment, which holds all its pools."""

    def ensure(self) -> None:
        """Have it run with the environment's configuration and newest credentials.

        Targets keep their states, and no connection notices other credentials.

        Raises:
            ConfigurationError: An address that it is to listen on is taken.
        """

    def stop(self) -> None:
        """End it and remove what belongs to it; harmless when it does not run."""

    def is_running(self) -> bool:
        """Whether it runs."""

    def is_current(self) -> bool:
        """Whether it has the newest credentials of its own that were seen here."""

    def renew(self) -> None:
        """Take up credentials of its own that have changed; no connection notices."""


class MachineProvider(Protocol):
    """Starts and ends machines in one environment."""

    def publish(self, images: Collection[str]) -> None:
        """Bring images to where machines run from them; returns when they are there."""

    def launch(self, orders: Sequence[LaunchOrder]) -> None:
        """Begin to start machines; a name that runs already is left alone."""

    def await_running(self, names: Collection[str], *, deadline_s: float) -> None:
        """Wait until every machine's init system reports that it is up.

        Raises:
            DeadlineExceeded: One did not come up in time.
            OutsideError: One ended; the message carries the end of its console output.
        """

    def machines(self) -> Sequence[Machine]:
        """Return every machine of the environment, by live observation."""

    def snapshot(self, role: str, label: str) -> Sequence[str]:
        """Copy the volumes of a role, whose machine is stopped, under a label; return the copies.

        A copy that exists under the label is left as it is.
        """

    def snapshots(self) -> Sequence[Snapshot]:
        """Return the copies that there are, of all roles."""

    def remove_snapshots(self, snapshots: Collection[Snapshot]) -> None:
        """Remove copies; such as are gone already are fine."""

    def destroy(self, names: Collection[str], *, deadline_s: float) -> None:
        """Stop machines and remove everything of theirs except volumes; unknown names are fine."""

    def renew(self, order: LaunchOrder, program: Sequence[str]) -> None:
        """Give a running machine the credentials of `order`, then run a program of its image.

        Raises:
            OutsideError: It does not run, or the program failed.
        """


class Pool(Protocol):
    """The load-balancer group of one role in one environment. Targets are IP addresses."""

    def targets(self) -> Sequence[Target]:
        """Return the places in use, as the balancer reports them.

        One that an operator has put into maintenance is in use, and its machine has no place to
        anything else here but `register`, which gives it that one again, and `deregister`.
        """

    def register(self, addresses: Collection[str]) -> None:
        """Give each address a place that is health-checked and gets no requests.

        Raises:
            OutsideError: There are fewer free places than addresses.
        """

    def await_healthy(self, addresses: Collection[str], *, deadline_s: float) -> None:
        """Wait until the balancer's own check of every address passes.

        Raises:
            Unhealthy: Some did not pass in time; the message says what the check saw.
        """

    def weigh(self, addresses: Collection[str], percent: float) -> None:
        """Set the addresses' share of new requests against that of others, which have 100."""

    def admit(self, addresses: Collection[str]) -> None:
        """Let new requests reach the addresses, with the weight that they have."""

    def counters(self) -> Mapping[str, Counters]:
        """Return what was counted for each address in use, by address."""

    def count_anew(self) -> None:
        """Forget what was counted so far, also for response times, which are averages."""

    def drain(self, addresses: Collection[str]) -> None:
        """Let no new request reach the addresses; running ones go on."""

    def await_drained(self, addresses: Collection[str], *, deadline_s: float) -> bool:
        """Wait until the balancer carries nothing for the addresses.

        Returns:
            Whether that came true before the deadline.
        """

    def deregister(self, addresses: Collection[str]) -> None:
        """Free the places of the addresses; unknown addresses are fine."""


class SecretSource(Protocol):
    """Holds the secrets of environments and roles."""

    def secrets(self, environment: str, role: str) -> Mapping[str, Secret]:
        """Return everything granted to a role in an environment: credential name to secret.

        Raises:
            ConfigurationError: A value is missing, or does not belong there.
        """


class SmokeRunner(Protocol):
    """Runs our own tests against machines."""

    def need_tests(self, role: str) -> None:
        """Refuse a role that has no tests of its own.

        Raises:
            ConfigurationError: It has none.
        """

    def test(self, machines: Sequence[Machine], *, deadline_s: float) -> Iterable[SmokeCheck]:
        """Test every machine, several at once, and return every single outcome.

        Raises:
            SmokeTestsFailed: The tests themselves could not run.
        """


class HookRunner(Protocol):
    """Runs a project's own playbooks in the course of a roll."""

    def run(self, playbook: str, machine: str) -> None:
        """Run a playbook of the project against a machine.

        Raises:
            ToolkitError: A task failed.
            ConfigurationError: There is no such playbook.
        """
