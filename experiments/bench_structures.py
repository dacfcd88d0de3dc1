"""What zeros buy in one layer: time of the compressed layer over the dense one's, by structure and share of zeros.

    python -m experiments.bench_structures             # a minute of two cores, and a figure
    python -m experiments.bench_structures --quick     # one small layer

A 3x3 convolution, 64 to 64 channels at 16 x 16 pixels, and a dense layer, 800 to 500, with random weights, of which a
structure keeps a half to a hundredth. A structure is run by each kernel that JAX has for it, and the fastest counts:
``rvsm_jax.layouts`` (dense products of gathered inputs), ``jax.experimental.sparse``, a loop over the non-zero weights
of a convolution, two factors, or simply a smaller layer. Each is checked against the dense layer with the same zeros.
Layers take turns, and a ratio is the median over turns; below 1 the compressed layer is faster. Each is a call of its
own, and ``call_ms`` is what a call that does nothing takes. Break-even (Ren et al., arXiv:1812.11677) is the smallest
share of zeros from which on the compressed layer is not slower.

Found on two cores: single zeros break even at 90 to 99 %, blocks with rows and columns gone at 90 to 99 %, with columns
alone at 50 to 90 %; whole columns, filters, factors and smaller layers at 50 to 75 %. With 90 % gone the convolution
takes at batch 64 1.20 of the dense time as single zeros, 0.50 as block columns, 0.22 as factors and 0.18 as a smaller
layer.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import lax
from jax.experimental import sparse

import rvsm_jax
from experiments import common
from experiments.timing import interleaved, ratio
from rvsm_jax import factors, layouts

RATIOS = (0.5, 0.75, 0.9, 0.95, 0.99)
HOPELESS = 12  # a kernel that takes so many times as long as the dense layer is not timed again
IMAGES = 8  # at once, where a convolution is a product with all of its patches
BLOCK = 16
FULL_TURN = slice(None)


@dataclasses.dataclass(frozen=True)
class StructureOptions(common.Options):
    """Options of this benchmark.

    Attributes:
      rounds: turns of every layer.
    """

    rounds: int = 51


class Layer(NamedTuple):
    """A dense layer or a convolution: the kernel's shape, and that of an input without the batch."""

    kernel: tuple[int, ...]
    image: tuple[int, ...]


class Kernel(NamedTuple):
    """One way to run a compressed layer: y = fn(stored, x), and what it is to give."""

    fn: Callable[[Any, jax.Array], jax.Array]
    stored: Any
    expected: jax.Array  # the kernel of the dense layer that does the same
    inputs: Any = FULL_TURN  # of the dense layer, those that are its own
    outputs: Any = FULL_TURN


LAYERS = {
    "convolution 3x3, 64 to 64": Layer((3, 3, 64, 64), (16, 16, 64)),
    "dense, 800 to 500": Layer((800, 500), (800,)),
}
QUICK = {"convolution 3x3, 8 to 8": Layer((3, 3, 8, 8), (4, 4, 8))}
BATCHES = (1, 64)


def dense(w: jax.Array, x: jax.Array) -> jax.Array:
    """The layer as it is: w of rank 2 or 4."""
    if w.ndim == 2:
        return x @ w
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layouts.NHWC)


def masked(penalty: rvsm_jax.Penalty, groups: rvsm_jax.Groups) -> Callable[[jax.Array], jax.Array]:
    """The kernel with zeros where the constraint puts them."""
    prox = rvsm_jax.proximal_operator(penalty, groups)
    return lambda w: prox({"kernel": w}, 1.0)["kernel"]


