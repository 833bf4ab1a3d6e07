"""Build machines: apply one Ansible role on top of sealed layers."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.ansible import runner
from toolkit.ansible.hooks import machine_variables
from toolkit.bake import watch
from toolkit.bake.base import COMPILE
from toolkit.bake.leak_rules import Finding
from toolkit.bake.seal import clean, compiled_directories
from toolkit.errors import BakeFailed, ConfigurationError
from toolkit.machines import cgroups
from toolkit.machines.container import Container, ContainerOrder
from toolkit.progress import Progress
from toolkit.project.model import LayerSpec, Project
from toolkit.project.source import Checkout
from toolkit.state import State, make_private

BOOT_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
APPLY_TIMEOUT_S = 1800.0
FINISH_TIMEOUT_S = 300.0

SOURCE_INSIDE = "/run/toolkit/source"
BUILD_HOST = "build"

BUILD = "@build"
"""Names of control groups begin with it, and a directory has it: as no environment's name does."""

HOST_RESOLVER = Path("/etc/resolv.conf")
HOST_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

POLICY = b"#!/bin/sh\n# Packages must not start services in a build machine.\nexit 101\n"


@dataclass(frozen=True, slots=True)
class AppliedRole:
    """What a build machine wrote.

    Attributes:
        tree: Upper directory, cleaned, ready to be sealed.
        packages: Debian packages in it and below, `name=version`.
        seen: Keys that were there at some time while the role was applied.
    """

    tree: Path
    packages: tuple[str, ...]
    seen: tuple[Finding, ...]


@contextmanager
def applied_role(
    layer: LayerSpec,
    *,
    below: Sequence[Path],
    project: Project,
    checkout: Checkout,
    state: State,
    progress: Progress,
) -> Iterator[AppliedRole]:
    """Apply a role in a booted build machine; what it wrote lasts as long as the context.

    Args:
        layer: The role, with the parts of the source that it reads.
        below: Sealed files below it, bottom first.
        project: Where the role and the playbook are.
        checkout: The source at its commit.
        state: Where scratch files go.
        progress: Hears of every task.

    Raises:
        BakeFailed: A task failed; the message names role, task and the machine's own words.
        ConfigurationError: The project has no `playbooks/bake.yml`.
    """
    scratch = make_private(state.work / f"{layer.role}-{secrets.token_hex(4)}")
    try:
        source = scratch / "source"
        if layer.source_paths:
            checkout.export(layer.source_paths, source)
        with _build_machine(scratch=scratch, below=below, state=state) as machine:
            watched = scratch / "watch"
            watch.prepare(watched, upper=scratch / "upper", init_pid=machine.init_pid)
            _apply(layer, machine, watched=watched, project=project, state=state, progress=progress)
            directories = "\n".join(compiled_directories(scratch / "upper"))
            if directories:
                machine.run(COMPILE, timeout_s=FINISH_TIMEOUT_S, stdin=directories.encode())
            listing = machine.run(
                ["dpkg-query", "-W", "-f", "${Package}=${Version}\\n"], timeout_s=FINISH_TIMEOUT_S
            )
        clean(scratch / "upper")
        yield AppliedRole(
            scratch / "upper",
            tuple(sorted(listing.text.split())),
            tuple(watch.findings(watched)),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _build_machine(*, scratch: Path, below: Sequence[Path], state: State) -> Iterator[Container]:
    """Boot a machine that writes to `scratch/upper`; power it off at the end.

    It is on the host's network, with the host's resolver and certificate authorities mounted,
    and reaches `basic.target` only: services of lower layers do not start.
    """
    machine_id = scratch / "machine-id"
    machine_id.write_text(secrets.token_hex(16) + "\n")
    arguments = [f"--bind-ro={machine_id}:/etc/machine-id"]
    for path in (HOST_RESOLVER, HOST_AUTHORITIES):
        if path.exists():
            arguments.append(f"--bind-ro={path.resolve()}:{path}")
    if (scratch / "source").is_dir():
        arguments.append(f"--bind-ro={scratch / 'source'}:{SOURCE_INSIDE}")
    name = scratch.name
    cgroup = f"toolkit-{state.id}/{BUILD}-{name}"
    machine = Container(cgroup=cgroup, files=make_private(state.runtime / BUILD) / name)
    try:
        machine.start(
            ContainerOrder(
                name=BUILD_HOST,
                layers=below,
                mountpoint=state.runtime / BUILD / "mnt",
                cgroup=cgroup,
                arguments=[*arguments, "--", "systemd.unit=basic.target"],
                upper=scratch / "upper",
                work=scratch / "overlay",
            )
        )
        machine.await_ready(deadline_s=BOOT_DEADLINE_S)
        # A file of its own, not a mount: Ansible's apt module moves it aside for a while.
        machine.run(
            ["install", "-m", "0755", "/dev/stdin", "/usr/sbin/policy-rc.d"],
            timeout_s=FINISH_TIMEOUT_S,
            stdin=POLICY,
        )
        yield machine
        machine.request_stop()
        machine.remove(deadline_s=STOP_DEADLINE_S)
    finally:
        machine.remove(deadline_s=0)


def _apply(
    layer: LayerSpec,
    machine: Container,
    *,
    watched: Path,
    project: Project,
    state: State,
    progress: Progress,
) -> None:
    playbook = project.root / "playbooks" / "bake.yml"
    if not playbook.is_file():
        raise ConfigurationError(
            f"{playbook}: there is no such file",
            hint="it applies the role named by the variable toolkit_role to all hosts",
        )
    variables = {**layer.variables, "toolkit_role": layer.role}
    if layer.source_paths:
        variables["toolkit_source"] = SOURCE_INSIDE
    result = runner.run_playbook(
        playbook,
        state=state,
        owner=runner.BAKE,
        roles_path=project.root / "roles",
        host=BUILD_HOST,
        host_variables={
            **machine_variables(machine.init_pid or 0),
            "toolkit_watch": str(watched),
        },
        variables=variables,
        timeout_s=APPLY_TIMEOUT_S,
        progress=progress,
    )
    if result.exit_code != 0:
        task = f", task {result.failed_task!r}" if result.failed_task else ""
        raise BakeFailed(
            f"role {layer.role}{task} failed: {result.message}",
            hint="the store is as it was; mend the role and bake again",
        )


def sweep(state: State) -> None:
    """Remove what a killed bake left behind. The caller holds the bake's lock."""
    group = f"toolkit-{state.id}"
    for name in cgroups.groups_below(group):
        if name.startswith(BUILD):
            cgroups.remove(f"{group}/{name}")
    shutil.rmtree(state.work, ignore_errors=True)
    shutil.rmtree(state.runtime / BUILD, ignore_errors=True)
    runner.sweep(state, runner.BAKE)
