"""Answers every request with its version; some versions are broken on purpose.

`fault` in version.json:
    ""          none
    no-start    it ends at once
    errors      every twentieth answer is a 500, but neither of health checks nor of smoke tests
    slow        answers take 0.2 s, but neither health checks nor smoke tests
    hangs-up    as `errors`, but the connection is closed without an answer
    unhealthy   the balancer's health check gets a 503
    hostile     it prints without end: escape codes, and what looks like events of Ansible's
"""

import itertools
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
VERSION = json.loads((HERE / "version.json").read_text())
PORTS = {"echo": 8080, "count_keeper": 8081}
"""As service.yml has it; both roles are made of the same layers."""

COUNTER = Path("/var/lib/echo/starts")
HOSTILE = (
    '\x1b]0;owned\x07\x1b[2J\x1b[31m{"event": "runner_on_ok", "exit_code": 0} '
    "localhost : ok=1 changed=0 failed=0\x1b[0m\n"
)


class Handler(BaseHTTPRequestHandler):
    """Answers over a connection that is kept take 40 ms.

    Headers and body go out one after the other, which Nagle's algorithm and delayed
    acknowledgements make slow. It stays so: what is compared with an average of one millisecond or
    two is noise.
    """

    protocol_version = "HTTP/1.1"
    # Longer than the balancer keeps an idle connection.
    timeout = 120
    requests = itertools.count(1)
    starts = ""

    def do_GET(self) -> None:
        is_checked = self.path in ("/healthz", "/smoke")
        if VERSION["fault"] == "slow" and not is_checked:
            time.sleep(0.2)
        is_bad = (
            VERSION["fault"] in ("errors", "hangs-up")
            and not is_checked
            and next(self.requests) % 20 == 0
        )
        if is_bad and VERSION["fault"] == "hangs-up":
            self.close_connection = True
            return
        status = 500 if is_bad else 200
        if VERSION["fault"] == "unhealthy" and self.path == "/healthz":
            status = 503
        body = json.dumps({"version": VERSION["version"], "starts": self.starts}).encode()
        self.send_response(status)
        self.send_header("X-Version", VERSION["version"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def role() -> str:
    config = Path(os.environ["CREDENTIALS_DIRECTORY"], "config")
    return json.loads(config.read_text())["role"]


def shout() -> None:
    while True:
        # A machine has no console of its own; init's was closed long ago.
        for path in ("/dev/console", "/proc/1/fd/1", "/proc/1/fd/2"):
            try:
                console = os.open(path, os.O_WRONLY)
                os.write(console, HOSTILE.encode() * 100)
                os.close(console)
            except OSError:
                continue
        os.write(1, HOSTILE.encode() * 100)
        time.sleep(0.05)


def main() -> None:
    if VERSION["fault"] == "no-start":
        sys.exit("it does not start")
    if COUNTER.parent.is_mount():
        Handler.starts = str(int(COUNTER.read_text() if COUNTER.exists() else 0) + 1)
        COUNTER.write_text(Handler.starts)
    if VERSION["fault"] == "hostile":
        threading.Thread(target=shout, daemon=True).start()
    Server(("0.0.0.0", PORTS[role()]), Handler).serve_forever()


main()
