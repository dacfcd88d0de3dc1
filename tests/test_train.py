import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import train
from rvsm_jax.finite import nonfinite
from tests.digits import KEY, assert_equal, digits, fit, forward, hard, mlp


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
    matrices = [np.asarray(layer["kernel"]) for layer in result.sparse_params.values()]
    zeros = sum((m == 0).sum() for m in matrices) / sum(m.size for m in matrices)
    np.testing.assert_allclose(last["zeros"], zeros, rtol=1e-6)
    gap = jax.tree.map(lambda w, u: np.square(w - u).sum(), result.params, result.sparse_params)
    np.testing.assert_allclose(last["distance"], np.sqrt(sum(jax.tree.leaves(gap))), rtol=1e-5)


def test_weights_are_replaced_at_epochs_ends_only_if_asked():
    kept, replaced = fit(epochs=1), fit(epochs=1, replace_weights=True)
    assert_equal(replaced.params, kept.sparse_params)
    assert (np.asarray(kept.params["layer0"]["kernel"]) == 0).sum() == 0
    assert replaced.history[0]["distance"] == kept.history[0]["distance"] > 0


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_u_that_ships_is_the_one_that_was_measured(select):
    """Also where sparse(u) is not u, as when a soft threshold has replaced w."""
    _, validation = digits()
    soft = lambda w, step: jax.tree.map(lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.02, 0), w)  # noqa: E731
    result = fit(epochs=2, sparse=soft, replace_weights=True, select=select)
    found = train.evaluate(forward, result.sparse_params, {}, *validation)
    last = result.history[-1]
    np.testing.assert_allclose([last["u_loss"], last["u_accuracy"]], [found["loss"], found["accuracy"]], rtol=1e-6)


def test_a_u_that_is_not_finite_does_not_replace_the_weights(tmp_path):
    broken = lambda w, step: jax.tree.map(lambda x: jnp.where(step > 14, jnp.nan, x), w)  # noqa: E731
    with pytest.raises(train.NonFiniteLoss, match="not finite after 28 steps; first leaf: 'layer0/bias'") as error:
        fit(epochs=3, sparse=broken, replace_weights=True, checkpoint_dir=tmp_path)
    assert error.value.step == 28 and not nonfinite(error.value.state.params)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000014"]


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
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2000}, r"batch_size must be in 1\.\.1437.*got 2000"),
        ({"select": "first"}, "'last' or 'best', got 'first'"),
        ({"select": "best", "validation": None}, "needs validation data"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"replace_weights": True, "sparse": None}, "replace_weights=True .*sparse=None"),
        ({"weight_decay": -1e-4}, "weight_decay must be >= 0, got -0.0001"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (
            {"train": (np.zeros((200, 8, 8, 1), np.uint8), np.full(200, 10))},
            r"train: labels must be in 0\.\.9.*10\.\.10",
        ),
        ({"train": (np.zeros((200, 8, 8, 1), np.uint8), np.full(200, -1))}, r"got -1\.\.-1"),
        ({"train": (np.zeros((200, 8, 8, 1), np.uint8), np.zeros(199, int))}, r"\(200, .*\(199,\)"),
        ({"train": (np.zeros((200, 8, 8, 1), np.uint8), np.zeros((200, 10), int))}, r"labels \(200, 10\)"),
        ({"validation": (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int))}, "validation: .*N >= 1"),
        ({"sparse": lambda w, step: w["layer0"]}, "sparse must return a tree like"),
        ({"params": {"layer0": {"kernel": jnp.full((64, 10), jnp.nan), "bias": jnp.zeros(10)}}}, "layer0/kernel"),
        ({"devices": []}, "devices must not be empty"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        fit(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 1.5}, r"epochs must be an integer, got 1\.5"),
        ({"batch_size": 16.0}, r"batch_size must be an integer, got 16\.0"),
        ({"keep": 2.0}, r"keep must be an integer, got 2\.0"),
        ({"checkpoint_every": 0.5}, r"checkpoint_every must be an integer, got 0\.5"),
        (
            {"train": (np.zeros((200, 8, 8, 1)), np.full(200, 0.7))},
            r"train: labels must be .*float64 \(200,\)",
        ),
        ({"validation": (np.zeros((9, 8, 8, 1)), np.eye(9, 10))}, r"validation: labels .*float64 \(9, 10\)"),
        ({"validation": ()}, r"validation must be a pair \(images, labels\), got tuple of 0"),
        ({"train": np.zeros((9, 8, 8, 1))}, r"train must be a pair \(images, labels\), got ndarray"),
        ({"tx": rvsm_jax.rvsm(optax.sgd(0.1), rvsm_jax.l1(), 1.0, 1.0)}, "tx must be an optax .*its tx.*got Method"),
        ({"tx": optax.sgd}, "tx must be an optax transformation .*got function"),
    ],
)
def test_arguments_of_another_type_are_named(changes, match):
    with pytest.raises(TypeError, match=match):
        fit(**changes)


def test_settings_that_no_checkpoint_can_hold_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"config must hold plain values, .*float32.*; got \{'rate'"):
        fit(checkpoint_dir=tmp_path, config={"rate": np.float32(1)})


def test_integer_parameters_are_named():
    with pytest.raises(TypeError, match=r"'layer0/bias' is .*int32"):
        fit({"layer0": {"kernel": jnp.ones((64, 10)), "bias": jnp.zeros(10, jnp.int32)}})


# when it stops being finite


def test_large_is_finite():
    tree = {"large": jnp.full(9, 2e19), "half": jnp.full(2, 6e4, jnp.float16), "count": jnp.int32(3)}
    assert nonfinite(tree) == []
    assert nonfinite(tree | {"a": jnp.array([1, jnp.inf]), "b": jnp.array(jnp.nan)}) == ["a", "b"]


def test_large_weights_and_gradients_train_on():
    """All is finite, though no square of the weight ``far`` or of its gradient is."""

    def steep(params, model_state, x, key, train):
        logits, _ = forward({name: params[name] for name in ("layer0", "layer1")}, model_state, x, key, train)
        return logits + 1e21 * (params["far"] - jax.lax.stop_gradient(params["far"]))[None], model_state

    tx = optax.multi_transform(
        {"near": optax.sgd(0.1), "far": optax.sgd(1e-9)}, {"layer0": "near", "layer1": "near", "far": "far"}
    )
    result = fit(mlp() | {"far": jnp.full(10, 2e19)}, tx=tx, forward=steep, epochs=1, sparse=None)
    assert 2e19 < result.history[0]["gradient_norm"] < jnp.inf


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
