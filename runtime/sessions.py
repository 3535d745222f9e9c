"""The sessions of one graph: mixed and pinned, made on first use, least recently used leave."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from prunion.runtime.ort_session import SessionOptions, mixed_session, pinned_session

__all__ = ["SessionPool"]


class SessionPool:
    """Thread-safe: two threads that ask for one session get the same one."""

    def __init__(self, graph: Path, options: SessionOptions, max_pinned: int = 8) -> None:
        self._graph = graph
        self._options = options
        self._max_pinned = max_pinned
        self._pinned: OrderedDict[int, Any] = OrderedDict()
        self._mixed: Any = None
        self._lock = threading.Lock()

    def mixed(self) -> Any:
        """The session that takes `image` and `domain`."""
        with self._lock:
            if self._mixed is None:
                self._mixed = mixed_session(self._graph, self._options)
            return self._mixed

    def pinned(self, index: int) -> Any:
        """The session of one domain; a caller that holds an evicted one may finish with it."""
        with self._lock:
            if index not in self._pinned:
                self._pinned[index] = pinned_session(self._graph, index, self._options)
                while len(self._pinned) > self._max_pinned:
                    self._pinned.popitem(last=False)
            self._pinned.move_to_end(index)
            return self._pinned[index]
