"""The leak gate: nothing is sealed that must not be in an image.

A layer passes it between being sealed and being stored. Its tree is checked by the rules of
`toolkit.bake.leak_rules`; tree and sealed file are searched for the values of all vaults whose
keys are at hand; and whatever was seen while the role was applied counts too. See
docs/decisions/0010-leak-gate.md.
"""

from __future__ import annotations

import bisect
import fnmatch
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from toolkit.bake.leak_rules import (
    RULES,
    SEALED,
    Finding,
    check_file,
    check_host_configuration,
    find_keys,
)
from toolkit.bake.watch import read_file
from toolkit.errors import BakeFailed, ConfigurationError
from toolkit.project.documents import parse_file
from toolkit.project.load import environment_names, load_environment
from toolkit.project.model import Project
from toolkit.secrets.declarations import load_matrix
from toolkit.secrets.keys import KeyRing
from toolkit.secrets.search import VaultPlace, search
from toolkit.state import State

EXCEPTIONS_FILE = "leak-exceptions.yml"
CHUNK_BYTES = 64 * 1024 * 1024
OVERLAP_BYTES = 8192
"""A key that lies across the border of two chunks is whole in one of them."""

END_BYTES = 64 * 1024
"""More than a block and the longest value that is likely."""

SHOWN = 20


