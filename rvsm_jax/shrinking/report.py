"""What shrinking has done: sizes before and after, by leaf and by layer, and the way to cut other trees alike."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax.shrinking.boxes import Box, cut, same, small_shape, whole
from rvsm_jax.shrinking.inputs import Variables
from rvsm_jax.shrinking.plan import Plan
from rvsm_jax.shrinking.program import Operation, Program, ShrinkError, describe
from rvsm_jax.shrinking.rule import RULES, rule_of
from rvsm_jax.shrinking.small import operand_shapes

Origins = dict[int, tuple[tuple[str, ...], bool]]


class Change(NamedTuple):
    """A number before and after."""

    before: Any
    after: Any

    @property
    def share(self) -> float:
        """after / before."""
        return self.after / self.before if self.before else 1.0


class Leaf(NamedTuple):
    """One variable.

    Attributes:
      path: where it is.
      before: its shape.
      after: the shape kept.
      dtype: its dtype.
      box: for each axis the indices kept, None for all.
    """

    path: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    dtype: str
    box: Box


class Layer(NamedTuple):
    """One convolution or product.

    Attributes:
      name: the variables it multiplies with.
      operation: its operation.
      inputs: channels read, or terms summed.
      outputs: channels made.
      multiply_adds: for one example.
    """

    name: str
    operation: str
    inputs: Change
    outputs: Change
    multiply_adds: Change


class Cost(NamedTuple):
    """Work and time of a call on this machine.

    Attributes:
      batch: its batch size.
      operations: floating-point operations, as the compiler counts them.
      seconds: median time.
    """

    batch: int
    operations: Change
    seconds: Change


class Report(NamedTuple):
    """What `shrink` has done; ``print`` it for a table.

    Attributes:
      leaves: the variables.
      layers: the convolutions and products on the way from the argument.
      kept_whole: operations without a rule, whose operands were left as they are.
      inlined: functions whose own derivative was replaced by that of the operations they consist of.
      error: the largest difference from fn, relative to the largest output.
      plan: what the small function keeps.
      treedef: the structure of the variables.
      example: the argument's shapes.
      costs: of calls on this machine, if they were measured (`measure`).
    """

    leaves: tuple[Leaf, ...]
    layers: tuple[Layer, ...]
    kept_whole: tuple[str, ...]
    inlined: tuple[str, ...]
    error: float
    plan: Plan
    treedef: Any
    example: Any
    costs: tuple[Cost, ...] = ()

    @property
    def parameters(self) -> Change:
        """Entries of the variables, and of the folded constants."""
        after = sum(math.prod(leaf.after) for leaf in self.leaves)
        after += sum(array.size for array in self.plan.folded.values())
        return Change(sum(math.prod(leaf.before) for leaf in self.leaves), after)

    @property
    def bytes(self) -> Change:
        """Bytes of the variables, and of the folded constants."""
        sizes = [jnp.dtype(leaf.dtype).itemsize for leaf in self.leaves]
        before, after = (
            sum(n * math.prod(shape) for n, shape in zip(sizes, shapes, strict=True))
            for shapes in ([leaf.before for leaf in self.leaves], [leaf.after for leaf in self.leaves])
        )
        return Change(before, after + sum(array.nbytes for array in self.plan.folded.values()))

    @property
    def multiply_adds(self) -> Change:
        """Multiply-adds of all layers, for one example."""
        changes = [layer.multiply_adds for layer in self.layers]
        return Change(sum(c.before for c in changes), sum(c.after for c in changes))

    def take(self, tree: Any) -> Any:
        """A tree like the variables, cut as they were: the state of an optimiser, gradients, another copy.

        Every part of the tree that has the structure and shapes of the variables, or of an entry of theirs such as
        ``variables["params"]``, is cut, also where some of its leaves are left out (None, or masked by optax): the
        copies that ADMM and BinaryRelax keep of the kernels alone. What else there is, a step count say, stays; so do
        the groups' weights of ``reweighted_penalty``, which begin anew.

        Args:
          tree: the tree.

        Returns:
          The same tree with smaller leaves.

        Raises:
          ShrinkError: if no part of the tree is like the variables.
        """
        return _take(self, tree)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a results file."""
        totals = {name: getattr(self, name)._asdict() for name in ("parameters", "bytes", "multiply_adds")}
        layers = [
            {k: x._asdict() if isinstance(x, Change) else x for k, x in layer._asdict().items()}
            for layer in self.layers
        ]
        leaves = [{"path": x.path, "before": list(x.before), "after": list(x.after)} for x in self.leaves]
        lists: dict[str, Any] = {"kept_whole": list(self.kept_whole), "inlined": list(self.inlined)}
        lists["costs"] = [
            {"batch": c.batch, "operations": c.operations._asdict(), "seconds": c.seconds._asdict()} for c in self.costs
        ]
        return totals | {"error": self.error, "layers": layers, "leaves": leaves} | lists

    def __str__(self) -> str:
        rows: list[Sequence[str]] = [("layer", "inputs", "outputs", "multiply-adds", "share")]
        for x in self.layers:
            rows.append((x.name, *map(_arrow, (x.inputs, x.outputs, x.multiply_adds)), f"{x.multiply_adds.share:.2f}"))
        for name in ("parameters", "bytes", "multiply_adds"):
            change = getattr(self, name)
            rows.append((name.replace("_", "-"), "", "", _arrow(change), f"{change.share:.2f}"))
        for cost in self.costs:
            flops, ms = cost.operations, Change(*(1e3 * t for t in cost.seconds))
            rows.append((f"operations, batch {cost.batch}", "", "", _arrow(flops), f"{flops.share:.2f}"))
            times = f"{ms.before:.3g} -> {ms.after:.3g}"
            rows.append((f"milliseconds, batch {cost.batch}", "", "", times, f"{ms.share:.2f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        table = [_line(row, widths) for row in rows]
        named = [("kept whole, for want of a rule", self.kept_whole), ("without their own derivative", self.inlined)]
        return "\n".join(table + [f"{what}: {', '.join(names)}" for what, names in named if names])


def make_report(
    program: Program, found: Plan, given: Variables, small_leaves: Sequence[Any], example: Any, error: float
) -> Report:
    """The report of a plan."""
    leaves = tuple(
        Leaf(path, program.shape(v), tuple(small.shape), str(leaf.dtype), found.boxes[v] or ())
        for path, v, leaf, small in zip(given.paths, program.leaves, given.leaves, small_leaves, strict=True)
    )
    origins = _origins(program, given.paths)
    batch = max(1, program.shape(program.arguments[0])[0]) if program.arguments else 1
    layers: list[Layer] = []
    lacking: dict[str, None] = {}
    for op, wants in zip(program.operations, found.wants, strict=True):
        if op.name not in RULES and any(v in origins for v in op.inputs):
            lacking[describe(program, op)] = None
        if rule_of(op).cost is not None and _depends(program, op, origins):
            layers.append(_layer(op, wants, found.boxes[op.outputs[0]], origins, batch))
    return Report(leaves, tuple(layers), tuple(lacking), program.inlined, error, found, given.treedef, example)


def _origins(program: Program, paths: Sequence[str]) -> Origins:
    """From which variables every value is made, and whether the argument is in it."""
    origins: Origins = {v: ((path,), False) for v, path in zip(program.leaves, paths, strict=True)}
    origins |= {v: ((), True) for v in program.arguments}
    for op in program.operations:
        sources = [origins[v] for v in op.inputs if v in origins]
        if sources:
            uses = any(x for _, x in sources)
            names = () if uses else tuple(dict.fromkeys(name for found, _ in sources for name in found))
            origins |= dict.fromkeys(op.outputs, (names, uses))
    return origins


def _depends(program: Program, op: Operation, origins: Origins) -> bool:
    return origins.get(op.outputs[0], ((), False))[1]


def _layer(
    op: Operation,
    wants: Sequence[Box | None] | None,
    box: Box | None,
    origins: Origins,
    batch: int,
) -> Layer:
    rule, out = rule_of(op), op.out_shapes[0]
    assert rule.cost is not None
    names = [name for v in op.inputs for name in origins.get(v, ((), False))[0]]
    shapes = [(0,) * len(s) for s in op.shapes] if wants is None else operand_shapes(op, wants)
    small = (0,) * len(out) if box is None else small_shape(out, box)
    axes = rule.contracted(op) if rule.contracted else {}
    read = [math.prod(s[axis] for axis in [axes.get(0, len(s) - 1)]) for s in (op.shapes[0], shapes[0])]
    axis = _channel_axis(op)
    costs = [rule.cost(op, op.shapes, out), rule.cost(op, shapes, small)]
    return Layer(
        " ".join(names) or op.name,
        op.name,
        Change(*read),
        Change(out[axis], small[axis]),
        Change(*(cost // batch for cost in costs)),
    )


def _channel_axis(op: Operation) -> int:
    spec = getattr(op.params.get("dimension_numbers"), "out_spec", None)
    return spec[1] if spec else len(op.out_shapes[0]) - 1


def matches(report: Report, tree: Any) -> list[tuple[Any, list[Leaf] | None]]:
    """The parts of a tree that are like the variables or an entry of theirs, with those variables; None for others.

    A part may leave some of the leaves out, not all; it then comes with the variables of the others.
    """
    variables = jax.tree.unflatten(report.treedef, report.leaves)
    children = jax.tree.leaves(variables, is_leaf=lambda x: x is not variables)
    patterns: list[tuple[Any, list[Any]]] = [
        (jax.tree.structure(part, is_leaf=_is_place), jax.tree.leaves(part, is_leaf=_is_place))
        for part in [variables, *(child for child in children if not _is_place(child))]
    ]

    def match(part: Any) -> list[Leaf] | None:
        structure, leaves = jax.tree.structure(part, is_leaf=_is_hole), jax.tree.leaves(part, is_leaf=_is_hole)
        fits = [_filled(rows, leaves) for pattern, rows in patterns if pattern == structure]
        fits = [rows for rows in fits if rows]
        if any(not same(a.box, b.box) for rows in fits[1:] for a, b in zip(fits[0], rows, strict=True)):
            names = ", ".join(repr(rows[0].path) for rows in fits)
            raise ShrinkError(
                f"a part of the tree is like several entries of the variables, those beginning at {names}"
            )
        return fits[0] if fits else None

    parts = jax.tree.leaves(tree, is_leaf=lambda part: match(part) is not None)
    return [(part, match(part)) for part in parts]


def _filled(rows: Sequence[Any], leaves: Sequence[Any]) -> list[Leaf]:
    """The variables whose places the leaves fill; none if a leaf is in the wrong place or of another shape."""
    pairs = [(row, leaf) for row, leaf in zip(rows, leaves, strict=True) if not _is_hole(leaf)]
    if any(_is_hole(row) or row.before != np.shape(leaf) for row, leaf in pairs):
        return []
    return [row for row, _ in pairs]


def _take(report: Report, tree: Any) -> Any:
    found = matches(report, tree)
    if not any(rows for _, rows in found):
        raise ShrinkError(f"no part of the tree has the structure and shapes of the variables, {report.treedef}")
    leaves = [leaf for part, rows in found for leaf in (_cut_leaves(part, rows) if rows else [part])]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _is_hole(x: Any) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)


def _is_place(x: Any) -> bool:
    return isinstance(x, Leaf) or _is_hole(x)


def _cut_leaves(part: Any, rows: Sequence[Leaf]) -> list[Any]:
    return [cut_leaf(leaf, row.box) for leaf, row in zip(jax.tree.leaves(part), rows, strict=True)]


def cut_leaf(leaf: Any, box: Box) -> Any:
    """The part of a leaf that is kept."""
    if all(index is None for index in box):
        return leaf
    return jnp.asarray(cut(np.asarray(leaf), whole(len(box)), box))


def _arrow(change: Change) -> str:
    same = change.before == change.after
    return f"{change.before:,}" if same else f"{change.before:,} -> {change.after:,}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()
