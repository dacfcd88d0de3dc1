"""What a shrunk network goes on to do: train, be attacked, be saved and exported; and what `shrink` refuses."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import rvsm_jax
from rvsm_jax import models
from rvsm_jax.models.normalisation import BatchNorm
from rvsm_jax.shrinking import (
    RULES,
    Rule,
    ShrinkError,
    follow,
    from_record,
    measure,
    plot_channel_norms,
    register,
    shrink,
    to_record,
)
from tests.digits import digits
from tests.networks import lenient
from tests.test_shrinking import assert_close, count

NHWC = ("NHWC", "HWIO", "NHWC")
SHAPE = jax.ShapeDtypeStruct((1, 8), jnp.float32)


def mlp(zero=3, seed=0):
    """relu(x A + a) B + b with some rows of B zero."""
    rng = np.random.default_rng(seed)
    shapes = {"A": (8, 6), "a": (6,), "B": (6, 4), "b": (4,)}
    variables = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    variables["B"] = variables["B"].at[:zero].set(0)
    return lambda v, x: jax.nn.relu(x @ v["A"] + v["a"][None]) @ v["B"] + v["b"][None], variables


def batch(seed=1, rows=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, 8)), jnp.float32)


def test_gradients_and_an_optimisers_step_are_those_of_the_big_network():
    fn, variables = mlp()
    small_fn, small, report = shrink(fn, variables, SHAPE)
    assert small["A"].shape == (8, 3)
    x, tx = batch(), optax.adam(0.1)

    def loss(f):
        return lambda v, x: jnp.square(f(v, x) - 1).sum()

    update = lenient(tx.update)
    state = update(jax.grad(loss(fn))(variables, batch(7)), tx.init(variables), variables)[1]
    big, little = jax.grad(loss(fn), (0, 1))(variables, x), jax.grad(loss(small_fn), (0, 1))(small, x)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), report.take(big[0]), little[0])
    assert_close(big[1], little[1], 1e-6)  # the gradient an attack follows
    updates, _ = update(big[0], state, variables)
    small_updates, small_state = update(little[0], report.take(state), small)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), report.take(updates), small_updates)
    assert int(small_state[0].count) == 2 and small_state[0].mu["A"].shape == (8, 3)


KEPT = {
    "admm": lambda prox, sgd: optax.chain(rvsm_jax.admm_splitting(prox, 0.5, every=2), sgd),
    "relaxed": lambda prox, sgd: optax.chain(sgd, rvsm_jax.relaxed_projection(prox, 0.5)),
    "partial": lambda prox, sgd: optax.chain(sgd, rvsm_jax.partial_projection(prox, 0.5)),
    "masked": lambda prox, sgd: optax.masked(sgd, lambda params: jax.tree.map(lambda x: x.ndim == 2, params)),
}


@pytest.mark.parametrize("link", KEPT)
def test_states_that_leave_leaves_out_are_cut(link):
    fn, variables = mlp()
    _, small, report = shrink(fn, variables, SHAPE)
    soft = rvsm_jax.proximal_operator(rvsm_jax.l1(), where=lambda path, leaf: leaf.ndim == 2)
    tx = KEPT[link](lambda w, t: soft(w, 0.1), optax.sgd(0.1, momentum=0.9))
    update = lenient(tx.update)
    state = update(variables, tx.init(variables), variables)[1]
    updates, _ = update(variables, state, variables)
    small_state = report.take(state)
    small_updates, _ = update(small, small_state, small)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), report.take(updates), small_updates)
    held = [x for x in jax.tree.leaves(small_state) if jnp.ndim(x) == 2]
    assert held and {x.shape for x in held} == {(8, 3), (3, 4)}


def test_relu_keeps_its_derivative_at_zero():
    fn, variables = mlp()
    variables = variables | {"a": jnp.zeros(6)}
    small_fn, small, _ = shrink(fn, variables, SHAPE)
    gradient = jax.grad(lambda v: small_fn(v, jnp.zeros((1, 8))).sum())(small)
    np.testing.assert_array_equal(gradient["a"], np.zeros(3))


def test_a_reverse_rule_of_an_elementwise_function_is_kept():
    @jax.custom_vjp
    def step(x):
        return jnp.where(x > 0, 1.0, 0.0)

    step.defvjp(lambda x: (step(x), x), lambda x, g: (g * jnp.where(jnp.abs(x) < 2, 0.5, 0.0),))
    _, variables = mlp()
    fn = lambda v, x: step(x @ v["A"]) @ v["B"]  # noqa: E731
    small_fn, small, report = shrink(fn, variables, SHAPE)
    big = jax.grad(lambda v: fn(v, batch()).sum())(variables)
    little = jax.grad(lambda v: small_fn(v, batch()).sum())(small)
    assert_close(report.take(big)["A"], little["A"], 1e-6)
    assert report.inlined == () and float(jnp.abs(little["A"]).max()) > 0


class Normalised(nnx.Module):
    """Two convolutions with BatchNorm in between."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = BatchNorm(6)
        self.conv2 = nnx.Conv(6, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.conv2(nnx.relu(self.norm(self.conv1(x)))).mean((1, 2))


def normalised():
    """Evaluation and training mode, and variables of which conv2 reads half of its channels."""
    network = models.functional(Normalised(nnx.Rngs(0)))
    forward = lenient(network.forward)
    kernel = network.params["conv2"]["kernel"]
    params = network.params | {"conv2": network.params["conv2"] | {"kernel": kernel.at[:, :, 1:4].set(0)}}
    modes = [lambda v, x, train=train: forward(v["params"], v["state"], x, None, train) for train in (False, True)]
    return *modes, {"params": params, "state": network.state}


def test_training_mode_and_batch_statistics_follow():
    evaluated, trained, variables = normalised()
    small_evaluated, small, report = shrink(evaluated, variables, jnp.ones((1, 5, 5, 1)))
    small_trained = follow(trained, small, report)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 5, 1)), jnp.float32)
    (logits, state), (small_logits, small_state) = jax.jit(trained)(variables, x), jax.jit(small_trained)(small, x)
    assert_close(logits, small_logits, 1e-5)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), report.take(state), small_state)
    assert small_state["norm"]["mean"].shape == (3,) == small["params"]["norm"]["scale"].shape
    same = small_evaluated(small, x)[1]  # a variable that is returned as it is comes back small
    jax.tree.map(np.testing.assert_array_equal, same, small["state"])
    with pytest.raises(ShrinkError, match="needs more of the variable 'params/norm/bias' than was kept"):
        follow(lambda v, x: v["params"]["norm"]["bias"] + x.sum(), small, report)
    with pytest.raises(ShrinkError, match="must have the structure"):
        follow(trained, small["params"], report)


