"""Every proximal map against brute-force minimisation, in three precisions, and at its edges."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import rvsm_jax
from tests.problems import PENALTIES

SEPARABLE = {
    "l0": lambda a: rvsm_jax.l0(),
    "l1": lambda a: rvsm_jax.l1(),
    "transformed_l1": rvsm_jax.transformed_l1,
    "scad": lambda a: rvsm_jax.scad(a, 2 + a),
    "mcp": rvsm_jax.mcp,
    "half_norm": lambda a: rvsm_jax.half_norm(),
    "two_thirds_norm": lambda a: rvsm_jax.two_thirds_norm(),
}


def rho(name, a):
    """Each penalty's definition, written down again in NumPy."""
    knee, flat = a, (2 + a) * a
    scad = lambda z: np.where(  # noqa: E731
        z <= knee,
        z,
        np.where(z <= flat, (2 * flat * z - z**2 - knee**2) / (2 * (flat - knee)), (flat + knee) / 2),
    )
    return {
        "l0": lambda z: (z != 0).astype(float),
        "l1": lambda z: z,
        "transformed_l1": lambda z: (a + 1) * z / (a + z),
        "scad": scad,
        "mcp": lambda z: np.where(z <= a, z - z**2 / (2 * a), a / 2),
        "half_norm": np.sqrt,
        "two_thirds_norm": lambda z: z ** (2 / 3),
    }[name]


def best_on_grid(penalty, m, t, points=20_001, rounds=3):
    """min_z 1/2 (z - m)^2 + t rho(z) over [0, m], by grids that close in on the best point of the last one."""
    objective = lambda z: (z - m) ** 2 / 2 + t * penalty(z)  # noqa: E731
    low, high, best = 0.0, m, np.inf
    for _ in range(rounds):
        z = np.linspace(low, high, points)
        values = objective(z)
        i = values.argmin()
        best = min(best, values[i])
        low, high = z[max(i - 1, 0)], z[min(i + 1, points - 1)]
    return min(best, objective(np.zeros(1))[0])


@pytest.mark.parametrize("name", SEPARABLE)
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(m=st.floats(0, 5), t=st.floats(0, 4), a=st.floats(0.05, 4))
def test_prox_minimises_its_objective(name, m, t, a):
    with jax.enable_x64(True):
        z = float(SEPARABLE[name](a).prox(jnp.float64(m), t))
    value = (z - m) ** 2 / 2 + t * float(rho(name, a)(np.array([z]))[0])
    assert 0 <= z <= m + 1e-12
    assert value - best_on_grid(rho(name, a), m, t) <= 1e-8


