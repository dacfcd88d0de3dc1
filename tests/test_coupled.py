"""Coupled channels: the right ones in every network, their norms and maps by definition, and that they really go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import rvsm_jax
from rvsm_jax.coupled import Coupled, Family, Slice
from rvsm_jax.models.blocks import block_convolution
from tests.networks import KEY, plain_convolutions

HAND = Coupled(
    (
        Family(
            3, (Slice("a", 1, np.array([0, 1, 2]), "writes"), Slice("b", 0, np.array([2, -1, 0, 1, 2, 0, 1]), "reads"))
        ),
        Family(2, (Slice("c", 0, np.array([1, 0]), "writes"),)),
    )
)
SHAPES = {"a": (4, 3), "b": (7, 2), "c": (2, 3, 2), "d": (2, 2)}


def params(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}


def members(w):
    """The weights of each channel of HAND, written down once more."""
    a, b, c = (np.asarray(w[k]) for k in "abc")
    places = {0: [2, 5], 1: [3, 6], 2: [0, 4]}
    first = [np.concatenate([a[:, g], b[places[g]].ravel()]) for g in range(3)]
    return [first, [c[1].ravel(), c[0].ravel()]]


def norms(w):
    return [np.array([np.linalg.norm(x) for x in family]) for family in members(w)]


read = jax.jit(lambda w: HAND.read(list(w), list(w.values()))[:2])
scaled = jax.jit(lambda w, z: dict(zip(w, HAND.read(list(w), list(w.values()))[2](z), strict=True)))


@functools.cache
def tiny_resnet(kind):
    """A block of width 4 and one of width 8, BatchNorm with statistics of its own: fn(params, x), params, groups."""
    rng = np.random.default_rng(1)
    w = {"conv1": {"kernel": (3, 3, 2, 4)}, "dense": {"kernel": (8, 3), "bias": (3,)}}
    pre = kind == "preactivated"
    w["bn1"] = 8 if pre else 4
    for block, n, m in (("stage1_block1", 4, 4), ("stage2_block1", 4, 8)):
        convolutions = {"conv1": (3, 3, n, m), "conv2": (3, 3, m, m)} | ({"shortcut": (1, 1, n, m)} if n != m else {})
        norms = {"bn1": n if pre else m, "bn2": m} | ({"shortcut_bn": m} if n != m and not pre else {})
        w[block] = {name: {"kernel": shape} for name, shape in convolutions.items()} | norms
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    w = jax.tree.map(lambda x: x if is_shape(x) else {"scale": (x,), "bias": (x,)}, w, is_leaf=is_shape)
    w = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), w, is_leaf=is_shape)

    def norm(v, x):
        mean, var = (rng.uniform(0.5, 1.5, (1, 1, 1, x.shape[3])).astype(np.float32) for _ in range(2))
        return (x - mean) * (v["scale"][None, None, None] / np.sqrt(var)) + v["bias"][None, None, None]

    def fn(w, x):
        nonlocal rng
        rng = np.random.default_rng(2)  # the same statistics whenever it is traced
        x = convolve(x, w["conv1"]["kernel"])
        x = x if pre else jax.nn.relu(norm(w["bn1"], x))
        for v in (w["stage1_block1"], w["stage2_block1"]):
            z = jax.nn.relu(norm(v["bn1"], x)) if pre else x
            y = convolve(z, v["conv1"]["kernel"])
            y = convolve(jax.nn.relu(norm(v["bn2"] if pre else v["bn1"], y)), v["conv2"]["kernel"])
            y = y if pre else norm(v["bn2"], y)
            if "shortcut" in v:
                x = convolve(z, v["shortcut"]["kernel"])
                x = x if pre else norm(v["shortcut_bn"], x)
            x = x + y if pre else jax.nn.relu(x + y)
        x = jax.nn.relu(norm(w["bn1"], x)) if pre else x
        return x.mean((1, 2)) @ w["dense"]["kernel"] + w["dense"]["bias"][None]

    return fn, w, rvsm_jax.coupled_channels(fn, w, X)


convolve = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


X = jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32)
KINDS = ["preactivated", "postactivated"]


def by_writers(groups):
    return {tuple(sorted(f.writers)): f for f in groups.families}


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_a_resnet_are_what_its_drawing_says(kind):
    groups = tiny_resnet(kind)[-1]
    blocks = ["stage1_block1", "stage2_block1"]
    found = by_writers(groups)
    kernel = "{}/{}/kernel".format
    inner = {(kernel(block, "conv1"),) for block in blocks}
    first = ("conv1/kernel", kernel(blocks[0], "conv2"))
    second = tuple(kernel(blocks[1], layer) for layer in ("conv2", "shortcut"))
    assert set(found) == inner | {first, second} and groups.kept == ()
    assert [found[key].size for key in (first, second)] == [4, 8]
    assert sorted(found[first].readers) == [*(kernel(b, "conv1") for b in blocks), kernel(blocks[1], "shortcut")]
    assert found[second].readers == ("dense/kernel",)
    scaled = {s.path for s in found[first].slices if s.role == "scales"}
    norm = {"preactivated": "{}/bn1/{}", "postactivated": "{}/bn2/{}"}[kind].format
    expected = {norm(blocks[0], leaf) for leaf in ("scale", "bias")}
    extra = {"preactivated": blocks[1] + "/bn1", "postactivated": "bn1"}[kind]
    assert scaled == expected | {f"{extra}/{leaf}" for leaf in ("scale", "bias")}
    for block in blocks:
        family = found[(kernel(block, "conv1"),)]
        middle = {"preactivated": "bn2", "postactivated": "bn1"}[kind]
        expected = {("conv1/kernel", 3), ("conv2/kernel", 2), (f"{middle}/scale", 0), (f"{middle}/bias", 0)}
        assert {(s.path.removeprefix(block + "/"), s.axis) for s in family.slices} == expected
    assert {tuple(f.writers) for f in groups.inner.families} == inner
    assert (
        groups.inner.overlaps == () and groups.written.overlaps == () and kernel(blocks[0], "conv1") in groups.overlaps
    )


def zeroed(groups, w, rng):
    """Random channels of every family to zero, at least one of each left; and the axes' kept indices, by leaf."""
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(w)]
    m, _, rescale = groups.read(paths, jax.tree.leaves(w))
    alive = [np.isin(np.arange(x.size), rng.permutation(x.size)[: rng.integers(1, x.size)]) for x in m]
    leaves = rescale([jnp.where(keep, x, 0) for x, keep in zip(m, alive, strict=True)])
    kept = {}
    for family, keep in zip(groups.families, alive, strict=True):
        for s in family.slices:
            mask = kept.setdefault((s.path, s.axis), np.ones(len(s.channels), bool))
            mask &= (s.channels < 0) | keep[s.channels]
    return jax.tree.unflatten(jax.tree.structure(w), leaves), kept


