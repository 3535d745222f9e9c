"""`[budget] floor` holds at the end of every recipe, or the run says that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import check_run, closing_table, train_run, train_sweep
from tests.support.tiny_run import tiny_run

FLOOR = ["budget.floor=0.6", "budget.round_to=1"]


@pytest.mark.parametrize(
    "changes",
    [
        ["train.recipe=paper"],
        ["train.cut=domains"],
        pytest.param(["train.recipe=paper", "train.cut=domains"], marks=pytest.mark.slow),
        pytest.param(["train.method=ba2"], marks=pytest.mark.slow),
        pytest.param(["train.recipe=greedy"], marks=pytest.mark.slow),
        pytest.param(["budget.own=0.95"], marks=pytest.mark.slow),
        ["budget.own=0.95", "train.own_epochs=2"],
    ],
)
def test_it_holds_in_every_recipe(changes: list[str], tmp_path: Path) -> None:
    result = train_run(load_config(tiny_run(tmp_path), [*FLOOR, *changes]), tmp_path / "out")
    net = load_checkpoint(tmp_path / "out").net
    table, alive = net.units.table, (net.switches > 0).numpy().any(0)
    least = min(float(alive[members].mean()) for members in table.widths)
    assert least >= 0.6
    assert result.floor is not None
    assert (result.floor["met"], result.floor["least"]) == (True, least)
    assert "floor 60.0% of every layer's width: met" in closing_table(result)
    record = json.loads((tmp_path / "out" / "record.json").read_text("utf-8"))
    assert record["result"]["floor"] == result.floor


def test_what_a_domain_must_give_up_may_cost_the_floor_and_is_told(tmp_path: Path) -> None:
    """Each is thinned for itself, to less than the floor costs."""
    changes = ["budget.own=0.3", "train.own_epochs=2", "budget.limit=0.45"]
    result = train_run(load_config(tiny_run(tmp_path), [*FLOOR, *changes]), tmp_path / "out")
    assert result.floor is not None
    assert result.floor["met"] is False
    told = f"NOT met, {result.floor['layer']} keeps {result.floor['least']:.1%}"
    assert told in closing_table(result)


def test_what_the_limit_cannot_hold_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    configs = [
        load_config(run_file, ["budget.floor=0.9", f"budget.limit={limit}"]) for limit in (1.0, 0.5)
    ]
    with pytest.raises(BudgetError, match=r"\[budget\] floor is 0\.9: .* set floor = 0\."):
        train_run(configs[1], tmp_path / "out")
    with pytest.raises(BudgetError, match=r"\[budget\] floor is 0\.9: .* limit 0\.5"):
        train_sweep(configs, tmp_path / "sweep")
    with pytest.raises(BudgetError, match=r"\[budget\] floor is 0\.9"):
        check_run(configs[1])
    assert not list(tmp_path.glob("out*"))


def test_methods_that_cut_nothing_have_no_floor(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path), ["budget.floor=0.5", "train.method=finetune"])
    with pytest.raises(ConfigError, match=r"\[budget\] floor is 0\.5, .* remove it"):
        train_run(config, tmp_path / "out")
