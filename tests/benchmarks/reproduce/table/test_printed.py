"""The printed rows: S follows from their accuracies, and each stands beside a row of ours."""

from __future__ import annotations

import pytest

from prunion.benchmarks.reproduce.catalogue import (
    NETWORKS,
    ReproducedRow,
    drops,
    phases,
    rows_of,
    usual_rows,
)
from prunion.benchmarks.reproduce.table.printed import PRINTED, REFERENCES, PrintedRow
from prunion.trainer.config import METHODS, TrainConfig
from prunion.trainer.score import BENCHMARKS, score


def s_of(row: PrintedRow) -> float:
    return score(REFERENCES.get(row.network, BENCHMARKS[row.benchmark]), row.accuracy).s


@pytest.mark.parametrize("row", PRINTED, ids=lambda x: f"{x.source}, {x.title}")
def test_s_follows_from_the_printed_accuracies(row: PrintedRow) -> None:
    wrong = row.misprint.startswith(("GTSR", "S 533"))
    assert (s_of(row) == pytest.approx(row.s, rel=0.01)) == (not wrong)


@pytest.mark.parametrize("row", [x for x in PRINTED if x.s_p and x.params and not x.misprint])
def test_s_of_a_parameter_follows_too(row: PrintedRow) -> None:
    assert row.params and row.s / row.params == pytest.approx(row.s_p, rel=0.011)


@pytest.mark.parametrize("row", [x for x in PRINTED if x.s_e and x.s_p and not x.misprint])
def test_what_else_is_printed_of_costs_follows_too(row: PrintedRow) -> None:
    """To what rounding S, and S_E itself, leaves."""
    benchmark = REFERENCES.get(row.network, BENCHMARKS[row.benchmark])
    found = score(benchmark, row.accuracy, row.flop, row.params)
    assert found.s_o == pytest.approx(row.s_o, rel=0.011)
    assert found.s_e == pytest.approx(row.s_e, rel=0.025, abs=0.006)


def test_every_printed_method_has_a_row() -> None:
    for row in PRINTED:
        assert not row.row or row.row in rows_of(row.benchmark, row.network), row


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_method_is_among_the_usual_rows(benchmark: str) -> None:
    assert {row.method for row in usual_rows(benchmark)} == METHODS.keys()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{network}-{row.name}")
        for benchmark, networks in NETWORKS.items()
        for network in networks
        for row in rows_of(benchmark, network).values()
    ],
)
def test_a_rows_settings_are_a_runs(row: ReproducedRow) -> None:
    for epochs in (1, 2, 3, row.epochs):
        parts = phases(row, epochs)
        assert sum(parts.values()) == epochs and min(parts.values()) >= 0 and parts["ramp"]
        keys = {**row.train, **parts, **drops(row, epochs)}
        config = TrainConfig(method=row.method, **keys)
    assert config.epochs == row.epochs
    if row.method in ("series", "parallel", "svd"):
        assert config.own_adapter_lr == 0.1  # the paper's
