"""What the machine was told at boot, read from its systemd credentials."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

LOGINS = ("guestbook_b", "guestbook_a")
"""The login for passwords of even and of odd versions: while a password is being replaced, the old
one and the new one are both good."""

VERSION_FILE = Path(__file__).parent.parent / "VERSION"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs between environments and machines.

    Attributes:
        version: Of the application, from the file VERSION beside the package.
        environment: Name of the environment.
        machine: Name of the machine.
        database_host: Where the database answers.
        database_port: Its port.
        database_login: Name of the login that the password belongs to.
        database_password: Its password.
        title: Shown at the top of the page.
        workers: Server processes.
        pool_size: Most database connections of one server process.
    """

    version: str
    environment: str
    machine: str
    database_host: str
    database_port: int
    database_login: str
    database_password: str = field(repr=False)
    title: str = "Guestbook"
    workers: int = 1
    pool_size: int = 5

    @classmethod
    def load(cls) -> Settings:
        """Read the credentials that systemd holds for this service.

        Raises:
            KeyError: Not started by systemd with credentials, or the config lacks a part.
            OSError: A credential is missing.
        """
        directory = Path(os.environ["CREDENTIALS_DIRECTORY"])
        config = json.loads((directory / "config").read_text())
        host, _, port = config["endpoints"]["database"].rpartition(":")
        return cls(
            version=VERSION_FILE.read_text().strip(),
            environment=config["environment"],
            machine=config["machine"],
            database_host=host,
            database_port=int(port),
            database_login=LOGINS[config["secret_versions"]["database_password"] % 2],
            database_password=(directory / "database_password").read_text().strip(),
            **config["settings"],
        )