def test_kept_zeros_of_a_followed_function_may_become_anything():
    fn, variables = mlp(zero=3)
    _, small, report = shrink(fn, variables, SHAPE, round_to=4)  # one zero row stays, to make four
    moved = small | {"B": small["B"].at[0].set(5.0)}
    loss = follow(lambda v, x: fn(v, x).sum(), small, report)
    hidden = jax.nn.relu(batch() @ moved["A"] + moved["a"][None])
    assert_close((hidden @ moved["B"] + moved["b"][None]).sum(), loss(moved, batch()), 1e-5)


def test_a_network_that_rgsm_has_trained_shrinks_and_trains_on():
    (images, labels), _ = digits()
    images = jnp.asarray(images[:512], jnp.float32).reshape(-1, 8, 8, 1) / 255
    labels = jnp.asarray(labels[:512])
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "dense": (16, 10)}
    draw = lambda s: jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32)  # noqa: E731
    params = {name: {"kernel": draw(shape)} for name, shape in shapes.items()}

    def fn(params, x):
        for name in ("conv1", "conv2"):
            kernel = params[name]["kernel"]
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC))
        return x.mean((1, 2)) @ params["dense"]["kernel"]

    def loss(f):
        return lambda p: optax.softmax_cross_entropy_with_integer_labels(f(p, images), labels).mean()

    def steps(f, params, tx, count):
        @jax.jit
        def step(params, state):
            value, g = jax.value_and_grad(loss(f))(params)
            updates, state = lenient(tx.update)(g, state, params)
            return optax.apply_updates(params, updates), state, value

        state = tx.init(params)
        for _ in range(count):
            params, state, value = step(params, state)
        return params, float(value)

    method = rvsm_jax.rgsm(optax.adam(0.02), rvsm_jax.l0(), lam1=1.0, beta=1.0, lam2=1e-3)
    trained, _ = steps(fn, params, method.tx, 40)
    sparse = method.sparse(trained, 40)
    dead = int((jnp.abs(sparse["conv2"]["kernel"]).sum((0, 1, 3)) == 0).sum())
    assert 0 < dead < 8
    small_fn, small, report = shrink(fn, sparse, images)
    assert small["conv1"]["kernel"].shape == (3, 3, 1, 8 - dead) and report.error <= 1e-5
    assert_close(fn(sparse, images), small_fn(small, images), 1e-5)
    before = float(loss(small_fn)(small))
    assert steps(small_fn, small, optax.adam(0.02), 20)[1] < before