def _is_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"must be one of {', '.join(RULES)}")
    return name


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    rule: Annotated[str, AfterValidator(_is_rule)]
    reason: str = Field(min_length=10)
    allowed: Literal["sealed", "during-bake"] = "sealed"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    exceptions: tuple[_Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class HostConfiguration:
    """What the build host's own pip and apt know, and an image must not.

    Attributes:
        copies: Contents of configuration files.
        values: URLs of package indexes and proxies.
    """

    copies: frozenset[bytes]
    values: tuple[bytes, ...]


class LeakGate:
    """Checks the layers of one bake.

    Args:
        project: Its reviewed exceptions count, and the vaults of its environments.
        state: Where the passwords of vaults are by default.

    Raises:
        ConfigurationError: The file of exceptions is wrong, or an environment's definition, or what
            a role declares of secrets.
    """

    def __init__(self, project: Project, state: State) -> None:
        self._state = state
        self._exceptions = load_exceptions(project.root / EXCEPTIONS_FILE)
        self._places = [
            VaultPlace(load_environment(project, name), role)
            for name in environment_names(project)
            for role in load_matrix(project, [name]).roles(name)
        ]

    def check(self, name: str, *, tree: Path, sealed: Path, seen: Sequence[Finding] = ()) -> None:
        """Refuse a layer that holds anything it must not.

        Args:
            name: Of the layer.
            tree: What was sealed.
            sealed: The sealed file, on a file system with room for a copy of the tree.
            seen: What was found while the role was applied.

        Raises:
            BakeFailed: Something was found; the message names every path and rule.
            ConfigurationError: A vault whose key is at hand cannot be opened.
        """
        with tempfile.TemporaryFile(dir=sealed.parent) as stream:
            copy = _TreeCopy(stream)
            findings = list(copy.check(tree, host_configuration()))
            keys = {one.digest for one in findings if one.digest}
            findings += [one for one in _scan_sealed(sealed) if one.digest not in keys]
            findings += self._known_values(copy, sealed)
        kept = [one for one in findings if not self._is_excepted(one, is_sealed=True)]
        sealed_paths = {one.path for one in kept}
        kept += [
            one
            for one in seen
            if one.path not in sealed_paths and not self._is_excepted(one, is_sealed=False)
        ]
        if kept:
            lines = [f"  {one}" for one in kept[:SHOWN]]
            if len(kept) > SHOWN:
                lines.append(f"  and {len(kept) - SHOWN} more")
            listing = "\n".join(lines)
            raise BakeFailed(
                f"layer {name} would seal what no image may hold:\n{listing}",
                hint="mend the role; what was reviewed and is harmless goes into "
                f"{EXCEPTIONS_FILE}, with a reason",
            )

    def _is_excepted(self, finding: Finding, *, is_sealed: bool) -> bool:
        return any(
            one.rule == finding.rule
            and fnmatch.fnmatchcase(finding.path, one.path)
            and (one.allowed == "sealed" or not is_sealed)
            for one in self._exceptions
        )

    def _known_values(self, copy: _TreeCopy, sealed: Path) -> Iterator[Finding]:
        results = self._search(copy, sealed)
        if any(hit["file"] for result in results for hit in result["hits"]):
            # It will fail; now the path is worth a second look.
            copy.fill()
            results = self._search(copy, sealed)
        for result in results:
            label = f"{result['environment']}.{result['role']}"
            in_tree = {hit["secret"] for hit in result["hits"] if hit["file"] == 0}
            for hit in result["hits"]:
                if hit["file"] and hit["secret"] in in_tree:
                    continue
                path = SEALED if hit["file"] else copy.path_at(hit["offset"])
                yield Finding(path, "known-secret", f"{hit['secret']} of {label}, {hit['form']}")

    def _search(self, copy: _TreeCopy, sealed: Path) -> list[dict[str, Any]]:
        copy.stream.flush()
        descriptor = copy.stream.fileno()
        results = search(
            self._vaults,
            [f"/proc/self/fd/{descriptor}", sealed],
            state=self._state,
            pass_fds=[descriptor],
        )
        _need_opened(results)
        return results

    @cached_property
    def _vaults(self) -> list[VaultPlace]:
        """Return the vaults whose passwords are at hand.

        A command that hands out passwords may ask a person, or be allowed to do so for one
        environment only; a bake concerns none, so it is left to `toolkit secrets audit`.
        """
        return [
            place
            for place in self._places
            if place.path.is_file()
            and KeyRing(place.environment, self._state).is_at_hand(place.role)
        ]


def _need_opened(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to judge a layer without the values of a vault whose key is at hand.

    Raises:
        ConfigurationError: One could not be opened.
    """
    errors = [
        f"  {one['environment']}.{one['role']}: {one['error']}" for one in results if one["error"]
    ]
    if errors:
        listing = "\n".join(errors)
        raise ConfigurationError(
            f"the leak gate cannot search for the values of these vaults:\n{listing}",
            hint="mend the vault or its key; a vault whose key is elsewhere is not searched for",
        )


class _TreeCopy:
    """Names and contents of a tree in one stream, and where each file is in it.

    The sealed file alone would not do: erofs keeps the last part of a file elsewhere, so that a
    value may lie there in two pieces. Of a large file the end is therefore enough.

    Args:
        stream: Takes the copy; on a disk, as it may be large.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self._tree = Path()
        self._offsets: list[int] = []
        self._paths: list[str] = []
        self._size = 0

    def check(self, tree: Path, host: HostConfiguration) -> Iterator[Finding]:
        """Take in a tree; yield what is wrong with its files."""
        self._tree = tree
        for path, content, is_link in _files(tree):
            self._add(path, content[-END_BYTES:])
            if is_link:
                continue
            yield from check_file(path, content)
            yield from check_host_configuration(
                path, content, copies=host.copies, values=host.values
            )

    def fill(self) -> None:
        """Take in large files whole."""
        for path, content, _ in _files(self._tree):
            if len(content) > END_BYTES:
                self._add(path, content)

    def path_at(self, offset: int) -> str:
        """Return the file whose name or content is at a position of the stream."""
        return self._paths[bisect.bisect_right(self._offsets, offset) - 1]

    def _add(self, path: str, content: bytes) -> None:
        self._offsets.append(self._size)
        self._paths.append(path)
        record = b"".join((os.fsencode(path), b"\0", content, b"\0"))
        self.stream.write(record)
        self._size += len(record)


def load_exceptions(path: Path) -> tuple[_Entry, ...]:
    """Read the project's reviewed exceptions; none without the file.

    Raises:
        ConfigurationError: The file is wrong; every entry has a path, a rule and a reason.
    """
    return parse_file(_File, path).exceptions if path.exists() else ()


def host_configuration(
    home: Path | None = None, root: Path = Path("/"), variables: Mapping[str, str] = os.environ
) -> HostConfiguration:
    """Read what pip and apt of the build host are told.

    Args:
        home: Of the operator.
        root: Of the host.
        variables: The operator's environment.
    """
    home = home or Path.home()
    pip = [
        root / "etc/pip.conf",
        root / "etc/xdg/pip/pip.conf",
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        home / ".config/uv/uv.toml",
    ]
    apt = [root / "etc/apt/apt.conf", *sorted((root / "etc/apt/apt.conf.d").glob("*"))]
    copies, values = set(), set()
    for path in (*pip, *apt):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        urls = {url for line in _URL_SETTING.findall(content) for url in _URL.findall(line)}
        values |= urls
        # A package's own apt.conf.d file is the same everywhere; one with a proxy is the host's.
        if content.strip() and (path in pip or urls):
            copies.add(content)
    for name, value in variables.items():
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            values.update(_URL.findall(value.encode()))
    return HostConfiguration(frozenset(copies), tuple(sorted(values)))


_URL_SETTING = re.compile(
    rb"(?im)^\s*(?:(?:extra-)?index-url|index|find-links|proxy|url|Acquire::[^;\n]*Proxy)[\s=:\"']"
    rb"[^\n]*"
)
_URL = re.compile(rb"(?:https?|file)://[^\s\"';,\[\]]{4,}")


def _files(tree: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Yield path and content of every regular file, path and target of every link."""
    top = str(tree)
    for directory, directories, names in os.walk(top):
        inner = directory[len(top) + 1 :]
        for name in (*names, *directories):
            path = f"{directory}/{name}"
            relative = f"{inner}/{name}" if inner else name
            if os.path.islink(path):  # noqa: PTH114 - tens of thousands of files
                yield relative, os.fsencode(os.readlink(path)), True  # noqa: PTH115
            elif os.path.isfile(path):  # noqa: PTH113
                yield relative, read_file(path), False


def _scan_sealed(path: Path) -> Iterator[Finding]:
    """Yield every private key in the raw bytes of a sealed file, each once."""
    seen: set[str] = set()
    for chunk in _chunks(path):
        for found in find_keys(SEALED, chunk):
            if found.digest not in seen:
                seen.add(found.digest)
                yield found


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        tail = b""
        while content := file.read(CHUNK_BYTES):
            yield tail + content
            tail = content[-OVERLAP_BYTES:]
