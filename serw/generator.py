"""Random numbers of the hot loops: one xoshiro128++ generator per walker, seeded from a threefry key.

A walker's seed depends on the key and on its own number alone, so that its path does not depend on how many walkers
there are, on devices, or on how a run is cut into chunks. Shapes: B walkers side by side.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def seed(key: jax.Array, walkers: jax.Array) -> Words:
    """The four state words of each walker: threefry bits of (key, walker's number).

    Args:
      key: a JAX key.
      walkers: [B] uint32 numbers of the walkers.

    Returns:
      Four [B] uint32 arrays, not all zero.
    """
    bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (4,), jnp.uint32))(walkers)
    return bits[:, 0], bits[:, 1], bits[:, 2], bits[:, 3] | jnp.uint32(1)


def step(s: Words) -> tuple[jax.Array, Words]:
    """rotl(s_0 + s_3, 7) + s_0 and the next state.

    Args:
      s: four [B] uint32 arrays.

    Returns:
      The [B] uint32 output and the next state.

    References:
      Blackman and Vigna, Scrambled linear pseudorandom number generators, arXiv 1805.01407: xoshiro128++.
    """
    s0, s1, s2, s3 = s
    word, shifted = _rotate(s0 + s3, 7) + s0, s1 << jnp.uint32(9)
    s2, s3 = s2 ^ s0, s3 ^ s1
    s1, s0 = s1 ^ s2, s0 ^ s3
    return word, (s0, s1, s2 ^ shifted, _rotate(s3, 11))


def step_where(mask: jax.Array, s: Words) -> tuple[jax.Array, Words]:
    """A word for every walker; only those under the mask use theirs up."""
    word, after = step(s)
    return word, select(mask, after, s)


def uniform_where(mask: jax.Array, s: Words) -> tuple[jax.Array, Words]:
    """(k + 1/2) 2^-53 with k uniform on 53 bits, in float64; only walkers under the mask use up their two words."""
    high, s = step_where(mask, s)
    low, s = step_where(mask, s)
    k = (high.astype(jnp.uint64) << jnp.uint64(21)) | (low >> jnp.uint32(11)).astype(jnp.uint64)
    return (k.astype(jnp.float64) + 0.5) * 2.0**-53, s


def select(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf: `yes` under the mask, `no` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), yes, no)


def sequence_uniform(seed: int, n: Any) -> Any:
    """U_n, the n-th number of one fixed uniform sequence: a 64-bit mix of seed + n golden ratios.

    Args:
      seed: which sequence.
      n: whole numbers, a NumPy or JAX array.

    Returns:
      float64 in (0, 1), of n's shape; the same from NumPy and from JAX.

    References:
      Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014: the finaliser.

    >>> float(sequence_uniform(1, np.array(5))) == float(sequence_uniform(1, np.array([4, 5]))[1])
    True
    """
    xp = n.__array_namespace__()
    u64 = xp.uint64
    z = _mix(xp, xp.asarray(seed, dtype=u64)) + xp.asarray(n).astype(u64) * xp.asarray(GOLDEN, dtype=u64)
    z = _mix(xp, z)
    return ((z >> xp.asarray(11, dtype=u64)).astype(xp.float64) + 0.5) * 2.0**-53


def special(x: Any) -> ModuleType:
    """``scipy.special`` for a NumPy array, ``jax.scipy.special`` for a JAX one."""
    return scipy.special if isinstance(x, np.ndarray | np.generic) else jax.scipy.special


def _mix(xp: Any, z: Any) -> Any:
    def u64(k: int) -> Any:
        return xp.asarray(k, dtype=xp.uint64)

    with np.errstate(over="ignore"):
        z = (z ^ (z >> u64(30))) * u64(MIX_1)
        z = (z ^ (z >> u64(27))) * u64(MIX_2)
        return z ^ (z >> u64(31))


def _rotate(word: jax.Array, bits: int) -> jax.Array:
    return (word << jnp.uint32(bits)) | (word >> jnp.uint32(32 - bits))
