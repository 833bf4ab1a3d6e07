"""Remembers the highest version of each secret, so that an older vault file is recognised."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from toolkit.errors import ConfigurationError
from toolkit.secrets.document import Document
from toolkit.state import State, write_atomically


class VersionMemory(Protocol):
    """Knows the newest version of every secret that was ever written or delivered here."""

    def highest(self, environment: str, role: str, name: str) -> int | None:
        """Return the highest version seen; None for a secret never seen."""

    def remember(self, environment: str, role: str, name: str, version: int) -> None:
        """Take note of a version; a lower one than the highest changes nothing."""

    def prepare(self) -> None:
        """Fail now where taking note of a version would fail: before a vault is changed."""


class VersionFile:
    """A `VersionMemory` in one JSON file of the state directory. It holds no values.

    Args:
        state: Where it is.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._path = state.root / "secret-versions.json"

    def highest(self, environment: str, role: str, name: str) -> int | None:
        """Return the highest version seen; None for a secret never seen."""
        return self._read().get(_key(environment, role, name))

    def remember(self, environment: str, role: str, name: str, version: int) -> None:
        """Take note of a version; a lower one than the highest changes nothing."""
        if (self.highest(environment, role, name) or 0) >= version:
            return
        with self._locked():
            known = self._read()
            key = _key(environment, role, name)
            known[key] = max(version, known.get(key, 0))
            self._write(known)

    def prepare(self) -> None:
        """Fail now where taking note of a version would fail: before a vault is changed.

        Raises:
            ConfigurationError: The state directory cannot be made, or the file is damaged.
            OutsideError: The file system refuses.
        """
        with self._locked():
            # Written as it is: only so a full disk is known beforehand.
            self._write(self._read())

    def _write(self, known: dict[str, int]) -> None:
        content = json.dumps(known, indent=1, sort_keys=True) + "\n"
        write_atomically(self._path, content.encode())

    def _read(self) -> dict[str, int]:
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from None
        except ValueError:
            content = None
        # Exactly numbers: to Python, true is one too.
        if not isinstance(content, dict) or any(type(one) is not int for one in content.values()):
            raise ConfigurationError(
                f"{self._path}: is damaged", hint="restore it, or remove it to start anew"
            )
        return content

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._state.prepare()
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def remember_documents(memory: VersionMemory, documents: Iterable[Document]) -> None:
    """Take note of every version in documents that were just written."""
    for document in documents:
        for entry in document.entries.values():
            memory.remember(document.environment, document.role, entry.name, entry.version)


def _key(environment: str, role: str, name: str) -> str:
    return f"{environment}/{role}/{name}"
