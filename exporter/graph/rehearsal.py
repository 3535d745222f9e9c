"""A random cut of a network, exported and compared before the network is trained."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from prunion.exporter.counts import check_counts
from prunion.exporter.graph.agreement import TOLERANCE, verify_export
from prunion.exporter.graph.build import onnx_graph
from prunion.exporter.graph.writer import save_graph
from prunion.exporter.slim import SlimNet, keep_rows, slim_network, standing_for
from prunion.runtime.base import reason_of, relative_error, shown
from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import PrunionError, UnsupportedGraphError, VerificationError
from prunion.trainer.cost import bytes_around
from prunion.trainer.network import DomainNet, draw_norms, moved, route

__all__ = ["rehearse_export"]

log = logging.getLogger(__name__)

# Statistics of so few images make some channels large, and round-off with them.
LOOSE = 10 * TOLERANCE
CONVERTED = re.compile(r"translating node %(\w+)")  # what torch's exporter says where it fails
WAY_OUT = "end the backbone before it ([backbone] cut)"


def rehearse_export(
    net: DomainNet, height: int, width: int, round_to: int = 1, own: Sequence[str] = ()
) -> int:
    """Cut half of the channels of `net` at random, export that, and compare all three forms.

    Two of its domains do, on noise; `net` is left as it is. Widths are rounded up to multiples of
    `round_to` as the export would, so that no layer loses every channel. That leaves many widths
    equal by luck, so another cut, compared in torch alone, leaves them apart. The graph must hold
    weights of `own`, which domains will have for themselves, by their names, and cost what the
    channels' units say. Returns the bytes that its file holds around the tensors.

    Raises UnsupportedGraphError in one line with the node, the reason and a way out.
    """
    small = _two_domains(net)
    try:
        with moved(small.trunk):  # behind a scale of 0 any two networks answer alike
            return _rehearse(small, height, width, round_to, own)
    except VerificationError as exc:
        raise _refusal(f"{exc}".removesuffix("; nothing was written")) from None
    except (PrunionError, OSError):
        raise
    except Exception as exc:  # torch's exporter and ONNX Runtime have many
        node = ""
        while exc.__cause__ is not None:  # the outermost says how many steps there are
            found = CONVERTED.search(str(exc))
            node = f"node {found[1]}: " if found else node
            exc = exc.__cause__  # type: ignore[assignment]
        raise _refusal(f"{node}{reason_of(exc)}") from exc


def _rehearse(net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]) -> int:
    """The same in the network itself, whose statistics and switches are drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _randomise(net, height, width, round_to)
        images = torch.randn(4, 3, height, width)
        rounded = net.switches.clone()
        apart = _widths_apart(net.units.table)
    domains = torch.arange(4) % len(net.classes)
    net.switches.copy_(apart.expand_as(rounded))
    _, finite = _compare(net, images, domains)
    net.switches.copy_(rounded)
    slim, finite_too = _compare(net, images, domains)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        model = onnx_graph(slim, height, width)
        _check_own(model, own)
        check_counts(model, slim.table)
        save_graph(model, graph)
        kept = (net.switches > 0).any(0).numpy()
        around = bytes_around(net, kept, graph.stat().st_size)
        names = [f"{row + 1}" for row in range(len(net.classes))]
        if finite_too:
            verify_export(net, slim, graph, images, names, LOOSE)
    if not (finite and finite_too):
        log.warning(
            "the answers of a random cut were not compared: with every channel on, the network's "
            "own answers to noise are not finite already; look for a log, a root or a division "
            "that leaves its range"
        )
    return around


def _check_own(model: onnx.ModelProto, own: Sequence[str]) -> None:
    """Raise UnsupportedGraphError for a weight that no domain could put its own in place of."""
    held = {x.name for x in model.graph.initializer if x.data_type == onnx.TensorProto.FLOAT}
    lost = [name for name in own if name not in held]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise _refusal(
            f"its graph does not hold the weight {shown(lost[0])}{more}, of which every domain is "
            "to have its own",
            "; or choose a [train] method without own weights",
        )


def _refusal(reason: str, more: str = "") -> UnsupportedGraphError:
    return UnsupportedGraphError(
        f"a random cut of this network cannot be exported, so it is not trained: {reason}; "
        f"{WAY_OUT}{more}, or choose another"
    )


def _two_domains(net: DomainNet) -> DomainNet:
    rows = torch.arange(min(2, len(net.classes)))
    small = copy.deepcopy(net).to("cpu", torch.float32)
    keep_rows(small, rows)
    return small


def _randomise(net: DomainNet, height: int, width: int, round_to: int) -> None:
    """Domains that differ, and half of the switches off."""
    draw_norms(net, height, width)
    score = torch.rand(net.units.table.count)
    alive = net.units.table.round_up((score > 0.5).numpy(), round_to, score.numpy())
    used = torch.rand(net.switches.shape) < 0.8
    used[0] |= ~used.any(0)
    net.switches.copy_(used & torch.from_numpy(alive))


