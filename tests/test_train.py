import functools
import itertools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rvsm_jax import data, epochs, train

KEY = jax.random.key(0)


def mlp(seed=0, sizes=(64, 16, 10)):
    """Weights of a small network for 8 x 8 images."""
    rng = np.random.default_rng(seed)
    layers = itertools.pairwise(sizes)
    return {
        f"layer{i}": {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for i, shape in enumerate(layers)
    }


def forward(params, model_state, images, key, train):
    x = images.reshape(len(images), -1)
    for i, layer in enumerate(params.values()):
        x = (x if i == 0 else jax.nn.relu(x)) @ layer["kernel"] + layer["bias"][None]
    return x, model_state


def hard(w, step):
    """Zeroes every small weight."""
    return jax.tree.map(lambda x: jnp.where(jnp.abs(x) > 0.05, x, 0), w)


@functools.cache
def digits():
    found = data.load("digits")
    return (found.train_images, found.train_labels), (found.test_images, found.test_labels)


def fit(params=None, tx=None, **changes):
    train_set, validation = digits()
    arguments = {"epochs": 3, "batch_size": 100, "key": KEY, "progress": False, "sparse": hard} | changes
    arguments = {"forward": forward, "train": train_set, "validation": validation, "model_state": {}} | arguments
    tx = optax.sgd(0.2, momentum=0.9) if tx is None else tx
    return train.fit(params=mlp() if params is None else params, tx=tx, **arguments)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


# one step


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
    params["kernel"].set_value(plain["kernel"])
    params["bias"].set_value(plain["bias"])
    return params, lambda p, s, x, k, t: (nnx.merge(graph, p)(x.reshape(len(x), -1)), s)


def equinox_tree():
    layer, plain = eqx.nn.Linear(64, 10, key=KEY), dict_tree()[0]
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (plain["kernel"].T, plain["bias"]))
    params, static = eqx.partition(layer, eqx.is_array)
    return params, lambda p, s, x, k, t: (jax.vmap(eqx.combine(p, static))(x.reshape(len(x), -1)), s)


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
    structure = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    losses = []
    for t in range(4):
        state, metrics = step(state, images[50 * t : 50 * t + 50], labels[50 * t : 50 * t + 50])
        losses.append(float(metrics["loss"]))
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == structure
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


# epochs and evaluation


def test_an_epoch_goes_once_through_the_data_in_an_order_of_its_own():
    first, again, second = (train.shuffle(KEY, e, examples=103, batch_size=10) for e in (0, 0, 1))
    assert first.shape == (10, 10) and len(np.unique(first)) == 100 and first.min() >= 0 and first.max() < 103
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(second)).any()


def test_scanned_and_dispatched_epochs_agree_and_fetch_once(monkeypatch):
    (images, labels), _ = digits()
    tx, ends, fetched = optax.sgd(0.1, momentum=0.9), [], []
    order = train.shuffle(KEY, 0, examples=len(labels), batch_size=100)
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(None) or fetch(x))
    for scan in (False, True):
        epoch = train.make_epoch(train.make_step(forward, tx), scan=scan)
        state = train.init_state(mlp(), {}, tx, KEY)
        ends.append(epoch(*epoch(state, images, labels, order, 9)[:1], images, labels, order, 5))
    assert len(fetched) == 4
    (state, metrics), (scanned, scanned_metrics) = ends
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, scanned.params)
    np.testing.assert_allclose(metrics["loss"], scanned_metrics["loss"], rtol=1e-5)
    assert metrics["loss"].shape == (5,) and int(state.step) == 14


@pytest.mark.parametrize("batch_size", [1, 7, 360, 1000])
@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(batch_size, devices):
    _, (images, labels) = digits()
    images, labels = images[:41], labels[:41]
    mesh = train.data_mesh(jax.devices()[:devices])
    found = train.evaluate(forward, mlp(), {}, images, labels, batch_size=batch_size, mesh=mesh)
    logits = np.asarray(forward(mlp(), {}, images.astype(np.float32) / np.float32(255), KEY, False)[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -log_p[np.arange(41), labels].mean(), rtol=1e-6)
    assert found["accuracy"] == (logits.argmax(1) == labels).mean()


def normalised(params, model_state, images, key, train):
    """A network with batch statistics and noise, which couple a batch."""
    x = images.reshape(len(images), -1)
    mean = x.mean(0) if train else model_state["mean"]
    x = x - mean[None] + (0.01 * jax.random.normal(key, x.shape) if train else 0)
    logits, _ = forward(params, {}, x, key, train)
    return logits, {"mean": 0.9 * model_state["mean"] + 0.1 * mean}


def test_one_device_and_eight_give_the_same_curve():
    one, eight = (
        fit(
            forward=normalised,
            model_state={"mean": jnp.zeros(64)},
            batch_size=96,
            devices=jax.devices()[:n],
            augment=functools.partial(data.crop, padding=1),
        )
        for n in (1, 8)
    )
    assert len(eight.state.params["layer0"]["kernel"].sharding.device_set) == 8
    for a, b in zip(one.history, eight.history, strict=True):
        for name in set(a) - {"seconds"}:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, err_msg=name)
    np.testing.assert_allclose(one.model_state["mean"], eight.model_state["mean"], rtol=1e-4, atol=1e-6)
    assert one.history[-1]["train_loss"] < 0.8 * one.history[0]["train_loss"]


