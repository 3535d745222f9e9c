"""A bench's report as a table for people, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunion.runtime.base import INPUT_RAILS, state_text
from prunion.runtime.measure.benchmark.fresh import Fresh
from prunion.runtime.measure.benchmark.outcome import BenchReport, BenchRow, Energy
from prunion.runtime.measure.comparison import Comparison

__all__ = ["asked_text", "bench_csv", "foreign_to_bench", "format_report"]

COLUMNS = (
    "session,batch,runs,mean_ms,p50_ms,p90_ms,p99_ms,min_ms,images_per_second,warm_up_calls,"
    "steady,fresh_load_ms,fresh_first_call_ms,fresh_peak_rss_bytes,against,ratio,ratio_low,"
    "ratio_high,verdict"
).split(",")
MIB = 2**20


def asked_text(asked: Mapping[str, Any]) -> str:
    """What was measured, of a report's `asked`: which graph, of which domains, by what."""
    providers = ", ".join(dict.fromkeys(map(str, dict(asked["providers"]).values())))
    names = asked.get("batches_of")  # an earlier prunion did not say; a domain may be called mixed
    several = len(names) > 1 if isinstance(names, list) else asked["domains"] == "mixed"
    domains = "all domains" if several else str(names[0] if names else asked["domains"])
    return f"the {asked['precision']} graph, of {domains}, by {providers or asked['backend']}"


def format_report(report: BenchReport) -> str:
    """The report as a table for people."""
    lines = [
        *_session_lines(report.rows),
        *map(_compared, report.comparisons),
        *_fresh_lines(report.fresh),
        f"measured: {asked_text(report.asked)}",
        *_loading_lines(report),
        *_energy_lines(report),
        _overhead_line(report),
        *_state_lines(report),
        f"files: {_sizes(report)}",
        _machine_line(report),
        *_notes(report),
    ]
    return "\n".join(lines)


def _session_lines(rows: Iterable[BenchRow]) -> Iterator[str]:
    head = f"{'session':<28}{'batch':>6}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}"
    yield f"{head}{'mean ms':>10}{'images/s':>11}{'runs':>7}"
    for row in rows:
        t = row.timing
        figures = f"{t.p50_ms:>10.3f}{t.p90_ms:>10.3f}{t.p99_ms:>10.3f}{t.mean_ms:>10.3f}"
        text = f"{row.session:<28}{row.batch:>6}{figures}"
        unsteady = "" if row.steady else "  not at rest before it was timed"
        yield f"{text}{row.images_per_second:>11.1f}{t.runs:>7}{unsteady}"


def _fresh_lines(fresh: Sequence[Fresh]) -> list[str]:
    head = [f"in a process of its own, batch {x.batch}:" for x in fresh[:1]]
    return [*head, *map(_fresh, fresh)]


def _loading_lines(report: BenchReport) -> Iterator[str]:
    """What loading took, of time and of memory."""
    loads = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report.load_ms.items())
    yield f"load: {loads}"
    before = f"{report.rss_before_bytes / MIB:.0f} MiB before loading"
    yield f"peak memory: {report.peak_rss_bytes / MIB:.0f} MiB ({before})"
    if report.gpu_bytes is not None:
        yield f"GPU memory: {report.gpu_bytes / MIB:.0f} MiB taken"
    for x in report.engines:
        scratch = f"{x.scratch_bytes / MIB:.1f} MiB of GPU memory beside its weights"
        yield f"engine of {x.session}: {x.bytes:,} bytes; {scratch}, by its own account"


def _energy_lines(report: BenchReport) -> Iterator[str]:
    yield from map(_energy, report.energy)
    if report.idle_watts:
        idle = ", ".join(f"{name} {watts:.1f} W" for name, watts in report.idle_watts.items())
        yield f"before loading, and in the energy too: {idle}"


