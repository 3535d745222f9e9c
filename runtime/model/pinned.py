"""Pinned (single-domain) sessions, and making them beside the requests of a server."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

import numpy as np

from prunion.runtime.backends import Session, run
from prunion.runtime.errors import PrunionError
from prunion.runtime.model.domains import LiveDomain

__all__ = ["Background", "Pinned"]

OFTEN = 8  # requests of a domain in vain, before a session is made for it
FORGET = 4096  # requests that are counted in full
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pinned:
    """A session of one domain: takes `image` as the graph's form says, gives its own `[N, C]`.

    Attributes:
        bytes: size of its graph, the measure of the memory limit.
        note: why it is sliced, or why not.
    """

    session: Session
    bytes: int
    sliced: bool
    note: str

    def run(self, image: np.ndarray) -> np.ndarray:
        """`[N, C]`."""
        return run(self.session, {"image": image})


class Background:
    """Makes the sessions of domains that are asked often, in a thread of its own.

    Making one takes as long as hundreds of answers. Until it is there the mixed session answers, so
    no request waits for it, be it of this domain or of another.

    Args:
        ready: the session of a domain, if it is there.
        make: makes it, if there is room.
        share: of all that is asked for lately, what a domain must be asked for to get its own.
    """

    def __init__(
        self,
        ready: Callable[[LiveDomain], Pinned | None],
        make: Callable[[LiveDomain], object],
        share: float = 0.0,
    ) -> None:
        self._ready = ready
        self._make = make
        self._share = share
        self._all = 0  # times that any domain was asked for
        self._asked: Counter[int] = Counter()
        self._making: set[int] = set()
        self._failed: WeakSet[LiveDomain] = WeakSet()
        self._wanted: queue.SimpleQueue[LiveDomain | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def pinned(self, domain: LiveDomain) -> Pinned | None:
        """The session of a domain, or None: then the mixed one answers."""
        found = self._ready(domain)
        with self._lock:
            self._all += 1
            wanted = found is None and self._is_wanted(domain)
        if wanted:
            self.want(domain)
        return found

    def can_hold(self, domains: list[LiveDomain]) -> bool:
        """Whether all of them have their sessions."""
        found = [self.pinned(domain) for domain in domains]  # each of them is asked for
        return None not in found

    def want(self, domain: LiveDomain) -> None:
        """Make the session of a domain when there is time."""
        with self._lock:
            if self._closed or domain.serial in self._making:
                return
            self._making.add(domain.serial)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pinned", daemon=True)
                self._thread.start()
        self._wanted.put(domain)

    def close(self) -> None:
        """Make no more, and return when none is being made, or the process's end would abort."""
        with self._lock:
            self._closed, thread = True, self._thread
        self._wanted.put(None)
        if thread is not None:
            thread.join()

    def _is_wanted(self, domain: LiveDomain) -> bool:
        """Count that a domain was asked for in vain: whether a session for it pays now."""
        serial = domain.serial
        if self._closed or serial in self._making or domain in self._failed:
            return False
        if self._all >= FORGET:  # what was long ago counts less and less
            self._all //= 2
            halves = {other: count // 2 for other, count in self._asked.items()}
            self._asked = Counter({other: count for other, count in halves.items() if count})
        self._asked[serial] += 1
        count = self._asked[serial]
        if count < OFTEN or count < self._share * self._all:
            return False
        del self._asked[serial]
        return True

    def _work(self) -> None:
        while (domain := self._wanted.get()) is not None and not self._closed:
            try:
                self._make(domain)
            except PrunionError as exc:  # closed meanwhile, or no session can be made: mixed it is
                log.warning("%r is answered by the mixed session: %s", domain.name, exc)
                self._failed.add(domain)
            except Exception:
                log.exception("no session for %r: the mixed one answers", domain.name)
                self._failed.add(domain)
            finally:
                with self._lock:
                    self._making.discard(domain.serial)
