"""It answers, in the version that was baked."""

import json
import time

UP_WITHIN_S = 10.0


def test_it_answers(host, http, machine):
    deadline = time.monotonic() + UP_WITHIN_S
    while host.run("systemctl is-active echo.service").stdout.strip() == "activating":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while not host.socket(f"tcp://0.0.0.0:{machine.port}").is_listening:
        state = host.run("systemctl is-active echo.service").stdout.strip()
        assert state == "active", host.run("journalctl --no-pager -n 10 -u echo.service").stdout
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = http.get("/smoke")
    assert answer.status_code == 200
    baked = json.loads(host.file("/opt/echo/version.json").content_string)
    assert answer.headers["X-Version"] == baked["version"]