def assert_shrinks_to(kept, report):
    for leaf in report.leaves:
        for axis, (n, index) in enumerate(zip(leaf.before, leaf.box, strict=True)):
            expected = np.flatnonzero(kept.get((leaf.path, axis), np.ones(n, bool)))
            np.testing.assert_array_equal(np.arange(n) if index is None else index, expected, leaf.path)


@pytest.mark.parametrize(("kind", "part"), [("preactivated", "all"), ("postactivated", "written")])
def test_a_resnet_shrinks_by_exactly_the_channels_that_are_zero(kind, part):
    fn, params, groups = tiny_resnet(kind)
    w, kept = zeroed(groups, params, np.random.default_rng(2))
    if part == "written":
        w, _ = zeroed(groups.written, params, np.random.default_rng(2))
        assert np.asarray(w["dense"]["kernel"]).any(1).all()
    _, _, report = rvsm_jax.shrink(fn, w, X, gathers="always")
    assert_shrinks_to(kept, report)
    assert report.parameters.share < 0.8


def normal(shapes):
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def in_blocks():
    """A convolution as the product of tiles with a shifted kernel, and flattening, as LeNet-5 has on a CPU."""

    def fn(w, x):
        x = jnp.tanh(block_convolution(convolve(x, w["a"]), w["b"], (1, 1)))
        return jnp.tanh(x.reshape(x.shape[0], -1) @ w["c"]) @ w["d"]

    return fn, normal({"a": (1, 1, 2, 3), "b": (3, 3, 3, 4), "c": (16, 5), "d": (5, 2)}), (4, 4, 2)


