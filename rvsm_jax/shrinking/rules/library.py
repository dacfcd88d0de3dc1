"""Convolutions of `rvsm_jax.models`, which have derivatives of their own: shrunk, each is again the one that suits."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from rvsm_jax.shrinking import ties
from rvsm_jax.shrinking.boxes import Box, cut
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.rule import Rule, register
from rvsm_jax.shrinking.rules.products import (
    convolution_contracted,
    convolution_cost,
    convolution_emit,
    convolution_fold,
    convolution_needed,
    known,
)

NHWC = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def emit(
    op: Operation,
    operands: Sequence[Any],
    wants: Sequence[Box | None],
    boxes: Sequence[Box | None],
    folded: Any = None,
) -> Sequence[Any]:
    """The convolution that suits the smaller operands, with its fast gradient."""
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


def _inside(op: Operation) -> Operation:
    """The one convolution that a call comes to."""
    equations = op.params["call_jaxpr"].jaxpr.eqns
    inner = [eqn for eqn in equations if eqn.primitive.name == "conv_general_dilated"]
    if len(equations) == len(inner) == 1:
        (equation,) = inner
    elif inner:  # several columns at once
        pads, strides = tuple(map(tuple, inner[0].params["padding"])), (inner[0].params["window_strides"][0], 1)
        equation = _plain(op.shapes, str(op.dtypes[0]), strides, pads)
    else:  # a product of whole images, of stride 1 and padded alike on both sides
        sizes = zip(op.out_shapes[0][1:3], op.shapes[0][1:3], op.shapes[1][:2], strict=True)
        each = [(out - n + k - 1) // 2 for out, n, k in sizes]
        equation = _plain(op.shapes, str(op.dtypes[0]), (1, 1), tuple((p, p) for p in each))
    return op._replace(name=equation.primitive.name, equation=equation)


@functools.cache
def _plain(shapes: Sequence[tuple[int, ...]], dtype: str, strides: Any, pads: Any) -> Any:
    """The convolution that the library computes in another way."""
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=NHWC
    )
    return jax.make_jaxpr(convolve)(*operands).jaxpr.eqns[0]


LIBRARY = Rule(
    lambda op, inputs: known(_inside(op), inputs),
    lambda op, facts, boxes: convolution_needed(_inside(op), facts, boxes),
    emit,
    contracted=lambda op: convolution_contracted(_inside(op)),
    cost=lambda op, shapes, out: convolution_cost(_inside(op), shapes, out),
    fold=lambda op, facts, wants, boxes: convolution_fold(_inside(op), facts, wants, boxes),
    ties=lambda op, labels, axes: ties.convolution(_inside(op), labels, axes),
)
register("product_gradient_convolution", LIBRARY)
register("narrow_convolution", LIBRARY)
register("image_product", LIBRARY)
