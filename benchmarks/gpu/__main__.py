"""Everything that needs a GPU, in one command: a row is written as it ends and not run again.

A row that fails has a line that says so, `"failed"`, and is tried again next time.

python -m prunion.benchmarks.gpu training -o gpu.jsonl
python -m prunion.benchmarks.gpu inference -o gpu.jsonl
python -m prunion.benchmarks.gpu runtime -o gpu.jsonl
python -m prunion.benchmarks.gpu learning -o ROWS --data DATA --weights WEIGHTS
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import torch

from prunion.benchmarks.gpu.inference import (
    MODES,
    NETWORKS,
    Mode,
    Networks,
    inference_row,
    make_networks,
)
from prunion.benchmarks.gpu.learning import run_tasks, tasks
from prunion.benchmarks.gpu.roofline import measure_device
from prunion.benchmarks.gpu.runtime import runtime_rows
from prunion.benchmarks.gpu.training import CASES, training_row
from prunion.runtime.base import reason_of, replace_file
from prunion.runtime.cli import FilePath, FiniteRange, OneLineGroup, seconds_option
from prunion.trainer.processes import prepare_device

__all__ = ["main"]

Row = Callable[[], dict[str, Any]]
Rows = Callable[[], Iterable[tuple[str, Row]]]
device_option = click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
per_case = seconds_option(10.0, "A case and row.")
output_option = click.option("-o", "--output", required=True, type=FilePath(path_type=Path))


@click.group(cls=OneLineGroup)
def main() -> None:
    """Measure training, inference and learning on a GPU."""


@main.command()
@device_option
@per_case
@output_option
@click.option("--domains", default=6, show_default=True)
@click.option("--trunk", type=click.Choice(["frozen", "tuned"]), default="frozen")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16")
@click.option("--compile/--eager", "compiled", default=True, show_default=True)
@click.option(
    "--network", multiple=True, type=click.Choice([x.network for x in CASES]), help="Only these."
)
def training(device: str, output: Path, network: tuple[str, ...], **options: Any) -> None:
    """A joint training step against plain training and against the roofline."""
    _need(device)
    prepare_device(device)
    width = torch.bfloat16 if options["precision"] == "bf16" else torch.float32
    small = device == "cpu"
    rates = measure_device(device, width, 512 if small else 8192, 64 if small else 1024)
    tell = partial(click.echo, err=True)

    def rows() -> Iterator[tuple[str, Row]]:
        for case in CASES:
            if network and case.network not in network:
                continue
            key = f"training {case.network} {options['trunk']} {options['precision']} "
            key += "compiled" if options["compiled"] else "eager"
            key += _asked(options["domains"], 6, device)
            yield key, partial(training_row, case, rates, device=device, tell=tell, **options)

    _measure(output, rows, tflops=rates.flops / 1e12, gbytes=rates.bytes / 1e9)


@main.command()
@device_option
@per_case
@output_option
@click.option("--batches", default="1,8,32,128,256", show_default=True)
@click.option("--domains", default=4, show_default=True)
@click.option(
    "--network", multiple=True, type=click.Choice([x for x, _, _ in NETWORKS]), help="Only these."
)
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="Only these.")
def inference(
    device: str,
    output: Path,
    seconds: float,
    batches: str,
    domains: int,
    network: tuple[str, ...],
    modes: tuple[Mode, ...],
) -> None:
    """Selectable, folded and separate networks in torch: eager, compiled, CUDA graphs."""
    _need(device)
    prepare_device(device)
    sizes = [int(x) for x in batches.split(",")]

    def rows() -> Iterator[tuple[str, Row]]:
        for backbone, source, side in NETWORKS:
            if network and backbone not in network:
                continue
            made = cache(partial(make_networks, backbone, source, side, domains))
            for dtype in (torch.float32, torch.float16):
                for size in sizes:
                    for mode in modes or (MODES if device == "cuda" else ("eager",)):
                        key = f"inference {backbone} {str(dtype).split('.')[1]} batch {size} {mode}"
                        key += _asked(domains, 4, device)
                        yield key, partial(row, made, size, dtype, mode)

    def row(
        made: Callable[[], Networks], size: int, dtype: torch.dtype, mode: Mode
    ) -> dict[str, Any]:
        return inference_row(made(), size, device, dtype, seconds, mode)

    _measure(output, rows)


@main.command()
@device_option
@per_case
@output_option
def runtime(device: str, output: Path, seconds: float) -> None:
    """The bundle through ONNX Runtime's CUDA provider and TensorRT, where they are installed."""
    _need(device)
    _measure(output, partial(runtime_rows, device, seconds))


