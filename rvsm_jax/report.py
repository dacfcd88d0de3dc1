"""How sparse a network is: zeros by leaf and by group, parameters, and the bytes that three formats would take."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from rvsm_jax.groups import GroupError, Groups, channels, filters
from rvsm_jax.proximal import Where, kernels, require_function, selected

GROUPS: Mapping[str, Groups] = {"filters": filters, "channels": channels}
INDEX_BYTES = 4


class Zeros(NamedTuple):
    """How many of how many groups have a norm of at most the tolerance."""

    zero: int
    total: int


class Row(NamedTuple):
    """One leaf.

    Attributes:
      path: where it is in the tree.
      shape: its shape.
      size: its number of weights.
      nonzeros: how many of them exceed the tolerance in magnitude.
      groups: zeros by name of the groups; a leaf that lacks a group's axes has no entry.
      dense_bytes: size x itemsize.
      csr_bytes: values, 4-byte column indices and row pointers of the (rest, last axis) matrix, a row an output.
      bitmask_bytes: values, and one bit a weight.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    nonzeros: int
    groups: dict[str, Zeros]
    dense_bytes: int
    csr_bytes: int
    bitmask_bytes: int


class Sparsity(NamedTuple):
    """The sparsity of a tree of parameters; ``print`` it for a table.

    Attributes:
      rows: one for each selected leaf.
      parameters: the number of all parameters, the leaves not selected included.
    """

    rows: tuple[Row, ...]
    parameters: int

    @property
    def weights(self) -> int:
        """The number of selected weights."""
        return sum(row.size for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """How many of the selected weights are not zero."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def fraction(self) -> float:
        """The fraction of the selected weights that are zero."""
        return 1 - self.nonzeros / max(self.weights, 1)

    @property
    def compression(self) -> float:
        """Selected weights for each non-zero one; infinite if all are zero."""
        return self.weights / self.nonzeros if self.nonzeros else math.inf

    def bytes(self, layout: str = "dense") -> int:
        """The selected weights' bytes in a layout, "dense", "csr" or "bitmask"; ValueError for another."""
        if layout not in ("dense", "csr", "bitmask"):
            raise ValueError(f"layout must be 'dense', 'csr' or 'bitmask', got {layout!r}")
        return sum(getattr(row, f"{layout}_bytes") for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a results file."""
        rows = [row._asdict() | {"groups": {k: z._asdict() for k, z in row.groups.items()}} for row in self.rows]
        totals = {"weights": self.weights, "nonzeros": self.nonzeros, "fraction": self.fraction}
        sizes = {f"{layout}_bytes": self.bytes(layout) for layout in ("dense", "csr", "bitmask")}
        return totals | sizes | {"parameters": self.parameters, "rows": rows}

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row.groups))
        header = [
            "leaf",
            "shape",
            "weights",
            "non-zero",
            "zeros %",
            *(f"zero {n}" for n in names),
            "dense",
            "csr",
            "bits",
        ]
        table = [header, *(_cells(row, names) for row in self.rows), _total(self, names)]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        return "\n".join("  ".join(_align(i, c, widths[i]) for i, c in enumerate(line)).rstrip() for line in table)


def sparsity(
    params: chex.ArrayTree,
    *,
    where: Where = kernels,
    groups: Mapping[str, Groups] | None = None,
    tolerance: float = 0.0,
) -> Sparsity:
    """zeros = #{i: |w_i| <= tolerance}, by leaf, by group and in all.

    Args:
      params: a tree of arrays.
      where: which leaves count as weights; default: convolution and dense kernels.
      groups: the groups to count, by name; default: filters and channels.
      tolerance: magnitudes and group norms up to it count as zero.

    Returns:
      The counts, as data and, printed, as a table.

    Raises:
      ValueError: if tolerance is negative, or where selects nothing.
      TypeError: if where selects a leaf that is not of floats, or groups have no names.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import sparsity
      >>> report = sparsity({"dense": {"kernel": jnp.array([[1.0, 0.0], [2.0, 0.0]]), "bias": jnp.ones(2)}})
      >>> report.fraction, report.parameters, report.rows[0].groups["filters"]
      (0.5, 6, Zeros(zero=1, total=2))
      >>> print(report)
      leaf          shape  weights  non-zero  zeros %  zero filters  zero channels  dense  csr  bits
      dense/kernel  2x2          4         2    50.00           1/2            0/2     16   28     9
      total                      4         2    50.00                                 16   28     9
    """
    require_function("where", where)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(f"groups must be a mapping of names to groups such as {{'filters': filters}}, got {groups!r}")
    chosen, paths, leaves = selected(params, where)
    rows = tuple(_row(paths[i], np.asarray(leaves[i]), GROUPS if groups is None else groups, tolerance) for i in chosen)
    arrays = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "shape")]
    return Sparsity(rows, sum(math.prod(leaf.shape) for leaf in arrays))


def _row(path: str, x: np.ndarray, groups: Mapping[str, Groups], tolerance: float) -> Row:
    nonzeros = int(np.count_nonzero(~(np.abs(x) <= tolerance)))
    found = {name: _zeros(group, x, tolerance) for name, group in groups.items()}
    outputs = x.shape[-1] if x.ndim else 1
    return Row(
        path,
        x.shape,
        x.size,
        nonzeros,
        {name: zeros for name, zeros in found.items() if zeros},
        x.size * x.itemsize,
        nonzeros * (x.itemsize + INDEX_BYTES) + (outputs + 1) * INDEX_BYTES,
        nonzeros * x.itemsize + -(-x.size // 8),
    )


def _zeros(group: Groups, x: np.ndarray, tolerance: float) -> Zeros | None:
    if not x.size:
        return None
    try:
        magnitudes = np.asarray(group(jax.numpy.asarray(x))[0])
    except GroupError:
        return None
    return Zeros(int(np.count_nonzero(magnitudes <= tolerance)), magnitudes.size)


def _cells(row: Row, names: list[str]) -> list[str]:
    zeros = [f"{row.groups[n].zero}/{row.groups[n].total}" if n in row.groups else "-" for n in names]
    share = f"{100 * (1 - row.nonzeros / max(row.size, 1)):.2f}"
    sizes = [str(row.dense_bytes), str(row.csr_bytes), str(row.bitmask_bytes)]
    return [row.path, "x".join(map(str, row.shape)), str(row.size), str(row.nonzeros), share, *zeros, *sizes]


def _total(s: Sparsity, names: list[str]) -> list[str]:
    sizes = [str(s.bytes(layout)) for layout in ("dense", "csr", "bitmask")]
    return ["total", "", str(s.weights), str(s.nonzeros), f"{100 * s.fraction:.2f}", *([""] * len(names)), *sizes]


def _align(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
