"""The pytest plugin that smoke tests run under, one process for each machine.

Fixtures:
    machine: name, environment, role, address, port, protocol of the machine under test.
    host: a testinfra host; commands run inside the machine.
    http: an `httpx.Client` bound to the machine's own address; TLS is verified against the
        environment's authority under the name in the machine's certificate.

Outcomes are written as JSON lines to the file named in the order.
"""

from __future__ import annotations

import json
import os
import shlex
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import testinfra.host
from testinfra.backend.base import BaseBackend, CommandResult

from toolkit.machines import cgroups
from toolkit.machines.enter import run_inside
from toolkit.smoke import ORDER

COMMAND_TIMEOUT_S = 30.0
HTTP_TIMEOUT_S = 5.0
MESSAGE_LIMIT = 2000


@dataclass(frozen=True)
class MachineUnderTest:
    name: str
    environment: str
    role: str
    address: str
    port: int
    protocol: str


class NsenterBackend(BaseBackend):  # type: ignore[misc]
    """testinfra commands through the machine's namespaces."""

    NAME = "nsenter"

    def __init__(self, init_pid: int) -> None:
        super().__init__("machine")
        self._init_pid = init_pid

    def run(self, command: str, *args: str, **_kwargs: Any) -> CommandResult:
        line = self.get_command(command, *args)
        done = run_inside(
            self._init_pid,
            ["/bin/sh", "-c", line],
            timeout_s=COMMAND_TIMEOUT_S,
            is_checked=False,
        )
        return self.result(done.exit_code, shlex.quote(line), done.stdout, done.stderr)


class Outcomes:
    """Writes one line for each test, as it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        total = self._seconds.get(report.nodeid, 0.0) + report.duration
        self._seconds[report.nodeid] = total
        # A test ends with its call; a setup that did not pass ends it earlier.
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self._write(report.nodeid, report.passed, total, report.longreprtext)
        elif report.when == "teardown" and report.failed:
            self._write(report.nodeid, False, total, report.longreprtext)

    def _write(self, node: str, is_passed: bool, seconds: float, text: str) -> None:
        record = {
            "name": node.rpartition("/")[2],
            "passed": is_passed,
            "seconds": round(seconds, 3),
            "message": "" if is_passed else text[-MESSAGE_LIMIT:],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    order = _order()
    cgroups.join(order["cgroup"])
    config.pluginmanager.register(Outcomes(Path(order["outcomes"])), "toolkit-outcomes")


@pytest.fixture(scope="session")
def machine() -> MachineUnderTest:
    return MachineUnderTest(**_order()["machine"])


@pytest.fixture(scope="session")
def host() -> Any:
    return testinfra.host.Host(NsenterBackend(_order()["init_pid"]))


@pytest.fixture(scope="session")
def http(machine: MachineUnderTest) -> Iterator[httpx.Client]:
    order = _order()
    verify: ssl.SSLContext | bool = True
    if machine.protocol == "https":
        verify = ssl.create_default_context(cafile=order["authority"])
    scheme = "https" if machine.protocol == "https" else "http"
    transport = _NamedTransport(order["tls_name"], verify=verify)
    with httpx.Client(
        base_url=f"{scheme}://{machine.address}:{machine.port}",
        transport=transport,
        timeout=HTTP_TIMEOUT_S,
        trust_env=False,
    ) as client:
        yield client


class _NamedTransport(httpx.HTTPTransport):
    """Connects to an address, but asks for and verifies a name."""

    def __init__(self, name: str, *, verify: ssl.SSLContext | bool) -> None:
        super().__init__(verify=verify)
        self._name = name

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": self._name}
        return super().handle_request(request)


def _order() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(os.environ[ORDER]).read_bytes())
    return document
