"""Network namespaces by name, where iproute2 keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

NAMESPACES: Final = Path("/run/netns")


def namespace_path(name: str) -> Path:
    """Return where a network namespace is found by name."""
    return NAMESPACES / name


def inside(name: str, argv: Sequence[str | Path]) -> list[str | Path]:
    """Return the command that runs another one in a network namespace, and is replaced by it."""
    return ["nsenter", f"--net={namespace_path(name)}", *argv]
