"""The unit table held against the fp32 graph: what it lists of a channel is what goes with it.

Where every domain uses all of the union nobody's answer shows whether the table is right; a domain
that is added, or one on another machine, may use fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from prunion.exporter.counts import initializers
from prunion.exporter.graph import Probe, make_probe, open_graph, relative_errors
from prunion.runtime.bundle import Bundle, Pack, UnitTable
from prunion.runtime.graph import ADAPTERS

__all__ = ["check_units", "full_pack", "made_up"]

# Zeros in a sum change nothing of it: what should be the same is so to the last bit, or nearly.
SAME = 1e-6
Tensors = Mapping[str, np.ndarray]


def check_units(bundle: Bundle) -> Iterator[str]:
    """Whether all that the table lists of a channel may be 0 where its columns of the bank are.

    Channels are off by the binary digits of their numbers: any two are apart in one of the rounds.
    """
    manifest, table = bundle.manifest, bundle.unit_table()
    if manifest.own_weights or not table.count or not manifest.bank_columns:
        return
    if ("bank", 1) not in table.slots:
        yield "the unit table lists no columns of the bank: export the bundle again"
        return
    shape = manifest.input
    probe = make_probe(1, (shape.height, shape.width), shape.mean, shape.std, domains=1)
    model = onnx.load_from_string(bundle.held_graph("fp32").read())
    listed = {name for name, _ in table.slots}
    # An adapter mixes channels before the norm that turns some off; folded into its convolution, as
    # a cut finds it, it mixes none. So it adds nothing here.
    whole = {
        name: np.zeros_like(value) if name == ADAPTERS else value
        for name, value in initializers(model).items()
        if name in {*listed, ADAPTERS}
    }
    session, full = open_graph(_with_inputs(model, whole)), full_pack(bundle)
    for digit in range(max(1, (table.count - 1).bit_length())):
        alive = table.round_up(np.arange(table.count) >> digit & 1, 1)
        row = made_up(full, table, alive).bank
        given = {**whole, "bank": np.tile(row, (len(bundle.domains), 1))}
        expected = _logits(session, probe, given)
        without = _without(given, table, alive, list(table.slots))
        if _differ(expected, _logits(session, probe, without)):
            for slot in table.slots:
                got = _logits(session, probe, _without(given, table, alive, [slot]))
                if _differ(expected, got):
                    yield (
                        f"the unit table joins {slot[0]}, axis {slot[1]}, to other columns of the "
                        "bank than the graph does: export the bundle again"
                    )
                    return
            yield "the unit table joins other channels than the graph does: export the bundle again"
            return


def full_pack(bundle: Bundle) -> Pack:
    """A domain of every unit: the first one's, where it has none another's.

    What no domain uses, such as channels that rounding keeps, it has as well; shifts are above 0,
    where no rectifier hides a channel.
    """
    packs = [bundle.pack(name) for name in bundle.domains]
    bank = packs[0].bank.copy()
    for other in [*(pack.bank for pack in packs[1:]), np.full_like(bank, 0.5)]:
        bank = np.where(bank == 0, other, bank)
    for entry in bundle.manifest.bank:
        if entry.kind == "shift":
            part = slice(entry.offset, entry.offset + entry.size)
            bank[part] = np.abs(bank[part])
    return replace(packs[0], bank=bank)


def made_up(full: Pack, table: UnitTable, alive: np.ndarray) -> Pack:
    """A domain of the units `alive` `[U]` bool, made of that of every unit."""
    bank = full.bank.copy()
    bank[~np.append(alive, True)[table.slots["bank", 1]]] = 0
    return replace(full, bank=bank, switches=alive.astype(np.uint8))


def _with_inputs(model: onnx.ModelProto, tensors: Tensors) -> bytes:
    """The graph with some of its weights as inputs: one session for all rounds."""
    graph = model.graph
    known = {value.name for value in graph.input}
    for tensor in [x for x in graph.initializer if x.name in tensors]:
        if tensor.name not in known:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
        graph.initializer.remove(tensor)
    return bytes(model.SerializeToString())


def _without(
    given: Tensors, table: UnitTable, alive: np.ndarray, slots: Sequence[tuple[str, int]]
) -> Tensors:
    off, left = ~np.append(alive, True), dict(given)
    for tensor, axis in slots:
        if tensor in left:
            value = np.moveaxis(left[tensor].copy(), axis, 0)
            value[off[table.slots[tensor, axis]]] = 0
            left[tensor] = np.moveaxis(value, 0, axis)
    return left


def _logits(session: Any, probe: Probe, tensors: Tensors) -> np.ndarray:
    feeds = {"image": probe.images, "domain": probe.domains, **tensors}
    return np.asarray(session.run(["logits"], feeds)[0], np.float32)


def _differ(expected: np.ndarray, got: np.ndarray) -> bool:
    errors = relative_errors(expected, got, np.zeros(len(got)), ["it"], "it")
    return not errors["it"] <= SAME
