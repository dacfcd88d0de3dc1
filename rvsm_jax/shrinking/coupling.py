"""`coupled_channels`: the groups of any network that can go as a whole, found in its jaxpr."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.coupled import Coupled, Family, Role, Slice
from rvsm_jax.shrinking.analysis import Analyst, dependent
from rvsm_jax.shrinking.boxes import axis_of
from rvsm_jax.shrinking.function import probe
from rvsm_jax.shrinking.inputs import abstract
from rvsm_jax.shrinking.labels import FIXED, Axes, Labels
from rvsm_jax.shrinking.plan import plan
from rvsm_jax.shrinking.program import Operation, Program, ShrinkError, describe
from rvsm_jax.shrinking.rule import rule_of, ties_of


def coupled_channels(fn: Callable, params: Any, example: Any) -> Coupled:
    """g = {(leaf, axis, indices)}: for each channel of a network all that writes, scales and reads it, as one group.

    Two indices belong to one channel if an operation of fn adds, multiplies or contracts them with each other, however
    many layers share them: along a residual stream all filters that write into it, all normalisations' scales and
    shifts, and all kernel slices that read it. Axes of the argument, of the outputs, of pixels, and those that an
    operation without a rule touches are no channels. What is found is tried: with one channel of every family set to
    zero, ``shrink`` must find exactly these indices removable, or the family is left out; so is a layer's only channel.

    Args:
      fn: ``fn(params, x) -> outputs`` of the tree that is trained, in evaluation mode; what else it needs, such as
        running statistics, is part of fn.
      params: the tree, or its shapes.
      example: an x, or its shape as ``jax.ShapeDtypeStruct``; its batch size does not matter.

    Returns:
      Groups for ``proximal_operator``, ``rgsm`` and the other recipes, on trees like params. ``.inner`` are those
      inside of residual blocks, ``.written`` those without the kernels that read, ``.kept`` what hinders others.

    Raises:
      ShrinkError: a ValueError, if fn cannot be traced with params and example, params hold a random key, or nothing
        in fn is a channel.

    >>> fn = lambda w, x: x @ w["in"] + jax.nn.relu(x @ w["in"] @ w["a"]) @ w["b"]
    >>> w = {"in": jnp.ones((2, 6)), "a": jnp.ones((6, 4)), "b": jnp.ones((4, 6)), "out": jnp.ones((6, 3))}
    >>> print(coupled_channels(lambda w, x: fn(w, x) @ w["out"], w, jnp.ones((1, 2))))
    6 channels written by b, in, read by a, out
    4 channels written by a, read by b
    """
    if not callable(fn):
        raise ShrinkError(f"fn must be a function fn(params, x), got {fn!r}")
    shapes = abstract(params)
    with_paths = jax.tree.leaves_with_path(shapes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    for path, (_, leaf) in zip(paths, with_paths, strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ShrinkError(f"params must not hold random keys, but {path!r} is one; keep it inside fn")
    program, analyse = probe(fn, shapes, example)
    labels, axes, kept = _labelled(program)
    found = [f for f in _families(program, labels, axes, paths) if f.family.size > 1]
    right = _removable(program, analyse, found)
    families = tuple(f.family for f, yes in zip(found, right, strict=True) if yes)
    kept = (*kept, *(str(f.family) for f, yes in zip(found, right, strict=True) if not yes))
    if not families:
        raise ShrinkError(f"fn has no channels that could go as a whole{'; kept: ' if kept else ''}{', '.join(kept)}")
    return Coupled(families, kept)


def _labelled(program: Program) -> tuple[Labels, dict[int, Axes], tuple[str, ...]]:
    """The labels of all values, and the operations through which nothing is coupled."""
    labels = Labels()
    axes: dict[int, Axes] = {}
    floats = [v for v in program.leaves if jnp.issubdtype(program.avals[v].dtype, jnp.floating)]
    axes |= {v: labels.owned(program.shape(v)) for v in floats}
    axes |= {v: labels.fixed(program.shape(v)) for v in (*program.leaves, *program.arguments) if v not in axes}
    axes |= {v: labels.free(program.shape(v)) for v in program.constants}
    kept: dict[str, None] = {}
    for op in program.operations:
        inputs = [axes[v] for v in op.inputs]
        before = _open(labels, inputs)
        axes |= dict(zip(op.outputs, ties_of(op)(op, labels, inputs), strict=True))
        if before and not rule_of(op).elementwise and not _open(labels, inputs):
            kept[describe(program, op)] = None
    for axis in (axis for v in program.outputs if v not in program.leaves for axis in axes[v]):
        labels.fix(axis)
    kept |= dict.fromkeys(labels.settle())
    return labels, axes, tuple(kept)


def _open(labels: Labels, inputs: Sequence[Axes]) -> bool:
    """Whether something of the operands is not fixed."""
    return any(labels.roots(axis).any() for axes in inputs for axis in axes if len(axis) > 1)


class _Found(NamedTuple):
    """A family, and for each of its slices the leaf's number."""

    family: Family
    leaves: tuple[int, ...]


