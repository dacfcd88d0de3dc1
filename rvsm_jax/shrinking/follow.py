"""Other functions of the same variables, made to fit the small ones: training mode beside evaluation mode."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.boxes import Box, axis_of, contains, is_empty
from rvsm_jax.shrinking.function import probe, small_function
from rvsm_jax.shrinking.inputs import abstract
from rvsm_jax.shrinking.plan import Plan, plan
from rvsm_jax.shrinking.program import Program, ShrinkError
from rvsm_jax.shrinking.report import Leaf, Report, matches


def follow(fn: Callable, small_variables: Any, report: Report, example: Any = None) -> Callable:
    """small(small_variables, x) = fn(variables, x), where variables are the small ones and zeros for what was removed.

    `shrink` decides from a network in evaluation mode; this makes its training mode, its loss, or its inner layers fit
    the same small variables. Outputs that are like the variables, or like an entry of theirs such as
    ``variables["state"]`` (new batch statistics), come back small too.

    Args:
      fn: ``fn(variables, x) -> outputs``, of the original variables.
      small_variables: from `shrink`, with constants kept.
      report: of that shrinking.
      example: an x of fn, or its shape; by default the example of that shrinking.

    Returns:
      The small function.

    Raises:
      ShrinkError: if fn cannot be traced, or needs more of a variable than was kept, naming it.

    >>> from rvsm_jax.shrinking import shrink
    >>> fn = lambda v, x: jax.nn.relu(x @ v[0]) @ v[1]
    >>> w1, w2 = jnp.ones((2, 4)), jnp.ones((4, 3)).at[1:].set(0)
    >>> _, small, report = shrink(fn, (w1, w2), jnp.ones((8, 2)))
    >>> loss = follow(lambda v, x: (fn(v, x) ** 2).sum(), small, report)
    >>> loss(small, jnp.ones((8, 2))), [g.shape for g in jax.grad(loss)(small, jnp.ones((8, 2)))]
    (Array(96., dtype=float32), [(2, 1), (1, 3)])
    """
    structure: Any = jax.tree.structure(small_variables)
    if structure != report.treedef:
        raise ShrinkError(f"the small variables must have the structure {report.treedef}, got {structure}")
    pairs = zip(report.leaves, jax.tree.leaves(small_variables), strict=True)
    variables = jax.tree.unflatten(report.treedef, [_with_zeros(row, leaf) for row, leaf in pairs])
    example = report.example if example is None else example
    program, analyse = probe(fn, variables, example)
    leaves = jax.tree.leaves(variables)
    fixed = [_kept(row) & (leaf == 0) for row, leaf in zip(report.leaves, leaves, strict=True)]
    facts = analyse(leaves, fixed, False)
    returned = _returned(program, report)
    outputs = {k: row.box for k, row in returned.items() if not is_empty(row.box)}
    found = plan(program, facts, outputs=outputs, free=frozenset(returned), gathers="always")
    return small_function(fn, abstract(variables), example, program, _stored(program, found, report.leaves))


def _with_zeros(row: Leaf, leaf: Any) -> jax.Array:
    """The leaf in its original shape, zero where it was cut."""
    if np.shape(leaf) != row.after:
        raise ShrinkError(f"the small variable {row.path!r} must have shape {row.after}, got {np.shape(leaf)}")
    original = np.zeros(row.before, leaf.dtype)
    original[np.ix_(*map(axis_of, row.box, row.before))] = np.asarray(leaf)
    return jnp.asarray(original)


def _kept(row: Leaf) -> jax.Array:
    """A mask of what was kept, zeros among it, which may become anything."""
    mask = np.zeros(row.before, bool)
    mask[np.ix_(*map(axis_of, row.box, row.before))] = True
    return jnp.asarray(mask)


def _returned(program: Program, report: Report) -> Mapping[int, Leaf]:
    """The places of outputs that are new values of variables, and those variables."""
    shapes = [jax.ShapeDtypeStruct(program.shape(v), program.avals[v].dtype) for v in program.outputs]
    tree = jax.tree.unflatten(program.out_tree, shapes)
    found: dict[int, Leaf] = {}
    place = 0
    for part, rows in matches(report, tree):
        count = len(jax.tree.leaves(part))
        found |= dict(zip(range(place, place + count), rows, strict=True)) if rows else {}
        place += count
    return found


def _stored(program: Program, found: Plan, rows: Sequence[Leaf]) -> Plan:
    """The plan on the variables as they are stored."""
    boxes: list[Box | None] = list(found.boxes)
    for v, row in zip(program.leaves, rows, strict=True):
        box = boxes[v]
        if box is not None and not is_empty(box) and not contains(row.box, box):
            raise ShrinkError(f"fn needs more of the variable {row.path!r} than was kept of it, shape {row.after}")
        boxes[v] = row.box
    return found._replace(boxes=tuple(boxes))
