"""Predicted times of the core rows and of MobileNetV2 on an H100: a model (``model.py``), not a measurement.

    python benchmarks/predicted.py [--rows] [--update]

Every row of ``layers.json`` in float16 and float32, channels last and first, at the batch at which ``bench.py``
measures. Needs no GPU. Where the recorded run (``results/h100``) had the same kernel and tile, both times are set side
by side: the model's error. ``--update`` writes ``predicted.json``, whose ``argued`` says of every row below half of its
floor why it is there; exit status 1 if one has no reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

import static
from model import COPY, NODE, RESULTS, START, floor_us, predicted_us
from rich.console import Console
from rich.table import Table
from rows import Layer, problem

from gpu_conv import dispatch
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.families import inverted_residual_model
from gpu_conv.families.inverted_residual_model import Chain
from gpu_conv.problem import ConvProblem

FILE = Path(__file__).with_name("predicted.json")
ARCH = "sm_90a"
LEAST = 0.50  # of the floor, of every row that is not argued
SAID = "PREDICTED by a model from counts in an emulator; no GPU ran this"

# (expansion, output channels, repeats, stride) of MobileNetV2's blocks, from the paper's table 2.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
NET_GOALS = {1: 130.0, 32: 320.0, 256: 1800.0}  # microseconds by batch, float16

Row = dict[str, Any]


# -------------------------------------------------------------------------------------------------------------- layers


def rows(figures: Mapping[str, static.Row]) -> dict[str, Row]:
    """One prediction per row, dtype and layout, beside what was measured."""
    measured = {f"{r['layer']} {r['dtype']} {r['layout']}": r for r in _recorded() if "us" in r}
    found = {}
    for case in static.cases([ARCH]):
        name, launch = case.name.removesuffix(f" {ARCH}"), case.launch
        floor, bound = floor_us(case.problem)
        us = predicted_us(case.problem, launch, case.target, figures.get(case.name, {}))
        row = {"class": case.row["cls"], "kernel": launch.kernel, "batch": case.problem.batch, "us": round(us, 2)}
        row |= {"floor_us": round(floor, 2), "of_floor": round(floor / us, 3), "bound": bound}
        row["of_copy"] = round((floor + START) / us, 3) if bound == "memory" else None
        record = measured.get(name)
        if record and _tile(record["launch"]) == _tile(launch.name_expression):
            row |= {"measured_us": round(record["us"], 2), "error": round(us / record["us"] - 1, 3)}
        found[name] = row
    return found


def _recorded() -> list[Row]:
    document: Row = json.loads((RESULTS / "layers.json").read_text())
    return list(document["rows"])


def _tile(launch: str) -> str:
    """What decides the time of a launch; conv_tile's types were spelled with one name less when it was measured."""
    kernel, _, arguments = launch.partition("<")
    return kernel + (arguments[arguments.index("Filter") :] if kernel == "conv_tile" else arguments)


def errors(found: Iterable[Row]) -> list[float]:
    """Predicted over measured, as logarithms."""
    return [log(1 + row["error"]) for row in found if "error" in row]


def unargued(found: Mapping[str, Row], argued: Iterable[Mapping[str, str]]) -> list[str]:
    """Rows below half of their floor without a reason, and reasons for nothing."""
    low = {name: row for name, row in found.items() if row["of_floor"] < LEAST}
    patterns = [(re.compile(entry["rows"]), entry["why"]) for entry in argued]
    lines = [
        f"{name} ({row['kernel']}): {row['of_floor']:.2f} of its floor"
        for name, row in low.items()
        if not any(pattern.search(f"{row['kernel']} {name}") for pattern, _ in patterns)
    ]
    used = {why for pattern, why in patterns for name, row in low.items() if pattern.search(f"{row['kernel']} {name}")}
    return lines + [f"argued for nothing: {why}" for _, why in patterns if why not in used]


def geomean(found: Iterable[Row], figure: str = "of_floor") -> float:
    return exp(fmean(log(row[figure]) for row in found))


# ----------------------------------------------------------------------------------------------------------- a network


