"""Each domain's own session, cut to its channels, held against the graph that it is cut from."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from prunion.exporter.graph import (
    TOLERANCE,
    Probe,
    make_probe,
    open_graph,
    relative_errors,
    run_graph,
    tolerance_of,
)
from prunion.exporter.verify.compare import Disagreement
from prunion.runtime.base import PRECISIONS, default_round_to
from prunion.runtime.bundle import Bundle, Pack, UnitTable
from prunion.runtime.errors import PrunionError, UnsupportedGraphError
from prunion.runtime.graph import GraphForm, form_of, pin_form

__all__ = ["compare_cut"]


def compare_cut(
    bundle: Bundle, graphs: Collection[str]
) -> tuple[list[Disagreement], list[str], list[str]]:
    """(comparisons, problems, notes): a domain alone, cut as a runtime on this machine cuts it.

    A graph that cannot be cut is none the worse: its domains are answered in the union's width,
    and a note says why. One that is cut and then cannot run, or answers something else, is a
    problem. A graph of one domain, and one whose domains have weights of their own, are never cut.

    Args:
        graphs: those that ONNX Runtime runs.
    """
    compared: list[Disagreement] = []
    problems: list[str] = []
    notes: list[str] = []
    if bundle.manifest.own_weights or not bundle.unit_table().count:
        return compared, problems, notes
    shape = bundle.manifest.input
    probe = make_probe(2, (shape.height, shape.width), shape.mean, shape.std, domains=1)
    packs = [bundle.pack(name) for name in bundle.domains]
    for graph in graphs:
        precision = PRECISIONS[graph]
        form = form_of(bundle, precision)
        if form.single:
            continue
        read, table = bundle.held_graph(precision).read(), form.unit_table(bundle.unit_table())
        limit = TOLERANCE if graph == "fp32" else tolerance_of(graph)
        for pack in packs:
            where = f"{graph} graph, domain {pack.name}, cut to its channels"
            try:
                error = _error(read, form, pack, table, probe)
            except UnsupportedGraphError as exc:
                notes.append(f"{graph}: its domains are answered in the union's width: {exc}")
                break
            except PrunionError as exc:
                problems.append(f"{where}: {exc}")
            except Exception as exc:  # ONNX Runtime's errors share no base but Exception
                reason = " ".join(str(exc).split())
                problems.append(f"{where}: ONNX Runtime refuses it: {reason}")
            else:
                if error is not None:
                    against = "the graph that it is cut from"
                    compared.append(Disagreement(graph, pack.name, against, error, limit))
    return compared, problems, notes


def _error(
    graph: bytes, form: GraphForm, pack: Pack, table: UnitTable, probe: Probe
) -> float | None:
    """How far the cut graph is from the whole one; None where the domain uses every channel.

    Raises UnsupportedGraphError where it cannot be cut, VerificationError where its classes differ.
    """
    alive = table.round_up(pack.switches, default_round_to())
    if alive.all():
        return None
    whole = run_graph(open_graph(pin_form(graph, form, pack)), probe)
    cut = run_graph(open_graph(pin_form(graph, form, pack, table, alive)), probe)
    return relative_errors(whole, cut, np.zeros(len(probe.domains)), [pack.name], "it")[pack.name]
