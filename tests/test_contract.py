"""One table, all promises: every recipe goes through the same contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rvsm_jax
from rvsm_jax.factors import compact, factorize, merge
from tests.problems import SGD, TREES, assert_close, gradients, one_step, run

RAMP = optax.linear_schedule(0.0, 0.05, 10)
A1 = rvsm_jax.transformed_l1(0.7)


def ssl(filters, shapes):
    lassos = {rvsm_jax.filters: filters, rvsm_jax.shapes: shapes}
    return rvsm_jax.ssl(SGD(), lassos, where=rvsm_jax.kernels, zero_below=0.3)


def admm_nn(rho):
    return rvsm_jax.admm_nn(SGD(), 0.5, 2, rho, 2)


RECIPES = {
    "rvsm l0": lambda: rvsm_jax.rvsm(SGD(), rvsm_jax.l0(), 0.02, 0.5),
    "rvsm l1": lambda: rvsm_jax.rvsm(SGD(), rvsm_jax.l1(), 0.02, 0.5),
    "rvsm tl1": lambda: rvsm_jax.rvsm(SGD(), A1, 0.02, 0.5),
    "rvsm top_k": lambda: rvsm_jax.rvsm(SGD(), rvsm_jax.top_k(0.5), 1.0, 0.5),
    "rvsm outside": lambda: rvsm_jax.rvsm(SGD(), rvsm_jax.l0(), 0.02, 0.5, learning_rate=0.01),
    "rvsm schedules": lambda: rvsm_jax.rvsm(optax.adam(RAMP), rvsm_jax.l1(), RAMP, RAMP, learning_rate=RAMP),
    "rgsm": lambda: rvsm_jax.rgsm(SGD(), rvsm_jax.l0(), 1.0, 0.5, 0.01, where=rvsm_jax.kernels),
    "sparse group": lambda: rvsm_jax.sparse_group(SGD(), A1, 0.02, 0.5, mix=0.3),
    "prox_sgd": lambda: rvsm_jax.prox_sgd(0.01, rvsm_jax.l1(), 1.0, momentum=0.9),
    "prox_sgd schedules": lambda: rvsm_jax.prox_sgd(RAMP, rvsm_jax.half_norm(), RAMP),
    "ssl": lambda: ssl(0.1, 0.1),
    "admm_nn prune": lambda: admm_nn(RAMP).prune,
    "admm_nn retrain": lambda: admm_nn(0.1).retrain,
    "admm_nn quantise": lambda: admm_nn(0.1).quantise,
    "admm_nn finish": lambda: admm_nn(0.1).finish,
    "binary_relax": lambda: rvsm_jax.binary_relax(SGD(), rvsm_jax.ternary(), RAMP, 2),
    "bcr": lambda: rvsm_jax.bcr(SGD(), 2, 3, 0.5, 0.5, 0.1, 2),
    "bcr_reweighted": lambda: rvsm_jax.bcr_reweighted(SGD(), 2, 3, 0.1, 2, zero_below=1.0),
    "svd_training": lambda: rvsm_jax.svd_training(SGD(), 0.1, 0.5),
    "low_rank": lambda: rvsm_jax.low_rank(SGD(), rvsm_jax.l1(), 2.0, 0.5),  # top_k has ties at singular values of I
}
STRENGTHS = {
    "rvsm": (lambda lam, beta: rvsm_jax.rvsm(SGD(), rvsm_jax.l1(), lam, beta), {"lam": 0.02, "beta": 0.5}),
    "rvsm outside": (
        lambda lam, rate: rvsm_jax.rvsm(SGD(), rvsm_jax.l1(), lam, 0.5, learning_rate=rate),
        {"lam": 0.02, "rate": 0.1},
    ),
    "rgsm": (
        lambda lam, beta, lasso: rvsm_jax.rgsm(SGD(), rvsm_jax.l1(), lam, beta, lasso),
        {"lam": 0.02, "beta": 0.5, "lasso": 0.02},
    ),
    "sparse group": (lambda lam, beta: rvsm_jax.sparse_group(SGD(), A1, lam, beta), {"lam": 0.02, "beta": 0.5}),
    "prox_sgd": (lambda lam, rate: rvsm_jax.prox_sgd(rate, rvsm_jax.l1(), lam), {"lam": 0.5, "rate": 0.01}),
    "ssl": (ssl, {"filters": 0.1, "shapes": 0.2}),
    "admm_nn prune": (lambda rho: admm_nn(rho).prune, {"rho": 0.1}),
    "admm_nn quantise": (lambda rho: admm_nn(rho).quantise, {"rho": 0.1}),
    "binary_relax": (lambda eta: rvsm_jax.binary_relax(SGD(), rvsm_jax.ternary(), eta, 4), {"eta": 0.5}),
    "bcr": (lambda rho: rvsm_jax.bcr(SGD(), 2, 3, 0.5, 0.5, rho, 2), {"rho": 0.1}),
    "bcr_reweighted": (lambda lam: rvsm_jax.bcr_reweighted(SGD(), 2, 3, lam, 2), {"lam": 0.1}),
    "svd_training": (
        lambda lam, orthogonal: rvsm_jax.svd_training(SGD(), lam, 0.5, orthogonal=orthogonal),
        {"lam": 0.1, "orthogonal": 0.5},
    ),
    "low_rank": (lambda lam, beta: rvsm_jax.low_rank(SGD(), rvsm_jax.l1(), lam, beta), {"lam": 2.0, "beta": 0.5}),
}
SMALLER = {  # of a kernel before and after ``sparse``; without an entry: some weights are zero
    "ssl": lambda before, after: not np.any((after != 0) & (abs(after) < 0.29)) and np.any(after == 0),
    "admm_nn retrain": lambda before, after: np.array_equal(before, after),
    "admm_nn quantise": lambda before, after: np.unique(abs(after[after != 0])).size <= 2,
    "admm_nn finish": lambda before, after: np.unique(abs(after[after != 0])).size <= 2,
    "bcr": lambda before, after: np.count_nonzero(after) <= after.size // 3,
    "low_rank": lambda before, after: np.linalg.matrix_rank(after.reshape(-1, 4), 1e-5) < 4,
    "svd_training": lambda before, after: np.linalg.matrix_rank(after.reshape(-1, 4), 1e-5) < 4,
}
SUPPORT = ("admm_nn retrain", "admm_nn quantise", "admm_nn finish")  # where a weight is zero it stays zero
recipes = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own adam, schedules, chains and MultiSteps rely on it; the links alone are tested without."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def method(name):
    return RECIPES[name]()


@functools.cache
def jitted(name):
    """The recipe's update, compiled once for each kind of tree."""
    return jax.jit(method(name).tx.update)