def mobilenet_v2(figures: Mapping[str, static.Row], batch: int) -> dict[str, float]:
    """Microseconds of its convolutions in float16, channels last: as blocks where these are predicted to be faster."""
    target = KNOWN_TARGETS[ARCH]

    def single(p: ConvProblem) -> float:
        return predicted_us(p, dispatch.plan(p, target), target, _like(figures, p))

    def layer(size: int, c: int, k: int, taps: int, stride: int, groups: int, *epilogue: str) -> ConvProblem:
        row: Layer = {
            "C": c, "K": k, "groups": groups, "in_spatial": [size] * 2, "filter": [taps] * 2, "stride": [stride] * 2,
            "pad": [taps // 2] * 2, "dilation": [1, 1], "causal": False, "epilogue": epilogue,
        }  # fmt: skip
        return problem(row, "float16", True, batch, bias="float16")

    size, channels, launches = 112, 32, 2
    separate = fused = single(layer(224, 3, 32, 3, 2, 1, "relu6")) + single(layer(7, 320, 1280, 1, 1, 1, "relu6"))
    for expansion, out, repeats, first in BLOCKS:
        for i in range(repeats):
            stride, hidden = first if i == 0 else 1, channels * expansion
            expand = layer(size, channels, hidden, 1, 1, 1, "relu6") if expansion > 1 else None
            depthwise = layer(size, hidden, hidden, 3, stride, hidden, "relu6")
            size //= stride
            project = layer(size, hidden, out, 1, 1, 1, *(["add"] if stride == 1 and channels == out else []))
            chain = Chain(expand, depthwise, project)
            apart = sum(single(p) for p in (expand, depthwise, project) if p)
            together = inverted_residual_model.slower(chain, target) is None
            launches += 1 if together else 3 - (expand is None)
            separate, fused = separate + apart, fused + (_block(chain) if together else apart)
            channels = out
    return {"us": round(fused, 1), "launches": launches, "separate_us": round(separate, 1)}


def _block(chain: Chain) -> float:
    target = KNOWN_TARGETS[ARCH]
    best = inverted_residual_model.tiles(chain, target)[0]
    return NODE + inverted_residual_model.Shape(chain, best).clocks(target, best.splits) / 1755


def _like(figures: Mapping[str, static.Row], p: ConvProblem) -> static.Row:
    """The figures of the core row with the same kernel and filter whose map is nearest in size."""
    kernel = dispatch.plan(p, KNOWN_TARGETS[ARCH]).kernel
    pattern = re.compile(rf"{'x'.join(map(str, p.filter))}s{p.strides[0]}x?.*_(\d+)x\d+\S* {p.x.dtype} nhwc {ARCH}$")
    found = ((pattern.search(name), row) for name, row in figures.items() if row["kernel"] == kernel)
    sizes = [(abs(int(match[1]) - p.in_spatial[0]), row) for match, row in found if match]
    return min(sizes, key=lambda pair: pair[0])[1] if sizes else {}


# ---------------------------------------------------------------------------------------------------------- for people


def groups(found: Mapping[str, Row]) -> dict[str, list[Row]]:
    """Rows by class, dtype and layout; depthwise and pointwise ones also by what their floor is, and these together."""
    result: dict[str, list[Row]] = {}
    for name, row in sorted(found.items()):
        divided = row["class"] in ("depthwise", "pointwise")
        kind = f"{row['class']} ({row['bound']})" if divided else row["class"]
        result.setdefault(f"{kind} {' '.join(name.split()[-2:])}", []).append(row)
        if divided and row["bound"] == "memory":
            result.setdefault(kind, []).append(row)
    return dict(sorted(result.items()))


def summary(found: Mapping[str, Row]) -> Table:
    """Share of the floor, and the model's error, by class, dtype and layout."""
    columns = ("rows", "of floor", "of a copy", "below 0.5", "measured too", "median error", "bias", "worst")
    table = Table("class, dtype, layout", *columns, title=SAID)
    for name, members in {**groups(found), "all": list(found.values())}.items():
        copies = [row for row in members if row["of_copy"]]
        cells = [str(len(members)), f"{geomean(members):.2f}", f"{geomean(copies, 'of_copy'):.2f}" if copies else ""]
        cells.append(str(sum(row["of_floor"] < LEAST for row in members)))
        known = errors(members)
        cells += [str(len(known))]
        if known:
            worst = max(known, key=abs)
            cells += [f"{exp(median(map(abs, known))) - 1:.0%}", f"{exp(fmean(known)):.2f}", f"{exp(worst):.2f}"]
        table.add_row(name, *cells)
    return table


def details(found: Mapping[str, Row]) -> Table:
    """Every row, the farthest from its floor first."""
    table = Table("row", "batch", "kernel", "predicted us", "floor us", "of floor", "measured us", title=SAID)
    for name, row in sorted(found.items(), key=lambda pair: pair[1]["of_floor"]):
        numbers = (row["us"], row["floor_us"], row["of_floor"], row.get("measured_us", ""))
        table.add_row(name, str(row["batch"]), row["kernel"], *map(str, numbers))
    return table


def document(found: Mapping[str, Row], nets: Mapping[str, Row], argued: Iterable[Mapping[str, str]]) -> str:
    """What is kept, one line per row."""
    lines = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(found.items()))
    head = {"what": SAID, "device": "H100 80GB HBM3", "copy_bytes_per_s": COPY, "start_us": START, "nets": nets}
    head["argued"] = list(argued)
    return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n"


def main() -> None:
    """Predict, show, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="every row too")
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name}")
    arguments = parser.parse_args()
    figures = static.read()["rows"]
    found = rows(figures)
    nets = {f"mobilenet_v2 float16 batch {n}": mobilenet_v2(figures, n) | {"goal_us": g} for n, g in NET_GOALS.items()}
    console = Console(width=180)
    if arguments.rows:
        console.print(details(found))
    console.print(summary(found))
    for name, net in nets.items():
        console.print(f"{name}: {net['us']} us in {net['launches']} launches, goal {net['goal_us']:.0f}; "
                      f"layer by layer {net['separate_us']} us")  # fmt: skip
    argued = json.loads(FILE.read_text())["argued"] if FILE.exists() else []
    low = unargued(found, argued)
    for line in low:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.update:
        FILE.write_text(document(found, nets, argued))
    sys.exit(bool(low))


if __name__ == "__main__":
    main()
