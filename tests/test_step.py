import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rvsm_jax import train
from rvsm_jax.step import norm
from tests.digits import KEY, digits, forward, mlp


def test_steps_equal_a_loop_in_numpy():
    (images, labels), _ = digits()
    rate, momentum, decay, smooth = 0.3, 0.9, 0.01, 0.1
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(64, 10)) / 8, rng.normal(size=10)
    params = {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}
    tx = optax.sgd(rate, momentum=momentum)
    step = jax.jit(
        train.make_step(
            lambda p, s, x, k, t: (x.reshape(len(x), -1) @ p["kernel"] + p["bias"][None], s),
            tx,
            weight_decay=decay,
            label_smoothing=smooth,
        )
    )
    state = train.init_state(params, {}, tx, KEY)
    vw, vb = 0, 0
    for t in range(5):
        x, y = images[64 * t : 64 * t + 64], labels[64 * t : 64 * t + 64]
        state, metrics = step(state, x, y)
        x = x.reshape(64, -1) / 255
        z = x @ w + b
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        target = (1 - smooth) * np.eye(10)[y] + smooth / 10
        np.testing.assert_allclose(metrics["loss"], -(target * np.log(p)).sum(1).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], (z.argmax(1) == y).mean(), rtol=1e-6)
        gw, gb = x.T @ (p - target) / 64 + decay * w, (p - target).mean(0)
        np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt((gw**2).sum() + (gb**2).sum()), rtol=1e-4)
        vw, vb = momentum * vw + gw, momentum * vb + gb
        w, b = w - rate * vw, b - rate * vb
    np.testing.assert_allclose(state.params["kernel"], w, atol=2e-6)
    np.testing.assert_allclose(state.params["bias"], b, atol=2e-6)
    assert int(state.step) == 5


def dict_tree():
    params = mlp(sizes=(64, 10))["layer0"]
    return params, lambda p, s, x, k, t: (x.reshape(len(x), -1) @ p["kernel"] + p["bias"][None], s)


def nnx_tree():
    graph, params = nnx.split(nnx.Linear(64, 10, rngs=nnx.Rngs(0)), nnx.Param)
    plain = dict_tree()[0]
    params = jax.tree.unflatten(jax.tree.structure(params), [plain["bias"], plain["kernel"]])
    return params, lambda p, s, x, k, t: (nnx.merge(graph, p)(x.reshape(len(x), -1)), s)


def equinox_tree():
    layer, plain = eqx.nn.Linear(64, 10, key=KEY), dict_tree()[0]
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (plain["kernel"].T, plain["bias"]))
    params, static = eqx.partition(layer, eqx.is_array)
    return params, lambda p, s, x, k, t: (jax.vmap(eqx.combine(p, static))(x.reshape(len(x), -1)), s)


def signature(state):
    """Structure, shapes and dtypes; some trees compare by identity, their leaves do not."""
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("tree", [dict_tree, nnx_tree, equinox_tree])
def test_any_tree_of_parameters_is_traced_once_and_trains_the_same(tree):
    (images, labels), _ = digits()
    params, apply = tree()
    tx, traces = optax.sgd(0.1, momentum=0.9), []

    def counted(*arguments):
        traces.append(None)
        return apply(*arguments)

    step = jax.jit(train.make_step(counted, tx, weight_decay=1e-3), donate_argnums=0)
    state = train.init_state(params, {}, tx, KEY)
    before, losses = signature(state), []
    for t in range(4):
        state, metrics = step(state, images[50 * t : 50 * t + 50], labels[50 * t : 50 * t + 50])
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert signature(state) == before
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    if tree is not dict_tree:
        np.testing.assert_allclose(losses, reference_losses(), rtol=1e-5)


@functools.cache
def reference_losses():
    (images, labels), _ = digits()
    params, apply = dict_tree()
    tx = optax.sgd(0.1, momentum=0.9)
    step, state, losses = (
        jax.jit(train.make_step(apply, tx, weight_decay=1e-3)),
        train.init_state(params, {}, tx, KEY),
        [],
    )
    for t in range(4):
        state, metrics = step(state, images[50 * t : 50 * t + 50], labels[50 * t : 50 * t + 50])
        losses.append(float(metrics["loss"]))
    return losses


def test_links_get_the_parameters_the_loss_and_the_gradient():
    seen = {}

    def update(updates, state, params=None, *, value, grad, **extra):
        seen.update(value=value, grad=grad, params=params)
        return updates, {"value": value, "grad": grad["kernel"], "weight": params["kernel"]}

    tx = optax.chain(
        optax.GradientTransformationExtraArgs(
            lambda p: {"value": jnp.zeros(()), "grad": jnp.zeros_like(p["kernel"]), "weight": p["kernel"]}, update
        ),
        optax.sgd(0.5),
    )
    params, apply = dict_tree()
    (images, labels), _ = digits()
    state, metrics = jax.jit(train.make_step(apply, tx))(train.init_state(params, {}, tx, KEY), images[:9], labels[:9])
    kept = state.opt_state[0]
    np.testing.assert_array_equal(kept["value"], metrics["loss"])
    np.testing.assert_array_equal(kept["weight"], params["kernel"])
    np.testing.assert_allclose(state.params["kernel"], params["kernel"] - 0.5 * kept["grad"], rtol=1e-6, atol=1e-7)


