"""Mixed batches in ONNX Runtime's blocked layout: a session for each of a few numbers of images.

A blocked graph takes one number of images only, so that a batch is cut into the largest of them.
The weights are held once for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.backends.onnxruntime import OrtSession, make_ort_session
from prunion.runtime.backends.session import ANY_BATCH, Session, SessionOptions
from prunion.runtime.base import reason_of
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import FOLD, BlockedGraph, BlockedRewriter, layout_probe

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["COUNTS", "BlockedSession", "block_channels", "blocked_parts"]

log = logging.getLogger(__name__)
COUNTS = (8, 4, 2, 1)
MOST_TABLES = 32 << 20  # bytes of what is made of the domains' tables, where it is more than these
LINE = 64  # bytes of a cache line: loads across two of them make convolutions a third slower


def blocked_parts(count: int, counts: Sequence[int] = COUNTS) -> list[int]:
    """How a batch is cut: the largest part that there is a session for comes first.

    The last of `counts` is 1.
    """
    parts: list[int] = []
    for most in counts:
        parts += [most] * ((count - sum(parts)) // most)
    return parts


def block_channels() -> int:
    """Channels in a block, as this ONNX Runtime says on this CPU.

    Raises UnsupportedGraphError where it has no blocked layout.
    """
    try:
        session = make_ort_session(layout_probe(), SessionOptions("cpu", threads=1))
        (found,) = session.run(["logits"], {"image": np.zeros((1, 4, 1, 1), np.float32)})
    except Exception as exc:  # ONNX Runtime's errors share no base but Exception
        raise UnsupportedGraphError(
            f"this ONNX Runtime has no blocked layout ({reason_of(exc)})"
        ) from None
    return int(found.shape[1])


@dataclass(frozen=True, eq=False)
class _Domains:
    """The tables of all domains, and what was made of them.

    Attributes:
        given: the arrays that they were made of.
        own: inputs of `R` numbers of each image's own, by R: their numbers `[P, D, R]`.
        plain: tables that the graph takes as they are.
        classes: Cmax, the width of `logits`.
    """

    given: tuple[np.ndarray, ...]
    own: dict[int, np.ndarray]
    plain: dict[str, onnxruntime.OrtValue]
    classes: int


class _Bound:
    """One session with its inputs bound to memory of one thread, to be filled for each batch."""

    def __init__(
        self,
        graph: BlockedGraph,
        session: OrtSession,
        weights: Mapping[str, np.ndarray],
        own: Mapping[int, Sequence[int]],
    ) -> None:
        self._raw, self._count = session.raw, graph.count
        self._binding = self._raw.io_binding()
        self._domains: _Domains | None = None
        self._own = {size: aligned(len(x), self._count, size) for size, x in own.items()}
        for name in graph.weights:
            self._bind(name, weights[name])
        for size, inputs in own.items():
            for place, number in enumerate(inputs):
                value = graph.tables.inputs[number]
                shape = graph.tables.shape(value, weights, self._count)
                self._bind(value.name, self._own[size][place].reshape(shape))

    def _bind(self, name: str, array: np.ndarray) -> None:
        self._binding.bind_ortvalue_input(name, _value(array))

    def run(self, image: np.ndarray, rows: np.ndarray, domains: _Domains) -> np.ndarray:
        """`logits` of as many images as the session takes, until the next run."""
        if self._domains is not domains:
            self._domains = domains
            for name, value in domains.plain.items():
                self._binding.bind_ortvalue_input(name, value)
            self._logits = np.empty((self._count, domains.classes), np.float32)
            self._binding.bind_ortvalue_output("logits", _value(self._logits))
        for size, own in self._own.items():
            np.take(domains.own[size], rows, axis=1, out=own, mode="clip")
        self._binding.bind_cpu_input("image", image)  # in a fifth of an OrtValue's time
        self._binding.bind_cpu_input("domain", rows)
        self._raw.run_with_iobinding(self._binding)
        return self._logits


class BlockedSession:
    """A mixed session in the blocked layout; thread-safe. It must be fed the tables.

    Should it ever fail, `plain` is opened and answers from then on.

    Raises UnsupportedGraphError where the graph or ONNX Runtime does not fit.
    """

    needs_tables = True
    batches = ANY_BATCH
    digest = ""

    def __init__(
        self,
        graph: bytes,
        options: SessionOptions,
        plain: Callable[[], Session],
        *,
        counts: Sequence[int] = COUNTS,
        fold: float = FOLD,
    ) -> None:
        rewriter = BlockedRewriter(graph, block_channels(), fold)
        options = replace(options, backend="cpu")
        self._graphs = {count: rewriter.graph(count) for count in counts}
        self._sessions = {n: make_ort_session(x.model, options) for n, x in self._graphs.items()}
        self._weights = {name: aligned(*x.shape) for name, x in rewriter.weights.items()}
        for name, array in rewriter.weights.items():
            self._weights[name][...] = array
        tables = next(iter(self._graphs.values())).tables
        self._domain_bytes = 4 * sum(prod(tables.shape(x, self._weights, 1)) for x in tables.inputs)
        # Inputs of one size are filled together: each call of numpy's costs as much as a layer.
        self._sizes: dict[int, list[int]] = {}
        for number, value in enumerate(tables.inputs):
            size = prod(tables.shape(value, self._weights, 1))
            self._sizes.setdefault(size, []).append(number)
        self._open_plain = plain
        self._plain: Session | None = None
        self._failure = ""
        self._domains: _Domains | None = None
        self._lock, self._local = threading.Lock(), threading.local()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs named."""
        if self._plain is None:
            try:
                return [self._run(feeds)]
            except Exception as exc:  # what can go wrong here need not go wrong with the plain one
                with self._lock:
                    if self._plain is None:
                        self._failure = reason_of(exc)
                        log.warning("the blocked layout is given up: %s", self._failure)
                        self._plain = self._open_plain()
        return self._plain.run(outputs, feeds)

    def get_providers(self) -> Sequence[str]:
        """What answers, the first first."""
        return next(iter(self._sessions.values())).get_providers()

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Tables of any number of domains will do."""

    def holds(self, domains: int, bank_row: int) -> bool:
        """Whether so many domains' numbers may be held, `bank_row` the bytes of one in the bank.

        Of a layer whose weights are each image's own that is a copy of them for each domain.
        """
        return domains * self._domain_bytes <= max(MOST_TABLES, 4 * domains * bank_row)

    def note(self) -> str:
        """Why it was given up, if it was."""
        return f"the blocked layout was given up: {self._failure}" if self._failure else ""

    def _run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        image, rows, start = feeds["image"], feeds["domain"], 0
        domains = self._tables(feeds)
        logits = np.empty((len(image), domains.classes), np.float32)
        for count in blocked_parts(len(image), tuple(self._sessions)):
            part = slice(start, start + count)
            logits[part] = self._bound(count).run(image[part], rows[part], domains)
            start += count
        return logits

    def _bound(self, count: int) -> _Bound:
        bound: dict[int, _Bound] = self._local.__dict__.setdefault("bound", {})
        if count not in bound:
            graph, session = self._graphs[count], self._sessions[count]
            bound[count] = _Bound(graph, session, self._weights, self._sizes)
        return bound[count]

    def _tables(self, feeds: Mapping[str, np.ndarray]) -> _Domains:
        """What comes from the tables, made anew when those are other arrays than before."""
        graph = next(iter(self._graphs.values()))
        given = (feeds["bank"], *(feeds[name] for name in graph.plain))
        with self._lock:
            known = self._domains
            if known is not None and all(map(_same, known.given, given)):
                return known
            own, bank = {}, feeds["bank"]
            if not self.holds(len(bank), bank.nbytes // len(bank)):
                raise MemoryError(f"of {len(bank)} domains its tables are too large")
            for size, inputs in self._sizes.items():
                own[size] = aligned(len(inputs), len(bank), size)
                for place, number in enumerate(inputs):
                    value = graph.tables.inputs[number]
                    own[size][place] = graph.tables.rows(value, bank, self._weights)
            plain = {name: _value(feeds[name]) for name in graph.plain}
            self._domains = _Domains(given, own, plain, feeds["head_bias"].shape[1])
            return self._domains


def _same(one: object, other: object) -> bool:
    return one is other


def aligned(*shape: int) -> np.ndarray:
    """A float32 array that begins with a cache line; not filled."""
    room = np.empty(prod(shape) + LINE // 4, np.float32)
    start = -room.ctypes.data % LINE // 4
    return room[start : start + prod(shape)].reshape(shape)


def _value(array: np.ndarray) -> onnxruntime.OrtValue:
    """An array as ONNX Runtime's own value, without a copy."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
