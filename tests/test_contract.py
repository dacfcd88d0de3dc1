"""The neighbouring recipes keep the links' promises: traced once, jit is eager, dtypes kept, wrappers fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax.factors import compact, factorize, merge
from tests.problems import TREES

SGD = functools.partial(optax.sgd, 0.01, momentum=0.9, nesterov=True)
SSL = {rvsm_jax.filters: 0.1, rvsm_jax.shapes: 0.1}
RECIPES = {
    "ssl": lambda: rvsm_jax.ssl(SGD(), SSL, where=rvsm_jax.kernels, zero_below=0.3),
    "admm_nn quantise": lambda: rvsm_jax.admm_nn(SGD(), 0.5, 2, 0.1, 2).quantise,
    "bcr": lambda: rvsm_jax.bcr(SGD(), 2, 3, 0.5, 0.5, 0.1, 2),
    "low_rank": lambda: rvsm_jax.low_rank(SGD(), rvsm_jax.top_k(2), 1.0, 0.5),
    "svd_training": lambda: rvsm_jax.svd_training(SGD(), 0.1, 0.5),
}
SMALLER = {
    "ssl": lambda before, after: not np.any((after != 0) & (abs(after) < 0.29)) and np.any(after == 0),
    "admm_nn quantise": lambda before, after: np.unique(abs(after[after != 0])).size <= 2,
    "bcr": lambda before, after: np.count_nonzero(after) <= after.size // 3,
    "low_rank": lambda before, after: np.linalg.matrix_rank(after.reshape(-1, 4), 1e-5) == 2,
    "svd_training": lambda before, after: np.linalg.matrix_rank(after.reshape(-1, 4), 1e-5) < 4,
}
recipes = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own chains rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def start(name, dtype="float32"):
    params = TREES["dict"]()
    params = factorize(params) if name == "svd_training" else params
    return jax.tree.map(lambda x: x.astype(dtype), params)


def one_step(tx, params, state):
    grads = jax.tree.map(lambda x: 0.3 * x + jnp.asarray(0.1, x.dtype), params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), a, b)


def signature(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@recipes
def test_traced_once_state_is_stable_jit_is_eager_and_the_network_is_small(name):
    method, params, traces = RECIPES[name](), start(name), []
    state, first = method.tx.init(params), params

    @jax.jit
    def step(params, state):
        traces.append(1)
        return one_step(method.tx, params, state)

    before = signature(state)
    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 1 and signature(state) == before
    assert_close(step(first, method.tx.init(first))[0], one_step(method.tx, first, method.tx.init(first))[0])
    shipped = jax.jit(method.sparse)(params, 4)
    assert jax.tree.structure(shipped) == jax.tree.structure(params)
    kernels = [merge(tree)["conv"]["kernel"] for tree in (params, compact(shipped))]
    assert SMALLER[name](*map(np.asarray, kernels))


@recipes
def test_half_precision_stays_and_is_finite(name):
    tx, params = RECIPES[name]().tx, start(name, "bfloat16")
    new, _ = jax.jit(functools.partial(one_step, tx))(params, tx.init(params))
    assert {x.dtype.name for x in jax.tree.leaves(new)} == {"bfloat16"}
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(new))


@pytest.mark.parametrize("name", ["ssl", "admm_nn quantise", "svd_training"])
def test_inside_optax_wrappers(name):
    method, params = RECIPES[name](), start(name)
    kernels = jax.tree.map_with_path(lambda path, x: any(getattr(key, "key", "") == "kernel" for key in path), params)
    plain, _ = jax.jit(functools.partial(one_step, method.tx))(params, method.tx.init(params))
    tx = optax.partition(
        {"sparse": optax.masked(method.tx, kernels), "dense": optax.sgd(0.1)},
        jax.tree.map(lambda kernel: "sparse" if kernel else "dense", kernels),
    )
    parts, _ = jax.jit(functools.partial(one_step, tx))(params, tx.init(params))
    for layer in ("conv", "dense"):
        assert_close(parts[layer]["kernel"], plain[layer]["kernel"])


@recipes
def test_nan_is_not_hidden_and_missing_params_are_asked_for(name):
    tx, params = RECIPES[name]().tx, start(name)
    state, grads = tx.init(params), jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    updates, _ = jax.jit(tx.update)(grads, state, params)
    masked = "quantise" in name  # where a pruned weight is zero it stays zero
    jax.tree.map(lambda u, w: np.testing.assert_array_equal(np.isnan(u), ~(masked & (w == 0))), updates, params)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, state)
