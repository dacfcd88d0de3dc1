"""A function as a flat list of operations: its jaxpr with every call inlined.

A value is a number: variables' leaves, arguments, constants and results of operations are counted in the order in which
they appear, so that the program of another batch size has the same numbers in the same places.

A call that carries its own derivative stays one operation if all it does is elementwise, or if a rule is registered
under its function's name; any other is inlined, and its derivative with it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

from rvsm_jax.shrinking.elementwise import aval_of, is_elementwise_call

INLINED = {"jit", "pjit", "closed_call", "core_call", "core_closed_call", "checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
ELEMENTWISE_CALL = "elementwise call"
RANDOM = ("random_", "threefry", "rng_")


class ShrinkError(ValueError):
    """A function, its variables or an example that cannot be shrunk; the message says what was found and wanted."""


class Operation(NamedTuple):
    """One equation.

    Attributes:
      name: the primitive's name; a function's, for a call that is kept as one.
      equation: the jaxpr's equation.
      inputs: numbers of the values read.
      outputs: numbers of the values made.
      shapes: of the inputs.
      out_shapes: of the outputs.
      grows: for each input, which axes grow with the batch.
      out_grows: the same for each output.
    """

    name: str
    equation: jex.JaxprEqn
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    out_shapes: tuple[tuple[int, ...], ...]
    grows: tuple[tuple[bool, ...], ...] = ()
    out_grows: tuple[tuple[bool, ...], ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """The equation's parameters."""
        return self.equation.params

    @property
    def dtypes(self) -> list[Any]:
        """Of the outputs."""
        return [aval_of(v).dtype for v in self.equation.outvars]

    def bind(self, *operands: Any, **changes: Any) -> list[Any]:
        """The operation on operands of any shape, with some parameters changed."""
        if self.equation.primitive.name in CUSTOM:
            return list(_as_function(self.equation)(*operands))
        out = self.equation.primitive.bind(*operands, **(self.params | changes))
        return list(out) if self.equation.primitive.multiple_results else [out]


class Program(NamedTuple):
    """A traced function.

    Attributes:
      operations: in the order of evaluation.
      avals: shape and dtype of each value.
      leaves: the variables' values.
      arguments: the values of the argument.
      constants: arrays and numbers that the function holds, by value.
      outputs: the values returned.
      out_tree: how they are returned.
      inlined: names of the functions whose own derivative was replaced by that of what they do.
    """

    operations: tuple[Operation, ...]
    avals: tuple[jax.core.ShapedArray, ...]
    leaves: tuple[int, ...]
    arguments: tuple[int, ...]
    constants: dict[int, Any]
    outputs: tuple[int, ...]
    out_tree: Any
    inlined: tuple[str, ...]

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self.avals[value].shape


def trace(fn: Callable, variables: Any, x: Any, kept_calls: Sequence[str] = ()) -> Program:
    """The program of fn(variables, x).

    Args:
      fn: the function.
      variables: a tree of arrays or shapes.
      x: a tree of arrays or shapes.
      kept_calls: names of functions with their own derivative that stay one operation.

    Returns:
      The program; which axes grow is not known yet, see `with_growth`.

    Raises:
      ShrinkError: if fn cannot be traced, has effects, or draws random numbers.

    >>> import jax.numpy as jnp
    >>> program = trace(lambda v, x: jax.nn.relu(x @ v), jnp.ones((2, 3)), jnp.ones((4, 2)))
    >>> [operation.name for operation in program.operations]
    ['dot_general', 'elementwise call']
    """
    try:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(variables, x)
    except Exception as error:
        raise ShrinkError(_untraceable(variables, x, error)) from error
    return _Flattener(tuple(kept_calls)).program(closed, len(jax.tree.leaves(variables)), jax.tree.structure(shapes))


