"""The benchmarks' commands: `prunion demo`, `pretrain`, `report` and `reproduce`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from prunion.runtime.cli import FilePath, FiniteRange, as_json, force
from prunion.trainer.cli import changes_option, refuse_beside_options

__all__ = ["demo", "pretrain", "report", "reproduce"]

device = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
threads = click.option(
    "--threads", default=0, type=click.IntRange(0, 1024), help="CPU threads  [default: all cores]."
)
NUMBER = re.compile(r"\d+(\.\d+)?")
EPOCHS = dict.fromkeys(("warmup", "ramp", "settle"), "epochs")  # whose option divides them
SEED = click.IntRange(0, 2**32 - 1)
changed = changes_option("train.KEY=VALUE", "In place of its own, such as train.trunk_lr=1e-3")


@click.command()
@click.option(
    "-o", "--output", default="./prunion-demo", show_default=True, type=FilePath(), help="Folder."
)
@click.option("--baseline", is_flag=True, help="Also train it with every channel, to compare.")
@force
def demo(output: str, baseline: bool, force: bool) -> None:
    """Run the whole line on small real images; no download, no GPU."""
    from prunion.benchmarks.demo import run_demo

    run_demo(output, force=force, baseline=baseline)


@click.command()
@click.argument("sources", metavar="RUN_OR_BUNDLE...", nargs=-1, required=True, type=FilePath())
@click.option(
    "-o", "--output", default="report.html", show_default=True, type=FilePath(), help="The page."
)
@click.option(
    "--pictures", type=FilePath(), metavar="DIR", help="The same pictures as SVG and PNG files."
)
@force
def report(sources: tuple[str, ...], output: str, pictures: str | None, force: bool) -> None:
    """Show runs and bundles on one page: accuracy, channels, curves, mistakes.

    Takes run folders, bundles, and the files of `prunion eval -o` and `prunion bench --json`.
    """
    from prunion.benchmarks.report import write_report

    write_report(sources, output, pictures=pictures, force=force)
    click.echo(output)


@click.command()
@click.argument("data", type=FilePath(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=FilePath(path_type=Path),
    help="Weights to write, NAME.safetensors; the run lies beside them.",
)
@click.option("--backbone", default="resnet26", show_default=True, help="NAME, or SOURCE:NAME.")
@click.option("--epochs", default=90, show_default=True, type=click.IntRange(1))
@click.option("--size", default=64, show_default=True, type=click.IntRange(8, 4096), help="Pixels.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(4))
@click.option(
    "--lr",
    "trunk_lr",
    default=1e-3,
    show_default=True,
    type=FiniteRange(0, 10, min_open=True),
    help="Of the trunk.",
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--no-mirror", is_flag=True, help="Left and right are not the same.")
@force
@click.option("--resume", is_flag=True, help="Go on from the state beside the weights.")
@threads
@device
@changed
@as_json
def pretrain(
    data: Path,
    output: Path,
    backbone: str,
    size: int,
    epochs: int,
    no_mirror: bool,
    force: bool,
    resume: bool,
    changes: tuple[str, ...],
    as_json: bool,
    **learning: Any,
) -> None:
    """Train a trunk on the one domain in DATA, for [backbone] weights.

    DATA has class folders, or these below train/ and test/; or it is a Parquet file or a table.
    """
    if force and resume:
        raise click.UsageError("--force starts anew and --resume goes on: give one of them")
    import json
    from dataclasses import replace

    from prunion.benchmarks.reproduce import (
        backbone_named,
        changes_of,
        check_changes,
        domain_at,
        pretrain_trunk,
        pretraining,
    )
    from prunion.runtime.errors import ConfigError, InputError
    from prunion.trainer.config import InputConfig
    from prunion.trainer.learning import exit_when_stopped
    from prunion.trainer.processes import is_first_process
    from prunion.trainer.run import check_resumes

    try:
        network = backbone_named(backbone)
    except ConfigError as exc:
        raise click.UsageError(f"--backbone {backbone}: {exc}") from None
    changed = changes_of(changes)
    refuse_beside_options(changed, {key: key for key in changed} | EPOCHS)
    try:
        check_changes(changed, "what pretraining decides, tuning the whole trunk: leave it out")
    except InputError as exc:
        raise click.UsageError(str(exc)) from None
    domain = replace(domain_at(data), mirror=not no_mirror)
    shape = InputConfig((size, size), round(1.125 * size))
    if resume and not output.exists():
        check_resumes(output.with_name(output.name + ".run"))
    config = pretraining(network, domain, shape, **{"ramp": epochs, **learning, **changed})
    with exit_when_stopped():
        made = pretrain_trunk(config, output, force=force, resume=resume)
    if not is_first_process():
        return
    facts = {"weights": str(output), "domain": made.domain, "accuracy": made.accuracy}
    told = f"{output}: {backbone} on {made.domain}, {len(made.classes)} classes, accuracy "
    click.echo(json.dumps(facts, indent=1) if as_json else f"{told}{made.accuracy:.1%}")


@click.command()
@click.argument("benchmark", type=click.Choice(["decathlon", "imagenet-to-sketch"]))
@click.option("--data", type=FilePath(path_type=Path), help="The benchmark's archives.")
@click.option("-o", "--output", type=FilePath(path_type=Path), help="Folder of all results.")
@click.option("--list", "listed", is_flag=True, help="Show the rows, run nothing.")
@click.option("--method", "methods", multiple=True, help="A row or a method; can be repeated.")
@click.option("--network", "networks", multiple=True, help="All rows of it; can be repeated.")
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=SEED,
    default=[0],
    show_default=True,
    help="Every row for it; can be repeated.",
)
@click.option(
    "--epochs", default=0, type=click.IntRange(0), help="Of every row  [default: its paper's]."
)
@click.option(
    "--source-epochs",
    default=0,
    type=click.IntRange(0),
    help="Of pretraining  [default: --epochs].",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=FiniteRange(0, 1, min_open=True),
    help="β of the rows that prune; can be repeated  [default: 1, 0.75, 0.5, 0.25].",
)
@click.option("--limit-images", default=0, type=click.IntRange(0), help="Of each part of a domain.")
@click.option(
    "--size", default=0, type=click.IntRange(0, 4096), help="Of images, pixels  [default: 64, 224]."
)
@click.option(
    "--crops",
    default="1",
    show_default=True,
    type=click.Choice(["1", "5", "10"]),
    callback=lambda _c, _o, value: int(value),
    help="Views of a test image.",
)
@click.option("--final", is_flag=True, help="Train on validation images too; measure on test ones.")
@click.option("--weights", multiple=True, metavar="NETWORK=FILE", help="Of a pretrained trunk.")
@click.option(
    "--source-accuracy",
    multiple=True,
    metavar="NETWORK=PERCENT",
    help="On ImageNet, of weights that do not tell.",
)
@changed
@threads
@device
def reproduce(
    benchmark: str,
    data: Path | None,
    output: Path | None,
    listed: bool,
    networks: tuple[str, ...],
    budgets: tuple[float, ...],
    weights: tuple[str, ...],
    source_accuracy: tuple[str, ...],
    changes: tuple[str, ...],
    **options: Any,
) -> None:
    """From the archives of a BENCHMARK to its papers' table: every method, a row at a time.

    Rows that OUTPUT holds are not run again. Beside each row stand those that the papers print.
    """
    from prunion.benchmarks.reproduce import (
        BUDGETS,
        NETWORKS,
        Reproduction,
        changes_of,
        chosen_rows,
        listed_rows,
    )
    from prunion.benchmarks.reproduce import reproduce as run_rows
    from prunion.runtime.errors import InputError
    from prunion.trainer.learning import exit_when_stopped
    from prunion.trainer.processes import is_first_process

    changed, known = changes_of(changes), NETWORKS[benchmark]
    refuse_beside_options(changed, EPOCHS)
    for network in (*networks, *(text.partition("=")[0] for text in weights)):
        if network not in known:
            raise click.UsageError(f"no network {network}: choose from {', '.join(known)}")
    asked = Reproduction(
        benchmark,
        data or Path(),
        output or Path(),
        networks=networks,
        budgets=budgets or BUDGETS,
        weights=_files(weights),
        source_accuracy=_percents(source_accuracy, known),
        changes=changed,
        **options,
    )
    try:
        chosen_rows(asked)
    except InputError as exc:
        raise click.UsageError(str(exc)) from None
    if listed:
        click.echo(listed_rows(benchmark, tuple(dict.fromkeys(networks))))
        return
    if data is None or output is None:
        raise click.UsageError("give --data and -o, or --list")
    with exit_when_stopped():
        text = run_rows(asked)
    if is_first_process():
        click.echo(text)


def _files(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        network, equals, file = text.partition("=")
        if not equals or not Path(file).is_file():
            raise click.UsageError(f"--weights {text}: give NETWORK=FILE with a file that is there")
        path = str(Path(file).absolute())
        if found.setdefault(network, path) != path:
            raise click.UsageError(f"--weights {text}: {network} has another file already")
    return found


def _percents(given: tuple[str, ...], known: Sequence[str]) -> dict[str, float]:
    """Of each network, from NETWORK=PERCENT: what one of them knows says nothing of another."""
    found: dict[str, float] = {}
    for text in given:
        network, equals, percent = text.partition("=")
        told = f"--source-accuracy {text}"
        if not equals or network not in known:
            raise click.UsageError(
                f"{told}: give NETWORK=PERCENT, such as {known[0]}=76.2, of {', '.join(known)}"
            )
        value = float(percent) if NUMBER.fullmatch(percent) else math.nan
        if not 1 <= value <= 100:
            raise click.UsageError(f"{told}: give a percentage, 76.2 for a share of 0.762")
        if found.setdefault(network, value) != value:
            raise click.UsageError(f"{told}: {network} has another already")
    return found
