"""Which channel units every activation of a pinned ONNX graph carries along axis 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph.inputs import TABLES, attribute, list_attribute, refusal, uncut_channels

if TYPE_CHECKING:
    import onnx

__all__ = ["CHANNEL_AXES", "ChannelFlow", "channel_slice"]

# Operations that give channel c of their first input back as channel c.
PASS = frozenset(
    "Relu Clip Sigmoid HardSigmoid HardSwish Tanh LeakyRelu Elu Softplus Erf Sqrt Abs Neg Identity "
    "Cast Not MaxPool AveragePool GlobalAveragePool GlobalMaxPool Dropout Mish Gelu".split()
)
POINTWISE = PASS - {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
MERGE = frozenset(
    "Add Mul Sub Div Max Min Where Sum Pow PRelu Greater GreaterOrEqual Less LessOrEqual".split()
)
CHANNEL_AXES = (1, -3)  # of a Gather; the exporter counts from the end in [N, C, H, W]
ALONG_AXES = frozenset("ReduceMean ReduceSum ReduceMax ReduceL2 Squeeze Unsqueeze".split())
Units = np.ndarray | None  # None: the tensor has no channels that could be cut


class ChannelFlow:
    """Units `[C]` of each tensor by name; None where nothing can be cut.

    `units` is of axis 1, `last` of the last one, between linear layers over tokens: what is cut.

    Raises UnsupportedGraphError, naming the node, at the first one it cannot follow.
    """

    def __init__(
        self, graph: onnx.GraphProto, table: UnitTable, constants: Mapping[str, np.ndarray]
    ) -> None:
        self.table, self.constants = table, constants
        self.units: dict[str, Units] = {}
        self.last: dict[str, np.ndarray] = {}
        self.turned: dict[str, str] = {}  # a weight's name by its transposed's
        self.inputs = {value.name: uncut_channels(value) for value in graph.input}
        for node in graph.node:
            try:
                outputs = self._outputs(node)
            except UnsupportedGraphError:
                if self._reads_units(node):
                    raise
                outputs = [None] * len(node.output)
            self.units.update(zip(node.output, outputs, strict=False))

    def of(self, name: str) -> Units:
        """The units of a tensor, a constant's taken from its slots."""
        if name in self.units:
            return self.units[name]
        array = self.constants.get(name)
        if array is None:
            return None
        # A constant's channels lie where they meet an activation's: [C], [1, C, 1, 1] or [F, C].
        axis = 0 if array.ndim == 1 else 1 if array.ndim > 2 else array.ndim - 1
        return self.table.slots.get((name, max(axis, 0)))

    def _reads_units(self, node: onnx.NodeProto) -> bool:
        """Whether any channel that comes in can be cut; else a node may be whatever it is."""
        return any(name in self.last or self._is_cut(name) for name in node.input)

    def _is_cut(self, name: str) -> bool:
        units = self.of(name)
        return units is not None and bool((units >= 0).any())

    def constant(self, node: onnx.NodeProto, place: int) -> np.ndarray:
        """Input `place` of `node` as a constant; refuses one that is computed."""
        name = node.input[place] if place < len(node.input) else ""
        if name not in self.constants:
            raise refusal(node, f"its input {place} is not a constant")
        return self.constants[name]

    def _outputs(self, node: onnx.NodeProto) -> list[Units]:
        kind = node.op_type
        if list_attribute(node, "perm") == [1, 0] and node.input[0] in self.constants:
            name = self.turned[node.output[0]] = node.input[0]
            return [np.concatenate([self._of_weight(name, axis) for axis in (0, 1)])]
        if kind == "MatMul" and node.input[1] in self.turned:
            self._over_tokens(node)
            return [None]
        if any(name in self.turned for name in node.input):
            raise refusal(node, "it reads a transposed weight")
        if any(name in self.last for name in node.input):
            self._along_tokens(node)
            return [None]
        if kind in PASS:
            return [self.of(node.input[0])]
        if kind in MERGE:
            return [self._merged(node)]
        if kind == "Split":
            return self._split(node)
        if kind in ALONG_AXES:
            return [self._axes(node)]
        one = {
            "Gather": self._gather,
            "Conv": self._conv,
            "ConvTranspose": self._conv_transposed,
            "Slice": self._slice,
            "Concat": self._concat,
            "Reshape": self._reshaped,
            "Gemm": self._gemm,
            "Pad": self._pad,
            "Resize": self._resized,
        }
        return [one[kind](node)] if kind in one else [self._opaque(node)] * len(node.output)

    def _gather(self, node: onnx.NodeProto) -> Units:
        source, axis = node.input[0], attribute(node, "axis", 0)
        if axis == 0 and source in TABLES:
            return self.table.slots.get((source, 1)) if source == "bank" else None
        units = self.of(source)
        if units is None:
            return None
        if axis not in CHANNEL_AXES:
            raise refusal(node, f"it gathers along axis {axis}")
        gathered: np.ndarray = units[self.constant(node, 1).reshape(-1)]
        return gathered

    def _conv(self, node: onnx.NodeProto) -> Units:
        weight = node.input[1]
        if weight not in self.constants:
            raise refusal(node, "its weight is not a constant")
        given = self.of(node.input[0])
        # In a grouped convolution axis 1 counts within a group, so only whole ones can be compared.
        if given is None or attribute(node, "group", 1) != 1:
            return self._of_weight(weight, 0)
        if not np.array_equal(given, self._of_weight(weight, 1)):
            raise refusal(node, "its weight's channels are not those it is given")
        return self._of_weight(weight, 0)

    def _conv_transposed(self, node: onnx.NodeProto) -> Units:
        weight, given = node.input[1], self.of(node.input[0])
        if weight not in self.constants:
            raise refusal(node, "its weight is not a constant")
        grouped = attribute(node, "group", 1) != 1
        if grouped and self.constants[weight].shape[1] > 1:  # never cut
            return self._opaque(node)
        if given is not None and not np.array_equal(given, self._of_weight(weight, 0)):
            raise refusal(node, "its weight's channels are not those it is given")
        return self._of_weight(weight, 0 if grouped else 1)

    def _over_tokens(self, node: onnx.NodeProto) -> None:
        weight = self.turned[node.input[1]]
        inside, out = (self._of_weight(weight, axis) for axis in (1, 0))
        given = self.last.get(node.input[0], np.full(len(inside), -1))
        if self._is_cut(node.input[0]) or not np.array_equal(given, inside):
            raise refusal(node, "its weight's channels are not those it is given")
        if (out >= 0).any():
            self.last[node.output[0]] = out

    def _along_tokens(self, node: onnx.NodeProto) -> None:
        """Token by token and channel by channel: what comes in along the last axis goes out."""
        if node.op_type not in POINTWISE | MERGE:
            raise refusal(node, f"{node.op_type} of tokens is not in the table of operations")
        given = []
        for name in node.input:
            array = self.constants.get(name)
            if name in self.last:
                given.append(self.last[name])
            elif array is None and self._is_cut(name):
                raise refusal(node, "its inputs have channels along different axes")
            elif array is not None and array.size > 1:  # else a domain's own scale, cut alike
                given.append(self._of_weight(name, array.ndim - 1))
        if any(not np.array_equal(units, given[0]) for units in given):
            raise refusal(node, "its inputs have different channels")
        self.last[node.output[0]] = given[0]

    def _gemm(self, node: onnx.NodeProto) -> Units:
        weight = node.input[1]
        out = 0 if attribute(node, "transB", 0) else 1
        if weight not in self.constants or attribute(node, "transA", 0):
            raise refusal(node, "its weight is not a constant")
        return self._of_weight(weight, out)

    def _of_weight(self, name: str, axis: int) -> np.ndarray:
        never_cut = np.full(self.constants[name].shape[axis], -1)
        return self.table.slots.get((name, axis), never_cut)

    def _merged(self, node: onnx.NodeProto) -> Units:
        # One channel broadcasts over all of the others'.
        wide = [u for u in map(self.of, node.input) if u is not None and len(u) > 1]
        for name in node.input:
            array = self.constants.get(name)
            if array is not None and array.size > 1 and self.of(name) is None and wide:
                raise refusal(node, f"the constant {name} has no unit table")
        for units in wide[1:]:
            if len(units) != len(wide[0]):
                raise refusal(node, "its inputs have different channels")
        if not wide:
            return next((u for u in map(self.of, node.input) if u is not None), None)
        # -1 is a channel that no unit holds; two units in one channel would be cut apart.
        known = np.stack(wide)
        if ((known != known.max(axis=0)) & (known >= 0)).any():
            raise refusal(node, "its inputs have different channels")
        return wide[0]

    def _split(self, node: onnx.NodeProto) -> list[Units]:
        units = self.of(node.input[0])
        if units is None:
            return [None] * len(node.output)
        if attribute(node, "axis", 0) != 1:
            raise refusal(node, "it does not split along axis 1")
        return list(np.split(units, np.cumsum(self.constant(node, 1))[:-1]))

    def _slice(self, node: onnx.NodeProto) -> Units:
        units, part = self.of(node.input[0]), channel_slice(self, node)
        return units if units is None or part is None else units[part[0] : part[1]]

    def _concat(self, node: onnx.NodeProto) -> Units:
        parts = [self.of(name) for name in node.input]
        if all(x is None for x in parts):
            return None
        # The image itself may stand beside channels that are cut.
        parts = [
            self.inputs.get(name) if x is None else x
            for name, x in zip(node.input, parts, strict=True)
        ]
        known = [x for x in parts if x is not None]
        if attribute(node, "axis", 0) != 1 or len(known) < len(parts):
            raise refusal(node, "it does not join channels along axis 1")
        return np.concatenate(known)

    def _reshaped(self, node: onnx.NodeProto) -> Units:
        units = self.of(node.input[0])
        if units is None:
            return None
        shape = self.constant(node, 1)
        if len(shape) < 2 or shape[1] < 1 or shape[1] % len(units) or (shape[2:] != 1).any():
            raise refusal(node, f"it reshapes {len(units)} channels to {shape.tolist()}")
        return np.repeat(units, shape[1] // len(units))

    def _axes(self, node: onnx.NodeProto) -> Units:
        units = self.of(node.input[0])
        if units is None:
            return None
        axes = list_attribute(node, "axes")
        axes = self.constant(node, 1).tolist() if axes is None else axes
        if node.op_type == "Unsqueeze":
            # Features [N, F] → [N, 1, F] go into the head; nothing behind is cut.
            return units if all(axis == -1 or axis >= 2 for axis in axes) else None
        if any(axis in (0, 1, -3, -4) for axis in axes):
            raise refusal(node, f"it works along axes {axes}")
        return units

    def _pad(self, node: onnx.NodeProto) -> Units:
        units = self.of(node.input[0])
        if units is None:
            return None
        amounts = self.constant(node, 1)
        half = len(amounts) // 2
        if len(node.input) > 3 and node.input[3]:
            raise refusal(node, "it names its axes")
        if amounts[1] or amounts[half + 1]:
            raise refusal(node, "it adds channels")
        return units

    def _resized(self, node: onnx.NodeProto) -> Units:
        units = self.of(node.input[0])
        if units is None:
            return None
        if list_attribute(node, "axes") is not None or len(node.input) < 3 or node.input[1]:
            raise refusal(node, "it names its axes, or what it cuts out")
        place, kept = (2, 1) if node.input[2] else (3, len(units))
        if self.constant(node, place)[1:2].tolist() != [kept]:
            raise refusal(node, "it changes how many channels there are")
        return units

    def _opaque(self, node: onnx.NodeProto) -> Units:
        if self._reads_units(node):
            raise refusal(node, f"{node.op_type} is not in the table of operations")
        return None


def channel_slice(flow: ChannelFlow, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Start and end of a Slice along axis 1, None if it leaves that axis alone."""
    units = flow.of(node.input[0])
    if units is None:
        return None
    axes = flow.constant(node, 3).tolist()
    if any(axis < 0 for axis in axes):
        raise refusal(node, "it counts its axes from the end")
    if 1 not in axes:
        return None
    step = flow.constant(node, 4).tolist() if len(node.input) > 4 else [1] * len(axes)
    if axes != [1] or step != [1]:
        raise refusal(node, "it cuts more than a run of channels")
    start, end = int(flow.constant(node, 1)[0]), int(flow.constant(node, 2)[0])
    return slice(start, end).indices(len(units))[:2]
