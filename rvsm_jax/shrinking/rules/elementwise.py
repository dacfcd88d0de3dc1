"""Operations that act on each entry by itself: every operand is needed where the result is."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rvsm_jax.shrinking.boxes import Box, small_shape
from rvsm_jax.shrinking.elementwise import ELEMENTWISE, on_part
from rvsm_jax.shrinking.program import ELEMENTWISE_CALL, Operation
from rvsm_jax.shrinking.rule import Facts, Known, Rule, register

ADDITIONS = {"add": (0, 1), "add_any": (0, 1), "add_jaxvals": (0, 1), "sub": (1,)}  # operands that may be left out
ABSORBING = {"mul": (0, 1), "div": (0,), "and": (0, 1)}  # operands whose zeros make a zero, whatever the others


def known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    """An entry is known where all operands are, or where one is a factor 0."""
    value = op.bind(*(x.value for x in inputs))[0]
    if all(x.unknown is None for x in inputs):
        return [Known(value, None)]
    shape = op.out_shapes[0]
    unknown = jnp.zeros(shape, bool)
    for x in inputs:
        unknown = unknown | jnp.broadcast_to(x.mask, shape)
    for position in ABSORBING.get(op.name, ()):
        zero = jnp.broadcast_to(~inputs[position].active, shape)
        unknown, value = unknown & ~zero, jnp.where(zero, jnp.zeros((), value.dtype), value)
    if op.name == "select_n":
        which, *cases = inputs
        chosen = [jnp.broadcast_to(x.mask, shape) for x in cases]
        unknown = jnp.broadcast_to(which.mask, shape) | jax.lax.select_n(which.value, *chosen)
    return [Known(jnp.where(unknown, jnp.zeros((), value.dtype), value), unknown)]


def needed(op: Operation, facts: Facts, boxes: Sequence[Box | None]) -> list[Box | None]:
    """The result's box of each operand; nothing of a summand that is zero there and depends on the argument."""
    (box,) = boxes
    assert box is not None
    wants: list[Box | None] = [_along(box, shape, op.out_shapes[0]) for shape in op.shapes]
    for position in ADDITIONS.get(op.name, ()):
        # A zero that does not depend on the argument is a variable that starts at zero, such as a bias.
        want = wants[position]
        if want and facts.depends(position) and not _any(facts, position, want):
            wants[position] = None
    return wants


def _along(box: Box, shape: tuple[int, ...], out: tuple[int, ...]) -> Box:
    """The box of an operand, which is a scalar, or has some axes of size 1."""
    return tuple(None if n < m else index for index, n, m in zip(box, shape, out, strict=True)) if shape else ()


def _any(facts: Facts, position: int, box: Box) -> bool:
    part = facts.active(position)
    for axis, index in enumerate(box):
        part = part if index is None else part.take(index, axis)
    return bool(part.any())


def emit(
    op: Operation, operands: Sequence[Any], wants: Sequence[Box | None], boxes: Sequence[Box | None]
) -> Sequence[Any]:
    """The operation on the smaller operands."""
    (box,) = boxes
    assert box is not None
    shape = small_shape(op.out_shapes[0], box)
    present = [x for x in operands if x is not None]
    if len(present) == len(operands):
        return op.bind(*operands)
    if not present:
        return [jnp.zeros(shape, op.dtypes[0])]
    return [jnp.broadcast_to(present[0], shape)]


def emit_call(
    op: Operation, operands: Sequence[Any], wants: Sequence[Box | None], boxes: Sequence[Box | None]
) -> Sequence[Any]:
    """The call on smaller operands, with its own derivative."""
    (box,) = boxes
    assert box is not None
    return [on_part(op.bind, op.equation, operands, small_shape(op.out_shapes[0], box))]


register(sorted(ELEMENTWISE), Rule(known, needed, emit, elementwise=True))
register(ELEMENTWISE_CALL, Rule(known, needed, emit_call, elementwise=True))
