"""Read a project's `service.yml`, its environments, and what its roles declare."""

from __future__ import annotations

import graphlib
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import ConfigurationError, NotFound
from toolkit.project.documents import complain, parse_file
from toolkit.project.model import (
    CONFIG_CREDENTIAL,
    EDGE_CERTIFICATE,
    BaseSpec,
    Canary,
    Deployment,
    Environment,
    KeySetting,
    LayerSpec,
    Project,
    RoleSpec,
    SecretSpec,
    Soak,
    Timeouts,
)
from toolkit.project.schema import (
    ENVIRONMENT_PATTERN,
    EnvironmentFile,
    RoleEntry,
    SecretsFile,
    ServiceFile,
)

SERVICE_FILE = "service.yml"
ENVIRONMENT_FILE = "toolkit.yml"


def load_project(root: Path) -> Project:
    """Read `service.yml` and check that its roles exist.

    Raises:
        ConfigurationError: The file is missing or wrong.
    """
    path = root / SERVICE_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: there is no such file",
            hint="run toolkit in a project's directory, or name one with --project",
        )
    entry = parse_file(ServiceFile, path)
    complain(path, _role_problems(entry, root))
    return Project(
        root=root,
        name=entry.name,
        source=entry.source if is_url(entry.source) else str((root / entry.source).resolve()),
        base=BaseSpec(entry.base.suite, entry.base.mirror, entry.base.packages),
        roles={name: _role(name, entry.roles[name]) for name in _ordered(path, entry)},
    )


def load_environment(project: Project, name: str) -> Environment:
    """Read `inventories/<name>/toolkit.yml`.

    Raises:
        NotFound: There is no such environment.
        ConfigurationError: The file is wrong.
    """
    directory = project.root / "inventories" / name
    path = directory / ENVIRONMENT_FILE
    known = environment_names(project)
    if name not in known:
        raise NotFound(
            f"there is no environment {name!r}: {path} does not exist",
            hint=f"known environments: {', '.join(known) or 'none'}",
        )
    entry = parse_file(EnvironmentFile, path)
    problems = [
        f"roles.{role}: service.yml has no such role"
        for role in entry.roles
        if role not in project.roles
    ]
    for role, deployment in entry.roles.items():
        spec = project.roles.get(role)
        if spec is None:
            continue
        problems += [
            f"roles: {role} uses {used}, which this environment does not have"
            for used in spec.uses
            if used not in entry.roles
        ]
        if spec.volumes and deployment.machines != 1:
            problems.append(f"roles.{role}.machines: a role with volumes has exactly one machine")
        if spec.volumes and deployment.strategy not in {None, "stateful"}:
            problems.append(f"roles.{role}.strategy: a role with volumes is stateful")
        if not spec.volumes and deployment.strategy == "stateful":
            problems.append(f"roles.{role}.strategy: a role without volumes is not stateful")
        if deployment.public and spec.protocol == "tcp":
            problems.append(f"roles.{role}.public: only http and https roles can be public")
    listens = [d.public for d in entry.roles.values() if d.public]
    problems += [
        f"roles: {listen} is used twice" for listen in set(listens) if listens.count(listen) > 1
    ]
    ports = {role: project.roles[role].port for role in entry.roles if role in project.roles}
    problems += [
        f"roles: {' and '.join(role for role in ports if ports[role] == port)} have the same port "
        f"{port} in service.yml: the environment's balancer has one address for all"
        for port in dict.fromkeys(ports.values())
        if list(ports.values()).count(port) > 1
    ]
    keys = None
    try:
        keys = Path(entry.keys.directory).expanduser() if entry.keys.directory else None
    except RuntimeError:
        problems.append("keys.directory: there is no such user, or nobody knows their home")
    if keys and keys.resolve().is_relative_to(project.root.resolve()):
        problems.append(
            "keys.directory: must be outside of the project, which holds what the keys open"
        )
    complain(path, problems)
    return Environment(
        name=name,
        directory=directory,
        network=ipaddress.IPv4Network(entry.network),
        keys=KeySetting(keys, entry.keys.command, entry.keys.keyring),
        deployments={
            role: _deployment(spec, entry)
            for role, spec in project.roles.items()
            if role in entry.roles
        },
    )


