"""The secrets of machines, from vault files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from toolkit.errors import ConfigurationError, NotFound
from toolkit.model import Secret
from toolkit.project.load import load_environment
from toolkit.project.model import Project, SecretSpec
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.document import Document, Entry
from toolkit.secrets.grants import BALANCER, credential_names, parts_of
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.memory import VersionMemory
from toolkit.secrets.vaults import Vaults
from toolkit.state import State


class VaultSource:
    """A `SecretSource` that decrypts the vault of one environment and role at a time.

    Args:
        project: Declares who may know what.
        state: Where passwords are, unless the environment names another place.
        memory: Recognises versions older than one that was delivered or written before.
    """

    def __init__(self, project: Project, state: State, memory: VersionMemory) -> None:
        self._project = project
        self._state = state
        self._memory = memory

    def secrets(self, environment: str, role: str) -> Mapping[str, Secret]:
        """Return exactly what the role declares: credential name to secret.

        Raises:
            NotFound: The environment or role does not exist.
            ConfigurationError: A value is missing, older than one seen before, or does not
                belong there.
        """
        loaded = load_environment(self._project, environment)
        if role != BALANCER and role not in loaded.deployments:
            raise NotFound(f"there is no role {role!r} in the environment {environment}")
        declared = load_matrix(self._project, [environment]).secrets(environment, role)
        if not declared:
            return {}
        vaults = Vaults(loaded, KeyRing(loaded, self._state))
        document = vaults.read(role)
        if document is None:
            raise ConfigurationError(
                f"{vaults.path(role)}: there is no such file; {role} needs "
                f"{', '.join(secret.name for secret in declared)}",
                hint=f"run 'toolkit secrets init {environment}'",
            )
        where = str(vaults.path(role))
        delivered = select(document, declared, where)
        refuse_replay(document, declared, self._memory, where)
        for secret in declared:
            version = document.entries[secret.name].version
            self._memory.remember(environment, role, secret.name, version)
        return delivered


def select(document: Document, declared: Iterable[SecretSpec], where: str) -> dict[str, Secret]:
    """Return the declared secrets of a vault as credentials; whatever else it holds stays there.

    Raises:
        ConfigurationError: One is missing, or of another kind than declared.
    """
    missing = [secret for secret in declared if secret.name not in document.entries]
    if missing:
        raise ConfigurationError(
            "\n".join(f"{where}: {secret.name} ({secret.kind}) is missing" for secret in missing),
            hint=_how_to_make(missing[0], document),
        )
    delivered: dict[str, Secret] = {}
    for secret in declared:
        entry = document.entries[secret.name]
        check_kind(entry, secret, where)
        for part, credential in credential_names(secret).items():
            delivered[credential] = Secret(credential, entry.version, entry.parts[part])
    return delivered


def check_kind(entry: Entry, secret: SecretSpec, where: str) -> None:
    """Check that a secret in a vault has the parts that its declared kind has.

    Raises:
        ConfigurationError: It has others.
    """
    if set(entry.parts) != set(parts_of(secret.kind)):
        raise ConfigurationError(
            f"{where}: {secret.name} has {' and '.join(entry.parts)}; it is declared as "
            f"{secret.kind}, which has {' and '.join(parts_of(secret.kind))}"
        )


def refuse_replay(
    document: Document, declared: Iterable[SecretSpec], memory: VersionMemory, where: str
) -> None:
    """Refuse a vault that holds an older version than one that was seen before.

    Raises:
        ConfigurationError: It does.
    """
    for secret in declared:
        version = document.entries[secret.name].version
        highest = memory.highest(document.environment, document.role, secret.name)
        if highest is not None and version < highest:
            raise ConfigurationError(
                f"{where}: {secret.name} is version {version}, but version {highest} was seen "
                "before: the file is an older one",
                hint="restore the newest file, or set a new value with 'toolkit secrets set "
                f"{document.environment} {document.role} {secret.name}'",
            )


def _how_to_make(secret: SecretSpec, document: Document) -> str:
    if secret.kind == "file":
        return (
            f"run 'toolkit secrets import {document.environment} {document.role} "
            f"{secret.name} FILE'"
        )
    return f"run 'toolkit secrets init {document.environment}'"