def steps(name, params, count=3):
    """So many steps; the third is the first in which what is renewed every second step is new."""
    tx = optax.GradientTransformation(method(name).tx.init, jitted(name))
    return run(tx, params, count)[0]


def start(name, params, dtype="float32"):
    """The parameters as the recipe takes them: SVD training's are factors."""
    params = factorize(params) if name == "svd_training" else params
    return jax.tree.map(lambda x: x.astype(dtype), params)


def signature(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@recipes
@pytest.mark.parametrize("tree", TREES)
def test_eager_is_jit_on_every_kind_of_tree(name, tree):
    params = start(name, TREES[tree]())
    found = steps(name, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert_close(run(method(name).tx, params, 3)[0], found)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True))


@recipes
def test_traced_once_with_donated_arguments_and_state_is_stable(name):
    tx, params, traces = method(name).tx, start(name, TREES["dict"]()), []
    state = tx.init(params)
    before = signature(state)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        traces.append(1)
        return one_step(tx, params, state)

    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 1 and signature(state) == before


@recipes
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float16", "float16")])
def test_mixed_precision_keeps_each_dtype(name, dtypes):
    of_params, of_gradients = dtypes
    tx, params = method(name).tx, start(name, TREES["dict"](), of_params)
    grads = jax.tree.map(lambda x: x.astype(of_gradients), gradients(params))
    updates, _ = jitted(name)(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    assert {x.dtype.name for x in jax.tree.leaves(new)} == {of_params}
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(new))


