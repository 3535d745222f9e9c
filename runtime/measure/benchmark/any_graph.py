"""Somebody else's ONNX graph, fed by what it says of its own inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.backends import SessionOptions, real_backend
from prunion.runtime.base import default_threads, install_hint, reason_of
from prunion.runtime.errors import InputError, MissingDependencyError, PrunionError
from prunion.runtime.measure.benchmark.contenders import Opened

__all__ = ["check_graph", "open_any_graph"]

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
UNSEEN = "whether it answers each of a batch does not show"
QUIET = 4  # what fails is raised


def open_any_graph(
    path: Path, options: SessionOptions, size: tuple[int, int], rows: Sequence[int]
) -> Opened:
    """A graph of one batch of images, `[N, 3, H, W]` or `[N, H, W, 3]`, by ONNX Runtime.

    Where it does not say which, it is what runs. It may also take `domain` `[N]` int64, as
    prunion's own do. Runs by CUDA where the bundle does, else on the CPU.

    Args:
        size: height and width where the graph leaves them open.
        rows: what `domain` goes round.

    Raises:
        InputError: the file is missing or no such graph; from `call` and what it gives, it takes
            other batches, or fails at them; from `check`, it does not answer every image. Of one
            that no image changes, such as a classifier sure of one class of noise, `check` says so.
        PrunionError: the bundle runs on a backend that ONNX Runtime is no equal of.
    """
    backend = real_backend(options.backend)
    if backend not in ("cpu", "openvino", "cuda", "auto"):
        raise PrunionError(
            f"{path} would run on ONNX Runtime, not as an engine of {backend}: use --backend cpu "
            "or cuda"
        )
    provider = f"{'CUDA' if backend in ('cuda', 'auto') else 'CPU'}ExecutionProvider"
    session = _session(path, provider, options.threads)
    image, takes_domain = _image_input(path, session)
    if session.get_providers()[0] != provider:
        raise PrunionError(f"{provider} did not start: use --backend cpu")
    graph = _AnyGraph(path, session, image, rows if takes_domain else (), _layouts(image, size))
    return Opened(graph.call, provider, path.stat().st_size, check=graph.check)


@dataclass
class _AnyGraph:
    """A graph with its session.

    Attributes:
        image: the input of images.
        rows: what `domain` goes round; empty where the graph takes none.
        layouts: what a single image may be; one is left when the first batch was answered.
    """

    path: Path
    session: Any
    image: Any
    rows: Sequence[int]
    layouts: list[tuple[int, ...]]

    def call(self, batch: int) -> Callable[[], object]:
        """One batch of random images ready to be answered."""
        return partial(self._answer, self._feeds(batch))

    def check(self, batch: int) -> str:
        """What could not be found out, or "". Raises InputError where not every image counts."""
        feeds = self._feeds(batch)
        self._answer(feeds)
        if self.rows:  # one and the same, so that the rows of a sound graph change all or none
            feeds["domain"] = np.full(batch, self.rows[0], dtype=np.int64)
        changed, told = _tried(self._answer, feeds, self.image.name, batch)
        if changed.all():
            return ""
        # A graph that is sure of one class, whatever it is shown, is as good a rival as any.
        if (batch > 1 and changed.any()) or not told or not _reads(self.path, self.image.name):
            raise InputError(
                f"{self.path} does not answer each of {batch} images: no output has {batch} rows "
                "that change with their images: give a graph of one answer for each image"
            )
        return "" if batch == 1 else f"{self.path} answers all images alike here: {UNSEEN}"

    def _feeds(self, batch: int) -> dict[str, np.ndarray]:
        own = {"domain": np.resize(np.array(self.rows, np.int64), batch)} if self.rows else {}
        while len(self.layouts) > 1:  # a graph that is of the other layout fails at this one
            try:
                self._answer({**own, self.image.name: self._noise(batch)})
            except InputError:
                del self.layouts[0]
            else:
                del self.layouts[1:]
        return {**own, self.image.name: self._noise(batch)}

    def _answer(self, feeds: dict[str, np.ndarray]) -> Any:
        try:
            return self.session.run(None, feeds)
        except Exception as exc:  # ONNX Runtime's errors share no base but Exception
            fed = [f"{x} {list(value.shape)}" for x, value in feeds.items() if x != "domain"]
            fed += [f"domains 0 to {x.max()}" for x in (feeds.get("domain"),) if x is not None]
            raise InputError(
                f"{self.path} fails at {', '.join(fed)} ({reason_of(exc)}): give a graph that "
                "takes such batches"
            ) from None

    def _noise(self, batch: int) -> np.ndarray:
        """Random images in the likeliest layout. Raises InputError for another batch's graph."""
        first, shape = self.image.shape[0], (batch, *self.layouts[0])
        if isinstance(first, int) and first > 0 and first != batch:
            raise InputError(f"{self.path} takes batches of {first} only: give --batch {first}")
        random = np.random.default_rng(0)
        if TYPES[self.image.type] == "uint8":
            return random.integers(0, 256, shape, dtype=np.uint8)
        return random.standard_normal(shape, dtype=np.float32).astype(TYPES[self.image.type])


