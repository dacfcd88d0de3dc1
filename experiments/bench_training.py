"""A training step in JAX and in PyTorch, on the same cores: forward, backward and SGD with Nesterov momentum.

Run: ``python -m experiments.bench_training [--quick]`` with the ``bench`` extra. Writes results/bench_training.json.
Each network is timed four ways, in turns so that all of them see the same machine: this package, this package with
XLA's own convolution, PyTorch, and PyTorch with channels last. Before its turn each rests until the threads of the
one before have gone to sleep, and runs once outside the clock. ``ratio`` is the median over turns of this package's
time by the better of PyTorch's two layouts in the same turn; below 1 this package is faster.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.timing import ratio
from rvsm_jax import models
from rvsm_jax.models.blocks import NHWC
from rvsm_jax.models.network import Tree
from rvsm_jax.models.pooling import max_pool

Step = Callable[[], Any]


class Case(NamedTuple):
    """A network to time.

    Attributes:
      name: as in the table.
      make: the network from a key.
      image: (H, W, C).
      batch: images a step.
      xla: arguments of make for XLA's own convolution; empty if the network has none.
    """

    name: str
    make: Callable[..., models.Network]
    image: tuple[int, int, int]
    batch: int
    xla: Mapping[str, Any]


def xla_convolve_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own convolution, then the maximum over 2 x 2."""
    return max_pool(jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC))


XLA = {"conv_general_dilated": jax.lax.conv_general_dilated}
CASES = (
    Case("LeNet-300-100", models.lenet_300_100, (28, 28, 1), 128, {}),
    Case("LeNet-5", models.lenet5, (28, 28, 1), 128, {"convolve_pool": xla_convolve_pool}),
    Case("ResNet-20", models.preact_resnet, (32, 32, 3), 128, XLA),
    Case("ResNet-18", models.resnet18, (32, 32, 3), 128, XLA),
)


def torch_comparison(cases: Sequence[Case] = CASES, *, turns: int = 7, threads: int | None = None) -> list[dict]:
    """Median over turns of t(this package) / t(PyTorch), with quartiles, for each network.

    Args:
      cases: the networks.
      turns: how often each implementation has its turn.
      threads: PyTorch's threads; default: as many as there are cores, which is what XLA takes.

    Returns:
      A row for each network: name, batch, milliseconds by the clock and of processor time of each implementation as
      {"median", "low", "high"}, and ``ratio`` likewise.

    Raises:
      ModuleNotFoundError: if PyTorch is not installed.
    """
    torch = _torch()
    torch.set_num_threads(threads or common.hardware()["cores"])
    return [_row(case, _measure(_implementations(case), turns)) for case in cases]


def jax_step(network: models.Network, image: Sequence[int], batch: int) -> Step:
    """A jitted training step with donated weights; each call takes it once and waits for the result."""
    tx = optax.sgd(0.01, momentum=0.9, nesterov=True)
    x = jax.random.normal(jax.random.key(1), (batch, *image))
    labels = jnp.arange(batch) % 10

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        params, state, opt = carry

        def loss(params: Tree) -> tuple[jax.Array, Tree]:
            logits, new = network.forward(params, state, x, None, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), state, opt

    carry = [jax.tree.map(jnp.copy, (network.params, network.state, tx.init(network.params)))]

    def take() -> None:
        carry[0] = jax.block_until_ready(step(carry[0], x, labels))

    return take


def torch_step(case: Case, *, channels_last: bool) -> Step:
    """The same step in eager PyTorch."""
    torch = _torch()
    from experiments import torch_networks

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = torch_networks.NETWORKS[case.name]()
    model = model.to(memory_format=layout)
    height, width, channels = case.image
    x = torch.randn(case.batch, channels, height, width).to(memory_format=layout)
    labels = torch.arange(case.batch) % 10
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def take() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()

    return take


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('this benchmark needs PyTorch: pip install -e ".[bench]"', name="torch") from error
    return torch


def _implementations(case: Case) -> dict[str, Step]:
    key = jax.random.key(0)
    steps = {"jax": jax_step(case.make(key), case.image, case.batch)}
    if case.xla:
        steps["jax_lax"] = jax_step(case.make(key, **case.xla), case.image, case.batch)
    steps["torch"] = torch_step(case, channels_last=False)
    steps["torch_channels_last"] = torch_step(case, channels_last=True)
    return steps


def _measure(steps: dict[str, Step], turns: int) -> dict[str, np.ndarray]:
    """Seconds of a step, (turns, 2): by the wall clock, and of processor time over all threads."""
    for take in steps.values():
        take()
    times = {name: np.zeros((turns, 2)) for name in steps}
    for turn in range(turns):
        for name, take in steps.items():
            times[name][turn] = _turn(take)
    return times


def _turn(take: Step) -> tuple[float, float]:
    """One rest, one step outside the clock, then as many as fit into a quarter of a second, at most ten."""
    time.sleep(0.05)
    started = time.perf_counter()
    take()
    steps = max(1, min(10, int(0.25 / (time.perf_counter() - started))))
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        take()
    return (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps


def _row(case: Case, times: dict[str, np.ndarray]) -> dict:
    """The table's row of one network."""
    best = min(("torch", "torch_channels_last"), key=lambda name: np.median(times[name][:, 0]))
    return {
        "network": case.name,
        "batch": case.batch,
        "milliseconds": {name: _quartiles(1e3 * t[:, 0]) for name, t in times.items()},
        "processor_milliseconds": {name: _quartiles(1e3 * t[:, 1]) for name, t in times.items()},
        "best_torch": best,
        "ratio": ratio({name: t[:, 0] for name, t in times.items()}, "jax", best),
    }


def _quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def table(rows: Sequence[dict]) -> str:
    """The rows as Markdown: milliseconds a step, and the ratio to PyTorch's better layout with its quartiles."""
    lines = [
        "| network | batch | this package | with XLA's convolution | PyTorch | PyTorch, channels last | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms = {name: f"{value['median']:.1f}" for name, value in row["milliseconds"].items()}
        quotient = "{median:.2f} ({low:.2f}-{high:.2f})".format(**row["ratio"])
        cells = [row["network"], row["batch"], ms["jax"], ms.get("jax_lax", "has none"), ms["torch"]]
        cells += [ms["torch_channels_last"], quotient]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(options: common.Options) -> None:
    """Measures, prints the table and saves it; a quick run has smaller batches and fewer turns."""
    started = time.time()
    cases = [case._replace(batch=16) for case in CASES] if options.quick else CASES
    rows = torch_comparison(cases, turns=3 if options.quick else 7)
    print(table(rows))
    path = common.save("bench_training", options, started, rows=rows, torch=_torch().__version__)
    print(f"saved {path}")


if __name__ == "__main__":
    common.run(main, common.Options, __doc__)
