"""Prints the certificate that a server shows: `python -m toolkit.secrets.served HOST PORT`.

It is a program of its own, since only a process can enter an environment's network.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from cryptography import x509

from toolkit import shell
from toolkit.network.names import inside

TIMEOUT_S = 10.0


def served_certificate(host: str, port: int, *, namespace: str | None) -> str:
    """Return the certificate that a server shows, as PEM.

    Args:
        host: Its address.
        port: Its port.
        namespace: Network namespace to ask from; None for this process's own.

    Raises:
        OutsideError: It does not answer.
    """
    argv: list[str | Path] = [sys.executable, "-I", "-m", "toolkit.secrets.served", host, str(port)]
    return shell.run(
        argv if namespace is None else inside(namespace, argv),
        env=shell.environment(),
        timeout_s=2 * TIMEOUT_S,
    ).text


def serial(certificate: bytes) -> int:
    """Return the serial number of the first certificate of a chain."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def main() -> None:
    """Print the certificate; whether it can be trusted is not asked here."""
    host, port = sys.argv[1], int(sys.argv[2])
    print(ssl.get_server_certificate((host, port), timeout=TIMEOUT_S))


if __name__ == "__main__":
    main()