def test_an_adversary_attacks_the_evaluated_model_on_unit_images():
    """With one step of signed gradient the loss of the step must be that on the attacked images."""
    (images, labels), _ = digits()
    images, labels = images[:64], labels[:64]
    modes = []

    def moody(params, model_state, x, key, train):
        modes.append(train)
        return forward(params, model_state, x, key, train)

    def attack(logits, x, y, key):
        assert x.dtype == jnp.float32
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(logits(x), y).sum()  # noqa: E731
        return jnp.clip(x + 0.1 * jnp.sign(jax.grad(loss)(x)), 0, 1)

    tx = optax.sgd(0.1)
    state = train.init_state(mlp(), {}, tx, KEY)
    _, metrics = jax.jit(train.make_step(moody, tx, perturb=attack))(state, images, labels)
    by_hand = attack(lambda x: forward(mlp(), {}, x, KEY, False)[0], jnp.asarray(images / np.float32(255)), labels, KEY)
    wanted = train.evaluate(forward, mlp(), {}, by_hand, labels)
    assert modes == [False, True]
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
    assert wanted["loss"] > train.evaluate(forward, mlp(), {}, images, labels)["loss"] + 0.1


def test_every_step_draws_anew_and_the_same_again():
    def noisy(params, model_state, x, key, train):
        return forward(params, model_state, x + jax.random.normal(key, x.shape), key, train)

    (images, labels), _ = digits()
    tx, arrays = optax.sgd(0.0), (jnp.ones_like(images[:8]), labels[:8])
    step = jax.jit(train.make_step(noisy, tx, augment=lambda key, x: jax.random.randint(key, x.shape, 0, 255, x.dtype)))
    state = train.init_state(mlp(), {}, tx, KEY)
    after, first = step(state, *arrays)
    _, again = step(state, *arrays)
    _, second = step(after, *arrays)
    assert first["loss"] == again["loss"] != second["loss"]


def test_bfloat16_computes_and_float32_trains():
    seen = []

    def watched(params, model_state, x, key, train):
        seen.append((params["layer0"]["kernel"].dtype, x.dtype, model_state["mean"].dtype))
        logits, _ = forward(params, model_state, x, key, train)
        return logits, {"mean": model_state["mean"] + logits.mean().astype(jnp.float32)}

    (images, labels), _ = digits()
    tx = optax.sgd(0.1)
    step = train.make_step(watched, tx, compute_dtype=jnp.bfloat16)
    state = train.init_state(mlp(), {"mean": jnp.zeros(())}, tx, KEY)
    after, metrics = jax.jit(step)(state, images[:64], labels[:64])
    assert seen == [(jnp.bfloat16, jnp.bfloat16, jnp.float32)]
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    _, precise = jax.jit(train.make_step(forward, tx))(train.init_state(mlp(), {}, tx, KEY), images[:64], labels[:64])
    np.testing.assert_allclose(metrics["loss"], precise["loss"], rtol=0.02)
    assert metrics["loss"] != precise["loss"]


def test_a_vmapped_step_trains_several_networks_as_one_by_one():
    (images, labels), _ = digits()
    tx = optax.sgd(0.1, momentum=0.9)
    step, x, y = train.make_step(forward, tx), images[:50], labels[:50].astype(np.uint8)
    states = [train.init_state(mlp(seed), {}, tx, jax.random.key(seed)) for seed in (0, 1)]
    together, metrics = jax.jit(jax.vmap(step, (0, None, None)))(jax.tree.map(lambda *s: jnp.stack(s), *states), x, y)
    for i, state in enumerate(states):
        alone, found = jax.jit(step)(state, x, y)
        np.testing.assert_allclose(metrics["loss"][i], found["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6), together.params, alone.params)


def test_the_norm_of_large_and_small_numbers_neither_overflows_nor_vanishes():
    for scale in (1e-25, 1.0, 2e19, 1e38):
        found = norm({"a": jnp.full((2, 2), scale), "b": jnp.full(5, -scale), "empty": jnp.zeros((0, 3))})
        np.testing.assert_allclose(found, 3 * np.float32(scale), rtol=1e-6)
    assert norm({"a": jnp.zeros(3)}) == 0 and norm({}) == 0
    assert norm(jnp.array([1, -jnp.inf])) == jnp.inf and jnp.isnan(norm(jnp.array([1, jnp.nan])))
