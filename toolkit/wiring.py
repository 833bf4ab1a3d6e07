"""The only module that knows which providers there are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.bake.inputs import changed_parts
from toolkit.bake.run import Bake
from toolkit.errors import ConfigurationError
from toolkit.progress import step
from toolkit.project import source
from toolkit.project.load import select_roles
from toolkit.state import RUNTIME_ROOT, State, exclusive, remove_if_empty
from toolkit.store.local import LocalStore
from toolkit.workplace import Workplace

if TYPE_CHECKING:
    from toolkit.ledger.ledger import Ledger
    from toolkit.machines.nspawn import NspawnProvider
    from toolkit.model import Image, Machine
    from toolkit.network.namespaces import EnvironmentNetwork
    from toolkit.pools.local import LocalBalancer
    from toolkit.project.model import Environment
    from toolkit.roll.site import Site
    from toolkit.secrets.audit import AuditReport

__all__ = ["bake_lock", "make_bake", "open_ledger", "open_site", "open_store", "select_roles"]


def open_store(state: State) -> LocalStore:
    """Return the image store of a state directory."""
    return LocalStore(state.store)


def make_bake(
    workplace: Workplace, *, ref: str | None, is_dirty_allowed: bool, is_refresh: bool
) -> Bake:
    """Put a bake together.

    Raises:
        ConfigurationError: The source or the project has changes that are not committed.
    """
    project, state = workplace.project, workplace.state
    workplace.prepare()
    checkout = source.checkout(
        project.source, ref, clones=state.sources, is_dirty_allowed=is_dirty_allowed
    )
    project_commit = source.project_commit(project.root)
    changed = changed_parts(project.root) if project_commit else None
    if changed and not is_dirty_allowed:
        raise ConfigurationError(
            f"the project {project.root} has changes that are not committed in {changed}",
            hint="commit them, or bake them with --allow-dirty, which is recorded",
        )
    store = open_store(state)
    return Bake(
        project,
        checkout,
        store=store,
        state=state,
        progress=workplace.progress,
        project_commit=project_commit,
        is_project_dirty=changed is not None,
        is_refresh=is_refresh,
    )


@contextmanager
def bake_lock(state: State, *, doing: str) -> Iterator[None]:
    """Let one at a time write to the store; sweep what a killed one left, before and after.

    Args:
        state: Where.
        doing: What is done, for the message that others get.

    Raises:
        LeaseHeld: Another process is at it.
    """
    from toolkit.bake.builder import sweep

    state.prepare()
    with exclusive(state.root / "bake.lock", doing=doing):
        sweep(state)
        try:
            yield
        finally:
            sweep(state)
            remove_empty_runtime(state)


@contextmanager
def open_ledger(state: State, *, is_looking: bool = False) -> Iterator[Ledger]:
    """Open the ledger of a state directory for the length of a workplace.

    Args:
        state: The state directory.
        is_looking: Whether nothing is to be written: where there is no ledger none is made.
    """
    from toolkit.ledger import database

    if not is_looking:
        state.prepare()
    opened = (database.look_into if is_looking else database.open_ledger)(state.ledger)
    with closing(opened):
        yield opened


@contextmanager
def open_site(
    workplace: Workplace, environment_name: str, *, is_looking: bool = False
) -> Iterator[Site]:
    """Put an environment together with the local provider.

    Args:
        workplace: The project and the state directory.
        environment_name: Which environment.
        is_looking: Whether nothing is to be changed.

    Raises:
        NotFound: There is no such environment.
        ConfigurationError: Its definition is wrong.
    """
    from toolkit.ansible.hooks import PlaybookHooks
    from toolkit.pools.local import machine_tls_name
    from toolkit.roll.site import Site
    from toolkit.secrets.memory import VersionFile
    from toolkit.secrets.source import VaultSource
    from toolkit.smoke.runner import PytestRunner

    project, state = workplace.project, workplace.state
    environment = workplace.environment(environment_name)
    if not is_looking:
        workplace.prepare()
    store = open_store(state)
    namespace = state.namespace(environment.name)
    network = _network(workplace, environment)
    provider = _provider(workplace, environment, network)
    secrets = VaultSource(project, state, VersionFile(state))
    balancer = _balancer(workplace, environment)
    authority = environment.directory / "authority.pem"
    smoke = PytestRunner(
        project,
        scratch=state.runtime / environment.name / "smoke",
        namespace=namespace,
        authority=authority if authority.is_file() else None,
        tls_name=lambda role: machine_tls_name(role, environment.name),
        init_pid=provider.init_pid,
    )
    hooks = PlaybookHooks(
        project,
        state=state,
        environment=environment.name,
        init_pid=provider.init_pid,
        progress=workplace.progress,
    )
    with open_ledger(state, is_looking=is_looking) as ledger:
        yield Site(
            project=project,
            environment=environment,
            network=network,
            balancer=balancer,
            pools=balancer.pools(),
            provider=provider,
            smoke=smoke,
            hooks=hooks,
            secrets=secrets,
            images=store,
            ledger=ledger,
            progress=workplace.progress,
            sweepers=(provider.sweep, smoke.sweep, hooks.sweep),
            remove_runtime=lambda: remove_runtime(state, environment.name),
        )


def live_machines(
    workplace: Workplace, environment: str
) -> tuple[list[str], list[tuple[Machine, int]]]:
    """Return the roles of an environment, and its running machines with their init's process id.

    Raises:
        ToolkitError: The project or the environment cannot be read.
    """
    found = workplace.environment(environment)
    provider = _provider(workplace, found, _network(workplace, found))
    pids = [(machine, provider.init_pid(machine.name)) for machine in provider.machines()]
    return list(found.deployments), [(machine, pid) for machine, pid in pids if pid]


def audit_environment(workplace: Workplace, environment_name: str) -> AuditReport:
    """Look at every machine of an environment and its balancer; see `toolkit.secrets.audit`.

    Raises:
        ConfigurationError: Nothing runs there.
    """
    from toolkit.secrets import audit
    from toolkit.secrets.served import served_certificate

    environment = workplace.environment(environment_name)
    provider = _provider(workplace, environment, _network(workplace, environment))
    balancer = _balancer(workplace, environment)
    key = audit.new_key()
    with ExitStack() as stack:
        subjects = []
        if balancer.is_running():
            subjects.append(balancer.evidence())
            stack.callback(subjects[-1].spool.close)
        for machine in provider.machines():
            with step(workplace.progress, f"look at {machine.name}"):
                subject = provider.evidence(machine, key=key)
            if subject is not None:
                stack.callback(subject.spool.close)
                subjects.append(subject)
        if not subjects:
            raise ConfigurationError(
                f"nothing runs in {environment_name}", hint=f"run 'toolkit up {environment_name}'"
            )
        public = [one.public for one in environment.deployments.values() if one.public]
        served = None
        if public and balancer.is_running():
            host, _, port = public[0].rpartition(":")
            served = served_certificate(host, int(port), namespace=None)
        with step(workplace.progress, "search for every secret"):
            return audit.audit(
                workplace.project,
                workplace.state,
                environment_name,
                subjects,
                key=key,
                served=served,
            )


def _balancer(workplace: Workplace, environment: Environment) -> LocalBalancer:
    from toolkit.pools.local import LocalBalancer
    from toolkit.project.model import EDGE_CERTIFICATE
    from toolkit.secrets.grants import BALANCER
    from toolkit.secrets.memory import VersionFile
    from toolkit.secrets.source import VaultSource

    state = workplace.state
    versions = VersionFile(state)
    secrets = VaultSource(workplace.project, state, versions)
    return LocalBalancer(
        workplace.project,
        environment,
        namespace=state.namespace(environment.name),
        runtime=state.runtime / environment.name / "balancer",
        ram=state.ram / environment.name,
        edge_secrets=lambda: secrets.secrets(environment.name, BALANCER),
        newest_version=lambda: versions.highest(environment.name, BALANCER, EDGE_CERTIFICATE),
    )


def _network(workplace: Workplace, environment: Environment) -> EnvironmentNetwork:
    from toolkit.network.namespaces import EnvironmentNetwork

    namespace = workplace.state.namespace(environment.name)
    return EnvironmentNetwork(namespace=namespace, network=environment.network)


def _provider(
    workplace: Workplace, environment: Environment, network: EnvironmentNetwork
) -> NspawnProvider:
    from toolkit.machines.nspawn import NspawnProvider

    store = open_store(workplace.state)
    return NspawnProvider(
        environment.name,
        state=workplace.state,
        network=network,
        find_image=store.image,
        layer_path=store.layer_path,
    )


def assemble_disk(workplace: Workplace, digest: str, output: Path) -> Image:
    """Write an image's bootable disk.

    Raises:
        NotFound: There is no such image.
        ConfigurationError: The output's directory does not exist.
    """
    from toolkit.bake import disk

    store = open_store(workplace.state)
    image = store.image(digest)
    if not output.parent.is_dir():
        raise ConfigurationError(f"{output.parent}: there is no such directory")
    layers = [store.layer_path(layer.digest) for layer in image.layers]
    with (
        bake_lock(workplace.state, doing="the assembly of a disk"),
        step(workplace.progress, f"disk of {image.role}"),
    ):
        boot = disk.extract_boot_files(layers[0], workplace.state.work / "boot")
        disk.assemble_disk(
            layers,
            kernel=boot.kernel,
            initrd=boot.initrd,
            os_release=boot.os_release,
            digest=image.digest,
            output=output,
        )
    return image


def remove_runtime(state: State, environment: str) -> None:
    """Remove the runtime directories of an environment that is down, and empty parents."""
    for path in (state.runtime / environment, state.ram / environment):
        shutil.rmtree(path, ignore_errors=True)
    remove_empty_runtime(state)


def remove_empty_runtime(state: State) -> None:
    """Remove the runtime directories that a bake and all environments share, if none uses them."""
    for path in (state.runtime, RUNTIME_ROOT, state.ram):
        remove_if_empty(path)
