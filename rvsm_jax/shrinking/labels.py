"""Labels: which indices of which axes are one channel, by union of what operations tie together.

Every index of every axis of every value has a label, a number. Operations tie labels: an addition those of its
operands, a product those that it sums over. Label 0 is what nobody may remove: the axes of the argument and of the
outputs, pixels, and whatever an operation without a rule touches. A label that no variable has is free.

Axes merged into one by a reshape are products of labels. Where only one of them can hold channels, its labels go on to
the merged axis; where that is not clear yet, it is settled by what the merged axis meets, and if not by that, fixed.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

Axes: TypeAlias = list[np.ndarray]  # for each axis of a value, the labels of its indices
FIXED = 0


class _Merge(NamedTuple):
    """Axes, outermost first, and the one axis that they are merged into."""

    axes: Axes
    flat: np.ndarray
    origin: str


class Labels:
    """A partition of labels."""

    def __init__(self):
        self._parent = [FIXED]
        self._owned: list[np.ndarray] = []
        self._merges: list[_Merge] = []

    def fresh(self, size: int) -> np.ndarray:
        """Labels of their own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return np.arange(start, start + size)

    def free(self, shape: Sequence[int]) -> Axes:
        """Fresh labels for each axis of a shape."""
        return [self.fresh(n) for n in shape]

    def owned(self, shape: Sequence[int]) -> Axes:
        """The labels of a variable."""
        axes = self.free(shape)
        self._owned.extend(axes)
        return axes

    def fixed(self, shape: Sequence[int]) -> Axes:
        """Labels that must stay."""
        return [np.full(n, FIXED) for n in shape]

    def fix(self, labels: np.ndarray) -> None:
        """Makes them stay."""
        self.tie(labels, np.full(len(labels), FIXED))

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Makes a[i] and b[i] one, for each i."""
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def merge(self, axes: Sequence[np.ndarray], origin: str) -> np.ndarray:
        """The labels of several axes merged into one, the outermost first, by an operation that is named."""
        flat = self.fresh(int(np.prod([len(a) for a in axes])))
        self._merges.append(_Merge(list(axes), flat, origin))
        return flat

    def split(self, flat: np.ndarray, sizes: Sequence[int], origin: str) -> Axes:
        """The labels of the axes that one axis is split into, by an operation that is named."""
        axes = self.free(sizes)
        self._merges.append(_Merge(axes, flat, origin))
        return axes

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """One label for each class; `FIXED` for those that stay."""
        return np.array([self._root(x) for x in labels.tolist()], int)

    def settle(self) -> list[str]:
        """Decides about all merges; what remains unclear is fixed, and its operation returned."""
        waiting, undecided = list(self._merges), []
        while waiting:
            owned = self._owned_roots()
            left = [merge for merge in waiting if not self._settled(merge, owned)]
            if len(left) == len(waiting):
                unclear = [m for m in left if any(self._holds(a, owned) for a in (*m.axes, m.flat))]
                if not unclear:
                    break
                undecided.append(unclear[0].origin)
                for labels in (*unclear[0].axes, unclear[0].flat):
                    self.fix(labels)
            waiting = left
        return undecided

    def _settled(self, merge: _Merge, owned: set[int]) -> bool:
        """Whether it is clear which axis holds the channels; if so, ties them."""
        flat = self.roots(merge.flat).reshape([len(a) for a in merge.axes])
        holders = [k for k, a in enumerate(merge.axes) if self._holds(a, owned)]
        varying = [k for k in range(flat.ndim) if (flat != flat.take([0], k)).any()]
        fixed = not flat.any()
        if fixed or not any(self.roots(a).any() for a in merge.axes):
            chosen = None
        elif len(holders) == 1:
            chosen = holders[0]
        elif self._holds(merge.flat, owned) and len(varying) == 1:
            chosen = varying[0]
        else:
            return False
        for k, labels in enumerate(merge.axes):
            if k != chosen:
                self.fix(labels)
        if chosen is None:
            self.fix(merge.flat)
        else:
            ahead = [-1 if k == chosen else 1 for k in range(flat.ndim)]
            along = np.broadcast_to(merge.axes[chosen].reshape(ahead), flat.shape)
            self.tie(merge.flat, along.reshape(-1))
        return True

    def _holds(self, labels: np.ndarray, owned: set[int]) -> bool:
        """Whether some of the labels are a variable's, and may be removed."""
        return not owned.isdisjoint(set(self.roots(labels).tolist()) - {FIXED})

    def _owned_roots(self) -> set[int]:
        return {x for labels in self._owned for x in self.roots(labels).tolist()}

    def _root(self, x: int) -> int:
        parent = self._parent
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x
