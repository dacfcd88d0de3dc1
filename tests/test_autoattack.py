"""AutoAttack against closed forms and exhaustive search, what it warns of, and what the attacks refuse."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvsm_jax import attacks

KEY = jax.random.key(0)


def flat(x):
    return x.reshape(x.shape[0], -1)


def run(logits_fn, x, labels, **options):
    options = {"eps": 0.1, "steps": 10, "queries": 60, "batch_size": 16, "classes": 1, **options}
    return attacks.autoattack(logits_fn, x, labels, KEY, **options)


@pytest.mark.parametrize("norm", [attacks.l_inf, attacks.l_2], ids=lambda n: n.name)
def test_on_a_linear_network_it_finds_exactly_who_is_robust(norm):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(18, 4))
    x = jnp.asarray(rng.uniform(0.3, 0.7, (16, 3, 3, 2)), jnp.float32)
    b = -np.asarray(flat(x), np.float64).mean(0) @ w
    ours = jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)
    z = np.asarray(flat(x), np.float64) @ w + b
    labels = z.argmax(1)
    labels[3] = (labels[3] + 1) % 4
    size = (lambda d: np.abs(d).sum()) if norm is attacks.l_inf else np.linalg.norm
    exact = [
        min((z[i, y] - z[i, k]) / size(w[:, y] - w[:, k]) for k in range(4) if k != y) for i, y in enumerate(labels)
    ]
    eps = float(np.sort(exact)[8:10].mean())
    found = run(lambda a: flat(a) @ ours[0] + ours[1][None], x, jnp.asarray(labels), eps=eps, norm=norm, classes=3)
    assert found.robust.tolist() == (np.array(exact) > eps).tolist()
    rates = list(found.accuracy.values())
    assert list(found.accuracy) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert rates[0] == 15 / 16 and rates == sorted(rates, reverse=True) and rates[-1] == found.robust.mean()
    d = flat(np.asarray(found.images, np.float64) - np.asarray(x, np.float64))
    assert (np.abs(d).max() if norm is attacks.l_inf else np.linalg.norm(d, axis=1).max()) <= eps
    assert found.forward["apgd-ce"] == 15 * 12 and found.backward["square"] == 0


def trained_on_rings(key):
    """Ten hidden units in the plane, four classes by angle and radius."""
    x = jax.random.uniform(key, (256, 2))
    centred = x - 0.5
    labels = (centred[:, 0] > 0.1 * jnp.sin(9 * x[:, 1])).astype(jnp.int32) + 2 * (
        jnp.square(centred).sum(1) > 0.1
    ).astype(jnp.int32)
    keys = jax.random.split(key)
    params = {
        "w1": 3 * jax.random.normal(keys[0], (2, 10)), "b1": jnp.zeros(10),
        "w2": jax.random.normal(keys[1], (10, 4)), "b2": jnp.zeros(4),
    }  # fmt: skip

    def forward(p, x):
        return jax.nn.relu((x - 0.5) @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]

    def loss(p):
        return attacks.cross_entropy(forward(p, x), labels).mean()

    tx = optax.adam(0.03)

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    with jax.numpy_dtype_promotion("standard"):
        (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=400))(params)
    return lambda images: forward(params, flat(images)), x, labels


def test_worst_case_of_ten_units_in_the_plane_is_what_exhaustive_search_finds():
    logits_fn, x, labels = trained_on_rings(jax.random.key(1))
    x, labels, eps = x[:64].reshape(64, 1, 2, 1), labels[:64], 0.06
    found = run(logits_fn, x, labels, eps=eps, steps=50, queries=200, batch_size=64, classes=3)
    offsets = np.linspace(-eps, eps, 161)
    grid = np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 1, 2, 1)
    near = np.clip(np.asarray(x)[:, None] + grid[None], 0, 1).astype(np.float32)
    predicted = np.asarray(logits_fn(jnp.asarray(near.reshape(-1, 1, 2, 1))).argmax(1)).reshape(64, -1)
    exact = np.all(predicted == np.asarray(labels)[:, None], 1)
    assert 0.3 < exact.mean() < found.accuracy["clean"] - 0.1
    assert found.robust.tolist() == exact.tolist()
    assert np.all(logits_fn(found.images[~found.robust]).argmax(1) != labels[~found.robust])


def messages(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = call()
    assert all(issubclass(w.category, attacks.AttackWarning) for w in seen)
    return found, " | ".join(str(w.message) for w in seen)


def test_masked_gradients_are_seen():
    x, labels = jnp.full((4, 8, 8, 1), 0.58) + jnp.linspace(0, 0.03, 4).reshape(4, 1, 1, 1), jnp.zeros(4, jnp.int32)

    def bright(a):
        return jnp.stack([flat(a).mean(1) - 0.5, 0.5 - flat(a).mean(1)], 1)

    found, said = messages(lambda: run(lambda a: (1 + jnp.tanh(1e5 * bright(a))) / 2, x, labels, eps=0.3))
    assert found.accuracy["fab-t"] == 1 and found.accuracy["square"] < 1
    assert "the gradient is exactly zero at 4 of 4 images" in said and "Square broke" in said
    assert "seems to return probabilities" in said
    found, said = messages(lambda: run(lambda a: jnp.ones((len(a), 3)), x, labels))
    assert found.robust.all() and "the gradient is exactly zero at 4 of 4 images" in said


def test_a_random_network_is_judged_by_its_mean():
    x, labels = jnp.full((8, 2, 2, 1), 0.5), jnp.zeros(8, jnp.int32)

    def noisy(a, key):
        margin = flat(a).mean(1) - 0.4 + 0.3 * jax.random.normal(key, (a.shape[0],))
        return jnp.stack([margin, jnp.zeros_like(margin)], 1)

    options = {"version": "rand", "draws": 1000, "steps": 3}
    assert np.mean([noisy(x, k).argmax(1) for k in jax.random.split(KEY, 9)]) > 0.2
    safe = run(noisy, x, labels, eps=0.02, **options)
    assert list(safe.accuracy) == ["clean", "apgd-ce", "apgd-dlr"] and safe.robust.all()
    assert not run(noisy, x, labels, eps=0.18, **options).robust.any()
    with pytest.warns(attacks.AttackWarning, match='the network is random: use version="rand"'):
        run(noisy, x[:1], labels[:1], queries=1, steps=1, eot=1, draws=1)


IMAGES, LABELS = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1])


def net(a):
    return flat(a) @ jnp.eye(4, 3)


def noisy(a, key):
    return net(a)


EVERY = {
    "pgd": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=KEY: attacks.pgd(f, x, y, key, eps=eps, steps=1),
    "fgsm": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=None: attacks.fgsm(f, x, y, key, eps=eps),
    "apgd": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=KEY: attacks.apgd(f, x, y, key, eps=eps, steps=1),
    "square": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=KEY: attacks.square(f, x, y, key, eps=eps, queries=2),
    "autoattack": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=KEY: attacks.autoattack(
        f, x, y, key, eps=eps, steps=1
    ),
    "deepfool": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=None: attacks.deepfool(f, x, y, key, overshoot=eps),
    "fab": lambda f=net, x=IMAGES, y=LABELS, eps=None, key=None: attacks.fab(f, x, y, key, steps=1),
    "cw": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=None: attacks.carlini_wagner(
        f, x, y, key, steps=1, searches=1, confidence=eps
    ),
    "released": lambda f=net, x=IMAGES, y=LABELS, eps=0.1, key=None: attacks.carlini_wagner_as_released(
        f, x, y, key, steps=1, eps=eps
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_bad_input_is_refused(name):
    attack = EVERY[name]
    refused = [
        ({"x": IMAGES + 1}, ValueError, r"images must be in \[0, 1\], got pixels from 1.5 to 1.5"),
        ({"x": IMAGES * jnp.nan}, ValueError, r"images must be in \[0, 1\], got pixels from nan to nan"),
        ({"x": jnp.zeros((2, 2, 2, 1), jnp.uint8)}, TypeError, "got uint8; divide them by 255"),
        ({"y": jnp.array([0.0, 1.0])}, TypeError, "labels must be integers, got float32"),
        ({"y": jnp.array([0])}, ValueError, r"labels \[B\], got \(2, 2, 2, 1\) and \(1,\)"),
        (
            {"f": noisy, "key": None},
            ValueError,
            r"the network takes \(images, key\), so the attack needs a key, got None",
        ),
        ({"f": "net"}, TypeError, "logits_fn must be a function from images to logits, got str"),
    ]
    if name != "fab":
        refused += [
            ({"eps": -0.1}, ValueError, "must be a finite number >= 0, got -0.1"),
            ({"eps": np.ones(3)}, ValueError, r"must be a number or one for each of 2 images, got \(3,\)"),
        ]
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            attack(**options)


@pytest.mark.parametrize("name", ["pgd", "deepfool"])
def test_bad_outputs_are_refused(name):
    attack = EVERY[name]
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), the number of logits, got 0 to 3"):
        attack(y=jnp.array([0, 3]))
    with pytest.raises(FloatingPointError, match="logits_fn returned NaN for 2 of 2 images"):
        attack(f=lambda a: net(a) * jnp.nan)
    with pytest.warns(attacks.AttackWarning, match="seems to return probabilities; attacks want logits"):
        attack(f=lambda a: jax.nn.softmax(net(a)))


def test_the_rest_is_refused():
    for options, message in (
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"restarts": 1.5}, "restarts must be an integer >= 1, got 1.5"),
        ({"keep": "best"}, 'keep must be "last" or "worst", got \'best\''),
        ({"key": None}, "the attack draws random starts, so the attack needs a key"),
        ({"step_size": -1.0}, "step_size must be a finite number >= 0, got -1.0"),
        ({"eot": 0}, "eot must be a positive number of draws, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.pgd(net, IMAGES, LABELS, **{"key": KEY, "eps": 0.1, **options})
    with pytest.raises(ValueError, match='version must be "standard" or "rand", got \'plus\''):
        attacks.autoattack(net, IMAGES, LABELS, KEY, eps=0.1, version="plus")
    with pytest.raises(RuntimeError, match="autoattack decides on the host"):
        jax.jit(lambda x: attacks.autoattack(net, x, LABELS, KEY, eps=0.1).images)(IMAGES)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        attacks.square(net, IMAGES, LABELS, KEY, eps=0.1, fraction=0)
    with pytest.raises(ValueError, match="radii must be >= 0 and increase"):
        attacks.accuracy_curve(net, IMAGES, LABELS, None, attack=lambda x, *_: x, radii=(0.1, 0.1))


def test_checks_of_values_are_silent_under_a_trace():
    def attack(x, eps):
        return attacks.pgd(lambda a: jax.nn.softmax(net(a)), x, LABELS + 5, KEY, eps=eps, steps=1)

    assert jax.jit(attack)(IMAGES + 2, -0.1).shape == IMAGES.shape
