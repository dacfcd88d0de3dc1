"""README's tables of walks and of the no-overlap network, from their results."""

from experiments.markdown import Results, markdown, provenance, quartiles

NAMES = {
    "events": '`method="events"`',
    "steps": '`method="steps"`',
    "numba": "Numba, its own generator",
    "numba xoshiro": "Numba, xoshiro128++ by hand",
    "c": "C, OpenMP",
}


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