@pytest.mark.parametrize("a", [1e-6, 0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
def test_transformed_l1_is_the_published_closed_form(a, dtype, tolerance):
    for t in (1e-3, 0.01, 1.0):
        jump = t * (a + 1) / a if t <= a**2 / (2 * (a + 1)) else np.sqrt(2 * t * (a + 1)) - a / 2
        m = jump * np.array([0.9, 1.001, 1.1, 2.0, 50.0])
        phi = np.arccos(1 - 27 * t * a * (a + 1) / (2 * (a + m[1:]) ** 3))
        z = 2 / 3 * (a + m[1:]) * np.cos(phi / 3) - 2 * a / 3 + m[1:] / 3
        with jax.enable_x64(True):
            got = np.asarray(rvsm_jax.transformed_l1(a).prox(jnp.asarray(m, dtype), t), np.float64)
        assert got[0] == 0
        np.testing.assert_allclose(got[1:], z, atol=tolerance * m[1], rtol=tolerance)


@pytest.mark.parametrize("name", SEPARABLE)
def test_value_is_the_definition(name):
    m = np.array([0.0, 0.3, 1.1, 7.0])
    with jax.enable_x64(True):
        value = float(SEPARABLE[name](1.2).value(jnp.asarray(m)))
    np.testing.assert_allclose(value, rho(name, 1.2)(m).sum(), rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_half_and_single_precision_follow_double(name, dtype):
    m = jnp.linspace(0, 4, 257).astype(dtype)
    with jax.enable_x64(True):
        exact = PENALTIES[name].prox(m.astype(jnp.float64), 0.37)
    z = PENALTIES[name].prox(m, 0.37)
    assert z.dtype == m.dtype
    near_a_jump = np.abs(np.gradient(np.asarray(exact))) > 0.2
    error = np.abs(np.asarray(z, np.float64) - np.asarray(exact))
    assert (error <= 4 * float(jnp.finfo(dtype).eps) * 4)[~near_a_jump].all()


@pytest.mark.parametrize("name", PENALTIES)
def test_strength_zero_and_zero_magnitudes(name):
    m = jnp.array([0.0, 1e-30, 0.2, 3.0, 1e30])
    if name != "top_k":  # an indicator has no strength
        np.testing.assert_allclose(PENALTIES[name].prox(m, 0.0), m, rtol=1e-6)
    assert PENALTIES[name].prox(jnp.zeros(4), 1.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", PENALTIES)
def test_infinite_strength_gives_zero_and_nan_stays(name):
    if name != "top_k":
        assert PENALTIES[name].prox(jnp.array([1.0, 5.0]), jnp.inf).tolist() == [0.0, 0.0]
    assert jnp.isnan(PENALTIES[name].prox(jnp.array([jnp.nan, 1.0, 0.0]), 0.1))[0]


@pytest.mark.parametrize("name", SEPARABLE)
def test_derivatives_in_magnitude_and_strength(name):
    with jax.enable_x64(True):
        prox, h = SEPARABLE[name](0.9).prox, 1e-6
        for m, t in [(0.05, 0.3), (2.5, 0.3), (4.0, 1.1), (0.0, 0.3), (1.0, 0.0)]:
            got = jax.grad(prox, argnums=(0, 1))(jnp.float64(m), jnp.float64(t))
            assert np.isfinite(got).all()
            if m > 0 and t > 0:
                want = [(prox(m + h, t) - prox(m - h, t)) / (2 * h), (prox(m, t + h) - prox(m, t - h)) / (2 * h)]
                np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("a", "m", "t", "slope"), [(1, 2e19, 0.1, 1), (1, 2, np.inf, 0), (1, 2, 1e38, 0)])
def test_derivative_of_transformed_l1_at_the_ends_of_single_precision(a, m, t, slope):
    assert jax.grad(rvsm_jax.transformed_l1(a).prox)(jnp.float32(m), t) == slope


@pytest.mark.parametrize("m", [1.3713e6, 1.828e6])
def test_derivative_of_transformed_l1_in_large_units(m):
    prox, h = rvsm_jax.transformed_l1(1e6).prox, 100.0
    with jax.enable_x64(True):
        slope = float(prox(jnp.float64(m + h), 1e6) - prox(jnp.float64(m - h), 1e6)) / (2 * h)
    np.testing.assert_allclose(jax.grad(prox)(jnp.float32(m), 1e6), slope, rtol=1e-4)


@pytest.mark.parametrize("name", PENALTIES)
def test_value_has_a_finite_gradient_at_zero(name):
    gradient = jax.grad(PENALTIES[name].value)(jnp.array([0.0, 0.5, 2.0]))
    assert np.isfinite(gradient).all()


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 14))
def test_top_k_keeps_exactly_the_k_largest(values, k):
    m = jnp.asarray(values, jnp.float32)
    z = np.asarray(rvsm_jax.top_k(k).prox(m, 1.0))
    kept = z[z > 0]
    assert (z == np.where(z > 0, m, 0)).all()
    assert kept.size == min(k, np.count_nonzero(values))
    np.testing.assert_array_equal(np.sort(kept), np.sort(values)[len(values) - kept.size :])


def test_top_k_value_is_an_indicator():
    assert rvsm_jax.top_k(0.5).value(jnp.array([0.0, 1.0])) == 0
    assert rvsm_jax.top_k(0.5).value(jnp.array([2.0, 1.0])) == jnp.inf


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: rvsm_jax.transformed_l1(0.0), r"a must be in \[1e-6, 1e6\], got 0.0"),
        (lambda: rvsm_jax.transformed_l1(-1.0), "got -1.0"),
        (lambda: rvsm_jax.transformed_l1(float("nan")), "got nan"),
        (lambda: rvsm_jax.scad(0.0), "scale must be a positive finite number, got 0.0"),
        (lambda: rvsm_jax.scad(1.0, a=2.0), "a must be a finite number above 2, got 2.0"),
        (lambda: rvsm_jax.scad(1.0, a=float("inf")), "a must be a finite number above 2, got inf"),
        (lambda: rvsm_jax.mcp(float("inf")), "gamma must be a positive finite number, got inf"),
        (lambda: rvsm_jax.top_k(-1), "got -1"),
        (lambda: rvsm_jax.top_k(1.5), "got 1.5"),
        (lambda: rvsm_jax.top_k(True), "got True"),
        (lambda: rvsm_jax.top_k("a"), "got 'a'"),
    ],
)
def test_bad_shapes_are_refused(make, shown):
    with pytest.raises(ValueError, match=shown.replace("(", r"\(")):
        make()


def test_equal_numbers_of_any_kind_make_the_same_penalty():
    half = [0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5)]
    assert len({rvsm_jax.transformed_l1(a) for a in half}) == len({rvsm_jax.mcp(gamma=a) for a in half}) == 1
