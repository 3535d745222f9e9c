"""The `prunion` command: a group that loads a command's module when it is asked for."""

from __future__ import annotations

import difflib
import io
import os
import sys
from importlib import import_module

import click

from prunion.runtime.cli.interrupt import defer_interrupts
from prunion.runtime.cli.one_line import OneLineGroup, error_text

__all__ = ["COMMANDS", "cli", "main"]

# Where each command stands. Stages are named, not imported: their command modules load click
# alone, so that help is instant, and a device needs no torch.
COMMANDS = {
    "add-domain": "prunion.exporter.cli.commands:add_domain",
    "bench": "prunion.exporter.cli.helped:bench",
    "build": "prunion.runtime.cli.engines:build",
    "check": "prunion.exporter.cli.helped:check",
    "demo": "prunion.benchmarks.cli:demo",
    "doctor": "prunion.runtime.cli.commands:doctor",
    "eval": "prunion.runtime.cli.evaluation:evaluate",
    "export": "prunion.exporter.cli.commands:export",
    "init": "prunion.trainer.cli:init",
    "inspect": "prunion.runtime.cli.commands:inspect",
    "list": "prunion.trainer.cli:list_names",
    "pack": "prunion.exporter.cli.commands:pack",
    "predict": "prunion.runtime.cli.commands:predict",
    "pretrain": "prunion.benchmarks.cli:pretrain",
    "profile": "prunion.exporter.cli.helped:profile",
    "report": "prunion.benchmarks.cli:report",
    "reproduce": "prunion.benchmarks.cli:reproduce",
    "score": "prunion.trainer.cli:score",
    "serve": "prunion.runtime.cli.serving:serve",
    "train": "prunion.exporter.cli.helped:train",
    "verify": "prunion.exporter.cli.commands:verify",
}


class Cli(OneLineGroup):
    """Loads the module of the command that is asked for, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, its module loaded now; None if none has it, or nearly."""
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            if close and not ctx.resilient_parsing:  # a shell that completes wants no error
                raise click.UsageError(f"no command {cmd_name!r}: did you mean {close[0]!r}?", ctx)
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunion", prog_name="prunion")
def cli() -> None:
    """One pruned vision network for many image domains."""


def main() -> None:
    """The `prunion` command: exit codes 0, 1 (user error), 2 (usage) and 130 (interrupted)."""
    defer_interrupts()
    for stream in (sys.stdout, sys.stderr):
        # A legacy code page (Windows, LANG=C) has no →, ×, or a user's own class names: a question
        # mark in a line is better than no line.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        cli(prog_name="prunion")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as exc:  # of the help itself, which no command writes
        click.echo(f"error: {error_text(exc)}", err=True)
        os._exit(1)  # Python would try to write it once more, with a trace
