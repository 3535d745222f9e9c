"""A bench's report as a table for people, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunion.runtime.base import INPUT_RAILS, state_text
from prunion.runtime.measure.benchmark.fresh import Fresh
from prunion.runtime.measure.benchmark.measure import BenchReport, BenchRow, Energy
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
    lines = [f"{'session':<28}{'batch':>6}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}"]
    lines[0] += f"{'mean ms':>10}{'images/s':>11}{'runs':>7}"
    for row in report.rows:
        t = row.timing
        figures = f"{t.p50_ms:>10.3f}{t.p90_ms:>10.3f}{t.p99_ms:>10.3f}{t.mean_ms:>10.3f}"
        text = f"{row.session:<28}{row.batch:>6}{figures}"
        unsteady = "" if row.steady else "  not at rest before it was timed"
        lines.append(f"{text}{row.images_per_second:>11.1f}{t.runs:>7}{unsteady}")
    lines += map(_compared, report.comparisons)
    if report.fresh:
        lines.append(f"in a process of its own, batch {report.fresh[0].batch}:")
        lines += map(_fresh, report.fresh)
    loads = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report.load_ms.items())
    graphs = {k: v for k, v in report.file_bytes.items() if k.endswith(".onnx")}
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in graphs.items())
    if rest := sum(report.file_bytes.values()) - sum(graphs.values()):
        sizes += f", packs and the rest {rest:,} bytes"
    mib = f"{report.peak_rss_bytes / MIB:.0f} MiB"
    before = f"{report.rss_before_bytes / MIB:.0f} MiB"
    lines += [
        f"measured: {asked_text(report.asked)}",
        f"load: {loads}",
        f"peak memory: {mib} ({before} before loading)",
    ]
    if report.gpu_bytes is not None:
        lines.append(f"GPU memory: {report.gpu_bytes / MIB:.0f} MiB taken")
    lines += [
        f"engine of {x.session}: {x.bytes:,} bytes; {x.scratch_bytes / MIB:.1f} MiB of GPU memory "
        "beside its weights, by its own account"
        for x in report.engines
    ]
    lines += [_energy(x) for x in report.energy]
    if report.idle_watts:
        idle = ", ".join(f"{name} {watts:.1f} W" for name, watts in report.idle_watts.items())
        lines.append(f"before loading, and in the energy too: {idle}")
    shortest = min(row.timing.p50_ms for row in report.rows)
    share = report.overhead_ms / shortest
    lines.append(
        f"timing itself: {report.overhead_ms * 1e3:.2f} µs a call, {share:.2%} of the shortest"
    )
    if report.rival_bytes:
        sizes += "; " + ", ".join(f"{k} {size:,} bytes" for k, size in report.rival_bytes.items())
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    after = "" if report.load_after is None else f", load_average {report.load_after} when done"
    states = f"{state_text(report.before)}; when done: {state_text(report.after)}"
    if states.count("not told") < 2:
        lines.append(f"before: {states}")
    told = [f"may be slowed down: {report.slowed_down}"] if report.slowed_down else []
    told += [x for x in (report.widths_warning, report.widths_cost) if x]
    notes = [f"note: {note}" for note in (*told, *report.notes)]
    return "\n".join([*lines, f"files: {sizes}", f"machine: {machine}{after}", *notes])


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
