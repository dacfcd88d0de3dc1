"""What shrinking buys: time of the small network over that of the dense one, and the time that shrinking takes.

Run: ``python -m experiments.bench_shrink [--quick]`` with the ``bench`` extra. Writes results/bench_shrink.json.
Weights are random; of each layer the channels with the smallest norms are set to zero, then `shrink` takes them out.
Dense and small networks take turns, and a ratio is the median over turns; below 1 the small network is faster. A
setting that is *chosen* keeps channels in multiples of 8, or is a group of which half is one; the others show why.
Torch-Pruning removes as many channels from the same network in PyTorch, timed in the better of its two layouts.
Seconds of shrinking are those of a fresh process, compilation included; of Torch-Pruning, tracing included.

Found on two cores: half of its inner channels gone, ResNet-20 takes 0.66 of the time at batch 64 (Torch-Pruning 0.74),
half of all channels gone VGG-11 takes 0.30 (0.29); 40 % of every convolution's inputs gone at odd widths takes 1.35 and
in multiples of 8 0.72. The slowest setting that is chosen takes 0.97. Shrinking ResNet-20 takes 1.5 s, ResNet-56 2.9 s,
Torch-Pruning 0.01 s for ResNet-20.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rvsm_jax
from experiments import common
from experiments.timing import interleaved, ratio
from experiments.vgg import vgg11
from rvsm_jax import models

IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class ShrinkOptions(common.Options):
    """Options of this benchmark.

    Attributes:
      rounds: turns of every network.
    """

    rounds: int = 21


class Pruning(NamedTuple):
    """Which channels go.

    Attributes:
      groups: "inner" channels of residual blocks, "coupled" channels of every layer and stream, or the "inputs" of
        each convolution by itself, as published.
      keep: their share that stays.
      multiple: how many stay is a multiple of it.
      round_to: of ``shrink``.
      chosen: whether a recipe would choose it.
      torch: whether Torch-Pruning does it too.
    """

    groups: str
    keep: float
    multiple: int = 1
    round_to: int = 1
    chosen: bool = True
    torch: bool = False

    def __str__(self) -> str:
        what = {"inner": "channels inside blocks", "coupled": "all channels", "inputs": "inputs of each convolution"}
        how = {1: "", 8: ", in multiples of 8"}[self.multiple]
        return f"{what[self.groups]}, {1 - self.keep:.0%} gone{how}" + (", round_to=8" if self.round_to > 1 else "")


RESNET = (
    Pruning("inner", 0.5, torch=True),
    Pruning("coupled", 0.5, torch=True),
    Pruning("inner", 0.6, multiple=8),
    Pruning("inner", 0.6, chosen=False),
    Pruning("inputs", 0.6, multiple=8),
    Pruning("inputs", 0.6, round_to=8),
    Pruning("inputs", 0.6, chosen=False),
)
VGG = (
    Pruning("coupled", 0.5, torch=True),
    Pruning("coupled", 0.6, multiple=8),
    Pruning("coupled", 0.6, chosen=False),
)
NETWORKS: dict[str, tuple[Callable[..., models.Network], tuple[Pruning, ...]]] = {
    "ResNet-20": (models.preact_resnet, RESNET),
    "VGG-11": (vgg11, VGG),
}


def evaluated(network: models.Network) -> tuple[Callable, Any]:
    """fn(variables, x) of the network in evaluation mode, and its variables."""
    variables = {"params": network.params, "state": network.state}
    return lambda v, x: network.forward(v["params"], v["state"], x, None, False)[0], variables


def pruned(network: models.Network, pruning: Pruning) -> Any:
    """The network's variables, those channels zero whose norms are the smallest of their layer or family."""
    fn, variables = evaluated(network)
    example = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    top = rvsm_jax.top_k(pruning.keep, multiple=pruning.multiple)
    if pruning.groups == "inputs":
        prox = rvsm_jax.proximal_operator(
            top, rvsm_jax.channels, lambda path, leaf: leaf.ndim == 4 and leaf.shape[2] > 3
        )
    else:
        found = rvsm_jax.coupled_channels(
            lambda p, x: fn({"params": p, "state": network.state}, x), network.params, example
        )
        prox = rvsm_jax.proximal_operator(top, found.inner if pruning.groups == "inner" else found)
    return variables | {"params": prox(network.params, 1.0)}


