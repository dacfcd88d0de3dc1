"""Attacks against closed forms, slow loops and their own guarantees."""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rvsm_jax import attacks, train
from rvsm_jax.attacks.checks import radius as radius_of
from rvsm_jax.attacks.fab import to_hyperplane
from rvsm_jax.attacks.square import sides
from rvsm_jax.step import init_state, make_step

KEY = jax.random.key(0)
SHAPE = (3, 4, 2)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_numbers():
    """Whatever ran before."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def flat(x):
    return x.reshape(x.shape[0], -1)


def linear(classes, rng):
    w = jnp.asarray(rng.normal(size=(24, classes)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.3, 0.7, (12, *SHAPE)), jnp.float32)
    b = -(flat(x).mean(0) @ w)
    return lambda images: flat(images) @ w + b[None], np.asarray(w, np.float64), x


def piecewise():
    """Logits 0, |u| - 0.3, |v| - 0.4 with u, v affine: class 0 lives between two pairs of planes."""
    a = RNG.normal(size=(24, 2))
    a = jnp.asarray(a / np.linalg.norm(a, axis=0), jnp.float32)
    offset = jnp.full((1, 24), 0.5) @ a
    x = jnp.asarray(RNG.uniform(0.45, 0.55, (8, *SHAPE)), jnp.float32)

    def logits_fn(images):
        u = jnp.abs(flat(images) @ a - offset) - jnp.array([[0.3, 0.4]])
        return jnp.concatenate([jnp.zeros((u.shape[0], 1)), u], 1)

    return logits_fn, np.asarray(a, np.float64), x


def dual(norm, w):
    return np.abs(w).sum(0) if norm is attacks.l_inf else np.sqrt((w**2).sum(0))


def distance(norm, a, b):
    d = (np.asarray(a, np.float64) - np.asarray(b, np.float64)).reshape(len(a), -1)
    return np.abs(d).max(1) if norm is attacks.l_inf else np.sqrt((d**2).sum(1))


def closed_form(norm, which):
    """A network, images and their exact distance to the boundary; the box is far away."""
    if which == "piecewise":
        logits_fn, a, x = piecewise()
        labels = jnp.zeros(len(x), jnp.int32)
        exact = (-np.asarray(logits_fn(x), np.float64)[:, 1:] / dual(norm, a)).min(1)
    else:
        logits_fn, w, x = linear(4, np.random.default_rng(3))
        z = np.asarray(logits_fn(x), np.float64)
        labels = z.argmax(1)
        with np.errstate(invalid="ignore"):
            ratios = [(z[i, y] - z[i]) / dual(norm, w - w[:, [y]]) for i, y in enumerate(labels)]
        exact = np.nanmin(ratios, 1)
        labels = jnp.asarray(labels, jnp.int32)
    far = exact > 0.05 * exact.max()
    assert far.sum() >= 6
    return logits_fn, x[far], labels[far], exact[far]


@functools.cache
def small_network():
    w1, w2 = RNG.normal(size=(24, 16)) / 3, RNG.normal(size=(16, 4))
    w1, w2 = jnp.asarray(w1, jnp.float32), jnp.asarray(w2, jnp.float32)
    x = RNG.uniform(size=(16, *SHAPE)).round(1).clip(0, 1)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1e-20, 1 - 1e-7
    x = jnp.asarray(x, jnp.float32)

    def logits_fn(images):
        return jax.nn.relu(flat(images) @ w1) @ w2

    return logits_fn, x, logits_fn(x).argmax(1)


NORMS = pytest.mark.parametrize("norm", [attacks.l_inf, attacks.l_2], ids=lambda n: n.name)


@NORMS
@pytest.mark.parametrize("which", ["linear", "piecewise"])
def test_minimal_attacks_find_the_minimum(norm, which):
    logits_fn, x, labels, exact = closed_form(norm, which)
    found = {
        "deepfool": (attacks.deepfool(logits_fn, x, labels, norm=norm, overshoot=1e-3), 1.002),
        "fab": (attacks.fab(logits_fn, x, labels, norm=norm, steps=20), 1.001),
    }
    if norm is attacks.l_2 and which == "piecewise":
        found["carlini_wagner"] = attacks.carlini_wagner(logits_fn, x, labels, steps=300, step_size=2e-3), 1.005
    for name, (points, bound) in found.items():
        assert np.all(logits_fn(points).argmax(1) != labels), name
        ratio = distance(norm, points, x) / exact
        assert np.all((ratio > 1 - 1e-5) & (ratio < bound)), (name, ratio)


@NORMS
def test_attacks_in_a_ball_break_exactly_what_they_should(norm):
    """Towards the class that is nearest; to the best of all classes ascent need not lead, the problem is not convex."""
    logits_fn, w, x = linear(4, np.random.default_rng(3))
    z = np.asarray(logits_fn(x), np.float64)
    labels = z.argmax(1)
    with np.errstate(invalid="ignore"):
        far = np.array([(z[i, y] - z[i]) / dual(norm, w - w[:, [y]]) for i, y in enumerate(labels)])
    exact, targets = np.nanmin(far, 1), jnp.asarray(np.nanargmin(far, 1), jnp.int32)
    should = (np.arange(len(x)) % 2 == 0) & (exact > 0.05 * exact.max())
    options = {"eps": jnp.asarray(np.where(should, 1.01, 0.99) * exact, jnp.float32), "norm": norm, "targets": targets}

    def decreasing(i):
        return exact.max() * 0.85 ** i.astype(jnp.float32)

    labels = jnp.asarray(labels, jnp.int32)
    found = {
        "pgd": attacks.pgd(
            logits_fn, x, labels, KEY, steps=40, step_size=decreasing, loss=attacks.targeted_margin, **options
        ),
        "apgd": attacks.apgd(logits_fn, x, labels, KEY, steps=50, loss=attacks.targeted_dlr, **options),
    }
    for name, points in found.items():
        broken = np.asarray(logits_fn(points).argmax(1) != labels)
        assert broken.tolist() == should.tolist(), name


def test_with_two_classes_the_worst_case_is_known():
    logits_fn, w, x = linear(2, np.random.default_rng(1))
    labels = logits_fn(x).argmax(1)
    z, y = np.asarray(logits_fn(x), np.float64), np.asarray(labels)
    gap = z[np.arange(len(x)), y] - z[np.arange(len(x)), 1 - y]
    exact = gap / np.abs(w[:, 0] - w[:, 1]).sum()
    for factor in (0.99, 1.01):
        points = attacks.fgsm(logits_fn, x, labels, eps=jnp.asarray(factor * exact, jnp.float32))
        assert np.all((logits_fn(points).argmax(1) != labels) == (factor > 1))
    nearest = attacks.carlini_wagner(logits_fn, x, labels, steps=300, step_size=2e-3)
    ratio = distance(attacks.l_2, nearest, x) * np.linalg.norm(w[:, 0] - w[:, 1]) / gap
    assert np.all((ratio > 1 - 1e-5) & (ratio < 1.005))


def test_pgd_is_a_loop_in_numpy():
    logits_fn, w, x = linear(3, np.random.default_rng(2))
    labels, b = jnp.arange(len(x)) % 3, np.asarray(logits_fn(jnp.zeros((1, *SHAPE))), np.float64)

    def start(key, images, eps):
        return images + 0.01

    options = {
        "eps": 0.05,
        "steps": 7,
        "step_size": lambda i: 0.03 / (1.0 + i.astype(jnp.float32)),
        "norm": attacks.l_2,
    }
    found = attacks.pgd(logits_fn, x, labels, KEY, random_start=start, **options)
    images = flat(np.asarray(x, np.float64))

    def project(p):
        return images + (p - images) * np.minimum(1, 0.05 / np.linalg.norm(p - images, axis=1))[:, None]

    p = project(images + 0.01)
    for i in range(7):
        z = p @ w + b
        e = np.exp(z - z.max(1, keepdims=True))
        g = (e / e.sum(1, keepdims=True) - np.eye(3)[np.asarray(labels)]) @ w.T
        p = np.clip(project(p + 0.03 / (1 + i) * g / np.linalg.norm(g, axis=1)[:, None]), 0, 1)
    np.testing.assert_allclose(flat(np.asarray(found)), p, atol=2e-6)


def test_the_released_protocol_is_a_loop_in_numpy():
    logits_fn, w, x = linear(3, np.random.default_rng(4))
    found = attacks.carlini_wagner_as_released(logits_fn, x, jnp.zeros(len(x), jnp.int32))
    b = np.asarray(logits_fn(jnp.zeros((1, *SHAPE))), np.float64)
    images = flat(np.asarray(x, np.float64))
    for i, image in enumerate(images):
        p, m, v, best, least = image.copy(), 0.0, 0.0, image, np.inf
        y = (image @ w + b[0]).argmax()
        for t in range(1, 51):
            z = p @ w + b[0]
            other = max((k for k in range(3) if k != y), key=lambda k: z[k])
            ahead = z[y] - z[other]
            value = ((p - image) ** 2).sum() + 10 * max(ahead, 0)
            best, least = (p.copy(), value) if value < least else (best, least)
            g = 2 * (p - image) + 10 * (w[:, y] - w[:, other]) * (ahead > 0)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - 6e-4 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(flat(np.asarray(found))[i], image + 0.031 * (best - image), atol=1e-6)


def test_auto_pgd_halves_its_step_where_a_slow_loop_does():
    """One pixel, f = -|x - 0.6|: the iterates, momentum, checkpoints and restarts by hand."""

    def logits_fn(images):
        return -jnp.abs(flat(images) - 0.6) * jnp.array([[1.0, -1.0]])

    def climb(logits, labels):
        return logits[:, 0]

    x = jnp.full((1, 1, 1, 1), 0.5)
    seen = []

    def watched(images):
        jax.debug.callback(lambda v: seen.append(float(v[0, 0, 0, 0])), images)
        return logits_fn(images)

    jax.block_until_ready(attacks.apgd(watched, x, jnp.array([1]), KEY, eps=0.3, steps=40, loss=climb))
    jax.effects_barrier()

    def f(v):
        return -abs(v - 0.6)

    def slope(v):
        return np.sign(0.6 - v)

    def project(v):
        return min(max(v, 0.2), 0.8)

    points, a = [seen[0]], 0.6
    at, then, halved, rises, best, since = [9, 17, 23, 28, 32, 35, 38], f(seen[0]), False, 0, seen[0], 0
    current, before = seen[0], seen[0]
    for i in range(40):
        z = project(current + a * slope(current))
        new = z if i == 0 else project(current + 0.75 * (z - current) + 0.25 * (current - before))
        points.append(new)
        rises += f(new) > f(current)
        best = new if f(new) > f(best) else best
        before, current = current, new
        if i + 1 in at:
            halve = rises < 0.75 * (i + 1 - since) or (not halved and f(best) <= then)
            a, current = (a / 2, best) if halve else (a, current)
            then, halved, rises, since = f(best), halve, 0, i + 1
    np.testing.assert_allclose(seen, points, atol=1e-5)


@NORMS
def test_projection_stays_inside_to_the_last_bit(norm):
    x = RNG.uniform(size=(200, 40))
    x[:, :8] = RNG.choice([0, 1, 1e-30, 1e-8, 0.5, 1 - 2**-24], (200, 8))
    x = jnp.asarray(x, jnp.float32)
    for eps in (8 / 255, 0.1, 1e-7, 0.0, 2.0):
        bound = np.float64(eps)
        radius = radius_of("eps", eps, x)
        for points in (
            norm.project(x + jnp.asarray(RNG.normal(size=x.shape), jnp.float32), x, radius),
            norm.start(KEY, x, radius),
        ):
            assert np.all(distance(norm, points, x) <= bound)
            assert float(points.min()) >= 0 and float(points.max()) <= 1
            np.testing.assert_array_equal(norm.project(points, x, radius), points)


@NORMS
def test_projection_onto_a_hyperplane_in_the_box_is_the_nearest_point(norm):
    """Where pixels meet the box, against a fine search over the size of the step."""
    x, w = RNG.uniform(size=(20, 6)), RNG.normal(size=(20, 6))
    reach = np.maximum((w > 0) - x, 0) * w * (w > 0) + np.minimum(-x, 0) * w * (w < 0)
    value = -0.7 * reach.sum(1)
    found = np.asarray(to_hyperplane(norm, *(jnp.asarray(v, jnp.float32) for v in (x, w, value))), np.float64)
    np.testing.assert_allclose(value + (w * (found - x)).sum(1), 0, atol=1e-5)
    direction = np.sign(w) if norm is attacks.l_inf else w
    for i in range(20):
        sizes = np.geomspace(1e-3, 1e3, 200_001)[:, None]
        z = np.clip(x[i] + sizes * direction[i], 0, 1)
        best = z[np.abs(value[i] + (z - x[i]) @ w[i]).argmin()]
        assert distance(norm, found[[i]], x[[i]])[0] <= distance(norm, best[None], x[[i]])[0] + 1e-4


@NORMS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_projection_onto_a_hyperplane_arrives_however_many_pixels_meet_the_box(norm, dtype):
    x, w = (RNG.uniform(size=(5, 784)) > 0.6).astype(float), RNG.normal(size=(5, 784)) ** 3  # few pixels matter
    x, w = (np.asarray(jnp.asarray(v, dtype), float) for v in (x, np.where(RNG.uniform(size=w.shape) < 0.1, 0, w)))
    rounding = float(jnp.finfo(dtype).eps) * np.abs(w).sum(1).max()  # of the pixels, which are between 0 and 1
    for sign in (1, -1):
        reach = np.where(sign * w > 0, 1 - x, -x) * w
        for share in (1e-6, 0.01, 0.5, 0.9, 0.999):
            value = -share * reach.sum(1)
            found = to_hyperplane(norm, *(jnp.asarray(v, dtype) for v in (x, w)), jnp.asarray(value, jnp.float32))
            assert found.dtype == dtype
            np.testing.assert_allclose((w * (np.asarray(found, float) - x)).sum(1), -value, rtol=1e-5, atol=rounding)
        beyond = to_hyperplane(norm, *(jnp.asarray(v, dtype) for v in (x, w)), jnp.asarray(-2 * reach.sum(1), dtype))
        np.testing.assert_array_equal(beyond, np.where(w == 0, x, sign * w > 0))  # the box's nearest corner


@NORMS
def test_projection_onto_a_hyperplane_of_each_image_alone(norm):
    x = jnp.array([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3], [0.5, 0.25, 0.75], [0.5, 0.5, 0.5], [0.2, 0.9, 0.4]])
    w = jnp.array([[1, 0, 2e-19], [0, 0, 0], [1, -1, 2], [jnp.nan, 1, 1], [1e-30, 3e-30, -2e-30]])
    value = jnp.array([100.0, 1.0, 0.0, 1.0, -1e-30])
    found = np.asarray(to_hyperplane(norm, x, w, value))
    for i in range(5):
        np.testing.assert_array_equal(to_hyperplane(norm, x[i : i + 1], w[i : i + 1], value[i : i + 1])[0], found[i])
    np.testing.assert_array_equal(found[0], [0, 0.5, 0])  # out of reach: as far as there is a slope
    np.testing.assert_array_equal(found[1:3], x[1:3])  # no slope, nowhere to go
    np.testing.assert_allclose((found[4] - x[4]) @ (w[4] * 1e30), 1, rtol=1e-5)
    under_vmap = jax.vmap(lambda x, w, v: to_hyperplane(norm, x[None], w[None], v[None])[0])(x, w, value)
    np.testing.assert_allclose(under_vmap, found, rtol=1e-6)


@NORMS
def test_every_image_is_in_the_ball_and_the_box(norm):
    logits_fn, x, labels = small_network()
    eps = 8 / 255 if norm is attacks.l_inf else 0.3
    found = {
        "pgd": attacks.pgd(logits_fn, x, labels, KEY, eps=eps, norm=norm, steps=5),
        "apgd": attacks.apgd(logits_fn, x, labels, KEY, eps=eps, norm=norm, steps=10),
        "square": attacks.square(logits_fn, x, labels, KEY, eps=eps, norm=norm, queries=100),
    }
    for name, points in found.items():
        assert points.dtype == x.dtype and np.all(distance(norm, points, x) <= eps), name
    found["deepfool"] = attacks.deepfool(logits_fn, x, labels, norm=norm, steps=10)
    for name, points in found.items():
        assert float(points.min()) >= 0 and float(points.max()) <= 1, name
        assert np.any(logits_fn(points).argmax(1) != labels), name


def test_more_never_helps_the_defender():
    logits_fn, x, labels = small_network()

    def wrong(points):
        return np.asarray(logits_fn(points).argmax(1) != labels)

    attack = functools.partial(attacks.pgd, logits_fn, x, labels, KEY, eps=0.06, step_size=0.01, keep="worst")
    for more in ([{"steps": n} for n in (1, 9)], [{"steps": 2, "restarts": n} for n in (1, 3)]):
        sets = [wrong(attack(**options)) for options in more]
        assert all(np.all(a <= b) for a, b in itertools.pairwise(sets)) and sets[-1].any()
    radii = (0.0, 0.02, 0.04, 0.05, 0.1)
    curve = attacks.accuracy_curve(
        logits_fn, x, (labels + (jnp.arange(len(x)) == 0).astype(jnp.int32)) % 4, KEY, radii=radii,
        attack=lambda *a: attacks.fgsm(logits_fn, *a[:2], eps=a[3]),
    )  # fmt: skip
    assert curve[0] == 15 / 16 and np.all(np.diff(curve) <= 0) and curve[-1] < 0.5


def test_under_jit_vmap_and_eagerly_it_is_one_attack():
    logits_fn, x, labels = small_network()
    attack = functools.partial(attacks.pgd, logits_fn, eps=0.1, step_size=0.02, steps=5, random_start=False)
    eager = attack(x, labels)
    np.testing.assert_allclose(jax.jit(attack)(x, labels), eager, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda a, b: attack(a[None], b[None])[0])(x, labels), eager, atol=1e-6)
    for other in (
        functools.partial(attacks.deepfool, logits_fn),
        lambda a, b: attacks.apgd(logits_fn, a, b, KEY, eps=0.1, steps=34),
    ):
        np.testing.assert_allclose(jax.jit(other)(x, labels), other(x, labels), atol=1e-5)


def test_nothing_is_compiled_again():
    logits_fn, x, labels = small_network()
    traces = []

    def counted(images):
        traces.append(1)
        return logits_fn(images)

    for attack in (
        lambda a, e: attacks.pgd(counted, a, labels, KEY, eps=e, step_size=e / 4, steps=3),
        lambda a, e: attacks.apgd(counted, a, labels, KEY, eps=e, steps=3),
        lambda a, e: attacks.square(counted, a, labels, KEY, eps=e, queries=3),
        lambda a, e: attacks.deepfool(counted, a, labels, overshoot=e, steps=2),
    ):
        attack(x, 0.1)
        once = len(traces)
        for batch, eps in ((1 - x, 0.1), (x, 0.2), (x, jnp.float32(0.05))):
            attack(batch, eps)
        assert len(traces) == once

    def forward(w, images):
        return (traces.append(1), flat(images) @ w)[1]

    for k in range(3):
        w = jax.random.normal(jax.random.key(k), (24, 3))
        attacks.pgd(jax.tree_util.Partial(forward, w), x, labels % 3, KEY, eps=0.1, steps=3)
        once = len(traces) if k == 0 else once
    assert len(traces) == once


def test_inside_a_training_step():
    images, labels = jax.random.uniform(KEY, (8, *SHAPE)), jnp.arange(8) % 3

    def forward(w, state, x, key, train):
        return (flat(x) @ w, state)

    seen = []

    def perturb(logits_fn, x, y, key):
        adversarial = attacks.pgd(logits_fn, x, y, key, eps=0.1, step_size=0.03, steps=4)
        jax.debug.callback(lambda d: seen.append(float(d)), jnp.abs(adversarial - x).max())
        return adversarial

    tx = optax.sgd(0.5)
    step = jax.jit(make_step(forward, tx, perturb=perturb))
    state = init_state(jnp.zeros((24, 3)), {}, tx, KEY)
    for _ in range(5):
        state, metrics = step(state, images, labels)
    jax.effects_barrier()
    assert len(seen) == 5 and max(seen) <= 0.1 and min(seen) > 0.09 and np.isfinite(metrics["loss"])
    assert hasattr(train, "fit")


def test_any_library():
    x, labels = jax.random.uniform(KEY, (4, *SHAPE)), jnp.arange(4) % 3
    module = nn.Dense(3)
    with jax.numpy_rank_promotion("allow"):
        variables = module.init(KEY, flat(x))
        mlp = eqx.nn.MLP(24, 3, 5, 1, key=KEY)
        layer = nnx.Linear(24, 3, rngs=nnx.Rngs(0))
        for logits_fn in (
            lambda a: module.apply(variables, flat(a)),
            lambda a: layer(flat(a)),
            lambda a: jax.vmap(mlp)(flat(a)),
            jax.tree_util.Partial(lambda m, a: jax.vmap(m)(flat(a)), mlp),
            jax.tree_util.Partial(lambda m, a: m(flat(a)), layer),
        ):
            points = attacks.fgsm(logits_fn, x, labels, eps=0.01)
            gain = attacks.cross_entropy(logits_fn(points), labels) - attacks.cross_entropy(logits_fn(x), labels)
            assert np.all(gain > 0)


def test_losses_against_their_definitions():
    z, y, t = RNG.normal(size=(50, 6)), RNG.integers(0, 6, 50), RNG.integers(0, 6, 50)
    ours = [jnp.asarray(v, d) for v, d in ((z, jnp.float32), (y, jnp.int32), (t, jnp.int32))]
    names = ("cross_entropy", "margin", "dlr", "targeted_cross_entropy", "targeted_margin", "targeted_dlr")
    found = {n: np.asarray(getattr(attacks, n)(*ours[: 3 if n.startswith("targeted") else 2])) for n in names}
    for i in range(50):
        others, top = np.delete(z[i], y[i]), np.sort(z[i])[::-1]
        expected = (
            np.log(np.exp(z[i]).sum()) - z[i, y[i]],
            others.max() - z[i, y[i]],
            (others.max() - z[i, y[i]]) / (top[0] - top[2]),
            z[i, t[i]] - np.log(np.exp(z[i]).sum()),
            z[i, t[i]] - z[i, y[i]],
            (z[i, t[i]] - z[i, y[i]]) / (top[0] - (top[2] + top[3]) / 2),
        )
        np.testing.assert_allclose([found[n][i] for n in names], expected, rtol=1e-4, atol=1e-5)
    for name, least in (("dlr", 3), ("targeted_dlr", 4)):
        with pytest.raises(ValueError, match=f"{name} needs at least {least} classes, the logits have {least - 1}"):
            getattr(attacks, name)(jnp.zeros((1, least - 1)), *[jnp.zeros(1, jnp.int32)] * (least - 2))


def test_squares_shrink_as_published():
    found = sides(10_000, 0.8, 32, 32)
    p = [(found[i] / 32) ** 2 for i in (0, 10, 11, 51, 201, 1001, 2001, 4001, 6001, 8001)]
    expected = 0.8 * 0.5 ** np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert np.all(np.abs(np.sqrt(p) - np.sqrt(expected)) <= 0.5 / 32 + 1e-9)
