"""The operating system's layer: a bare Debian, with a kernel to boot as a virtual machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit import shell
from toolkit.bake.initramfs import UPDATE_COMMAND, install_initramfs_support
from toolkit.bake.plan import BASE_PACKAGES
from toolkit.bake.seal import SEALED_TIME, clean, compiled_directories
from toolkit.errors import BakeFailed, OutsideError
from toolkit.project.model import BaseSpec

BOOTSTRAP_TIMEOUT_S = 900.0
STEP_TIMEOUT_S = 300.0

EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
)
"""Never unpacked, here and in later layers: machines are not read by people."""

CONFINED = (
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
"""mmdebstrap mounts and starts much; all of it ends with the toolkit, however that ends."""

EMPTY_FILES = ("etc/machine-id", "etc/resolv.conf")
"""Empty, not absent: a machine makes its own identity at boot, and a build machine has the
host's resolver mounted over the file."""


def build_base(base: BaseSpec, tree: Path) -> tuple[str, ...]:
    """Make the operating system's tree, ready to be sealed.

    Args:
        base: The project's choice.
        tree: Directory to make.

    Returns:
        Debian packages in it, `name=version`.

    Raises:
        BakeFailed: mmdebstrap or a later step failed; the message carries its own words.
    """
    env = shell.environment(SOURCE_DATE_EPOCH=str(SEALED_TIME), DEBIAN_FRONTEND="noninteractive")
    argv: list[str | Path] = [
        *CONFINED,
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        "--quiet",
    ]
    argv += [f"--include={','.join(sorted({*BASE_PACKAGES, *base.packages}))}"]
    for pattern in EXCLUDED:
        argv.append(f"--dpkgopt=path-exclude={pattern}")
    argv += [base.suite, tree]
    if base.mirror:
        argv.append(base.mirror)
    try:
        shell.run(argv, env=env, timeout_s=BOOTSTRAP_TIMEOUT_S)
        install_initramfs_support(tree)
        _inside(tree, UPDATE_COMMAND, env=env)
        compile_python(tree, env=env)
        packages = _inside(tree, ["dpkg-query", "-W", "-f", "${Package}=${Version}\\n"], env=env)
    except OutsideError as error:
        raise BakeFailed(f"the operating system could not be made: {error.message}") from None
    # mmdebstrap copies the build host's; without the file a machine keeps the name it was given.
    (tree / "etc" / "hostname").unlink(missing_ok=True)
    for name in EMPTY_FILES:
        path = tree / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o644)
    clean(tree)
    return tuple(sorted(packages.split()))


def compile_python(tree: Path, *, env: dict[str, str]) -> None:
    """Compile what is compiled once more, in the form that no file time can outdate."""
    _inside(tree, COMPILE, env=env, stdin="\n".join(compiled_directories(tree)))


COMPILE: Sequence[str] = (
    "python3",
    "-m",
    "compileall",
    "-q",
    "-l",
    "-f",
    "--invalidation-mode",
    "unchecked-hash",
    "-i",
    "-",
)
"""Reads the directories from standard input. Sealing clamps file times, and the usual compiled
form records its source's time: without this every start would compile everything again."""


def _inside(tree: Path, argv: Sequence[str], *, env: dict[str, str], stdin: str = "") -> str:
    return shell.run(
        ["chroot", tree, *argv], env=env, timeout_s=STEP_TIMEOUT_S, stdin=stdin.encode()
    ).text
