"""Edges of Z^d: direction +e_i is 2 i, -e_i is 2 i + 1, so that a direction and its reverse differ in the last bit."""

import jax
import jax.numpy as jnp

Position = tuple[jax.Array, ...]


def moved(position: Position, edge: jax.Array, taken: jax.Array | None = None) -> Position:
    """Positions one step further along their edges.

    Args:
      position: d integer arrays [B].
      edge: [B] int32.
      taken: [B] bool, who takes the step; default: everyone.

    Returns:
      d arrays of the same dtype.
    """
    sign = 1 - 2 * (edge & 1)
    step = (sign if taken is None else jnp.where(taken, sign, 0)).astype(position[0].dtype)
    if len(position) == 1:
        return (position[0] + step,)
    return tuple(x + jnp.where(edge >> 1 == i, step, 0) for i, x in enumerate(position))


def next_edge(dim: int, edge: jax.Array, length: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The edge that a word chooses among the 2 d - 1 others, and whether it must be drawn again.

    Args:
      dim: d.
      edge: [B] int32, direction in which an excursion began.
      length: [B] int32, its length, or any number of that parity.
      word: [B] uint32.

    Returns:
      [B] int32 and [B] bool.
    """
    back = edge ^ (length & 1)  # from the far end the old edge leads back, from the near end it leads out again
    if dim == 1:
        return back ^ 1, jnp.zeros(edge.shape, bool)
    ahead, again = below(2 * dim - 1, word)
    there = back + 1 + ahead
    return jnp.where(there >= 2 * dim, there - 2 * dim, there), again


def below(m: int, word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """floor(m word / 2^32), exactly uniform on 0..m-1 among the words that need not be drawn again.

    Args:
      m: how many values.
      word: [B] uint32.

    Returns:
      [B] int32 and [B] bool.

    References:
      Lemire, Fast random integer generation in an interval, arXiv 1805.10941.
    """
    product = word.astype(jnp.uint64) * jnp.uint64(m)
    again = (product & jnp.uint64(0xFFFFFFFF)) < jnp.uint64(2**32 % m)
    return (product >> jnp.uint64(32)).astype(jnp.int32), again
