"""Items read a few ahead of what is asked for, by threads or by processes, always in order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from prunion.runtime.errors import PrunionError

__all__ = ["prefetched"]

AHEAD = 2  # batches that are read before they are asked for, by each reader

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int, *, pin: bool = False
) -> Iterator[Result]:
    """`read(item)` for every item, in order, a few ahead of what is asked for.

    `read` must depend on its item alone: then 0 workers (one thread) and many (processes) give
    the same results. An error of `read` is raised in its place.

    Args:
        pin: put results into page-locked memory, from which a GPU copies without a detour. They
            must be tensors, things with a `pin_memory` of their own, or lists and tuples of those.
    """
    if workers and "fork" in multiprocessing.get_all_start_methods():
        return _by_processes(read, items, workers, pin)
    # Without fork the images' mapped file cannot be handed over: read with threads instead.
    return _by_threads((lambda item: _pinned(read(item))) if pin else read, items, max(1, workers))


def _pinned(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_pinned(part) for part in value)
    return value.pin_memory()


def _by_threads(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Reads(Dataset[object]):
    """`read(items[i])`, with the user's errors handed back whole instead of as a traceback."""

    def __init__(self, read: Callable[[Any], object], items: Sequence[Any]) -> None:
        self.read, self.items = read, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        try:
            return self.read(self.items[index])
        except PrunionError as exc:
            return exc


def _by_processes(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int, pin: bool
) -> Iterator[Result]:
    loader = DataLoader(
        _Reads(read, items),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="fork",
        # The loader draws a seed: not from the generator that the training loop uses.
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, PrunionError):
            raise result
        yield result
