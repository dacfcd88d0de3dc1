"""Boxes, backwards: what is kept of every value, and what every operation reads of its operands.

The outputs are needed whole. Each operation, from the last to the first, says which box of each operand its result
needs; a value keeps the union over its readers, and each reader cuts its own part out of it.

Cutting channels out of an array costs time. Where a convolution or product would read its own selection of channels of
a wider array, elementwise operations in between, that selection is made only if it saves enough multiply-adds, where
an odd width counts as the next multiple of 8: a 3x3 convolution of 9 channels is no faster than one of 16.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rvsm_jax.shrinking.analysis import Analysis, facts_of
from rvsm_jax.shrinking.boxes import Box, Index, axis_of, is_empty, normalised, segments, small_shape, union, whole
from rvsm_jax.shrinking.program import Operation, Program
from rvsm_jax.shrinking.rule import rule_of

GATHER_COST = 32  # multiply-adds in the time of gathering one entry, on a CPU
LANES = 8  # channels take the time of the next multiple of it
Read = Mapping[int, np.ndarray]


class Plan(NamedTuple):
    """What a small program keeps.

    Attributes:
      boxes: by value; None for a value that nobody needs.
      wants: by operation, the box of each operand; None for an operation that is left out.
      folded: by operation, what constant channels contribute.
    """

    boxes: tuple[Box | None, ...]
    wants: tuple[tuple[Box | None, ...] | None, ...]
    folded: dict[int, np.ndarray]


def plan(
    program: Program,
    analysis: Analysis,
    *,
    round_to: int = 1,
    gathers: str = "paying",
    outputs: Mapping[int, Box] | None = None,
    free: frozenset[int] = frozenset(),
) -> Plan:
    """The boxes of a program.

    Args:
      program: of the probe's batch size, with growth.
      analysis: what is known of its values.
      round_to: numbers of channels read are rounded up to its multiples.
      gathers: "paying" or "always": whether to read a whole array where selecting from it costs more than it saves.
      outputs: boxes of outputs that are not needed whole, by place.
      free: places of outputs that nobody asks for.

    Returns:
      The plan.
    """
    producers = {v: i for i, op in enumerate(program.operations) for v in op.outputs}
    wanted = {k: whole(len(program.shape(v))) for k, v in enumerate(program.outputs) if k not in free}
    wanted |= outputs or {}
    read: dict[int, np.ndarray] = {}
    while True:
        found = _backward(program, analysis, wanted, read, round_to, producers)
        wider = {} if gathers == "always" else _not_paying(program, analysis, found, producers)
        if not wider:
            return found._replace(folded=_folds(program, analysis, found))
        read |= wider


def _backward(
    program: Program,
    analysis: Analysis,
    wanted: Mapping[int, Box],
    read: Read,
    round_to: int,
    producers: Mapping[int, int],
) -> Plan:
    boxes: list[Box | None] = [None] * len(program.avals)
    wants: list[tuple[Box | None, ...] | None] = [None] * len(program.operations)
    for k, box in wanted.items():
        v = program.outputs[k]
        boxes[v] = union(boxes[v], box)
    for i in reversed(range(len(program.operations))):
        op = program.operations[i]
        if all(boxes[v] is None for v in op.outputs):
            continue
        if round_to > 1 and op.outputs[0] in analysis.depends and (rule_of(op).elementwise or rule_of(op).contracted):
            (v,), (shape,), (grows,) = op.outputs, op.out_shapes, op.out_grows
            boxes[v] = _rounded_box(normalised(boxes[v] or (), shape, grows), shape, round_to)
        outs = [boxes[v] for v in op.outputs]
        rounded = functools.partial(_rounded, program, producers, op, read.get(i), round_to, analysis.depends)
        asked = rule_of(op).needed(op, facts_of(op, analysis, rounded), outs)
        wants[i] = tuple(_settled(*three) for three in zip(asked, op.shapes, op.grows, strict=True))
        for v, want in zip(op.inputs, wants[i] or (), strict=True):
            boxes[v] = union(boxes[v], want)
    for v in program.constants:
        boxes[v] = None if boxes[v] is None else whole(len(program.shape(v)))
    for v in program.leaves:  # one that nobody needs is kept empty
        boxes[v] = (np.zeros(0, int),) * len(program.shape(v)) if boxes[v] is None else boxes[v]
    shapes_boxes = zip(program.avals, boxes, strict=True)
    tidy = [None if box is None else normalised(box, a.shape, (False,) * len(a.shape)) for a, box in shapes_boxes]
    return Plan(tuple(tidy), tuple(wants), {})


def _rounded_box(box: Box, shape: tuple[int, ...], round_to: int) -> Box:
    pairs = zip(box, shape, strict=True)
    return tuple(index if index is None else _filled(index, n, round_to) for index, n in pairs)


def _settled(want: Box | None, shape: tuple[int, ...], grows: tuple[bool, ...]) -> Box | None:
    if want is None:
        return None
    box = normalised(want, shape, grows)
    return None if is_empty(box) else box


def _rounded(
    program: Program,
    producers: Mapping[int, int],
    op: Operation,
    read: np.ndarray | None,
    round_to: int,
    depends: frozenset[int],
    index: np.ndarray,
) -> np.ndarray:
    """The channels to read for those that must be: with those that are read anyway, and rounded up."""
    if read is not None:
        index = np.union1d(index, read)
    axes = (rule_of(op).contracted or (lambda op: {}))(op)
    position = next((p for p in axes if op.inputs[p] in depends), None)
    if position is None or round_to == 1 or not len(index):
        return index
    return _round_along(program, producers, depends, op.inputs[position], axes[position], index, round_to)


def _round_along(
    program: Program,
    producers: Mapping[int, int],
    depends: frozenset[int],
    v: int,
    axis: int,
    index: np.ndarray,
    round_to: int,
) -> np.ndarray:
    """Indices of one axis of a value, rounded up; of a merged axis, those of the axes that were merged."""
    size = program.shape(v)[axis]
    source = _elementwise_sources(program, producers, depends, v)[-1]
    maker = program.operations[producers[source]] if source in producers else None
    if maker is not None and maker.name == "concatenate" and maker.params["dimension"] == axis:
        parts, start = [], 0
        for u, shape in zip(maker.inputs, maker.shapes, strict=True):
            inside = index[(index >= start) & (index < start + shape[axis])] - start
            if len(inside):
                parts.append(start + _round_along(program, producers, depends, u, axis, inside, round_to))
            start += shape[axis]
        return np.concatenate(parts)
    if maker is None or maker.name != "reshape":
        return _filled(index, size, round_to)
    axes, _ = next(run for run in segments(maker.shapes[0], maker.out_shapes[0]) if axis in run[1])
    sizes = [maker.shapes[0][a] for a in axes]
    if sum(n > 1 for n in sizes) < 2 or any(maker.grows[0][a] for a in axes):
        return _filled(index, size, round_to)
    flat = np.zeros(1, int)
    for indices, n in zip(np.unravel_index(index, sizes), sizes, strict=True):
        flat = (flat[:, None] * n + _filled(np.unique(indices), n, round_to)[None, :]).reshape(-1)
    return flat


def _filled(index: np.ndarray, size: int, round_to: int) -> np.ndarray:
    """The first indices that are missing, added until their number is a multiple, or all are there."""
    missing = np.setdiff1d(np.arange(size), index)
    return np.union1d(index, missing[: -len(index) % round_to])


def _elementwise_sources(program: Program, producers: Mapping[int, int], depends: frozenset[int], v: int) -> list[int]:
    """The value and those before it that it is made of entry by entry, as long as there is one."""
    chain = [v]
    while chain[-1] in producers:
        op = program.operations[producers[chain[-1]]]
        sources = [u for u in op.inputs if u in depends and program.shape(u) == program.shape(v)]
        if not rule_of(op).elementwise or len(set(sources)) != 1:
            break
        chain.append(sources[0])
    return chain


def _not_paying(
    program: Program, analysis: Analysis, found: Plan, producers: Mapping[int, int]
) -> dict[int, np.ndarray]:
    """Operations that had better read all channels that are stored, with those channels."""
    wider = {}
    for i, (op, wants) in enumerate(zip(program.operations, found.wants, strict=True)):
        rule = rule_of(op)
        if wants is None or rule.contracted is None or rule.cost is None:
            continue
        axes = rule.contracted(op)
        position = next((p for p in axes if op.inputs[p] in analysis.depends), None)
        if position is None or None in wants:
            continue
        want = wants[position]
        assert want is not None
        v, axis = op.inputs[position], axes[position]
        index, size = axis_of(want[axis], program.shape(v)[axis]), program.shape(v)[axis]
        stored: Index = index
        for u in _elementwise_sources(program, producers, analysis.depends, v):
            box = found.boxes[u]
            if box is not None and len(axis_of(box[axis], size)) > len(axis_of(stored, size)):
                stored = box[axis]
        stored = axis_of(stored, size)
        if len(stored) > len(index) and not _pays(op, found, wants, (position, axis), len(stored)):
            wider[i] = stored
    return wider


def _pays(op: Operation, found: Plan, wants: tuple[Box | None, ...], place: tuple[int, int], stored: int) -> bool:
    """Whether the multiply-adds saved are worth the gather."""
    rule, box = rule_of(op), found.boxes[op.outputs[0]]
    assert rule.cost is not None
    assert box is not None
    shapes = [small_shape(shape, want) for shape, want in zip(op.shapes, wants, strict=True) if want is not None]
    operand, count = shapes[place[0]], shapes[place[0]][place[1]]
    cost = rule.cost(op, shapes, small_shape(op.out_shapes[0], box))
    fewer = -(-stored // LANES) - -(-count // LANES)
    return cost * fewer * LANES > count * GATHER_COST * math.prod(operand)


def _folds(program: Program, analysis: Analysis, found: Plan) -> dict[int, np.ndarray]:
    folded = {}
    for i, (op, wants) in enumerate(zip(program.operations, found.wants, strict=True)):
        fold = rule_of(op).fold
        if wants is None or fold is None or not analysis.known:
            continue
        outs: Sequence[Box | None] = [found.boxes[v] for v in op.outputs]
        array = fold(op, facts_of(op, analysis, lambda index: index), wants, outs)
        if array is not None and array.any():
            folded[i] = array
    return folded


def is_whole(box: Box | None) -> bool:
    """Whether a value is kept as it is."""
    return box is not None and all(index is None for index in box)
