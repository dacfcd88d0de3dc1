"""Writes the tables of README.md from experiments/results/*.json.

    python -m experiments.tables            # rewrite the README
    python -m experiments.tables --check    # exit with 1 if it is not up to date

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; nothing between them is written by hand. A table
whose results file is missing says so.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable

from experiments import common
from experiments.markdown import Results
from experiments.tables_methods import (
    admm_lenet,
    block_sizes,
    depths,
    lenet,
    methods_compared,
    quantised,
    quickstart,
    ranks,
    resnet18,
    ssl_lenet,
)
from experiments.tables_robust import ensemble_weights, robust_reduced, sparsity_vs_robustness
from experiments.tables_speed import attacks, channels, shrinking, splitting, structures, training
from experiments.tables_theory import no_overlap, no_overlap_rate, walkers

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[Results], str]] = {
    "quickstart": quickstart,
    "rvsm_lenet-lenet_300_100": lenet,
    "rvsm_lenet-lenet5": lenet,
    "admm_lenet": admm_lenet,
    "binary_relax-lenet5": quantised,
    "binary_relax-vgg11-reduced": quantised,
    "bcr_blocks": block_sizes,
    "bench_structures": structures,
    "svd_training-lenet300-reduced": ranks,
    "svd_training-resnet20-reduced": ranks,
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
    "ensemble_weights": ensemble_weights,
    "methods_compared": methods_compared,
    "ssl_lenet": ssl_lenet,
    "ssl_resnet20-resnet20-reduced": depths,
    "sparsity_vs_robustness": sparsity_vs_robustness,
}


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Options of this script.

    Attributes:
      check: change nothing; exit with 1 if a table is not what its results give.
      readme: the file.
    """

    check: bool = False
    readme: pathlib.Path = README


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
    common.run(main, TableOptions, __doc__)
