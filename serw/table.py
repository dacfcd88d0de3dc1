"""The first lengths of an excursion as one table look-up, exact to 64 bits.

P(T = n) = P(T >= n) h(n) for 0 < n < 4096, and cell 0 for P(T >= 4096). Walker's alias method: a 32-bit word chooses a
cell with its first 12 bits and compares the other 20 with the cell's threshold. Where they tie, 32 more bits decide:
the rare tie is left to the caller, so that the common case costs one word and one look-up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from serw.walk import Walk

CELL_BITS, THRESHOLD_BITS = 12, 20
CELLS = 1 << CELL_BITS


class Table(NamedTuple):
    """An alias table: `packed` holds threshold and alias of each cell, `low` the threshold's next 32 bits.

    `mean` is E[min(T, 4096)], by which callers judge how many draws a time takes.
    """

    packed: jax.Array | np.ndarray
    low: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray


class Draw(NamedTuple):
    """What a word says: the length (0 for the tail), and whether the word was not enough to tell."""

    length: jax.Array
    tie: jax.Array


def probabilities(walk: Walk) -> np.ndarray:
    """[4096] float64: P(T >= 4096), then P(T = n) for n = 1..4095.

    >>> from serw import linear
    >>> probabilities(Walk(1, linear(1.0)))[:3].round(4).tolist()
    [0.0005, 0.3333, 0.1667]
    """
    n = np.arange(1, CELLS)
    leave = walk.leave(n)
    alive = np.concatenate([[1.0], np.cumprod(1 - leave)])
    return np.concatenate([alive[-1:], alive[:-1] * leave])


def build(p: np.ndarray) -> Table:
    """Splits p into 4096 cells of equal weight, each shared by at most two values.

    Args:
      p: [4096] probabilities that sum to 1.

    Returns:
      The table; each value's probability is kept to about 2^-64.

    References:
      Walker, Electronics Letters 10 (1974); Vose, IEEE Trans. Software Eng. 17 (1991).
    """
    share, alias, weight = np.ones(CELLS), np.arange(CELLS), p * (CELLS / p.sum())
    small = [i for i in range(CELLS) if weight[i] < 1]
    large = [i for i in range(CELLS) if weight[i] >= 1]
    while small and large:
        i, j = small.pop(), large[-1]
        share[i], alias[i] = weight[i], j
        weight[j] -= 1 - weight[i]
        if weight[j] < 1:
            small.append(large.pop())
    bits = np.minimum(np.round(share * 2.0**52), 2.0**52 - 1).astype(np.uint64)
    mean = p[1:] @ np.arange(1, CELLS) + p[0] * CELLS
    packed = ((bits >> np.uint64(32)) << np.uint64(CELL_BITS)) | alias.astype(np.uint64)
    return Table(packed.astype(np.uint32), (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32), np.asarray(mean))


def draw(table: Table, word: jax.Array) -> Draw:
    """The length that a word stands for.

    Args:
      table: of `build`.
      word: [B] uint32.

    Returns:
      [B] int32 lengths, 0 for the tail; wrong where the tie, of probability 2^-20, is set.
    """
    cell, entry = _cell(word), _entry(table, word)
    ours, threshold = word & jnp.uint32((1 << THRESHOLD_BITS) - 1), entry >> jnp.uint32(CELL_BITS)
    return Draw(jnp.where(ours < threshold, cell, _alias(entry)), ours == threshold)


def break_tie(table: Table, word: jax.Array, more: jax.Array) -> jax.Array:
    """The length that a tied word and 32 more bits stand for, [B] int32."""
    low = jnp.asarray(table.low)[_cell(word)]
    return jnp.where(more < low, _cell(word), _alias(_entry(table, word)))


def _cell(word: jax.Array) -> jax.Array:
    return (word >> jnp.uint32(THRESHOLD_BITS)).astype(jnp.int32)


def _entry(table: Table, word: jax.Array) -> jax.Array:
    return jnp.asarray(table.packed).at[_cell(word)].get(mode="promise_in_bounds")


def _alias(entry: jax.Array) -> jax.Array:
    return (entry & jnp.uint32(CELLS - 1)).astype(jnp.int32)
