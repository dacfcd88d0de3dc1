"""Writes the tables of README.md from experiments/results/*.json.

    python -m experiments.tables            # rewrite the README
    python -m experiments.tables --check    # exit with 1 if it is not up to date

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; nothing between them is written by hand. A table
whose results file is missing says so.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tyro

from experiments import common, robust_pruning, robust_rows

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Options of this script.

    Attributes:
      check: change nothing; exit with 1 if a table is not what its results give.
      readme: the file.
    """

    check: bool = False
    readme: pathlib.Path = README


def quickstart(results: Results) -> str:
    """Accuracy, zeros and size on the digits."""
    rows = [
        (row["name"], plus_minus(row["accuracy"]), plus_minus(row["zeros"], 1), f"{row['compression']['mean']:.0f}x")
        for row in results["table"]
    ]
    head = ("LeNet-300-100 on digits", "test accuracy %", "zeros %", "fewer weights")
    return markdown(head, rows) + provenance(results, counted(results["table"][0]["accuracy"]))


def lenet(results: Results) -> str:
    """Accuracy of u on MNIST as trained and fine-tuned, and how few weights it has."""
    rows = [
        (
            row["name"] + ("" if row["protocol"]["shift"] else ", images not shifted"),
            plus_minus(row["accuracy"]),
            plus_minus(row["fine_tuned"]) if "fine_tuned" in row else "",
            plus_minus(row["nonzeros"], 0),
            plus_minus(row["compression"], 0 if row["compression"]["mean"] > 100 else 1),
        )
        for row in results["table"]
    ]
    head = (TITLES[results["table"][0]["network"]], "accuracy of u %", "fine-tuned %", "non-zero weights", "fewer by")
    return markdown(head, rows) + provenance(results, f"{counted(results['table'][-1]['accuracy'])}, test set")


def admm_lenet(results: Results) -> str:
    """ADMM-NN stage by stage, and the bytes of what it leaves, counted both ways."""
    rows = []
    for row in results["table"]:
        counts = [f"{row[name]['mean']:,.0f}" if name in row else "" for name in ("weight_bytes", "file_bytes")]
        share = f"{row['compression']['mean']:.1f}"
        rows.append((row["stage"], plus_minus(row["accuracy"]), f"{row['nonzeros']['mean']:,.0f}", share, *counts))
    last = results["table"][-1]
    ratios = [f"{last['dense_bytes']['mean'] / last[name]['mean']:,.0f}x" for name in ("weight_bytes", "file_bytes")]
    rows.append((f"against {last['dense_bytes']['mean']:,.0f} bytes dense", "", "", "", *ratios))
    head = ("LeNet-5, MNIST", "accuracy %", "non-zero weights", "fewer by", "weights' bits, bytes", "the file, bytes")
    return markdown(head, rows) + provenance(results, f"{counted(last['accuracy'])}, test set")


def resnet18(results: Results) -> str:
    """Dense against sparse on CIFAR-10."""
    table, plan = results["table"], results["plan"]
    if "sparse" not in table:
        return "(not finished: the sparse run is missing)\n"
    row = (
        f"width {plan['width']}, {plan['epochs']} epochs, {plan['examples']:,} images",
        plus_minus(table["dense"]), plus_minus(table["sparse"]), plus_minus(table["loss"]), plus_minus(table["zeros"]),
    )  # fmt: skip
    head = (f"ResNet-18, CIFAR-10: {results['label']}", "dense %", "u %", "loss", "zeros in convolutions %")
    return markdown(head, [row]) + provenance(results, counted(table["dense"]))


def splitting(results: Results) -> str:
    """Time and memory of an RVSM step over the plain one."""
    rows = [
        (row["network"], row["penalty"].replace("_", " "), quartiles(row["time"]), f"{row['memory']:.3f}")
        for row in results["steps"]
    ]
    path = results["path"]
    lanes = f"{path['lanes']} strengths of LeNet-300-100 as one vmapped run"
    rows.append((f"{lanes}, over as many runs", "l1", quartiles(path["time"]), ""))
    rows.append((f"{lanes}, over as many scanned runs", "l1", quartiles(path["time_scanned"]), ""))
    head = ("a step against the plain step", "penalty", "time", "peak memory")
    return markdown(head, rows) + provenance(results, f"medians of {results['rounds']} rounds, quartiles")


