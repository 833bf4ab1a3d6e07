"""The only module that starts processes.

Argument lists, never a shell. The environment is built from nothing, every call has a time
limit, and output is bounded, since a machine may print without end.

What a command starts and waits for must not outlive it, and certainly not act any more when
another command has taken over. A killed command cannot see to that. So each child, with all that
it starts in turn, carries a mark in its environment by which it is found: see `end_children`.
"""

from __future__ import annotations

import errno
import itertools
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from toolkit.errors import DeadlineExceeded, OutsideError
from toolkit.machines.processes import ProcessId, end_marked, identify

MINIMAL_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
"""What a child sees unless the caller adds to it: nothing of the operator's own environment."""

MAX_OUTPUT_BYTES = 4 * 1024 * 1024
"""Kept of each stream; what comes after it is read and thrown away."""

MARK = "TOOLKIT_CHILD_OF"
"""`/`, then for each level of processes that start processes: which one, and its how manieth child
this is, as `PID.START/NUMBER/`."""

_running: dict[int, str] = {}
"""Process ids and marks of the children that are waited for."""

_count = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended.

    Attributes:
        exit_code: As the kernel reports it; negative for a signal.
        stdout: Bounded as the caller asked.
        stderr: Likewise.
        seconds: Wall time.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Standard error as text, without surrounding white space."""
        return self.stderr.decode(errors="replace").strip()


def environment(**extra: str) -> dict[str, str]:
    """Return the minimal environment with `extra` added."""
    return {**MINIMAL_ENVIRONMENT, **extra}


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    stdin: bytes = b"",
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    is_checked: bool = True,
    max_output_bytes: int | None = MAX_OUTPUT_BYTES,
    on_output: Callable[[bytes], None] | None = None,
    ends_family: bool = False,
) -> Completed:
    """Run a program to its end and return what it printed.

    The child leads a session of its own, so that a Ctrl-C on the terminal reaches the toolkit
    alone, which then decides.

    Args:
        argv: Program and arguments.
        env: The whole environment of the child; see `environment`.
        timeout_s: After so many seconds the child's process group is killed.
        stdin: Bytes for the child's standard input.
        cwd: Working directory.
        pass_fds: Descriptors that the child inherits.
        is_checked: Raise when the exit code is not zero.
        max_output_bytes: Kept of each output; None for all, from programs that are trusted.
        on_output: Called with each piece of standard output as it comes.
        ends_family: Whether what it leaves running is ended with it, wherever that has gone.

    Raises:
        OutsideError: The program is missing, or failed while `is_checked`.
        DeadlineExceeded: The time limit passed.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    mark = _new_mark()
    process = _start(words, env={**env, MARK: mark}, cwd=cwd, pass_fds=pass_fds)
    _running[process.pid] = mark
    try:
        stdout, stderr = _exchange(
            process,
            stdin,
            deadline=started + timeout_s,
            limit=max_output_bytes,
            on_output=on_output,
        )
    except TimeoutError:
        raise DeadlineExceeded(f"{words[0]}: no end after {timeout_s:g} s") from None
    finally:
        _running.pop(process.pid, None)
        if process.poll() is None:
            _kill(process.pid, mark)
            process.wait()
        elif ends_family:
            end_marked(MARK, mark)
    completed = Completed(process.returncode, stdout, stderr, time.monotonic() - started)
    if is_checked and completed.exit_code != 0:
        detail = completed.error_text or completed.text.strip() or "it printed nothing"
        raise OutsideError(f"{words[0]} exited with {completed.exit_code}: {detail[-2000:]}")
    return completed


def kill_running() -> None:
    """Kill every program that another thread waits for in `run`, which then raises."""
    for pid, mark in tuple(_running.items()):
        _kill(pid, mark)


def end_children(command: ProcessId) -> None:
    """End what another command has started and waited for, and all that came of it.

    Programs that were meant to outlive it, machines and balancers, carry no mark.

    Args:
        command: A process of the toolkit that has ended, or must not go on.

    Raises:
        OutsideError: The kernel does not let go of one.
    """
    here = identify(os.getpid())
    if here is None or command.boot != here.boot:
        return
    left = end_marked(MARK, _mark_of(command))
    if left:
        numbers = ", ".join(str(one.pid) for one in left)
        raise OutsideError(f"processes of an earlier command cannot be ended: {numbers}")


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    log: Path | int,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    is_marked: bool = False,
) -> int:
    """Start a program that outlives this command, and return its process id.

    Args:
        argv: Program and arguments.
        env: The whole environment of the child.
        log: Takes its output: a file that is truncated first and readable by root alone, or an
            open descriptor of the caller's.
        cwd: Working directory.
        pass_fds: Descriptors that the child inherits.
        is_marked: Whether it belongs to this command until it drops the mark from its environment.

    Raises:
        OutsideError: The program is missing.
    """
    words = tuple(str(word) for word in argv)
    is_open = isinstance(log, int)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = log if isinstance(log, int) else os.open(log, flags, 0o600)
    if is_marked:
        env = {**env, MARK: _new_mark()}
    with os.fdopen(descriptor, "wb", closefd=not is_open) as output:
        return _start(
            words, env=env, cwd=cwd, pass_fds=pass_fds, stdin=subprocess.DEVNULL, output=output
        ).pid


def _start(
    argv: tuple[str, ...],
    *,
    env: Mapping[str, str],
    cwd: Path | None,
    pass_fds: Sequence[int],
    stdin: int = subprocess.PIPE,
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            stdin=stdin,
            stdout=output or subprocess.PIPE,
            stderr=output or subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise OutsideError(
            f"{argv[0]} is not installed", hint="run 'toolkit doctor' to see what is missing"
        ) from None
    except PermissionError:
        raise OutsideError(
            f"{argv[0]} may not be run by this user", hint="is its file executable?"
        ) from None
    except OSError as error:
        hint = "a script begins with '#!' and its interpreter"
        raise OutsideError(
            f"{argv[0]} could not be started: {error.strerror}",
            hint=hint if error.errno == errno.ENOEXEC else None,
        ) from None


def _exchange(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    *,
    deadline: float,
    limit: int | None,
    on_output: Callable[[bytes], None] | None,
) -> tuple[bytes, bytes]:
    """Feed standard input and collect both outputs, bounded, until the child closes them."""
    assert process.stdin and process.stdout and process.stderr
    kept: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    pending = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        if pending:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            for key, _ in selector.select(min(remaining, 1.0)):
                if key.fileobj is process.stdin:
                    try:
                        pending = pending[os.write(key.fd, pending[:65536]) :]
                    except BrokenPipeError:
                        pending = pending[:0]
                    if not pending:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                if on_output and key.fileobj is process.stdout:
                    on_output(chunk)
                buffer = kept[key.fileobj]  # type: ignore[index]
                buffer += chunk if limit is None else chunk[: limit - len(buffer)]
            if process.poll() is not None and not selector.select(0):
                # A daemon that the child left behind may hold its output open for ever.
                break
    try:
        process.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    stdout, stderr = (bytes(buffer) for buffer in kept.values())
    process.stdout.close()
    process.stderr.close()
    return stdout, stderr


def _kill(pid: int, mark: str) -> None:
    """Kill a child's process group and whatever has left that."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    end_marked(MARK, mark)


def _new_mark() -> str:
    """Return the mark of one more child."""
    above = os.environ.get(MARK, "/").removesuffix("/")
    here = identify(os.getpid())
    return f"{above}{_mark_of(here) if here else '/'}{next(_count)}/"


def _mark_of(command: ProcessId) -> str:
    return f"/{command.pid}.{command.started}/"
