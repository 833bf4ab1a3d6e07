"""The HAProxy of an environment, configured from the environment's definition."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from toolkit.errors import ConfigurationError, OutsideError, Unhealthy
from toolkit.machines.evidence import Spool, Subject, gather_processes
from toolkit.model import Secret, serving_addresses
from toolkit.pools import host
from toolkit.pools.haproxy import HaproxyProcess
from toolkit.pools.haproxy_config import (
    BalancerConfig,
    PoolConfig,
    Protocol,
    PublicListen,
    UpstreamTls,
    backend_name,
    host_namespace,
    internal_address,
    render,
    sections,
)
from toolkit.pools.haproxy_pool import HaproxyPool
from toolkit.project.model import MOST_MACHINES, Environment, Project
from toolkit.secrets.grants import BALANCER
from toolkit.state import make_private, write_atomically

STOP_DEADLINE_S = 3.0
CHECKED_S = 5.0
"""How long machines that serve have to pass a changed check."""

SLOTS = 2 * MOST_MACHINES + 2
"""Of every pool: room for a whole fleet of old and a whole fleet of new machines, and two more.

The same however many machines a role has now: a reload drops whoever has a slot that is no longer
declared, and says nothing. With 102 slots for each of three pools, instead of 6, HAProxy needs
3 MiB more, a tenth of a second more to start, and 8 ms for a command instead of 1 (measured on
2.6.12); slots that nobody has are not checked.
"""


class LocalBalancer:
    """One HAProxy with a pool for each role.

    Args:
        project: Says how machines are spoken to.
        environment: Says what is public.
        namespace: Network namespace of the environment.
        runtime: Directory of its sockets and files.
        ram: Directory, on a RAM file system, for the certificate's key.
        edge_secrets: Returns the credentials of the balancer itself.
        newest_version: Returns the highest version of its certificate that was seen here, if any
            was; it opens no vault.
    """

    def __init__(
        self,
        project: Project,
        environment: Environment,
        *,
        namespace: str,
        runtime: Path,
        ram: Path,
        edge_secrets: Callable[[], Mapping[str, Secret]],
        newest_version: Callable[[], int | None],
    ) -> None:
        self._service_file = project.root / "service.yml"
        self._environment = environment
        self._runtime = runtime
        self._ram = ram
        self._edge_secrets = edge_secrets
        self._newest_version = newest_version
        self._process = HaproxyProcess(directory=runtime)
        self.config: Final = BalancerConfig(
            namespace=namespace,
            runtime_directory=runtime,
            pools=tuple(self._pool_config(project, role) for role in environment.deployments),
        )

    def ensure(self) -> None:
        """Have HAProxy run with the environment's configuration and its newest certificate.

        Raises:
            ConfigurationError: A public address is taken, or machines that serve would be cut off
                by what is configured now.
        """
        is_public = any(one.public for one in self._environment.deployments.values())
        version = self._write_certificate() if is_public else None
        make_private(self.config.runtime_directory.parent)
        if any(pool.tls for pool in self.config.pools):
            self._write_authority()
        text, previous = render(self.config), self._process.config_text()
        if previous:
            self._need_passed(self._relied_on(previous, text))
        try:
            self._process.ensure(text)
        except host.AddressRefused as error:
            file = self._environment.directory / "toolkit.yml"
            fields = [
                f"{file}:roles.{role}.public: "
                for role, deployment in self._environment.deployments.items()
                if deployment.public == error.address
            ]
            raise ConfigurationError("".join(fields) + error.message, hint=error.hint) from None
        if version is not None:
            self._serve_certificate(version)

    def _relied_on(self, previous: str, text: str) -> dict[str, list[str]]:
        """Return who serves in pools that would be spoken to or checked in another way.

        Raises:
            ConfigurationError: A role has machines, and others know it by another port.
        """
        before, after = sections(previous), sections(text)
        changed = {
            role: pool
            for role, pool in self.pools().items()
            if before.get(name := f"backend {backend_name(role)}", after[name]) != after[name]
            or internal_address(previous, role) != internal_address(text, role)
        }
        try:
            targets = {role: pool.targets() for role, pool in changed.items()}
        except OutsideError:
            # One that takes no commands is replaced, whatever it serves.
            return {}
        for role, found in targets.items():
            address = internal_address(previous, role)
            if found and address and address != internal_address(text, role):
                raise ConfigurationError(
                    f"{self._service_file}:roles.{role}.port: {role} has machines, and those of "
                    f"other roles know it as {address}",
                    hint=f"'toolkit down {self._environment.name}' first, or give the new port to "
                    "a role of its own",
                )
        return {
            role: [target.address for target in found if target.is_serving]
            for role, found in targets.items()
        }

    def _need_passed(self, relied_on: Mapping[str, Sequence[str]]) -> None:
        """Refuse a configuration whose checks machines fail that serve.

        Another HAProxy asks them, which has these pools and listens nowhere: a reload begins with
        checks of which a single failed one takes a machine out (measured on 2.6.12).
        """
        directory = self._probe
        pools = {
            config.role: replace(config, internal=None, public=None)
            for config in self.config.pools
            if relied_on.get(config.role)
        }
        if not pools:
            return
        config = replace(self.config, runtime_directory=directory, pools=tuple(pools.values()))
        process = HaproxyProcess(directory=directory)
        try:
            process.stop(deadline_s=0)
            process.start(render(config))
            for role, addresses in relied_on.items():
                if role in pools:
                    self._ask(HaproxyPool(balancer=process, config=pools[role]), addresses)
        finally:
            process.stop(deadline_s=0)
            shutil.rmtree(directory, ignore_errors=True)
            # Both have the same one, and a reload by hand needs it.
            host.name_own_namespace(host_namespace(config.namespace))

    def _ask(self, pool: HaproxyPool, addresses: Sequence[str]) -> None:
        """Have a pool that serves nobody check machines that serve in another one."""
        try:
            pool.register(addresses)
            pool.await_healthy(addresses, deadline_s=CHECKED_S)
        except Unhealthy as error:
            live = serving_addresses(
                target for other in self.pools().values() for target in other.targets()
            )
            if live.isdisjoint(error.addresses):
                # They have failed the earlier check too, meanwhile.
                return
            raise ConfigurationError(
                f"{self._service_file}: what it says now takes machines out that serve: "
                f"{error.message}",
                hint="roll a version first that passes the balancer's earlier check and this one",
            ) from None

    def stop(self) -> None:
        """End HAProxy and remove its files."""
        self._process.stop(deadline_s=STOP_DEADLINE_S)
        # One that was cut short.
        HaproxyProcess(directory=self._probe).stop(deadline_s=0)
        shutil.rmtree(self._probe, ignore_errors=True)
        # Also when its configuration is gone, from which the process would know the name.
        host.forget_namespace(host_namespace(self.config.namespace))
        shutil.rmtree(self.config.runtime_directory, ignore_errors=True)
        shutil.rmtree(self._ram, ignore_errors=True)

    def is_running(self) -> bool:
        """Whether HAProxy runs."""
        return self._process.is_running()

    def renew(self) -> None:
        """Take up the present certificate, without a reload, which could cut idle connections.

        The file is written first: should HAProxy end in between, it starts with the new one.
        """
        self._serve_certificate(self._write_certificate())

    def is_current(self) -> bool:
        """Whether HAProxy was given the newest certificate that was seen here."""
        try:
            served = int(self._version_file.read_text())
        except (FileNotFoundError, ValueError):
            return True
        return served >= (self._newest_version() or 0)

    def evidence(self) -> Subject:
        """Gather what HAProxy's processes and files show, but for its certificate's own file."""
        spool = Spool(BALANCER)
        gather_processes(spool, self._process.processes())
        for path in sorted(self.config.runtime_directory.glob("haproxy.*")):
            spool.add(path.name, path.read_bytes())
        for path in sorted(self.config.runtime_directory.glob("*.state")):
            spool.add(path.name, path.read_bytes())
        return Subject(BALANCER, BALANCER, spool)

    def pools(self) -> dict[str, HaproxyPool]:
        """Return the pools by role."""
        return {
            config.role: HaproxyPool(balancer=self._process, config=config)
            for config in self.config.pools
        }

    @property
    def _certificate(self) -> Path:
        return self._ram / "edge.pem"

    @property
    def _probe(self) -> Path:
        return self._runtime.with_name("probe")

    @property
    def _authority(self) -> Path:
        return self._runtime / "authority.pem"

    @property
    def _version_file(self) -> Path:
        return self.config.runtime_directory / "edge.version"

    def _serve_certificate(self, version: int) -> None:
        """Have HAProxy serve what is in the file, if it serves another, and note the version.

        HAProxy reads the file when it starts or is reloaded, and at no other time.
        """
        written = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        wanted = written.fingerprint(hashes.SHA1()).hex()  # noqa: S303 - what HAProxy names it by
        admin = self._process.admin
        if admin.certificate_fingerprint(self._certificate) != wanted:
            admin.replace_certificate(self._certificate)
        write_atomically(self._version_file, str(version).encode())

    def _write_authority(self) -> None:
        """Write the file of whom machines' certificates are from.

        Of its own, so that a project is the same wherever it lies: HAProxy is reloaded when the
        text of its configuration changes.
        """
        file = self._environment.directory / "authority.pem"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{file}: {error.strerror}; roles that speak https need it",
                hint=f"run 'toolkit secrets init {self._environment.name}'",
            ) from None
        make_private(self._runtime)
        write_atomically(self._authority, content)

    def _write_certificate(self) -> int:
        """Write the certificate's file; return its version."""
        secrets = self._edge_secrets()
        try:
            pem = b"\n".join(secrets[f"edge_tls.{part}"].reveal() for part in ("crt", "key"))
        except KeyError:
            raise ConfigurationError(
                f"{self._environment.name} has no certificate for its public address",
                hint=f"run 'toolkit secrets init {self._environment.name}'",
            ) from None
        make_private(self._ram.parent)
        make_private(self._ram)
        write_atomically(self._certificate, pem)
        return secrets["edge_tls.crt"].version

    def _pool_config(self, project: Project, role: str) -> PoolConfig:
        spec, deployment = project.roles[role], self._environment.deployments[role]
        gateway = next(self._environment.network.hosts())
        tls = None
        if spec.protocol == "https":
            tls = UpstreamTls(
                self._authority,
                machine_tls_name(role, self._environment.name),
            )
        return PoolConfig(
            role=role,
            slots=SLOTS,
            machine_port=spec.port,
            protocol=Protocol(spec.protocol),
            health_path=spec.health or "/",
            internal=f"{gateway}:{spec.port}",
            public=PublicListen(deployment.public, self._certificate)
            if deployment.public
            else None,
            tls=tls,
        )


def machine_tls_name(role: str, environment: str) -> str:
    """Return the name that the certificates of a role's machines carry."""
    return f"{role}.{environment}.internal"