def training(results: Results) -> str:
    """A training step against PyTorch's, and against the same network with XLA's own convolution."""
    rows = []
    for row in results["rows"]:
        ms = {name: f"{value['median']:.1f}" for name, value in row["milliseconds"].items()}
        cells = (
            ms["jax"],
            ms.get("jax_lax", "the same"),
            ms["torch"],
            ms["torch_channels_last"],
            quartiles(row["ratio"]),
        )
        rows.append((f"{row['network']}, batch {row['batch']}", *cells))
    head = ("a training step, ms", "rvsm-jax", "with XLA's convolution", "PyTorch", "PyTorch, channels last", "ratio")
    return markdown(head, rows) + provenance(results, "medians; ratio to PyTorch's better layout, with quartiles")


def walkers(results: Results) -> str:
    """Steps a second of both methods, of Numba's loops and of C's."""
    tables = results["comparison"]
    rows = [
        (
            NAMES.get(name, name),
            *(
                f"{table['steps_per_second'][name]['mean'] / 1e9:.2f} ({table['median_ratio_to_numba'][name]:.1f}x)"
                for table in tables
            ),
        )
        for name in tables[0]["steps_per_second"]
    ]
    head = ("10^9 steps/s, dim 1, f(n) = n", *(f"escape {table['delta']:g}" for table in tables))
    how = f"medians of {tables[0]['steps_per_second']['numba']['n']} rounds; in brackets: over the faster Numba loop"
    return markdown(head, rows) + provenance(results, how)


NAMES = {
    "events": '`method="events"`',
    "steps": '`method="steps"`',
    "numba": "Numba, its own generator",
    "numba xoshiro": "Numba, xoshiro128++ by hand",
    "c": "C, OpenMP",
}


