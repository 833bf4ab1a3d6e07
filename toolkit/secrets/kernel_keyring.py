"""Reads passwords from the keyring of the Linux kernel.

An operator puts a key there for as long as it is needed; it is in the kernel's memory, readable by
its owner alone, and gone with the session or the next restart. glibc has no wrapper for the system
call, and `keyctl` of the package keyutils would be one more program to need.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from toolkit.errors import ConfigurationError

KEYCTL_NUMBERS = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
"""Of the system call, by machine."""

SEARCH, READ = 10, 11
PROCESS_KEYRING, SESSION_KEYRING, USER_KEYRING = -2, -3, -4

ABSENT = {errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EACCES}
"""There is none for this operator."""

MAX_BYTES = 32 * 1024
"""What a key of the type `user` holds at most."""


def read(description: str) -> bytes | None:
    """Return the content of a key of the type `user`, or None when there is none.

    Args:
        description: Its name, in the session's keyring or the user's.

    Raises:
        ConfigurationError: The kernel has no keyring for this process.
    """
    for keyring in (SESSION_KEYRING, USER_KEYRING):
        # Linked to the process, the key may be read even where the session does not possess it.
        serial = _keyctl(SEARCH, keyring, b"user", description.encode(), PROCESS_KEYRING)
        if serial is None:
            continue
        buffer = ctypes.create_string_buffer(MAX_BYTES)
        size = _keyctl(READ, serial, buffer, MAX_BYTES)
        if size is not None:
            return buffer.raw[:size]
    return None


def _keyctl(*arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int | None:
    number = KEYCTL_NUMBERS.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted) if number else -1
    if result >= 0:
        return int(result)
    code = ctypes.get_errno() if number else errno.ENOSYS
    if code in ABSENT:
        return None
    raise ConfigurationError(
        f"the kernel's keyring cannot be used here: {os.strerror(code)}",
        hint="name a directory or a command in 'keys' instead",
    )
