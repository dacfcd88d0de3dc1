"""A plan as plain data: what is kept of every array, to be saved as JSON beside the small variables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.boxes import Box
from rvsm_jax.shrinking.function import Folded, probe, small_function
from rvsm_jax.shrinking.plan import Plan
from rvsm_jax.shrinking.program import ShrinkError
from rvsm_jax.shrinking.report import Report

FORMAT = "rvsm-jax shrunk 1"


def to_record(report: Report) -> dict[str, Any]:
    """What `from_record` needs beside the function and the small variables, as anything JSON can hold.

    Args:
      report: of `shrink`.

    Returns:
      The record.
    """
    plan = report.plan
    wants = [None if want is None else [_plain(box) for box in want] for want in plan.wants]
    leaves = [{"path": x.path, "shape": list(x.before), "dtype": x.dtype} for x in report.leaves]
    example = [{"shape": list(x.shape), "dtype": str(x.dtype)} for x in jax.tree.leaves(report.example)]
    rest = {"boxes": [_plain(box) for box in plan.boxes], "wants": wants, "folded": sorted(plan.folded)}
    return {"format": FORMAT, "variables": leaves, "example": example} | rest


def from_record(fn: Callable, small_variables: Any, example: Any, record: Mapping[str, Any]) -> Callable:
    """The small function of a record: shrinking again without deciding again.

    Args:
      fn: the function that was shrunk.
      small_variables: the saved ones, or a tree like them.
      example: an x or its shape.
      record: from `to_record`.

    Returns:
      small_fn.

    Raises:
      ShrinkError: if the record is of another function, other variables or another example.

    >>> from rvsm_jax.shrinking import shrink
    >>> fn = lambda v, x: x @ v
    >>> _, small, report = shrink(fn, jnp.ones((3, 2)).at[0].set(0), jnp.ones((8, 3)))
    >>> from_record(fn, small, jnp.ones((8, 3)), to_record(report))(small, jnp.ones((1, 3))).tolist()
    [[2.0, 2.0]]
    """
    if record.get("format") != FORMAT:
        raise ShrinkError(f"record must come from to_record and say {FORMAT!r}, got {record.get('format')!r}")
    tree = small_variables.variables if isinstance(small_variables, Folded) else small_variables
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    rows = record["variables"]
    if paths != [row["path"] for row in rows]:
        raise ShrinkError(f"the record is of the variables {[row['path'] for row in rows]}, got {paths}")
    given = [{"shape": list(x.shape), "dtype": str(x.dtype)} for x in jax.tree.leaves(example)]
    if [(x["shape"][1:], x["dtype"]) for x in given] != [(x["shape"][1:], x["dtype"]) for x in record["example"]]:
        raise ShrinkError(f"the record is of an example {record['example']}, got {given}")
    shapes = [jax.ShapeDtypeStruct(row["shape"], jnp.dtype(row["dtype"])) for row in rows]
    variables = jax.tree.unflatten(jax.tree.structure(tree), shapes)
    program, _ = probe(fn, variables, example)
    if (len(record["boxes"]), len(record["wants"])) != (len(program.avals), len(program.operations)):
        found, wanted = len(program.operations), len(record["wants"])
        raise ShrinkError(f"the record is of another function: {wanted} operations, and fn has {found}")
    wants = [None if want is None else tuple(map(_box, want)) for want in record["wants"]]
    folded = {i: np.zeros(()) for i in record["folded"]}
    return small_function(
        fn, variables, example, program, Plan(tuple(map(_box, record["boxes"])), tuple(wants), folded)
    )


def _plain(box: Box | None) -> Any:
    return None if box is None else [None if index is None else [int(i) for i in index] for index in box]


def _box(plain: Sequence[Any] | None) -> Box | None:
    if plain is None:
        return None
    return tuple(None if index is None else np.asarray(index, int) for index in plain)