def no_overlap(results: Results) -> str:
    """How often the true support is found at equal sparsity: rules and penalties against beta."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in results["equal_sparsity"]:
        cell = " ± ".join(f"{100 * x:.1f}" for x in row["recovered"])
        found.setdefault((row["rule"], row["penalty"].replace("_", " ")), []).append(cell)
    rows = [(f"`{rule}`", penalty, *cells) for (rule, penalty), cells in found.items()]
    head = ("the same for all problems", "penalty", *(f"β = {beta:g}" for beta in results["betas"]))
    how = f"% of {results['problems']} noisy problems, ± standard error, of {results['runs']:,} runs in one call"
    return markdown(head, rows) + provenance(results, how)


def no_overlap_rate(results: Results) -> str:
    """Runs a second."""
    names = {"vmapped": "one vmapped call", "jitted": "a loop over jitted runs", "numpy": "the loop in NumPy"}
    over = {"vmapped": "", **{name: f"{quartiles(results['vmapped'][f'over {name}'])}" for name in ("jitted", "numpy")}}
    rows = [(names[name], f"{rate:,.0f}", over[name]) for name, rate in results["runs_a_second"].items()]
    head = (
        f"RVSM, {results['steps']} steps, {results['dim']} weights",
        "runs a second",
        "the vmapped call is faster by",
    )
    return markdown(head, rows) + provenance(results, f"medians of {results['rounds']} rounds, quartiles")


def shrinking(results: Results) -> str:
    """The small network's time over the dense one's, here and with Torch-Pruning."""
    theirs = {(row["network"], row["pruning"]): row for row in results["torch_rows"]}
    rows = []
    for row in results["rows"]:
        its = theirs.get((row["network"], row["pruning"]))
        times = [quartiles(t["time"]) for t in row["batches"].values()]
        other = [f"{t['time']['median']:.2f}" for t in its["batches"].values()] if its else ["", ""]
        first = next(iter(row["batches"].values()))
        ms = f"{first['dense_ms']:.1f} to {first['small_ms']:.1f}"
        work = f"{row['multiply_adds']:.2f}"
        what = f"{row['network']}: {row['pruning']}{'' if row['chosen'] else ' (odd widths)'}"
        rows.append((what, work, ms, *times, *other))
    head = (
        "dense to small", "multiply-adds", "ms, batch 64", "time, batch 64", "time, batch 1",
        "Torch-Pruning, 64", "Torch-Pruning, 1",
    )  # fmt: skip
    return markdown(head, rows) + provenance(results, f"medians of {results['rounds']} turns, quartiles")


def channels(results: Results) -> str:
    """Accuracy, what is left, and time, of shrunk networks."""
    rows = []
    for row in results["table"]:
        strength = "" if row["name"] == "dense" else f" {row['setting']['threshold']:g}"
        what = f"{row['title']}: {row['name']}{strength}"
        measured = [
            plus_minus(row[name], digits)
            for name, digits in (
                ("accuracy", 2), ("channel_sparsity", 0), ("zeros", 0), ("multiply_adds", 2), ("time", 2)
            )
        ]  # fmt: skip
        rows.append((what, str(row["accuracy"]["n"]), *measured))
    head = ("shrunk", "seeds", "test accuracy %", "channels gone %", "zeros %", "multiply-adds", "time at batch 64")
    return markdown(head, rows) + provenance(results, "mean ± standard deviation; multiply-adds and time of dense's")


def attacks(results: Results) -> str:
    """PGD over its gradients, ensembles over single networks, AutoAttack over its passes, all over two libraries."""
    rows = []
    for row in results["cost"]:
        what = f"20 gradients of {row['network']}, batch {row['batch']}"
        rows += [
            (f"PGD-20{how}", what, quartiles(row[key])) for how, key in (("", "called"), (" under `jit`", "jitted"))
        ]
    for row in results["ensembles"]:
        n, network = row["members"], row["network"]
        rows += [
            (f"{what}, En{n}{network.replace('-', '')}", f"{n} of {network}, batch {row['batch']}", quartiles(measured))
            for what, measured in row["ratio"].items()
        ]
    for row in results["libraries"]:
        name = f"{row['attack']}, {row['network']}"
        rows += [(name, library, quartiles(measured)) for library, measured in row["ratio"].items()]
    auto = results["autoattack"]
    name = f"AutoAttack, LeNet-5, {auto['images']} images, {100 * auto['accuracy']['square']:.0f} % left"
    forward, backward = auto["passes_per_image"]
    rows.append(
        (name, f"its {forward:,.0f} forward and {backward:,.0f} backward passes", quartiles(auto["over_passes"]))
    )
    if "ratio" in auto:
        rows.append((name, f"torchattacks, {100 * auto['torchattacks']:.0f} % left", quartiles(auto["ratio"])))
    how = f"medians of {results['rounds']} rounds, quartiles; AutoAttack of {results['options']['auto_rounds']}"
    return markdown(("time of", "over the time of", "ratio"), rows) + provenance(results, how)


ATTACKS = ("natural", "fgsm", "ifgsm20", "cw", "autoattack")


def robust_reduced(results: Results) -> str:
    """The small protocol's rows: accuracies of u under attack, sparsity and work; then the published tables."""
    rows = [
        (
            f"{row['dataset']}, {row['name']}",
            str(row["natural"]["n"]),
            *(plus_minus(row[name], 1) if name in row else "" for name in ATTACKS),
            *(plus_minus(row[name], 1) for name in ("zeros", "zero_channels", "work")),
        )
        for row in results["table"]
    ]
    planned = 3 * sum(map(len, robust_pruning.REDUCED_ROWS.values()))
    missing = planned - len(results["rows"])
    head = (
        "reduced",
        "seeds",
        "natural %",
        "FGSM",
        "IFGSM20",
        "C&W",
        "AutoAttack",
        "zeros %",
        "channels %",
        "multiply-adds %",
    )
    left = f"{missing} of {planned} runs are missing" if missing else "all runs"
    full = common.load("robust_pruning") if (common.RESULTS / "robust_pruning.json").exists() else {"table": ()}
    return markdown(head, rows) + provenance(results, f"mean ± standard deviation; {left}") + "\n" + robust(full)


