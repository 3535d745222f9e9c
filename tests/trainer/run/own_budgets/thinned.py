"""A run whose domains are thinned to a share of the union's MACs."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_run import tiny_run

__all__ = ["OWN", "thin_run"]

OWN = 0.6


def thin_run(folder: Path, **train: object) -> Path:
    run_file = tiny_run(folder, switch_every=1, **{"own_epochs": 3, **train})
    text = run_file.read_text("utf-8").replace("round_to = 8", f"round_to = 1\nown = {OWN}")
    run_file.write_text(text, "utf-8")
    return run_file