def check_graph(path: Path) -> None:
    """Raises InputError if there is no such file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give an ONNX file to compare with")


def _session(path: Path, provider: str, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package onnxruntime: {install_hint('ort')}"
        ) from None
    check_graph(path)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = QUIET
    threads = default_threads() if threads is None else threads
    if threads is not None:
        settings.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=[provider])
    except Exception as exc:  # ONNX Runtime's errors share no base but Exception
        raise InputError(
            f"{path} does not load ({reason_of(exc)}): give an ONNX file to compare with"
        ) from None


def _image_input(path: Path, session: Any) -> tuple[Any, bool]:
    """The input of images, and whether there is one of domains beside it."""
    inputs = {x.name: x for x in session.get_inputs()}
    domain = inputs.pop("domain", None)
    fine = domain is None or (domain.type, len(domain.shape)) == ("tensor(int64)", 1)
    images = [x for x in inputs.values() if x.type in TYPES and len(x.shape) == 4]
    if not fine or len(inputs) != 1 or not images:
        taken = ", ".join(f"{x.name} {x.type} {x.shape}" for x in session.get_inputs())
        raise InputError(
            f"{path} takes {taken}: give a graph of one image batch [N, 3, H, W], or with int64 "
            "`domain` [N] beside it"
        )
    return images[0], domain is not None


def _layouts(image: Any, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """What a single image may be, the likeliest first; one shape where the graph tells."""
    told = [x if isinstance(x, int) and x > 0 else 0 for x in image.shape[1:]]
    first, last = ((3, *size), (*size, 3))
    if told[0] != 3 and (told[2] == 3 or (all(told[:2]) and not told[2])):
        first, last = last, first
    found = [tuple(x or y for x, y in zip(told, shape, strict=True)) for shape in (first, last)]
    sure = 3 in (told[0], told[2]) or found[0] == found[1]
    return found[:1] if sure else found


def _tried(
    answer: Callable[[dict[str, np.ndarray]], Any],
    feeds: dict[str, np.ndarray],
    name: str,
    batch: int,
) -> tuple[np.ndarray, bool]:
    """Which rows `[N]` changed with their own images, and whether all of them tell one class.

    One picture stands in all rows, and another in the first or in all others, so that one answer
    that is given to all images changes with one of them alone.
    """
    noise, first = feeds[name][:1], np.arange(batch) == 0
    white = np.array(255, noise.dtype)  # of pixels; otherwise of what shifts the surest class
    loud = noise // 8 if noise.dtype == np.uint8 else noise * 64
    others = ((noise[:, ::-1, ::-1] / 2).astype(noise.dtype), noise * 0, noise * 0 + white, loud)
    alike = {**feeds, name: np.repeat(noise, batch, axis=0)}
    answers, changed = answer(alike), np.zeros(batch, dtype=bool)
    told = batch == 1 or any(_tells_one(np.asarray(x), batch) for x in answers)
    for other in others:
        for places in (first, ~first):
            mixed = np.where(places.reshape(-1, 1, 1, 1), other, alike[name])
            changed |= places & _changed(answers, answer({**alike, name: mixed}), batch)
        if changed.all():
            break
    return changed, told


def _tells_one(answer: np.ndarray, batch: int) -> bool:
    """Whether an output has a row for each of several equal images, alike and no filling."""
    if answer.shape[:1] != (batch,) or answer.dtype.kind != "f" or not answer.size:
        return False
    return np.allclose(answer, answer[:1]) and bool((answer[0] != np.ravel(answer)[0]).any())


def _reads(path: Path, image: str) -> bool:
    """Whether an output depends on what an image holds, and not on its shape alone."""
    try:
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # not installed, or a form that ONNX Runtime alone reads
        return True
    known = {image}
    for node in graph.node:
        inner = any(x.HasField("g") or x.graphs for x in node.attribute)  # it may read from outside
        if node.op_type not in ("Shape", "Size") and (inner or known.intersection(node.input)):
            known.update(node.output)
    return any(x.name in known for x in graph.output)


def _changed(before: Sequence[Any], after: Sequence[Any], batch: int) -> np.ndarray:
    """Which rows `[N]` of any output changed. Whole numbers, such as the best class, need not."""
    found = np.zeros(batch, dtype=bool)
    for one, other in zip(before, after, strict=True):
        if not (np.shape(one)[:1] == np.shape(other)[:1] == (batch,)):
            continue
        rows = (np.asarray(one) != np.asarray(other)).reshape(batch, -1).any(1)
        found |= rows | (np.asarray(one).dtype.kind in "iub")
    return found
