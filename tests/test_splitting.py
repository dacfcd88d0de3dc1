"""The links, and RVSM, RGSM and proximal SGD against a NumPy loop and theorems."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from tests.problems import (
    SGD,
    TREES,
    assert_close,
    by_groups,
    curved,
    everything,
    hard,
    lasso,
    one_step,
    path,
    run,
    soft,
    train,
    transformed,
)

A1 = rvsm_jax.transformed_l1(0.7)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own optimisers and schedules rely on it; the links alone are tested without."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# --- the links ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float32")])
def test_links_promote_nothing_silently(dtypes):
    of_params, of_gradients = dtypes
    prox = rvsm_jax.proximal_operator(rvsm_jax.l1())
    links = [rvsm_jax.relaxed_splitting(prox, 0.1, 1.0), rvsm_jax.group_penalty(prox, 0.1)]
    params = jax.tree.map(lambda x: x.astype(of_params), TREES["dict"]())
    grads = jax.tree.map(lambda x: x.astype(of_gradients), params)
    with jax.numpy_dtype_promotion("strict"):
        for link, expected in [
            *((link, of_gradients) for link in links),
            (rvsm_jax.proximal_step(prox, 0.1), of_params),
        ]:
            updates, _ = link.update(grads, link.init(params), params)
            assert {x.dtype.name for x in jax.tree.leaves(updates)} == {expected}


@pytest.mark.parametrize(
    "penalty", [rvsm_jax.l0(), rvsm_jax.l1(), rvsm_jax.scad(1.0), rvsm_jax.mcp(1.0)], ids=["l0", "l1", "scad", "mcp"]
)
def test_the_pull_in_front_of_nesterov_momentum_keeps_no_sum_in_memory(penalty):
    tx, w = rvsm_jax.rvsm(SGD(), penalty, 1e-4, 0.1, where=everything).tx, jnp.ones((200, 100))

    def step(w, state, gradient):
        updates, state = tx.update(gradient, state, w)
        return optax.apply_updates(w, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(w, tx.init(w), w).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < w.nbytes


LINKS = {
    "relaxed_splitting": lambda prox: rvsm_jax.relaxed_splitting(prox, 0.1, 1.0),
    "proximal_step": lambda prox: rvsm_jax.proximal_step(prox, 0.1),
    "group_penalty": lambda prox: rvsm_jax.group_penalty(prox, 0.1),
    "fixed_support": lambda prox: rvsm_jax.fixed_support(),
    "admm_splitting": lambda prox: rvsm_jax.admm_splitting(prox, 0.5, lam=0.1),
    "relaxed_projection": lambda prox: rvsm_jax.relaxed_projection(prox, 0.5),
    "partial_projection": lambda prox: rvsm_jax.partial_projection(prox, 0.5),
    "reweighted_penalty": lambda prox: rvsm_jax.reweighted_penalty(rvsm_jax.filters, 0.1),
    "penalty_gradient": lambda prox: rvsm_jax.penalty_gradient(squares, 0.1),
}


def squares(params):
    return sum((x**2).sum() for x in jax.tree.leaves(params) if hasattr(x, "shape"))


@pytest.mark.parametrize("link", LINKS)
def test_frozen_leaves_without_a_gradient_stay_as_they_are(link):
    tx = LINKS[link](rvsm_jax.proximal_operator(rvsm_jax.l1()))
    params = {"a": {"kernel": jnp.full((2, 2), 0.5)}, "b": {"kernel": jnp.array([[0.0, 3.0]])}}
    grads = {"a": {"kernel": None}, "b": {"kernel": jnp.ones((1, 2))}}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["a"]["kernel"] is None
    alone = {"b": params["b"]}
    expected, _ = tx.update({"b": grads["b"]}, tx.init(alone), alone)
    np.testing.assert_array_equal(updates["b"]["kernel"], expected["b"]["kernel"])


@pytest.mark.parametrize("link", LINKS)
def test_a_whole_equinox_module_with_its_functions(link):
    tx = LINKS[link](rvsm_jax.proximal_operator(rvsm_jax.l1()))
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda m: (jax.vmap(m)(jnp.ones((3, 4))) ** 2).sum())(model)
    updates, _ = tx.update(grads, tx.init(eqx.filter(model, eqx.is_array)), model)
    assert eqx.apply_updates(model, updates).activation is model.activation


def test_fixed_support_keeps_zeros_and_moves_the_rest():
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), rvsm_jax.fixed_support())
    params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.zeros(2)}
    new, _ = run(tx, params, wrap=jax.jit)
    assert ((new["kernel"] == 0) == (params["kernel"] == 0)).all() and (new["bias"] != 0).all()


def test_half_precision_weights_are_pulled_as_far_as_others():
    link = rvsm_jax.relaxed_splitting(rvsm_jax.proximal_operator(rvsm_jax.l1()), 1e-4, 0.1)
    for dtype in ("bfloat16", "float16"):
        w = {"kernel": jnp.array([[1.0, 0.7, 0.1]]).astype(dtype)}
        pull, _ = link.update({"kernel": jnp.zeros((1, 3))}, link.init(w), w)
        np.testing.assert_allclose(pull["kernel"], 1e-4, rtol=1e-3)


def test_strengths_can_be_injected():
    prox = rvsm_jax.proximal_operator(rvsm_jax.l0())
    tx = optax.chain(
        optax.inject_hyperparams(rvsm_jax.relaxed_splitting, static_args=("prox",))(prox=prox, lam=0.02, beta=0.5),
        SGD(),
    )
    params = TREES["dict"]()
    assert_close(run(tx, params, wrap=jax.jit)[0], run(rvsm_jax.rvsm(SGD(), rvsm_jax.l0(), 0.02, 0.5).tx, params)[0])
    state = tx.init(params)
    state[0].hyperparams["beta"] = jnp.asarray(2.0)
    stronger = rvsm_jax.rvsm(SGD(), rvsm_jax.l0(), 0.02, 2.0).tx
    assert_close(one_step(tx, params, state)[0], one_step(stronger, params, stronger.init(params))[0])


def test_beta_schedule_of_zero_is_no_pull():
    prox = rvsm_jax.proximal_operator(rvsm_jax.l0())
    tx = rvsm_jax.relaxed_splitting(prox, 0.1, lambda step: 0.0 * step)
    params = TREES["dict"]()
    assert_close(run(optax.chain(tx, SGD()), params)[0], run(SGD(), params)[0])


# --- against a NumPy loop -----------------------------------------------------------------------------------------

THRESHOLDS = {
    "l0": (rvsm_jax.l0(), rvsm_jax.weights, hard),
    "l1": (rvsm_jax.l1(), rvsm_jax.weights, soft),
    "tl1": (A1, rvsm_jax.weights, transformed),
    "group l0": (rvsm_jax.l0(), rvsm_jax.over(1), by_groups(hard, 1)),
    "group l1": (rvsm_jax.l1(), rvsm_jax.over(1), by_groups(soft, 1)),
}


@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("route", ["inside", "outside"])
def test_rvsm_is_the_numpy_loop(kind, route):
    penalty, groups, threshold = THRESHOLDS[kind]
    lam, beta, eta, momentum = 0.03, 0.4, 0.05, 0.9
    w = np.random.default_rng(3).normal(size=(5, 4))
    method = rvsm_jax.rvsm(
        optax.sgd(eta, momentum, nesterov=True), penalty, lam, beta, groups=groups, where=everything,
        learning_rate=None if route == "inside" else eta,
    )  # fmt: skip
    got = train(method.tx, curved(jnp), w, 30)
    v = np.zeros_like(w)
    for _ in range(30):
        pull = beta * (w - threshold(w, lam / beta))
        g = curved(np)(w) + (pull if route == "inside" else 0)
        v = momentum * v + g
        w = w - eta * (g + momentum * v) - (0 if route == "inside" else eta * pull)
    np.testing.assert_allclose(got, w, rtol=1e-9, atol=1e-12)
    with jax.enable_x64(True):
        u = method.sparse({"w": jnp.asarray(got)}, 30)["w"]
    np.testing.assert_allclose(u, threshold(w, lam / beta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["group l0", "group l1"])
def test_rgsm_is_the_numpy_loop(kind):
    penalty, groups, threshold = THRESHOLDS[kind]
    lam1, beta, lam2, eta = 0.05, 0.4, 0.02, 0.05
    w = np.random.default_rng(4).normal(size=(5, 4))
    w[2] = 0
    method = rvsm_jax.rgsm(optax.sgd(eta), penalty, lam1, beta, lam2, groups=groups, where=everything)
    got = train(method.tx, curved(jnp), w, 30)
    for _ in range(30):
        norm = np.sqrt((w**2).sum(1, keepdims=True))
        lasso_gradient = np.where(norm == 0, 0, w / np.where(norm == 0, 1, norm))
        w = w - eta * (curved(np)(w) + lam2 * lasso_gradient + beta * (w - threshold(w, lam1 / beta)))
    np.testing.assert_allclose(got, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_prox_sgd_is_the_numpy_loop(kind):
    penalty, groups, threshold = THRESHOLDS[kind]
    lam, eta, momentum = 0.3, 0.05, 0.9
    w = np.random.default_rng(5).normal(size=(5, 4))
    method = rvsm_jax.prox_sgd(eta, penalty, lam, momentum=momentum, groups=groups, where=everything)
    got, v = train(method.tx, curved(jnp), w, 30), np.zeros_like(w)
    for _ in range(30):
        v = momentum * v + curved(np)(w)
        w = threshold(w - eta * v, eta * lam)
    np.testing.assert_allclose(got, w, rtol=1e-9, atol=1e-12)
    assert ((got == 0) == (w == 0)).all()


# --- against theorems ---------------------------------------------------------------------------------------------


def test_prox_sgd_meets_the_optimality_conditions_of_the_lasso():
    a, b, f_grad, lipschitz = lasso()
    lam = 5.0
    method = rvsm_jax.prox_sgd(1 / lipschitz, rvsm_jax.l1(), lam, where=everything)
    x = train(method.tx, lambda x: jnp.asarray(a).T @ (jnp.asarray(a) @ x - jnp.asarray(b)), np.zeros(15), 4000)
    g = f_grad(x)
    assert 0 < (x == 0).sum() < 15
    np.testing.assert_allclose(g[x != 0], -lam * np.sign(x[x != 0]), atol=1e-9)
    assert (abs(g[x == 0]) <= lam + 1e-9).all()


def test_rvsm_decreases_its_lagrangian_and_reaches_a_critical_point():
    a, b, f_grad, lipschitz = lasso()
    lam, beta = 2.0, 3.0
    method = rvsm_jax.rvsm(optax.sgd(1 / (beta + lipschitz)), rvsm_jax.l1(), lam, beta, where=everything)
    operator = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=everything)

    def lagrangian(w):
        u = soft(w, lam / beta)
        return ((a @ w - b) ** 2).sum() / 2 + lam * abs(u).sum() + beta / 2 * ((w - u) ** 2).sum()

    gradient = lambda x: jnp.asarray(a).T @ (jnp.asarray(a) @ x - jnp.asarray(b))  # noqa: E731
    w = np.full(15, 0.5)
    values = [lagrangian(w), *map(lagrangian, path(method.tx, gradient, w, 60))]
    assert len(values) == 61 and (np.diff(values) <= 1e-12).all()
    w = train(method.tx, gradient, w, 6000)
    with jax.enable_x64(True):
        u = np.asarray(operator({"w": jnp.asarray(w)}, lam / beta)["w"])
    np.testing.assert_allclose(f_grad(w) + beta * (w - u), 0, atol=1e-8)


def test_proximal_step_leaves_exact_zeros_after_apply_updates():
    prox = rvsm_jax.proximal_operator(rvsm_jax.l0())
    tx = optax.chain(optax.adam(0.1), rvsm_jax.proximal_step(prox, 0.3))
    for dtype in ("float32", "bfloat16"):
        params = jax.tree.map(lambda x, d=dtype: x.astype(d), TREES["dict"]())
        params, _ = run(tx, params, steps=5, wrap=jax.jit)
        kernel = np.asarray(params["conv"]["kernel"], np.float32)
        assert (kernel == 0).any() and (abs(kernel[kernel != 0]) > 0.5).all()


# --- what is refused ----------------------------------------------------------------------------------------------

PROX = rvsm_jax.proximal_operator(rvsm_jax.l0())


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: rvsm_jax.relaxed_splitting(PROX, -1e-6, 1.0), ValueError, "lam must be non-negative, got -1e-06"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1e-6, 0.0), ValueError, "beta must be positive, got 0.0"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1e-6, -2), ValueError, "beta must be positive, got -2"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, float("nan"), 1.0), ValueError, "got nan"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1.0, float("inf")), ValueError, "got inf"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1.0, "1"), TypeError, "beta must be a real number, got '1'"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1.0, jnp.ones(3)), TypeError, "beta must be a real number"),
        (lambda: rvsm_jax.relaxed_splitting(0.5, 1.0, 1.0), TypeError, "prox must be a function"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1.0, 1.0, learning_rate=-1), ValueError, "learning_rate .* got -1"),
        (lambda: rvsm_jax.proximal_step(PROX, -0.1), ValueError, "strength must be non-negative, got -0.1"),
        (lambda: rvsm_jax.group_penalty(PROX, -0.1), ValueError, "strength must be non-negative, got -0.1"),
        (lambda: rvsm_jax.group_penalty(lambda w, t: w, 0.1), TypeError, "operator must come from proximal_operator"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, None, 1.0), TypeError, "lam must be a real number, got None"),
        (lambda: rvsm_jax.fixed_support("kernel"), TypeError, "where must be a function, got 'kernel'"),
        (lambda: rvsm_jax.rvsm(0.1, rvsm_jax.l0(), 1.0, 1.0), TypeError, "optimizer must be an optax transformation"),
        (lambda: rvsm_jax.rvsm(SGD(), rvsm_jax.l0(), -1, 1.0), ValueError, "lam must be non-negative, got -1"),
        (lambda: rvsm_jax.rgsm(SGD(), rvsm_jax.l0(), 1, 1.0, -3), ValueError, "lam2 must be .* got -3"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, lambda step: -0.5, 1.0), ValueError, r"lam\(0\) must be .* got -0.5"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, 1.0, lambda step: -2), ValueError, r"beta\(0\) must be .* got -2"),
        (lambda: rvsm_jax.relaxed_splitting(PROX, lambda step: None, 1.0), TypeError, r"lam\(0\) must be a real"),
        (lambda: rvsm_jax.sparse_group(SGD(), rvsm_jax.l1(), 1, 1.0, mix=1.5), ValueError, "mix must be .* got 1.5"),
        (lambda: rvsm_jax.prox_sgd(-0.1, rvsm_jax.l0(), 1.0), ValueError, "learning_rate must be .* got -0.1"),
        (lambda: rvsm_jax.prox_sgd(0.1, rvsm_jax.l0(), -1.0), ValueError, "lam must be .* got -1.0"),
    ],
)  # fmt: skip
def test_bad_strengths_are_refused_at_construction(make, error, shown):
    with pytest.raises(error, match=shown):
        make()


def test_updates_of_another_shape_are_refused():
    tx, w = rvsm_jax.relaxed_splitting(PROX, 1.0, 1.0), {"kernel": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"the shapes of the parameters, got \(1, 2\) for \(3, 2\)"):
        tx.update({"kernel": jnp.ones((1, 2))}, tx.init(w), w)
