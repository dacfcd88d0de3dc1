"""Convolutions and products: of what they sum over only the indices with a weight and an input that are not zero.

    y[.., o] = sum over c of x[.., c] w[c, o]

c is read where some wanted o has w[c, o] != 0 and x[.., c] is not known to be zero. A constant channel c that is not
read contributes const_c sum of w[c, o]: next to a convolution's border less, so that it is added as a convolution of
an image of ones, exact for any padding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking import ties
from rvsm_jax.shrinking.boxes import Box, axis_of, cut, small_shape, take, whole
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.rule import WHOLE, Facts, Known, Rule, register


def known(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    """An entry is unknown where an unknown entry meets one that is not known to be zero."""
    x, w = inputs
    value = op.bind(x.value, w.value)[0]
    if x.unknown is None and w.unknown is None:
        return [Known(value, None)]

    def meets(a: jax.Array, b: jax.Array) -> jax.Array:
        floats = a.astype(jnp.float32), b.astype(jnp.float32)
        return op.bind(*floats, preferred_element_type=None)[0] > 0

    unknown = jnp.zeros(op.out_shapes[0], bool)
    if x.unknown is not None:
        unknown = unknown | meets(x.unknown, w.active)
    if w.unknown is not None:
        unknown = unknown | meets(x.active, w.unknown)
    return [Known(jnp.where(unknown, jnp.zeros((), value.dtype), value), unknown)]


def convolution_needed(op: Operation, facts: Facts, boxes: Sequence[Box | None]) -> Sequence[Box | None]:
    """Filters of the wanted channels; of the images, channels with weights in them."""
    spec, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    if op.params["batch_group_count"] != 1:
        return WHOLE.needed(op, facts, boxes)
    (box,) = boxes
    assert box is not None
    (_, x_axis, *_), (o_axis, i_axis, *_) = spec.lhs_spec, spec.rhs_spec
    outputs, inputs = op.shapes[1][o_axis], op.shapes[1][i_axis]
    weights = _any_but(facts.active(1), (o_axis, i_axis))
    weights = weights if o_axis < i_axis else weights.T
    readable = _any_but(facts.active(0), (x_axis,))
    wanted = axis_of(box[spec.out_spec[1]], outputs)
    if groups == 1:
        constant, _ = _foldable_channels(op, facts)
        c = facts.widened(np.flatnonzero(weights[wanted].any(0) & readable & ~constant))
        o, i = wanted, c
    else:
        each = outputs // groups
        kept, within = np.unique(wanted // each), np.unique(wanted % each)
        o = _grid(kept, within, each)
        used = weights[o].reshape(len(kept), len(within), inputs).any(1)
        i = np.flatnonzero((used & readable.reshape(groups, inputs)[kept]).any(0))
        c = _grid(kept, i, inputs)
    x, w = list(whole(len(op.shapes[0]))), list(whole(len(op.shapes[1])))
    x[x_axis], w[o_axis], w[i_axis] = c, o, i
    return [tuple(x), tuple(w)]


def convolution_emit(
    op: Operation,
    operands: Sequence[Any],
    wants: Sequence[Box | None],
    boxes: Sequence[Box | None],
    folded: Any = None,
) -> Sequence[Any]:
    """The convolution of the channels read, with the filters wanted."""
    if op.params["batch_group_count"] != 1:
        return WHOLE.emit(op, operands, wants, boxes)
    (box,), (x, w) = boxes, operands
    assert box is not None
    spec = op.params["dimension_numbers"]
    if x is None or w is None:
        y = jnp.zeros(small_shape(op.out_shapes[0], box), op.dtypes[0])
    else:
        assert wants[1] is not None
        groups = 1 if op.params["feature_group_count"] == 1 else x.shape[spec.lhs_spec[1]] // w.shape[spec.rhs_spec[1]]
        made = list(whole(len(box)))
        made[spec.out_spec[1]] = wants[1][spec.rhs_spec[0]]
        y = cut(op.bind(x, w, feature_group_count=groups)[0], tuple(made), box)
    if folded is None:
        return [y]
    ones = list(op.shapes[0])
    ones[spec.lhs_spec[0]] = ones[spec.lhs_spec[1]] = 1
    constant = list(whole(len(box)))
    constant[spec.out_spec[1]] = box[spec.out_spec[1]]
    z = op.bind(jnp.ones(ones, folded.dtype), folded, feature_group_count=1)[0]
    return [y + cut(z, tuple(constant), box).astype(y.dtype)]


def convolution_fold(
    op: Operation, facts: Facts, wants: Sequence[Box | None], boxes: Sequence[Box | None]
) -> np.ndarray | None:
    """sum over the constant channels c of const_c w[.., c, o]: a kernel that reads an image of ones."""
    if op.params["feature_group_count"] != 1 or op.params["batch_group_count"] != 1:
        return None
    spec, (box,) = op.params["dimension_numbers"], boxes
    assert box is not None
    constant, value = _foldable_channels(op, facts)
    if not constant.any():
        return None
    w = take(np.asarray(facts.value(1)), box[spec.out_spec[1]], spec.rhs_spec[0])
    constant = constant & ~_read(wants[0], spec.lhs_spec[1], len(constant))
    return _weighted(w, np.where(constant, value, 0), spec.rhs_spec[1], keepdims=True)


def _foldable_channels(op: Operation, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Which channels are constant, if the kernel is known."""
    axis = op.params["dimension_numbers"].lhs_spec[1]
    constant, value = facts.constants(0, axis)
    return constant & (not facts.depends(1)), value


