"""Operations that join arrays or part them: concatenate, stack, split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from rvsm_jax.shrinking import ties
from rvsm_jax.shrinking.boxes import Box, Index, cut, union
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.rule import Facts, Rule, register
from rvsm_jax.shrinking.rules.shapes import known

Wants = Sequence[Box | None]


def _with(box: Box, axis: int, index: Index) -> Box:
    return (*box[:axis], index, *box[axis + 1 :])


def _concatenate_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,), axis = boxes, op.params["dimension"]
    assert box is not None
    wants, start = [], 0
    for shape in op.shapes:
        index = box[axis]
        stop = start + shape[axis]
        inside = None if index is None else index[(index >= start) & (index < stop)] - start
        wants.append(_with(box, axis, inside))
        start = stop
    return wants


def _concatenate_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    present = [x for x in operands if x is not None]
    return [present[0] if len(present) == 1 else lax.concatenate(present, op.params["dimension"])]


def _stack_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,), axis = boxes, op.params["axis"]
    assert box is not None
    rest = (*box[:axis], *box[axis + 1 :])
    return [rest if box[axis] is None or k in box[axis] else None for k in range(len(op.shapes))]


def _stack_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    axis = op.params["axis"]
    return [lax.concatenate([lax.expand_dims(x, (axis,)) for x in operands if x is not None], axis)]


def _split_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    axis, want, start = op.params["axis"], None, 0
    for box, size in zip(boxes, op.params["sizes"], strict=True):
        if box is not None:
            inside = np.arange(size) if box[axis] is None else box[axis]
            want = union(want, _with(box, axis, start + inside))
        start += int(size)
    return [want]


def _split_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    (x,), (want,), axis, start = operands, wants, op.params["axis"], 0
    parts: list[Any] = []
    assert want is not None
    for box, size in zip(boxes, op.params["sizes"], strict=True):
        if box is None:
            parts.append(None)
        elif op.grows[0][axis]:
            parts.append(cut(lax.slice_in_dim(x, start, start + int(size), 1, axis), _with(want, axis, None), box))
        else:
            inside = np.arange(size) if box[axis] is None else box[axis]
            parts.append(cut(x, want, _with(box, axis, start + inside)))
        start += int(size)
    return parts


register("concatenate", Rule(known, _concatenate_needed, _concatenate_emit, ties=ties.concatenated))
register("stack", Rule(known, _stack_needed, _stack_emit, ties=ties.stacked))
register("split", Rule(known, _split_needed, _split_emit, ties=ties.parted))
