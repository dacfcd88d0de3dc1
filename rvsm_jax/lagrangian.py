"""RVSM on a loss that is known in closed form: its Lagrangian, and its steps.

    L_beta(w, u) = f(w) + lam P(u) + beta/2 |w - u|^2

RVSM takes u to the minimiser of L_beta and w down its gradient. If f has curvature at most L from above, L_beta cannot
rise for eta < 2 / (beta + L).

References:
  Dinh and Xin, arXiv:1812.05719; Dinh et al., arXiv:2003.00631, Theorem 1 (the descent of L_beta).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rvsm_jax.proximal import ProximalOperator
from rvsm_jax.recipes import Method
from rvsm_jax.splitting import Number

Loss = Callable[[jax.Array], jax.Array]
Gradient = Callable[[jax.Array], jax.Array]
Lagrangian = Callable[[jax.Array, jax.Array], jax.Array]


def everywhere(path: str, leaf: Any) -> bool:
    """True for every leaf: here the weights are one vector, which ``rvsm_jax.kernels`` takes for a bias.

    Args:
      path: the leaf's path.
      leaf: the leaf.

    Returns:
      True.

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> from rvsm_jax import lagrangian
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=lagrangian.everywhere)
      >>> print(prox(jnp.array([2.0, 0.5]), 1.0))
      [1. 0.]
    """
    del path, leaf
    return True


def lagrangian(loss: Loss, operator: ProximalOperator, lam: Number, beta: Number) -> Lagrangian:
    """L_beta(w, u) = f(w) + lam P(u) + beta/2 |w - u|^2.

    Args:
      loss: f.
      operator: has P as its ``value``.
      lam: the penalty's weight.
      beta: the pull's weight.

    Returns:
      ``(w, u) -> scalar``.

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> from rvsm_jax import lagrangian
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=lagrangian.everywhere)
      >>> value = lagrangian.lagrangian(lambda w: jnp.sum(w**2), prox, 0.1, 2.0)
      >>> print(value(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])))
      3.1
    """
    return lambda w, u: loss(w) + lam * operator.value(u) + beta / 2 * jnp.sum(jnp.square(w - u))


def iterate(
    method: Method, gradient: Gradient, w: jax.Array, steps: int, watch: Lagrangian | None = None
) -> tuple[jax.Array, jax.Array, Any]:
    """The weights after so many steps of a method, their sparse copy, and what was watched on the way.

    Args:
      method: such as ``rvsm_jax.rvsm(optax.sgd(eta), ...)``, with constant strengths.
      gradient: of the loss, or what stands for it.
      w: the start, [d].
      steps: how many.
      watch: a function of (w, u), such as the Lagrangian.

    Returns:
      w, u, and the watched values at the start and after each step, [steps + 1], or None.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> from rvsm_jax import lagrangian
      >>> method = rvsm_jax.rvsm(optax.sgd(0.5), rvsm_jax.l0(), lam=0.02, beta=1.0, where=lagrangian.everywhere)
      >>> w, u, _ = lagrangian.iterate(method, lambda w: w - jnp.array([2.0, 0.1]), jnp.ones(2), 100)
      >>> print(w, u)
      [2.   0.05] [2. 0.]
    """

    def step(carry, _):
        w, state = carry
        updates, state = method.tx.update(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), None if watch is None else watch(w, method.sparse(w, 0))

    (end, _), seen = jax.lax.scan(step, (w, method.tx.init(w)), length=steps)
    if watch is not None:
        seen = jnp.concatenate([watch(w, method.sparse(w, 0))[None], seen])
    return end, method.sparse(end, 0), seen
