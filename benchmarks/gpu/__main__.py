"""Everything that needs a GPU, in one command: a row is written as it ends and not run again.

python -m prunion.benchmarks.gpu training -o gpu.jsonl
python -m prunion.benchmarks.gpu inference -o gpu.jsonl
python -m prunion.benchmarks.gpu runtime -o gpu.jsonl
python -m prunion.benchmarks.gpu learning -o learning.jsonl --data DATA --weights WEIGHTS
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from prunion.benchmarks.gpu.inference import MODES, NETWORKS, Mode, inference_row, make_networks
from prunion.benchmarks.gpu.roofline import measure_device
from prunion.benchmarks.gpu.runtime import runtime_rows
from prunion.benchmarks.gpu.training import CASES, training_row
from prunion.trainer.processes import prepare_device

__all__ = ["main"]

# Most telling first, as `seeds: rows`: an interrupted table is still an answer.
LEARNING = (
    ("01234", "tuned-all tuned-025 one-shot-025 tuned-macs-050 one-shot-macs-050"),
    ("012", "tuned-010 greedy-010 one-shot-floor-010 tuned-macs-025 greedy-macs-025"),
    ("012", "one-shot-macs-025 greedy-025 greedy-macs-050 frozen-all frozen-025"),
    ("0", "intersection-025 jaccard-025 ba2-tuned-025 tuned-random-025 separate-025"),
    ("0", "slim-first-magnitude-global-025 slim-first-taylor-global-025"),
)
device_option = click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
seconds_option = click.option("--seconds", default=10.0, show_default=True, help="A case and row.")
output_option = click.option("-o", "--output", required=True, type=click.Path(path_type=Path))


@click.group()
def main() -> None:
    """Measure training, inference and learning on a GPU."""


@main.command()
@device_option
@seconds_option
@output_option
@click.option("--domains", default=6, show_default=True)
@click.option("--trunk", type=click.Choice(["frozen", "tuned"]), default="frozen")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16")
@click.option("--compile/--eager", "compiled", default=True, show_default=True)
@click.option("--network", multiple=True, help="Only these.")
def training(device: str, output: Path, network: tuple[str, ...], **options: Any) -> None:
    """A joint training step against plain training and against the roofline."""
    _need(device)
    prepare_device(device)
    width = torch.bfloat16 if options["precision"] == "bf16" else torch.float32
    small = device == "cpu"
    rates = measure_device(device, width, 512 if small else 8192, 64 if small else 1024)
    for case in CASES:
        if network and case.network not in network:
            continue
        key = f"training {case.network} {options['trunk']} {options['precision']} "
        key += "compiled" if options["compiled"] else "eager"
        row = partial(training_row, case, rates, device=device, **options)
        _once(output, key, row, {"tflops": rates.flops / 1e12, "gbytes": rates.bytes / 1e9})


@main.command()
@device_option
@seconds_option
@output_option
@click.option("--batches", default="1,8,32,128,256", show_default=True)
@click.option("--domains", default=4, show_default=True)
@click.option("--network", multiple=True, help="Only these.")
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
    for backbone, source, side in NETWORKS:
        if network and backbone not in network:
            continue
        networks = make_networks(backbone, source, side, domains)
        for dtype in (torch.float32, torch.float16):
            for size in sizes:
                for mode in modes or (MODES if device == "cuda" else ("eager",)):
                    key = f"inference {backbone} {str(dtype).split('.')[1]} batch {size} {mode}"
                    row = partial(inference_row, networks, size, device, dtype, seconds, mode)
                    _once(output, key, row, {})


@main.command()
@device_option
@seconds_option
@output_option
def runtime(device: str, output: Path, seconds: float) -> None:
    """The bundle through ONNX Runtime's CUDA provider and TensorRT, where they are installed."""
    _need(device)
    for key, row in runtime_rows(device, seconds):
        _once(output, key, row, {})


@main.command()
@output_option
@click.option("--data", required=True, type=click.Path(exists=True))
@click.option("--weights", required=True, type=click.Path(exists=True))
@click.option("--epochs", default="2,4,6", show_default=True, help="Warm-up, ramp, settle.")
@click.option("--folder", default="runs/gpu", show_default=True)
@click.option("--lanes", default=8, show_default=True, help="Rows that are trained at a time.")
@click.option("--workers", default=1, show_default=True, help="Processes that read a row's images.")
@click.option("--set", "settings", multiple=True, default=("precision=bf16",), show_default=True)
def learning(
    output: Path,
    data: str,
    weights: str,
    epochs: str,
    folder: str,
    lanes: int,
    workers: int,
    settings: tuple[str, ...],
) -> None:
    """The learning table on eight domains, several rows at a time: one leaves a GPU idle."""
    command = [sys.executable, "-m", "prunion.benchmarks.learning", "--domains", "all"]
    command += ["--data", data, "--weights", weights, "--epochs", epochs, "--folder", folder]
    command += ["-o", str(output), "--threads", "1", "--set", f"workers={workers}"]
    command += [part for setting in settings for part in ("--set", setting)]
    tasks = [
        [row, "--seed", seed] for seeds, rows in LEARNING for seed in seeds for row in rows.split()
    ]

    def run(task: list[str]) -> bool:
        return subprocess.run([*command, *task], check=False).returncode == 0

    with ThreadPoolExecutor(lanes) as pool:
        failed = [
            " ".join(t) for t, done in zip(tasks, pool.map(run, tasks), strict=True) if not done
        ]
    if failed:
        raise click.ClickException(f"failed, see above: {'; '.join(failed)}")


def _need(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no CUDA GPU here: run this on a machine with one")


def _once(output: Path, key: str, row: Callable[[], dict[str, Any]], facts: dict[str, Any]) -> None:
    """Measure and append a row unless the file has it."""
    lines = output.read_text("utf-8").splitlines() if output.exists() else []
    if any(json.loads(line)["key"] == key for line in lines):
        return
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    line = json.dumps({"key": key, "device": name, "torch": torch.__version__, **facts, **row()})
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    click.echo(line)


if __name__ == "__main__":
    main()