def _overhead_line(report: BenchReport) -> str:
    share = report.overhead_ms / min(row.timing.p50_ms for row in report.rows)
    return f"timing itself: {report.overhead_ms * 1e3:.2f} µs a call, {share:.2%} of the shortest"


def _state_lines(report: BenchReport) -> list[str]:
    states = f"{state_text(report.before)}; when done: {state_text(report.after)}"
    return [f"before: {states}"] if states.count("not told") < 2 else []


def _sizes(report: BenchReport) -> str:
    """Of the bundle's files, and of those that rivals are loaded from."""
    graphs = {k: v for k, v in report.file_bytes.items() if k.endswith(".onnx")}
    text = ", ".join(f"{name} {size:,} bytes" for name, size in graphs.items())
    if rest := sum(report.file_bytes.values()) - sum(graphs.values()):
        text += f", packs and the rest {rest:,} bytes"
    if report.rival_bytes:
        text += "; " + ", ".join(f"{k} {size:,} bytes" for k, size in report.rival_bytes.items())
    return text


def _machine_line(report: BenchReport) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    after = "" if report.load_after is None else f", load_average {report.load_after} when done"
    return f"machine: {facts}{after}"


def _notes(report: BenchReport) -> list[str]:
    slowed = f"may be slowed down: {report.slowed_down}" if report.slowed_down else ""
    about = [x for x in (slowed, report.widths_warning, report.widths_cost) if x]
    unsure = [x.note for x in report.comparisons if x.note]
    return [f"note: {note}" for note in (*about, *unsure, *report.notes)]


def _energy(x: Energy) -> str:
    """A board's input where there is one: the other rails are parts of it."""
    whole = {k: joules for k, joules in x.joules_per_image.items() if k in INPUT_RAILS}
    shown = ", ".join(
        f"{name} {joules * 1e3:.3g} mJ" for name, joules in (whole or x.joules_per_image).items()
    )
    return f"energy of {x.session}, batch {x.batch}: {shown} an image"


def _compared(x: Comparison) -> str:
    interval = "too few blocks" if x.low is None else f"95 % within {x.low:.3f} … {x.high:.3f}"
    who = f"{x.session} / {x.against}, batch {x.batch}"
    return f"{who}: {x.ratio:.3f} of the time ({interval}): {x.verdict}"


def _fresh(x: Fresh) -> str:
    memory = f"{x.peak_rss_bytes / MIB:.0f} MiB at most ({x.packages_rss_bytes / MIB:.0f} packages)"
    return (
        f"  {x.session:<26} load {x.load_ms:.1f} ms, first call {x.first_call_ms:.1f} ms, {memory}"
    )


def bench_csv(report: BenchReport) -> str:
    """A line for each session and batch size, one for each comparison where it has several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in report.rows:
        writer.writerows(_lines(report, row))
    return text.getvalue()


def foreign_to_bench(path: Path) -> str:
    """Why a file is no table of `prunion bench --csv`; "" if it is one."""
    head = ",".join(COLUMNS[:4]).encode()
    try:
        with path.open("rb") as file:
            own = file.read(len(head)) == head
    except OSError:
        own = False
    return "" if own else "is no table of `prunion bench`"


def _lines(report: BenchReport, row: BenchRow) -> Iterator[list[object]]:
    t, key = row.timing, (row.session, row.batch)
    figures = [t.runs, t.mean_ms, t.p50_ms, t.p90_ms, t.p99_ms, t.min_ms, row.images_per_second]
    own: list[object] = [*key, *figures, row.warm_up_calls, row.steady]
    fresh = next((x for x in report.fresh if (x.session, x.batch) == key), None)
    own += [fresh.load_ms, fresh.first_call_ms, fresh.peak_rss_bytes] if fresh else ["", "", ""]
    compared = [x for x in report.comparisons if (x.session, x.batch) == key]
    for x in compared:
        yield [*own, x.against, x.ratio, x.low, x.high, x.verdict]
    if not compared:
        yield [*own, "", "", "", "", ""]
