"""Puts keys into the kernel's keyring, as `keyctl padd user NAME @s` does."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

import pytest

from toolkit.secrets import kernel_keyring

ADD_KEY_NUMBERS = {"x86_64": 248, "aarch64": 217, "riscv64": 217}
INVALIDATE = 21


@contextlib.contextmanager
def kept_in_kernel(name: str, content: bytes) -> Iterator[None]:
    """Keep a key in the session's keyring, which the processes below this one share."""
    libc = ctypes.CDLL(None, use_errno=True)
    serial = libc.syscall(
        ctypes.c_long(ADD_KEY_NUMBERS[platform.machine()]),
        b"user",
        name.encode(),
        content,
        ctypes.c_size_t(len(content)),
        ctypes.c_long(kernel_keyring.SESSION_KEYRING),
    )
    if serial < 0:
        pytest.skip(
            f"the kernel has no keyring for this process: {os.strerror(ctypes.get_errno())}"
        )
    try:
        yield
    finally:
        kernel_keyring._keyctl(INVALIDATE, serial)
