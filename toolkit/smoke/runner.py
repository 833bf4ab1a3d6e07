"""Run a role's smoke tests against machines, several at once."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError, DeadlineExceeded, SmokeTestsFailed
from toolkit.machines import cgroups
from toolkit.machines.processes import identify
from toolkit.model import Machine, SmokeCheck
from toolkit.project.model import Project
from toolkit.smoke import ORDER
from toolkit.state import State, make_private, write_atomically

PARALLEL_MACHINES = 4
PREFIX = "smoke-"
"""Of the names of scratch directories and control groups; a process id and a token follow."""

PASSED, FAILED = 0, 1
"""Exit codes of pytest that mean that the tests ran."""


class PytestRunner:
    """Runs `roles/<role>/smoke` with pytest inside the environment's network.

    Args:
        project: Where the tests are.
        state: Where scratch files go.
        namespace: Network namespace of the environment.
        authority: Certificate that machines' certificates are verified with, if there is one.
        tls_name: Returns the name in the certificate of a role's machines.
        init_pid: Returns the host's process id of a machine's init.
    """

    def __init__(
        self,
        project: Project,
        *,
        state: State,
        namespace: str,
        authority: Path | None,
        tls_name: Callable[[str], str],
        init_pid: Callable[[str], int | None],
    ) -> None:
        self._project = project
        self._state = state
        self._namespace = namespace
        self._authority = authority
        self._tls_name = tls_name
        self._init_pid = init_pid

    def test(self, machines: Sequence[Machine], *, deadline_s: float) -> list[SmokeCheck]:
        """Test every machine and return every single outcome.

        Raises:
            ConfigurationError: A role has no smoke tests.
            SmokeTestsFailed: The tests themselves could not run.
        """
        deadline = time.monotonic() + deadline_s
        for machine in machines:
            if not self._tests(machine.role):
                raise ConfigurationError(
                    f"role {machine.role} has no smoke tests in "
                    f"{self._project.role_directory(machine.role) / 'smoke'}",
                    hint="nothing serves before it has passed: write test_*.py there",
                )
        with ThreadPoolExecutor(PARALLEL_MACHINES) as pool:
            outcomes = pool.map(lambda one: self._test_one(one, deadline=deadline), machines)
            return [check for checks in outcomes for check in checks]

    def sweep(self) -> None:
        """End what the tests of a command that was killed have left running."""
        for group in cgroups.groups_below(self._group):
            owner = group.removeprefix(PREFIX).partition("-")[0]
            if group.startswith(PREFIX) and owner.isdecimal() and identify(int(owner)) is None:
                cgroups.remove(f"{self._group}/{group}")
                shutil.rmtree(self._state.runtime / group, ignore_errors=True)

    @property
    def _group(self) -> str:
        return f"toolkit-{self._state.id}"

    def _tests(self, role: str) -> list[Path]:
        """Return the tests of a role and of every layer that its image has, lowest first."""
        names = dict.fromkeys([*(one.role for one in self._project.roles[role].layers), role])
        directories = [self._project.role_directory(name) / "smoke" for name in names]
        return [path for path in directories if any(path.glob("test_*.py"))]

    def _test_one(self, machine: Machine, *, deadline: float) -> list[SmokeCheck]:
        pid = self._init_pid(machine.name)
        if pid is None:
            return [SmokeCheck(machine.name, "machine", False, 0.0, "the machine is not running")]
        scratch = make_private(
            self._state.runtime / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        )
        try:
            return self._run_pytest(machine, pid, scratch, deadline=deadline)
        finally:
            # What a test has started may lead a session of its own.
            cgroups.remove(f"{self._group}/{scratch.name}")
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
            "cgroup": f"{self._group}/{scratch.name}",
        }
        write_atomically(scratch / "order", json.dumps(order).encode())
        began = time.monotonic()
        try:
            done = shell.run(
                ["nsenter", f"--net=/run/netns/{self._namespace}", sys.executable, "-I", "-m",
                 "pytest", "-q", "-p", "no:cacheprovider", "-p", "toolkit.smoke.plugin",
                 "--import-mode=importlib", "--tb=short",
                 "--rootdir", self._project.root / "roles", "-c", "/dev/null",
                 *self._tests(machine.role)],
                env=shell.environment(**{
                    ORDER: str(scratch / "order"),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    # Only our plugin: testinfra's own would connect to the host itself.
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                }),
                timeout_s=max(deadline - began, 0.1),
                cwd=scratch,
                is_checked=False,
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


def _read(outcomes: Path, machine: str) -> list[SmokeCheck]:
    try:
        lines = outcomes.read_text().splitlines()
    except FileNotFoundError:
        return []
    records = [json.loads(line) for line in lines]
    return [
        SmokeCheck(machine, r["name"], r["passed"], r["seconds"], r["message"]) for r in records
    ]