def cold_shrink(name: str, options: Mapping[str, Any], pruning: Pruning) -> float:
    """Seconds of the first shrinking of a process."""
    network = NETWORKS[name][0](jax.random.key(0), **options)
    fn, _ = evaluated(network)
    variables, example = pruned_by_norm(network), jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    started = time.perf_counter()
    rvsm_jax.shrink(fn, variables, example, round_to=pruning.round_to)
    return time.perf_counter() - started


def pruned_by_norm(network: models.Network) -> Any:
    """Half of the inputs of every second convolution of a block zero, without tracing the network for it."""
    _, variables = evaluated(network)

    def cut(path: Any, leaf: jax.Array) -> jax.Array:
        inside = "conv2/kernel" in jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.at[:, :, ::2].set(0) if inside else leaf

    return jax.tree_util.tree_map_with_path(cut, variables)


def small_calls(name: str, make: Callable, prunings: Sequence[Pruning], batches: Sequence[int]) -> tuple[dict, list]:
    """Compiled calls by (pruning or "dense", batch), and of each pruning what it leaves and what shrinking takes."""
    network = make(jax.random.key(0))
    fn, variables = evaluated(network)
    example = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    functions: dict[str, tuple[Callable, Any]] = {"dense": (fn, variables)}
    rows = []
    for pruning in prunings:
        started = time.perf_counter()
        small_fn, small, report = rvsm_jax.shrink(fn, pruned(network, pruning), example, round_to=pruning.round_to)
        functions[str(pruning)] = small_fn, small
        rows.append({
            "network": name, "pruning": str(pruning), "chosen": pruning.chosen, "setting": pruning._asdict(),
            "parameters": report.parameters.share, "multiply_adds": report.multiply_adds.share, "error": report.error,
            "seconds": time.perf_counter() - started,
        })  # fmt: skip
    calls = {}
    for (what, (f, v)), batch in ((pair, batch) for pair in functions.items() for batch in batches):
        x = jax.random.normal(jax.random.key(1), (batch, *IMAGE))
        compiled = jax.jit(f).lower(v, x).compile()
        calls[what, batch] = functools.partial(compiled, v, x)
    return calls, rows


