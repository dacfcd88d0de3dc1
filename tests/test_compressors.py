"""Every neighbouring method against a slow NumPy loop, and ADMM against the lasso."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import factors
from rvsm_jax.proximal import selected
from tests.problems import TREES, curved, everything, lasso, soft, train

RNG = np.random.default_rng(7)
WEIGHTS = RNG.normal(size=(6, 5))
ETA, MOMENTUM, STEPS = 0.05, 0.9, 23


def sgd():
    return optax.sgd(ETA, MOMENTUM)


def loop(gradient, w, steps=STEPS, after=lambda w: w):
    """SGD with momentum by hand; ``gradient(t, w)``."""
    v = np.zeros_like(w)
    for t in range(steps):
        v = MOMENTUM * v + gradient(t, w)
        w = after(w - ETA * v)
    return w


def shipped(method, w):
    with jax.enable_x64(True):
        return np.asarray(method.sparse({"w": jnp.asarray(w)}, STEPS)["w"])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def largest(w, k):
    flat = w.ravel().copy()
    flat[np.argsort(-np.abs(flat), kind="stable")[k:]] = 0
    return flat.reshape(w.shape)


def scanned(w, n):
    """ADMM-NN's levels without zero, zeros kept."""
    best = None
    for s in abs(w).max() / n * np.linspace(0.9, 1.1, 201):
        z = np.where(w == 0, 0, np.sign(w) * s * np.clip(np.ceil(abs(w) / s - 0.5), 1, n))
        error = ((z - w) ** 2).sum()
        best = (error, z) if best is None or error < best[0] else best
    return best[1]


def admm(project, every, rho):
    """f's gradient with ADMM's pull in the scaled form; z and the dual live between the calls."""
    z = x = None

    def gradient(t, w):
        nonlocal z, x
        if t == 0:
            z, x = project(w), np.zeros_like(w)
        elif t % every == 0:
            z = project(w + x)
            x = x + w - z
        return curved(np)(w) + rho * (w - z + x)

    return gradient


def test_admm_nn_is_the_numpy_loop_through_all_its_trainings():
    stages = rvsm_jax.admm_nn(sgd(), 0.5, 2, 0.4, 5, where=everything)
    w = train(stages.prune.tx, curved(jnp), WEIGHTS, STEPS)
    close(w, expected := loop(admm(lambda w: largest(w, 15), 5, 0.4), WEIGHTS))
    w, expected = shipped(stages.prune, w), largest(expected, 15)
    close(w, expected)

    w = shipped(stages.retrain, train(stages.retrain.tx, curved(jnp), w, STEPS))
    support = expected != 0
    expected = loop(lambda t, w: curved(np)(w) * support, expected)
    close(w, expected)
    assert (w != 0).sum() == 15

    w = train(stages.quantise.tx, curved(jnp), w, STEPS)
    pull = admm(lambda w: scanned(w, 2), 5, 0.4)
    close(w, expected := loop(lambda t, w: pull(t, w) * support, expected))

    w = train(stages.finish.tx, curved(jnp), w, STEPS)
    target = scanned(expected, 2)
    order = np.argsort(np.where(support, abs(expected - target), np.inf), axis=None, kind="stable")
    fixed = np.zeros(w.size, bool)
    fixed[order[:4]] = True  # 30 % of 15, rounded to even
    fixed = fixed.reshape(w.shape)
    expected = loop(lambda t, w: curved(np)(w) * support, expected, after=lambda w: np.where(fixed, target, w))
    close(w, expected)
    u = shipped(stages.finish, w)
    close(u, scanned(expected, 2))
    assert np.unique(abs(u[support])).size <= 2 and not u[~support].any()


def test_admm_nn_takes_settings_by_path():
    stages = rvsm_jax.admm_nn(sgd(), {"a": 1, "b": 0.5}, {"a": 1, "b": 2}, 0.4, 5)
    params = {name: jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32) for name in "abc"}
    u = stages.prune.sparse(params, 0)
    assert [int((u[name] != 0).sum()) for name in "abc"] == [1, 4, 8]
    quantised = stages.quantise.sparse(u, 0)
    assert quantised["c"] is params["c"] and np.unique(abs(quantised["b"])).size <= 3


