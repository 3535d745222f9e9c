"""What a run prints at its end."""

from __future__ import annotations

from prunion.trainer.run import accuracy_lines


def test_a_domain_called_mean_keeps_its_row() -> None:
    accuracy, whole = {"mean": 0.9, "b": 0.5}, {"mean": 0.8, "b": 0.4}
    rows = [line.split() for line in accuracy_lines(accuracy, {}, whole, (1, 2))[1:-1]]
    assert rows == [
        ["mean", "80.0%", "90.0%", "+10.00"],
        ["b", "40.0%", "50.0%", "+10.00"],
        ["mean", "60.0%", "70.0%", "+10.00"],
    ]
