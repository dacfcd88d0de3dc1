"""Arrays on a mesh with explicit axes, made whole where sorting and joining want that."""

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def whole(x: jax.Array) -> jax.Array:
    """x with its explicit axes gathered, so that it may be ravelled, sorted and concatenated.

    Args:
      x: any array.

    Returns:
      x on every device of its mesh; x itself where no axis is explicit.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.sharded import whole
      >>> print(whole(jnp.arange(3)))
      [0 1 2]
    """
    return jax.sharding.reshard(x, NamedSharding(_mesh(x), PartitionSpec())) if _explicit(x) else x


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """x laid out over the explicit axes as another array of its shape is.

    Args:
      x: any array.
      like: an array of the same shape.

    Returns:
      x, split as ``like`` is.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.sharded import placed_like
      >>> print(placed_like(jnp.arange(3), jnp.ones(3)))
      [0 1 2]
    """
    return jax.sharding.reshard(x, NamedSharding(_mesh(like), jax.typeof(like).sharding.spec)) if _explicit(like) else x


def _mesh(x: jax.Array) -> AbstractMesh:
    return jax.typeof(x).sharding.mesh


def _explicit(x: jax.Array) -> bool:
    return AxisType.Explicit in _mesh(x).axis_types