@main.command()
@click.option(
    "-o",
    "--output",
    required=True,
    type=FilePath(file_okay=False, path_type=Path),
    help="Folder of the rows' files: eight.jsonl, methods.jsonl.",
)
@click.option("--data", required=True, type=FilePath(exists=True))
@click.option("--weights", required=True, type=FilePath(exists=True))
@click.option("--epochs", default="2,4,6", show_default=True, help="Warm-up, ramp, settle.")
@click.option("--folder", default="runs/gpu", show_default=True)
@click.option("--lanes", default=os.cpu_count() or 8, show_default=True, help="Rows at a time.")
@click.option(
    "--minutes",
    type=FiniteRange(0, 100_000, min_open=True),
    default=600.0,
    show_default=True,
    help="Begin no row after this long.",
)
@click.option("--workers", default=1, show_default=True, help="Processes that read a row's images.")
@click.option("--set", "settings", multiple=True, default=("precision=bf16",), show_default=True)
def learning(
    output: Path,
    data: str,
    weights: str,
    epochs: str,
    folder: str,
    lanes: int,
    minutes: float,
    workers: int,
    settings: tuple[str, ...],
) -> None:
    """The learning table's rows, several at a time: one leaves a GPU idle."""
    common = ["--data", data, "--weights", weights, "--epochs", epochs, "--folder", folder]
    common += ["--threads", "1", "--set", f"workers={workers}"]
    common += [part for setting in settings for part in ("--set", setting)]
    output.mkdir(parents=True, exist_ok=True)
    failed, left = run_tasks(tasks(), output, common, lanes, minutes)
    if left:
        click.echo(f"{left} rows were not looked at in {minutes:g} minutes: run it again", err=True)
    if failed:
        raise click.ClickException(f"failed, see above: {'; '.join(failed)}")


def _asked(domains: int, usual: int, device: str) -> str:
    """What a row's key says of options that are not the usual ones."""
    told = "" if domains == usual else f" {domains} domains"
    return told if device == "cuda" else f"{told} on {device}"


def _need(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA GPU here: run this on a machine with one")


def _measure(output: Path, rows: Rows, **facts: Any) -> None:
    """Measure and write the rows that the file lacks of this device, those last that did not end.

    A row's line is there before it begins, and says so: a process that is killed with it is then
    not killed by it again before the rows behind it are measured.
    """
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    before = {x["key"]: "failed" in x for x in _lines(output) if x["device"] == name}
    failed = []
    for again in (False, True):
        for key, row in rows():
            if before.get(key) is not (True if again else None):
                continue
            head = {"key": key, "device": name, "torch": torch.__version__, **facts}
            click.echo(key, err=True)
            _write(output, {**head, "failed": "it was begun and did not end"})
            try:
                line = {**head, **row()}
            except Exception as exc:  # whatever is wrong with a row is no matter of the others
                line = {**head, "failed": reason_of(exc, typed=True)}
                failed.append(key)
            _write(output, line)
            click.echo(json.dumps(line))
            _let_go(key)
    if failed:
        raise click.ClickException(
            f"{len(failed)} rows failed and are tried again next time: {', '.join(failed)}"
        )


def _let_go(key: str) -> None:
    """Free what a row left on the device. Raises ClickException where that does not answer."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as exc:
            raise click.ClickException(
                f"the GPU does not answer any more after {key} ({reason_of(exc)}): start again, "
                "for the rows that are left"
            ) from None


def _lines(output: Path) -> list[dict[str, Any]]:
    if not output.exists():
        return []
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def _write(output: Path, line: dict[str, Any]) -> None:
    """Add a line, in the place of one that says that this row failed on this device."""
    own = (line["key"], line["device"])
    kept = [x for x in _lines(output) if (x["key"], x["device"]) != own or "failed" not in x]
    with replace_file(output) as temporary:
        temporary.write_text("".join(json.dumps(x) + "\n" for x in [*kept, line]), "utf-8")


if __name__ == "__main__":
    main()
