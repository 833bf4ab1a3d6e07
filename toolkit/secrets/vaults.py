"""The vault files of one environment: `inventories/<env>/group_vars/<role>/vault.yml`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import ConfigurationError
from toolkit.project.model import Environment
from toolkit.secrets import document, vault
from toolkit.secrets.document import Document
from toolkit.secrets.files import replace_all
from toolkit.secrets.keys import KeyRing

_THREADS = 4
"""Each waits for a child that keeps a core busy for 0.3 s."""


class Vaults:
    """Reads and writes the vault files of one environment.

    Args:
        environment: Whose they are.
        keys: The passwords that this operator holds.
    """

    def __init__(self, environment: Environment, keys: KeyRing) -> None:
        self.environment = environment
        self.keys = keys

    def path(self, role: str) -> Path:
        """Return where the vault file of a role is, whether or not it exists."""
        return self.environment.directory / "group_vars" / role / "vault.yml"

    def exists(self, role: str) -> bool:
        """Whether the role has a vault file."""
        return self.path(role).exists()

    def read(self, role: str) -> Document | None:
        """Return what a role's vault holds; None when there is no file.

        Raises:
            MissingKey: This operator does not hold its password.
            ConfigurationError: It does not belong here, or is damaged.
        """
        path = self.path(role)
        try:
            vaulttext = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        plaintext = vault.decrypt(vaulttext, password=self.keys.password(role), where=path)
        return document.parse(
            plaintext, environment=self.environment.name, role=role, where=str(path)
        )

    def read_all(self, roles: Collection[str]) -> Mapping[str, Document | None]:
        """Read the vaults of several roles at once, each in a process of its own."""
        with ThreadPoolExecutor(_THREADS) as threads:
            return dict(zip(roles, threads.map(self.read, roles), strict=True))

    def write(self, documents: Collection[Document]) -> None:
        """Replace the vaults of one or several roles; all are encrypted before one is replaced.

        Raises:
            MissingKey: This operator does not hold a password.
            OutsideError: `ansible-vault` failed, or the file system refused; nothing was changed.
        """
        passwords = [self.keys.password(each.role) for each in documents]
        with ThreadPoolExecutor(_THREADS) as threads:
            vaulttexts = threads.map(
                lambda each, password: vault.encrypt(document.serialise(each), password=password),
                documents,
                passwords,
            )
            files = dict(zip((self.path(d.role) for d in documents), vaulttexts, strict=True))
        replace_all(files)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the environment's vaults between a read and a write."""
        try:
            descriptor = os.open(self.environment.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigurationError(f"{self.environment.directory}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