def test_export_is_loaded_without_the_library_in_a_fresh_process(tmp_path):
    fn, variables = mlp()
    small_fn, small, _ = shrink(fn, variables, SHAPE)
    exported = jax.export.export(jax.jit(small_fn))(small, batch())
    (tmp_path / "network.bin").write_bytes(exported.serialize())
    np.savez(tmp_path / "arrays.npz", x=batch(), **small)
    script = """
import sys, numpy as np, jax
from jax import export
network = export.deserialize(bytearray(open("network.bin", "rb").read()))
arrays = dict(np.load("arrays.npz"))
np.save("y.npy", network.call({k: v for k, v in arrays.items() if k != "x"}, arrays["x"]))
assert not [m for m in sys.modules if m.startswith("rvsm_jax")]
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=300)
    assert_close(fn(variables, batch()), jnp.asarray(np.load(tmp_path / "y.npy")), 1e-5)


@pytest.mark.parametrize("constants", ["keep", "fold"])
def test_saved_with_orbax_and_a_record_it_comes_back(tmp_path, constants):
    fn, variables = mlp()
    variables["A"] = variables["A"].at[:, 4].set(0)  # with a[4] > 0 a constant channel
    variables["a"] = variables["a"].at[4].set(0.5)
    small_fn, small, report = shrink(fn, variables, SHAPE, constants=constants)
    (tmp_path / "record.json").write_text(json.dumps(to_record(report)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "arrays", small)
        checkpointer.wait_until_finished()
        loaded = checkpointer.restore(tmp_path / "arrays", jax.tree.map(jnp.zeros_like, small))
    again = from_record(fn, loaded, SHAPE, json.loads((tmp_path / "record.json").read_text()))
    np.testing.assert_array_equal(again(loaded, batch()), small_fn(small, batch()))
    assert_close(fn(variables, batch()), again(loaded, batch()), 1e-5)
    assert loaded[0]["A"].shape == (8, 2) if constants == "fold" else loaded["A"].shape == (8, 3)
    record = to_record(report)
    with pytest.raises(ShrinkError, match="of another function"):
        from_record(lambda v, x: fn(v, x) + 1, loaded, SHAPE, record)
    with pytest.raises(ShrinkError, match="of an example"):
        from_record(fn, loaded, jnp.ones((1, 9)), record)
    with pytest.raises(ShrinkError, match="must come from to_record"):
        from_record(fn, loaded, SHAPE, {})


def test_masks_say_which_zeros_are_pruning():
    fn, variables = mlp(zero=0)
    start = variables | {"B": variables["B"].at[0].set(0)}  # a zero that training may move
    ones = jnp.ones((6, 4))
    masks = dict.fromkeys(variables) | {"B": ones.at[1].set(0)}
    small_fn, small, report = shrink(fn, start, SHAPE, masks=masks)
    assert small["A"].shape == (8, 5) and np.array_equal(report.leaves[2].box[0], [0, 2, 3, 4, 5])
    masked = start | {"B": start["B"].at[1].set(0)}
    assert_close(fn(masked, batch()), small_fn(small, batch()), 1e-5)
    assert shrink(fn, start, SHAPE, masks=dict.fromkeys(variables) | {"B": ones})[0] is fn
    with pytest.raises(ShrinkError, match="mask of 'B' must have its shape"):
        shrink(fn, start, SHAPE, masks=dict.fromkeys(variables) | {"B": jnp.ones(6)})
    with pytest.raises(ShrinkError, match="masks must have the structure"):
        shrink(fn, start, SHAPE, masks={"B": ones})


def test_the_report_counts_what_the_compiler_counts():
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 6), (6, 4))]
    w[1] = w[1].at[:3].set(0)
    fn = lambda v, x: x @ v[0] @ v[1]  # noqa: E731
    small_fn, small, report = shrink(fn, w, SHAPE)
    assert report.multiply_adds == (8 * 6 + 6 * 4, 8 * 3 + 3 * 4) and report.bytes == (288, 144)
    report = measure(report, fn, w, small_fn, small, batches=(1, 64), rounds=3)
    assert [c.operations for c in report.costs] == [(2 * n * 72, 2 * n * 36) for n in (1, 64)]
    assert all(t > 0 for c in report.costs for t in c.seconds)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["parameters"] == {"before": 72, "after": 36} and len(data["costs"]) == 2
    table = str(report).splitlines()
    assert table[1].split() == ["0", "8", "6", "->", "3", "48", "->", "24", "0.50"]
    assert any(line.startswith("milliseconds, batch 64") for line in table)


def test_an_operation_without_a_rule_is_kept_whole_and_named():
    fn, variables = mlp()
    _, small, report = shrink(lambda v, x: fn(v, jnp.sort(x, 1)), variables, SHAPE)
    assert small["A"].shape == (8, 3) and report.kept_whole == ("sort of (3, 8) to (3, 8)",)
    blocked = lambda v, x: jax.lax.top_k(x @ v["A"], 6)[0] @ v["B"]  # noqa: E731
    _, small, report = shrink(blocked, variables, SHAPE)
    assert small["A"].shape == (8, 6) and small["B"].shape == (3, 4) and "top_k" in str(report)


def test_a_rule_can_be_added_and_a_wrong_one_is_caught(monkeypatch):
    for name in RULES:
        monkeypatch.setitem(RULES, name, RULES[name])
    _, variables = mlp()
    fn = lambda v, x: jax.lax.erf_inv(jnp.tanh(x @ v["A"]) / 2) @ v["B"]  # noqa: E731
    monkeypatch.delitem(RULES, "erf_inv")
    assert shrink(fn, variables, SHAPE)[2].kept_whole
    register("erf_inv", RULES["exp"])
    _, small, report = shrink(fn, variables, SHAPE)
    assert small["A"].shape == (8, 3) and report.kept_whole == ()
    wrong = lambda op, operands, wants, boxes: [2 * y for y in RULES["exp"].emit(op, operands, wants, boxes)]  # noqa: E731
    register("erf_inv", RULES["exp"]._replace(emit=wrong))
    with pytest.raises(ShrinkError, match=r"differs from fn by .* the first operation that differs is erf_inv"):
        shrink(fn, variables, SHAPE)
    with pytest.raises(TypeError, match="rule must be a Rule"):
        register("erf_inv", None)
    assert isinstance(RULES["erf_inv"], Rule)


def test_channel_norms_are_drawn_for_the_same_layers_only(tmp_path):
    kernel = jnp.ones((3, 3, 4, 8))
    plot_channel_norms({"a": {"c": kernel}, "b": {"c": kernel * 0}}, tmp_path / "norms.svg")
    assert (tmp_path / "norms.svg").read_text().count("<svg") == 1
    with pytest.raises(ValueError, match="every network needs the layers"):
        plot_channel_norms({"a": {"c": kernel}, "b": {"d": kernel}}, tmp_path / "norms.svg")
    with pytest.raises(ValueError, match="of no networks"):
        plot_channel_norms({}, tmp_path / "norms.svg")


def printed(v, x):
    jax.debug.print("{}", x[0, 0])
    return x @ v["A"]


def data_dependent(v, x):
    return x[x[:, 0] > 0] @ v["A"]


BAD = {
    "effects": (printed, {}, "side effect, the operation debug_"),
    "keys": (lambda v, x: x @ v["A"] * jax.random.normal(jax.random.key(0), (1, 6)), {}, "draws random numbers"),
    "data-dependent shape": (data_dependent, {}, "cannot be traced .* NonConcreteBooleanIndexError"),
    "variables that do not fit": (lambda v, x: x @ v["B"], {}, r"cannot be traced .* x of shape \(3, 8\)"),
    "another program": (lambda v, x: x @ v["A"] if len(x) < 4 else (x + 1) @ v["A"], {}, "another program for another"),
    "no batch": (lambda v, x: x * v["A"], {"example": jnp.ones(())}, "batch as its first axis"),
    "example": (lambda v, x: x, {"example": "images"}, "example must be an array"),
    "round_to": (lambda v, x: x, {"round_to": 0}, "round_to must be an integer >= 1, got 0"),
    "constants": (lambda v, x: x, {"constants": "drop"}, "constants must be 'keep' or 'fold', got 'drop'"),
    "gathers": (lambda v, x: x, {"gathers": "never"}, "gathers must be 'paying' or 'always', got 'never'"),
    "fn": (None, {}, "fn must be a function"),
    "a function": (lambda v, x: x, {"variables": {"f": jnp.tanh}}, "tree of arrays, but 'f' is"),
    "a key": (lambda v, x: x, {"variables": {"key": jax.random.key(0)}}, "must not hold random keys, but 'key'"),
    "not finite": (lambda v, x: x, {"variables": {"w": jnp.array([jnp.inf])}}, "must be finite, but 'w'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    fn, changes, message = BAD[case]
    arguments = {"variables": mlp()[1], "example": SHAPE} | changes
    with pytest.raises(ShrinkError, match=message):
        shrink(fn, arguments.pop("variables"), arguments.pop("example"), **arguments)


def test_bad_arguments_of_the_small_function_are_named():
    fn, variables = mlp()
    small_fn, small, report = shrink(fn, variables, SHAPE)
    with pytest.raises(ShrinkError, match=r"'A' must have shape \(8, 3\), got \(8, 6\)"):
        small_fn(variables, batch())
    with pytest.raises(ShrinkError, match="must have the structure"):
        small_fn({"A": small["A"]}, batch())
    with pytest.raises(ShrinkError, match="cannot be traced"):
        small_fn(small, jnp.ones((2, 9)))
    with pytest.raises(ShrinkError, match="no part of the tree"):
        report.take({"A": variables["A"]})
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        measure(report, fn, variables, small_fn, small, rounds=0)


def test_a_pooled_image_of_another_size_is_refused():
    kernel = jnp.ones((1, 1, 2, 3)).at[:, :, 0].set(0)
    fn = lambda v, x: jax.lax.conv_general_dilated(  # noqa: E731
        x, v, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).sum((1, 2))
    small_fn, small, _ = shrink(fn, kernel, jnp.ones((1, 4, 4, 2)))
    assert count(small) == 3 and small_fn(small, jnp.ones((2, 4, 4, 2))).tolist() == [[16.0] * 3] * 2
    with pytest.raises(ShrinkError, match="x must have the shape of the example apart from the batch size"):
        small_fn(small, jnp.ones((2, 5, 5, 2)))