def depthwise():
    """Two outputs a channel, a scale, a maximum over pixels."""

    def fn(w, x):
        x = convolve(convolve(x, w["a"]), w["b"], feature_group_count=3)
        return jnp.tanh((x * w["scale"])[:, ::-1].max((1, 2)) @ w["c"]) @ w["d"]

    shapes = {"a": (1, 1, 2, 3), "b": (3, 3, 1, 6), "c": (6, 4), "d": (4, 2), "scale": (1, 1, 1, 6)}
    return fn, normal(shapes), (4, 4, 2)


def densely_connected():
    """Each layer reads those before it side by side; channels first from there on."""

    def fn(w, x):
        a = jnp.tanh(convolve(x, w["a"]))
        b = jnp.concatenate([a, convolve(a, w["b"])], 3).transpose(0, 3, 1, 2)
        return jnp.tanh(b.mean((2, 3)) @ w["c"] + w["shift"].reshape(1, 5)) @ w["d"]

    return fn, normal({"a": (1, 1, 2, 3), "b": (3, 3, 3, 4), "c": (7, 5), "shift": (5,), "d": (5, 2)}), (4, 4, 2)


def attention():
    """A stream with two writers, heads, keys, values."""

    def fn(w, x):
        x = x @ w["in"]
        q, k, v = (jnp.einsum("btc,chd->bthd", x, w[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        x = x + jnp.einsum("bhts,bshd,hdc->btc", weights, v, w["back"])
        return x.sum(1) @ w["out"]

    heads = dict.fromkeys("qkv", (6, 3, 4))
    return fn, normal({"in": (5, 6), **heads, "back": (3, 4, 6), "out": (6, 2)}), (3, 5)


FAMILIES = {
    "blocks": (in_blocks, [3, 4, 5]),
    "depthwise": (depthwise, [3, 4]),
    "dense": (densely_connected, [3, 4, 5]),
    "attention": (attention, [6, 3, 4, 4]),
    "padded shortcut": (plain_convolutions, [4, 2]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_of_other_networks_go_too(name):
    make, sizes = FAMILIES[name]
    fn, w, *shape = make()
    example = jax.ShapeDtypeStruct((1, *(shape[0] if shape else (4, 4, 2))), jnp.float32)
    groups = rvsm_jax.coupled_channels(fn, w, example)
    assert sorted(f.size for f in groups.families) == sorted(sizes) and groups.kept == ()
    if name == "padded shortcut":
        pruned, kept = zeroed(groups, w, np.random.default_rng(0))
        _, _, report = rvsm_jax.shrink(fn, pruned, example, gathers="always")
        assert_shrinks_to(kept, report)


UNCLEAR = {
    "sort": (lambda y: jnp.sort(y, axis=1), "sort of (3, 4) to (3, 4)"),
    "reshape": (
        lambda y: jnp.tanh(y.reshape(-1, 2, 2)).transpose(0, 2, 1).reshape(-1, 4),
        "reshape of (3, 4) to (3, 2, 2)",
    ),
    "exp": (lambda y: jnp.exp(y) / jnp.exp(y).sum(1, keepdims=True), "4 channels written by a, read by b"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_cannot_go_is_kept_and_named(name):
    """Also channels that would still count when they are zero, as exp(0) = 1 does in a sum."""
    between, expected = UNCLEAR[name]
    w = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 5)), "c": jnp.ones((5, 2))}
    groups = rvsm_jax.coupled_channels(
        lambda w, x: jnp.tanh(between(x @ w["a"]) @ w["b"]) @ w["c"], w, jnp.ones((1, 3))
    )
    assert [(f.size, f.writers) for f in groups.families] == [(5, ("b",))]
    assert expected in groups.kept and f"kept whole: {expected}" in str(groups)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_norms_and_rescaling_by_definition(dtype):
    with jax.enable_x64(True):
        w = params(dtype=dtype)
        m, sizes = read(w)
        for found, expected in zip(m, norms(jax.tree.map(lambda x: np.asarray(x, np.float64), w)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-14 if dtype == "float64" else 1e-6)
        assert sizes == [8, 6]
        jax.tree.map(np.testing.assert_array_equal, scaled(w, m), w)
        half = scaled(w, [m[0] / 2, m[1] * 0])
        np.testing.assert_array_equal(half["a"], w["a"] / 2)
        np.testing.assert_array_equal(half["b"][1], w["b"][1])  # in no channel
        np.testing.assert_array_equal(half["b"][2], w["b"][2] / 2)
        assert not half["c"].any() and half["a"].dtype == dtype


def test_norms_neither_underflow_nor_overflow():
    for scale in (1e-25, 1e25):
        w = {k: jnp.full(s, scale, jnp.float32) for k, s in SHAPES.items()}
        m, _ = read(w)
        np.testing.assert_allclose(m[0], np.sqrt(8) * scale, rtol=1e-6)
        np.testing.assert_allclose(scaled(w, [m[0] / 2, m[1]])["a"], scale / 2, rtol=1e-6)


@pytest.mark.parametrize("penalty", ["l0", "l1"])
def test_map_of_disjoint_channels_is_the_exact_minimiser(penalty):
    """l0: every set of channels tried. l1: u - w in -t times the subdifferential of the sum of norms."""
    rho = getattr(rvsm_jax, penalty)()
    prox = rvsm_jax.proximal_operator(rho, HAND)
    assert HAND.overlaps == ()
    with jax.enable_x64(True):
        for seed, t in enumerate((0.5, 2.0, 4.0)):
            w = params(seed)
            u = prox(w, t)
            assert u["d"] is w["d"]
            pairs = [(x, y) for f, g in zip(members(w), members(u), strict=True) for x, y in zip(f, g, strict=True)]
            if penalty == "l0":
                got = sum(((x - y) ** 2).sum() / 2 + t * y.any() for x, y in pairs)
                choices = np.array(np.meshgrid(*[[0, 1]] * 5)).reshape(5, -1).T
                costs = [
                    sum(t if keep else (x**2).sum() / 2 for keep, (x, _) in zip(c, pairs, strict=True)) for c in choices
                ]
                assert got == pytest.approx(min(costs), abs=1e-12)
                assert sum(y.any() for _, y in pairs) > 0 or t > 2
            for x, y in pairs if penalty == "l1" else []:
                if y.any():
                    np.testing.assert_allclose(x - y, t * y / np.linalg.norm(y), atol=1e-12)
                else:
                    assert np.linalg.norm(x) <= t + 1e-12


def test_map_of_overlapping_channels_scales_by_each_family_and_never_raises_the_l0_objective():
    with jax.enable_x64(True):
        chain = Coupled(
            (
                Family(4, (Slice("a", 1, np.arange(4), "writes"), Slice("b", 0, np.arange(4), "reads"))),
                Family(3, (Slice("b", 1, np.arange(3), "writes"), Slice("c", 0, np.arange(3), "reads"))),
            )
        )
        assert chain.overlaps == ("b",) and chain.written.overlaps == ()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            w = {k: jnp.asarray(rng.normal(size=s)) for k, s in {"a": (2, 4), "b": (4, 3), "c": (3, 2)}.items()}
            a, b, c = (np.asarray(w[k]) for k in "abc")
            first = np.sqrt((a**2).sum(0) + (b**2).sum(1))
            second = np.sqrt((b**2).sum(0) + (c**2).sum(1))
            for t in (0.5, 2.0, 4.0):
                u = rvsm_jax.proximal_operator(rvsm_jax.l1(), chain)(w, t)
                f, g = np.maximum(1 - t / first, 0), np.maximum(1 - t / second, 0)
                np.testing.assert_allclose(u["b"], b * f[:, None] * g[None], rtol=1e-12)
                np.testing.assert_allclose(u["c"], c * g[:, None], rtol=1e-12)
                operator = rvsm_jax.proximal_operator(rvsm_jax.l0(), chain)
                u = operator(w, t)
                cost = sum(float(((u[k] - w[k]) ** 2).sum()) / 2 for k in w) + t * float(operator.value(u))
                assert cost <= t * float(operator.value(w)) + 1e-12


def test_zero_channels_have_zero_gradients_of_first_and_second_order():
    operator = rvsm_jax.proximal_operator(rvsm_jax.l1(), HAND, by_size=True)
    with jax.enable_x64(True):
        w = params()
        w = w | {"a": w["a"].at[:, 1].set(0), "b": w["b"].at[jnp.array([3, 6])].set(0), "c": jnp.zeros_like(w["c"])}
        gradient = operator.gradient(w)
        a, m = np.asarray(w["a"]), norms(w)[0]
        np.testing.assert_allclose(gradient["a"][:, 0], np.sqrt(8) * a[:, 0] / m[0], rtol=1e-12)
        assert not np.asarray(gradient["a"][:, 1]).any() and not np.asarray(gradient["c"]).any()

        def squares(w):
            return operator.value(w) + sum(jnp.sum(x**2) for x in operator(w, 0.3).values())

        stacked = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), w)
        along = jax.tree.map(jnp.ones_like, stacked)
        second = jax.jit(jax.vmap(lambda w, d: jax.jvp(jax.grad(squares), (w,), (d,))))(stacked, along)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(second))
        assert not any(np.asarray(x[1]).any() for x in jax.tree.leaves(second[0] | {"d": jnp.zeros((2, 1))}))


def test_ranking_of_all_families_together():
    w = params(3, np.float32)
    u = rvsm_jax.proximal_operator(rvsm_jax.top_k(2), HAND, joint=True)(w, 1.0)
    everything = np.concatenate(norms(w))
    np.testing.assert_array_equal(np.concatenate(norms(u)) > 0, everything >= np.sort(everything)[-2])


def test_where_confines_channels_to_some_leaves():
    w = params(dtype=np.float32)
    u = rvsm_jax.proximal_operator(rvsm_jax.top_k(1), HAND, lambda path, leaf: path in ("b", "d"))(w, 1.0)
    alone = np.array([np.linalg.norm(np.asarray(w["b"])[p]) for p in ([2, 5], [3, 6], [0, 4])])
    kept = np.array([2, -1, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(u["b"].any(1), (kept == alone.argmax()) | (kept < 0))
    assert u["a"] is w["a"] and u["c"] is w["c"]


SPECS = {"a": (None, "data"), "b": (None, "data")}


def test_sharded_parameters():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    groups = Coupled((Family(8, (Slice("a", 1, np.arange(8), "writes"), Slice("b", 0, np.arange(16) % 8, "reads"))),))
    rng = np.random.default_rng(0)
    w = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in {"a": (16, 8), "b": (16, 8)}.items()}
    operator = rvsm_jax.proximal_operator(rvsm_jax.in_multiples(rvsm_jax.l0(), 4), groups)
    placed = {k: jax.device_put(w[k], NamedSharding(mesh, PartitionSpec(*spec))) for k, spec in SPECS.items()}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), operator(placed, 12.0), operator(w, 12.0))


def test_rgsm_on_coupled_channels_is_the_loop_in_numpy():
    eta, lam1, beta, lam2, steps = 0.1, 0.2, 0.5, 0.05, 25
    method = rvsm_jax.rgsm(optax.sgd(eta), rvsm_jax.l0(), lam1, beta, lam2, groups=HAND, by_size=True)
    with jax.enable_x64(True):
        target, w = params(5), params(6)
        state = method.tx.init(w)
        update = jax.jit(method.tx.update)
        v = {k: np.array(x) for k, x in w.items()}
        for _ in range(steps):
            updates, state = update(jax.tree.map(jnp.subtract, w, target), state, w)
            w = optax.apply_updates(w, updates)
            factors = {k: (np.zeros_like(x), np.zeros_like(x)) for k, x in v.items()}  # of the lasso; of w - u
            for (f, n), m in zip(enumerate((8, 6)), norms(v), strict=True):
                for s in HAND.families[f].slices:
                    index = s.channels[s.channels >= 0]
                    shape = [-1 if a == s.axis else 1 for a in range(v[s.path].ndim)]
                    both = np.zeros((2, len(s.channels)))
                    both[:, s.channels >= 0] = np.sqrt(n) / m[index], m[index] <= np.sqrt(2 * np.sqrt(n) * lam1 / beta)
                    for total, factor in zip(factors[s.path], both, strict=True):
                        total += factor.reshape(shape)
            for k in v:
                lasso, pull = factors[k]
                v[k] = v[k] - eta * (v[k] - np.asarray(target[k]) + lam2 * lasso * v[k] + beta * pull * v[k])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), w, v)
        u = method.sparse(w, steps)
        zeros = [int((m == 0).sum()) for m in norms(u)]
        assert 0 < sum(zeros) < 5