def test_ssl_is_the_numpy_loop():
    lassos = {rvsm_jax.filters: 0.2, rvsm_jax.shapes: 0.3}
    method = rvsm_jax.ssl(sgd(), lassos, where=everything, zero_below=0.02)

    def gradient(t, w):
        norms = [np.sqrt((w**2).sum(axis, keepdims=True)) for axis in (0, 1)]
        directions = [np.where(n == 0, 0, w / np.where(n == 0, 1, n)) for n in norms]
        return curved(np)(w) + 0.2 * directions[0] + 0.3 * directions[1]

    w = train(method.tx, curved(jnp), WEIGHTS, 60)
    close(w, loop(gradient, WEIGHTS, 60, after=lambda w: np.where(abs(w) <= 0.02, 0, w)))
    assert 0 < (w == 0).sum() < w.size and shipped(method, w) is not None


def test_ssl_of_whole_layers_between_shortcuts():
    shapes = jax.eval_shape(lambda: rvsm_jax.models.preact_resnet(jax.random.key(0), width=2).params)
    chosen, paths, leaves = selected(shapes, rvsm_jax.models.between_shortcuts)
    assert len(chosen) == 18 and all(leaves[i].shape[:2] == (3, 3) and "block" in paths[i] for i in chosen)
    method = rvsm_jax.ssl(sgd(), {rvsm_jax.layers: 0.2}, where=everything, zero_below=0.0)
    w = train(method.tx, curved(jnp), WEIGHTS, STEPS)
    close(w, loop(lambda t, w: curved(np)(w) + 0.2 * w / np.sqrt((w**2).sum()), WEIGHTS))


def ternary(v):
    order = np.sort(abs(v), axis=None)[::-1]
    k = 1 + np.argmax(np.cumsum(order) ** 2 / np.arange(1, v.size + 1))
    return np.sign(largest(v, k)) * order[:k].mean()


