"""Run commands inside a machine's namespaces. Entering takes about 4 ms."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit import shell

INSIDE_ENVIRONMENT = {**shell.MINIMAL_ENVIRONMENT, "HOME": "/root"}


def argv_inside(init_pid: int, argv: Sequence[str]) -> list[str]:
    """Return the argument list that runs `argv` in the machine whose init is `init_pid`."""
    return ["nsenter", "--target", str(init_pid), "--all", "--", *argv]


def run_inside(
    init_pid: int,
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    is_checked: bool = True,
    max_output_bytes: int | None = shell.MAX_OUTPUT_BYTES,
) -> shell.Completed:
    """Run a program inside a machine; arguments and errors as `toolkit.shell.run`."""
    return shell.run(
        argv_inside(init_pid, argv),
        env=INSIDE_ENVIRONMENT,
        timeout_s=timeout_s,
        stdin=stdin,
        is_checked=is_checked,
        max_output_bytes=max_output_bytes,
    )
