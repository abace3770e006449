"""The command `reid`: one file per command. The only place that prints."""

from reidkit.cli.app import main

__all__ = ["main"]
