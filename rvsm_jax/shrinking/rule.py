"""What a rule says about one kind of operation, and the table of rules.

A rule answers three questions about an operation, whose operands may be known in some entries and wanted in a box:

    known(op, inputs)                       which entries of the outputs are known, and their values
    needed(op, facts, boxes)                which box of each operand the outputs' boxes need
    emit(op, operands, wants, boxes)        the outputs' boxes, from the operands' boxes

The first runs under ``jit``, forwards; the second in NumPy, backwards; the third makes the small function. An operation
without a rule is kept whole: its operands are needed whole, and nothing about its outputs is known.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.boxes import Box, cut, whole
from rvsm_jax.shrinking.program import Operation
from rvsm_jax.shrinking.ties import Ties, elementwise, fixed


class Known(NamedTuple):
    """What is known of a value.

    Attributes:
      value: its entries where known, zeros elsewhere.
      unknown: a mask of the entries that are not known; None if there are none.
    """

    value: jax.Array
    unknown: jax.Array | None

    @property
    def mask(self) -> jax.Array:
        """The mask, spelled out."""
        return jnp.zeros(jnp.shape(self.value), bool) if self.unknown is None else self.unknown

    @property
    def active(self) -> jax.Array:
        """Entries that are not known to be zero."""
        return self.mask | (self.value != jnp.zeros((), self.value.dtype))


class Facts(NamedTuple):
    """What `needed` may ask about its operation's operands, by position.

    Attributes:
      active: the mask of entries that are not known to be zero.
      depends: whether the operand depends on the argument, and not on the variables alone.
      constants: along an axis, ``(is, value)``: where all entries are known and equal, and may be folded.
      widened: the indices to read of a contracted axis for those that must be read.
      value: the known entries.
    """

    active: Callable[[int], np.ndarray]
    depends: Callable[[int], bool]
    constants: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    widened: Callable[[np.ndarray], np.ndarray]
    value: Callable[[int], np.ndarray]


class Rule(NamedTuple):
    """The rule of one kind of operation.

    Attributes:
      known: ``(op, inputs) -> outputs`` on `Known` values.
      needed: ``(op, facts, boxes) -> boxes``; None among the boxes stands for a value that nobody needs.
      emit: ``(op, operands, wants, boxes) -> outputs``; an operand is None where None or nothing is wanted of it.
      elementwise: whether entry i of each output is made from entry i of each operand that is no scalar.
      contracted: for a sum of products, ``op -> {position: axis}`` that is summed over; {} if there is no single axis.
      cost: for a sum of products, multiply-adds from ``(op, operands' shapes, output's shape)``.
      fold: ``(op, facts, wants, boxes) -> array or None``: what constant channels that are not read contribute, which
        `emit` receives as ``folded``.
      ties: ``(op, labels, axes) -> axes``: which indices of which axes are one channel, see `ties`; by default those of
        an elementwise operation, or all are kept.
    """

    known: Callable[[Operation, Sequence[Known]], Sequence[Known]]
    needed: Callable[[Operation, Facts, Sequence[Box | None]], Sequence[Box | None]]
    emit: Callable[..., Sequence[Any]]
    elementwise: bool = False
    contracted: Callable[[Operation], Mapping[int, int]] | None = None
    cost: Callable[[Operation, Sequence[tuple[int, ...]], tuple[int, ...]], int] | None = None
    fold: Callable[[Operation, Facts, Sequence[Box | None], Sequence[Box | None]], np.ndarray | None] | None = None
    ties: Ties | None = None


RULES: dict[str, Rule] = {}


def register(names: str | Sequence[str], rule: Rule) -> None:
    """Gives operations a rule, or another one.

    Args:
      names: names of primitives, or of functions under ``jax.custom_jvp`` or ``jax.custom_vjp``, whose calls then stay
        one operation.
      rule: the rule.

    Raises:
      TypeError: if rule is not a Rule.

    >>> register("my_activation", RULES["exp"])
    >>> "my_activation" in RULES
    True
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Rule(known, needed, emit), got {rule!r}")
    for name in [names] if isinstance(names, str) else names:
        RULES[name] = rule


def rule_of(op: Operation) -> Rule:
    """The rule of an operation; the one that keeps it whole if it has none."""
    return RULES.get(op.name, WHOLE)


def ties_of(op: Operation) -> Ties:
    """What an operation ties together."""
    rule = rule_of(op)
    return rule.ties or (elementwise if rule.elementwise else fixed)


def _known_whole(op: Operation, inputs: Sequence[Known]) -> list[Known]:
    if all(x.unknown is None for x in inputs):
        return [Known(y, None) for y in op.bind(*(x.value for x in inputs))]
    pairs = zip(op.out_shapes, op.dtypes, strict=True)
    return [Known(jnp.zeros(shape, dtype), jnp.ones(shape, bool)) for shape, dtype in pairs]


def _needed_whole(op: Operation, facts: Facts, boxes: Sequence[Box | None]) -> list[Box | None]:
    return [whole(len(shape)) for shape in op.shapes]


def _emit_whole(
    op: Operation, operands: Sequence[Any], wants: Sequence[Box | None], boxes: Sequence[Box | None]
) -> list[Any]:
    pairs = zip(op.bind(*operands), boxes, strict=True)
    return [None if box is None else cut(y, whole(len(box)), box) for y, box in pairs]


WHOLE = Rule(_known_whole, _needed_whole, _emit_whole)
