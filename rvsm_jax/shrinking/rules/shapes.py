"""Operations that rearrange entries of one array: broadcasts, transposes, reshapes, slices, padding."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from rvsm_jax.shrinking import ties
from rvsm_jax.shrinking.boxes import Box, Index, axis_of, cut, same_index, segments, small_shape, take, whole
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.rule import WHOLE, Facts, Known, Rule, register

Wants = Sequence[Box | None]


def known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    """The mask is rearranged like the values."""
    values = op.bind(*(x.value for x in inputs))
    if all(x.unknown is None for x in inputs):
        return [Known(y, None) for y in values]
    return [Known(y, mask) for y, mask in zip(values, op.bind(*(x.mask for x in inputs)), strict=True)]


def _broadcast_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    axes, out = op.params["broadcast_dimensions"], op.out_shapes[0]
    pairs = zip(op.shapes[0], axes, strict=True)
    return [tuple(None if n != out[axis] else box[axis] for n, axis in pairs)]


def _broadcast_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    (box,) = boxes
    assert box is not None
    return op.bind(*operands, shape=small_shape(op.out_shapes[0], box))


def _transpose_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    want: list[Index] = [None] * len(box)
    for axis, source in enumerate(op.params["permutation"]):
        want[source] = box[axis]
    return [tuple(want)]


def _same_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    return op.bind(*operands)


def _squeeze_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    kept, gone = iter(box), op.params["dimensions"]
    return [tuple(None if axis in gone else next(kept) for axis in range(len(op.shapes[0])))]


def _reverse_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    turned, shape = op.params["dimensions"], op.shapes[0]
    axes = enumerate(box)
    return [tuple(i if i is None or a not in turned else shape[a] - 1 - i[::-1] for a, i in axes)]


def _tile_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    return [tuple(index if r == 1 else None for index, r in zip(box, op.params["reps"], strict=True))]


def _cut_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    """For operations along whole axes: those axes are cut afterwards."""
    (box,), (want,) = boxes, wants[:1]
    assert box is not None
    assert want is not None
    return [cut(op.bind(*operands)[0], want, box)]


def _reshape_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    if _odd_reshape(op):
        return WHOLE.needed(op, facts, boxes)
    (box,) = boxes
    assert box is not None
    shape, out = op.shapes[0], op.out_shapes[0]
    want: list[Index] = [None] * len(shape)
    for axes, out_axes in segments(shape, out):
        if all(box[a] is None for a in out_axes):
            continue
        if any(op.grows[0][a] for a in axes):
            continue
        mask = np.zeros([out[a] for a in out_axes], bool)
        mask[np.ix_(*(axis_of(box[a], out[a]) for a in out_axes))] = True
        mask = mask.reshape([shape[a] for a in axes])
        for k, a in enumerate(axes):
            want[a] = np.flatnonzero(mask.any(tuple(m for m in range(len(axes)) if m != k)))
    return [tuple(want)]


def _reshape_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    """Axes of one run are merged, the entries wanted are taken, and the new axes split off."""
    if _odd_reshape(op):
        return WHOLE.emit(op, operands, wants, boxes)
    (x,), (want,), (box,) = operands, wants, boxes
    assert box is not None
    assert want is not None
    shape, out = op.shapes[0], op.out_shapes[0]
    runs = segments(shape, out)
    x = x.reshape([math.prod(small_shape(shape, want)[a] for a in axes) for axes, _ in runs])
    made: list[Index] = list(box)
    for k, (axes, out_axes) in enumerate(runs):
        if any(op.grows[0][a] for a in axes):
            for a in out_axes:
                made[a] = None
            continue
        have = _flat([want[a] for a in axes], [shape[a] for a in axes])
        wish = _flat([box[a] for a in out_axes], [out[a] for a in out_axes])
        if not same_index(have, wish):
            x = take(x, np.searchsorted(have, wish), k)
    return [cut(x.reshape(small_shape(out, tuple(made))), tuple(made), box)]


def _odd_reshape(op: Operation) -> bool:
    return op.params["dimensions"] is not None or 0 in op.shapes[0]


def _flat(indices: Sequence[Index], sizes: Sequence[int]) -> np.ndarray:
    """The positions of a box in the flattened array."""
    flat = np.zeros(1, int)
    for index, size in zip(indices, sizes, strict=True):
        flat = (flat[:, None] * size + axis_of(index, size)[None, :]).reshape(-1)
    return flat


def _slice_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    want: list[Index] = []
    for a, (start, _, step) in enumerate(_bounds(op)):
        index = axis_of(box[a], op.out_shapes[0][a])
        want.append(None if op.grows[0][a] else start + step * index)
    return [tuple(want)]


def _slice_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    """What is wanted of a static axis is the slice; an axis that grows is sliced here."""
    (x,) = operands
    for a, (start, limit, step) in enumerate(_bounds(op)):
        if op.grows[0][a]:
            x = lax.slice_in_dim(x, start, limit, step, a)
    return [x]


def _bounds(op: Operation) -> list[tuple[int, int, int]]:
    p = op.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    return list(zip(p["start_indices"], p["limit_indices"], steps, strict=True))


def _pad_known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    x, filler = inputs
    value = op.bind(x.value, filler.value)[0]
    if x.unknown is None and filler.unknown is None:
        return [Known(value, None)]
    return [Known(value, op.bind(x.mask, filler.mask)[0])]


def _sources(op: Operation, axis: int, index: np.ndarray) -> np.ndarray:
    """For indices of a padded axis, where they come from; -1 for padding."""
    low, _, interior = op.params["padding_config"][axis]
    at, rest = np.divmod(index - low, interior + 1)
    return np.where((rest == 0) & (at >= 0) & (at < op.shapes[0][axis]), at, -1)


def _pad_needed(op: Operation, facts: Facts, boxes: Wants) -> Wants:
    (box,) = boxes
    assert box is not None
    want: list[Index] = []
    for a, index in enumerate(box):
        found = None if index is None else _sources(op, a, index)
        want.append(None if found is None or op.params["padding_config"][a][2] else found[found >= 0])
    return [tuple(want), ()]


def _pad_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    """A cut axis is padded by as many as are wanted in front and behind."""
    (x, filler), (box,) = operands, boxes
    assert box is not None
    if x is None:
        return [jnp.broadcast_to(filler, small_shape(op.out_shapes[0], box))]
    config, made = list(op.params["padding_config"]), list(box)
    for a, index in enumerate(box):
        if index is None:
            continue
        if config[a][2]:
            made[a] = None
            continue
        inside = np.flatnonzero(_sources(op, a, index) >= 0)
        config[a] = (int(inside[0]), len(index) - 1 - int(inside[-1]), 0)
    return [cut(op.bind(x, filler, padding_config=tuple(config))[0], tuple(made), box)]


def _iota_known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    return [Known(jnp.asarray(op.bind(*(x.value for x in inputs))[0]), None)]


def _iota_emit(op: Operation, operands: Sequence[Any], wants: Wants, boxes: Wants) -> Sequence[Any]:
    (box,) = boxes
    assert box is not None
    return [cut(op.bind(*operands)[0], whole(len(box)), box)]


register("broadcast_in_dim", Rule(known, _broadcast_needed, _broadcast_emit, ties=ties.broadcast))
register("transpose", Rule(known, _transpose_needed, _same_emit, ties=ties.transpose))
register("squeeze", Rule(known, _squeeze_needed, _same_emit, ties=ties.squeeze))
register("rev", Rule(known, _reverse_needed, _same_emit, ties=ties.reverse))
register("tile", Rule(known, _tile_needed, _cut_emit, ties=ties.along))
register("reshape", Rule(known, _reshape_needed, _reshape_emit, ties=ties.reshape))
register("slice", Rule(known, _slice_needed, _slice_emit, ties=ties.sliced))
register("pad", Rule(_pad_known, _pad_needed, _pad_emit, ties=ties.padded))
register("iota", Rule(_iota_known, lambda op, facts, boxes: [() for _ in op.shapes], _iota_emit, ties=ties.free))
