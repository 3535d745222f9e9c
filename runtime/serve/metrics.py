"""What a server has done and holds, as Prometheus reads it; Triton's names where it has one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prunion.runtime.batching import BATCH_EDGES, Duration, ModelStatistics
from prunion.runtime.serve.models import Service

__all__ = ["metrics_text"]

Row = tuple[Mapping[str, str], float]
WAYS = {True: "split", False: "mixed"}
DURATIONS = (
    ("nv_inference_request_duration_us", "Time of answered requests, end to end", "success"),
    ("nv_inference_queue_duration_us", "Time that requests waited for the network", "queue"),
    ("nv_inference_compute_input_duration_us", "Time of reading and decoding", "compute_input"),
    ("nv_inference_compute_infer_duration_us", "Time in the network", "compute_infer"),
    ("nv_inference_compute_output_duration_us", "Time of writing answers", "compute_output"),
)


def metrics_text(service: Service) -> str:
    """All metrics. `model` is the bundle, whose counts are of everything, or one domain."""
    serving, statistics = service.serving, service.statistics.copied()
    models = [(serving.name, statistics.total), *statistics.domains.items()]
    lines: list[str] = []

    def counter(name: str, text: str, rows: Iterable[Row], kind: str = "counter") -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(
            f"{name}{_labels(labels)} {value:g}"
            if value < 1e6
            else f"{name}{_labels(labels)} {value:.0f}"
            for labels, value in rows
        )

    def of_models(name: str, text: str, value: object) -> None:
        rows = [({"model": m, "version": "1"}, value(found)) for m, found in models]  # type: ignore[operator]
        counter(name, text, rows)

    of_models("nv_inference_request_success", "Requests answered", lambda x: x.success.count)
    failed = [({"model": serving.name, "version": "1"}, float(statistics.total.fail.count))]
    counter("nv_inference_request_failure", "Requests that got an error", failed)
    of_models("nv_inference_count", "Images answered", lambda x: x.inference_count)
    of_models("nv_inference_exec_count", "Runs of the network", lambda x: x.execution_count)
    for name, text, field in DURATIONS:
        of_models(name, text, lambda x, field=field: _us(x, field))
    pending = [({"model": serving.name, "version": "1"}, float(serving.batcher.rows))]
    counter("nv_inference_pending_request_count", "Images that wait or run", pending, "gauge")
    refused = [({"reason": k}, float(v)) for k, v in sorted(statistics.refused.items())]
    counter("prunion_refused_total", "Requests turned away, by reason", refused)
    _histogram(
        lines,
        "prunion_batch_rows",
        "Images of a run",
        {rows: spent.count for rows, spent in statistics.total.batches.items()},
    )
    _histogram(lines, "prunion_batch_domains", "Domains of a run", statistics.mixes)
    trials = serving.model.trials
    if trials is not None:
        rows = [({"way": WAYS[way]}, float(count)) for way, count in sorted(trials.runs.items())]
        counter("prunion_mixed_runs_total", "Runs of several domains, by way", rows)
        counter("prunion_trials_total", "Times that both ways were tried", [({}, trials.done)])
        rows = [
            ({"rows": str(most), "domains": str(domains)}, float(split))
            for (most, domains), split in trials.in_force()
        ]
        text = "Whether runs of up to so many rows and domains are split, where that was tried"
        counter("prunion_splits", text, rows, "gauge")
    counter("prunion_ready", "Whether requests are wanted", [({}, float(service.ready))], "gauge")
    domains = len(serving.catalogue.domains)
    text = "Domains that answer, but for those read on demand"
    counter("prunion_domains", text, [({}, float(domains))], "gauge")
    cache = serving.catalogue.cache
    if cache is not None:
        counter("prunion_packs", "Packs in memory", [({}, float(len(cache)))], "gauge")
        counter("prunion_pack_bytes", "Memory of those", [({}, float(cache.bytes))], "gauge")
        counter(
            "prunion_pack_memory_limit_bytes", "Most of it", [({}, float(cache.limit))], "gauge"
        )
    reads = statistics.pack_reads
    counter("prunion_pack_reads_total", "Packs read for a request", [({}, float(reads.count))])
    counter("prunion_pack_read_us_total", "Time of reading them", [({}, reads.ns / 1e3)])
    resident = _resident_bytes()
    if resident is not None:
        text = "Memory of this process"
        counter("process_resident_memory_bytes", text, [({}, float(resident))], "gauge")
    return "\n".join([*lines, ""])


def _us(found: ModelStatistics, field: str) -> float:
    value: Duration = getattr(found, field)
    return value.ns / 1e3


def _histogram(lines: list[str], name: str, text: str, counts: Mapping[int, int]) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    for edge in BATCH_EDGES:
        below = sum(count for value, count in counts.items() if value <= edge)
        lines.append(f'{name}_bucket{{le="{edge}"}} {below}')
    total = sum(counts.values())
    lines.append(f'{name}_bucket{{le="+Inf"}} {total}')
    lines.append(f"{name}_sum {sum(value * count for value, count in counts.items())}")
    lines.append(f"{name}_count {total}")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    text = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return "{" + text + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _resident_bytes() -> int | None:
    """Resident memory, where the system says it as Linux does."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
