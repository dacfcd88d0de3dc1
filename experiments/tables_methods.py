"""README's tables of sparse, quantised and thin networks, from their results."""

from experiments import common
from experiments.markdown import Results, counted, markdown, plus_minus, provenance

TITLES = {"lenet_300_100": "LeNet-300-100, MNIST", "lenet5": "LeNet-5, MNIST"}


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


BINARY_TITLES = {
    "lenet5": "LeNet-5, MNIST",
    "vgg11-reduced": "VGG-11, CIFAR-10: width 8, 10,000 images, 10 epochs of each",
    "vgg11": "VGG-11, CIFAR-10",
}


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
    titles = {
        "lenet300-reduced": "LeNet-300-100, MNIST, 10,000 images",
        "resnet20-reduced": "ResNet-20 of width 8, CIFAR-10, 10,000 images",
        "resnet20": "ResNet-20, CIFAR-10",
    }
    names = dict.fromkeys(row["penalty"] for row in results["table"])
    columns = [f"{what}, penalty: {name}" for name in names for what in ("seeds", "accuracy %", "speed-up")]
    head = (f"{titles[results['options']['network']]}: energy gone", *columns)
    rows = [(f"{energy:g}", *cells, *[""] * (len(columns) - len(cells))) for energy, cells in found.items()]
    return markdown(head, rows) + provenance(results, "mean ± standard deviation, test set; not trained again")


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


def depths(results: Results) -> str:
    """Layers and accuracy that SSL of depth leaves of ResNet-20, published and ours."""
    published = "published, width 16, all images"
    rows = [(published, "", f"{row['layers']}", "", f"{row['accuracy']:.2f}", "") for row in results["published"]]
    for row in results["table"]:
        layers = plus_minus(row["layers"], 0 if row["layers"]["std"] in (None, 0) else 1)
        accuracies = [plus_minus(row[name]) for name in ("accuracy", "shrunk")]
        rows.append((row["name"], str(row["layers"]["n"]), layers, *accuracies, plus_minus(row["multiply_adds"])))
    plan = results["plan"]
    title = f"ResNet-20, CIFAR-10: width {plan['width']}, {plan['examples']:,} images"
    head = (title, "seeds", "layers", "accuracy %", "retrained and shrunk %", "multiply-adds, shrunk")
    return markdown(head, rows) + provenance(
        results, f"{counted(results['table'][0]['layers'])}, {results['measured_on']}"
    )