def test_a_network_trained_on_coupled_channels_shrinks_to_its_survivors_in_multiples():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    y = jnp.tanh(x @ jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)) @ jnp.ones((3, 2))
    w = {"a": jnp.asarray(rng.normal(size=(6, 16)) / 3, jnp.float32), "b": jnp.zeros(16)}
    w["c"] = jnp.asarray(rng.normal(size=(16, 2)) / 4, jnp.float32)

    def fn(w, x):
        return jnp.tanh(x @ w["a"] + w["b"][None]) @ w["c"]

    groups = rvsm_jax.coupled_channels(fn, w, x)
    method = rvsm_jax.rgsm(optax.sgd(0.1), rvsm_jax.in_multiples(rvsm_jax.l0(), 4), 0.04, 0.1, 1e-3, groups=groups)

    @jax.jit
    def step(w, state):
        gradient = jax.grad(lambda w: ((fn(w, x) - y) ** 2).mean())(w)
        updates, state = method.tx.update(gradient, state, w)
        return optax.apply_updates(w, updates), state

    trained, state = w, method.tx.init(w)
    for _ in range(60):
        trained, state = step(trained, state)
    u = method.sparse(trained, 60)
    n = int(np.asarray(u["a"]).any(0).sum())
    _, small, _ = rvsm_jax.shrink(fn, u, x)
    assert [leaf.shape for leaf in small.values()] == [(6, n), (n,), (n, 2)]
    plain = rvsm_jax.proximal_operator(rvsm_jax.l0(), groups)(trained, 0.04 / 0.1)
    assert 0 < n < 16 and n % 4 == 0 and 0 < np.asarray(plain["a"]).any(0).sum() < 16


