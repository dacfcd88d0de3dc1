"""Projections against exhaustive search over all that they may return."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

RNG = np.random.default_rng(0)


def project(penalty, m, dtype=np.float64):
    with jax.enable_x64(True):
        return np.asarray(penalty.prox(jnp.asarray(m, dtype), 1.0))


def best_multiple(m, patterns):
    """min over q in patterns and s of |m - s q|^2, the s of each q in closed form."""
    inner, square = patterns @ m, (patterns**2).sum(1)
    return (m**2).sum() - (inner**2 / np.where(square == 0, 1, square)).max()


def magnitudes(count, size):
    """Normal, heavy-tailed, and with many equal."""
    draws = [np.abs(RNG.normal(size=size)), np.abs(RNG.standard_cauchy(size=size)), RNG.integers(0, 4, size) * 1.0]
    return [draws[i % 3] if i < 3 else np.abs(RNG.normal(size=size) ** (1 + i % 3)) for i in range(count)]


@pytest.mark.parametrize(("n", "size"), [(1, 8), (2, 6), (3, 5), (7, 4)])
def test_levels_are_the_best_of_all(n, size):
    patterns = np.array(list(itertools.product(range(n + 1), repeat=size)), float)
    for m in magnitudes(12, size):
        z = project(rvsm_jax.levels(n), m)
        assert ((z - m) ** 2).sum() <= best_multiple(m, patterns) + 1e-12 * (m**2).sum()
        top = z / (z.max() or 1)  # q / max(q)
        assert any(np.allclose(top * k, (top * k).round(), atol=1e-9) for k in range(1, n + 1)), z


@pytest.mark.parametrize(("n", "size"), [(2, 6), (3, 5)])
def test_levels_without_zero_are_the_best_of_all_and_keep_zeros(n, size):
    patterns = np.array(list(itertools.product(range(1, n + 1), repeat=size)), float)
    for m in magnitudes(12, size):
        m = np.append(m + 0.01, [0.0, 0.0])
        z = project(rvsm_jax.levels(n, zero=False), m)
        assert ((z == 0) == (m == 0)).all()
        assert ((z - m) ** 2).sum() <= best_multiple(m[:-2], patterns) + 1e-12 * (m**2).sum()


def test_ternary_and_binary_are_the_best_of_all():
    patterns = np.array(list(itertools.product((0, 1), repeat=9)), float)
    for m in magnitudes(12, 9):
        assert ((project(rvsm_jax.ternary(), m) - m) ** 2).sum() <= best_multiple(m, patterns) + 1e-12
        np.testing.assert_allclose(project(rvsm_jax.binary(), m), m.mean(), rtol=1e-14)
        assert ((m - m.mean()) ** 2).sum() <= best_multiple(m, np.ones((1, 9))) + 1e-12


def test_published_thresholds_and_fits_are_their_formulas():
    m = np.abs(RNG.normal(size=200))
    kept = m >= 0.7 * m.mean()
    np.testing.assert_allclose(project(rvsm_jax.ternary(0.7), m), np.where(kept, m[kept].mean(), 0), rtol=1e-13)

    d = m.max() / 15  # BinaryRelax's 4 bits, interval by interval
    q = np.zeros_like(m)
    for i in range(3, 15, 2):
        q[((i - 2) * d < m) & (m <= i * d)] = (i - 1) / 2
    q[m > 13 * d] = 7
    got = project(rvsm_jax.levels(7, fit="refit"), m)
    np.testing.assert_allclose(got, q * (m @ q) / (q @ q), rtol=1e-12)

    m[:50] = 0  # ADMM-NN's scan
    tried = [m.max() / 4 * (0.9 + 0.001 * k) for k in range(201)]
    rounded = [np.where(m > 0, np.clip(np.round(m / s), 1, 4), 0) * s for s in tried]
    best = min(rounded, key=lambda z: ((z - m) ** 2).sum())
    np.testing.assert_allclose(project(rvsm_jax.levels(4, zero=False, fit="scan"), m), best, rtol=1e-12)


@pytest.mark.parametrize("fit", ["scan", "refit"])
def test_the_exact_fit_is_never_worse(fit):
    for m in magnitudes(6, 300):
        exact, other = (project(rvsm_jax.levels(3, fit=f), m) for f in ("exact", fit))
        assert ((exact - m) ** 2).sum() <= ((other - m) ** 2).sum() * (1 + 1e-12)


SHAPES = [(1, 1), (1, 3), (2, 2), (3, 2), (4, 1), (2, 4)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_submatrix_keeps_the_most_energy_of_all_supports(rows, columns):
    blocks = np.abs(RNG.normal(size=(3, 5, 4, 4)) ** 3)
    z = project(rvsm_jax.submatrix(rows, columns), blocks)
    assert (((z != 0).any(-1).sum(-1) <= rows) & ((z != 0).any(-2).sum(-1) <= columns)).all()
    assert ((z == 0) | (z == blocks)).all()
    supports = itertools.product(itertools.combinations(range(4), rows), itertools.combinations(range(4), columns))
    energies = [(blocks[..., r, :][..., c] ** 2).sum((-1, -2)) for r, c in ((list(r), list(c)) for r, c in supports)]
    np.testing.assert_allclose((z**2).sum((-1, -2)), np.max(energies, axis=0), rtol=1e-12)


def test_submatrix_alternates_where_there_are_too_many_supports(monkeypatch):
    blocks = np.abs(RNG.normal(size=(40, 6, 6)))
    exact = project(rvsm_jax.submatrix(3, 3), blocks)
    monkeypatch.setattr("rvsm_jax.constraints.EXHAUSTIVE", 1)
    z = project(rvsm_jax.submatrix(3, 3), blocks)
    energy, best = (z**2).sum((-1, -2)), (exact**2).sum((-1, -2))
    assert (energy <= best * (1 + 1e-12)).all() and energy.mean() > 0.97 * best.mean()
    e = blocks**2  # no single exchange of a row, or of a column, keeps more: a local optimum
    for kept, held in (((z != 0).any(-1), (e * (z != 0).any(-2)[:, None, :]).sum(-1)),
                       ((z != 0).any(-2), (e * (z != 0).any(-1)[:, :, None]).sum(-2))):  # fmt: skip
        assert (np.where(kept, held, np.inf).min(-1) >= np.where(kept, 0, held).max(-1)).all()


def test_top_k_along_an_axis_keeps_k_of_each_block():
    m = RNG.integers(0, 5, size=(4, 3, 6)).astype(float)
    for axis in (0, -1):
        z = project(rvsm_jax.top_k(2, axis=axis), m)
        assert ((z == 0) | (z == m)).all()
        np.testing.assert_array_equal(np.sort(z, axis).take([-2, -1], axis), np.sort(m, axis).take([-2, -1], axis))
        assert ((z != 0).sum(axis) <= 2).all()
    penalty = rvsm_jax.top_k(2, axis=-1)
    assert penalty.value(jnp.asarray(z)) == 0 and penalty.value(jnp.ones((2, 3))) == jnp.inf


CONSTRAINTS = {
    "binary": rvsm_jax.binary(),
    "ternary": rvsm_jax.ternary(),
    "ternary 0.7": rvsm_jax.ternary(0.7),
    "levels": rvsm_jax.levels(3),
    "levels, scan": rvsm_jax.levels(3, zero=False, fit="scan"),
    "levels, refit": rvsm_jax.levels(3, fit="refit"),
    "submatrix": rvsm_jax.submatrix(0.5, 2),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_contract_of_every_constraint(name):
    penalty, m = CONSTRAINTS[name], np.abs(RNG.normal(size=(4, 4)))
    z = project(penalty, m)
    with jax.enable_x64(True):
        assert penalty.value(jnp.asarray(z)) == 0 and penalty.value(jnp.asarray(m)) == jnp.inf
    if name in ("binary", "ternary", "levels", "submatrix"):  # the exact ones: a projection is idempotent
        np.testing.assert_allclose(project(penalty, z), z, rtol=1e-12)
    for dtype in ("float32", "bfloat16"):
        got = penalty.prox(jnp.asarray(m).astype(dtype), 0.3)
        assert got.dtype == dtype and got.shape == m.shape
    np.testing.assert_allclose(penalty.prox(jnp.asarray(m, jnp.float32), 0.3), z, rtol=2e-5)
    for scale in (1e-30, 1e30):
        scaled = np.asarray(penalty.prox(jnp.asarray(m * scale, jnp.float32), 1.0), np.float64)
        np.testing.assert_allclose(scaled / scale, z, rtol=1e-4)
    assert not np.asarray(penalty.prox(jnp.zeros((4, 4)), 1.0)).any()
    assert np.isnan(penalty.prox(jnp.asarray(m, jnp.float32).at[1, 2].set(jnp.nan), 1.0)[1, 2])


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: rvsm_jax.levels(0), "n must be an int >= 1, got 0"),
        (lambda: rvsm_jax.levels(2.0), "n must be an int >= 1, got 2.0"),
        (lambda: rvsm_jax.levels(2, fit="best"), "fit must be one of 'exact', 'scan', 'refit', got 'best'"),
        (lambda: rvsm_jax.ternary(-0.1), "threshold must be a finite number >= 0, got -0.1"),
        (lambda: rvsm_jax.submatrix(1.5, 2), "rows must be an int >= 0 or a float in .0, 1., got 1.5"),
        (lambda: rvsm_jax.submatrix(1, -2), "columns must be .* got -2"),
    ],
)
def test_bad_arguments_are_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()


def test_a_count_and_a_fraction_are_not_confused():
    m = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert (project(rvsm_jax.top_k(1, axis=-1), m) != 0).sum() == 2
    assert (project(rvsm_jax.top_k(1.0, axis=-1), m) != 0).sum() == 4
