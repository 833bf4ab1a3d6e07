"""Where the vault password of an environment and role comes from.

A directory holds `<environment>/<role>.key`; a command gets the environment and the role as its
last two arguments and prints the password; the kernel's keyring has it as a key of the type `user`,
`<keyring>:<environment>.<role>`. Each environment and role has a password of its own: the labels of
vaults are not authenticated, so that only distinct passwords keep them apart.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError
from toolkit.model import Secret
from toolkit.project.model import Environment
from toolkit.secrets import kernel_keyring
from toolkit.secrets.files import create_exclusively
from toolkit.secrets.grants import AUTHORITY
from toolkit.state import State

PASSWORD_BYTES = 32
"""256 bits of randomness, written as 43 characters of base64url."""

_SHORTEST_PASSWORD = 22
"""Characters of base64url that 128 bits need."""

COMMAND_DEADLINE_S = 120.0
"""A command may ask a person to unlock a keyring."""

KEYRING_VARIABLES = (
    "HOME",
    "USER",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "GPG_TTY",
    "SSH_AUTH_SOCK",
)
"""What keyrings and password stores need to find the operator's session."""


class MissingKey(ConfigurationError):
    """The operator does not hold the password of an environment and role."""


class KeyRing:
    """The vault passwords of one environment, as far as this operator holds them.

    Args:
        environment: Its `keys` setting says where they are.
        state: Without a setting the passwords are in its `keys` directory.
    """

    def __init__(self, environment: Environment, state: State) -> None:
        self._environment = environment.name
        self._project = environment.directory.parent.parent
        self._command = environment.keys.command
        self._keyring = environment.keys.keyring
        self._directory = (environment.keys.directory or state.keys) / environment.name

    @property
    def is_directory(self) -> bool:
        """Whether passwords are files, so that the toolkit can make them."""
        return not self._command and not self._keyring

    def is_at_hand(self, role: str) -> bool:
        """Whether a role's password is here, without asking anybody for it."""
        if self._command:
            return False
        if self._keyring:
            return kernel_keyring.read(self._key_name(role)) is not None
        return self.path(role).is_file()

    def path(self, name: str) -> Path:
        """Return the file of a role's password, whether or not it exists."""
        return self._directory / f"{name}.key"

    def password(self, role: str) -> Secret:
        """Return the vault password of a role.

        Raises:
            MissingKey: This operator does not hold it.
            ConfigurationError: It is too short, or others can read it.
        """
        label = f"{self._environment}.{role}"
        if self._command:
            value, source = self._ask(role), self._command[0]
        elif self._keyring:
            source = f"the kernel's keyring as {self._key_name(role)}"
            value = kernel_keyring.read(self._key_name(role))
        else:
            value, source = self._read(self.path(role)), str(self.path(role))
        if value is None:
            hint = "ask its owner for the key"
            if self.is_directory:
                command = f"toolkit secrets init {self._environment}"
                hint = f"run '{command}' for a new environment, or {hint}"
            raise MissingKey(f"there is no vault password for {label} in {source}", hint=hint)
        value = value.strip()
        if len(value) < _SHORTEST_PASSWORD or b"\n" in value:
            raise ConfigurationError(
                f"{source}: the vault password of {label} is not one line of at least "
                f"{_SHORTEST_PASSWORD} characters (128 bits)"
            )
        return Secret(label, 1, value)

    def make_password(self, role: str) -> bool:
        """Make the random password of a role; an existing one is kept.

        Returns:
            Whether a new one was made.

        Raises:
            ConfigurationError: Passwords come from a command or a keyring.
        """
        if not self.is_directory:
            source = "a command" if self._command else "a keyring"
            raise ConfigurationError(
                f"the vault passwords of {self._environment} come from {source}, which must "
                f"know {role} first"
            )
        if self.path(role).exists():
            return False
        return self._create(role, secrets.token_urlsafe(PASSWORD_BYTES).encode() + b"\n")

    def authority_key(self) -> Secret | None:
        """Return the private key of the environment's certificate authority as PEM, if held."""
        value = self._read(self.path(AUTHORITY)) if self.is_directory else None
        return None if value is None else Secret(f"{self._environment}.{AUTHORITY}", 1, value)

    def keep_authority_key(self, pem: bytes) -> bool:
        """Keep the private key of a new certificate authority; an existing one is kept."""
        return self._create(AUTHORITY, pem)

    def _key_name(self, role: str) -> str:
        return f"{self._keyring}:{self._environment}.{role}"

    def _create(self, name: str, content: bytes) -> bool:
        try:
            self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            return create_exclusively(self.path(name), content)
        except OSError as error:
            raise ConfigurationError(
                f"{self.path(name)} could not be made: {error.strerror}",
                hint="keys.directory in the environment's toolkit.yml names another place",
            ) from None

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                    raise ConfigurationError(
                        f"{path}: others than its owner can read it", hint=f"chmod 600 {path}"
                    )
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None

    def _ask(self, role: str) -> bytes | None:
        assert self._command
        inherited = {name: os.environ[name] for name in KEYRING_VARIABLES if name in os.environ}
        # Not checked by `run`: its error would quote what the command printed.
        completed = shell.run(
            [*self._command, self._environment, role],
            env=shell.environment(**inherited),
            timeout_s=COMMAND_DEADLINE_S,
            cwd=self._project,
            is_checked=False,
        )
        if completed.exit_code != 0:
            # What it printed on standard output may be a password, or a part of one.
            detail = completed.error_text[-500:] or "it said nothing on standard error"
            raise MissingKey(
                f"{self._command[0]} exited with {completed.exit_code} when it was asked for the "
                f"vault password of {self._environment}.{role}: {detail}",
                hint="run it by hand; it is 'keys.command' in the environment's toolkit.yml",
            )
        return completed.stdout if completed.stdout.strip() else None
