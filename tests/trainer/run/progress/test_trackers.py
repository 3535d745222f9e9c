"""Weights & Biases and MLflow are told what `metrics.jsonl` is told, and end no run.

With the tools themselves: pip install 'prunion[wandb,mlflow]'.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import prunion
from prunion.runtime.errors import ConfigError
from prunion.trainer.cli import train as train_command
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import foreign_to_run, train_run
from tests.support.tiny_run import tiny_run

SHORT = {"warmup": 1, "ramp": 1, "settle": 0}


class Told(ModuleType):
    """A wandb that keeps what it is told."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.breaks, self.runs = breaks, list[dict[str, Any]]()

    def init(self, **options: Any) -> SimpleNamespace:
        run: dict[str, Any] = {"options": options, "lines": []}
        self.runs.append(run)

        def log(figures: dict[str, float], step: int) -> None:
            if self.breaks:
                raise ConnectionError("no route\nto host")
            run["lines"].append({"step": step, **figures})

        def finish(exit_code: int) -> None:
            run["exit_code"] = exit_code

        return SimpleNamespace(id=options["id"] or "abc", log=log, finish=finish)


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [{k: v for k, v in x.items() if not isinstance(v, str | None)} for x in lines]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    module = Told()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_it_is_told_every_number_and_the_configuration(told: Told, tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    done = CliRunner().invoke(
        train_command, [str(run_file), "-o", str(out), "--track", "wandb", "--baseline"]
    )
    assert done.exit_code == 0, done.output
    pruned, whole = told.runs
    assert pruned["lines"] == numbers(out)
    assert whole["lines"] == numbers(out / "baseline")
    assert pruned["exit_code"] == 0
    assert pruned["options"]["config"] == load_config(run_file).to_json()
    assert (pruned["options"]["name"], pruned["options"]["dir"]) == ("out", str(out))
    (out / "wandb").mkdir()
    assert not foreign_to_run(out)


def test_a_run_that_resumes_goes_on_in_the_same_one(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, step = load_config(tiny_run(tmp_path, **SHORT)), Training._step

    def broken(self: Training, *args: object) -> object:
        if self.step == self.batches.steps_per_epoch:
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "out", track=["wandb"])
    train_run(config, tmp_path / "out", track=["wandb"], resume=True)
    first, second = told.runs
    assert (first["options"]["id"], second["options"]["id"]) == (None, "abc")
    assert (first["exit_code"], second["exit_code"]) == (1, 0)
    assert first["lines"] + second["lines"] == numbers(tmp_path / "out")


def test_a_tool_that_breaks_ends_no_run(
    told: Told, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told.breaks = True
    with caplog.at_level(logging.WARNING):
        result = prunion.train(tiny_run(tmp_path, **SHORT), tmp_path / "out", track="wandb")
    assert result.accuracy
    (line,) = [x.getMessage() for x in caplog.records if x.getMessage().startswith("wandb")]
    assert line == "wandb: no route; the run goes on without it, metrics.jsonl has every figure"


def test_an_unknown_tool_or_one_that_is_not_there_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config(tiny_run(tmp_path))
    with pytest.raises(ConfigError, match="track is 'neptune': give"):
        train_run(config, tmp_path / "out", track=["neptune"])
    with pytest.raises(ConfigError, match=r"track is mlflow, which is not installed: pip install"):
        train_run(config, tmp_path / "out", track=["mlflow"])
    assert not (tmp_path / "out").exists()


def test_mlflow_itself_has_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'prunion[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out, config = tmp_path / "out", load_config(tiny_run(tmp_path, **SHORT))
    train_run(config, out, track=["mlflow"])
    client = mlflow.MlflowClient()
    run = client.get_run(json.loads((out / "trackers.json").read_text())["mlflow"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "out")
    assert run.data.params["train/batch_size"] == "8"
    assert client.get_experiment(run.info.experiment_id).name == "prunion"
    for key in ("loss/warm", "cost", "sharing/warm/cold", "accuracy/cold"):
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        assert history == {x["step"]: x[key] for x in numbers(out) if key in x}, key
    train_run(config, out, track=["mlflow"], resume=True)  # it is finished: the same run again
    found = client.search_runs([run.info.experiment_id])
    assert [x.info.run_id for x in found] == [run.info.run_id]


def records(data: bytes) -> Iterator[bytes]:
    """What a .wandb file holds: LevelDB's log, behind seven bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no record begins so near to the end of a block
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


def test_wandb_itself_writes_its_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install 'prunion[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out, before = tmp_path / "out", wandb.run
    train_run(load_config(tiny_run(tmp_path, **SHORT)), out, track=["wandb"])
    assert wandb.run is before  # a notebook's own run stays its own
    name = json.loads((out / "trackers.json").read_text())["wandb"]
    (file,) = out.glob(f"wandb/offline-run-*/run-{name}.wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    lines = list[dict[str, float]]()
    for data in records(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = {
                x.key or "/".join(x.nested_key): json.loads(x.value_json)
                for x in record.history.item
            }
            lines.append({k: v for k, v in items.items() if not k.startswith("_")})
    told = numbers(out)
    assert len(lines) == len({line["step"] for line in told})
    steps = [line for line in told if "cost" in line]
    assert [line["cost"] for line in lines if "cost" in line] == [line["cost"] for line in steps]
    assert not foreign_to_run(out)
