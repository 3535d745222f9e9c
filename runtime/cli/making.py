"""Commands that train, export and check: thin, each calls its stage."""

from __future__ import annotations

from typing import Any

import click

from prunion.runtime.cli.options import as_json, bundle_argument, call, force

__all__ = ["add_domain", "demo", "export", "pack", "score", "train", "verify"]


@click.command()
@click.argument("config", metavar="RUN.toml", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Run folder  [default: runs/RUN].")
@force
@click.option("--resume", is_flag=True, help="Go on from the state that the run folder holds.")
@as_json
def train(config: str, output: str | None, force: bool, resume: bool, as_json: bool) -> None:
    """Train and prune a network as RUN.toml says."""
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    call("prunion.trainer.run.train:train_command", config, output, force, resume, as_json)


@click.command()
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
        place = "prunion.exporter.bundle.whole:untrained_command"
        call(place, checkpoint, output, force, as_json)
        return
    call(
        "prunion.exporter.bundle.export:export_command", checkpoint, output, force, as_json, options
    )


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("domain")
@click.option("-o", "--output", required=True, type=click.Path(), help="NAME.safetensors to write.")
@force
def pack(checkpoint: str, domain: str, output: str, force: bool) -> None:
    """Write one DOMAIN of a CHECKPOINT as a pack for the bundles made from it."""
    call("prunion.exporter.bundle.packs:pack_command", checkpoint, domain, output, force)


@click.command("add-domain")
@click.argument("checkpoint", type=click.Path())
@click.argument("domain", metavar="DOMAIN.toml", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="Pack to write  [default: NAME.safetensors]."
)
@force
@click.option("--resume", is_flag=True, help="Go on from the state beside the pack, in PACK.run.")
def add_domain(checkpoint: str, domain: str, output: str | None, force: bool, resume: bool) -> None:
    """Train a new domain on a finished trunk; its pack fits the existing bundle."""
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    place = "prunion.exporter.bundle.add_domain:add_domain_command"
    call(place, checkpoint, domain, output, force, resume)


@click.command()
@click.option(
    "-o", "--output", default="./prunion-demo", show_default=True, type=click.Path(), help="Folder."
)
@force
def demo(output: str, force: bool) -> None:
    """Run the whole line on small real images; no download, no GPU."""
    call("prunion.benchmarks.demo.run:demo_command", output, force)


@click.command()
@bundle_argument
@click.option(
    "--against", metavar="CHECKPOINT", type=click.Path(), help="Compare with its masked network."
)
@as_json
def verify(bundle: str, against: str | None, as_json: bool) -> None:
    """Check everything a bundle claims; exit code 1 if anything is off."""
    call("prunion.exporter.verify.report:verify_command", bundle, against, as_json)


@click.command()
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
    place = "prunion.trainer.score.formulas:score_command"
    call(place, benchmark, accuracy, source, flop, params, as_json)
