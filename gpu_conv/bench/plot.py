"""Pictures of recorded results: roofline, ratios to the other libraries, whole networks. Needs Matplotlib.

A document that says ``"synthetic"`` about itself has that text in every picture of it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Blue, orange, green, red, purple of Okabe and Ito, told apart by the colour-blind too.
COLOURS = {
    "depthwise": "#0072b2",
    "pointwise": "#e69f00",
    "grouped": "#009e73",
    "grouped_pointwise": "#cc79a7",
    "dense": "#d55e00",
}
OURS, OTHERS = "#0072b2", "#9a9a9a"
INK = "#24292f"
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # of ratios

Rows = Sequence[Mapping[str, Any]]


def canvas() -> Any:
    """``matplotlib.figure.Figure``, which needs no screen.

    Raises:
        ModuleNotFoundError: Matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need Matplotlib: pip install 'gpu-conv[bench]'") from error
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gpu_conv", "font.family": "sans-serif"})
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK))
    mpl.rcParams.update({"xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10})
    return Figure


def geomean(values: Sequence[float]) -> float:
    """Geometric mean; NaN of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def fastest_peer(row: Mapping[str, Any]) -> float:
    """Microseconds of the fastest other library in a row of the GPU; NaN where none ran."""
    return min((p["us"] for p in row["peers"].values() if "us" in p), default=math.nan)


def overview(layers: Mapping[str, Any], nets: Mapping[str, Any], calibration: Mapping[str, Any], path: Path) -> None:
    """One picture of a folder of results: ratios, roofline of float16, whole networks."""
    figure = canvas()(figsize=(11.5, 4.1))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.15, 1))
    rows = [row for row in layers["rows"] if "us" in row]
    ratio_bars(left, rows)
    roofline(middle, rows, layers["copy_bytes_per_s"], calibration)
    net_bars(right, nets["nets"])
    e = layers["environment"]
    caption = (
        f"{e['gpu']}, {len(rows)} layers, cold L2, CUDA graphs. Peers: PyTorch {e['torch']} with cuDNN {e['cudnn']} "
        f"in both layouts, for pointwise layers cuBLAS too. Recorded at commit {e['commit'][:7]}."
    )
    _finish(figure, caption, (layers, nets, calibration), path)


def _finish(figure: Any, caption: str, documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    marks = [document["synthetic"] for document in documents if "synthetic" in document]
    inch = 1 / figure.get_figheight()
    figure.tight_layout(rect=(0, 0.2 * inch, 1, 1 - (0.28 * inch if marks else 0)))
    figure.text(0.01, 0.06 * inch, caption, fontsize=8)
    if marks:
        figure.text(0.5, 1 - 0.22 * inch, marks[0], color="#c00000", weight="bold", ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    # White, not transparent: the text must be readable on a dark page too. No date: one input, one picture.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, facecolor="white", dpi=150, metadata=metadata)
    if path.suffix == ".svg":  # a hundredth of a point is enough, and indentation is for readers: 15 % less
        path.write_text(re.sub(r"\n\s+", "\n", re.sub(r"(\.\d\d)\d+", r"\1", path.read_text())))


def _plain_ticks(axis: Any) -> None:
    """1, 10 and 100 in the place of powers."""
    axis.set_major_formatter(lambda value, position: f"{value:g}")
    axis.set_minor_formatter(lambda value, position: "")


def ratio_bars(axes: Any, rows: Rows) -> None:
    """Speed against the fastest other library by class: geometric mean as a bar, every layer as a dot."""
    columns = (("float16", "nhwc"), ("float16", "nchw"), ("float32", "nhwc"), ("float32", "nchw"))
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        ratio = fastest_peer(row) / row["us"]
        if not math.isnan(ratio):
            found[row["class"], row["dtype"], row["layout"]].append(ratio)
    classes = [name for name in COLOURS if any(key[0] == name for key in found)]
    shades = ("#08519c", "#6baed6", "#a63603", "#fdae6b")
    for place, (dtype, layout) in enumerate(columns):
        xs = [index + (place - 1.5) * 0.2 for index in range(len(classes))]
        values = [found[name, dtype, layout] for name in classes]
        bars = [geomean(v) for v in values]
        axes.bar(xs, [b - 1 for b in bars], 0.18, bottom=1, color=shades[place], label=f"{dtype} {layout}")
        for x, layer_ratios in zip(xs, values, strict=True):
            dots = [x] * len(layer_ratios)
            axes.scatter(dots, layer_ratios, s=4, color=INK, alpha=0.35, linewidths=0, zorder=3)
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{tick:g}x" for tick in TICKS])
    axes.set_ylim(min(0.5, *(ratio for ratios in found.values() for ratio in ratios)) / 1.5, 80)
    axes.minorticks_off()
    axes.set_xticks(range(len(classes)), [name.replace("_", "\n") for name in classes], fontsize=8)
    axes.set_title("Times faster than the fastest peer\n(bar: geometric mean; dot: one layer)")
    axes.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper right")


def roofline(axes: Any, rows: Rows, copy_bytes_per_s: float, calibration: Mapping[str, Any]) -> None:
    """Work per byte and speed of float16 layers below the measured copy bandwidth and matrix product."""
    matmul = calibration.get("matmul", {})
    peak = max((v["tflop_per_s"] for k, v in matmul.items() if k.startswith("fp16")), default=math.nan)
    xs: list[float] = []
    for name, colour in COLOURS.items():
        members = [row for row in rows if row["class"] == name and row["dtype"] == "float16"]
        intensity = [row["tflops"] * row["us"] * 1e6 / row["bytes"] for row in members]
        xs += intensity
        speed = [row["tflops"] for row in members]
        axes.scatter(intensity, speed, s=11, color=colour, alpha=0.75, linewidths=0, label=name.replace("_", " "))
    if not xs:
        return
    low, high = min(xs) / 1.5, max(xs) * 1.5
    steps = [low * (high / low) ** (i / 60) for i in range(61)]
    product = f"matmul {peak:.0f} TFLOP/s" if peak == peak else "matmul not measured"
    roof = [min(x * copy_bytes_per_s / 1e12, peak) for x in steps]
    axes.plot(steps, roof, color=INK, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte that must be moved")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(f"float16 layers under the measured roof\n(copy {copy_bytes_per_s / 1e12:.2f} TB/s, {product})")
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", handletextpad=0.1)
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)


def net_bars(axes: Any, nets: Rows) -> None:
    """Milliseconds of a replay of whole networks, beside PyTorch where that ran."""
    rows = [row for row in nets if "replay_ms" in row and "graph_ms" in row.get("torch_nhwc", {})]
    # Short: six of them share 2.5 inches.
    labels = [f"{row['dtype'].replace('float', 'f')}\nn={row['batch']}" for row in rows]
    contestants = (
        ("gpu_conv", OURS, [row["replay_ms"] for row in rows]),
        ("torch.compile", "#c8c8c8", [row["torch_nhwc"].get("compiled_graph_ms", math.nan) for row in rows]),
        ("PyTorch eager", OTHERS, [row["torch_nhwc"]["graph_ms"] for row in rows]),
    )
    for shift, (label, colour, values) in zip((-0.27, 0, 0.27), contestants, strict=True):
        bars = axes.bar([i + shift for i in range(len(rows))], values, 0.26, color=colour, label=label)
        if colour == OURS:
            axes.bar_label(bars, [f"{v:.2g}" for v in values], fontsize=7.5, padding=1)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylabel("ms, CUDA graphs (log scale)")
    names = dict.fromkeys(row["net"] for row in rows)
    axes.set_title(f"Whole networks: {', '.join(names)}\n")
    _plain_ticks(axes.yaxis)
    if rows:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.02))


def bars_of(document: Mapping[str, Any], path: Path) -> None:
    """The picture of one run of ``gpu-conv bench``: how many times faster than the fastest other library."""
    cuda = document["device"] == "cuda"
    bars = (_cuda_bars if cuda else _cpu_bars)(document["rows"])
    if not bars:
        raise ValueError("there is nothing to draw: no other library ran beside gpu_conv")
    figure = canvas()(figsize=(8, 1.2 + 0.24 * len(bars)))
    axes = figure.subplots()
    labels, ratios = zip(*bars, strict=True)
    colours = [OURS if ratio >= 1 else "#d55e00" for ratio in ratios]
    drawn = axes.barh(range(len(bars)), [r - 1 for r in ratios], left=1, color=colours)
    axes.bar_label(drawn, [f"{r:.2f}x" for r in ratios], fontsize=8, padding=2)
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    low, high = min(0.8, *ratios) / 1.3, max(1.25, *ratios) * 1.3
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_title("Speed against the fastest other library (above 1: gpu_conv is faster)")
    e = document["environment"]
    _finish(figure, ", ".join(f"{name} {value}" for name, value in e.items()), (document,), path)


def _cpu_bars(rows: Rows) -> list[tuple[str, float]]:
    bars = []
    for row in rows:
        ours = {name: ms for name, ms in row["ms"].items() if name in ("NHWC", "NCHW")}
        theirs = [ms for name, ms in row["ms"].items() if name not in ours]
        label = f"{row['kind']} {row['name']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        if theirs:
            bars.append((label, min(theirs) / min(ours.values())))
    return bars


def _cuda_bars(rows: Rows) -> list[tuple[str, float]]:
    ran = [row for row in rows if "us" in row and not math.isnan(fastest_peer(row))]
    return [(f"{r['layer']}, {r['dtype']} {r['layout']}", fastest_peer(r) / r["us"]) for r in ran]
