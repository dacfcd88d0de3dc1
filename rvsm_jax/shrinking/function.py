"""A function traced once for its plan, and again for every batch size that the small function is called with."""

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.shrinking import rules  # noqa: F401  (registers the rules)
from rvsm_jax.shrinking.analysis import Analyst, analyst
from rvsm_jax.shrinking.boxes import small_shape
from rvsm_jax.shrinking.inputs import abstract
from rvsm_jax.shrinking.plan import Plan
from rvsm_jax.shrinking.program import Program, ShrinkError, like, trace, with_growth
from rvsm_jax.shrinking.rule import RULES
from rvsm_jax.shrinking.small import run, stored_box

PROBES = (3, 5)  # batch sizes at which a function is traced to see which axes grow
_PROBED: weakref.WeakKeyDictionary[Callable, dict[Any, tuple[Program, Analyst]]] = weakref.WeakKeyDictionary()


class Folded(NamedTuple):
    """The variables of a small function with folded constants.

    Attributes:
      variables: the tree of variables, smaller.
      constants: what constant channels contribute, by operation.
    """

    variables: Any
    constants: dict[str, Any]


def probe(fn: Callable, variables: Any, example: Any) -> tuple[Program, Analyst]:
    """The program of fn, knowing which axes grow, and its analyst; the same ones for the same fn and shapes.

    Args:
      fn: the function.
      variables: a tree of arrays or shapes.
      example: an x or its shape, of any batch size.

    Returns:
      The program at the probe's batch size, and what evaluates it.

    Raises:
      ShrinkError: as `program.trace` and `program.with_growth`.
    """
    trees = abstract(variables), abstract(example, PROBES[0])
    shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(trees))
    key = jax.tree.structure(trees), shapes, tuple(map(id, RULES.values())), *_settings()
    known = _PROBED.setdefault(fn, {}) if inspect.isfunction(fn) else {}  # a callable object may have changed
    if key not in known:
        with jax.default_matmul_precision("highest"):  # for the values of folded constants
            programs = [trace(fn, trees[0], abstract(example, batch), tuple(RULES)) for batch in PROBES]
        program = with_growth(*programs)
        known[key] = program, analyst(program)
    return known[key]


def _settings() -> tuple[Any, ...]:
    """What else decides how a function is traced."""
    return jnp.result_type(float), getattr(jax.config, "jax_default_matmul_precision", None)


def small_function(fn: Callable, variables: Any, example: Any, program: Program, found: Plan) -> Callable:
    """The function of the small variables, for any batch size.

    Args:
      fn: the function.
      variables: shapes of its variables.
      example: an x or its shape.
      program: the probe's program.
      found: its plan.

    Returns:
      small_fn.
    """
    leaves = jax.tree.leaves(variables)
    treedef: Any = jax.tree.structure(variables)
    x_tree: Any = jax.tree.structure(example)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(variables)]
    shapes = [small_shape(program.shape(v), stored_box(found, v, len(program.shape(v)))) for v in program.leaves]
    traced: dict[Any, Program] = {}

    def program_for(small: Sequence[Any], x: Any) -> Program:
        arrays = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(x))
        key = arrays, tuple(str(s.dtype) for s in small), *_settings()
        if key not in traced:
            pairs = zip(leaves, small, strict=True)
            whole_leaves = [jax.ShapeDtypeStruct(leaf.shape, s.dtype) for leaf, s in pairs]
            original = jax.tree.unflatten(treedef, whole_leaves)
            traced[key] = like(trace(fn, original, abstract(x), tuple(RULES)), program)
        return traced[key]

    def small_fn(variables: Any, x: Any) -> Any:
        tree, constants = variables if isinstance(variables, Folded) else (variables, {})
        small, structure = jax.tree.leaves(tree), jax.tree.structure(tree)
        if structure != treedef:
            raise ShrinkError(f"the small variables must have the structure {treedef}, got {structure}")
        for path, leaf, shape in zip(paths, small, shapes, strict=True):
            if np.shape(leaf) != shape:
                raise ShrinkError(f"the small variable {path!r} must have shape {shape}, got {np.shape(leaf)}")
        if set(constants) != {str(i) for i in found.folded}:
            raise ShrinkError(f"want the folded constants {sorted(map(str, found.folded))}, got {sorted(constants)}")
        if jax.tree.structure(x) != x_tree:
            raise ShrinkError(f"x must have the structure of the example, {x_tree}, got {jax.tree.structure(x)}")
        small, x = [jnp.asarray(leaf) for leaf in small], jax.tree.map(jnp.asarray, x)
        now = program_for(small, x)
        folded = {int(i): array for i, array in constants.items()}
        outputs = run(now, found, small, jax.tree.leaves(x), folded)
        return jax.tree.unflatten(now.out_tree, map(jnp.asarray, outputs))

    return small_fn
