"""`shrink`: a function and its variables without what zeros have made useless."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking.check import evaluate, require_equal
from rvsm_jax.shrinking.function import Folded, probe, small_function
from rvsm_jax.shrinking.inputs import abstract, random_like, read_variables
from rvsm_jax.shrinking.plan import Plan, is_whole, plan
from rvsm_jax.shrinking.program import Program, ShrinkError, like, trace
from rvsm_jax.shrinking.report import Report, cut_leaf, make_report
from rvsm_jax.shrinking.rule import RULES
from rvsm_jax.shrinking.small import stored_box

CHECK = 4  # the batch size at which the small function is checked; the probe's are others


def shrink(
    fn: Callable,
    variables: Any,
    example: Any,
    *,
    round_to: int = 1,
    constants: Literal["keep", "fold"] = "keep",
    masks: Any = None,
    gathers: Literal["paying", "always"] = "paying",
) -> tuple[Callable, Any, Report]:
    """small_fn(small_variables, x) = fn(variables, x), without the channels that nobody reads or that are zero.

    What goes is decided from the jaxpr of fn, whatever it was written with. An index of an axis that a convolution or
    product sums over is read if its weights are not all zero and its input is not known to be zero; every array keeps
    the indices that somebody reads. The result is compared with fn on random inputs before it is returned.

    A channel that is constant but not zero, such as relu(shift) behind a filter of zeros, stays ("keep"), or is added
    as a constant where it was read, exactly at any padding ("fold"). Folded channels can no longer train; without
    folding, gradients are those of fn, cut to the small variables.

    Args:
      fn: ``fn(variables, x) -> outputs``, deterministic and without side effects; x has the batch as its first axis.
      variables: a tree of finite arrays, zero where pruned.
      example: an x, or its shape as ``jax.ShapeDtypeStruct``; its batch size does not matter.
      round_to: channels read are rounded up to multiples of it, as far as there are any.
      constants: what becomes of constant channels.
      masks: a tree like variables, of masks (0 pruned, 1 not) or None. Where a leaf has a mask, fn's variable is the
        product of both, and only the mask's zeros count as pruning, not those of a leaf that merely starts at zero.
      gathers: "paying" reads all the channels of an array that is stored anyway, where selecting some of them would
        take longer than it saves; "always" selects them.

    Returns:
      small_fn, its variables, and a report. small_fn takes any batch size; its variables are the same tree with
      smaller leaves (of size 0 where nothing is left), or a `Folded` with "fold". If nothing can be removed, they are
      fn and the variables themselves. A variable that fn returns as it is comes back in its small shape.

    Raises:
      ShrinkError: a ValueError, if fn, its variables, the masks or the example cannot be used, if the result differs
        from fn, or, from small_fn, if its arguments do not fit.

    >>> w1, w2 = jnp.ones((2, 4)), jnp.ones((4, 3)).at[1:].set(0)
    >>> fn = lambda v, x: jax.nn.relu(x @ v[0]) @ v[1]
    >>> small_fn, small, report = shrink(fn, (w1, w2), jnp.ones((8, 2)))
    >>> [w.shape for w in small], report.parameters
    ([(2, 1), (1, 3)], Change(before=20, after=5))
    """
    _check_options(fn, round_to, constants, gathers)
    given = read_variables(variables, masks)
    tree = jax.tree.unflatten(given.treedef, given.leaves)
    program, analyse = probe(fn, tree, example)
    facts = analyse(given.leaves, given.fixed, constants == "fold")
    free = frozenset(k for k, v in enumerate(program.outputs) if v in program.leaves)
    found = plan(program, facts, round_to=round_to, gathers=gathers, free=free)
    small_leaves = cut_leaves(program, found, given.leaves)
    small_fn = small_function(fn, abstract(tree), example, program, found)
    folded = {str(i): jnp.asarray(array) for i, array in found.folded.items()}
    small_tree = jax.tree.unflatten(given.treedef, small_leaves)
    small = Folded(small_tree, folded) if constants == "fold" else small_tree
    with jax.default_matmul_precision("highest"):  # some accelerators round the factors of a product
        error = _checked(fn, tree, small_fn, small, example, program, found, small_leaves)
    report = make_report(program, found, given, small_leaves, abstract(example), error)
    if all(is_whole(found.boxes[v]) for v in program.leaves) and not folded:
        return fn, tree, report
    return small_fn, small, report


def cut_leaves(program: Program, found: Plan, leaves: Sequence[Any]) -> list[Any]:
    """The parts of the variables that are kept."""
    return [cut_leaf(leaf, stored_box(found, v, np.ndim(leaf))) for leaf, v in zip(leaves, program.leaves, strict=True)]


def _checked(
    fn: Callable,
    tree: Any,
    small_fn: Callable,
    small: Any,
    example: Any,
    program: Program,
    found: Plan,
    small_leaves: Sequence[Any],
) -> float:
    x = random_like(example, CHECK)
    now = like(trace(fn, abstract(tree), abstract(x), tuple(RULES)), program)
    big, little = (jax.tree.leaves(evaluate(*call)) for call in ((fn, tree, x), (small_fn, small, x)))
    return require_equal(now, found, jax.tree.leaves(tree), small_leaves, jax.tree.leaves(x), big, little)


def _check_options(fn: Any, round_to: Any, constants: Any, gathers: Any) -> None:
    if not callable(fn):
        raise ShrinkError(f"fn must be a function fn(variables, x), got {fn!r}")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ShrinkError(f"round_to must be an integer >= 1, got {round_to!r}")
    if constants not in ("keep", "fold"):
        raise ShrinkError(f"constants must be 'keep' or 'fold', got {constants!r}")
    if gathers not in ("paying", "always"):
        raise ShrinkError(f"gathers must be 'paying' or 'always', got {gathers!r}")
