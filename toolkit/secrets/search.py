"""Searches files for the values of vaults; each vault is opened in a process of its own.

    python -m toolkit.secrets.search

takes an order as JSON on standard input and prints the result as JSON. It forks once for each
vault, so that no process ever knows the values of two; what comes back holds names, positions and
keyed digests, never a value. Order:

    {"vaults": [{"environment", "role", "directory", "keys_directory"|null, "keys_command"|null,
                 "keys_keyring"|null, "state"}],
     "files": [PATH, …],          searched whole
     "digest_key": HEX|null}      with one, digests of the values are returned

Result, one for each vault:

    {"environment", "role", "error": TEXT|null, "is_key_missing",
     "secrets": [{"name", "version", "created", "expires"|null, "certificate"|null,
                  "is_searchable", "digests": {PART: HEX}}],
     "hits": [{"secret", "form", "file": INDEX, "offset"}]}
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import shell
from toolkit.errors import OutsideError, ToolkitError
from toolkit.project.model import Environment, KeySetting
from toolkit.secrets.keys import KEYRING_VARIABLES, KeyRing, MissingKey
from toolkit.state import State

TIMEOUT_S = 600.0
CHUNK_BYTES = 64 * 1024 * 1024
"""Of a file that holds something, in memory at once."""

OVERLAP_BYTES = 64 * 1024
"""A value that lies across the border of two chunks is whole in one of them."""

GROUP_FILES = 200
GROUP_BYTES = 64 * 1024 * 1024
"""One `grep` takes so many files; what it cannot read is read again here."""

SHORTEST_LINE_BYTES = 6
"""A shorter line of a value is in every file."""

OWN_FILES = "/proc/self/fd/"
"""Below this are descriptors, which another process has to inherit."""

OWN_VALUES = "vault password"
"""Under this name the password of the vault itself is searched for."""


@dataclass(frozen=True, slots=True)
class VaultPlace:
    """Where the values of one environment and role are."""

    environment: Environment
    role: str

    @property
    def path(self) -> Path:
        """The vault file."""
        return self.environment.directory / "group_vars" / self.role / "vault.yml"


def search(
    places: Iterable[VaultPlace],
    files: Sequence[Path | str],
    *,
    state: State,
    digest_key: bytes | None = None,
    pass_fds: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Search files for the values of vaults, in a process of its own for each vault.

    Args:
        places: Vaults; one that cannot be opened is reported, not raised.
        files: What to search. `/proc/self/fd/N` for descriptors in `pass_fds`.
        state: Where passwords are, unless an environment names another place.
        digest_key: Return digests of the values under this key.
        pass_fds: Descriptors that the search inherits.

    Returns:
        For each vault what the module's description says.

    Raises:
        OutsideError: The search itself failed.
    """
    vaults = [_as_order(place, state) for place in places]
    order = {
        "vaults": vaults,
        "files": [str(path) for path in files],
        "digest_key": digest_key.hex() if digest_key else None,
    }
    if not vaults:
        return []
    inherited = {name: os.environ[name] for name in KEYRING_VARIABLES if name in os.environ}
    done = shell.run(
        [sys.executable, "-I", "-m", "toolkit.secrets.search"],
        env=shell.environment(**inherited),
        timeout_s=TIMEOUT_S,
        stdin=json.dumps(order).encode(),
        pass_fds=pass_fds,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)
    if len(results) != len(vaults):
        raise OutsideError("the search for secrets did not look for all of them")
    return results


def _as_order(place: VaultPlace, state: State) -> dict[str, Any]:
    keys = place.environment.keys
    return {
        "environment": place.environment.name,
        "role": place.role,
        "directory": str(place.environment.directory),
        "keys_directory": str(keys.directory) if keys.directory else None,
        "keys_command": list(keys.command) if keys.command else None,
        "keys_keyring": keys.keyring,
        "state": str(state.root),
    }


def main() -> None:
    """Carry out the order on standard input."""
    order: dict[str, Any] = json.load(sys.stdin)
    # What the forked processes need, imported once.
    from toolkit.secrets import certificates, document, envelope, needles  # noqa: F401, PLC0415

    key = bytes.fromhex(order["digest_key"]) if order["digest_key"] else None
    print(json.dumps(_search_all(order["vaults"], order["files"], key)))


def _search_all(
    vaults: Sequence[Mapping[str, Any]], files: Sequence[str], key: bytes | None
) -> list[dict[str, Any]]:
    """Search with every vault, each in a process of its own."""
    results = []
    running: list[tuple[int, int]] = []
    waiting = list(vaults)
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(_fork(waiting.pop(0), files, key))
        pid, descriptor = running.pop(0)
        with os.fdopen(descriptor, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        results.append(json.loads(answer))
    return results


def _fork(vault: Mapping[str, Any], files: Sequence[str], key: bytes | None) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(_search_one(vault, files, key)).encode())
    finally:
        # Whatever happened: never on into the parent's code, and no traceback with values.
        os._exit(0)


