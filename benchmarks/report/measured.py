"""What `prunion bench --json` printed, as tables: sessions, rivals, fresh processes, scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunion.runtime.base import on_cpu
from prunion.runtime.measure import asked_text

__all__ = ["check_measured", "measured_as", "measured_notes", "measured_tables"]

MIB = 2**20
OWN = ("mixed", "pinned", "single", "split")  # sessions of the bundle itself
Rows = list[tuple[str, ...]]


def check_measured(report: Mapping[str, Any]) -> None:
    """Raise what is raised where a file lacks what the page shows of it: KeyError, TypeError, …."""
    measured_tables(report)
    measured_notes(report)
    for row in report.get("rows", ()):
        measured_as(report, row["session"])


def measured_tables(report: Mapping[str, Any]) -> dict[str, Rows]:
    """Tables by their headings, each with its head; those without rows are left out."""
    if "scenario" in report:
        return {f"Asked as MLPerf does: {report['scenario']}": _scenario(report)}
    tables = {
        "Measured": _sessions(report),
        "Against what else one would run": _compared(report),
        "In a process of its own": _fresh(report),
        "Energy": _energy(report),
    }
    return {heading: rows for heading, rows in tables.items() if len(rows) > 1}


def measured_notes(report: Mapping[str, Any]) -> list[str]:
    """The machine, and what may be wrong with the figures; one line each."""
    machine = ", ".join(f"{key} {value}" for key, value in dict(report["machine"]).items())
    told = [report.get(key) for key in ("slowed_down", "widths_warning", "widths_cost")]
    slow = [f"may be slowed down: {told[0]}"] if told[0] else []
    asked = [asked_text(report["asked"])] if isinstance(report.get("asked"), Mapping) else []
    return [
        machine,
        *asked,
        *slow,
        *(str(x) for x in told[1:] if x),
        *(str(x["note"]) for x in report.get("comparisons", ()) if x.get("note")),
        *map(str, report.get("notes", ())),
    ]


def measured_as(report: Mapping[str, Any], session: str) -> str:
    """Which graph was answered by what, with how many threads, on which machine.

    Times are compared only where this is the same. Of an earlier prunion the graph is not known.
    """
    asked, machine = report.get("asked"), dict(report["machine"])
    threads = machine.get("threads", "all")
    where = f"{threads} thread{'s' * (threads != 1)}, {machine.get('cpu', 'a CPU')}"
    if not isinstance(asked, Mapping):
        return f"a graph that is not named, {where}"
    provider = str(dict(asked["providers"])[session])
    where = where if on_cpu(provider) else str(machine.get("gpu", "a GPU"))
    return f"{asked['precision']}, {provider.removesuffix('ExecutionProvider')}, {where}"


def _scenario(report: Mapping[str, Any]) -> Rows:
    latency = f"p{report['percentile']} ms"
    bound = "-" if report["bound_ms"] is None else f"p99 under {float(report['bound_ms']):g} ms"
    sure = "yes" if report["valid"] else "no: too short, or no rate held"
    return [
        (
            "asked",
            "images in a query",
            "queries",
            latency,
            "images/s",
            "bound",
            "sure",
            "driven by",
        ),
        (
            str(report.get("asked", "-")),
            str(report["samples"]),
            f"{int(report['queries']):,}",
            f"{float(report['latency_ms']):.3f}",
            f"{float(report['samples_per_second']):,.1f}",
            bound,
            sure,
            str(report["driver"]),
        ),
    ]


def _sessions(report: Mapping[str, Any]) -> Rows:
    rows: Rows = [("session", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")]
    for row in report["rows"]:
        times = (f"{float(row['timing'][key]):.3f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        speed = f"{float(row['images_per_second']):,.1f}"
        rows.append((str(row["session"]), str(row["batch"]), *times, speed))
    return rows


def _compared(report: Mapping[str, Any]) -> Rows:
    rows: Rows = [("session", "against", "batch", "of its time", "95 % within", "verdict")]
    for x in report.get("comparisons", ()):
        few = x["low"] is None
        within = "too few blocks" if few else f"{float(x['low']):.3f} … {float(x['high']):.3f}"
        names = (str(x["session"]), str(x["against"]), str(x["batch"]))
        rows.append((*names, f"{float(x['ratio']):.3f}", within, str(x["verdict"])))
    return rows


def _fresh(report: Mapping[str, Any]) -> Rows:
    rows: Rows = [("session", "batch", "load ms", "first call ms", "peak memory, MiB", "files, MB")]
    for x in report.get("fresh", ()):
        size = _loaded_bytes(report, str(x["session"]))
        times = (f"{float(x[key]):.1f}" for key in ("load_ms", "first_call_ms"))
        memory = f"{float(x['peak_rss_bytes']) / MIB:.0f}"
        rows.append(
            (
                str(x["session"]),
                str(x["batch"]),
                *times,
                memory,
                "-" if size is None else f"{size / 1e6:.1f}",
            )
        )
    return rows


def _loaded_bytes(report: Mapping[str, Any], session: str) -> int | None:
    """Bytes of the files that a session is loaded from; None where that is not known.

    Of a bundle one graph and all that is none.
    """
    rivals, files = dict(report.get("rival_bytes", {})), dict(report.get("file_bytes", {}))
    graphs = {name: size for name, size in files.items() if name.endswith(".onnx")}
    if session in rivals:
        return int(rivals[session])
    if not session.startswith(OWN) or not graphs:
        return None
    asked = report.get("asked")
    precision = asked["precision"] if isinstance(asked, Mapping) else "fp32"
    name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
    if name not in graphs:
        return None
    return int(sum(files.values()) - sum(graphs.values()) + graphs[name])


def _energy(report: Mapping[str, Any]) -> Rows:
    rows: Rows = [("session", "batch", "meter", "mJ an image")]
    for x in report.get("energy", ()):
        rows += [
            (str(x["session"]), str(x["batch"]), str(meter), f"{float(joules) * 1e3:.3g}")
            for meter, joules in x["joules_per_image"].items()
        ]
    return rows
