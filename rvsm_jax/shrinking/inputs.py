"""What `shrink` is given, looked at once: variables, masks and example, refused with what is wrong."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.program import ShrinkError


class Variables(NamedTuple):
    """A tree of variables, flat.

    Attributes:
      paths: where each leaf is.
      leaves: the leaves, pruned.
      fixed: for each leaf a mask of zeros that are no pruning, or None.
      treedef: the tree.
    """

    paths: tuple[str, ...]
    leaves: tuple[Any, ...]
    fixed: tuple[Any, ...]
    treedef: Any


def read_variables(variables: Any, masks: Any) -> Variables:
    """The variables, with what masks say is pruned set to zero.

    Raises:
      ShrinkError: for a leaf that is no array, a key, or not finite, and for masks that do not fit.
    """
    with_paths, treedef = jax.tree.flatten_with_path(variables)
    paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths)
    for path, (_, leaf) in zip(paths, with_paths, strict=True):
        _check_leaf(path, leaf)
    leaves = [leaf for _, leaf in with_paths]
    given = [None] * len(leaves) if masks is None else _read_masks(masks, treedef, paths, leaves)
    pairs = list(zip(leaves, given, strict=True))
    pruned = tuple(x if m is None else jnp.where(m, x, jnp.zeros((), x.dtype)) for x, m in pairs)
    fixed = tuple(None if m is None else m & (jnp.asarray(x) == 0) for x, m in pairs)
    return Variables(paths, pruned, fixed, treedef)


def _check_leaf(path: str, leaf: Any) -> None:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise ShrinkError(f"variables must be a tree of arrays, but {path!r} is {leaf!r}; keep it inside fn")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ShrinkError(f"variables must not hold random keys, but {path!r} is one; keep it inside fn")
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
        raise ShrinkError(f"variables must be finite, but {path!r} holds an infinity or a NaN")


def _read_masks(masks: Any, treedef: Any, paths: Sequence[str], leaves: Sequence[Any]) -> list[Any]:
    found, structure = jax.tree.flatten(masks, is_leaf=lambda m: m is None)
    if structure != treedef:
        raise ShrinkError(f"masks must have the structure of the variables, {treedef}, got {structure}")
    for path, leaf, mask in zip(paths, leaves, found, strict=True):
        if mask is not None and np.shape(mask) != np.shape(leaf):
            raise ShrinkError(f"the mask of {path!r} must have its shape {np.shape(leaf)}, got {np.shape(mask)}")
    return [None if mask is None else jnp.asarray(mask) != 0 for mask in found]


def abstract(tree: Any, batch: int | None = None) -> Any:
    """The shapes and dtypes of a tree; with another batch size, if one is given.

    Raises:
      ShrinkError: for an example without a batch axis.
    """

    def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ShrinkError(f"example must be an array, a jax.ShapeDtypeStruct, or a tree of them, got {leaf!r}")
        if batch is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        if not leaf.shape:
            raise ShrinkError("example must have the batch as its first axis, got a scalar")
        return jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape_of, tree)


def random_like(example: Any, batch: int, seed: int = 0) -> Any:
    """A batch of other examples: as large as the given ones, normally distributed; integers are the given ones anew."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        shape = (batch, *leaf.shape[1:])
        values = None if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            rows = 0 if values is None or not len(values) else values[np.arange(batch) % len(values)]
            return jnp.asarray(np.broadcast_to(rows, shape), leaf.dtype)
        scale = 1.0 if values is None else float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        return jnp.asarray(rng.normal(size=shape) * (scale if 0 < scale < np.inf else 1.0), leaf.dtype)

    return jax.tree.map(draw, example)
