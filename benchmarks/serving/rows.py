"""Rows of the serving benchmark: one JSON object a line, kept, resumed, shown as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunion.runtime.base import machine_facts

__all__ = ["Row", "markdown", "read_rows", "write_row"]

Row = dict[str, Any]
MIB = 1 << 20


def read_rows(path: Path | None) -> list[Row]:
    """What a file holds so far."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def write_row(
    path: Path | None,
    key: str,
    threads: int,
    measure: Callable[[], Row],
    asked: Mapping[str, Any] | None = None,
) -> Row | None:
    """Measure a row, add it to the file, and return it; None where the file has it already.

    Args:
        asked: the options that it is measured with, which it notes.

    Every row tells the machine, the versions, and the load before and after.
    """
    if any(row["key"] == key for row in read_rows(path)):
        return None
    before = machine_facts(threads)
    row: Row = {"key": key, **measure(), "machine": before}
    if asked is not None:
        row["asked"] = dict(asked)
    row["load_average_after"] = machine_facts(threads)["load_average"]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return row


def markdown(rows: list[Row]) -> str:
    """All rows as tables, one for each kind."""
    shown: Mapping[str, Callable[[Row], list[str]]] = {
        "load": _load,
        "overhead": _overhead,
        "memory": _memory,
        "packs": _packs,
        "soak": _plain,
        "stop": _plain,
        "exchange": _plain,
        "kill": _plain,
    }
    parts = []
    for row in rows:
        facts = row["machine"]
        stamp = (
            f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
            f"ONNX Runtime {facts.get('onnxruntime')}, load {facts['load_average']:.1f} before "
            f"and {row['load_average_after']:.1f} after"
        )
        parts += [f"### {row['key']}", "", *shown[row["what"]](row), "", f"{stamp}.", ""]
    return "\n".join(parts)


def _load(row: Row) -> list[str]:
    lines = [
        f"The union has {row['macs_share']:.2f} of the MACs. A batch of 8 gives "
        f"{row['gain_of_8']:.2f} × the images of batch 1.",
        "",
        "| server | load | answers/s | p50 ms | p99 ms | refused | wrong | client µs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for system, modes in row["systems"].items():
        if "skipped" in modes:
            lines.append(f"| {system} | {modes['skipped']} | | | | | | |")
            continue
        for mode, x in modes.items():
            lines.append(
                f"| {system} | {mode} | {x['per_s']:.1f} | {x['p50']:.2f} | {x['p99']:.2f} "
                f"| {x['refused']} | {x['wrong']} | {x['client_cpu_us']:.0f} |"
            )
    return lines


def _overhead(row: Row) -> list[str]:
    lines = ["| way | p50 ms | least ms | above in process |", "| --- | --- | --- | --- |"]
    inside = row["ms"]["in process"]
    for way, ms in row["ms"].items():
        lines.append(
            f"| {way} | {ms['p50']:.3f} | {ms['least']:.3f} | {ms['p50'] - inside['p50']:.3f} |"
        )
    return lines


def _memory(row: Row) -> list[str]:
    lines = ["| server | domains | PSS MiB | USS MiB | ms to start |", "| --- " * 5 + "|"]
    for system, x in row["systems"].items():
        lines.append(
            f"| {system} | {row['domains']} | {x['pss'] / MIB:.0f} | {x['uss'] / MIB:.0f} "
            f"| {x['start_ms']:.0f} |"
        )
    return [*lines, "", f"{row['share']:.2f} of the memory."]


def _packs(row: Row) -> list[str]:
    lines = ["| packs | PSS MiB | of them packs MiB | first answer p50 ms |", "| --- " * 4 + "|"]
    lines += [
        f"| {x['packs']} | {x['pss'] / MIB:.0f} | {x['pack_bytes'] / MIB:.1f} "
        f"| {x['first_ms']:.1f} |"
        for x in row["counts"]
    ]
    return [*lines, "", f"{row['ratio']:.2f} times as much, the packs themselves left out."]


def _plain(row: Row) -> list[str]:
    skipped = ("key", "what", "machine", "load_average_after", "asked")
    rest = {k: v for k, v in row.items() if k not in skipped}
    lines = ["| what | found |", "| --- | --- |"]
    return [*lines, *(f"| {key} | {_text(value)} |" for key, value in rest.items())]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(x)}" for key, x in value.items())
    return str(value)