@pytest.mark.parametrize(
    ("penalty", "project"),
    [(rvsm_jax.binary(), lambda v: np.sign(v) * abs(v).mean()), (rvsm_jax.ternary(), ternary)],
)
def test_binary_relax_is_the_numpy_loop_in_both_phases(penalty, project):
    eta = lambda step: 1.3 ** (step // 5).astype(jnp.float64)  # noqa: E731
    method = rvsm_jax.binary_relax(sgd(), penalty, eta, 15, where=everything)
    for steps in (12, STEPS):
        v, w, velocity = WEIGHTS.copy(), WEIGHTS.copy(), np.zeros_like(WEIGHTS)
        for t in range(steps):
            velocity = MOMENTUM * velocity + curved(np)(w)
            v = v - ETA * velocity
            strength = 1.3 ** (t // 5)
            w = project(v) if t >= 15 else (v + strength * project(v)) / (1 + strength)
        got = train(method.tx, curved(jnp), WEIGHTS, steps)
        close(got, w)
        close(shipped(method, got), project(v))  # the projection of w, which lies between v and Q(v), is that of v


def block_by_block(w, rows, columns, f):
    z = np.zeros_like(w.T)
    for i, j in itertools.product(range(0, z.shape[0], rows), range(0, z.shape[1], columns)):
        z[i : i + rows, j : j + columns] = f(w.T[i : i + rows, j : j + columns])
    return z.T


def best_submatrix(block, rows, columns):
    found = []
    for r in itertools.combinations(range(block.shape[0]), min(rows, block.shape[0])):
        for c in itertools.combinations(range(block.shape[1]), min(columns, block.shape[1])):
            z = np.zeros_like(block)
            z[np.ix_(r, c)] = block[np.ix_(r, c)]
            found.append(z)
    return max(found, key=lambda z: (z**2).sum())


def test_bcr_by_admm_is_the_numpy_loop():
    method = rvsm_jax.bcr(sgd(), 3, 4, 2, 2, 0.4, 5, where=everything)
    project = lambda w: block_by_block(w, 3, 4, lambda b: best_submatrix(b, 2, 2))  # noqa: E731
    w = train(method.tx, curved(jnp), WEIGHTS, STEPS)
    close(w, expected := loop(admm(project, 5, 0.4), WEIGHTS))
    close(shipped(method, w), project(expected))


def test_bcr_reweighted_is_the_numpy_loop():
    lam, eps, below = 0.05, 0.1, 0.5
    method = rvsm_jax.bcr_reweighted(sgd(), 3, 4, lam, 5, eps=eps, zero_below=below, where=everything)
    reweighting = None

    def of_block(b):
        return 2 / ((b**2).sum(0, keepdims=True) + eps) + 2 / ((b**2).sum(1, keepdims=True) + eps)

    def gradient(t, w):
        nonlocal reweighting
        reweighting = block_by_block(w, 3, 4, of_block) if t % 5 == 0 else reweighting
        return curved(np)(w) + lam * reweighting * w

    def kept(b):
        b = np.where(np.sqrt((b**2).sum(0, keepdims=True)) > below, b, 0)
        return np.where(np.sqrt((b**2).sum(1, keepdims=True)) > below, b, 0)

    w = train(method.tx, curved(jnp), WEIGHTS, STEPS)
    close(w, expected := loop(gradient, WEIGHTS))
    u = shipped(method, w)
    close(u, block_by_block(expected, 3, 4, kept))
    assert 0 < (u == 0).sum() < u.size


def test_low_rank_is_the_numpy_loop():
    lam, beta = 0.6, 0.5
    method = rvsm_jax.low_rank(optax.sgd(ETA), rvsm_jax.l0(), lam, beta, where=everything)

    def project(w):
        u, s, v = np.linalg.svd(w, full_matrices=False)
        return (u * np.where(s > np.sqrt(2 * lam / beta), s, 0)) @ v

    w = WEIGHTS
    for _ in range(STEPS):
        w = w - ETA * (curved(np)(w) + beta * (w - project(w)))
    got = train(method.tx, curved(jnp), WEIGHTS, STEPS)
    close(got, w)
    close(shipped(method, got), project(w))
    assert 0 < np.linalg.matrix_rank(project(w)) < 5


def test_svd_training_is_the_numpy_loop():
    lam, mu, energy = 0.3, 0.7, 0.15
    method = rvsm_jax.svd_training(optax.sgd(ETA), lam, energy, orthogonal=mu)
    with jax.enable_x64(True):
        start = jax.tree.map(np.asarray, factors.decompose(jnp.asarray(WEIGHTS)))

    def gradient(x):
        return jax.vjp(factors.merge, x)[1](curved(jnp)(factors.merge(x)))[0]

    got = train(method.tx, gradient, start, STEPS)
    u, s, v = start
    np.testing.assert_allclose((u * s) @ v, WEIGHTS, rtol=1e-12)
    for _ in range(STEPS):
        g, m, norm = curved(np)((u * abs(s)) @ v), abs(s), np.sqrt((s**2).sum())
        to_u = g @ v.T * m + mu * 4 * u @ (u.T @ u - np.eye(5)) / 25
        to_v = m[:, None] * (u.T @ g) + mu * 4 * (v @ v.T - np.eye(5)) @ v / 25
        to_s = np.sign(s) * (u.T @ g @ v.T).diagonal() + lam * (np.sign(s) / norm - m.sum() * s / norm**3)
        u, s, v = u - ETA * to_u, s - ETA * to_s, v - ETA * to_v
    for found, wanted in zip(got, (u, s, v), strict=True):
        close(found, wanted)
    with jax.enable_x64(True):
        ships = method.sparse({"w": jax.tree.map(jnp.asarray, got)}, STEPS)["w"]
    order = np.argsort(-abs(s))
    kept = next(k for k in range(1, 6) if (s[order[:k]] ** 2).sum() >= (1 - energy) * (s**2).sum())
    assert kept < 5 and set(np.flatnonzero(ships.s)) == set(order[:kept])


# --- ADMM, RVSM and the lasso -------------------------------------------------------------------------------------


def quadratic(hessian, linear):
    return lambda x: jnp.asarray(hessian) @ x - jnp.asarray(linear)


def test_admm_and_rvsm_reach_the_same_lasso_solution():
    a, b, f_grad, lipschitz = lasso()
    hessian, linear, lam, beta = a.T @ a, a.T @ b, 5.0, 40.0
    prox = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=everything)

    def by_admm(hessian, linear):
        top = np.linalg.norm(hessian, 2)
        tx = optax.chain(rvsm_jax.admm_splitting(prox, 20.0, every=10, lam=lam), optax.sgd(1 / (top + 20)))
        return train(tx, quadratic(hessian, linear), np.zeros(15), 30_000)

    def by_rvsm(beta, steps):
        method = rvsm_jax.rvsm(optax.sgd(1 / (lipschitz + beta)), rvsm_jax.l1(), lam, beta, where=everything)
        return soft(train(method.tx, quadratic(hessian, linear), np.zeros(15), steps), lam / beta)

    x = by_admm(hessian, linear)  # the lasso's optimality conditions
    on, g = abs(x) > 1e-8, f_grad(x)
    assert 0 < on.sum() < 15
    np.testing.assert_allclose(g[on], -lam * np.sign(x[on]), atol=1e-8)
    assert (abs(g) <= lam + 1e-8).all()
    # u of RVSM solves the lasso of min_w f(w) + beta/2 |w - u|^2, whose Hessian is (H^-1 + I / beta)^-1 ...
    smoothed = np.linalg.inv(np.linalg.inv(hessian) + np.eye(15) / beta)
    centre = np.linalg.solve(hessian, linear)
    np.testing.assert_allclose(by_rvsm(beta, 5_000), by_admm(smoothed, smoothed @ centre), atol=1e-8)
    # ... and so the lasso itself as beta grows, its distance falling as 1 / beta
    distances = [np.linalg.norm(by_rvsm(beta, 60_000) - x) for beta in (1e3, 1e4)]
    assert distances[1] < 1e-2 and 7 < distances[0] / distances[1] < 13


def test_admm_s_dual_is_the_gradient_at_its_solution_when_rho_changes():
    a, b, f_grad, lipschitz = lasso()
    prox = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=everything)
    rho = lambda step: 5.0 + 45 * jnp.minimum(step.astype(jnp.float64) / 5_000, 1.0)  # noqa: E731
    link = rvsm_jax.admm_splitting(prox, rho, every=5, lam=5.0)
    tx = optax.chain(link, optax.sgd(1 / (lipschitz + 50)))
    x = train(tx, quadratic(a.T @ a, a.T @ b), np.zeros(15), 30_000)
    on = abs(x) > 1e-8
    np.testing.assert_allclose(f_grad(x)[on], -5.0 * np.sign(x[on]), atol=1e-8)
    assert (abs(f_grad(x)) <= 5 + 1e-8).all()


