"""How an attack runs: three pure functions, put together the way the backend likes.

    state = init(options, model, inputs)
    for i in range(steps):
        state = step(options, model, inputs, i, state)
    result = finish(options, model, inputs, state)

Inside a trace (``jit``, ``vmap``, ``grad``, a training step) this is one loop. Called with concrete arrays it is one
compiled loop on an accelerator; on the CPU backend, where a convolution inside a loop is several times slower, each
step is a call, and a short loop inside a trace is unrolled. `options` is hashable, everything that may change from call
to call is in `inputs`: what was compiled once serves all batches of a shape, all radii and all step sizes.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LogitsFn = Callable[..., jax.Array]
PyTree = Any
UNROLLED = 32
LOOK_EVERY = 5


class Attack(NamedTuple):
    """An attack as pure functions of the module, with what is fixed when it is compiled.

    Attributes:
      init: ``(options, model, inputs) -> state``.
      step: ``(options, model, inputs, i, state) -> state``.
      finish: ``(options, model, inputs, state) -> result``.
      steps: how many.
      options: anything hashable.
      done: ``state -> bool []``, whether further steps would change nothing; None if they always may.
    """

    init: Callable[..., PyTree]
    step: Callable[..., PyTree]
    finish: Callable[..., PyTree]
    steps: int
    options: Any
    done: Callable[[PyTree], jax.Array] | None = None


class Model(NamedTuple):
    """A network under attack, and how often it is asked if it is random.

    Attributes:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if it is random.
      random: whether it takes a key.
      eot: draws over which logits and losses are averaged.
    """

    logits_fn: LogitsFn
    random: bool
    eot: int

    def logits(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Logits ``[B, K]``, the mean over ``eot`` draws."""
        return self._mean(lambda z: z, images, key)

    def loss(self, loss: Callable[[jax.Array], jax.Array], images: jax.Array, key: jax.Array) -> Any:
        """``(loss [B], logits [B, K])``, each the mean over ``eot`` draws."""
        return self._mean(lambda z: (loss(z), z), images, key)

    def gradient(self, loss: Callable[[jax.Array], jax.Array], images: jax.Array, key: jax.Array) -> Any:
        """``(loss [B], logits [B, K], gradient of each image's own loss)``."""

        def total(x):
            values, logits = self.loss(loss, x, key)
            return values.sum(), (values, logits)

        gradient, (values, logits) = jax.grad(total, has_aux=True)(images)
        return values, logits, gradient

    def _mean(self, of: Callable[[jax.Array], Any], images: jax.Array, key: jax.Array) -> Any:
        if not self.random:
            return of(self.logits_fn(images))
        if self.eot == 1:
            return of(self.logits_fn(images, key))
        draws = jax.vmap(lambda k: of(self.logits_fn(images, k)))(jax.random.split(key, self.eot))
        return jax.tree.map(lambda x: x.mean(0), draws)


def takes_key(logits_fn: LogitsFn) -> bool:
    """Whether a network is random: whether it wants two arguments, images and a key.

    >>> takes_key(lambda images: images), takes_key(lambda images, key: images), takes_key(lambda x, train=False: x)
    (False, True, False)
    """
    try:
        parameters = inspect.signature(logits_fn).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 2


def traced(*trees: PyTree) -> bool:
    """Whether a trace is going on, by its arguments or by what a new array is.

    >>> traced(jnp.ones(2)), jax.eval_shape(lambda: jnp.float32(traced())).dtype
    (False, dtype('float32'))
    """
    leaves = jax.tree.leaves(trees)
    return any(isinstance(leaf, jax.core.Tracer) for leaf in [jnp.zeros(()), *leaves])


def run(attack: Attack, model: Model, inputs: PyTree) -> PyTree:
    """``finish(step(... step(init)))`` of an attack.

    A ``logits_fn`` that is a pytree, such as ``jax.tree_util.Partial(f, params)`` or an Equinox module, has its arrays
    passed to what is compiled, which then serves other weights too; the arrays in a closure are compiled in.

    Args:
      attack: what to run.
      model: against which network.
      inputs: a tree of arrays.

    Returns:
      What ``finish`` returns.

    >>> count = Attack(lambda o, m, x: x, lambda o, m, x, i, s: s + x, lambda o, m, x, s: s, 3, None)
    >>> run(count, Model(lambda x: x, False, 1), jnp.ones(()))
    Array(4., dtype=float32)
    """
    if traced(inputs, _arrays(model.logits_fn)[0]):
        return _whole(attack, model, inputs)
    arrays, rest = _arrays(model.logits_fn)
    parts = _compiled(attack, rest, model.random, model.eot)
    if jax.default_backend() != "cpu":
        return parts[3](arrays, inputs)
    state = parts[0](arrays, inputs)
    for i in range(attack.steps):
        if attack.done is not None and i % LOOK_EVERY == 0 and attack.done(state):
            break
        state = parts[1](arrays, inputs, np.int32(i), state)
    return parts[2](arrays, inputs, state)


def _whole(attack: Attack, model: Model, inputs: PyTree) -> PyTree:
    fixed = attack.options, model, inputs
    state = attack.init(*fixed)
    return attack.finish(*fixed, _steps(attack, lambda i, s: attack.step(*fixed, i, s), state))


def _steps(attack: Attack, step: Callable[[jax.Array, PyTree], PyTree], state: PyTree) -> PyTree:
    """All steps inside a trace: unrolled, counted, or until done."""
    done, unrolled = attack.done, jax.default_backend() == "cpu" and attack.steps <= UNROLLED
    if done is None or unrolled:
        unroll = max(attack.steps, 1) if unrolled else 1
        return jax.lax.fori_loop(0, attack.steps, lambda i, s: step(jnp.int32(i), s), state, unroll=unroll)
    return jax.lax.while_loop(
        lambda at: (at[0] < attack.steps) & ~done(at[1]), lambda at: (at[0] + 1, step(*at)), (jnp.int32(0), state)
    )[1]


class _Rest(NamedTuple):
    """A callable without its arrays."""

    treedef: Any
    leaves: tuple[Any, ...]

    def with_arrays(self, arrays: Sequence[jax.Array]) -> LogitsFn:
        found = iter(arrays)
        return jax.tree.unflatten(self.treedef, [next(found) if leaf is None else leaf for leaf in self.leaves])


def _arrays(logits_fn: LogitsFn) -> tuple[list[jax.Array], _Rest]:
    leaves, treedef = jax.tree.flatten(logits_fn)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
    rest = _Rest(treedef, tuple(None if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)))
    try:
        hash(rest)
    except TypeError:  # something in it is compared by value and cannot be hashed: take it as it is, by identity
        return [], _Rest(jax.tree.structure(0), (logits_fn,))
    return arrays, rest


@functools.lru_cache(maxsize=64)
def _compiled(attack: Attack, rest: _Rest, random: bool, eot: int) -> tuple[Callable[..., Any], ...]:
    def with_model(function):
        return lambda arrays, *a: function(attack.options, Model(rest.with_arrays(arrays), random, eot), *a)

    def whole(arrays, inputs):
        return _whole(attack, Model(rest.with_arrays(arrays), random, eot), inputs)

    return tuple(jax.jit(f) for f in (*map(with_model, attack[:3]), whole))