@recipes
def test_inside_optax_wrappers(name):
    params = start(name, TREES["dict"]())
    plain = steps(name, params)
    kernels = jax.tree.map_with_path(lambda path, x: any(getattr(key, "key", "") == "kernel" for key in path), params)
    labels = jax.tree.map(lambda kernel: "sparse" if kernel else "dense", kernels)
    masked = optax.masked(method(name).tx, kernels)
    parts = optax.partition({"sparse": method(name).tx, "dense": optax.sgd(0.1)}, labels)
    for tx in (masked, parts):
        found, _ = run(tx, params, steps=3, wrap=jax.jit)
        assert_close(found["conv"]["kernel"], plain["conv"]["kernel"])
        assert_close(found["dense"]["kernel"], plain["dense"]["kernel"])


@recipes
def test_multi_steps_averages_gradients(name):
    tx, params = optax.MultiSteps(method(name).tx, every_k_schedule=2), start(name, TREES["dict"]())
    update, state, moved = jax.jit(tx.update), tx.init(params), params
    for _ in range(3):
        grads = gradients(moved)
        first, state = update(jax.tree.map(lambda g: 0.5 * g, grads), state, moved)
        assert not any(np.asarray(u).any() for u in jax.tree.leaves(first))
        second, state = update(jax.tree.map(lambda g: 1.5 * g, grads), state, moved)
        moved = optax.apply_updates(moved, second)
    assert_close(moved, steps(name, params))


@recipes
def test_vmap_over_networks(name):
    tx, params = method(name).tx, start(name, TREES["dict"]())
    scaled = [jax.tree.map(lambda x, s=scale: s * x, params) for scale in (1, 2, -1)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scaled)
    got, _ = run(optax.GradientTransformation(jax.vmap(tx.init), jax.jit(jax.vmap(tx.update))), many, steps=3)
    for i, alone in enumerate(scaled):
        assert_close(jax.tree.map(lambda x, i=i: x[i], got), steps(name, alone))


@recipes
def test_sharded_parameters(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = start(name, {"kernel": jax.random.normal(jax.random.key(0), (16, 8)), "bias": jnp.ones(8)})
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data")))
    assert_close(steps(name, placed), steps(name, params))


@recipes
def test_missing_params_are_asked_for(name):
    params = start(name, TREES["dict"]())
    with pytest.raises(ValueError, match="needs the parameters"):
        method(name).tx.update(params, method(name).tx.init(params))


@recipes
def test_the_network_that_ships_keeps_its_structure_and_is_small(name):
    params = steps(name, start(name, TREES["dict"]()))
    u = jax.jit(method(name).sparse)(params, 3)
    assert jax.tree.structure(u) == jax.tree.structure(params) and signature(u) == signature(params)
    before, after = (np.asarray(merge(tree)["conv"]["kernel"]) for tree in (params, compact(u)))
    some_are_zero = any((np.asarray(leaf) == 0).any() for leaf in jax.tree.leaves(u))
    assert SMALLER[name](before, after) if name in SMALLER else some_are_zero


@recipes
def test_nan_gradients_are_not_hidden(name):
    params = start(name, TREES["dict"]())
    grads = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    updates, _ = jitted(name)(grads, method(name).tx.init(params), params)
    for u, w in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        held = (w == 0) if name in SUPPORT else np.zeros(w.shape, bool)
        if name == "admm_nn finish" and w.ndim > 1:  # weights on their levels stay there as well, 30 % of those left
            assert np.isnan(u[~held]).sum() == (~held).sum() - round(0.3 * (~held).sum())
        else:
            np.testing.assert_array_equal(np.isnan(u), ~held)


@pytest.mark.parametrize("name", STRENGTHS)
def test_every_strength_may_be_a_schedule_and_can_be_injected(name):
    """Numbers and numbers as a state's hyper-parameters do the same, and so do schedules, read at each step."""
    make, strengths = STRENGTHS[name]
    params = start(name, TREES["dict"]())
    plain, _ = run(make(**strengths).tx, params, steps=3, wrap=jax.jit)
    injectable = optax.inject_hyperparams(functools.wraps(make)(lambda **strengths: make(**strengths).tx))
    injected, _ = run(injectable(**strengths), params, steps=3, wrap=jax.jit)
    assert_close(injected, plain)
    ramps = {key: lambda step, value=value: value * (1 + 0.5 * step) for key, value in strengths.items()}
    scheduled, _ = run(make(**ramps).tx, params, steps=3, wrap=jax.jit)
    ramped, _ = run(injectable(**ramps), params, steps=3, wrap=jax.jit)
    assert_close(scheduled, ramped)
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (scheduled, plain)), strict=True))
