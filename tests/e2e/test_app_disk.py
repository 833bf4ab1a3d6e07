"""The disk of the application's image boots as a UEFI virtual machine, and its service comes up.

The machine has no database, so it is asked for what needs none, and must say what it lacks.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.support.site import BakedLab
from toolkit.machines.qemu import QemuMachine
from toolkit.model import Secret

pytestmark = [pytest.mark.slow, pytest.mark.host]

BOOT_DEADLINE_S = 240.0
PORT = 8000
PASSWORD = b"only-for-this-test"
CONFIG = {
    "environment": "development",
    "role": "app",
    "machine": "app-disk-1",
    "endpoints": {"database": "127.0.0.1:1"},
    "settings": {"title": "Booted from a disk", "workers": 1},
    "secret_versions": {"database_password": 1},
}


def await_answer(url: str, machine: QemuMachine) -> httpx.Response:
    deadline = time.monotonic() + BOOT_DEADLINE_S
    while True:
        try:
            return httpx.get(url, timeout=5.0, trust_env=False)
        except httpx.TransportError:
            assert machine.is_running, "the machine ended"
            assert time.monotonic() < deadline, "no answer before the deadline"
            time.sleep(0.5)


def test_application_answers_from_its_disk(baked: BakedLab, tmp_path: Path) -> None:
    image = baked.image("v1", "app")
    disk, console = tmp_path / "app.raw", tmp_path / "console"
    written = baked.toolkit.result("images", "disk", image["digest"], str(disk))
    assert written["size_bytes"] == disk.stat().st_size > image["size_bytes"]
    secrets = [
        Secret("config", 1, json.dumps(CONFIG).encode()),
        Secret("database_password", 1, PASSWORD),
    ]
    with QemuMachine(disk, console=console, credentials=secrets, forward=(PORT,)) as machine:
        address = f"http://127.0.0.1:{machine.ports[PORT]}"
        healthy = await_answer(f"{address}/healthz", machine)
        assert healthy.status_code == 200
        assert healthy.headers["x-guestbook-version"] == "1"
        assert healthy.headers["x-guestbook-machine"] == "app-disk-1"
        entries = httpx.get(f"{address}/api/entries", timeout=20.0, trust_env=False)
        assert entries.status_code == 503
    assert PASSWORD not in disk.read_bytes()
