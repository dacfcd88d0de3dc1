"""The check before a small function is returned: its outputs against the masked function's, on another batch size."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.analysis import quick_compilation
from rvsm_jax.shrinking.boxes import Box, cut, whole
from rvsm_jax.shrinking.plan import Plan
from rvsm_jax.shrinking.program import Program, ShrinkError, describe
from rvsm_jax.shrinking.small import run, stored_box


def tolerance(dtype: Any) -> float:
    """How far two evaluations in one precision may be apart, relative to the largest entry.

    >>> tolerance(np.float32), tolerance(np.float64)
    (1e-05, 1e-12)
    """
    if jnp.finfo(dtype).bits < 32:
        return float(10 * jnp.finfo(dtype).eps)
    return 1e-5 if jnp.finfo(dtype).bits == 32 else 1e-12


def difference(a: Any, b: Any) -> float:
    """max |a - b| / max |a|, over entries that are finite in a; infinite where the others are not the same."""
    a, b = (np.asarray(jnp.asarray(x).astype(_wide(x))) for x in (a, b))
    finite = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=a.dtype.kind in "fc"):
        return float("inf")
    if not finite.any():
        return 0.0
    gap = float(np.abs(a[finite] - b[finite]).max())
    scale = float(np.abs(a[finite]).max())
    return gap / scale if scale else (float("inf") if gap else 0.0)


def _wide(x: Any) -> Any:
    half = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
    return jnp.float32 if half or x.dtype == bool else x.dtype


def allowed(x: Any) -> float:
    """The tolerance for an array; 0 for integers."""
    return tolerance(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else 0.0


def evaluate(fn: Callable, *arguments: Any) -> Any:
    """fn(*arguments), compiled quickly."""
    return jax.jit(fn, compiler_options=quick_compilation())(*arguments)


def require_equal(
    program: Program,
    plan: Plan,
    leaves: Sequence[Any],
    small_leaves: Sequence[Any],
    arguments: Sequence[Any],
    big: Sequence[Any],
    small: Sequence[Any],
) -> float:
    """Compares the outputs of the two functions.

    Args:
      program: of the batch size of the check.
      plan: its plan.
      leaves: the variables.
      small_leaves: what is kept of them.
      arguments: the argument of the check.
      big: the outputs of the function itself.
      small: the outputs of the small one.

    Returns:
      The largest relative difference.

    Raises:
      ShrinkError: where it is more than rounding, naming the first operation that differs.
    """
    worst = 0.0
    for v, y, z in zip(program.outputs, big, small, strict=True):
        y = cut(jnp.asarray(y), whole(jnp.ndim(y)), _output_box(program, plan, v))
        gap = difference(y, z)
        worst = max(worst, gap)
        if gap > allowed(y):
            first = first_difference(program, plan, leaves, small_leaves, arguments)
            raise ShrinkError(f"the small function differs from fn by {gap:.2g} of its largest output; {first}")
    return worst


def _output_box(program: Program, plan: Plan, v: int) -> Box:
    return stored_box(plan, v, len(program.shape(v)))


def first_difference(
    program: Program, plan: Plan, leaves: Sequence[Any], small_leaves: Sequence[Any], arguments: Sequence[Any]
) -> str:
    """The first operation whose small result is not the part of the whole one that it should be."""
    truth: dict[int, Any] = dict(zip(program.leaves, leaves, strict=True))
    truth |= dict(zip(program.arguments, arguments, strict=True))
    truth |= {v: jnp.asarray(x, program.avals[v].dtype) for v, x in program.constants.items()}
    found: dict[int, Any] = {}
    run(program, plan, small_leaves, arguments, plan.folded, lambda v, y: found.__setitem__(v, y))
    for op in program.operations:
        truth |= dict(zip(op.outputs, op.bind(*(truth[v] for v in op.inputs)), strict=True))
        for v in found.keys() & set(op.outputs):
            part = cut(jnp.asarray(truth[v]), whole(len(program.shape(v))), _output_box(program, plan, v))
            if difference(part, found[v]) > allowed(part):
                return f"the first operation that differs is {describe(program, op)}"
    return "no single operation differs by more than rounding"