def test_admm_keeps_single_precision_copies_of_half_precision_weights():
    prox = rvsm_jax.proximal_operator(rvsm_jax.top_k(0.5))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREES["dict"]())
    state = rvsm_jax.admm_splitting(prox, 1.0).init(params)
    assert {x.dtype.name for x in jax.tree.leaves((state.z, state.y))} == {"float32"}
    assert state.z["conv"]["bias"] is None
    v = rvsm_jax.relaxed_projection(prox, 1.0).init(params).v
    assert {x.dtype.name for x in jax.tree.leaves(v)} == {"float32"}


# --- what is refused ----------------------------------------------------------------------------------------------

PROX = rvsm_jax.proximal_operator(rvsm_jax.top_k(0.5))


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: rvsm_jax.admm_splitting(0.5, 1.0), TypeError, "prox must be a function"),
        (lambda: rvsm_jax.admm_splitting(PROX, 0.0), ValueError, "rho must be positive, got 0.0"),
        (lambda: rvsm_jax.admm_splitting(PROX, 1.0, every=0), ValueError, "every must be at least 1, got 0"),
        (lambda: rvsm_jax.admm_splitting(PROX, 1.0, every=2.0), TypeError, "every must be an int, got 2.0"),
        (lambda: rvsm_jax.relaxed_projection(PROX, 1.5), ValueError, r"blend must be in \[0, 1\], got 1.5"),
        (lambda: rvsm_jax.relaxed_projection(PROX, -0.5), ValueError, "blend must be non-negative, got -0.5"),
        (lambda: rvsm_jax.partial_projection(PROX, 1.5), ValueError, r"share must be in \[0, 1\], got 1.5"),
        (lambda: rvsm_jax.reweighted_penalty(rvsm_jax.filters, 1.0, eps=0.0), ValueError, "eps must be .* got 0.0"),
        (lambda: rvsm_jax.penalty_gradient("l2", 1.0), TypeError, "value must be a function, got 'l2'"),
        (lambda: rvsm_jax.ssl(sgd(), {}), ValueError, "lassos must name at least one kind of groups"),
        (lambda: rvsm_jax.ssl(0.1, {rvsm_jax.filters: 1.0}), TypeError, "optimizer must be an optax transformation"),
        (lambda: rvsm_jax.svd_training(sgd(), 1.0, 2.0), ValueError, r"energy must be in \[0, 1\], got 2.0"),
        (lambda: rvsm_jax.binary_relax(sgd(), rvsm_jax.binary(), -1.0, 5), ValueError, "eta must be .* got -1.0"),
        (lambda: rvsm_jax.in_turn(PROX, 3), TypeError, "every operator must be a function, got 3"),
    ],
)
def test_bad_arguments_are_refused(make, error, shown):
    with pytest.raises(error, match=shown):
        make()