def _families(program: Program, labels: Labels, axes: dict[int, Axes], paths: Sequence[str]) -> list[_Found]:
    """Channels by the leaves and axes that they consist of, and by how many indices of each."""
    roles = _roles(program, labels, axes)
    found: dict[int, dict[tuple[int, int], list[int]]] = {}
    for leaf, v in enumerate(program.leaves):
        for axis, its in enumerate(axes[v]):
            for index, root in enumerate(labels.roots(its).tolist()):
                if root != FIXED:
                    found.setdefault(root, {}).setdefault((leaf, axis), []).append(index)
    alike: dict[Any, list[int]] = {}
    for root, slices in found.items():
        alike.setdefault(tuple((place, len(indices)) for place, indices in slices.items()), []).append(root)
    families = []
    for signature, roots in alike.items():
        parts = []
        for (leaf, axis), _ in signature:
            channels = np.full(program.shape(program.leaves[leaf])[axis], -1)
            for number, root in enumerate(roots):
                channels[found[root][leaf, axis]] = number
            parts.append(Slice(paths[leaf], axis, channels, roles.get((leaf, axis), "scales")))
        if any(part.role == "writes" for part in parts):
            families.append(_Found(Family(len(roots), tuple(parts)), tuple(leaf for (leaf, _), _ in signature)))
    turn = {v: k for k, v in reversed(list(enumerate(v for op in program.operations for v in op.inputs)))}
    return sorted(families, key=lambda f: min(turn.get(program.leaves[leaf], len(turn)) for leaf in f.leaves))


def _roles(program: Program, labels: Labels, axes: dict[int, Axes]) -> dict[tuple[int, int], Role]:
    """Which axes of the variables are read from, and which written to, by products with values of the argument."""
    depends, sources = dependent(program), {v: frozenset([leaf]) for leaf, v in enumerate(program.leaves)}
    roles: dict[tuple[int, int], Role] = {}
    for op in program.operations:
        used = frozenset[int]().union(*(sources.get(v, frozenset()) for v in op.inputs))
        if not depends.intersection(op.inputs):
            sources |= dict.fromkeys(op.outputs, used)
            continue
        given = [v for v in op.inputs if v not in depends]
        if rule_of(op).cost is None or len(given) != 1:
            continue
        for leaf, (axis, role) in itertools.product(used, _kernel_roles(op, op.inputs.index(given[0]))):
            ids = axes[given[0]][axis]
            own = axes[program.leaves[leaf]]
            same = [a for a, its in enumerate(own) if np.isin(its, ids).any()]
            tied = [a for a, its in enumerate(own) if _tied(labels, its, ids)]
            roles |= {(leaf, a): role for a in same or tied if (leaf, a) not in roles}
    return roles


def _kernel_roles(op: Operation, position: int) -> list[tuple[int, Role]]:
    """Of a product's operand the axes that it shares with the result alone, and with the other operand alone."""
    labels = Labels()
    inputs = [labels.free(shape) for shape in op.shapes]
    (out,) = ties_of(op)(op, labels, inputs)
    others = out, inputs[1 - position]
    shared = [[any(_tied(labels, mine, its) for its in them) for mine in inputs[position]] for them in others]
    pairs = enumerate(zip(*shared, strict=True))
    return [(axis, "writes" if made else "reads") for axis, (made, met) in pairs if made != met]


def _tied(labels: Labels, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether some index of one axis is some index of the other, and not fixed."""
    return bool((set(labels.roots(a).tolist()) & set(labels.roots(b).tolist())) - {FIXED})


def _removable(program: Program, analyse: Analyst, families: Sequence[_Found]) -> list[bool]:
    """For each family, whether its first channel and nothing else can be removed when the first of each are zero."""
    rng = np.random.default_rng(0)
    shapes = [(program.shape(v), program.avals[v].dtype) for v in program.leaves]
    leaves = [np.asarray(rng.uniform(0.5, 1.5, shape)).astype(dtype) for shape, dtype in shapes]
    kept = [[np.ones(n, bool) for n in shape] for shape, _ in shapes]
    for family, numbers in families:
        for leaf, s in zip(numbers, family.slices, strict=True):
            kept[leaf][s.axis] &= s.channels != 0
    for leaf, masks in enumerate(kept):
        for axis, mask in enumerate(masks):
            leaves[leaf] *= mask.reshape([-1 if a == axis else 1 for a in range(leaves[leaf].ndim)])
    facts = analyse(leaves, [None] * len(leaves), False)
    free = frozenset(k for k, v in enumerate(program.outputs) if v in program.leaves)
    boxes = plan(program, facts, gathers="always", free=free).boxes

    def as_expected(leaf: int, axis: int) -> bool:
        box = boxes[program.leaves[leaf]]
        expected = np.flatnonzero(kept[leaf][axis])
        return box is not None and np.array_equal(axis_of(box[axis], len(kept[leaf][axis])), expected)

    pairs = (zip(found.leaves, found.family.slices, strict=True) for found in families)
    return [all(as_expected(leaf, s.axis) for leaf, s in slices) for slices in pairs]