def test_the_batch_is_split_over_the_devices():
    mesh = train.data_mesh(jax.devices(), 16)
    (images, labels), _ = digits()
    state = train.init_state(mlp(), {}, optax.sgd(0.1), KEY)
    order = train.shuffle(KEY, 0, examples=len(labels), batch_size=16)
    arrays = epochs.replicate((state, images, labels, order), mesh)
    x, y = jax.jit(lambda s, *rest: epochs.take(mesh, s, *rest))(*arrays)
    assert x.sharding.spec == y.sharding.spec == jax.sharding.PartitionSpec("data")
    np.testing.assert_array_equal(x, images[order[0]])


def test_devices_default_to_one_on_cpu_and_must_divide_the_batch():
    assert train.data_mesh().size == 1 and train.data_mesh(jax.devices()).size == 8
    with pytest.raises(ValueError, match="multiple of the number of devices, got 100 on 8"):
        fit(devices=jax.devices())


# fit


def test_fit_learns_records_and_leaves_its_arguments_alone(tmp_path):
    params = mlp()
    result = fit(params, metrics_path=tmp_path / "new" / "metrics.jsonl")
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history and [r["epoch"] for r in lines] == [1, 2, 3] and lines[-1]["step"] == 42
    _, validation = digits()
    last = lines[-1]
    assert last["w_accuracy"] > 0.9 and last["train_loss"] < lines[0]["train_loss"]
    assert_equal(result.sparse_params, hard(result.params, 0))
    found = train.evaluate(forward, result.sparse_params, {}, *validation)
    np.testing.assert_allclose([last["u_loss"], last["u_accuracy"]], [found["loss"], found["accuracy"]], rtol=1e-6)
    kernels = [np.asarray(layer["kernel"]) for layer in result.sparse_params.values()]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    np.testing.assert_allclose(last["zeros"], zeros, rtol=1e-6)
    gap = jax.tree.map(lambda w, u: np.square(w - u).sum(), result.params, result.sparse_params)
    np.testing.assert_allclose(last["distance"], np.sqrt(sum(jax.tree.leaves(gap))), rtol=1e-5)


def test_weights_are_replaced_at_epochs_ends_only_if_asked():
    kept, replaced = fit(epochs=1), fit(epochs=1, replace_weights=True)
    assert_equal(replaced.params, kept.sparse_params)
    assert (np.asarray(kept.params["layer0"]["kernel"]) == 0).sum() == 0
    assert replaced.history[0]["distance"] == kept.history[0]["distance"] > 0


def test_sparse_sees_the_number_of_steps():
    result = fit(epochs=2, sparse=lambda w, step: jax.tree.map(lambda x: jnp.where(step == 28, x, 0), w))
    assert result.history[0]["zeros"] == 1 and result.history[1]["zeros"] < 0.5


def test_the_best_epoch_is_selected_by_the_accuracy_of_u():
    tx = optax.sgd(lambda count: jnp.where(count < 28, 0.1, 30.0))  # falls apart in the third epoch
    last, best = fit(tx=tx), fit(tx=tx, select="best")
    scores = [r["u_accuracy"] for r in best.history]
    assert np.argmax(scores) == 1 and best.step == 28 and last.step == 42
    _, validation = digits()
    assert train.evaluate(forward, best.sparse_params, {}, *validation)["accuracy"] == scores[1] > scores[2]
    assert_equal(best.state.params, last.params)