def with_growth(program: Program, other: Program) -> Program:
    """The program, knowing its axes that grow with the batch: those whose size is another in `other`.

    Raises:
      ShrinkError: if the two are not the same operations, naming the first that differs.
    """
    require_same(program, other)
    pairs = zip(program.avals, other.avals, strict=True)
    grows = [tuple(n != m for n, m in zip(a.shape, b.shape, strict=True)) for a, b in pairs]

    def grown(op: Operation) -> Operation:
        inputs, outputs = (tuple(grows[v] for v in values) for values in (op.inputs, op.outputs))
        return op._replace(grows=inputs, out_grows=outputs)

    return program._replace(operations=tuple(map(grown, program.operations)))


def like(program: Program, probe: Program) -> Program:
    """The program of another batch size, with the growing axes of the probe's.

    Raises:
      ShrinkError: if the two are not the same operations, or differ in an axis that does not grow.
    """
    require_same(probe, program)
    pairs = zip(program.operations, probe.operations, strict=True)
    for op, known in pairs:
        for shape, other, grows in zip(op.out_shapes, known.out_shapes, known.out_grows, strict=True):
            if any(n != m and not g for n, m, g in zip(shape, other, grows, strict=True)):
                raise ShrinkError(
                    f"x must have the shape of the example apart from the batch size, but {describe(program, op)} "
                    f"was {describe(probe, known)} for the example"
                )
    pairs = zip(program.operations, probe.operations, strict=True)
    grown = tuple(op._replace(grows=known.grows, out_grows=known.out_grows) for op, known in pairs)
    return program._replace(operations=grown)


def require_same(program: Program, other: Program) -> None:
    """Raises ShrinkError where two traces of one function are not the same operations on the same values."""
    for i, (a, b) in enumerate(zip(program.operations, other.operations, strict=False)):
        ranks = [tuple(map(len, op.out_shapes)) for op in (a, b)]
        if (a.name, a.inputs, a.outputs, ranks[0]) != (b.name, b.inputs, b.outputs, ranks[1]):
            raise ShrinkError(
                f"fn is another program for another batch size or dtype: its operation {i} is {describe(program, a)} "
                f"for one and {describe(other, b)} for the other"
            )
    if (len(program.operations), program.outputs) != (len(other.operations), other.outputs):
        sizes = f"{len(program.operations)} and {len(other.operations)} operations"
        raise ShrinkError(f"fn is another program for another batch size or dtype: {sizes}")


def describe(program: Program, op: Operation) -> str:
    """An operation in words: its name and the shapes it reads and makes."""
    shapes = [", ".join(map(str, (program.shape(v) for v in values))) for values in (op.inputs, op.outputs)]
    return f"{op.name} of {shapes[0] or 'nothing'} to {shapes[1]}"


