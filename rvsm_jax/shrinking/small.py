"""The small program: the operations of a plan on the parts of the arrays that it keeps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rvsm_jax.shrinking.boxes import Box, cut, small_shape, whole
from rvsm_jax.shrinking.plan import Plan
from rvsm_jax.shrinking.program import Operation, Program
from rvsm_jax.shrinking.rule import rule_of

Watch = Callable[[int, Any], None]  # value, array


def stored_box(plan: Plan, value: int, rank: int) -> Box:
    """The box that is stored of a value that is needed."""
    box = plan.boxes[value]
    return whole(rank) if box is None else box


def run(
    program: Program,
    plan: Plan,
    leaves: Sequence[Any],
    arguments: Sequence[Any],
    folded: dict[int, Any],
    watch: Watch | None = None,
) -> list[Any]:
    """Evaluates a plan.

    Args:
      program: of the caller's batch size.
      plan: of the probe's.
      leaves: the small variables.
      arguments: the argument's arrays.
      folded: contributions of constant channels, by operation.
      watch: called with each value as it is made.

    Returns:
      The outputs.
    """
    values: dict[int, Any] = dict(zip(program.leaves, leaves, strict=True))
    values |= dict(zip(program.arguments, arguments, strict=True))
    values |= {v: np.asarray(x, program.avals[v].dtype) for v, x in program.constants.items()}
    for i, (op, wants) in enumerate(zip(program.operations, plan.wants, strict=True)):
        if wants is None:
            continue
        operands = [_operand(program, plan, values, v, want) for v, want in zip(op.inputs, wants, strict=True)]
        extra = {"folded": folded[i]} if i in folded else {}
        outs = rule_of(op).emit(op, operands, wants, [plan.boxes[v] for v in op.outputs], **extra)
        for v, y in zip(op.outputs, outs, strict=True):
            if plan.boxes[v] is not None:
                values[v] = y
                if watch is not None:
                    watch(v, y)
    return [values[v] if v in values else _nothing(program, v) for v in program.outputs]


def _nothing(program: Program, v: int) -> np.ndarray:
    """What is returned of an output that nobody asks for."""
    return np.zeros((0,) * len(program.shape(v)), program.avals[v].dtype)


def _operand(program: Program, plan: Plan, values: dict[int, Any], v: int, want: Box | None) -> Any:
    if want is None:
        return None
    rank = len(program.shape(v))
    stored = whole(rank) if v in program.arguments else stored_box(plan, v, rank)
    return cut(values[v], stored, want)


def operand_shapes(op: Operation, wants: Sequence[Box | None]) -> list[tuple[int, ...]]:
    """The shapes that an operation reads; zeros for what it does not read."""
    pairs = zip(op.shapes, wants, strict=True)
    return [(0,) * len(shape) if want is None else small_shape(shape, want) for shape, want in pairs]
