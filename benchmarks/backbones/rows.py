"""The rows of the backbone table: as JSON, as Markdown, as a line while they are measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from prunion.runtime.base import install_hint, read_json

__all__ = ["DENSITIES", "BackboneRow", "DensityCase", "read_rows", "row_line", "table"]

DENSITIES = (0.9, 0.6, 0.3)
NOTHING = "–"  # where nothing was compared


@dataclass(frozen=True)
class DensityCase:
    """One network at one density of random switches.

    Attributes:
        density: share of the units that some domain may use; of these each uses four in five.
        masked_sliced, masked_onnx: largest `max |Δ| / max |reference|` of any domain in one
            mixed batch; `masked_onnx` is None where this density was only sliced.
        seconds: CPU time of slicing, ONNX export and the comparisons.
        masked_openvino: the same of OpenVINO, the graph mixed and pinned to one domain; None
            where it is not installed.
    """

    density: float
    kept_units: int
    params: int
    macs: int
    masked_sliced: float
    masked_onnx: float | None
    seconds: float
    masked_openvino: float | None = None


@dataclass(frozen=True)
class BackboneRow:
    """One network: what it costs, what random switches leave of it, or why it is refused."""

    name: str
    side: int
    units: int = 0
    params: int = 0
    macs: int = 0
    seconds: float = 0.0
    cases: list[DensityCase] = field(default_factory=list)
    refused: str = ""


def read_rows(path: str | None) -> list[BackboneRow]:
    """What `--json` holds so far; nothing where there is no such file."""
    if path is None or not os.path.exists(path):
        return []
    rows: list[dict[str, Any]] = read_json(path)
    return [
        BackboneRow(**{**row, "cases": [DensityCase(**case) for case in row["cases"]]})
        for row in rows
    ]


def table(rows: list[BackboneRow]) -> str:
    """The rows as Markdown; parameters and MACs in millions, shares at each density."""
    shares = " / ".join(f"{density:g}" for density in DENSITIES)
    lines = [
        f"| network | px | units | params (M) | left at {shares} | MACs (M) | left at {shares} "
        "| sliced | ONNX | OpenVINO | s |",
        "| --- " * 11 + "|",
    ]
    lines += [_markdown(row) for row in rows if not row.refused]
    cases = [case for row in rows for case in row.cases if case.masked_onnx is not None]
    if any(case.masked_openvino is None for case in cases):
        lines += ["", f"{NOTHING}: OpenVINO is not installed ({install_hint('openvino')})."]
    if any(row.refused for row in rows):
        lines += ["", "| refused | reason |", "| --- | --- |"]
        lines += [
            f"| {x.name} | {x.refused.replace('|', chr(92) + '|')} |" for x in rows if x.refused
        ]
    return "\n".join(lines)


def _markdown(row: BackboneRow) -> str:
    params = " / ".join(f"{case.params / row.params:.3f}" for case in row.cases)
    macs = " / ".join(f"{case.macs / row.macs:.3f}" for case in row.cases)
    errors = [
        _largest([case.masked_sliced for case in row.cases]),
        _largest([case.masked_onnx for case in row.cases]),
        _largest([case.masked_openvino for case in row.cases]),
    ]
    shown = " | ".join(NOTHING if error is None else f"{error:.0e}" for error in errors)
    seconds = row.seconds + sum(case.seconds for case in row.cases)
    return (
        f"| {row.name} | {row.side} | {row.units:,} | {row.params / 1e6:.2f} | {params} "
        f"| {row.macs / 1e6:.1f} | {macs} | {shown} | {seconds:.0f} |"
    )


def _largest(errors: list[float | None]) -> float | None:
    return max((error for error in errors if error is not None), default=None)


def row_line(row: BackboneRow) -> str:
    """What is printed as soon as a network is measured."""
    if row.refused:
        return f"{row.name:<32} refused: {row.refused}"
    errors = [
        error
        for case in row.cases
        for error in (case.masked_sliced, case.masked_onnx, case.masked_openvino)
    ]
    left = ", ".join(f"{case.params / row.params:.3f}" for case in row.cases)
    seconds = row.seconds + sum(case.seconds for case in row.cases)
    return (
        f"{row.name:<32} {row.units:>6} units  {row.params / 1e6:>7.2f} M → {left}  "
        f"error {_largest(errors):.1e}  {seconds:.0f} s"
    )
