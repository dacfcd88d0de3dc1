"""Survivors in multiples: against every support, against every multiple, and at the edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from tests.problems import PENALTIES

SEPARABLE = ["l1", "transformed_l1"]
N = 7


def cases(seed, count, scale=2.0):
    rng = np.random.default_rng(seed)
    return [(np.abs(rng.normal(size=N)) * scale, float(rng.uniform(0.02, 1.5))) for _ in range(count)]


def allowed(k):
    return {*range(0, N + 1, k), N}


@pytest.mark.parametrize("k", [1, 3, 9])
def test_l0_in_multiples_is_the_exact_minimiser(k):
    """Over a support the best z is m itself; all 2^7 supports of an allowed size are tried."""
    penalty = rvsm_jax.in_multiples(rvsm_jax.l0(), k)
    supports = np.array(list(itertools.product([0, 1], repeat=N)))
    with jax.enable_x64(True):
        prox = jax.jit(penalty.prox)
        seen = set()
        for m, t in cases(k, 60):
            z = np.asarray(prox(jnp.asarray(m), t))
            costs = [(m**2 @ (1 - s)) / 2 + t * s.sum() for s in supports if s.sum() in allowed(k)]
            assert ((z - m) ** 2).sum() / 2 + t * np.count_nonzero(z) <= min(costs) + 1e-12
            assert np.count_nonzero(z) in allowed(k) and set(z) <= {0.0, *m}
            assert float(penalty.value(jnp.asarray(z))) == np.count_nonzero(z)
            plain = np.count_nonzero(m > np.sqrt(2 * t))
            seen.add(np.sign(np.count_nonzero(z) - plain))
        assert seen == {0} if k == 1 else seen >= {-1, 1}


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_best_multiple_of_the_largest(name):
    """J(c) written down and minimised in NumPy; the plain map where that leaves an allowed number."""
    plain, k = PENALTIES[name], 3
    penalty = rvsm_jax.in_multiples(plain, k)
    with jax.enable_x64(True):
        prox, of_plain = jax.jit(penalty.prox), jax.jit(plain.prox)
        rho = jax.jit(jax.vmap(lambda z: plain.value(z[None])))
        for m, t in cases(0, 25, 1.0):
            z, u = np.asarray(prox(jnp.asarray(m), t)), np.asarray(of_plain(jnp.asarray(m), t))
            h = np.where(u == 0, m, u)
            keep = (h - m) ** 2 / 2 + t * np.asarray(rho(jnp.asarray(h)))
            order = np.argsort(-m)
            best = min(allowed(k), key=lambda c: keep[order[:c]].sum() + (m[order[c:]] ** 2).sum() / 2)
            expected = np.zeros(N)
            expected[order[:best]] = h[order[:best]]
            np.testing.assert_allclose(z, expected, rtol=1e-12)
            if np.count_nonzero(u) in allowed(k):
                np.testing.assert_array_equal(z, u)
            if np.count_nonzero(z) < np.count_nonzero(u):  # dropped: no other set of survivors is cheaper
                supports = (np.array(s) for s in itertools.product([0, 1], repeat=N) if sum(s) in allowed(k))
                costs = [(keep @ s) + (m**2 / 2) @ (1 - s) for s in supports if (u[s > 0] > 0).all()]
                assert keep @ (z > 0) + (m**2 / 2) @ (z == 0) <= min(costs) + 1e-12


def test_edges():
    penalty = rvsm_jax.in_multiples(rvsm_jax.l0(), 4)
    prox = jax.jit(penalty.prox)
    assert prox(jnp.zeros(6), 0.1).tolist() == [0] * 6
    assert prox(jnp.zeros((0,)), 0.1).shape == (0,)
    assert prox(jnp.full(6, 3.0), 0.1).tolist() == [3] * 6  # all, though 6 is no multiple
    assert prox(jnp.array([3.0, 3, 3, 3, 3, 0]), 0.1).tolist() == [3, 3, 3, 3, 0, 0]  # of equal ones the first
    assert prox(jnp.full(6, 3.0), jnp.inf).tolist() == [0] * 6
    assert np.isnan(prox(jnp.array([3.0, jnp.nan, 2, 1, 2, 0]), 0.1)).tolist() == [0, 1, 0, 0, 0, 0]
    assert prox(jnp.full((2, 3), 1e30), 0.1).tolist() == jnp.full((2, 3), 1e30).tolist()
    assert penalty.value(jnp.array([1.0, 0, 0, 0, 0, 0])) == jnp.inf
    halves = prox(jnp.asarray([5, 4, 3, 2, 1], jnp.bfloat16), 0.9)
    assert halves.dtype == jnp.bfloat16 and halves.tolist() == [5, 4, 3, 2, 0]
    each = jax.jit(jax.vmap(penalty.prox))(jnp.array([[5.0, 4, 3, 2, 1]] * 2), jnp.array([0.9, 9.0]))
    assert each.tolist() == [[5, 4, 3, 2, 0], [0, 0, 0, 0, 0]]


def test_fractions_kept_in_multiples():
    m = jnp.asarray(np.arange(1.0, 21.0), jnp.float32)
    assert [int((jax.jit(rvsm_jax.top_k(keep).prox)(m, 1.0) > 0).sum()) for keep in (1, 1.0)] == [1, 20]
    survivors = {
        keep: int((jax.jit(rvsm_jax.top_k(keep, multiple=8).prox)(m, 1.0) > 0).sum())
        for keep in (0.0, 0.1, 0.6, 0.95, 1.0)
    }
    assert survivors == {0.0: 0, 0.1: 8, 0.6: 16, 0.95: 16, 1.0: 20}
    assert int((jax.jit(rvsm_jax.top_k(3, multiple=8).prox)(m[:5], 1.0) > 0).sum()) == 5
    assert rvsm_jax.top_k(0.6, multiple=8).value(m.at[:4].set(0)) == 0


def test_kernels_keep_multiples_of_their_inputs():
    prox = rvsm_jax.proximal_operator(rvsm_jax.in_multiples(rvsm_jax.l0(), 8), rvsm_jax.channels)
    rng = np.random.default_rng(0)
    w = {k: jnp.asarray(rng.normal(size=(3, 3, n, 4)), jnp.float32) for k, n in {"a": 16, "b": 32, "c": 3}.items()}
    kept = {k: int(np.asarray(x).any((0, 1, 3)).sum()) for k, x in prox(w, 15.0).items()}
    plain = rvsm_jax.proximal_operator(rvsm_jax.l0(), rvsm_jax.channels)(w, 15.0)
    before = {k: int(np.asarray(x).any((0, 1, 3)).sum()) for k, x in plain.items()}
    assert kept["a"] % 8 == kept["b"] % 8 == 0 and kept["c"] in (0, 3)
    assert before["a"] % 8 and before["b"] % 8 and 0 < kept["b"] < 32


@pytest.mark.parametrize("penalty", ["l0", "l1"])
def test_sparse_groups_are_exactly_minimised(penalty):
    """Brute force over a plane, and the optimality conditions of the sparse-group lasso."""
    rho = {"l0": lambda r: r > 0, "l1": lambda r: r}[penalty]
    line = np.linspace(-2.5, 2.5, 401)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    for x, t, mix in [(rng.normal(size=2) * 1.5, rng.uniform(0.05, 1), rng.uniform()) for _ in range(6)]:
        method = rvsm_jax.sparse_group(
            optax.sgd(1.0), PENALTIES[penalty], t, 1.0, mix=mix, groups=rvsm_jax.over(0), where=lambda path, leaf: True
        )
        with jax.enable_x64(True):
            y = np.asarray(method.sparse({"x": jnp.asarray(x)}, 0)["x"])

        def objective(y, x=x, t=t, mix=mix):
            norms = np.sqrt(2) * (1 - mix) * rho(np.sqrt((y**2).sum(-1))) + mix * np.abs(y).sum(-1)
            return ((y - x) ** 2).sum(-1) / 2 + t * norms

        assert objective(y) <= objective(np.vstack([grid, grid * [0, 1], grid * [1, 0], [[0, 0]]])).min() + 1e-12
    if penalty == "l1":
        w = rng.normal(size=(6, 5))
        with jax.enable_x64(True):
            method = rvsm_jax.sparse_group(optax.sgd(1.0), rvsm_jax.l1(), 0.7, 2.0, mix=0.4)
            u = np.asarray(method.sparse({"kernel": jnp.asarray(w)}, 0)["kernel"])
        within, between = 0.4 * 0.35, 0.6 * 0.35 * np.sqrt(6)
        for x, y in zip(w.T, u.T, strict=True):
            if not y.any():
                assert np.linalg.norm(np.maximum(np.abs(x) - within, 0)) <= between + 1e-12
            else:
                rest = x - y - between * y / np.linalg.norm(y)
                np.testing.assert_allclose(rest[y != 0], within * np.sign(y[y != 0]), atol=1e-12)
                assert (np.abs(rest) <= within + 1e-12).all()
        assert 0 < (u != 0).sum() < u.size


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: rvsm_jax.in_multiples("l0", 8), TypeError, "penalty must be a Penalty .* got 'l0'"),
        (lambda: rvsm_jax.in_multiples(rvsm_jax.top_k(3), 8), ValueError, "must be separable.*top_k"),
        (lambda: rvsm_jax.in_multiples(rvsm_jax.l0(), 0), ValueError, "multiple must be an integer >= 1, got 0"),
        (lambda: rvsm_jax.in_multiples(rvsm_jax.l0(), 2.0), ValueError, "multiple must be an integer >= 1, got 2.0"),
        (lambda: rvsm_jax.top_k(3, multiple=-8), ValueError, "multiple must be an integer >= 1, got -8"),
    ],
)
def test_bad_arguments_are_named(make, error, shown):
    with pytest.raises(error, match=shown):
        make()
