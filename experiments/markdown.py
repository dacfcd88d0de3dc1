"""Tables in Markdown, and how a figure and where it comes from are written."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments import common

Results = Mapping[str, Any]


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