def _search_one(
    vault: Mapping[str, Any], files: Sequence[str], key: bytes | None
) -> dict[str, Any]:
    from toolkit.secrets import certificates, document, envelope  # noqa: PLC0415
    from toolkit.secrets.needles import is_searchable, needles  # noqa: PLC0415

    place = VaultPlace(_environment(vault), vault["role"])
    result: dict[str, Any] = {
        "environment": vault["environment"],
        "role": vault["role"],
        "error": None,
        "is_key_missing": False,
        "secrets": [],
        "hits": [],
    }
    try:
        password = KeyRing(place.environment, State(Path(vault["state"]))).password(place.role)
        plaintext = envelope.open_vault(
            place.path.read_bytes(), password=password, where=place.path
        )
        content = document.parse(
            plaintext, environment=vault["environment"], role=place.role, where=str(place.path)
        )
    except (ToolkitError, OSError) as error:
        result["error"] = error.message if isinstance(error, ToolkitError) else str(error)
        result["is_key_missing"] = isinstance(error, MissingKey)
        return result
    wanted: list[tuple[bytes, str, str]] = [
        (needle, OWN_VALUES, form) for needle, form in needles(password.reveal()).items()
    ]
    for entry in content.entries.values():
        # A certificate is public.
        hidden = {part: value for part, value in entry.parts.items() if part != "certificate"}
        certificate = entry.parts.get("certificate")
        result["secrets"].append(
            {
                "name": entry.name,
                "version": entry.version,
                "created": entry.created,
                "expires": certificates.expiry(certificate) if certificate else None,
                "certificate": certificate.decode() if certificate else None,
                "is_searchable": all(map(is_searchable, hidden.values())),
                "digests": {
                    part: hmac.digest(key, value, "sha256").hex()
                    for part, value in entry.parts.items()
                }
                if key
                else {},
            }
        )
        for value in hidden.values():
            wanted += [(needle, entry.name, form) for needle, form in needles(value).items()]
    result["hits"] = find(files, wanted)
    return result


def find(files: Sequence[str], wanted: Sequence[tuple[bytes, str, str]]) -> list[dict[str, Any]]:
    """Return the first place of every value in each of its forms, in every file.

    Python looks for one value after the other, at 1.6 GB/s each. `grep` looks for all of them in
    one pass, so it says which files deserve that.

    Args:
        files: Paths; one that is gone by now holds nothing.
        wanted: What to look for, with the name of the secret and of the form.

    Returns:
        Dictionaries with `secret`, `form`, `file` (an index) and `offset`.
    """
    lines = {max(needle.split(b"\n"), key=len): needle for needle, _, _ in wanted}
    if any(len(line) < SHORTEST_LINE_BYTES for line in lines):
        chosen = list(range(len(files)))
    else:
        chosen = [index for group in _groups(files) for index in _grep(files, group, lines)]
    return [hit for index in chosen for hit in _hits(files[index], index, wanted)]


def _groups(files: Sequence[str]) -> Iterator[list[int]]:
    """Yield indices of files, so many that one `grep` takes them."""
    group: list[int] = []
    total = 0
    for index, path in enumerate(files):
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - also /proc/self/fd/N
        except FileNotFoundError:
            # A database removes files of its own all the time.
            continue
        if group and (len(group) == GROUP_FILES or total + size > GROUP_BYTES):
            yield group
            group, total = [], 0
        group.append(index)
        total += size
    if group:
        yield group


def _grep(files: Sequence[str], group: Sequence[int], lines: Iterable[bytes]) -> list[int]:
    """Return which files hold one of the lines; in doubt, all of them.

    The lines go through a pipe, and match as bytes.
    """
    paths = {files[index]: index for index in group}
    inherited = [int(path.rpartition("/")[2]) for path in paths if path.startswith(OWN_FILES)]
    done = shell.run(
        ["grep", "-lsZaF", "-f", "-", "--", *paths],
        env=shell.environment(LC_ALL="C"),
        timeout_s=TIMEOUT_S,
        stdin=b"\n".join(lines) + b"\n",
        pass_fds=inherited,
        is_checked=False,
        max_output_bytes=None,
    )
    if done.exit_code not in {0, 1}:
        return list(group)
    return [paths[os.fsdecode(name)] for name in done.stdout.split(b"\0") if name]


def _hits(path: str, index: int, wanted: Iterable[tuple[bytes, str, str]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for offset, content in _chunks(path):
        for needle, secret, form in wanted:
            at = content.find(needle) if (secret, form) not in found else -1
            if at >= 0:
                found[secret, form] = {
                    "secret": secret,
                    "form": form,
                    "file": index,
                    "offset": offset + at,
                }
    return list(found.values())


def _chunks(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield a file in overlapping chunks, each with its position."""
    try:
        stream = open(path, "rb")  # noqa: PTH123, SIM115 - also /proc/self/fd/N
    except FileNotFoundError:
        return
    with stream:
        offset, tail = 0, b""
        while content := stream.read(CHUNK_BYTES):
            yield offset - len(tail), tail + content
            offset, tail = offset + len(content), content[-OVERLAP_BYTES:]


def _environment(vault: Mapping[str, Any]) -> Environment:
    directory, command = vault["keys_directory"], vault["keys_command"]
    return Environment(
        name=vault["environment"],
        directory=Path(vault["directory"]),
        network=ipaddress.IPv4Network("10.0.0.0/24"),
        keys=KeySetting(
            Path(directory) if directory else None,
            tuple(command) if command else None,
            vault["keys_keyring"],
        ),
        deployments={},
    )


if __name__ == "__main__":
    main()
