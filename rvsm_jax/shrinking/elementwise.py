"""Functions that act on each entry by itself, with a derivative of their own: evaluated on any part of an array.

``jax.nn.relu`` has derivative 0 at 0, which the maximum that it is made of has not (1/2). So a call like it is never
taken apart: on a smaller array its value is that of its jaxpr with the shapes replaced, and so is its derivative,
that of the jaxpr that JAX derives from the call by the function's own rule.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

# fmt: off
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "add_jaxvals", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "complex", "conj", "convert_element_type", "copy",
    "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1",
    "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic",
    "lt", "lt_to", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not", "or", "polygamma",
    "population_count", "pow", "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
))
# fmt: on
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call")


def aval_of(atom: Any) -> Any:
    """Shape and dtype of a jaxpr's variable or literal."""
    return atom.aval


def is_elementwise_call(equation: jex.JaxprEqn) -> bool:
    """Whether a call maps arrays of one shape, and scalars, to one array of that shape, entry by entry."""
    shapes = {aval_of(v).shape for v in (*equation.invars, *equation.outvars)} - {()}
    body = equation.params["call_jaxpr"]
    if len(equation.outvars) != 1 or len(shapes) != 1 or not isinstance(body, jex.ClosedJaxpr):
        return False
    (shape,) = shapes
    return aval_of(equation.outvars[0]).shape == shape and _acts_on_entries(body.jaxpr, shape)


def on_part(bind: Callable, equation: jex.JaxprEqn, operands: Sequence[jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The call on operands of another shape, with its own derivative.

    Args:
      bind: the call on operands of the original shape.
      equation: the call's equation.
      operands: arrays of the new shape, and scalars.
      shape: the new shape.

    Returns:
      An array of the new shape.
    """
    original = aval_of(equation.outvars[0]).shape
    avals = [jax.ShapeDtypeStruct(aval_of(v).shape, aval_of(v).dtype) for v in equation.invars]

    def value(*operands: jax.Array) -> jax.Array:
        return _evaluate(equation.params["call_jaxpr"], operands, original, shape)[0]

    if equation.primitive.name == "custom_jvp_call":
        function = jax.custom_jvp(value)

        def tangent(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
            derived = jax.make_jaxpr(lambda p, t: jax.jvp(lambda *a: bind(*a)[0], p, t))(tuple(avals), tuple(avals))
            out, out_tangent = _evaluate(derived, (*primals, *tangents), original, shape)
            return out, out_tangent

        function.defjvp(tangent)
        return function(*operands)
    reverse = jax.custom_vjp(value)

    def backward(given: Sequence[jax.Array], cotangent: jax.Array) -> tuple[jax.Array, ...]:
        ct = jax.ShapeDtypeStruct(original, aval_of(equation.outvars[0]).dtype)
        derived = jax.make_jaxpr(lambda p, g: jax.vjp(lambda *a: bind(*a)[0], *p)[1](g))(tuple(avals), ct)
        return tuple(_evaluate(derived, (*given, cotangent), original, shape))

    reverse.defvjp(lambda *given: (value(*given), given), backward)
    return reverse(*operands)


def _acts_on_entries(jaxpr: jex.Jaxpr, shape: tuple[int, ...]) -> bool:
    def allowed(equation: jex.JaxprEqn) -> bool:
        name, shapes = equation.primitive.name, {aval_of(v).shape for v in (*equation.invars, *equation.outvars)}
        if name in CALLS:
            return _acts_on_entries(_body(equation).jaxpr, shape)
        spread = name == "broadcast_in_dim" and aval_of(equation.invars[0]).shape == ()
        return (name in ELEMENTWISE or spread) and shapes <= {(), shape}

    return not jaxpr.constvars and all(map(allowed, jaxpr.eqns))


def _body(equation: jex.JaxprEqn) -> jex.ClosedJaxpr:
    return equation.params["call_jaxpr"] if "call_jaxpr" in equation.params else equation.params["jaxpr"]


def _evaluate(
    closed: jex.ClosedJaxpr, operands: Sequence[Any], original: tuple[int, ...], shape: tuple[int, ...]
) -> list[Any]:
    """A jaxpr of elementwise operations on arrays of the original shape, with arrays of another in their place."""
    values = dict(zip(closed.jaxpr.invars, operands, strict=True))
    values |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        name = equation.primitive.name
        if name in CALLS:
            out = _evaluate(_body(equation), inputs, original, shape)
        elif name == "broadcast_in_dim" and aval_of(equation.outvars[0]).shape == original:
            out = [jnp.broadcast_to(inputs[0], shape)]
        else:
            found = equation.primitive.bind(*inputs, **equation.params)
            out = list(found) if equation.primitive.multiple_results else [found]
        values |= dict(zip(equation.outvars, out, strict=True))
    return [read(v) for v in closed.jaxpr.outvars]