class _Flattener:
    """Numbers the values of a jaxpr and collects its operations."""

    def __init__(self, kept_calls: tuple[str, ...]):
        self.kept_calls = kept_calls
        self.operations: list[Operation] = []
        self.avals: list[jax.core.ShapedArray] = []
        self.constants: dict[int, Any] = {}
        self.inlined: dict[str, None] = {}

    def program(self, closed: jex.ClosedJaxpr, count: int, out_tree: Any) -> Program:
        numbers = {v: self.new(aval_of(v)) for v in closed.jaxpr.invars}
        inputs = tuple(numbers[v] for v in closed.jaxpr.invars)
        outputs = self.run(closed.jaxpr, closed.consts, numbers)
        lists = tuple(self.operations), tuple(self.avals), inputs[:count], inputs[count:]
        return Program(*lists, self.constants, tuple(outputs), out_tree, tuple(self.inlined))

    def new(self, aval: jax.core.ShapedArray) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, aval: jax.core.ShapedArray, value: Any) -> int:
        number = self.new(aval)
        self.constants[number] = value
        return number

    def run(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], numbers: dict[jex.Var, int]) -> list[int]:
        """Adds a jaxpr's operations; the numbers of its outputs."""
        numbers |= {v: self.constant(aval_of(v), c) for v, c in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> int:
            return self.constant(aval_of(atom), atom.val) if isinstance(atom, jex.Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(map(read, equation.invars))
            inner = self.inner(equation)
            if inner is None:
                outputs = tuple(self.new(aval_of(v)) for v in equation.outvars)
                self.add(equation, inputs, outputs)
            else:
                body, body_consts = inner
                given = dict(zip(body.invars, inputs, strict=True))
                outputs = tuple(self.run(body, body_consts, given))
            numbers |= dict(zip(equation.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def inner(self, equation: jex.JaxprEqn) -> tuple[jex.Jaxpr, Sequence[Any]] | None:
        """The jaxpr to put in a call's place; None for an operation that stays."""
        name = equation.primitive.name
        if name not in INLINED | CUSTOM:
            return None
        if name in CUSTOM and self.call_name(equation) is not None:
            return None
        body = equation.params["call_jaxpr"] if "call_jaxpr" in equation.params else equation.params["jaxpr"]
        if name in CUSTOM:
            self.inlined[_function_name(equation)] = None
        return (body.jaxpr, body.consts) if isinstance(body, jex.ClosedJaxpr) else (body, ())

    def call_name(self, equation: jex.JaxprEqn) -> str | None:
        """Under which name a call with its own derivative stays one operation, if it does."""
        name = _function_name(equation)
        if name in self.kept_calls:
            return name
        return ELEMENTWISE_CALL if is_elementwise_call(equation) else None

    def add(self, equation: jex.JaxprEqn, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        _refuse(equation, [self.avals[v] for v in (*inputs, *outputs)])
        name = equation.primitive.name
        name = (self.call_name(equation) or name) if name in CUSTOM else name
        shapes = [tuple(self.avals[v].shape for v in values) for values in (inputs, outputs)]
        self.operations.append(Operation(name, equation, inputs, outputs, *shapes))


def _refuse(equation: jex.JaxprEqn, avals: Sequence[jax.core.ShapedArray]) -> None:
    name = equation.primitive.name
    if equation.effects:
        effects = ", ".join(sorted(type(e).__name__ for e in equation.effects))
        raise ShrinkError(f"fn has a side effect, the operation {name} ({effects}), and would lose it; take it out")
    keyed = any(jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended) for aval in avals)
    bodies = [str(eqn.primitive) for eqn in _equations_within(equation)]
    drawn = [found for found in (name, *bodies) if found.startswith(RANDOM)]
    if keyed or drawn:
        raise ShrinkError(
            f"fn draws random numbers or handles keys in the operation {(drawn or [name])[0]}; "
            "want a deterministic function, such as the network in evaluation mode"
        )


def _equations_within(equation: jex.JaxprEqn) -> list[jex.JaxprEqn]:
    """The equations of a loop's or a branch's body, and of theirs."""
    params = jax.tree.leaves(dict(equation.params), is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr))
    bodies = [getattr(body, "jaxpr", body) for body in params if isinstance(body, jex.Jaxpr | jex.ClosedJaxpr)]
    direct = [eqn for body in bodies for eqn in body.eqns]
    return direct + [eqn for e in direct for eqn in _equations_within(e)]


def _function_name(equation: jex.JaxprEqn) -> str:
    body = equation.params.get("call_jaxpr")
    info = getattr(getattr(body, "jaxpr", None), "debug_info", None)
    return str(getattr(info, "func_src_info", "") or "a function").split(" at ")[0]


def _as_function(equation: jex.JaxprEqn) -> Callable:
    """The equation as a function of its inputs that are not literals."""

    def call(*operands: Any) -> Sequence[Any]:
        pairs = zip(equation.invars, operands, strict=True)
        given = {v: operand for v, operand in pairs if not isinstance(v, jex.Literal)}
        body = equation.params["call_jaxpr"].jaxpr
        jaxpr = body.replace(constvars=(), invars=list(given), outvars=equation.outvars, eqns=[equation])
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))(*given.values())

    return call


def _untraceable(variables: Any, x: Any, error: Exception) -> str:
    shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(x))
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    count = len(jax.tree.leaves(variables))
    return (
        f"fn(variables, x) cannot be traced with these variables ({count} arrays) and x of shape {shapes}: "
        f"{type(error).__name__}: {reason}"
    )
