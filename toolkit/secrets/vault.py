"""Encrypts and decrypts with the `ansible-vault` command.

`ansible.parsing.vault` is not a public API; the command is. The password reaches it in a memory
file that only the one child inherits, plaintext through pipes: no disk holds either.

One process handles one environment and role, so that no process knows two passwords. A call
takes 0.3 to 0.4 s, of which 0.28 s is the import of Ansible; see `Vaults.read_all` for several.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError, OutsideError
from toolkit.model import Secret
from toolkit.secrets.ram import ram_directory

MAX_PLAINTEXT_BYTES = 512 * 1024
"""A vault file is four times its plaintext, and `shell` keeps 4 MiB of a child's output.

systemd takes no more than 1 MiB of credentials for a machine.
"""

_DEADLINE_S = 60.0
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.[a-z][a-z0-9_]*")


def encrypt(plaintext: bytes, *, password: Secret) -> bytes:
    """Encrypt for the environment and role that the password belongs to.

    Args:
        plaintext: At most `MAX_PLAINTEXT_BYTES`.
        password: Its name is the vault's label.

    Raises:
        ConfigurationError: The plaintext is too long.
        OutsideError: `ansible-vault` failed.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise ConfigurationError(
            f"the secrets of {password.name} are larger than {MAX_PLAINTEXT_BYTES // 1024} KiB"
        )
    completed = _run("encrypt", plaintext, password)
    if completed.exit_code != 0:
        raise OutsideError(
            f"ansible-vault could not encrypt {password.name}: {_last_line(completed)}"
        )
    check_envelope(completed.stdout, label=password.name, where="ansible-vault's output")
    return completed.stdout


def decrypt(vaulttext: bytes, *, password: Secret, where: Path) -> bytes:
    """Decrypt what was encrypted for the environment and role of the password.

    Args:
        vaulttext: Content of a vault file.
        password: Its name is the label that the vault must have.
        where: The vault file, for messages.

    Raises:
        ConfigurationError: It is no vault, was cut off or belongs elsewhere, or the password
            does not open it.
        OutsideError: `ansible-vault` did not work.
    """
    check_envelope(vaulttext, label=password.name, where=where)
    completed = _run("decrypt", vaulttext, password)
    if completed.exit_code == 0:
        return completed.stdout
    if b"Decryption failed" in completed.stderr:
        raise ConfigurationError(
            f"{where}: the vault password of {password.name} does not open it: the password is "
            "another one, or the file was changed or relabelled",
            hint="compare with the version under version control, and the key with its owner's",
        )
    raise OutsideError(f"ansible-vault could not read {where}: {_last_line(completed)}")


def check_envelope(vaulttext: bytes, *, label: str, where: Path | str) -> None:
    """Check everything about a vault that can be checked without its password.

    The length betrays every truncation: a file ends with a newline, its lines have 80 digits,
    and all digits are 260 + 64 n (salt, MAC, n cipher blocks; each written as hexadecimal of
    hexadecimal), which no number of full lines is.

    Raises:
        ConfigurationError: It is no vault, has another label, or was cut off.
    """
    header, newline, body = vaulttext.partition(b"\n")
    fields = header.decode("ascii", errors="replace").strip().split(";")
    if not vaulttext or (not newline and b"$ANSIBLE_VAULT".startswith(header[:14])):
        raise ConfigurationError(f"{where}: is empty or was cut off", hint=_RESTORE)
    if fields[0] != "$ANSIBLE_VAULT":
        raise ConfigurationError(
            f"{where}: is not encrypted",
            hint="whoever can read the file knows its values: change them with 'toolkit secrets "
            "set'",
        )
    if fields[1:3] != ["1.2", "AES256"] or len(fields) != 4:
        raise ConfigurationError(
            f"{where}: is a vault without a label, not one of {label!r}",
            hint=f"'ansible-vault rekey --vault-id {label}@OLD_KEY --new-vault-id {label}@NEW_KEY "
            f"{where}' gives it one; without --new-vault-id, rekeying removes it",
        )
    if fields[3] != label:
        raise ConfigurationError(
            f"{where}: is the vault of {fields[3][:80]!r}, not of {label!r}: it was copied from "
            "there or relabelled",
            hint=_RESTORE,
        )
    digits = body.replace(b"\n", b"")
    blocks, rest = divmod(len(digits) - 260, 64)
    if not body.endswith(b"\n") or blocks < 1 or rest or not _is_hexadecimal(digits):
        raise ConfigurationError(f"{where}: was cut off or damaged", hint=_RESTORE)


_RESTORE = "restore it from version control"


def _is_hexadecimal(digits: bytes) -> bool:
    return not digits.strip(b"0123456789abcdefABCDEF")


def _run(action: str, stdin: bytes, password: Secret) -> shell.Completed:
    label = password.name
    if not _LABEL.fullmatch(label):
        raise ConfigurationError(f"{label!r}: environments are named with letters, digits, . _ -")
    with ram_directory() as home, _in_memory(password.reveal()) as descriptor:
        (home / "ansible.cfg").touch()
        return shell.run(
            [
                Path(sys.executable).parent / "ansible-vault",
                action,
                *("--vault-id", f"{label}@/proc/self/fd/{descriptor}"),
                *("--output", "-"),
            ],
            env=shell.environment(
                HOME=str(home),
                ANSIBLE_HOME=str(home),
                ANSIBLE_LOCAL_TEMP=str(home),
                # Else ansible.cfg of the working directory or of /etc could name other passwords.
                ANSIBLE_CONFIG=str(home / "ansible.cfg"),
                ANSIBLE_VAULT_ID_MATCH="true",
                ANSIBLE_NOCOLOR="true",
            ),
            timeout_s=_DEADLINE_S,
            stdin=stdin,
            cwd=home,
            pass_fds=[descriptor],
            is_checked=False,
        )


@contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """Yield a descriptor of a file in memory; Ansible would execute one with an x bit."""
    descriptor = os.memfd_create("vault-password", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def _last_line(completed: shell.Completed) -> str:
    lines = completed.error_text.splitlines()
    return lines[-1][:300] if lines else f"it exited with {completed.exit_code}"
