"""The no-overlap networks: closed forms against integrals, samples and autodiff, and at every degenerate point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

from rvsm_jax.models import geometry, no_overlap
from rvsm_jax.models import no_overlap_binary as binary

SIZES = [(2, 1), (3, 4), (6, 9)]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def pair(d, seed=0):
    rng = np.random.default_rng([seed, d])
    return jnp.asarray(rng.normal(size=d)), jnp.asarray(rng.normal(size=d))


def turned(target, t, size, seed=1):
    """A vector of this size at angle t from the target."""
    unit = target / jnp.linalg.norm(target)
    side = jnp.asarray(np.random.default_rng(seed).normal(size=target.size))
    side = side - (side @ unit) * unit
    return size * (np.cos(t) * unit + np.sin(t) * side / jnp.linalg.norm(side))


def plane_mean(f, power):
    """E |x|^power f(direction) of a Gaussian x in the plane, by quadrature over the direction."""
    radial = quad(lambda r: r ** (power + 1) * np.exp(-(r**2) / 2), 0, 40)[0]
    angular = sum(quad(f, a, a + np.pi / 180, epsabs=1e-13)[0] for a in np.arange(-180, 180) * np.pi / 180)
    return radial * angular / (2 * np.pi)


def mean_and_error(x):
    return np.mean(x, axis=0), np.std(x, axis=0) / np.sqrt(len(x))


# --- relu ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("t", [0.0, 0.4, 2.0, np.pi])
def test_loss_is_the_integral(k, t):
    target = jnp.array([0.7, 0.0])
    w = turned(target, t, 1.3)
    relu = lambda size, at: lambda p: size * max(np.cos(p - at), 0)  # noqa: E731
    h, star = relu(1.3, t), relu(0.7, 0.0)
    same = plane_mean(lambda p: (h(p) - star(p)) ** 2, 2)  # one patch with itself
    other = (plane_mean(h, 1) - plane_mean(star, 1)) ** 2  # two different patches
    expected = (k * same + (k * k - k) * other) / k**2
    np.testing.assert_allclose(no_overlap.population_loss(w, target, k), expected, atol=1e-9)


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_loss_and_gradient_are_means_over_samples(d, k):
    w, target = pair(d)
    x = jax.random.normal(jax.random.key(d), (40_000, k, d))
    loss = lambda w, x: no_overlap.empirical_loss(w, no_overlap.forward(target, x[None]), x[None])  # noqa: E731
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(w, x)
    for sampled, exact in [
        (values, no_overlap.population_loss(w, target, k)),
        (gradients, no_overlap.population_gradient(w, target, k)),
    ]:
        mean, error = mean_and_error(np.asarray(sampled))
        assert (np.abs(mean - exact) < 4.5 * error).all()


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_autodiff_is_the_closed_form_at_every_angle(d, k):
    _, target = pair(d)
    loss, closed = (jax.jit(f, static_argnums=2) for f in (no_overlap.population_loss, no_overlap.population_gradient))
    gradient = jax.jit(jax.grad(no_overlap.population_loss), static_argnums=2)
    for t in [0.0, 1e-12, 1e-8, 1e-3, 0.5, 2.0, np.pi - 1e-3, np.pi - 1e-8, np.pi]:
        w = turned(target, t, 0.8)
        np.testing.assert_allclose(gradient(w, target, k), closed(w, target, k), atol=1e-14)
        a, b = no_overlap.coefficients(w, target, k)
        np.testing.assert_allclose(closed(w, target, k), a * w - b * target, atol=1e-14)
        step = 1e-5 * turned(target, 1.0, 1.0, seed=2)
        difference = (loss(w + step, target, k) - loss(w - step, target, k)) / 2
        np.testing.assert_allclose(difference, closed(w, target, k) @ step, atol=1e-13)


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_at_zero_the_gradient_is_the_mean_of_its_limits(d, k):
    w, target = pair(d)
    closed, automatic = (
        jax.jit(f, static_argnums=2) for f in (no_overlap.population_gradient, jax.grad(no_overlap.population_loss))
    )
    near = [closed(sign * 1e-12 * w, target, k) for sign in (1, -1)]
    for found in (closed(0 * w, target, k), automatic(0 * w, target, k)):
        np.testing.assert_allclose(found, (near[0] + near[1]) / 2, atol=1e-11)
        np.testing.assert_allclose(found, -target / (2 * k), atol=1e-15)


@jax.jit
def everything(w, target):
    loss, outer = no_overlap.population_loss, jnp.ones(3, w.dtype)
    relu = [f(w, target, 3) for f in (loss, no_overlap.population_gradient, jax.grad(loss), jax.hessian(loss))]
    step = [f(w, target, outer) for f in (binary.population_loss, binary.coarse_gradient)]
    return [*relu, *step, jax.grad(geometry.angle)(w, target), *no_overlap.coefficients(w, target, 3)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_ever_nan(dtype):
    for target in (jnp.array([0.6, -0.8, 0.0], dtype), jnp.zeros(3, dtype)):
        for scale in [0.0, 1e-30, -1e-30, 1.0, -1.0, 1e15]:
            found = everything(scale * jnp.array([0.6, -0.8, 0.0], dtype), target)
            assert all(x.dtype == dtype and np.isfinite(x).all() for x in found)


@pytest.mark.parametrize(("d", "k"), SIZES)
def test_hessian_has_the_stated_eigenvalues(d, k):
    _, target = pair(d)
    hessian = jax.jit(jax.hessian(no_overlap.population_loss), static_argnums=2)
    for t in [0.0, 1e-9, 0.7, 2.5, np.pi]:
        w = turned(target, t, 0.9)
        a, _ = no_overlap.coefficients(w, target, k)
        tangent = a - jnp.linalg.norm(target) * np.sin(t) / (k * np.pi * 0.9)
        expected = np.sort([no_overlap.curvature(k), tangent, *[a] * (d - 2)])
        np.testing.assert_allclose(np.linalg.eigvalsh(hessian(w, target, k)), expected, atol=1e-7)


@pytest.mark.parametrize("k", [1, 5])
def test_curvature_bounds_the_loss_from_above_through_zero_too(k):
    target = pair(4)[1]
    rng = np.random.default_rng(3)
    w, s = (jnp.asarray(rng.normal(size=(500, 4))) for _ in range(2))
    w, s = jnp.concatenate([w, w, 0 * w]), jnp.concatenate([s, -w, s])  # anywhere; into zero; out of zero
    loss = jax.jit(jax.vmap(lambda w: no_overlap.population_loss(w, target, k)))
    slope = jnp.sum(jax.jit(jax.vmap(lambda w: no_overlap.population_gradient(w, target, k)))(w) * s, axis=1)
    gap = loss(w) + slope + no_overlap.curvature(k) / 2 * jnp.sum(s**2, axis=1) - loss(w + s)
    assert gap.min() > -1e-12 and gap.max() > 0.1


@pytest.mark.parametrize("k", [1, 2, 7])
def test_critical_points(k):
    target = pair(5)[1]
    points = no_overlap.critical_points(target, k)
    assert no_overlap.population_loss(points.minimum, target, k) == 0
    np.testing.assert_allclose(no_overlap.population_gradient(points.minimum, target, k), 0, atol=1e-15)
    if k > 1:
        np.testing.assert_allclose(no_overlap.population_gradient(points.saddle, target, k), 0, atol=1e-15)
        hessian = jax.jit(jax.hessian(no_overlap.population_loss), static_argnums=2)
        eigenvalues = np.linalg.eigvalsh(hessian(points.saddle, target, k))
        np.testing.assert_allclose(eigenvalues, [0, 0, 0, 0, no_overlap.curvature(k)], atol=1e-7)
        aside = no_overlap.population_loss(turned(target, np.pi - 0.1, jnp.linalg.norm(points.saddle)), target, k)
        assert aside < no_overlap.population_loss(points.saddle, target, k) - 1e-6
    top = no_overlap.population_loss(points.maximum, target, k)
    for t in [0.0, 1.0, 3.0]:
        assert no_overlap.population_loss(turned(target, t, 1e-3), target, k) < top


def test_many_problems_at_once_with_their_own_k():
    target = pair(3)[1]
    w = jnp.stack([pair(3, seed)[0] for seed in range(4)])
    many = jax.vmap(no_overlap.population_gradient, (0, None, 0))(w, target, jnp.array([1, 2, 5, 9]))
    for i, k in enumerate([1, 2, 5, 9]):
        np.testing.assert_allclose(many[i], no_overlap.population_gradient(w[i], target, k), atol=1e-15)


# --- binary -------------------------------------------------------------------------------------------------------


def outer_weights(k, seed=5):
    v, star = np.random.default_rng([seed, k]).normal(size=(2, k))
    return jnp.asarray(v), jnp.asarray(star)


@pytest.mark.parametrize(("d", "k"), SIZES)
@pytest.mark.parametrize("same", [True, False])
def test_binary_loss_and_coarse_gradient_are_means_over_samples(d, k, same):
    w, target = pair(d)
    v, star = outer_weights(k)
    star = v if same else star
    x = np.random.default_rng(d).normal(size=(400_000 // k, k, d))
    on = (x @ np.asarray(w) > 0).astype(float)
    miss = on @ v - (x @ np.asarray(target) > 0) @ np.asarray(star)
    coarse = miss[:, None] * np.einsum("nk,nkd->nd", on * np.asarray(v), x)
    np.testing.assert_array_equal(binary.forward(w, jnp.asarray(x[:50]), v), on[:50] @ v)
    for sampled, exact in [
        (miss**2 / 2, binary.population_loss(w, target, v, star)),
        (coarse, binary.coarse_gradient(w, target, v, star)),
    ]:
        mean, error = mean_and_error(sampled)
        assert (np.abs(mean - exact) < 4.5 * error).all()


@pytest.mark.parametrize("t", [0.0, 0.6, 2.4, np.pi])
def test_binary_closed_forms_are_the_integrals(t):
    v, star = outer_weights(3)
    target = jnp.array([1.0, 0.0])
    w = turned(target, t, 1.7)
    side = float(jnp.sign(w[1])) or 1.0
    on = lambda p: float(np.cos(p - side * t) > 0)  # noqa: E731
    star_on = lambda p: float(np.cos(p) > 0)  # noqa: E731
    both = plane_mean(lambda p: on(p) * star_on(p), 0)
    second = np.full((3, 3), 0.25) + 0.25 * np.eye(3)
    cross = np.full((3, 3), 0.25) + (both - 0.25) * np.eye(3)
    expected = (v @ second @ v - 2 * v @ cross @ star + star @ second @ star) / 2
    np.testing.assert_allclose(binary.population_loss(w, target, v, star), expected, atol=1e-4)
    mean = np.array([plane_mean(lambda p, f=f: on(p) * f(p), 1) for f in (np.cos, np.sin)])
    joint = np.array([plane_mean(lambda p, f=f: on(p) * star_on(p) * f(p), 1) for f in (np.cos, np.sin)])
    difference = v.sum() - star.sum()
    off_diagonal = (v.sum() * difference - v @ (v - star)) / 2 * mean
    np.testing.assert_allclose(
        binary.coarse_gradient(w, target, v, star), v @ v * mean - v @ star * joint + off_diagonal, atol=1e-4
    )


def test_coarse_gradient_descends_the_chord_on_the_sphere():
    target, v = geometry.length(pair(5)[1])[1], outer_weights(4)[0]
    w = geometry.length(pair(5)[0])[1]
    chord = lambda w: binary.attraction(v) * (1 - jnp.cos(geometry.angle(w, target)))  # noqa: E731
    coarse = binary.coarse_gradient(w, target, v)
    np.testing.assert_allclose(coarse - (coarse @ w) * w, jax.grad(chord)(w), atol=1e-14)
    assert jnp.dot(coarse, jax.grad(binary.population_loss)(w, target, v)) > 0


def test_unit_sphere_is_a_link():
    tx = optax.chain(optax.sgd(0.3), binary.unit_sphere())
    w = jnp.array([0.6, 0.8])
    updates, _ = tx.update(jnp.array([1.0, -1.0]), tx.init(w), w)
    np.testing.assert_allclose(jnp.linalg.norm(w + updates), 1, atol=1e-15)
    with pytest.raises(ValueError, match="needs the parameters"):
        binary.unit_sphere().update(w, optax.EmptyState())


def loss_in_jit(w, k):
    return jax.jit(lambda w: no_overlap.population_loss(w, w, k))(w)


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (
            lambda w: no_overlap.population_loss(w, jnp.ones(2), 3),
            r"vectors of one length, got shapes \(3,\) and \(2,\)",
        ),
        (lambda w: no_overlap.population_gradient(w, w, 0), "k must be an integer >= 1, got 0"),
        (lambda w: no_overlap.population_gradient(w, w, float("nan")), "k must be an integer >= 1, got nan"),
        (lambda w: no_overlap.critical_points(w, 1.5), "got 1.5"),
        (lambda w: loss_in_jit(w, jnp.array(0.5)), "got 0.5"),
        (lambda w: no_overlap.forward(w, jnp.ones((5, 2))), r"got shapes \(5, 2\) and \(3,\)"),
        (lambda w: binary.forward(w, jnp.ones((5, 3)), jnp.ones(4)), r"outer weights must be \[k\]"),
    ],
)
def test_bad_input_is_refused(call, shown):
    with pytest.raises(ValueError, match=shown):
        call(jnp.ones(3))
