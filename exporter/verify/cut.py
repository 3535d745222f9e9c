"""Sessions that are cut to a domain's channels, held against the graph that they are cut from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

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
from prunion.exporter.verify.findings import Disagreement, Findings
from prunion.exporter.verify.units import full_pack, made_up
from prunion.runtime.base import PRECISIONS, one_line
from prunion.runtime.bundle import Bundle, Pack, UnitTable
from prunion.runtime.errors import PrunionError, UnsupportedGraphError
from prunion.runtime.graph import GraphForm, form_of, pin_form

__all__ = ["compare_cut"]

MADE_UP = ("of every other channel", "of the channels between")


def compare_cut(bundle: Bundle, graphs: Collection[str]) -> Findings:
    """Each domain alone, cut to the channels that it uses, against the graph that it is cut from.

    And two that are made up, of half the channels each, since domains may all use every one. A
    runtime may keep more, by the widths that its machine likes.

    A graph that cannot be cut is none the worse: its domains are answered in the union's width,
    and a note says why. One that is cut and then cannot run, or answers something else, is a
    problem. A graph of one domain, and one whose domains have weights of their own, are never cut.

    Args:
        graphs: those that ONNX Runtime runs.
    """
    found = Findings()
    units = bundle.unit_table()
    if bundle.manifest.own_weights or not units.count or ("bank", 1) not in units.slots:
        return found
    shape = bundle.manifest.input
    probe = make_probe(2, (shape.height, shape.width), shape.mean, shape.std, domains=1)
    packs, numbers = [bundle.pack(name) for name in bundle.domains], np.arange(units.count)
    full = full_pack(bundle)
    for graph in graphs:
        precision = PRECISIONS[graph]
        form = form_of(bundle, precision)
        if form.single:
            continue
        read, table = bundle.held_graph(precision).read(), form.unit_table(units)
        limit = TOLERANCE if graph == "fp32" else tolerance_of(graph)
        thin = [
            replace(made_up(full, units, table.round_up(odd, 1)), name=name)
            for odd, name in zip((numbers & 1, ~numbers & 1), MADE_UP, strict=True)
            if not graph.startswith("int8")  # which no runtime cuts
        ]
        for pack in [*packs, *thin]:
            where = f"{graph} graph, domain {pack.name}, cut to its channels"
            try:
                error = _error(read, form, pack, table, probe)
            except UnsupportedGraphError as exc:
                found.notes.append(f"{graph}: its domains are answered in the union's width: {exc}")
                break
            except PrunionError as exc:
                found.problems.append(f"{where}: {exc}")
            except Exception as exc:  # ONNX Runtime's errors share no base but Exception
                reason = one_line(exc)
                found.problems.append(f"{where}: ONNX Runtime refuses it: {reason}")
            else:
                if error is not None:
                    against = "the graph that it is cut from"
                    found.compared.append(Disagreement(graph, pack.name, against, error, limit))
    return found


def _error(
    graph: bytes, form: GraphForm, pack: Pack, table: UnitTable, probe: Probe
) -> float | None:
    """How far the cut graph is from the whole one; None where the domain uses every channel.

    Raises UnsupportedGraphError where it cannot be cut, VerificationError where its classes differ.
    """
    alive = table.round_up(pack.switches, 1)
    if alive.all():
        return None
    whole = run_graph(open_graph(pin_form(graph, form, pack)), probe)
    cut = run_graph(open_graph(pin_form(graph, form, pack, table, alive)), probe)
    return relative_errors(whole, cut, np.zeros(len(probe.domains)), [pack.name], "it")[pack.name]
