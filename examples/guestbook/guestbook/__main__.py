"""Serve the guestbook: `python -m guestbook PORT`."""

from __future__ import annotations

import sys

import uvicorn

from guestbook.settings import Settings


def main() -> None:
    """Run the server until SIGTERM; running requests are answered first."""
    uvicorn.run(
        "guestbook.app:create",
        factory=True,
        host="0.0.0.0",  # noqa: S104 - the machine's own network is private
        port=int(sys.argv[1]),
        workers=Settings.load().workers,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        # Longer than the balancer keeps an idle connection, so that it is never this side that
        # closes one just as a request comes in on it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=20,
    )


if __name__ == "__main__":
    main()
