"""README's tables of robust and sparse networks, from their results."""

from experiments import common, robust_pruning, robust_rows
from experiments.markdown import Results, markdown, plus_minus, provenance
from experiments.tables_methods import TITLES

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
        f"AutoAttack, {results['options']['autoattack']} images",
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
    head = ("natural / FGSM / IFGSM20 / C&W / sparsity, %", "table", "published", "ours")
    runs = f"{len(ours)} of {len(robust_rows.PUBLISHED)} rows in full"
    table = markdown(head, rows) + (provenance(results, runs) if ours else "")
    return f"<details><summary>Tables 1 to 4, published and ours: {runs}</summary>\n\n{table}\n</details>\n"


def ensemble_weights(results: Results) -> str:
    """How near to zero the weights of a layer are, in single networks and in ensembles."""
    columns = {"near zero": 1, "kurtosis": 2, "deviation": 4, "small": 2}
    rows = [
        (f"{row['dataset']}, {row['net']}", *(plus_minus(row[name], digits) for name, digits in columns.items()))
        for row in results["table"]
    ]
    head = (f"`{results['layer']}`", "below 0.1 σ, %", "excess kurtosis", "σ", "below 1e-3, %")
    seeds = f"mean ± standard deviation, {results['table'][0]['small']['n']} seeds"
    return markdown(head, rows) + provenance(results, seeds)


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
