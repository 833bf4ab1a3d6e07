"""A copy of the toolkit with one of its controls switched off, to see that the check of it fails.

The copy has a virtual environment of its own, so that every process that the toolkit starts is the
copy's too. Everything but the toolkit comes from the environment that runs the tests.
"""

import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import toolkit
from examples.versions import Edit

COMMANDS = ("toolkit", "ansible-playbook", "ansible-vault")


def sabotaged(directory: Path, *edits: Edit) -> Path:
    """Make the copy below a directory.

    Args:
        directory: Where; must not hold a copy yet.
        edits: Of files such as `toolkit/shell.py`; one that no longer fits the code is an error.

    Returns:
        Its `toolkit` command.
    """
    home = directory / "sabotaged"
    venv.create(home, symlinks=True)
    packages = Path(
        sysconfig.get_path("purelib", "venv", vars={"base": str(home), "platbase": str(home)})
    )
    shutil.copytree(
        Path(toolkit.__file__).parent,
        packages / "toolkit",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for edit in edits:
        edit.apply(packages)
    # As a directory in a `.pth` file: `.pth` files in there do not count, so that the toolkit
    # itself is this one.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in COMMANDS:
        _, _, code = Path(sys.executable).with_name(name).read_text().partition("\n")
        command = home / "bin" / name
        command.write_text(f"#!{home / 'bin' / 'python'}\n{code}")
        command.chmod(0o755)
    return home / "bin" / "toolkit"