def convolution_contracted(op: Operation) -> Mapping[int, int]:
    """The channels read."""
    spec, plain = op.params["dimension_numbers"], op.params["feature_group_count"] == op.params["batch_group_count"]
    return {0: spec.lhs_spec[1], 1: spec.rhs_spec[1]} if plain else {}


def convolution_cost(op: Operation, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """Outputs x weights of a filter."""
    return math.prod(out) * math.prod(shapes[1]) // max(shapes[1][op.params["dimension_numbers"].rhs_spec[0]], 1)


def product_needed(op: Operation, facts: Facts, boxes: Sequence[Box | None]) -> Sequence[Box | None]:
    """Rows and columns of the wanted entries; of the sum, terms that are not known to be zero."""
    (contracted, batched), (box,) = op.params["dimension_numbers"], boxes
    assert box is not None
    wants, terms = [], []
    first = len(batched[0])
    for position, (axes, batch) in enumerate(zip(contracted, batched, strict=True)):
        shape = op.shapes[position]
        free = [a for a in range(len(shape)) if a not in (*axes, *batch)]
        want = list(whole(len(shape)))
        for axis, index in [*zip(batch, box, strict=False), *zip(free, box[first:], strict=False)]:
            want[axis] = index
        first += len(free)
        part = facts.active(position)
        for axis, index in enumerate(want):
            part = np.asarray(take(part, index, axis))
        part = _any_but(part, axes)
        order = np.argsort(np.argsort(axes))
        terms.append(part.transpose(order) if len(axes) > 1 else part)
        wants.append(want)
    used = terms[0] & terms[1]
    for position in (0, 1):
        used = used & ~_foldable(op, facts, position)[0]
    for k in range(used.ndim):
        index = np.flatnonzero(used.any(tuple(a for a in range(used.ndim) if a != k)))
        index = facts.widened(index) if used.ndim == 1 else index
        wants[0][contracted[0][k]] = wants[1][contracted[1][k]] = index
    return [tuple(want) for want in wants]


def product_emit(
    op: Operation,
    operands: Sequence[Any],
    wants: Sequence[Box | None],
    boxes: Sequence[Box | None],
    folded: Any = None,
) -> Sequence[Any]:
    """The product of the smaller arrays."""
    (box,) = boxes
    assert box is not None
    if any(x is None for x in operands):
        y = jnp.zeros(small_shape(op.out_shapes[0], box), op.dtypes[0])
    else:
        y = op.bind(*operands)[0]
    return [y if folded is None else y + folded.astype(y.dtype)]


def product_fold(
    op: Operation, facts: Facts, wants: Sequence[Box | None], boxes: Sequence[Box | None]
) -> np.ndarray | None:
    """sum over the constant terms c of const_c w[c, o], of the output's rank."""
    (contracted, _), (box,) = op.params["dimension_numbers"], boxes
    assert box is not None
    for position in (0, 1):
        constant, value = _foldable(op, facts, position)
        if not constant.any():
            continue
        other = 1 - position
        axis, rank = contracted[other][0], len(op.shapes[other])
        constant = constant & ~_read(wants[position], contracted[position][0], len(constant))
        y = _weighted(np.asarray(facts.value(other)), np.where(constant, value, 0), axis, keepdims=False)
        ahead = 0 if other == 0 else len(box) - (rank - 1)
        for a in range(rank - 1):
            y = np.asarray(take(y, box[ahead + a], a))
        return y.reshape((1,) * ahead + y.shape + (1,) * (len(box) - ahead - y.ndim))
    return None


def product_contracted(op: Operation) -> Mapping[int, int]:
    """The one axis summed over."""
    (left, right), _ = op.params["dimension_numbers"]
    return {0: left[0], 1: right[0]} if len(left) == 1 else {}


def product_cost(op: Operation, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """Outputs x terms of the sum."""
    return math.prod(out) * math.prod(shapes[0][axis] for axis in op.params["dimension_numbers"][0][0])


def _foldable(op: Operation, facts: Facts, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Which terms of the sum one operand makes constant."""
    (contracted, batched) = op.params["dimension_numbers"]
    if len(contracted[0]) != 1 or batched[0] or facts.depends(1 - position):
        return np.zeros((), bool), np.zeros(())
    return facts.constants(position, contracted[position][0])


def _weighted(w: np.ndarray, value: np.ndarray, axis: int, *, keepdims: bool) -> np.ndarray:
    shape = [1] * w.ndim
    shape[axis] = -1
    terms = w.astype(np.float64) * value.astype(np.float64).reshape(shape)
    return terms.sum(axis, keepdims=keepdims).astype(w.dtype)


def _read(want: Box | None, axis: int, size: int) -> np.ndarray:
    """Which indices of an axis are read."""
    read = np.zeros(size, bool)
    if want is not None:
        read[axis_of(want[axis], size)] = True
    return read


def _any_but(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    return np.asarray(mask.any(tuple(a for a in range(mask.ndim) if a not in axes)))


def _grid(outer: np.ndarray, inner: np.ndarray, size: int) -> np.ndarray:
    return (outer[:, None] * size + inner[None, :]).reshape(-1)


CONVOLUTION = Rule(
    known,
    convolution_needed,
    convolution_emit,
    contracted=convolution_contracted,
    cost=convolution_cost,
    fold=convolution_fold,
    ties=ties.convolution,
)
PRODUCT = Rule(
    known,
    product_needed,
    product_emit,
    contracted=product_contracted,
    cost=product_cost,
    fold=product_fold,
    ties=ties.product,
)
register("conv_general_dilated", CONVOLUTION)
register("dot_general", PRODUCT)


def _inside(op: Operation) -> Operation:
    """The one convolution that a call consists of."""
    (equation,) = op.params["call_jaxpr"].jaxpr.eqns
    return op._replace(name=equation.primitive.name, equation=equation)


def _library_emit(
    op: Operation,
    operands: Sequence[Any],
    wants: Sequence[Box | None],
    boxes: Sequence[Box | None],
    folded: Any = None,
) -> Sequence[Any]:
    """The convolution of `rvsm_jax.models` that suits the smaller operands, with its fast gradient."""
    from rvsm_jax.models.convolution import conv_general_dilated

    inside = _inside(op)
    if any(x is None for x in operands) or folded is not None:
        return convolution_emit(inside, operands, wants, boxes, folded)
    (box,), params = boxes, inside.params
    assert box is not None
    assert wants[1] is not None
    x, w = operands
    y = conv_general_dilated(
        x, w, params["window_strides"], params["padding"], dimension_numbers=params["dimension_numbers"]
    )
    return [cut(y, (None, None, None, wants[1][3]), box)]


register(
    "product_gradient_convolution",
    Rule(
        lambda op, inputs: known(_inside(op), inputs),
        lambda op, facts, boxes: convolution_needed(_inside(op), facts, boxes),
        _library_emit,
        contracted=lambda op: convolution_contracted(_inside(op)),
        cost=lambda op, shapes, out: convolution_cost(_inside(op), shapes, out),
        fold=lambda op, facts, wants, boxes: convolution_fold(_inside(op), facts, wants, boxes),
        ties=lambda op, labels, axes: ties.convolution(_inside(op), labels, axes),
    ),
)
