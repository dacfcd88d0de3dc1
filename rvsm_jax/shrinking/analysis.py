"""Known values, forwards: which entries of which values do not depend on the argument, and what they are.

The variables are known, the argument is not. Through a product or a convolution an entry is unknown if an unknown entry
meets one that is not known to be zero; through an elementwise operation, if an operand is unknown. The whole pass is
compiled as one function.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.program import Operation, Program
from rvsm_jax.shrinking.rule import Facts, Known, rule_of


class Analysis(NamedTuple):
    """What is known of every value of a program.

    Attributes:
      active: by value, the mask of entries that are not known to be zero.
      known: by value, the `Known` entries; only where constants are folded, else empty.
      depends: the values that depend on the argument.
    """

    active: dict[int, jax.Array]
    known: dict[int, Known]
    depends: frozenset[int]


Analyst = Callable[[Sequence[Any], Sequence[Any], bool], Analysis]


def analyst(program: Program) -> Analyst:
    """The evaluation of a program as far as the variables alone decide.

    Args:
      program: of the probe's batch size.

    Returns:
      ``(leaves, fixed, fold) -> analysis``: leaves are the variables; fixed has for each a mask of the zeros that are
      not pruning and may become anything, or None; fold keeps the known values beside the masks.
    """
    depends = dependent(program)
    read = sorted({v for op in program.operations for v in op.inputs})

    @functools.partial(jax.jit, static_argnums=2, compiler_options=quick_compilation())
    def run(leaves: Sequence[Any], fixed: Sequence[Any], fold: bool) -> tuple[dict[int, Any], dict[int, Any]]:
        values = {v: Known(jnp.asarray(x), mask) for v, x, mask in zip(program.leaves, leaves, fixed, strict=True)}
        for v in program.arguments:
            aval = program.avals[v]
            values[v] = Known(jnp.zeros(aval.shape, aval.dtype), jnp.ones(aval.shape, bool))
        for v, x in program.constants.items():
            values[v] = Known(jnp.asarray(x, program.avals[v].dtype), None)
        for op in program.operations:
            found = rule_of(op).known(op, [values[v] for v in op.inputs])
            values |= dict(zip(op.outputs, found, strict=True))
        return {v: values[v].active for v in read}, {v: values[v] for v in read} if fold else {}

    def analyse(leaves: Sequence[Any], fixed: Sequence[Any], fold: bool) -> Analysis:
        active, known = run(list(leaves), list(fixed), fold)
        return Analysis(active, known, depends)

    return analyse


def quick_compilation() -> dict[str, Any] | None:
    """Compiler options for what runs once."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def dependent(program: Program) -> frozenset[int]:
    """The values that are computed from the argument."""
    depends = set(program.arguments)
    for op in program.operations:
        if depends.intersection(op.inputs):
            depends.update(op.outputs)
    return frozenset(depends)


def facts_of(op: Operation, analysis: Analysis, widened: Callable[[np.ndarray], np.ndarray]) -> Facts:
    """What a rule may ask about an operation."""

    def constants(position: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
        v, size = op.inputs[position], op.shapes[position][axis]
        if v not in analysis.known or v not in analysis.depends:
            return np.zeros(size, bool), np.zeros(size)
        unknown, value = (np.asarray(x) for x in (analysis.known[v].mask, analysis.known[v].value))
        rest = tuple(a for a in range(unknown.ndim) if a != axis)
        least, most = value.min(rest), value.max(rest)
        return ~unknown.any(rest) & (least == most) & (most != 0), most

    return Facts(
        lambda position: np.asarray(analysis.active[op.inputs[position]]),
        lambda position: op.inputs[position] in analysis.depends,
        constants,
        widened,
        lambda position: np.asarray(analysis.known[op.inputs[position]].value),
    )
