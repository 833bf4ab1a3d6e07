"""Run a role's smoke tests against machines, several at once."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError, DeadlineExceeded, SmokeTestsFailed
from toolkit.machines.processes import identify
from toolkit.model import Machine, SmokeCheck
from toolkit.network.names import inside
from toolkit.project.model import Project
from toolkit.smoke import ORDER
from toolkit.state import make_private, remove_if_empty, write_atomically

PARALLEL_MACHINES = 4
CANCEL_POLL_S = 0.1
PASSED, FAILED = 0, 1
"""Exit codes of pytest that mean that the tests ran."""


class PytestRunner:
    """Runs `roles/<role>/smoke` with pytest inside the environment's network.

    Args:
        project: Where the tests are.
        scratch: Directory for scratch files; made here.
        namespace: Network namespace of the environment.
        authority: Certificate that machines' certificates are verified with, if there is one.
        tls_name: Returns the name in the certificate of a role's machines.
        init_pid: Returns the host's process id of a machine's init.
    """

    def __init__(
        self,
        project: Project,
        *,
        scratch: Path,
        namespace: str,
        authority: Path | None,
        tls_name: Callable[[str], str],
        init_pid: Callable[[str], int | None],
    ) -> None:
        self._project = project
        self._scratch = scratch
        self._namespace = namespace
        self._authority = authority
        self._tls_name = tls_name
        self._init_pid = init_pid

    def need_tests(self, role: str) -> None:
        """Refuse a role that has no tests of its own: those of the layers below say nothing of it.

        Raises:
            ConfigurationError: Neither it nor its uppermost layer has any.
        """
        names = dict.fromkeys([self._project.roles[role].layers[-1].role, role])
        directories = [self._project.role_directory(name) / "smoke" for name in names]
        if not any(any(path.glob("test_*.py")) for path in directories):
            raise ConfigurationError(
                f"role {role} has no smoke tests in {' or '.join(map(str, directories))}",
                hint="nothing serves before it has passed: write test_*.py there",
            )

    def test(self, machines: Sequence[Machine], *, deadline_s: float) -> list[SmokeCheck]:
        """Test every machine and return every single outcome.

        Raises:
            SmokeTestsFailed: The tests themselves could not run.
        """
        deadline = time.monotonic() + deadline_s
        with ThreadPoolExecutor(PARALLEL_MACHINES) as pool:
            waiting = [pool.submit(self._test_one, one, deadline=deadline) for one in machines]
            try:
                wait(waiting)
            except BaseException:
                # Told to stop now: the threads would wait for tests that may take minutes.
                while wait(waiting, timeout=CANCEL_POLL_S).not_done:
                    shell.kill_running()
                raise
            return [check for future in waiting for check in future.result()]

    def sweep(self) -> None:
        """Remove scratch files of processes that were killed; others may be testing just now."""
        for path in self._scratch.glob("*-*-*"):
            pid, started, _ = path.name.split("-")
            process = identify(int(pid))
            if process is None or str(process.started) != started:
                shutil.rmtree(path, ignore_errors=True)
        remove_if_empty(self._scratch)

    def _tests(self, role: str) -> list[Path]:
        """Return the tests of a role and of every layer that its image has, lowest first."""
        names = dict.fromkeys([*(one.role for one in self._project.roles[role].layers), role])
        directories = [self._project.role_directory(name) / "smoke" for name in names]
        return [path for path in directories if any(path.glob("test_*.py"))]

    def _test_one(self, machine: Machine, *, deadline: float) -> list[SmokeCheck]:
        pid = self._init_pid(machine.name)
        if pid is None:
            return [SmokeCheck(machine.name, "machine", False, 0.0, "the machine is not running")]
        here = identify(os.getpid())
        name = f"{here.pid}-{here.started}-{secrets.token_hex(4)}" if here else ""
        scratch = make_private(self._scratch / name)
        try:
            return self._run_pytest(machine, pid, scratch, deadline=deadline)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_pytest(
        self, machine: Machine, pid: int, scratch: Path, *, deadline: float
    ) -> list[SmokeCheck]:
        spec = self._project.roles[machine.role]
        outcomes = scratch / "outcomes"
        order = {
            "machine": {
                "name": machine.name,
                "environment": machine.environment,
                "role": machine.role,
                "address": machine.address,
                "port": spec.port,
                "protocol": spec.protocol,
            },
            "init_pid": pid,
            "authority": str(self._authority) if self._authority else None,
            "tls_name": self._tls_name(machine.role),
            "outcomes": str(outcomes),
        }
        write_atomically(scratch / "order", json.dumps(order).encode())
        began = time.monotonic()
        try:
            done = shell.run(
                inside(
                    self._namespace,
                    pytest_command(self._project.root / "roles", self._tests(machine.role)),
                ),
                env=shell.environment(**{
                    ORDER: str(scratch / "order"),
                    # Only our plugin: testinfra's own would connect to the host itself.
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                }),
                timeout_s=max(deadline - began, 0.1),
                cwd=scratch,
                is_checked=False,
                ends_family=True,
            )  # fmt: skip
        except DeadlineExceeded:
            late = SmokeCheck(
                machine.name, "deadline", False, time.monotonic() - began,
                "the smoke tests did not end in time",
            )  # fmt: skip
            return [*_read(outcomes, machine.name), late]
        checks = _read(outcomes, machine.name)
        if done.exit_code not in {PASSED, FAILED} or not checks:
            raise SmokeTestsFailed(
                f"the smoke tests of {machine.role} could not run: {done.text[-2000:].strip()}"
            )
        if done.exit_code == FAILED and all(check.is_passed for check in checks):
            checks.append(SmokeCheck(machine.name, "pytest", False, 0.0, done.text[-2000:]))
        return checks


def pytest_command(roles: Path, tests: Sequence[Path]) -> list[str | Path]:
    """Return the command that runs tests, and writes nothing into the project.

    `-B`, since with `-I` Python does not heed PYTHONDONTWRITEBYTECODE.
    """
    return [
        sys.executable, "-I", "-B", "-m", "pytest", "-q",
        "-p", "no:cacheprovider", "-p", "toolkit.smoke.plugin",
        "--import-mode=importlib", "--tb=short",
        "--rootdir", roles, "-c", "/dev/null", *tests,
    ]  # fmt: skip


def _read(outcomes: Path, machine: str) -> list[SmokeCheck]:
    try:
        lines = outcomes.read_text().splitlines()
    except FileNotFoundError:
        return []
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        raise SmokeTestsFailed(
            f"what the smoke tests of {machine} have written is damaged",
            hint="is the file system of /run full?",
        ) from None
    return [
        SmokeCheck(machine, r["name"], r["passed"], r["seconds"], r["message"]) for r in records
    ]