def test_fit_without_u_or_validation_records_what_there_is():
    result = fit(sparse=None, validation=None, epochs=1)
    assert set(result.history[0]) == {"epoch", "step", "train_loss", "train_accuracy", "gradient_norm", "seconds"}
    assert result.sparse_params is result.params


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size must be in 1\.\.1437.*got 0"),
        ({"batch_size": 2000}, "got 2000"),
        ({"select": "first"}, "'last' or 'best', got 'first'"),
        ({"select": "best", "validation": None}, "needs validation data"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be >= 0, got -0.0001"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (
            {"train": (np.zeros((200, 8, 8, 1), np.uint8), np.full(200, 10))},
            r"train: labels must be in 0\.\.9.*10\.\.10",
        ),
        ({"train": (np.zeros((200, 8, 8, 1), np.uint8), np.full(200, -1))}, r"got -1\.\.-1"),
        ({"train": (np.zeros((200, 8, 8, 1), np.uint8), np.zeros(199, int))}, "got 200 and 199"),
        ({"sparse": lambda w, step: w["layer0"]}, "sparse must return a tree like"),
        ({"params": {"layer0": {"kernel": jnp.full((64, 10), jnp.nan), "bias": jnp.zeros(10)}}}, "layer0/kernel"),
        ({"devices": []}, "devices must not be empty"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        fit(**changes)


def test_integer_parameters_are_named():
    with pytest.raises(TypeError, match=r"'layer0/bias' is .*int32"):
        fit({"layer0": {"kernel": jnp.ones((64, 10)), "bias": jnp.zeros(10, jnp.int32)}})


# when it stops being finite


def blow(at, leaf):
    """A link that makes one leaf's update infinite at one step."""

    def update(updates, count, params=None):
        flat = optax.tree.zeros_like(updates)
        flat[leaf]["kernel"] = jnp.where(count == at, jnp.inf, jnp.zeros_like(flat[leaf]["kernel"]))
        return jax.tree.map(jnp.add, updates, flat), count + 1

    return optax.chain(optax.sgd(0.1), optax.GradientTransformation(lambda p: jnp.zeros((), jnp.int32), update))


@pytest.mark.parametrize("at", [17, 41])  # within an epoch, and the last step of all
def test_the_step_and_leaf_that_blow_up_are_named_and_the_state_before_is_kept(at):
    with pytest.raises(
        train.NonFiniteLoss, match=rf"at step {at}, .*first non-finite weight: 'layer1/kernel'"
    ) as error:
        fit(tx=blow(at, "layer1"))
    assert (error.value.step, error.value.leaf) == (at, "layer1/kernel")
    assert len(error.value.history) == at // 14 and int(error.value.state.step) == at
    step_key, order_key = jax.random.split(KEY)
    (images, labels), _ = digits()
    tx = blow(99, "layer1")
    state, step = train.init_state(mlp(), {}, tx, step_key), jax.jit(train.make_step(forward, tx))
    for t in range(at):
        batch = train.shuffle(order_key, t // 14, examples=len(labels), batch_size=100)[t % 14]
        state, _ = step(state, images[batch], labels[batch])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), error.value.state.params, state.params)


def test_a_gradient_that_blows_up_is_named_though_the_update_hides_it():
    """A proximal step can turn a NaN into a zero: the weights stay finite and the run must stop all the same."""

    def spoil(params, model_state, x, key, train):
        steep = jnp.sqrt(jnp.abs(params["layer1"]["bias"])).sum()  # its slope at 0 is infinite
        return forward(params, model_state, x, key, train)[0] + 0 * steep, model_state

    def swallow(updates, state, params=None):
        return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), -0.1 * g, 0), updates), state

    tx = optax.GradientTransformation(lambda p: optax.EmptyState(), swallow)
    with pytest.raises(
        train.NonFiniteLoss, match=r"at step 0, .*first non-finite gradient: 'layer1/bias', and 0 other"
    ):
        fit(tx=tx, forward=spoil)


def test_an_infinite_loss_is_named():
    def overflow(params, model_state, x, key, train):
        logits, _ = forward(params, model_state, x, key, train)
        return jnp.where(model_state["count"] == 20, jnp.inf, 1) * logits, {"count": model_state["count"] + int(train)}

    with pytest.raises(train.NonFiniteLoss, match="at step 20, where the loss was nan"):
        fit(forward=overflow, model_state={"count": jnp.zeros((), jnp.int32)})


# records


def test_metrics_that_cannot_be_written_do_not_lose_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="metrics are kept in memory only"):
        result = fit(epochs=1, metrics_path=tmp_path / "file" / "metrics.jsonl")
    assert len(result.history) == 1


def test_progress_shows_epochs_and_the_last_record(capsys):
    result = fit(progress=True)
    shown = capsys.readouterr().out
    assert "3/3" in shown and f"zeros {100 * result.history[-1]['zeros']:.2f}" in shown.replace("\n", " ")


def test_the_history_is_drawn(tmp_path):
    history = [{"epoch": e, "train_accuracy": 0.1 * e, "u_accuracy": None, "zeros": 0.2 * e} for e in (1, 2, 3)]
    train.plot_history(history, tmp_path / "run.svg")
    train.plot_history(history, tmp_path / "run.png")
    drawn = (tmp_path / "run.svg").read_text()
    assert drawn.count("<path") > 20 and (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="empty history"):
        train.plot_history([], tmp_path / "none.png")
