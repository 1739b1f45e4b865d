"""Transposed layers of decoders beside the convolution with as many products, whose gradient they are.

    python benchmarks/decoders.py [--output decoders.json] [--batch 1]
    python benchmarks/decoders.py --predicted --batch 32  # an H100's times by the model of predicted.py, no GPU

Stride 2, channels last, float32 and, on a GPU, float16. On NumPy arrays in turns and in processor time; where CuPy
finds a GPU on its arrays: cold L2, launches hidden by CUDA graphs. The aim is a ratio of at most 1.3.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

import gpu_conv
from gpu_conv.bench.cpu import interleaved
from gpu_conv.problem import ConvProblem

Call = Callable[[], object]


@dataclass(frozen=True)
class Decoder:
    """A transposed layer: channels in and out, rows of its input, filter, padding and output padding."""

    channels: int
    filters: int
    size: int
    k: int
    padding: int = 0
    output_padding: int = 0

    def calls(self, xp: Any, dtype: str, batch: int) -> tuple[Call, Call]:
        """The layer and the ordinary convolution, on arrays of their own."""
        small = (batch, self.size, self.size, self.channels)
        large = (batch, 2 * self.size, 2 * self.size, self.filters)
        shape = (self.channels, self.filters, self.k, self.k)
        random = xp.random.default_rng(0)
        x, y, w = (random.standard_normal(s, dtype=np.float32).astype(dtype) for s in (small, large, shape))
        options = {"strides": 2, "padding": self.padding, "input_layout": "nhwc"}
        up = {"output_padding": self.output_padding, **options}
        out, back = xp.empty(large, dtype), xp.empty(small, dtype)
        return (
            lambda: gpu_conv.conv_transpose2d(x, w, out=out, **up),
            lambda: gpu_conv.conv2d(y, w, out=back, **options),
        )


LAYERS = (
    Decoder(512, 256, 14, 4, padding=1),
    Decoder(256, 128, 28, 4, padding=1),
    Decoder(128, 64, 56, 4, padding=1),
    Decoder(256, 128, 28, 2),
    Decoder(64, 32, 112, 2),
    Decoder(128, 64, 56, 3, padding=1, output_padding=1),
    Decoder(64, 32, 112, 3, padding=1, output_padding=1),
)


def on_numpy(layer: Decoder, dtype: str, batch: int) -> dict[str, float]:
    """Milliseconds of both, in turns."""
    transposed, forward = layer.calls(np, dtype, batch)
    row = interleaved({"transposed": transposed, "forward": forward}, 9, time.thread_time)
    return {name: round(ms, 4) for name, ms in row["ms"].items()}


def on_cupy(layer: Decoder, dtype: str, batch: int) -> dict[str, float]:
    """Milliseconds of both, each over operands that exceed the L2 cache."""
    import cupy

    from gpu_conv.cuda.timing import measure, operand_sets

    moved = batch * layer.size**2 * (layer.channels + 4 * layer.filters) * np.dtype(dtype).itemsize
    sets = [layer.calls(cupy, dtype, batch) for _ in range(operand_sets(moved, most=16))]
    both = zip(("transposed", "forward"), zip(*sets, strict=True), strict=True)
    return {name: round(measure(list(calls)).us / 1e3, 5) for name, calls in both}


def predicted(layer: Decoder, dtype: str, batch: int) -> dict[str, float]:
    """Milliseconds of both as a model has them: every launch, one after the other."""
    from model import predicted_us

    from gpu_conv import dispatch, execute
    from gpu_conv.cuda.targets import KNOWN_TARGETS

    found = []

    class Model(execute.Recorder):
        def prepare(self, problem: ConvProblem, kernel: str | None) -> execute.Run:
            steps = dispatch.steps(problem, self.target, kernel)
            pairs = ((step.phase.problem if step.phase else problem, step.launch) for step in steps)
            found.append(round(sum(predicted_us(*pair, self.target, {}) for pair in pairs) / 1e3, 5))
            return lambda operands: None

    with execute.instead(Model(KNOWN_TARGETS["sm_90a"])):
        for call in layer.calls(np, dtype, batch):
            call()
    return dict(zip(("transposed", "forward"), found, strict=True))


def has_gpu() -> bool:
    """Whether CuPy is installed and finds a device."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.cuda.is_available())


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--predicted", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.predicted:
        device, run, title = "model", predicted, "PREDICTED by a model; no GPU ran this"
    else:
        device, run, title = ("cuda", on_cupy, "CuPy") if has_gpu() else ("numpy", on_numpy, "NumPy, one thread")
    table = Table("layer", "dtype", "transposed, ms", "forward, ms", "ratio", title=title)
    for dtype in ("float32",) if device == "numpy" else ("float32", "float16"):
        for layer in LAYERS:
            row = run(layer, dtype, arguments.batch)
            row["ratio"] = round(row["transposed"] / row["forward"], 3)
            rows.append(asdict(layer) | {"dtype": dtype, "batch": arguments.batch} | row)
            name = f"k{layer.k} s2 {layer.channels}>{layer.filters} @{layer.size}"
            table.add_row(name, dtype, *(str(row[key]) for key in ("transposed", "forward", "ratio")))
            if arguments.output:  # after each row: what is cut off has said something
                arguments.output.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n")
    console = Console()
    console.print(table)
    mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    console.print(f"geometric mean {mean:.2f}, worst {max(row['ratio'] for row in rows):.2f}")


if __name__ == "__main__":
    main()