def robust(results: Results) -> str:
    """Tables 1 to 4 of arXiv 2003.00631: published, and ours of the rows that were run in full."""
    ours = {row["name"]: row for row in results["table"]}
    rows = []
    for row in robust_rows.PUBLISHED:
        kind = "zero_channels" if row.structured else "zeros"
        found = ours.get(row.name)
        cells = " / ".join(f"{value:.2f}" for value in row.published)
        mine = " / ".join(plus_minus(found[name]) for name in (*ATTACKS[:4], kind)) if found else "not run"
        rows.append((row.name, " ".join(map(str, row.tables)), cells, mine))
    for kind, published in robust_rows.ADMM_ROWS.items():
        rows.append((f"ResNet20, the authors' ADMM, {kind}", "4", " / ".join(f"{x:.2f}" for x in published), "not run"))
    head = ("natural / FGSM / IFGSM20 / C&W / sparsity, %", "table", "published", "ours")
    runs = f"{len(ours)} of {len(robust_rows.PUBLISHED)} rows in full"
    return markdown(head, rows) + (provenance(results, runs) if ours else f"\n{runs}.\n")


def structures(results: Results) -> str:
    """From which share of zeros on a compressed layer is not slower, and its time at 90 % and at 99 %."""
    cells: dict[str, list[str]] = {}
    heads = []
    for row in results["table"]:
        heads.append(f"{row['layer']}, batch {row['batch']} ({row['dense_ms']:.2f} ms)")
        start = f"{100 * row['break_even']:.0f} %" if row["break_even"] else "none"
        cells.setdefault(row["structure"], []).append(
            f"{start} ({row['times']['0.9']:.2f}, {row['times']['0.99']:.2f})"
        )
    rows = [(structure, *found) for structure, found in cells.items()]
    how = f"medians of {results['rounds']} turns; in brackets: time over the dense layer's with 90 and 99 % gone"
    return markdown(("break-even", *dict.fromkeys(heads)), rows) + provenance(results, how)


def quantised(results: Results) -> str:
    """Accuracy and bytes of weights of few values."""
    dense = results["table"][0]["dense_bytes"]["mean"]
    rows = []
    for row in results["table"]:
        size = row["file_bytes"]["mean"]
        rows.append(
            (
                row["name"],
                str(row["accuracy"]["n"]),
                plus_minus(row["accuracy"]),
                plus_minus(row["loss"]),
                f"{size:,.0f}",
                f"{dense / size:.1f}x",
            )
        )
    head = (
        BINARY_TITLES[results["options"]["network"]],
        "seeds",
        "test accuracy %",
        "lost %",
        "the file, bytes",
        "smaller by",
    )
    return markdown(head, rows) + provenance(results, "mean ± standard deviation, test set")


def block_sizes(results: Results) -> str:
    """Accuracy against the size of a block, and the times of both layers."""
    latency, rows = common.load("bcr_blocks-latency"), []
    for row in results["table"]:
        times = [r for r in latency["table"] if r["structure"] == row["name"]]
        projected = plus_minus(row["projected"]) if "projected" in row else ""
        measured = [f"{r['time']:.2f}" for r in times]
        accuracy = str(row["accuracy"]["n"]), plus_minus(row["accuracy"])
        rows.append((row["name"], f"{row['kept']['mean']:.1f}", projected, *accuracy, *measured))
    names = dict.fromkeys((r["layer"].split(",")[0].split(" ")[0], r["batch"]) for r in latency["table"])
    times = [f"time, {layer}, batch {batch}" for layer, batch in names]
    head = ("LeNet-5, MNIST, 20,000 images", "weights kept %", "projected %", "seeds", "retrained %", *times)
    timed = f"times: `--latency`, medians of {latency['rounds']} turns, revision {latency['revision']}"
    return markdown(head, rows) + provenance(results, f"mean ± standard deviation, test set; {timed}")


