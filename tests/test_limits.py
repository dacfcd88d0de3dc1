"""Convergence of RVSM on the no-overlap networks: its descent, its limits, and what is beyond each condition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import lagrangian, limits
from rvsm_jax.models import geometry, no_overlap
from rvsm_jax.models import no_overlap_binary as binary
from tests.problems import hard, soft, transformed

A = 0.7  # of transformed l1
PENALTIES = {"l0": rvsm_jax.l0(), "l1": rvsm_jax.l1(), "transformed_l1": rvsm_jax.transformed_l1(A)}
NUMPY = {"l0": hard, "l1": soft, "transformed_l1": functools.partial(transformed, a=A)}
penalties = pytest.mark.parametrize("name", PENALTIES)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def strength(name, threshold, beta):
    return beta * {"l0": threshold**2 / 2, "l1": threshold, "transformed_l1": threshold * A / (1 + A)}[name]


def sparse_target(rng, d):
    w = rng.normal(size=d) * (rng.random(d) < 0.6)
    w[0] = 1.0
    return jnp.asarray(w / np.linalg.norm(w))


def problems(count, d=7, seed=0):
    """w*, w^0, k, beta and threshold of many runs: beta at most 1 / k, so that A stays positive."""
    rng = np.random.default_rng(seed)
    target = jnp.stack([sparse_target(rng, d) for _ in range(count)])
    start = rng.normal(size=(count, d))
    start = jnp.asarray(start / np.linalg.norm(start, axis=1, keepdims=True))
    k = rng.integers(1, 11, count)
    beta = 10 ** rng.uniform(-2, 0, count) / k
    threshold = 10 ** rng.uniform(-2, -0.6, count)
    return target, start, jnp.asarray(k, float), jnp.asarray(beta), jnp.asarray(threshold)


@functools.partial(jax.jit, static_argnames=("name", "steps", "rate", "watch"))
def rvsm(name, target, start, k, beta, threshold, *, rate=0.5, steps=3000, watch=False):
    """w, u and the Lagrangian of one run after another, with eta = rate 2 / (beta + L)."""

    def one(target, start, k, beta, threshold):
        lam = strength(name, threshold, beta)
        eta = rate * 2 / (beta + no_overlap.curvature(k))
        method = rvsm_jax.rvsm(optax.sgd(eta), PENALTIES[name], lam, beta, where=lagrangian.everywhere)
        operator = rvsm_jax.proximal_operator(PENALTIES[name], where=lagrangian.everywhere)
        value = lagrangian.lagrangian(lambda w: no_overlap.population_loss(w, target, k), operator, lam, beta)
        gradient = lambda w: no_overlap.population_gradient(w, target, k)  # noqa: E731
        return lagrangian.iterate(method, gradient, start, steps, value if watch else None)

    return jax.vmap(one)(target, start, k, beta, threshold)


@functools.partial(jax.jit, static_argnames="name")
def limit(name, target, k, beta, threshold, support):
    def one(target, k, beta, threshold, support):
        return limits.relu_limit(target, k, PENALTIES[name], strength(name, threshold, beta), beta, support)

    return jax.vmap(one)(target, k, beta, threshold, support)


# --- steps --------------------------------------------------------------------------------------------------------


@penalties
def test_a_run_through_the_links_is_the_algorithm_written_in_numpy(name):
    target, start, k, beta, threshold = (x[:1] for x in problems(3))
    w, u, _ = rvsm(name, target, start, k, beta, threshold, steps=40)
    v, x, k, beta, t = (np.asarray(y)[0] for y in (target, start, k, beta, threshold))
    share = strength(name, t, beta) / beta
    largest = 1 / k + (k - 1) / (k * np.pi)
    for _ in range(40):
        r, cosine = np.linalg.norm(x), x @ v / np.linalg.norm(x)
        angle = np.arccos(cosine)
        a = (k + (k * k - k) / np.pi - k / np.pi * np.sin(angle) / r - (k * k - k) / np.pi / r) / k**2
        gradient = a * x - (np.pi - angle) / (k * np.pi) * v
        x = x - (gradient + beta * (x - NUMPY[name](x, share))) / (beta + largest)
    np.testing.assert_allclose(w[0], x, atol=1e-9)
    np.testing.assert_allclose(u[0], NUMPY[name](x, share), atol=1e-9)


@penalties
def test_the_lagrangian_falls_at_every_step_below_the_bound_from_anywhere(name):
    target, start, k, beta, threshold = problems(200, seed=1)
    beta = beta * k * 3  # up to 3
    start = start.at[:20].set(-target[:20] + 1e-6 * start[:20]).at[20].set(0.0).at[21].set(-target[21])
    _, _, value = rvsm(name, target, start, k, beta, threshold, rate=0.999, steps=400, watch=True)
    assert jnp.diff(value, axis=1).max() < 1e-14
    assert (value[:, 0] - value[:, -1] > 1e-3).mean() > 0.9


@penalties
def test_beyond_the_bound_it_rises(name):
    values = rvsm(name, *problems(200, seed=1), rate=1.3, steps=400, watch=True)[2]
    assert np.isfinite(values).all()
    assert (jnp.diff(values, axis=1).max(axis=1) > 1e-6).mean() > 0.5


# --- limits -------------------------------------------------------------------------------------------------------


@penalties
def test_the_limit_of_the_iteration_is_the_thresholding(name):
    target, start, k, beta, threshold = problems(60, seed=2)
    w, u, _ = rvsm(name, target, start, k, beta, threshold)
    found = limit(name, target, k, beta, threshold, u != 0)
    assert found.residual.max() < 1e-10
    np.testing.assert_allclose(found.w, w, atol=1e-8)
    np.testing.assert_allclose(found.u, u, atol=1e-8)
    assert (u == 0).sum() - (target == 0).sum() > 20 and (u != 0).sum() > 100  # true weights on both sides of it


def test_for_l1_the_limit_is_predicted_with_no_look_at_the_iteration():
    target, start, k, beta, threshold = problems(60, seed=3)
    w, u, _ = rvsm("l1", target, start, k, beta, threshold)
    found = limit("l1", target, k, beta, threshold, jnp.ones_like(target, bool))
    np.testing.assert_allclose(found.w, w, atol=1e-8)
    a, b = jax.vmap(no_overlap.coefficients)(w, target, k)
    v = (b / a)[:, None] * target
    lam = strength("l1", threshold, beta)
    np.testing.assert_allclose(u, soft(v, (lam / a + lam / beta)[:, None]), atol=1e-8)


@penalties
def test_the_thresholding_solves_its_equation_and_is_stationary_at_the_summed_strength(name):
    a, beta, share = jnp.array(0.4), 0.3, 0.1
    y = jnp.linspace(-1.5, 1.5, 301)
    w = limits.thresholding(PENALTIES[name], beta * share, beta, a, y)
    u = NUMPY[name](np.asarray(w), share)
    np.testing.assert_allclose((a + beta) * w - beta * u, y, atol=1e-12)
    assert set(np.sign(u) * np.sign(y)) == {0.0, 1.0}
    slope = {"l0": np.zeros_like, "l1": np.ones_like, "transformed_l1": lambda m: A * (A + 1) / (A + m) ** 2}[name]
    on, summed = u != 0, beta * share * (1 / a + 1 / beta)
    np.testing.assert_allclose((np.abs(u) + summed * slope(np.abs(u)))[on], np.abs(y / a)[on], atol=1e-12)


def test_thresholding_has_the_derivatives_of_its_root():
    y = jnp.array([0.05, 0.6, -1.3])
    for penalty in PENALTIES.values():
        f = jax.jit(lambda a, y, p=penalty: limits.thresholding(p, 0.03, 0.3, a, y))
        got = jax.jit(jax.jacfwd(f))(jnp.array(0.4), y)
        np.testing.assert_allclose(got, (f(0.4 + 1e-6, y) - f(0.4 - 1e-6, y)) / 2e-6, atol=1e-7)


def test_in_its_band_l0_has_two_limits_and_the_start_decides():
    target, k, beta, threshold = jnp.array([0.9, np.sqrt(0.19), 0.0]), jnp.array(2.0), jnp.array(0.4), jnp.array(0.3)
    run = functools.partial(rvsm, "l0", target[None], k=k[None], beta=beta[None], threshold=threshold[None])
    (kept,), (lost,) = (run(start=x)[1] for x in (target[None], target[None].at[0, 1].set(0.0)))
    assert (kept != 0).tolist() == [True, True, False] and (lost != 0).tolist() == [True, False, False]
    for u in (kept, lost):
        found = limits.relu_limit(target, 2, PENALTIES["l0"], strength("l0", 0.3, 0.4), 0.4, u != 0)
        np.testing.assert_allclose(found.u, u, atol=1e-8)


@penalties
def test_under_the_conditions_angle_and_support_are_recovered(name):
    target, start, k, beta, _ = problems(200, seed=4)
    far = jnp.pi - jax.vmap(geometry.angle)(start, target)  # delta
    beta = jnp.minimum(beta, far * jnp.sin(far) / (k * jnp.pi))
    threshold = 0.1 * jnp.ones(200)  # below 1 / sqrt(d)
    w, u, value = rvsm(name, target, start, k, beta, threshold, steps=6000, watch=True)
    assert jnp.diff(value, axis=1).max() < 1e-14
    assert not ((u != 0) & (target == 0)).any()
    assert not ((u == 0) & (jnp.abs(target) > 0.1 * (1 + 2 * beta * k)[:, None])).any()
    assert jax.vmap(geometry.angle)(w, target).max() < 0.1
    assert ((u != 0) == (target != 0)).all(axis=1).mean() > 0.5


# --- beyond -------------------------------------------------------------------------------------------------------


@penalties
def test_with_a_large_threshold_nothing_is_kept_and_w_is_known(name):
    target, start, k, beta, _ = problems(60, seed=5)
    beta, threshold = beta * k, jnp.full_like(beta, 3.0)
    w, u, _ = rvsm(name, target, start, k, beta, threshold)
    largest = no_overlap.curvature(k)
    assert not u.any()
    np.testing.assert_allclose(w, (largest / (largest + beta))[:, None] * target, atol=1e-8)
    np.testing.assert_allclose(limit(name, target, k, beta, threshold, u != 0).w, w, atol=1e-8)


def test_from_the_opposite_direction_l0_ends_at_the_saddle_and_near_it_leaves_late():
    target = jnp.array([[0.8, -0.6, 0.0]])
    k, beta, threshold = (jnp.array([x]) for x in (4.0, 0.01, 0.01))
    w, _, _ = rvsm("l0", target, -target, k, beta, threshold)
    np.testing.assert_allclose(w[0], no_overlap.critical_points(target[0], 4).saddle, atol=1e-12)
    side = jnp.array([[0.6, 0.8, 0.0]])
    starts = jnp.concatenate([-target + gap * side for gap in (1e-1, 1e-2, 1e-3)])
    many = [jnp.tile(x, 3) for x in (k, beta, threshold)]
    left = [
        (value > 0.05).sum() for value in rvsm("l0", jnp.tile(target, (3, 1)), starts, *many, steps=6000, watch=True)[2]
    ]
    assert left[0] * 4 < left[1] and left[1] * 4 < left[2] < 6000  # as 1 / (pi - angle)


def test_l1_leaves_the_opposite_direction_by_its_own_pull():
    target = jnp.array([[0.8, -0.6, 0.0]])
    w, _, _ = rvsm("l1", target, -target, *(jnp.array([x]) for x in (4.0, 0.01, 0.01)))
    assert geometry.angle(w[0], target[0]) < 0.01


def test_with_a_large_beta_l0_keeps_the_support_of_its_start():
    target, start, k, _, _ = problems(50, seed=6)
    _, u, _ = rvsm("l0", target, start, k, jnp.full(50, 30.0), jnp.full(50, 0.3))
    assert ((u != 0) <= (jnp.abs(start) > 0.3)).all()
    assert ((u != 0) != (target != 0)).any(axis=1).mean() > 0.9


# --- binary -------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def rvscgd(name, target, start, pull, beta, threshold, steps=4000):
    def one(target, start, pull, beta, threshold):
        lam = strength(name, threshold, beta)
        outer = jnp.sqrt(jnp.array([pull * 2 * np.sqrt(2 * np.pi)]))
        optimizer = optax.chain(optax.sgd(1 / (pull + beta)), binary.unit_sphere())
        method = rvsm_jax.rvsm(optimizer, PENALTIES[name], lam, beta, where=lagrangian.everywhere)
        operator = rvsm_jax.proximal_operator(PENALTIES[name], where=lagrangian.everywhere)
        chord = lambda w: binary.attraction(outer) * (1 - jnp.cos(geometry.angle(w, target)))  # noqa: E731
        value = lagrangian.lagrangian(chord, operator, lam, beta)
        return lagrangian.iterate(method, lambda w: binary.coarse_gradient(w, target, outer), start, steps, value)

    return jax.vmap(one)(target, start, pull, beta, threshold)


@penalties
def test_rvscgd_descends_and_ends_at_its_thresholding(name):
    target, start, _, _, threshold = problems(60, seed=7)
    pull = jnp.asarray(10 ** np.random.default_rng(7).uniform(-1, 0.3, 60))
    beta = 0.3 * pull
    w, u, value = rvscgd(name, target, start, pull, beta, threshold)
    assert jnp.diff(value, axis=1).max() < 1e-14
    np.testing.assert_allclose(jnp.linalg.norm(w, axis=1), 1, atol=1e-14)
    solve = lambda *x: limits.binary_limit(x[0], x[1], PENALTIES[name], strength(name, x[3], x[2]), x[2], x[4])  # noqa: E731
    found = jax.jit(jax.vmap(solve))(target, pull, beta, threshold, u != 0)
    assert found.residual.max() < 1e-10
    np.testing.assert_allclose(found.w, w, atol=1e-8)
    assert not ((u != 0) & (target == 0)).any() and (u == 0).sum() > (target == 0).sum()
    assert jax.vmap(geometry.angle)(w, target).max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"lam": -1.0}, "lam must be non-negative, got -1.0"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"k": 0}, "k must be an integer >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(arguments, shown):
    wanted = {"target": jnp.array([1.0, 0.0]), "k": 2, "penalty": PENALTIES["l1"], "lam": 0.1, "beta": 0.1} | arguments
    with pytest.raises(ValueError, match=shown):
        limits.relu_limit(**wanted)
    if "k" not in arguments:
        del wanted["k"]
        with pytest.raises(ValueError, match=shown):
            limits.binary_limit(pull=jnp.array(0.3), **wanted)


def test_a_target_off_the_sphere_is_refused():
    with pytest.raises(ValueError, match=r"target must have norm 1, got 2.0"):
        limits.binary_limit(jnp.array([2.0, 0.0]), jnp.array(0.3), PENALTIES["l1"], 0.1, 0.1)
