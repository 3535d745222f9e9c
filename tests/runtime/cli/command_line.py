"""Calls of the command line, and what they end in."""

from __future__ import annotations

from click.testing import CliRunner, Result

from prunion.runtime.cli import cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(x) for x in arguments])


def one_error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert not result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]
