"""Options that several commands take."""

from toolkit.cli.context import json_option

__all__ = ["json_option"]