def ranks(results: Results) -> str:
    """Accuracy and speed-up of truncated networks, with and without the penalty of singular values."""
    found: dict[float, list[str]] = {}
    for row in results["table"]:
        cells = [str(row["accuracy"]["n"]), plus_minus(row["accuracy"]), plus_minus(row["speed_up"])]
        found.setdefault(row["energy"], []).extend(cells)
    titles = {"lenet300-reduced": "LeNet-300-100, MNIST, 10,000 images", "resnet20": "ResNet-20, CIFAR-10"}
    names = dict.fromkeys(row["penalty"] for row in results["table"])
    columns = [f"{what}, penalty: {name}" for name in names for what in ("seeds", "accuracy %", "speed-up")]
    head = (f"{titles[results['options']['network']]}: energy gone", *columns)
    rows = [(f"{energy:g}", *cells, *[""] * (len(columns) - len(cells))) for energy, cells in found.items()]
    return markdown(head, rows) + provenance(results, "mean ± standard deviation, test set; not trained again")


BINARY_TITLES = {
    "lenet5": "LeNet-5, MNIST",
    "vgg11-reduced": "VGG-11, CIFAR-10: width 8, 10,000 images, 10 epochs of each",
    "vgg11": "VGG-11, CIFAR-10",
}


def methods_compared(results: Results) -> str:
    """All compressors on one LeNet-5: accuracy, what is left, bytes, and time in the fastest form."""
    rows = []
    for row in results["table"]:
        size, dense = row["file_bytes"]["mean"], row["dense_bytes"]["mean"]
        timed = f"{plus_minus(row['time'])}, {row['form']}" if "time" in row else ""
        left = f"{row['nonzeros']['mean']:,.0f}", f"{row['compression']['mean']:.1f}x"
        cells = (plus_minus(row["accuracy"]), *left, f"{size:,.0f}", f"{dense / size:.1f}x", timed)
        rows.append((row["name"], str(row["accuracy"]["n"]), *cells))
    head = ("method, strength", "seeds", "accuracy %", "non-zeros", "fewer by", "file, bytes", "smaller by", "time")
    how = f"mean ± standard deviation, {results['measured_on']}; time at batch {results['batch']} over dense's"
    return markdown(head, rows) + provenance(results, how)


def ssl_lenet(results: Results) -> str:
    """Filters, channels and shapes that SSL leaves of LeNet's convolutions, published and ours."""
    published = [
        ("published", ", ".join(map(str, row["filters"])), "", "", f"{row['error'] or ''}", "", "")
        for row in results["published"]
    ]
    rows = []
    for row in results["table"]:
        counts = [", ".join(f"{x['mean']:g}" for x in row[kind]) for kind in ("filters", "channels", "shapes")]
        errors = [plus_minus(row[name]) for name in ("error", "retrained")]
        rows.append((f"ours: {row['name']}", *counts, *errors, plus_minus(row["multiply_adds"])))
    head = ("LeNet, MNIST", "filters", "channels", "shapes", "error %", "retrained %", "multiply-adds, shrunk")
    return markdown(head, [*published, *rows]) + provenance(results, counted(results["table"][-1]["error"]))


SHOWN = {
    "fgsm 0.1": "r_inf: FGSM, 0.1, %",
    "pgd 0.1": "r_inf: PGD, 0.1, %",
    "pgd 0.2": "r_inf: PGD, 0.2, %",
    "deepfool": "r_2: DeepFool",
    "cw": "r_2: C&W",
}


def sparsity_vs_robustness(results: Results) -> str:
    """Each measure of the dense network and at its best middle sparsity, and whether that is an inverted U."""
    rows = []
    for row in results["table"]:
        curves, verdicts = row["curves"]["pruned"], row["inverted_u"]
        for name in (name for name in SHOWN if name in curves):
            found, digits = verdicts[name], 1 if "%" in SHOWN[name] else 2
            level = found["level"]
            dense, best, accuracy = (
                plus_minus(common.summary(curves[of][at]), n)
                for of, at, n in ((name, 0, digits), (name, level, digits), ("accuracy", level, 1))
            )
            gains = [_gain(found[other], digits) if other in found else "" for other in ("dense", "control")]
            said = ("yes" if found.get("by_sparsity") else "not by sparsity") if found["found"] else "no"
            said = "yes, no control yet" if found["found"] and "by_sparsity" not in found else said
            said = "one seed, no test" if len(row["seeds"]["pruned"]) == 1 else said
            counts = "/".join(str(len(row["seeds"][kind])) for kind in ("pruned", "control"))
            what = f"{TITLES[row['network']].removesuffix(', MNIST')}, {row['training']}, {counts}"
            best = f"{best} at {100 * results['levels'][level]:g} %"
            rows.append((what, SHOWN[name], dense, best, accuracy, *gains, said))
    head = (
        "trained, seeds/controls",
        "measure",
        "dense",
        "best middle sparsity",
        "accuracy there",
        "gain over dense",
        "over control",
        "inverted U",
    )
    done = f"{len(results['rows'])} of 204 levels have been run"
    how = f"mean ± standard deviation over the seeds, gains ± standard error; {done}"
    return markdown(head, rows) + provenance(results, how)


