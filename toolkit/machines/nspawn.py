"""The local provider: machines are systemd-nspawn containers on this host."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from toolkit import shell
from toolkit.errors import OutsideError
from toolkit.machines import cgroups, evidence, renewal
from toolkit.machines.container import Container, ContainerOrder
from toolkit.machines.evidence import Subject
from toolkit.model import Image, LaunchOrder, Machine, MachineState, Snapshot
from toolkit.network.names import namespace_path
from toolkit.network.namespaces import EnvironmentNetwork
from toolkit.state import (
    State,
    make_durable,
    make_private,
    sync_directory,
    write_atomically,
)

SNAPSHOT_TIMEOUT_S = 600.0
"""For all volumes of a role: the lease is not renewed meanwhile, and must outlast it."""

RENEW_TIMEOUT_S = 60.0


class NspawnProvider:
    """Machines of one environment.

    A machine leaves these traces, all under its name: a description and a pid file in the
    runtime directory, a control group, a network namespace. Any of them is enough to find and
    remove it.

    Args:
        environment: Name of the environment.
        state: Where its files are.
        network: The environment's network; it is up.
        find_image: Returns an image by digest.
        layer_path: Returns the sealed file of a layer by digest.
    """

    def __init__(
        self,
        environment: str,
        *,
        state: State,
        network: EnvironmentNetwork,
        find_image: Callable[[str], Image],
        layer_path: Callable[[str], Path],
    ) -> None:
        self._environment = environment
        self._state = state
        self._network = network
        self._find_image = find_image
        self._layer_path = layer_path
        self._containers: dict[str, Container] = {}

    def publish(self, images: Collection[str]) -> None:
        """Check that every layer is on this host; there is nothing to bring.

        Raises:
            OutsideError: A layer's file is missing or has another size than was sealed.
        """
        for digest in images:
            for layer in self._find_image(digest).layers:
                path = self._layer_path(layer.digest)
                if not path.is_file() or path.stat().st_size != layer.size_bytes:
                    raise OutsideError(
                        f"layer {layer.name} of image {digest[:19]} is damaged or missing",
                        hint="bake again: what is missing is built",
                    )

    def launch(self, orders: Sequence[LaunchOrder]) -> None:
        """Begin to start machines; one that runs already is left alone.

        Raises:
            OutsideError: Another one runs with the volumes that a machine is to have.
        """
        absent = [one for one in orders if self._container(one.name).process is None]
        for order in absent:
            self._need_volumes(order)
        make_private(self._directory)
        for order in absent:
            if self._exists(order.name):
                self.destroy([order.name], deadline_s=0)
            container = self._container(order.name)
            description = {
                "role": order.role,
                "image": order.image,
                "address": order.address,
                "since": time.time(),
            }
            write_atomically(self._description(order.name), json.dumps(description).encode())
            self._network.attach(self.namespace(order.name), order.address)
            container.start(self._container_order(order))

    def await_running(self, names: Collection[str], *, deadline_s: float) -> None:
        """Wait until every machine's systemd reports that it is up."""
        deadline = time.monotonic() + deadline_s
        for name in names:
            remaining = max(deadline - time.monotonic(), 0.1)
            self._container(name).await_ready(deadline_s=remaining)

    def machines(self) -> Sequence[Machine]:
        """Return every machine that left a trace, as it is now."""
        return [self._observe(name) for name in self._names()]

    def snapshot(self, role: str, label: str) -> Sequence[str]:
        """Copy the volumes of a role, sharing blocks where the file system can."""
        copies = []
        deadline = time.monotonic() + SNAPSHOT_TIMEOUT_S
        for volume in sorted(self._state.volumes(self._environment).glob(f"{role}-*")):
            target = self._snapshots / f"{volume.name}-{label}"
            if not target.exists():
                partial = target.with_name(f".{target.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                make_durable(partial.parent)
                commands: list[list[str | Path]] = [
                    ["cp", "--archive", "--reflink=auto", volume, partial],
                    # A copy that has its name is whole, also after a power failure.
                    ["sync", "--file-system", partial],
                ]
                for argv in commands:
                    shell.run(
                        argv,
                        env=shell.environment(),
                        timeout_s=max(deadline - time.monotonic(), 0.1),
                    )
                partial.rename(target)
                sync_directory(target.parent)
            copies.append(str(target))
        return copies

    def snapshots(self) -> Sequence[Snapshot]:
        """Return the copies of volumes; what was not copied for a roll is not ours."""
        found = []
        for path in sorted(self._snapshots.glob("*-roll-*")):
            volume, _, number = path.name.rpartition("-roll-")
            if not path.name.startswith("."):
                found.append(Snapshot(volume, f"roll-{number}"))
        return found

    def remove_snapshots(self, snapshots: Collection[Snapshot]) -> None:
        """Remove copies of volumes; half of one never passes for a whole."""
        for one in snapshots:
            path = self._snapshots / one.name
            partial = path.with_name(f".{path.name}.partial")
            if path.exists():
                path.rename(partial)
            shutil.rmtree(partial, ignore_errors=True)

    def destroy(self, names: Collection[str], *, deadline_s: float) -> None:
        """Power machines off, all at once, and remove everything of theirs except volumes."""
        existing = [name for name in names if self._exists(name)]
        containers = [self._container(name) for name in existing]
        for container in containers:
            container.request_stop()
        deadline = time.monotonic() + deadline_s
        for name, container in zip(existing, containers, strict=True):
            container.remove(deadline_s=max(deadline - time.monotonic(), 0.0))
            self._network.detach(self.namespace(name))
            self._description(name).unlink(missing_ok=True)
            self._containers.pop(name, None)

    def renew(self, order: LaunchOrder, program: Sequence[str]) -> None:
        """Replace credentials of a running machine in its memory, then run a program in it."""
        container = self._container(order.name)
        container.run(
            [*renewal.ARGV, renewal.PROGRAM],
            timeout_s=RENEW_TIMEOUT_S,
            stdin=renewal.order(order.credentials),
        )
        container.run(program, timeout_s=RENEW_TIMEOUT_S)

    def evidence(self, machine: Machine, *, key: bytes) -> Subject | None:
        """Gather what a machine shows; None for one that does not run.

        Args:
            machine: Which one.
            key: Of the digests that stand for the credentials' contents.
        """
        container = self._container(machine.name)
        init_pid = container.init_pid
        if init_pid is None:
            return None
        spool = evidence.Spool(machine.name)
        evidence.gather(
            spool,
            init_pid=init_pid,
            group=f"{self._group}/{machine.name}",
            console=container.console,
        )
        volumes = self._state.volumes(self._environment).glob(f"{machine.role}-*")
        layers = self._find_image(machine.image).layers
        return Subject(
            machine.name,
            machine.role,
            spool,
            credentials=evidence.digests(init_pid, key),
            volumes=tuple(
                path
                for volume in volumes
                for path in sorted(volume.rglob("*"))
                if path.is_file() and not path.is_symlink()
            ),
            layers={layer.name: self._layer_path(layer.digest) for layer in layers},
        )

    def run(
        self, name: str, argv: Sequence[str], *, timeout_s: float, is_checked: bool = True
    ) -> shell.Completed:
        """Run a program inside a machine; see `toolkit.shell.run`."""
        return self._container(name).run(argv, timeout_s=timeout_s, is_checked=is_checked)

    def init_pid(self, name: str) -> int | None:
        """Return the host's process id of a machine's init, or None when it does not run."""
        return self._container(name).init_pid

    def namespace(self, name: str) -> str:
        """Return the network namespace of a machine."""
        return f"{self._state.namespace(self._environment)}.{name}"

    def sweep(self) -> None:
        """Remove files that a killed command was still writing; nobody else is at work here."""
        for path in self._directory.glob(".*"):
            path.unlink(missing_ok=True)
        for partial in self._snapshots.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def _directory(self) -> Path:
        return self._state.runtime / self._environment / "machines"

    @property
    def _snapshots(self) -> Path:
        return self._state.snapshots(self._environment)

    @property
    def _group(self) -> str:
        return f"toolkit-{self._state.id}/{self._environment}"

    def _description(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _names(self) -> list[str]:
        described = {path.stem for path in self._directory.glob("*.json")}
        prefix = self.namespace("")
        connected = {one.removeprefix(prefix) for one in self._network.machine_namespaces()}
        return sorted(described.union(connected, cgroups.groups_below(self._group)))

    def _exists(self, name: str) -> bool:
        return (
            self._description(name).exists()
            or name in cgroups.groups_below(self._group)
            or self.namespace(name) in self._network.machine_namespaces()
        )

    def _container(self, name: str) -> Container:
        if name not in self._containers:
            self._containers[name] = Container(
                cgroup=f"{self._group}/{name}", files=self._directory / name
            )
        return self._containers[name]

    def _observe(self, name: str) -> Machine:
        try:
            description: Mapping[str, str | float] = json.loads(
                self._description(name).read_bytes()
            )
        except (OSError, ValueError):
            description = {}
        container = self._container(name)
        if container.process is None:
            state = MachineState.STOPPED
        else:
            state = MachineState.RUNNING if container.init_pid else MachineState.STARTING
        return Machine(
            name=name,
            environment=self._environment,
            role=str(description.get("role", "")),
            image=str(description.get("image", "")),
            address=str(description.get("address", "")),
            state=state,
            since=float(description.get("since", 0.0)),
        )

    def _need_volumes(self, order: LaunchOrder) -> None:
        """Refuse a second owner of volumes, who would destroy what the first one writes."""
        owners = [
            one.name
            for one in (self.machines() if order.volumes else ())
            if one.role == order.role and one.state is not MachineState.STOPPED
        ]
        if owners:
            raise OutsideError(
                f"{order.name} does not start: {', '.join(owners)} runs with the volumes of "
                f"{order.role}"
            )

    def _container_order(self, order: LaunchOrder) -> ContainerOrder:
        arguments = [f"--network-namespace-path={namespace_path(self.namespace(order.name))}"]
        volumes = self._state.volumes(self._environment)
        for volume, mountpoint in order.volumes.items():
            path = make_durable(volumes / f"{order.role}-{volume}")
            arguments.append(f"--bind={path}:{mountpoint}")
        return ContainerOrder(
            name=order.name.replace("_", "-"),  # a host name has no underscore
            layers=[self._layer_path(one.digest) for one in self._find_image(order.image).layers],
            mountpoint=self._state.runtime / self._environment / "mnt",
            cgroup=f"{self._group}/{order.name}",
            arguments=arguments,
            credentials=order.credentials,
        )