def jax_rows(name: str, rounds: int, batches: Sequence[int], scale: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each pruning of a network: what it leaves, and its times at each batch size."""
    make, prunings = NETWORKS[name]
    calls, rows = small_calls(name, lambda key: make(key, **scale), prunings, batches)
    for batch in batches:
        seconds = interleaved({what: call for (what, b), call in calls.items() if b == batch}, rounds)
        for row in rows:
            row.setdefault("batches", {})[batch] = timed(seconds, row["pruning"], "dense")
    return rows


def timed(seconds: Mapping[str, np.ndarray], small: str, dense: str) -> dict[str, Any]:
    """Median milliseconds of both, and the ratio with its quartiles."""
    before, after = (1e3 * float(np.median(seconds[name])) for name in (dense, small))
    return {"dense_ms": before, "small_ms": after, "time": ratio(seconds, small, dense)}


def torch_row(name: str, pruning: Pruning, rounds: int, batches: Sequence[int]) -> dict[str, Any]:
    """The same pruning by Torch-Pruning: seconds it takes, and times at each batch size."""
    torch, tp = _torch()
    from experiments import torch_networks

    torch.manual_seed(0)
    torch.set_num_threads(common.cores())
    dense, small = torch_networks.NETWORKS[name]().eval(), torch_networks.NETWORKS[name]().eval()
    parameters = [sum(p.numel() for p in dense.parameters())]
    kept = [m for path, m in small.named_modules() if _keeps_outputs(path, pruning, m)]
    started = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        small, torch.randn(1, 3, 32, 32), importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - pruning.keep, ignored_layers=kept,
    )  # fmt: skip
    pruner.step()
    seconds = time.perf_counter() - started
    parameters.append(sum(p.numel() for p in small.parameters()))
    row = {"network": name, "pruning": str(pruning), "seconds": seconds, "parameters": parameters[1] / parameters[0]}
    row["batches"] = {batch: _torch_times(torch, dense, small, batch, rounds) for batch in batches}
    return row


def _torch_times(torch: Any, dense: Any, small: Any, batch: int, rounds: int) -> dict[str, Any]:
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    best: dict[str, Any] = {}
    for layout, memory_format in layouts.items():
        x = torch.randn(batch, 3, 32, 32).to(memory_format=memory_format)
        both = {"dense": dense.to(memory_format=memory_format), "small": small.to(memory_format=memory_format)}
        with torch.inference_mode():
            seconds = interleaved({name: functools.partial(model, x) for name, model in both.items()}, rounds)
        found = timed(seconds, "small", "dense") | {"layout": layout}
        best = found if not best or found["dense_ms"] < best["dense_ms"] else best
    return best


def _keeps_outputs(path: str, pruning: Pruning, module: Any) -> bool:
    """Layers whose outputs stay: the last, and outside of residual blocks if only channels inside of them go."""
    kind = type(module).__name__
    inside = path.startswith("layers.") and path.endswith(".conv1")
    return kind == "Linear" or (kind == "Conv2d" and pruning.groups == "inner" and not inside)


def _torch() -> tuple[Any, Any]:
    try:
        import torch
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this benchmark needs {error.name}: pip install -e ".[bench]"', name=error.name
        ) from error
    return torch, torch_pruning


def cold_seconds(quick: bool) -> dict[str, float]:
    """Seconds of shrinking ResNet-20 and ResNet-56, half of their inner channels gone, each in a fresh process."""
    cases = {"ResNet-20": {"depth": 20}, "ResNet-56": {"depth": 56}}
    cases = {"ResNet-20": {"depth": 20, "width": 4}} if quick else cases
    found = {}
    for name, options in cases.items():
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found[name] = fresh.submit(cold_shrink, "ResNet-20", options, RESNET[0]).result()
    return found


def line(row: Mapping[str, Any]) -> str:
    """One row, for the terminal."""
    times = ", ".join(
        f"batch {b}: {t['dense_ms']:.2f} -> {t['small_ms']:.2f} ms, {t['time']['median']:.2f}"
        for b, t in row["batches"].items()
    )
    return f"{row['network']}, {row['pruning']}: {times}; {row['seconds']:.2f} s"


def main(options: ShrinkOptions) -> None:
    """Measures, prints and saves; a quick run has narrow networks, one batch size and few turns."""
    started = time.time()
    scale, batches = ({"width": 8}, (4,)) if options.quick else ({}, (64, 1))
    names = ("ResNet-20",) if options.quick else tuple(NETWORKS)
    rows, torch_rows = [], []
    for name in names:
        rows += jax_rows(name, options.rounds, batches, scale)
        torch_rows += [
            torch_row(name, pruning, options.rounds, batches) for pruning in NETWORKS[name][1] if pruning.torch
        ]
    cold = cold_seconds(options.quick)
    for row in rows + torch_rows:
        print(line(row))
    print(f"shrinking in a fresh process: {', '.join(f'{name} {s:.1f} s' for name, s in cold.items())}")
    chosen = [t["time"]["median"] for row in rows if row["chosen"] for t in row["batches"].values()]
    torch, tp = _torch()
    path = common.save(
        "bench_shrink", options, started, rounds=options.rounds, rows=rows, torch_rows=torch_rows, cold_seconds=cold,
        slowest_chosen=max(chosen), torch=torch.__version__, torch_pruning=tp.__version__,
    )  # fmt: skip
    print(f"slowest setting that is chosen: {max(chosen):.2f} of dense; saved {path}")


if __name__ == "__main__":
    common.run(main, ShrinkOptions, __doc__)
