"""Small problems with known answers, slow NumPy versions of the methods, and a few steps on any tree."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import rvsm_jax

SGD = functools.partial(optax.sgd, 0.01, momentum=0.9, nesterov=True)
PENALTIES = {
    "l0": rvsm_jax.l0(),
    "l1": rvsm_jax.l1(),
    "transformed_l1": rvsm_jax.transformed_l1(0.7),
    "scad": rvsm_jax.scad(0.8),
    "mcp": rvsm_jax.mcp(1.3),
    "half_norm": rvsm_jax.half_norm(),
    "two_thirds_norm": rvsm_jax.two_thirds_norm(),
    "top_k": rvsm_jax.top_k(0.5),
}


def dict_params():
    key = jax.random.key(0)
    return {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 2, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.eye(4)},
    }


def linen_params():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Conv(3, (2, 2))(x)).mean((1, 2)))

    return Net().init(jax.random.key(1), jnp.ones((1, 4, 4, 2)))["params"]


def nnx_params():
    return nnx.state(nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(2)), nnx.BatchNorm(3, rngs=nnx.Rngs(3))), nnx.Param)


def equinox_params():
    return eqx.filter(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(3)), eqx.is_inexact_array)


TREES = {"dict": dict_params, "linen": linen_params, "nnx": nnx_params, "equinox": equinox_params}


def lasso(n=40, d=15, seed=0):
    """A, b, and the gradient of f(x) = 1/2 |A x - b|^2 in NumPy, with its Lipschitz constant."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d))
    b = a[:, :4] @ rng.normal(size=4) * 2 + 0.1 * rng.normal(size=n)
    return a, b, lambda x: a.T @ (a @ x - b), np.linalg.norm(a, 2) ** 2


def gradients(params):
    """Of f(w) = 0.15 w^2 + 0.1 w."""
    return jax.tree.map(lambda x: 0.3 * x + jnp.asarray(0.1, x.dtype), params)


def one_step(tx, params, state):
    updates, state = tx.update(gradients(params), state, params)
    return optax.apply_updates(params, updates), state


def run(tx, params, steps=4, wrap=lambda f: f):
    state, step = tx.init(params), wrap(functools.partial(one_step, tx))
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def assert_close(a, b, rtol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def everything(path, leaf):
    return True


def curved(xp):
    """The gradient of f(w) = sum (1 - cos 3 w) / 3 + 0.15 w^2."""
    return lambda w: xp.sin(3 * w) + 0.3 * w


def train(tx, f_grad, w, steps):
    """The weights, an array or a tree of them, after so many steps in float64."""
    return jax.tree.map(lambda x: x[-1], path(tx, f_grad, w, 1, steps))


def path(tx, f_grad, w, times, steps=1):
    """The weights after so many steps in float64, after as many again, and so on."""
    with jax.enable_x64(True):
        params = {"w": jax.tree.map(jnp.asarray, w)}

        def step(_, carried):
            params, state = carried
            updates, state = tx.update({"w": f_grad(params["w"])}, state, params)
            return optax.apply_updates(params, updates), state

        def several(carried, _):
            carried = jax.lax.fori_loop(0, steps, step, carried)
            return carried, carried[0]["w"]

        run = jax.jit(lambda *start: jax.lax.scan(several, start, length=times)[1])
        return jax.tree.map(np.asarray, run(params, tx.init(params)))


def hard(w, t):
    return np.where(np.abs(w) > np.sqrt(2 * t), w, 0)


def soft(w, t):
    return np.sign(w) * np.maximum(np.abs(w) - t, 0)


def transformed(w, t, a=0.7):
    """The transformed l1 map by minimising on the roots of its cubic, one weight at a time."""

    def one(m):
        roots = np.roots([1, 2 * a - m, a * a - 2 * a * m, t * a * (a + 1) - m * a * a])
        z = np.array([0.0, *(r.real for r in roots if abs(r.imag) < 1e-7 and r.real > 0)])
        return z[np.argmin((z - m) ** 2 / 2 + t * (a + 1) * z / (a + z))]

    return np.sign(w) * np.vectorize(one)(np.abs(w))


def by_groups(threshold, axes):
    """The radial map of a threshold on norms over axes."""

    def apply(w, t):
        norm = np.sqrt((w**2).sum(axis=axes, keepdims=True))
        return np.where(norm == 0, 0, w * threshold(norm, t) / np.where(norm == 0, 1, norm))

    return apply
