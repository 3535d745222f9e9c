"""Where the thinning of domains begins, and what it goes on with."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import CheckpointError, StoppedError
from prunion.trainer.config import load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import Progress, closing_table, train_run
from prunion.trainer.run.folder.snapshot import snapshot_step
from prunion.trainer.run.progress import Watch
from prunion.trainer.run.result.usage import sharing_matrix
from tests.trainer.run.own_budgets.thinned import thin_run
from tests.trainer.run.test_same_images import swap


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thin")
    told: list[tuple[int, ...]] = []

    def note(now: Progress) -> None:
        told.append((now.step, now.total, now.epoch))

    train_run(load_config(thin_run(folder)), folder / "out", watch=Watch(note, note))
    (folder / "told.json").write_text(json.dumps(told), "utf-8")
    return folder


def test_steps_and_epochs_count_through_the_whole_run(finished: Path) -> None:
    """It was told steps 10, 11 and 12 of 12, then 1, 2 and 3 of 9."""
    told = json.loads((finished / "told.json").read_text("utf-8"))
    steps, totals, epochs = (list(x) for x in zip(*told, strict=True))
    assert steps == sorted(steps) and set(steps) == set(range(1, 22))
    assert set(totals) == {21}
    assert epochs == sorted(epochs) and epochs[-1] == 7


def test_sharing_is_that_of_the_thinned_domains(finished: Path) -> None:
    """It was what they had chosen before: every channel of a domain's was also another's."""
    told = json.loads((finished / "out" / "record.json").read_text("utf-8"))
    on = (load_checkpoint(finished / "out").net.switches > 0).numpy()
    matrix = [list(row.values()) for row in told["result"]["sharing_matrix"].values()]
    assert matrix == sharing_matrix(on).tolist() and min(matrix[0]) < 1
    assert told["result"]["sharing"] == on.all(0).sum() / on.any(0).sum()  # nothing is rounded up
    assert told["choices"]["domains"]["warm"] == np.packbits(on[0]).tobytes().hex()


def test_a_signal_between_settling_and_thinning_acts_at_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", load_config(finished / "run.toml")

    def stops(*args: object, **more: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("prunion.trainer.run.thinning.evaluate", stops)
        with pytest.raises(StoppedError, match="after settling; the state is saved: go on with"):
            train_run(config, out)
    assert snapshot_step(out / "state.safetensors") == 12
    result = train_run(config, out, resume=True)
    assert result.own["accuracy_with_union"].keys() == {"warm", "cold"}  # type: ignore[index]


def test_what_it_answered_before_is_left_out_where_its_test_images_are_others(
    finished: Path, tmp_path: Path
) -> None:
    """It said 100.0% → 0.0% of a domain whose two test folders had changed places."""
    config, test = load_config(finished / "run.toml"), finished / "data" / "warm" / "test"
    out, record = tmp_path / "out", tmp_path / "record.json"
    shutil.copytree(finished / "out", out)

    def known() -> set[str]:
        result = train_run(config, out, resume=True)
        assert result.own is not None
        assert closing_table(result).count("→") == 2 + len(result.own["accuracy_with_union"])
        return set(result.own["accuracy_with_union"])

    swap(test)
    try:
        assert known() == {"cold"}
        # An earlier prunion's state is of the images of the record, where there is one.
        shutil.rmtree(out)
        shutil.copytree(finished / "out", out)
        with safe_open(out / "own.safetensors", framework="pt") as file:
            meta = json.loads(file.metadata()["prunion"])
        del meta["facts"]["tested"]
        weights = load_file(out / "own.safetensors")
        save_file(weights, out / "own.safetensors", {"prunion": json.dumps(meta)})
        (out / "record.json").rename(record)
        assert known() == {"warm", "cold"}
        record.rename(out / "record.json")
        assert known() == {"cold"}
    finally:
        swap(test)


def test_a_damaged_state_of_thinning_does_not_cost_what_came_before(
    finished: Path, tmp_path: Path
) -> None:
    """The advice was to start the whole run again."""
    config, out = load_config(finished / "run.toml"), tmp_path / "out"
    shutil.copytree(finished / "out", out)
    state = out / "own.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"own.safetensors cannot be read .*: remove it and"):
        train_run(config, out, resume=True)
    state.unlink()
    train_run(config, out, resume=True)
    one, other = (folder / "checkpoint" for folder in (finished / "out", out))
    assert sha256_file(one / "model.safetensors") == sha256_file(other / "model.safetensors")
