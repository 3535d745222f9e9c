"""What the processes of `forked.py` find imported and remembered: what trains and exports.

No thread is left where processes are forked, and nothing was differentiated: autograd's engine
refuses to run in a child of a process that ran it.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

from tests.support.remembered import (
    make_tables_once,
    remember_exports,
    remember_rebuilt,
    remember_traces,
)
from tests.support.tiny_run import tiny_run

LIBRARIES = (
    "torchvision",
    "torch.distributed",
    "torch.utils.tensorboard",
    "onnxscript",
    "onnxruntime",
    "torch.onnx._internal.exporter._core",
)

for stage in ("trainer", "exporter"):
    room = importlib.import_module(f"prunion.{stage}")
    for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        with suppress(ImportError):  # a test that needs what is missing says so
            importlib.import_module(module.name)
for name in LIBRARIES:
    with suppress(ImportError):
        importlib.import_module(name)
make_tables_once(setattr)
remember_traces(setattr)
remember_rebuilt(setattr)


def begin_once(folder: Path) -> None:
    """The tiny run before its first step: its network traced, and a cut of it exported."""
    from prunion.exporter.graph import rehearse_export
    from prunion.trainer.backbone.tracing import comparing
    from prunion.trainer.config import load_config
    from prunion.trainer.processes import ALONE
    from prunion.trainer.run.start import begin

    with mock.patch.object(comparing, "_other_gradient", return_value=None):
        begin(load_config(tiny_run(folder)), folder, "cpu", ALONE, check=rehearse_export)


if importlib.util.find_spec("onnxruntime") is not None:
    remember_exports(setattr)
    importlib.import_module("tqdm").tqdm.monitor_interval = 0  # no thread that watches the bars
    with tempfile.TemporaryDirectory() as folder:
        begin_once(Path(folder))
