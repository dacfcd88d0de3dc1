"""Walkers laid out over a mesh of devices, in blocks that fit a cache.

Walker number w is the same walker whatever the layout: blocks are whole groups of 1,024 consecutive walkers, and those
beyond the last one asked for are never counted.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from serw import checkpoints, events, statistics, steps
from serw.plan import Plan
from serw.statistics import GROUP, Sums

BLOCK = 64 * GROUP  # walkers side by side on one device, at most


def prepare(plan: Plan) -> Any:
    """What the method needs besides the law: the table of excursions, or nothing."""
    return events.prepare(plan.walk) if plan.method == "events" else None


@functools.partial(jax.jit, static_argnums=0)
def start(plan: Plan, key: jax.Array) -> Any:
    """All walkers at time 0.

    Args:
      plan: the run.
      key: a JAX key.

    Returns:
      The method's walkers, each array [blocks, size] and spread over the mesh.
    """
    devices, blocks, size = layout(plan.walkers, plan.mesh)
    numbers = jnp.arange(devices * blocks * size, dtype=jnp.uint32)
    inner = _method(plan).start(plan.walk, key, numbers)
    split = _split(plan.mesh)
    return jax.lax.with_sharding_constraint(jax.tree.map(lambda x: x.reshape(-1, size), inner), split)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(plan: Plan, lengths: Any, inner: Any, times: jax.Array) -> tuple[Any, Sums, jax.Array]:
    """Walks all walkers past the times, block after block on each device.

    Args:
      plan: the run.
      lengths: of `prepare`.
      inner: the walkers; their memory is used again.
      times: [K] int64, non-decreasing.

    Returns:
      The walkers; the sums and the positions [K, d, trajectories] of the first few, on every device.
    """
    axis = plan.mesh.axis_names[0]
    _, blocks, size = layout(plan.walkers, plan.mesh)

    def on_device(inner: Any, lengths: Any, times: jax.Array) -> Any:
        first = jax.lax.axis_index(axis).astype(jnp.int64) * blocks
        block = functools.partial(_block, plan, lengths, times, size)
        after, sums, positions = jax.lax.map(block, (inner, first + jnp.arange(blocks)))
        features = jnp.moveaxis(sums.features, 0, 1).reshape(len(times), -1, sums.features.shape[-1])
        return after, (features, sums.histogram.sum(0)[None], sums.runs.sum(0)[None]), positions[:1]

    split, whole = PartitionSpec(axis), PartitionSpec()
    outputs = (split, (PartitionSpec(None, axis), split, split), split)
    walk = jax.shard_map(on_device, mesh=plan.mesh, in_specs=(split, whole, whole), out_specs=outputs, check_vma=False)
    after, (features, histogram, runs), positions = walk(inner, lengths, times)
    seen = (Sums(features, histogram.sum(0), runs.sum(0)), positions[0])
    return after, *jax.lax.with_sharding_constraint(seen, NamedSharding(plan.mesh, whole))


def layout(walkers: int, mesh: Mesh) -> tuple[int, int, int]:
    """(devices, blocks on each, walkers in each).

    >>> layout(200_000, Mesh(np.array(jax.devices()[:1]), ("walkers",)))
    (1, 4, 50176)
    """
    devices, groups = mesh.size, -(-walkers // GROUP)
    mine = -(-groups // devices)
    blocks = -(-mine * GROUP // BLOCK)
    return devices, blocks, -(-mine // blocks) * GROUP


def lay_out(plan: Plan, inner: Any) -> Any:
    """A copy of the same walkers in this mesh's layout."""
    devices, blocks, size = layout(plan.walkers, plan.mesh)
    split = _split(plan.mesh)

    def place(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.shape == (devices * blocks, size) and x.sharding == split:
            return jnp.copy(x)
        flat = checkpoints.gathered(x).reshape(-1)
        padded = np.resize(flat[: plan.walkers], devices * blocks * size).reshape(-1, size)
        return jax.make_array_from_callback(padded.shape, split, lambda index: padded[index])

    return jax.tree.map(place, inner)


def blank(plan: Plan) -> Any:
    """The shapes of one walker, in the tree of all."""
    one = jnp.zeros(1, jnp.uint32)
    return jax.eval_shape(lambda key: _method(plan).start(plan.walk, key, one), jax.random.key(0))


def _block(plan: Plan, lengths: Any, times: jax.Array, size: int, one: tuple[Any, jax.Array]) -> Any:
    inner, number = one
    counted = number * size + jnp.arange(size) < plan.walkers
    after, records = _method(plan).advance(plan.walk, lengths, inner, times, counted)
    return after, statistics.fold(records, times, counted), records.position[:, :, : plan.trajectories]


def _method(plan: Plan) -> Any:
    return events if plan.method == "events" else steps


def _split(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