def single_zeros(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """The largest weights."""
    kept = masked(rvsm_jax.top_k(keep), rvsm_jax.weights)(w)
    matrix = kept.reshape(-1, w.shape[-1]).T
    yield "BCSR", Kernel(functools.partial(_sparse_product, window=w.shape[:-2]), sparse.BCSR.fromdense(matrix), kept)
    yield "BCOO", Kernel(functools.partial(_sparse_product, window=w.shape[:-2]), sparse.BCOO.fromdense(matrix), kept)
    yield "gathered for each output", Kernel(layouts.apply, layouts.gathered(kept, 1), kept)
    if w.ndim == 4:
        places = np.argwhere(np.asarray(kept))
        stored = jnp.asarray(places, jnp.int32), kept[tuple(places.T)]
        yield "a loop over the weights", Kernel(functools.partial(_loop, shape=w.shape), stored, kept)


def whole_filters(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """The outputs with the largest norms; the others are zeros again behind the layer."""
    kept = masked(rvsm_jax.top_k(keep), rvsm_jax.filters)(w)
    yield "dense after gather", Kernel(layouts.apply, layouts.narrowed(kept), kept)


def whole_columns(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """The same weights of every output, those with the largest norms."""
    yield from _gathered(masked(rvsm_jax.top_k(keep), rvsm_jax.shapes)(w), None)


def block_columns(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """The same weights of every 16 outputs."""
    groups = rvsm_jax.blocks(BLOCK, w.size // w.shape[-1], "columns")
    yield from _gathered(masked(rvsm_jax.top_k(keep, axis=-1), groups)(w), BLOCK, 4 * BLOCK)


def block_rows_and_columns(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """Some rows and some columns of every block of 16 outputs and 16 of their weights."""
    penalty = rvsm_jax.submatrix(keep**0.5, keep**0.5)
    yield from _gathered(masked(penalty, rvsm_jax.blocks(BLOCK, BLOCK, "weights"))(w), BLOCK, 4 * BLOCK)


def whole_blocks(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """For every 16 outputs the blocks of 16 weights with the largest norms."""
    blocks = max(1, round(keep * w.size / w.shape[-1] / BLOCK))
    yield from _gathered(masked(rvsm_jax.top_k(blocks, axis=-1), rvsm_jax.blocks(BLOCK, BLOCK))(w), BLOCK)


def low_rank(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """Two layers that have together so many weights; a convolution is split by channels or spatially."""
    for spatial in (False, True)[: 1 + (w.ndim == 4)]:
        f = factors.decompose(w, spatial=spatial)
        rank = max(1, round(keep * w.size / (f.u.size + f.v.size) * f.s.size))
        u, v = f.u[..., :rank] * jnp.expand_dims(f.s[:rank], range(f.u.ndim - 1)), f.v[..., :rank, :]
        expected = factors.merge(factors.Factors(u, jnp.ones(rank), v))
        if spatial:  # (h, 1, i, r), (1, w, r, o): the product is spatial by itself
            expected = jnp.einsum("hir,wro->hwio", u[:, 0], v[0], precision="highest")
        yield (
            f"{'spatial' if spatial else 'two'} factors",
            Kernel(lambda uv, x: dense(uv[1], dense(uv[0], x)), (u, v), expected),
        )


def shrunk(w: jax.Array, keep: float) -> Iterator[tuple[str, Kernel]]:
    """As many inputs fewer as outputs, gone from the network: its neighbours are smaller too."""
    i, o = (max(1, round(n * keep**0.5)) for n in w.shape[-2:])
    small = w[..., :i, :o]
    expected = jnp.zeros_like(w).at[..., :i, :o].set(small)
    yield "a smaller layer", Kernel(dense, small, expected, slice(i), slice(o))


Structure = Callable[[jax.Array, float], Iterator[tuple[str, Kernel]]]
STRUCTURES: dict[str, Structure] = {
    "single zeros": single_zeros,
    "blocks: rows and columns": block_rows_and_columns,
    "block columns": block_columns,
    "whole blocks": whole_blocks,
    "columns": whole_columns,
    "filters": whole_filters,
    "low rank": low_rank,
    "shrunk": shrunk,
}


def measure(
    layer: Layer,
    batch: int,
    zeros: float,
    rounds: int,
    structures: Mapping[str, Structure] | None = None,
    run: Callable[[jax.Array, jax.Array], jax.Array] = dense,
) -> list[dict[str, Any]]:
    """A row for every structure: the share of weights it stores, and the time of each of its kernels.

    Args:
      layer: its shapes.
      batch: the batch size.
      zeros: the share of weights that are to go.
      rounds: turns.
      structures: by name; default: all.
      run: the dense layer, y = run(w, x).

    Returns:
      The rows.

    Raises:
      AssertionError: if a kernel does not give what the dense layer with the same zeros does.
    """
    w = jax.random.normal(jax.random.key(0), layer.kernel) / np.sqrt(np.prod(layer.kernel[:-1]))
    x = jax.random.normal(jax.random.key(1), (batch, *layer.image))
    calls, rows = {"dense": _compiled(run, w, x), "call": _compiled(lambda x: x + 1, jnp.zeros(()))}, []
    limit = HOPELESS * _quickest(calls["dense"])
    for structure, make in (structures or STRUCTURES).items():
        row: dict[str, Any] = {"structure": structure, "batch": batch, "zeros": zeros, "kernels": {}}
        for name, kernel in make(w, 1 - zeros):
            call = _compiled(kernel.fn, kernel.stored, jnp.asarray(x[..., kernel.inputs]))
            _check(f"{structure}, {name}", call(), run(kernel.expected, x)[..., kernel.outputs])
            first = _quickest(call)
            row["kernels"][name] = {"weights": _weights(kernel) / w.size, "once": first}
            if first <= limit:
                calls[f"{structure}/{name}"] = call
        rows.append(row)
    seconds = interleaved(calls, rounds)
    for row in rows:
        row["dense_ms"], row["call_ms"] = (1e3 * float(np.median(seconds[name])) for name in ("dense", "call"))
        for name, found in row["kernels"].items():
            call_name = f"{row['structure']}/{name}"
            if call_name in calls:
                found |= {"ms": 1e3 * float(np.median(seconds[call_name])), "time": ratio(seconds, call_name, "dense")}
        row["best"] = min(row["kernels"], key=lambda name: _time(row["kernels"][name], row["dense_ms"]))
        row["time"] = _time(row["kernels"][row["best"]], row["dense_ms"])
    return rows


def break_even(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The smallest share of zeros from which on the fastest kernel takes no longer than the dense layer.

    >>> break_even([{"zeros": 0.9, "time": 0.9}, {"zeros": 0.5, "time": 1.5}, {"zeros": 0.99, "time": 0.2}])
    0.9
    >>> break_even([{"zeros": 0.5, "time": 0.9}, {"zeros": 0.9, "time": 1.1}]) is None
    True
    """
    found = None
    for row in sorted(rows, key=lambda row: -row["zeros"]):
        if row["time"] > 1:
            break
        found = row["zeros"]
    return found


def _gathered(kept: jax.Array, *bands: int | None) -> Iterator[tuple[str, Kernel]]:
    for rows in bands:
        name = f"gathered for {'all' if rows is None else rows} outputs"
        yield name, Kernel(layouts.apply, layouts.gathered(kept, rows), kept)


def _sparse_product(stored: Any, x: jax.Array, *, window: tuple[int, ...]) -> jax.Array:
    """The sparse matrix (P, Q) times inputs (Q, B), or a convolution's patches (Q, B H W), of a few images at once."""
    if not window:
        return (stored @ x.T).T

    def few(x: jax.Array) -> jax.Array:
        (h, w), (b, height, width, channels) = window, x.shape
        planes = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (h // 2, h // 2), (w // 2, w // 2)))
        shifted = [planes[:, :, i : i + height, j : j + width] for i in range(h) for j in range(w)]
        y = stored @ jnp.stack(shifted).reshape(h * w * channels, -1)
        return y.reshape(-1, b, height, width).transpose(1, 2, 3, 0)

    if len(x) <= IMAGES:
        return few(x)
    y = lax.map(few, x.reshape(-1, IMAGES, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _loop(stored: tuple[jax.Array, jax.Array], x: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
    """A convolution weight by weight: each adds a shifted plane of the images to one of the outputs."""
    places, values = stored
    (h, w, _, outputs), (b, height, width, _) = shape, x.shape
    planes = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (h // 2, h // 2), (w // 2, w // 2)))

    def add(k: jax.Array, y: jax.Array) -> jax.Array:
        i, j, c, o = places[k]
        plane = lax.dynamic_slice(planes, (c, jnp.int32(0), i, j), (1, b, height, width))
        return lax.dynamic_update_slice_in_dim(y, lax.dynamic_slice_in_dim(y, o, 1) + values[k] * plane, o, 0)

    return lax.fori_loop(0, len(values), add, jnp.zeros((outputs, b, height, width), x.dtype)).transpose(1, 2, 3, 0)


def _compiled(fn: Callable, *arguments: Any) -> Callable[[], jax.Array]:
    return functools.partial(jax.jit(fn).lower(*arguments).compile(), *arguments)


def _quickest(call: Callable[[], jax.Array]) -> float:
    """Seconds of the faster of two calls."""
    return min(float(interleaved({"it": call}, 1, warm_up=0)["it"][0]) for _ in range(2))


def _check(name: str, found: jax.Array, expected: jax.Array) -> None:
    error = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
    if not error < 1e-5:
        raise AssertionError(
            f"{name}: must give what the dense layer gives, is off by {error:.1e} of its largest output"
        )


def _weights(kernel: Kernel) -> int:
    """How many numbers are stored, indices and filling apart."""
    stored = kernel.stored
    if isinstance(stored, layouts.Gathered):
        return int(np.count_nonzero(stored.values))
    return sum(leaf.size for leaf in jax.tree.leaves(stored) if jnp.issubdtype(leaf.dtype, jnp.floating))


def _time(kernel: Mapping[str, Any], dense_ms: float) -> float:
    return kernel["time"]["median"] if "time" in kernel else 1e3 * kernel["once"] / dense_ms


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """The fastest kernel's time against the share of weights that is kept: a panel for each layer and batch."""
    names, batches = (list(dict.fromkeys(row[key] for row in rows)) for key in ("layer", "batch"))
    figure, grid = plt.subplots(
        len(names), len(batches), figsize=(10, 3.4 * len(names)), layout="constrained", sharex=True, squeeze=False
    )
    for (line, name), (k, batch) in ((a, b) for a in zip(grid, names, strict=True) for b in enumerate(batches)):
        panel = line[k]
        for structure in STRUCTURES:
            mine = [r for r in rows if (r["layer"], r["batch"], r["structure"]) == (name, batch, structure)]
            panel.plot(
                [r["kernels"][r["best"]]["weights"] for r in mine],
                [r["time"] for r in mine],
                "o-",
                ms=3,
                label=structure,
            )
        panel.axhline(1, color="grey", lw=0.8)
        panel.set(xscale="log", yscale="log", title=f"{name}, batch {batch}")
        panel.set(xlabel="share of weights kept", ylabel="time / dense")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(options: StructureOptions) -> None:
    """Measures, prints, saves and draws."""
    started, rows, table = time.time(), list[dict[str, Any]](), []
    layers, batches, ratios = (QUICK, (2,), RATIOS[1:2]) if options.quick else (LAYERS, BATCHES, RATIOS)
    for name, layer in layers.items():
        for batch in batches:
            for zeros in ratios:
                rows += [{"layer": name, **row} for row in measure(layer, batch, zeros, options.rounds)]
            for structure in STRUCTURES:
                mine = [r for r in rows if (r["layer"], r["batch"], r["structure"]) == (name, batch, structure)]
                times = {str(r["zeros"]): r["time"] for r in mine}
                found = {"layer": name, "batch": batch, "structure": structure, "break_even": break_even(mine)}
                ms = {m: float(np.median([r[m] for r in mine])) for m in ("dense_ms", "call_ms")}
                table.append(found | ms | {"times": times, "kernels": [r["best"] for r in mine]})
                print(f"{name}, batch {batch}, {structure}: from {found['break_even']}; {_brief(mine)}", flush=True)
    saved = common.save("bench_structures", options, started, rounds=options.rounds, table=table, rows=rows)
    draw(rows, common.output_path("bench_structures", options, ".png"))
    print(f"Numbers in {saved}")


def _brief(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['zeros']:g} {row['time']:.2f} ({row['best']})" for row in rows)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    common.run(main, StructureOptions, __doc__)
