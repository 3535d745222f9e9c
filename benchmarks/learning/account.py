"""What a row's bundle costs: as the papers count, in bytes, and in milliseconds on this machine.

Milliseconds are of whatever the runtime itself would answer with: `Model` makes the sessions, and
takes a mixed batch apart where its plan says so or domains have weights of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunion.exporter.verify import VerifyReport
from prunion.runtime.base import time_interleaved
from prunion.runtime.bundle import Manifest, open_bundle
from prunion.runtime.model import Model, load

__all__ = ["bundle_account", "bundle_bytes", "cases_of", "together"]

NUMBER_BITS = 32
BATCH = 8
SECONDS = 1.0  # for each case


def bundle_account(
    bundle: Path, report: VerifyReport, threads: int, *, own_norms: bool, seconds: float = SECONDS
) -> dict[str, Any]:
    """The part `account` of a row.

    `params` and `flop` are the papers' columns, `params_one_norm` the former where a table counts
    one BatchNorm for all domains; `flop` is theoretical: operations of a domain's own weights, the
    mean over domains. `error` is the largest of the fp32 graph from the trained network, of the
    largest logit. `ms` has for each case the median and the least.

    Args:
        report: of `verify_bundle` against the trained network.
        own_norms: whether each domain has a BatchNorm of its own.
    """
    manifest = open_bundle(bundle).manifest
    paper = manifest.paper
    assert paper is not None, "export writes it"
    more = (len(manifest.domains) - 1) * NUMBER_BITS * _norm_numbers(manifest) if own_norms else 0
    errors = [x.error for x in report.compared if (x.graph, x.against) == ("fp32", "masked torch")]
    return {
        "params": paper.params,
        "params_one_norm": (paper.bits_exported - more) / paper.bits_backbone,
        "flop": paper.flop,
        "flop_union": paper.flop_union,
        "bytes": bundle_bytes(bundle),
        "error": max(errors),
        "ms": _milliseconds(bundle, threads, seconds),
    }


def bundle_bytes(bundle: Path) -> dict[str, int]:
    """Bytes of a bundle's fp32 graph, of all packs, and of what its domains' weights share."""
    manifest = open_bundle(bundle).manifest
    sizes = {name: (bundle / name).stat().st_size for name in manifest.files}
    return {
        "graph": sizes[manifest.graphs["fp32"]],
        "packs": sum(sizes[domain.pack] for domain in manifest.domains),
        "shared": sizes[manifest.own_weights] if manifest.own_weights else 0,
    }


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The account of several domains' own bundles: files add up, an image runs through one."""
    count = len(parts)
    cases = [case for case in parts[0]["ms"] if not case.startswith("mixed")]
    return {
        **{key: sum(x[key] for x in parts) for key in ("params", "params_one_norm")},
        **{key: sum(x[key] for x in parts) / count for key in ("flop", "flop_union")},
        "bytes": {key: sum(x["bytes"][key] for x in parts) for key in parts[0]["bytes"]},
        "error": max(x["error"] for x in parts),
        "ms": {case: np.mean([x["ms"][case] for x in parts], axis=0).tolist() for case in cases},
    }


def cases_of(model: Model) -> dict[str, Callable[[], object]]:
    """Calls of an image of one domain, a batch of one domain and, of several, a mixed batch."""
    images = model.sessions.form.noise(BATCH)
    mixed = np.arange(BATCH) % len(model.domains)

    def answer(count: int, rows: np.ndarray) -> Callable[[], object]:
        return lambda: model.logits(images[:count], rows[:count])

    one = np.zeros(BATCH, np.int64)
    cases = {"one": answer(1, one), f"one x {BATCH}": answer(BATCH, one)}
    if len(model.domains) > 1:
        cases[f"mixed x {BATCH}"] = answer(BATCH, mixed)
    return cases


def _norm_numbers(manifest: Manifest) -> int:
    """Scales and shifts in a row of the bank; a gate is a switch, and no number."""
    return sum(entry.size for entry in manifest.bank if entry.kind in ("scale", "shift"))


def _milliseconds(bundle: Path, threads: int, seconds: float) -> dict[str, list[float]]:
    """`[median, least]` of an image of one domain, a batch of one domain, and a mixed batch."""
    with load(bundle, "cpu", threads=threads) as model:
        timings = time_interleaved(cases_of(model), seconds=seconds)
    return {name: [timing.p50_ms, timing.min_ms] for name, timing in timings.items()}