def _gain(found: Results, digits: int) -> str:
    error = found["standard_error"]
    return f"{found['gain']:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


TITLES = {"lenet_300_100": "LeNet-300-100, MNIST", "lenet5": "LeNet-5, MNIST"}
TABLES: dict[str, Callable[[Results], str]] = {
    "quickstart": quickstart,
    "rvsm_lenet-lenet_300_100": lenet,
    "rvsm_lenet-lenet5": lenet,
    "admm_lenet": admm_lenet,
    "binary_relax-lenet5": quantised,
    "bcr_blocks": block_sizes,
    "bench_structures": structures,
    "svd_training-lenet300-reduced": ranks,
    "rvsm_resnet18-fast-reduced": resnet18,
    "bench_splitting": splitting,
    "bench_training": training,
    "bench_shrink": shrinking,
    "rgsm_channels": channels,
    "bench_serw": walkers,
    "no_overlap": no_overlap,
    "bench_no_overlap": no_overlap_rate,
    "bench_attacks": attacks,
    "robust_pruning-reduced": robust_reduced,
    "methods_compared": methods_compared,
    "ssl_lenet": ssl_lenet,
    "sparsity_vs_robustness": sparsity_vs_robustness,
}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    <BLANKLINE>
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join(("|" + "|".join(f" {c} " if c != "---" else c for c in line) + "|\n") for line in lines)


def plus_minus(measured: Results, digits: int = 2) -> str:
    """mean ± std, without a std that is not there."""
    return common.plus_minus(measured, digits)


def counted(measured: Results) -> str:
    """How many seeds, and what stands behind the ±.

    >>> counted({"n": 3}), counted({"n": 1})
    ('3 seeds, mean ± standard deviation', 'one seed')
    """
    return "one seed" if measured["n"] == 1 else f"{measured['n']} seeds, mean ± standard deviation"


def quartiles(measured: Results) -> str:
    """median (first to third quartile)."""
    return f"{measured['median']:.2f} ({measured['low']:.2f} to {measured['high']:.2f})"


def provenance(results: Results, how: str) -> str:
    """Where a table's figures come from, in one line."""
    hardware, versions = results["hardware"], results["versions"]
    on = hardware["devices"] if hardware["backend"] != "cpu" else f"{hardware['cores']} cores, {hardware['cpu']}"
    command = results["command"].removeprefix("python -m ")
    line = f"`{command}`: {how}; {on}; jax {versions['jax']}; {results['minutes']:.0f} min"
    return f"\n{line}; revision {results['revision']}.\n"


def rendered(text: str, folder: pathlib.Path = common.RESULTS) -> str:
    """The text with every table made anew from its results file."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise SystemExit(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        if not (folder / f"{name}.json").exists():
            return f"{start}(no results yet: `{name}.json`)\n{end}"
        return start + TABLES[name](common.load(name, folder)) + end

    return BLOCK.sub(table, text)


def main(options: TableOptions) -> None:
    """Rewrites the file, or says whether it is up to date."""
    text = options.readme.read_text()
    new = rendered(text)
    if options.check and new != text:
        raise SystemExit(f"{options.readme} is not what experiments/results give: run python -m experiments.tables")
    if not options.check:
        options.readme.write_text(new)


if __name__ == "__main__":
    main(tyro.cli(TableOptions, description=__doc__))
