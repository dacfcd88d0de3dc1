"""Adversarial training on a linear network, where the worst image and every loss are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvsm_jax import adversarial, train
from rvsm_jax.shrinking.analysis import quick_compilation
from tests.digits import KEY, digits, fit, forward

EPS = 0.1
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.3, 0.7, (32, 2, 2, 1)).astype(np.float32)  # no pixel can reach 0 or 1
WEIGHTS = RNG.normal(size=4).astype(np.float32)
LABELS = (RNG.random(32) < 0.5).astype(np.int32)
SIGNS = 1 - 2 * LABELS
MARGIN = SIGNS * ((IMAGES.reshape(32, 4) - 0.5) @ WEIGHTS)  # z_y - z_other
REACH = EPS * np.abs(WEIGHTS).sum()


def linear(w, model_state, images, key, train):
    z = (images.reshape(len(images), 4) - 0.5) @ w / 2
    return jnp.stack([z, -z], 1), model_state


def step_loss(step=0, network=linear, **options):
    tx = optax.sgd(0.1)
    state = train.init_state(jnp.asarray(WEIGHTS), {}, tx, KEY)._replace(step=jnp.int32(step))
    step = jax.jit(train.make_step(network, tx, **options), compiler_options=quick_compilation())
    return step(state, IMAGES, LABELS)


def softplus(x):
    return np.log1p(np.exp(x))


def test_the_step_trains_on_the_worst_images_of_the_ball():
    state, metrics = step_loss(**adversarial.pgd_training(eps=EPS, steps=4)._asdict())
    np.testing.assert_allclose(metrics["loss"], softplus(REACH - MARGIN).mean(), rtol=1e-5)
    x = (IMAGES.reshape(32, 4) - 0.5) - EPS * SIGNS[:, None] * np.sign(WEIGHTS)
    slope = -1 / (1 + np.exp(MARGIN - REACH))
    gradient = (slope * SIGNS) @ x / 32
    np.testing.assert_allclose(state.params, WEIGHTS - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_the_trade_off_weighs_both_losses():
    adversary = adversarial.trade_off(natural=2.0, adversarial=3.0, eps=EPS, steps=4)
    _, metrics = step_loss(**adversary._asdict())
    wanted = 2 * softplus(-MARGIN).mean() + 3 * softplus(REACH - MARGIN).mean()
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def kl(z, other):
    """KL of two Bernoulli laws with logits z and other."""
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-other))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_trades_finds_an_end_of_the_ball_for_every_image():
    """KL(p | p') is convex in the logit of p', so that an ascent ends at one of two points, from any start."""
    adversary = adversarial.trades(beta=6.0, eps=EPS, step_size=EPS / 4, steps=12)
    state = train.init_state(jnp.asarray(WEIGHTS), {}, optax.sgd(0.1), KEY)
    logits_fn = lambda x, key=None, train=False: linear(state.params, {}, x, key, train)[0]  # noqa: E731
    twins = jax.jit(lambda x, y: adversary.perturb(logits_fn, x, y, KEY))(IMAGES, LABELS)
    z, attacked = (np.asarray(logits_fn(jnp.asarray(x)), np.float64) for x in (IMAGES, twins))
    moved = (attacked - z)[:, 0] - (attacked - z)[:, 1]
    np.testing.assert_allclose(np.abs(moved), REACH, rtol=1e-4)
    natural = z[:, 0] - z[:, 1]
    wanted = softplus(-MARGIN) + 6 * kl(natural, natural + moved)
    found = adversary.objective(jnp.float32(z), jnp.float32(attacked), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_a_scheduled_radius_follows_the_steps():
    adversary = adversarial.pgd_training(eps=lambda step: EPS * jnp.minimum(step / 10, 1.0), steps=4)
    for step, share in ((0, 0.0), (5, 0.5), (30, 1.0)):
        _, metrics = step_loss(step, **adversary._asdict())
        np.testing.assert_allclose(metrics["loss"], softplus(share * REACH - MARGIN).mean(), rtol=1e-5)


def test_every_step_of_the_attack_meets_new_noise():
    """A network whose sign is a coin: one draw would push each pixel two steps away, new draws also there and back."""

    def coin(w, model_state, images, key, train):
        return linear(jnp.where(jax.random.bernoulli(key), w, -w), model_state, images, key, train)

    perturb = adversarial.pgd_training(eps=EPS, step_size=EPS / 2, steps=2, random_start=False).perturb
    logits_fn = lambda x, key, train: coin(jnp.asarray(WEIGHTS), {}, x, key, train)[0]  # noqa: E731
    attack = jax.jit(jax.vmap(lambda key: perturb(logits_fn, IMAGES[:1], LABELS[:1], key)))
    moved = np.abs(attack(jax.random.split(KEY, 40)) - IMAGES[None, :1]).max((1, 2, 3, 4))
    back = (moved < 1e-6).mean()
    assert 0.2 < back < 0.8 and np.allclose(moved[moved > 1e-6], EPS, atol=1e-6)


@pytest.mark.parametrize("training_mode", [False, True])
def test_the_network_is_attacked_in_the_mode_that_is_asked_for(training_mode):
    modes = []

    def moody(w, model_state, images, key, train):
        modes.append(train)
        return linear(w, model_state, images, key, train)

    step_loss(network=moody, **adversarial.pgd_training(eps=EPS, steps=1, training_mode=training_mode)._asdict())
    assert set(modes[:-1]) == {training_mode} and modes[-1] is True


@pytest.mark.parametrize("devices", [1, 8])
def test_accuracy_under_attack_is_exact_on_a_linear_network(devices):
    perturb = adversarial.pgd_training(eps=EPS, steps=4).perturb
    mesh = train.data_mesh(jax.devices()[:devices])
    found = train.evaluate(
        linear, jnp.asarray(WEIGHTS), {}, IMAGES[:27], LABELS[:27], perturb=perturb, batch_size=8, mesh=mesh
    )
    assert found["accuracy"] == (MARGIN[:27] > REACH).mean() < (MARGIN[:27] > 0).mean()
    np.testing.assert_allclose(found["loss"], softplus(REACH - MARGIN[:27]).mean(), rtol=1e-5)


def test_the_accuracy_of_u_under_attack_selects_the_epoch():
    """An attack that grows with training: the first epoch is the best though the last is cleaner."""
    _, validation = digits()

    def attack(logits_fn, images, labels, key):
        size = jnp.abs(logits_fn(images)).max()
        return jnp.where(size > 4, 0.0, images)

    result = fit(select="best", attack=attack, epochs=4)
    robust, clean = ([r[name] for r in result.history] for name in ("u_robust_accuracy", "u_accuracy"))
    assert np.argmax(robust) != np.argmax(clean) and result.step == 14 * (1 + int(np.argmax(robust)))
    found = train.evaluate(forward, result.sparse_params, {}, *validation, perturb=attack)
    assert found["accuracy"] == max(robust)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: adversarial.pgd_training(eps=-0.1), r"eps must be a finite number >= 0, got -0\.1"),
        (lambda: adversarial.pgd_training(step_size=float("inf")), "step_size must be .* got inf"),
        (lambda: adversarial.pgd_training(steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: adversarial.trades(beta=-1), "beta must be .* got -1"),
        (lambda: adversarial.trade_off(natural=float("nan")), "natural must be .* got nan"),
        (lambda: train.make_gradient(linear, objective=lambda *a: a[0]), "wants perturb, .* got perturb=None"),
        (
            lambda: train.make_gradient(linear, label_smoothing=0.1, **adversarial.trades()._asdict()),
            r"no smoothing; got .*label_smoothing=0\.1",
        ),
        (lambda: fit(attack=lambda *a: a[1], validation=None), "attack needs validation data"),
    ],
)
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_divergence_equals_numpy():
    z, other = RNG.normal(size=(2, 5, 4)).astype(np.float32) * 3
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (z, other))
    np.testing.assert_allclose(adversarial.divergence(z, other), (p * np.log(p / q)).sum(1), rtol=1e-4)
