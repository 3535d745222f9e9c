"""Where the console script begins: an interrupt while the command is imported leaves no trace."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console script. Exit code 130 of an interrupt at any time from here on."""
    try:
        from prunion.runtime.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
