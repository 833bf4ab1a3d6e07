"""HAProxy's run-time interface: commands over a Unix socket, answers as text.

One connection carries one batch of commands and ends with it.
"""

from __future__ import annotations

import csv
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toolkit.errors import DeadlineExceeded, OutsideError

MAX_BATCH_BYTES: Final = 8192
"""A line must fit HAProxy's buffer, 16 KiB by default, less what it reserves of it."""

# Bits of srv_admin_state and a value of srv_op_state, from HAProxy's management guide.
ADMIN_MAINTENANCE: Final = 0x01 | 0x02 | 0x20 | 0x40
ADMIN_DRAIN: Final = 0x08 | 0x10
OPERATION_STOPPED: Final = "0"

_FINGERPRINT: Final = re.compile(r"^SHA1 FingerPrint: ([0-9A-Fa-f]{40})$", re.MULTILINE)
_HINT: Final = "'toolkit up' starts a balancer anew that takes no commands"

_STATE_HEADER: Final = "# be_id "
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HaproxySocket:
    """Where one HAProxy process takes commands.

    Attributes:
        path: Of the Unix socket.
        prefix: Put before every command; the master's socket passes commands that begin with
            `@!PID ` on to that worker.
        timeout_s: For one batch.
    """

    path: Path
    prefix: str = ""
    timeout_s: float = 5.0

    def ask(self, commands: Sequence[str]) -> str:
        """Send commands and return what they all printed, in order.

        Every command prints an empty line after its answer.

        Raises:
            OutsideError: HAProxy does not listen, or hung up before every answer was whole.
            DeadlineExceeded: It did not answer in time.
        """
        return "".join(
            self._exchange(";".join(batch), answers=len(batch)) for batch in self._batches(commands)
        )

    def replace_certificate(self, path: Path) -> None:
        """Have HAProxy serve what a certificate's file holds now, from the next handshake on.

        Args:
            path: Of the file, as the configuration names it.

        Raises:
            OutsideError: HAProxy refused it; it goes on with the old one.
        """
        # An empty line would end it.
        pem = "\n".join(line for line in path.read_text().splitlines() if line.strip())
        answer = self._exchange(f"set ssl cert {path} <<\n{pem}\n")
        answer += self._exchange(f"commit ssl cert {path}")
        if "Success!" not in answer:
            self._exchange(f"abort ssl cert {path}")
            raise OutsideError(f"haproxy refuses the certificate: {_first_line(answer)}")

    def certificate_fingerprint(self, path: Path) -> str | None:
        """Return the SHA-1 of the certificate that HAProxy serves, in hexadecimal, if it has one.

        Args:
            path: Of the certificate's file, as the configuration names it.
        """
        found = _FINGERPRINT.search(self._exchange(f"show ssl cert {path}"))
        return found[1].lower() if found else None

    def _batches(self, commands: Sequence[str]) -> Iterator[list[str]]:
        """Split commands into as many as one line can hold, each with its prefix."""
        batch: list[str] = []
        length = 0
        for command in commands:
            word = self.prefix + command
            if batch and length + len(word) > MAX_BATCH_BYTES:
                yield batch
                batch, length = [], 0
            batch.append(word)
            length += len(word) + 1
        if batch:
            yield batch

    def _exchange(self, line: str, *, answers: int = 1) -> str:
        """Send a line with so many commands and return all that they printed."""
        deadline = time.monotonic() + self.timeout_s
        answer = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout_s)
                connection.connect(str(self.path))
                connection.sendall(line.encode() + b"\n")
                # The master's socket stays open for more unless told that there is none.
                connection.shutdown(socket.SHUT_WR)
                while len(answer) < _MAX_ANSWER_BYTES:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    chunk = connection.recv(65536)
                    if not chunk:
                        break
                    answer += chunk
        except TimeoutError:
            raise DeadlineExceeded(
                f"haproxy at {self.path} did not answer within {self.timeout_s:g} s", hint=_HINT
            ) from None
        except OSError as error:
            raise OutsideError(
                f"haproxy at {self.path} cannot be reached: {error.strerror or error}", hint=_HINT
            ) from error
        text = answer.decode(errors="replace")
        # A process that ends while it answers leaves a table without its last rows.
        if text.split("\n")[:-1].count("") < answers:
            raise OutsideError(
                f"haproxy at {self.path} hung up before its answer was whole", hint=_HINT
            )
        return text


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "it said nothing")


def parse_stat(text: str) -> list[dict[str, str]]:
    """Return the rows of `show stat` found in `text`, each by column name."""
    header, *rows = csv.reader(_table(text, header="# pxname,"))
    return [dict(zip(header, row, strict=False)) for row in rows]


def has_servers_state(text: str) -> bool:
    """Whether `parse_servers_state` would find something."""
    return _STATE_HEADER in text


def is_backend_unknown(text: str) -> bool:
    """Whether HAProxy says that its configuration has no such backend."""
    return "Can't find backend." in text


def parse_servers_state(text: str) -> list[dict[str, str]]:
    """Return the rows of `show servers state` found in `text`, each by column name."""
    header, *rows = (line.split(" ") for line in _table(text, header=_STATE_HEADER))
    return [dict(zip(header, row, strict=False)) for row in rows]


def parse_info(text: str) -> dict[str, str]:
    """Return the fields of `show info`."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: value.strip() for name, separator, value in pairs if separator}


@dataclass(frozen=True, slots=True)
class Processes:
    """What the master reports of itself.

    Attributes:
        failed_reloads: In a row, up to now.
        current: Process ids of the workers that take new connections.
        leaving: Process ids of the workers that a reload has replaced and that still carry some.
    """

    failed_reloads: int
    current: tuple[int, ...]
    leaving: tuple[int, ...]


def parse_processes(text: str) -> Processes:
    """Return what the master's `show proc` says."""
    failed = re.search(r"\[failed: (\d+)\]", text)
    if failed is None:
        raise OutsideError(f"haproxy's master answered without a table: {text.strip()[:200]!r}")
    workers: dict[str, list[int]] = {"# workers": [], "# old workers": []}
    section: list[int] | None = None
    for line in text.splitlines():
        if line.startswith("# "):
            section = workers.get(line.strip())
        elif section is not None and line[:1].isdigit():
            section.append(int(line.split()[0]))
    return Processes(
        failed_reloads=int(failed[1]),
        current=tuple(workers["# workers"]),
        leaving=tuple(workers["# old workers"]),
    )


def _table(text: str, *, header: str) -> list[str]:
    """Return the lines from a header, without its `# `, to the next empty line.

    Columns are found by name, since later versions of HAProxy add some.
    """
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(header)), None)
    if first is None:
        raise OutsideError(f"haproxy answered without a table: {text.strip()[:200]!r}")
    last = lines.index("", first) if "" in lines[first:] else len(lines)
    return [lines[first].removeprefix("# "), *lines[first + 1 : last]]
