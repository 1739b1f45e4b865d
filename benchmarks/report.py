"""Recorded results -> the tables of ``benchmarks/results/<gpu>/README.md``, and the picture of the README.

python benchmarks/report.py benchmarks/results/h100 [--rows] [--plot docs/images/h100.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_conv.bench.plot import fastest_peer, geomean, overview


def summary(rows: list[dict[str, Any]]) -> str:
    """One line per class, dtype and layout: speed against the best peer, share of the copy bandwidth."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "us" in row:
            groups[row["class"], row["dtype"], row["layout"]].append(row)
    lines = [
        "| class | dtype | layout | layers | speed-up, geometric mean | smallest | largest | of copy, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, dtype, layout), members in sorted(groups.items()):
        ratios = [r for r in (fastest_peer(m) / m["us"] for m in members) if not math.isnan(r)]
        share = sorted(m["of_copy"] or 0.0 for m in members)[len(members) // 2]
        lines.append(
            f"| {name} | {dtype} | {layout} | {len(members)} | {geomean(ratios):.2f} | {min(ratios):.2f} | "
            f"{max(ratios):.1f} | {100 * share:.0f} % |"
        )
    return "\n".join(lines)


def details(rows: list[dict[str, Any]]) -> str:
    """One line per layer."""
    lines = [
        "| layer | batch | dtype | layout | kernel | us | of copy | best peer, us | speed-up | error / tolerance |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "us" not in row:
            continue
        peer = fastest_peer(row)
        cells = (
            row["layer"],
            row["batch"],
            row["dtype"],
            row["layout"],
            row["kernel"],
            f"{row['us']:.1f}",
            f"{100 * (row['of_copy'] or 0):.0f} %",
            f"{peer:.1f}",
            f"{peer / row['us']:.2f}",
            row["error_over_tolerance"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def nets(rows: list[dict[str, Any]]) -> str:
    """Whole networks: milliseconds of a call and of a replay of its CUDA graph."""
    peers = {"call_ms": "PyTorch eager, call", "graph_ms": "its replay", "compiled_graph_ms": "torch.compile, replay"}
    lines = [f"| network | batch | dtype | call | replay | {' | '.join(peers.values())} |", f"|{'---|' * 8}"]
    for row in rows:
        times = [row.get("call_ms"), row.get("replay_ms"), *(row.get("torch_nhwc", {}).get(name) for name in peers)]
        cells = (row["net"], row["batch"], row["dtype"], *(f"{t:.3f}" if t else "" for t in times))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of one folder of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", action="store_true", help="every layer too")
    parser.add_argument("--plot", type=Path, help="draw the picture into this SVG or PNG file")
    arguments = parser.parse_args()
    names = ("layers", "nets", "calibration")
    layers, networks, calibration = (json.loads((arguments.folder / f"{name}.json").read_text()) for name in names)
    environment = layers["environment"]
    if note := layers.get("synthetic"):
        print(f"**{note}**\n")
    print(
        f"{environment['gpu']}, driver {environment['driver']}, CuPy {environment['cupy']}, PyTorch "
        f"{environment['torch']}, cuDNN {environment['cudnn']}; copy {layers['copy_bytes_per_s'] / 1e12:.2f} TB/s\n"
    )
    print(summary(layers["rows"]), end="\n\n")
    print(nets(networks["nets"]), end="\n\n")
    if arguments.rows:
        print(details(layers["rows"]))
    if arguments.plot:
        overview(layers, networks, calibration, arguments.plot)


if __name__ == "__main__":
    main()
