"""Lets a person edit a document without its plaintext touching a disk."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from toolkit.errors import ConfigurationError, ToolkitError
from toolkit.secrets import document
from toolkit.secrets.document import Document
from toolkit.secrets.ram import ram_directory

_INTRODUCTION = b"""\
# Change values, then save and leave. Nothing is written unless all of it is valid. Versions and
# times are counted for you. Quote values; several lines go below '|'; for bytes that are no text
# add 'encoding: base64'.
"""


def edit_document(
    before: Document,
    *,
    check: Callable[[Document], object],
    ask_again: Callable[[str], bool],
) -> Document:
    """Give a document to `$VISUAL` or `$EDITOR` and return it as it comes back.

    The editor's home and temporary directories are the RAM directory too, since editors keep
    swap files, undo histories and registers there. It goes without the operator's own settings.

    Args:
        before: What to edit.
        check: Raises a `ConfigurationError` if the result will not do.
        ask_again: Called with what is wrong with the result; whether to edit it again. What was
            typed is gone otherwise.

    Raises:
        ConfigurationError: The result is not a document of this environment and role, or `check`
            refuses it.
    """
    with ram_directory() as directory:
        path = directory / f"{before.environment}.{before.role}.yml"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_INTRODUCTION + document.serialise(before))
        while True:
            _edit(str(path), str(directory))
            try:
                after = document.parse(
                    path.read_bytes(),
                    environment=before.environment,
                    role=before.role,
                    where=f"the edited secrets of {before.environment}.{before.role}",
                )
                check(after)
                return after
            except ConfigurationError as error:
                if not ask_again(error.message):
                    raise


def _edit(path: str, directory: str) -> None:
    places = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    try:
        # click's runner inherits the terminal, which `shell.run` never gives to a child.
        click.edit(filename=path, env={**dict.fromkeys((*places, "XDG_STATE_HOME"), directory)})
    except click.ClickException as error:
        raise ToolkitError(error.message, hint="nothing was changed") from None
