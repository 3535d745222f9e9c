"""Union-find over channel slots."""

from __future__ import annotations

import torch

__all__ = ["FIXED", "SlotSets"]

FIXED = 0  # the set of slots that are never removed: the image's channels, protected layers


class SlotSets:
    """Disjoint sets of slot ids. The smallest id of a set stands for it, so FIXED always does."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def fresh(self, count: int) -> torch.Tensor:
        """`count` new ids, each a set of its own: `[count]` int64."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, slot: int) -> int:
        """The id that stands for the set of `slot`."""
        root = slot
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[slot] != root:
            self._parent[slot], slot = root, self._parent[slot]
        return root

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Join the sets of `a` and `b` element by element (same shape)."""
        if a is b:
            return
        for dim in range(a.dim()):  # expanded axes hold the same slots at every position
            if a.stride(dim) == 0 and b.stride(dim) == 0:
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], dim=1)
        for x, y in torch.unique(pairs, dim=0).tolist():
            x, y = self.find(x), self.find(y)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def roots(self, slots: torch.Tensor) -> torch.Tensor:
        """Each slot's representative, same shape."""
        flat = [self.find(slot) for slot in slots.reshape(-1).tolist()]
        return torch.tensor(flat, dtype=torch.int64).reshape(slots.shape)