def _widths_apart(table: UnitTable) -> torch.Tensor:
    """Which units stay, `[U]` bool: about half of each width, of no two widths the same number.

    Where there are more widths than numbers, some are the same.
    """
    stay, taken = torch.zeros(table.count, dtype=torch.bool), set[int]()
    for members in table.widths:
        half = max(1, len(members) // 2)
        free = [n for n in range(1, len(members)) if n not in taken]
        count = min(free or [half], key=lambda n: abs(n - half))
        taken.add(count)
        stay[torch.from_numpy(members)[torch.randperm(len(members))[:count]]] = True
    return stay


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.node: fx.Node | None = None
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """What torch.fx calls for each node."""
        self.node = n
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


def _compare(net: DomainNet, images: torch.Tensor, domains: torch.Tensor) -> tuple[SlimNet, bool]:
    """`net` cut as its switches are, and whether its answers are numbers that can be compared.

    Raises UnsupportedGraphError where the cut network answers otherwise, or where channels that
    are off make answers that are not finite: training would meet them at its first cut.
    """
    slim = slim_network(net)
    finite = _is_finite(net, images, domains, net.switches)
    if not finite and _is_finite(net, images, domains, torch.ones_like(net.switches)):
        raise _lost(net, images, domains)
    if finite and not _agree(net, slim, images, domains):
        _find_difference(net, slim, images, domains)
    return slim, finite


@torch.no_grad()
def _is_finite(
    net: DomainNet, images: torch.Tensor, domains: torch.Tensor, switches: torch.Tensor
) -> bool:
    return bool(net.features(images, domains, switches)[0].isfinite().all())


def _lost(net: DomainNet, images: torch.Tensor, domains: torch.Tensor) -> UnsupportedGraphError:
    """By the first node that is finite with every channel on, and is not with some of them off."""
    on, off = _Recorder(net.trunk), _Recorder(net.trunk)
    with torch.no_grad():
        for run, switches in ((on, torch.ones_like(net.switches)), (off, net.switches)):
            run.run(images, route(domains, images.device).gated(switches))
    for node in net.trunk.graph.nodes:
        before, after = on.values[node.name], off.values[node.name]
        if not isinstance(after, torch.Tensor) or not bool(before.isfinite().all()):
            continue
        if not bool(after.isfinite().all()):
            break
    return _at(
        node,
        "it gives numbers that are not finite as soon as channels are off (it divides by them, or "
        "takes the logarithm or a softmax over nothing)",
    )


def _agree(net: DomainNet, slim: SlimNet, images: torch.Tensor, domains: torch.Tensor) -> bool:
    """Whether the cut network runs and answers as the whole one."""
    with torch.no_grad():
        expected = net.logits(images, domains)
        try:
            got = slim.logits(images, domains)
        except Exception:  # whatever torch raises, the node is found next
            return False
    own = torch.isfinite(expected)
    return relative_error(expected[own], got[own]) <= LOOSE


def _find_difference(
    net: DomainNet, slim: SlimNet, images: torch.Tensor, domains: torch.Tensor
) -> None:
    """Node by node; raises at the first that fails or differs.

    Only of use where the answers differ: an exact cut may lay a node's channels out anew, as where
    zeros are joined on.
    """
    masked, sliced = _Recorder(net.trunk), _Recorder(slim.trunk)
    rows = slim.bank.index_select(0, domains).unsqueeze(-1).unsqueeze(-1)
    parts = rows.split([entry.size for entry in slim.entries], dim=1)
    with torch.no_grad():
        masked.run(images, route(domains, images.device).gated(net.switches))
        try:
            sliced.run(images, parts)
        except Exception as exc:
            raise _at(sliced.node, reason_of(exc)) from exc
    alive = np.append((net.switches > 0).any(0).numpy(), True)
    for node in net.trunk.graph.nodes:
        units = net.units.channels.get(standing_for(node))
        full, cut = masked.values.get(node.name), sliced.values.get(node.name)
        if units is None or not isinstance(cut, torch.Tensor) or not isinstance(full, torch.Tensor):
            continue
        axis = net.units.axes[standing_for(node)]
        if full.dim() <= axis or full.shape[axis] != len(units):
            continue
        expected = full.index_select(axis, torch.from_numpy(np.flatnonzero(alive[units])))
        if expected.shape != cut.shape:
            raise _at(node, f"it gives {list(cut.shape)} where {list(expected.shape)} stay")
        if expected.is_floating_point() and expected.numel():
            largest = float(full.detach().abs().max())
            error = relative_error(expected.detach(), cut.detach(), largest)
            if not error <= LOOSE and bool(torch.isfinite(full).all()):
                raise _at(node, f"it differs from the whole network's by {error:.0e}")


def _at(node: fx.Node | None, reason: str) -> UnsupportedGraphError:
    """With the layers in front of the node, which a user may keep whole."""
    assert node is not None
    layers, todo = list[str](), list(node.all_input_nodes)
    while todo and not layers:
        names = [str(n.target) for n in todo if n.op == "get_attr"]
        layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        todo = [x for n in todo for x in n.all_input_nodes]
    kept = f", or keep what comes in whole ([backbone] keep = {layers!r})" if layers else ""
    return _refusal(f"node {node.name}: {reason}", kept.replace("'", '"'))
