"""What each kind of operation ties together: which indices of which axes make one channel.

    ties(op, labels, inputs) -> outputs          labels of the operands' axes to labels of the outputs'

An operation without such a function fixes all that it touches.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rvsm_jax.shrinking.boxes import segments
from rvsm_jax.shrinking.labels import Axes, Labels
from rvsm_jax.shrinking.program import Operation

Ties = Callable[[Operation, Labels, Sequence[Axes]], Sequence[Axes]]


def fixed(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Nothing of it may be removed."""
    for axis in (a for axes in inputs for a in axes):
        labels.fix(axis)
    return [labels.fixed(shape) for shape in op.out_shapes]


def elementwise(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """An index of the result is that index of every operand."""
    arrays = [axes for axes in inputs if axes]
    if len(arrays) == 1 and [len(axis) for axis in arrays[0]] == list(op.out_shapes[0]):
        return [arrays[0]]
    out = labels.free(op.out_shapes[0])
    for axes in arrays:
        for mine, its in zip(out, axes, strict=False):
            if len(mine) == len(its):
                labels.tie(mine, its)
            else:
                labels.fix(its)
    return [out]


def broadcast(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """An axis is what it was; new ones are free."""
    (x,), out = inputs[:1], labels.free(op.out_shapes[0])
    for labels_in, axis in zip(x, op.params["broadcast_dimensions"], strict=True):
        if len(labels_in) == len(out[axis]):
            out[axis] = labels_in
        else:
            labels.fix(labels_in)
    return [out]


def transpose(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """The axes in another order."""
    return [[inputs[0][a] for a in op.params["permutation"]]]


def squeeze(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """The axes without some of one index."""
    return dropped(op, labels, inputs, op.params["dimensions"])


def dropped(op: Operation, labels: Labels, inputs: Sequence[Axes], gone: Sequence[int]) -> list[Axes]:
    """What was reduced must stay; the other axes are what they were."""
    (x,) = inputs
    for a in gone:
        labels.fix(x[a])
    return [[axis for a, axis in enumerate(x) if a not in gone] for _ in op.out_shapes]


def reduced(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """A maximum, say, is another one without an index that is zero."""
    return dropped(op, labels, inputs, op.params["axes"])


def summed(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """A sum is the same without an index that is zero."""
    (x,) = inputs
    return [[axis for a, axis in enumerate(x) if a not in op.params["axes"]]]


def reverse(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Axes turned around."""
    turned = op.params["dimensions"]
    return [[axis[::-1] if a in turned else axis for a, axis in enumerate(inputs[0])]]


def along(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """What changes along an axis, as a running sum does, must keep it; so must a window."""
    (x, *_), shape = inputs, op.out_shapes[0]
    p, rank = op.params, len(shape)
    if "axis" in p:
        changed = [a == p["axis"] for a in range(rank)]
    elif "reps" in p:
        changed = [n != 1 for n in p["reps"]]
    else:
        ones = (1,) * rank
        sizes = zip(p["window_dimensions"], p["window_strides"], p["base_dilation"] or ones, strict=True)
        changed = [s != (1, 1, 1) or tuple(pads) != (0, 0) for s, pads in zip(sizes, p["padding"], strict=True)]
    for axis in (axis for axis, yes in zip(x, changed, strict=True) if yes):
        labels.fix(axis)
    new = labels.fixed(shape)
    return [[new[a] if yes else x[a] for a, yes in enumerate(changed)]]


def reshape(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Axes merged and split."""
    shape, out = op.shapes[0], op.out_shapes[0]
    if op.params["dimensions"] is not None or 0 in shape:
        return fixed(op, labels, inputs)
    made = labels.free(out)
    for axes, out_axes in segments(shape, out):
        old, new = [inputs[0][a] for a in axes if shape[a] > 1], [b for b in out_axes if out[b] > 1]
        for one in (inputs[0][a] for a in axes if shape[a] == 1):
            labels.fix(one)
        if not old:
            continue
        origin = f"reshape of {shape} to {out}"
        flat = old[0] if len(old) == 1 else labels.merge(old, origin)
        parts = [flat] if len(new) == 1 else labels.split(flat, [out[b] for b in new], origin)
        for b, part in zip(new, parts, strict=True):
            made[b] = part
    return [made]


def sliced(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Parts of the axes."""
    p = op.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    bounds = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return [[axis[slice(*bound)] for axis, bound in zip(inputs[0], bounds, strict=True)]]


def padded(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """The axes among free ones."""
    out = labels.free(op.out_shapes[0])
    for axis, mine, (low, _, interior) in zip(inputs[0], out, op.params["padding_config"], strict=True):
        at = low + np.arange(len(axis)) * (interior + 1)
        inside = (at >= 0) & (at < len(mine))
        labels.tie(mine[at[inside]], axis[inside])
    return [out]


def concatenated(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Side by side along one axis, tied along the others."""
    joined = op.params["dimension"]
    return [_tied_but(labels, inputs, joined, np.concatenate([axes[joined] for axes in inputs]))]


def stacked(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Along a new axis that is free, tied along the others."""
    out, axis = _tied_but(labels, inputs, None, None), op.params["axis"]
    return [[*out[:axis], labels.fresh(len(inputs)), *out[axis:]]]


def _tied_but(labels: Labels, inputs: Sequence[Axes], but: int | None, instead: np.ndarray | None) -> Axes:
    first, *rest = inputs
    for axes in rest:
        for a, (mine, its) in enumerate(zip(first, axes, strict=True)):
            if a != but:
                labels.tie(mine, its)
    return [instead if a == but and instead is not None else axis for a, axis in enumerate(first)]


def parted(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Parts of one axis."""
    (x,), axis = inputs, op.params["axis"]
    parts = np.split(x[axis], np.cumsum(op.params["sizes"])[:-1])
    return [[*x[:axis], part, *x[axis + 1 :]] for part in parts]


def free(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Made of nothing that has channels."""
    return [labels.free(shape) for shape in op.out_shapes]


def product(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """Indices that are multiplied with each other are one."""
    (contracted, batched) = op.params["dimension_numbers"]
    for left, right in (*zip(*contracted, strict=True), *zip(*batched, strict=True)):
        labels.tie(inputs[0][left], inputs[1][right])
    out = [inputs[0][a] for a in batched[0]]
    for axes, summed_over, batch in zip(inputs, contracted, batched, strict=True):
        out += [axis for a, axis in enumerate(axes) if a not in (*summed_over, *batch)]
    return [out]


def convolution(op: Operation, labels: Labels, inputs: Sequence[Axes]) -> list[Axes]:
    """A filter's channels are the images', and each filter is a channel of the output; depthwise, it is both."""
    spec, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    (x, w), (x_batch, x_axis, *x_space), (o_axis, i_axis, *w_space) = inputs, spec.lhs_spec, spec.rhs_spec
    depthwise = groups > 1 and groups == len(x[x_axis])
    if op.params["batch_group_count"] != 1 or (groups != 1 and not depthwise):
        return fixed(op, labels, inputs)
    for axis in (*(x[a] for a in x_space), *(w[a] for a in w_space)):
        labels.fix(axis)
    if depthwise:
        labels.fix(w[i_axis])
        labels.tie(np.repeat(x[x_axis], len(w[o_axis]) // groups), w[o_axis])
    else:
        labels.tie(x[x_axis], w[i_axis])
    out = labels.fixed(op.out_shapes[0])
    out[spec.out_spec[0]], out[spec.out_spec[1]] = x[x_batch], w[o_axis]
    return [out]
