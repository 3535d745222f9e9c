"""Peak memory of ways to hold many domains: `python -m prunion.benchmarks.cost.runtime_memory`.

Each way runs in a fresh process. Figures are peak RSS above a process that has loaded the same
packages and run a one-node session.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from prunion.benchmarks.random_bundle import random_bundle
from prunion.runtime.cli import FiniteRange, OneLineCommand

__all__ = ["WAYS", "main", "peak_bytes"]

# Each gets `bundle`, `full`, `batch` and `domains`; the child prints its peak at the end.
PRELUDE = """
import sys, numpy as np, onnx, onnxruntime as ort
from prunion.runtime.backends import SessionOptions, make_ort_session, pinned_session, run
from prunion.runtime.base import peak_rss_bytes
from prunion.runtime.model import load
bundle, full, batch, domains = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = SessionOptions("cpu", 1, share_arena=False)
from onnx import helper, TensorProto
value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])
node = helper.make_node("Relu", ["x"], ["logits"])
opset = [helper.make_opsetid("", 20)]
tiny = helper.make_model(helper.make_graph([node], "g", [value], [logits]), opset_imports=opset)
tiny.ir_version = 10
run(make_ort_session(tiny.SerializeToString(), options), {"x": np.ones(1, np.float32)})
def image(size):
    return np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)
def plan_of(path):
    return load(path, "cpu", threads=1, memory_limit=0).sessions.size
"""
WAYS = {
    "bare": "",
    "one session of the pruned trunk": """
from prunion.runtime.backends import mixed_session
size = plan_of(bundle)
session = mixed_session(bundle + "/model.onnx", options)
for _ in range(3):
    run(session, {"image": image(size), "domain": np.zeros(batch, np.int64)})
""",
    "one pinned session": """
size = plan_of(bundle)
session = pinned_session(bundle + "/model.onnx", 0, options)
for _ in range(3):
    run(session, {"image": image(size)})
""",
    "runtime, no memory for pinned": """
model = load(bundle, "cpu", threads=1, memory_limit=0)
for row in range(domains):
    model.logits(image(model.sessions.size), np.full(batch, row))
""",
    "runtime, room for one pinned": """
from pathlib import Path
limit = int(1.5 * Path(bundle, "model.onnx").stat().st_size)
model = load(bundle, "cpu", threads=1, memory_limit=limit)
for row in range(domains):
    model.logits(image(model.sessions.size), np.full(batch, row))
""",
    "runtime, all pinned": """
model = load(bundle, "cpu", threads=1)
for row in range(domains):
    model.logits(image(model.sessions.size), np.full(batch, row))
""",
    "four pinned sessions": """
size = plan_of(bundle)
shared = SessionOptions("cpu", 1)
sessions = [pinned_session(bundle + "/model.onnx", row, shared) for row in range(4)]
for session in sessions:
    run(session, {"image": image(size)})
""",
    "four pinned sessions, weights handed in": """
from prunion.runtime.graph import pin_domain
from prunion.runtime.backends.onnxruntime import _shared_arena
size = plan_of(bundle)
settings, _ = ort.SessionOptions(), _shared_arena()
settings.intra_op_num_threads = 1
settings.add_session_config_entry("session.use_env_allocators", "1")
model, kept = onnx.load(bundle + "/model.onnx"), []
for tensor in model.graph.initializer:
    if len(tensor.dims) == 4:
        kept.append(ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(tensor)))
        settings.add_initializer(tensor.name, kept[-1])
del model
sessions = [
    ort.InferenceSession(pin_domain(bundle + "/model.onnx", row), settings) for row in range(4)
]
for session in sessions:
    run(session, {"image": image(size)})
""",
    "separate unpruned sessions": """
size = plan_of(bundle)
sessions = [pinned_session(full + "/model.onnx", row, options) for row in range(domains)]
for session in sessions:
    run(session, {"image": image(size)})
""",
}


def peak_bytes(way: str, bundle: Path, full: Path, batch: int, domains: int) -> int:
    """Peak RSS of a fresh process that goes one of WAYS."""
    code = PRELUDE + WAYS[way] + "\nprint(peak_rss_bytes())\n"
    arguments = [str(bundle), str(full), str(batch), str(domains)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@click.command(cls=OneLineCommand)
@click.option("--backbone", default="resnet18,mobilenet_v2", show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch", default="1,8", show_default=True)
@click.option("--domains", default=10, show_default=True)
@click.option("--density", type=FiniteRange(0, 1, min_open=True), default=0.5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(backbone: str, size: int, batch: str, domains: int, density: float, as_json: bool) -> None:
    """Print MiB above the bare process for every way, backbone and batch size."""
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in backbone.split(","):
            pruned, full = Path(folder) / f"{name}.prunion", Path(folder) / f"{name}.full.prunion"
            random_bundle(pruned, name, domains, density, size=size)
            random_bundle(full, name, domains, 1.0, own=1.0, size=size)
            for count in map(int, batch.split(",")):
                peaks = {way: peak_bytes(way, pruned, full, count, domains) for way in WAYS}
                above = {k: (v - peaks["bare"]) / 2**20 for k, v in peaks.items() if k != "bare"}
                report[f"{name}, batch {count}"] = above
                if not as_json:
                    click.echo(f"{name}, {size} px, batch {count}, {domains} domains")
                    click.echo("\n".join(f"{mib:9.1f} MiB  {way}" for way, mib in above.items()))
    if as_json:
        click.echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