def need_usable_name(environment: Environment) -> None:
    """Refuse to make anything for an environment whose directory has a name that cannot be used.

    Raises:
        ConfigurationError: It could not be part of a host name, say.
    """
    if not re.fullmatch(ENVIRONMENT_PATTERN, environment.name):
        raise ConfigurationError(
            f"{environment.directory}: the name of an environment begins with a lower-case letter, "
            "and at most 30 such letters, digits, '-' or '_' follow",
            hint="it is part of host names, network namespaces and files; rename the directory",
        )


def environment_names(project: Project) -> list[str]:
    """Return the names of the project's environments, sorted."""
    found = (project.root / "inventories").glob(f"*/{ENVIRONMENT_FILE}")
    return sorted(path.parent.name for path in found)


def load_secret_specs(project: Project, role: str) -> tuple[SecretSpec, ...]:
    """Return what the role declares in `meta/secrets.yml`; nothing without that file."""
    path = project.role_directory(role) / "meta" / "secrets.yml"
    if not path.is_file():
        return ()
    entry = parse_file(SecretsFile, path)
    names = [secret.name for secret in entry.secrets]
    problems = [f"secrets: {n} is declared twice" for n in set(names) if names.count(n) > 1]
    if CONFIG_CREDENTIAL in names:
        problems.append(f"secrets: {CONFIG_CREDENTIAL} is what machines get their settings as")
    if EDGE_CERTIFICATE in names:
        problems.append(f"secrets: {EDGE_CERTIFICATE} is the balancer's own certificate")
    complain(path, problems)
    return tuple(
        SecretSpec(s.name, s.kind, s.description, s.dns_names, s.rotate_days, s.renew)
        for s in entry.secrets
    )


def select_roles(project: Project, names: Sequence[str]) -> tuple[RoleSpec, ...]:
    """Return the named roles in the project's order; all of them when none is named.

    Raises:
        NotFound: The project has no such role.
    """
    for name in names:
        if name not in project.roles:
            raise NotFound(
                f"there is no role {name!r} in {project.root / SERVICE_FILE}",
                hint=f"known roles: {', '.join(project.roles)}",
            )
    return tuple(role for name, role in project.roles.items() if not names or name in names)


def is_url(source: str) -> bool:
    """Whether a source is a git URL rather than a path."""
    return "://" in source or source.startswith("git@")


def _role_problems(entry: ServiceFile, root: Path) -> list[str]:
    problems = []
    for name, role in entry.roles.items():
        problems += [
            f"roles.{name}.layers.{index}.role: there is no directory roles/{layer.role}"
            for index, layer in enumerate(role.layers)
            if not (root / "roles" / layer.role).is_dir()
        ]
        problems += [
            f"roles.{name}.uses: there is no role {used!r}"
            for used in role.uses
            if used not in entry.roles
        ]
        problems += [
            f"roles.{name}.hooks: there is no playbooks/{hook}"
            for hook in (role.hooks.before, role.hooks.after)
            if hook and not (root / "playbooks" / hook).is_file()
        ]
        if role.protocol == "tcp" and role.health:
            problems.append(f"roles.{name}.health: a tcp role is checked by connecting to it")
    return problems


def _ordered(path: Path, entry: ServiceFile) -> tuple[str, ...]:
    try:
        order = graphlib.TopologicalSorter({n: r.uses for n, r in entry.roles.items()})
        return tuple(order.static_order())
    except graphlib.CycleError as error:
        raise ConfigurationError(
            f"{path}:roles: these use each other in a circle: {' → '.join(error.args[1])}"
        ) from None


def _role(name: str, entry: RoleEntry) -> RoleSpec:
    return RoleSpec(
        name=name,
        layers=tuple(LayerSpec(e.role, e.source, e.vars) for e in entry.layers),
        port=entry.port,
        protocol=entry.protocol,
        health=entry.health,
        uses=entry.uses,
        volumes=dict(entry.volumes),
        before_hook=entry.hooks.before,
        after_hook=entry.hooks.after,
    )


def _deployment(spec: RoleSpec, entry: EnvironmentFile) -> Deployment:
    deployment = entry.roles[spec.name]
    return Deployment(
        role=spec.name,
        machines=deployment.machines,
        public=deployment.public,
        strategy=deployment.strategy or ("stateful" if spec.volumes else "rolling"),
        batch=min(deployment.batch or deployment.machines, deployment.machines),
        canary=Canary(**deployment.canary.model_dump()),
        soak=Soak(**deployment.soak.model_dump()),
        keep_warm_s=deployment.keep_warm_s,
        has_snapshot=deployment.snapshot,
        timeouts=Timeouts(**deployment.timeouts.model_dump()),
    )
