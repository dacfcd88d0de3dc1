"""Reductions over axes or windows: a sum needs what is not zero, any other reduction all of what it reduces."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking import ties
from rvsm_jax.shrinking.boxes import Box, Index, small_shape, take
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.rule import Facts, Known, Rule, register
from rvsm_jax.shrinking.rules.shapes import _cut_emit

Wants = Sequence[Box | None]
REDUCTIONS = ["reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"]
CUMULATIVE = ["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"]
WINDOWS = ["reduce_window_max", "reduce_window_min", "reduce_window_sum"]


def _known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    (x,) = inputs
    value = op.bind(x.value)[0]
    if x.unknown is None:
        return [Known(value, None)]
    unknown = x.unknown.any(tuple(op.params["axes"]))
    return [Known(jnp.where(unknown, jnp.zeros((), value.dtype), value), unknown)]


def _needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    kept, gone = iter(box), op.params["axes"]
    return [tuple(None if a in gone else next(kept) for a in range(len(op.shapes[0])))]


def _sum_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (want,) = _needed(op, facts, boxes)
    assert want is not None
    part, found = facts.active(0), list(want)
    for axis, index in enumerate(want):
        part = np.asarray(take(part, index, axis))
    for axis in op.params["axes"]:
        found[axis] = np.flatnonzero(part.any(tuple(a for a in range(part.ndim) if a != axis)))
    return [tuple(found)]


def _emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    if operands[0] is not None:
        return op.bind(*operands)
    (box,) = boxes
    assert box is not None
    return [jnp.zeros(small_shape(op.out_shapes[0], box), op.dtypes[0])]


def _cumulative_known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    (x,) = inputs
    value = op.bind(x.value)[0]
    if x.unknown is None:
        return [Known(value, None)]
    unknown = jnp.broadcast_to(x.unknown.any(op.params["axis"], keepdims=True), value.shape)
    return [Known(jnp.where(unknown, jnp.zeros((), value.dtype), value), unknown)]


def _cumulative_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    return [tuple(None if a == op.params["axis"] else index for a, index in enumerate(box))]


def _window_known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    (x,) = inputs
    value = op.bind(x.value)[0]
    if x.unknown is None:
        return [Known(value, None)]
    floats = x.unknown.astype(jnp.float32)
    unknown = op.bind(-floats)[0] < 0 if op.name == "reduce_window_min" else op.bind(floats)[0] > 0
    return [Known(jnp.where(unknown, jnp.zeros((), value.dtype), value), unknown)]


def _window_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,), p = boxes, op.params
    assert box is not None
    ones = (1,) * len(box)
    sizes = p["window_dimensions"], p["window_strides"], p["base_dilation"] or ones
    want: list[Index] = []
    for index, pads, *settings in zip(box, p["padding"], *sizes, strict=True):
        want.append(index if settings == [1, 1, 1] and tuple(pads) == (0, 0) else None)
    return [tuple(want)]


register("reduce_sum", Rule(_known, _sum_needed, _emit, ties=ties.summed))
register(REDUCTIONS, Rule(_known, _needed, _emit, ties=ties.reduced))
register(CUMULATIVE, Rule(_cumulative_known, _cumulative_needed, _cut_emit, ties=ties.along))
register(WINDOWS, Rule(_window_known, _window_needed, _cut_emit, ties=ties.along))
