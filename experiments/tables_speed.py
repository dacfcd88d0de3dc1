"""README's tables of time, from their results."""

from experiments.markdown import Results, markdown, plus_minus, provenance, quartiles


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
            (
                f"{what}, En{n}{network.replace('-', '')}",
                f"{n}{kind} {network}, batch {row['batch']}",
                quartiles(measured),
            )
            for kind, of in ((" of", "single"), (" noisy", "noisy"))
            for what, measured in row["ratio"][of].items()
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
