"""Groups that reach over several leaves: a channel with all that writes, scales and reads it.

    |w_g|^2 = sum over the slices (leaf, axis, indices) of channel g of |leaf[.., indices, ..]|^2

A *family* is a set of channels that are read and written by the same leaves, such as the inner channels of a residual
block, or the residual stream. ``rvsm_jax.coupled_channels`` finds them in any network; `Coupled` takes the place of
``channels`` or ``filters`` in an operator.

The channels of one family are disjoint groups, so that scaling each group is its exact proximal map. Families may
overlap: a kernel between two layers belongs to the channels that it reads and to those that it writes, and is scaled
by both, each norm taken from the weights as they were. `Coupled.overlaps` names such leaves; where there are none, as
for the inner channels of residual blocks of two convolutions, the operator is the exact proximal map of the sum.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rvsm_jax.groups import GroupError
from rvsm_jax.precision import at_least_float32
from rvsm_jax.sharded import whole

Role = Literal["writes", "reads", "scales"]
Rescale = Callable[[Sequence[jax.Array]], list[jax.Array]]


class Slice(NamedTuple):
    """What a family owns of one leaf.

    Attributes:
      path: the leaf.
      axis: the axis along which the family's channels lie.
      channels: for each index of the axis, the number of its channel, or -1.
      role: "writes" for an output axis of a kernel, "reads" for an input axis, "scales" for all else, such as a
        normalisation's scale and shift, a bias, or a depthwise kernel.
    """

    path: str
    axis: int
    channels: np.ndarray
    role: Role


class Family(NamedTuple):
    """Channels that the same leaves write and read.

    Attributes:
      size: the number of channels.
      slices: what they consist of.
    """

    size: int
    slices: tuple[Slice, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        """The kernels that write the channels."""
        return tuple(s.path for s in self.slices if s.role == "writes")

    @property
    def readers(self) -> tuple[str, ...]:
        """The kernels that read the channels."""
        return tuple(s.path for s in self.slices if s.role == "reads")

    def __str__(self) -> str:
        parts = {"written by": self.writers, "read by": self.readers}
        named = [f"{what} {', '.join(paths)}" for what, paths in parts.items() if paths]
        return f"{self.size} channels " + ", ".join(named)


@dataclasses.dataclass(frozen=True, eq=False)
class Coupled:
    """m_g = the norm of everything that belongs to channel g, in whatever leaf: groups for ``proximal_operator``.

    Attributes:
      families: the channels.
      kept: what belongs to no group: operations through which channels cannot be followed, and families that are not
        removable after all.

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> fn = lambda w, x: jnp.tanh(x @ w["hidden"] + w["shift"][None]) @ w["out"]
      >>> w = {"hidden": jnp.ones((2, 3)), "shift": jnp.array([2.0, 0.0, -2.0]), "out": jnp.ones((3, 1))}
      >>> groups = rvsm_jax.coupled_channels(fn, w, jnp.ones((1, 2)))
      >>> print(groups)
      3 channels written by hidden, read by out
      >>> u = rvsm_jax.proximal_operator(rvsm_jax.top_k(2), groups)(w, 1.0)
      >>> print(*(u[name].tolist() for name in ("hidden", "shift", "out")))
      [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]] [2.0, 0.0, -2.0] [[1.0], [0.0], [1.0]]
    """

    families: tuple[Family, ...]
    kept: tuple[str, ...] = ()

    def where(self, path: str, leaf: Any) -> bool:
        """Whether a leaf is in some group: the default of an operator with these groups."""
        return path in self._paths

    def select(self, keep: Callable[[Family], bool]) -> "Coupled":
        """The families for which keep is true."""
        return Coupled(tuple(f for f in self.families if keep(f)), self.kept)

    @property
    def inner(self) -> "Coupled":
        """The channels that one kernel alone writes: those inside the blocks, and none of a residual stream."""
        return self.select(lambda family: len(family.writers) == 1)

    @property
    def written(self) -> "Coupled":
        """The groups without the kernels that read: of a channel what makes it, and what scales and shifts it.

        No kernel is then in two groups, and a channel of zeros still goes with ``shrink``: nobody needs to read it.
        """
        families = [Family(f.size, tuple(s for s in f.slices if s.role != "reads")) for f in self.families]
        return Coupled(tuple(families), self.kept)

    @property
    def overlaps(self) -> tuple[str, ...]:
        """The leaves of which some weight is in two groups."""
        axes: dict[str, set[int]] = {}
        for s in (s for family in self.families for s in family.slices):
            axes.setdefault(s.path, set()).add(s.axis)
        return tuple(path for path, found in axes.items() if len(found) > 1)

    def read(self, paths: Sequence[str], leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], list[int], Rescale]:
        """The groups of some leaves.

        Args:
          paths: of the leaves.
          leaves: arrays of floats; families are confined to them.

        Returns:
          The norms of each family's channels, the number of weights of each of its channels, and the map from new
          norms to leaves.

        Raises:
          GroupError: a ValueError, if a leaf does not have the axis that a family has channels on.
        """
        given = dict(zip(paths, leaves, strict=True))
        _require_axes(self.families, given)
        present = [tuple(s for s in f.slices if s.path in given) for f in self.families]
        families = [Family(f.size, slices) for f, slices in zip(self.families, present, strict=True) if slices]
        norms = [_norms(family, given) for family in families]

        def rescale(new: Sequence[jax.Array]) -> list[jax.Array]:
            scaled = dict(given)
            for family, m, z in zip(families, norms, new, strict=True):
                factor = jnp.where(m == 0, 0, z.astype(m.dtype) / jnp.where(m == 0, 1, m))
                for s in family.slices:
                    x = scaled[s.path]
                    scaled[s.path] = x * _spread(factor, s, x.ndim).astype(x.dtype)
            return [scaled[path] for path in paths]

        return norms, [_weights_of_a_channel(family, given) for family in families], rescale

    def __str__(self) -> str:
        lines = [str(family) for family in self.families] or ["no channels"]
        return "\n".join([*lines, *(f"kept whole: {what}" for what in self.kept)])

    @functools.cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(s.path for family in self.families for s in family.slices)


def _norms(family: Family, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """|w_g|_2 in float32 or wider, each scaled by its largest weight so that no square over- or underflows."""
    dtype = at_least_float32(*(leaves[s.path].dtype for s in family.slices))
    largest = jnp.zeros(family.size, dtype)
    for s in family.slices:
        x = lax.stop_gradient(jnp.abs(leaves[s.path])).astype(dtype)
        largest = jnp.maximum(largest, _gathered(x.max(_others(s, x.ndim)), s, family.size, "max"))
    zero = largest == 0
    unit = jnp.where(zero, 1, largest)
    square = jnp.zeros(family.size, dtype)
    for s in family.slices:
        x = leaves[s.path].astype(dtype) / _spread(unit, s, leaves[s.path].ndim)
        square = square + _gathered(jnp.square(x).sum(_others(s, x.ndim)), s, family.size, "add")
    return jnp.where(zero, 0, largest * jnp.sqrt(jnp.where(zero, 1, square)))


def _others(s: Slice, rank: int) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a != s.axis)


def _in_order(s: Slice, size: int) -> bool:
    return len(s.channels) == size and bool((s.channels == np.arange(size)).all())


def _gathered(x: jax.Array, s: Slice, size: int, how: Literal["max", "add"]) -> jax.Array:
    """By channel, the largest or the sum of what its indices have."""
    x = whole(x)
    if _in_order(s, size):
        return x
    places = jnp.zeros(size + 1, x.dtype).at[np.where(s.channels < 0, size, s.channels)]  # the last for no channel
    return getattr(places, how)(x)[:size]


def _spread(x: jax.Array, s: Slice, rank: int) -> jax.Array:
    """By index of the slice's axis what its channel has, 1 where it has none, in the leaf's rank."""
    if not _in_order(s, x.size):
        x = jnp.concatenate([x, jnp.ones(1, x.dtype)])[np.where(s.channels < 0, x.size, s.channels)]
    return x.reshape([-1 if a == s.axis else 1 for a in range(rank)])


def _weights_of_a_channel(family: Family, leaves: Mapping[str, jax.Array]) -> int:
    counts = np.zeros(family.size, int)
    for s in family.slices:
        shape = leaves[s.path].shape
        each = math.prod(shape) // max(shape[s.axis], 1)
        counts += each * np.bincount(s.channels[s.channels >= 0], minlength=family.size)
    if len(set(counts.tolist())) > 1:
        raise GroupError(f"the channels of a family must have equally many weights, got {counts.tolist()}: {family}")
    return int(counts[0]) if len(counts) else 0


def _require_axes(families: Sequence[Family], leaves: Mapping[str, jax.Array]) -> None:
    for s in (s for family in families for s in family.slices if s.path in leaves):
        shape = leaves[s.path].shape
        if not (0 <= s.axis < len(shape) and shape[s.axis] == len(s.channels)):
            raise GroupError(
                f"the coupled channels want {len(s.channels)} indices along axis {s.axis} of {s.path!r}, "
                f"got one of shape {shape}"
            )
