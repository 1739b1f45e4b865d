"""What the kernels do on MobileNetV2's convolutions, counted in the emulator: one row per family, dtype and layout.

    python benchmarks/emulated.py [--arch sm_90a] [--json OUT]

Registers and occupancy are those of the compiler (static), everything else is counted while the PTX of the distinct
layers runs at batch 1, full size. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gpu_conv import dispatch, execute
from gpu_conv.arguments import Call, prepare
from gpu_conv.cuda.compiler import compile_launch
from gpu_conv.cuda.resources import occupancy
from gpu_conv.emulator import Emulator

# (expansion, output channels, repeats, stride) of the inverted residual blocks, from the paper's table 2.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
COLUMNS = (
    "family", "layers", "registers", "occupancy", "instructions/output", "load sectors/request",
    "store sectors/request", "bank conflicts", "DRAM/ideal",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One convolution of the net, as :func:`gpu_conv.conv2d` takes it."""

    size: int
    channels: int
    filters: int
    k: int
    stride: int
    groups: int

    def call(self, dtype: str, last: bool) -> Call:
        """Random arrays."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, self.channels, self.size, self.size)).astype(dtype)
        w = rng.standard_normal((self.filters, self.channels // self.groups, self.k, self.k)).astype(dtype)
        layouts = {}
        if last:
            x, w = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, w))
            layouts = {"input_layout": "nhwc", "filter_layout": "ohwi"}
        bias = rng.standard_normal(self.filters).astype(np.float32)
        options = {"strides": self.stride, "padding": self.k // 2, "groups": self.groups, "activation": "relu6"}
        return prepare(x, w, bias, **options, **layouts)


def layers() -> list[Layer]:
    """The distinct convolutions of MobileNetV2 at 224x224."""
    found = [Layer(224, 3, 32, 3, 2, 1)]
    size, channels = 112, 32
    for expansion, out, repeats, first in BLOCKS:
        for i in range(repeats):
            stride, hidden = first if i == 0 else 1, channels * expansion
            if expansion > 1:
                found.append(Layer(size, channels, hidden, 1, 1, 1))
            found.append(Layer(size, hidden, hidden, 3, stride, hidden))
            size //= stride
            found.append(Layer(size, hidden, out, 1, 1, 1))
            channels = out
    found.append(Layer(7, 320, 1280, 1, 1, 1))
    return list(dict.fromkeys(found))


def measure(layer: Layer, dtype: str, last: bool, arch: str) -> dict[str, float | str]:
    """Static and emulated figures of one layer."""
    call = layer.call(dtype, last)
    launch = dispatch.plan(call.problem, execute.target("emulator", arch), None)
    compiled = compile_launch(launch, arch)
    resident = occupancy(arch, launch.threads, compiled.registers, compiled.shared_bytes + launch.shared_bytes)
    counters = Emulator(arch).run(launch, call.operands).counters
    return {
        "family": launch.kernel,
        "registers": compiled.registers,
        "occupancy": resident.fraction,
        "instructions": counters.thread_instructions,
        "outputs": call.problem.y.size,
        "load": counters.load_sectors_per_request,
        "store": counters.store_sectors_per_request,
        "conflicts": counters.bank_conflict_factor,
        "bytes": counters.bytes_read + counters.bytes_written,
        "ideal": call.problem.bytes,
    }


def summary(rows: list[dict[str, float | str]]) -> list[str]:
    """One line of the table: ranges over the layers, totals for what adds up."""

    def span(key: str, digits: int) -> str:
        low, high = (f"{f(float(row[key]) for row in rows):.{digits}f}" for f in (min, max))
        return low if low == high else f"{low}-{high}"

    def ratio(over: str, under: str) -> str:
        return f"{sum(float(row[over]) for row in rows) / sum(float(row[under]) for row in rows):.2f}"

    return [
        str(len(rows)), span("registers", 0), span("occupancy", 2), ratio("instructions", "outputs"),
        span("load", 1), span("store", 1), span("conflicts", 2), ratio("bytes", "ideal"),
    ]  # fmt: skip


def main() -> None:
    """Print the table; with ``--json`` also write every layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table = Table(*COLUMNS, title=f"MobileNetV2, batch 1, {args.arch}: static and emulated")
    everything = []
    for dtype, last in product(("float16", "float32"), (True, False)):
        rows = [measure(layer, dtype, last, args.arch) for layer in layers()]
        everything += [{"dtype": dtype, "layout": "nhwc" if last else "nchw", **row} for row in rows]
        for family in sorted({str(row["family"]) for row in rows}):
            label = f"{family} {dtype} {'nhwc' if last else 'nchw'}"
            table.add_row(label, *summary([row for row in rows if row["family"] == family]))
    Console(width=160).print(table)
    if args.json:
        args.json.write_text(json.dumps({"arch": args.arch, "layers": everything}, indent=1) + "\n")


if __name__ == "__main__":
    main()