def test_bad_arguments_are_named():
    w = params(dtype=np.float32)
    with pytest.raises(ValueError, match=r"want 3 indices along axis 1 of 'a', got one of shape \(4, 2\)"):
        rvsm_jax.proximal_operator(rvsm_jax.l0(), HAND)(w | {"a": jnp.ones((4, 2))}, 1.0)
    with pytest.raises(ValueError, match=r"selects none of \['x/a'"):
        rvsm_jax.proximal_operator(rvsm_jax.l0(), HAND)({"x": w}, 1.0)
    uneven = Coupled((Family(2, (Slice("a", 1, np.array([0, 1, 1]), "writes"),)),))
    with pytest.raises(ValueError, match=r"equally many weights, got \[4, 8\]"):
        rvsm_jax.proximal_operator(rvsm_jax.l0(), uneven)(w, 1.0)
    with pytest.raises(ValueError, match=r"fn must be a function fn\(params, x\), got 3"):
        rvsm_jax.coupled_channels(3, w, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="params must not hold random keys, but 'key' is one"):
        rvsm_jax.coupled_channels(lambda w, x: x @ w["a"], w | {"key": KEY}, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="no channels that could go as a whole"):
        rvsm_jax.coupled_channels(lambda w, x: x @ w["a"], w, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="cannot be traced"):
        rvsm_jax.coupled_channels(lambda w, x: x @ w["a"], w, jnp.ones((1, 5)))
