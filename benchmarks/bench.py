"""Layers on the GPU: checked, then timed beside the peers in the same process; one JSON, rewritten after each row.

    python benchmarks/bench.py --output result.json [--calibration calibration.json] [--budget 240]

Every row of ``layers.json`` (the core layers of real models) runs in float16 and float32, NHWC and NCHW, at the
smallest batch that moves 16 MB. Before timing, the first and the last image are compared with PyTorch's float64
convolution.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cupy
from calibrate import environment
from peers import PEERS, Case, from_row, torch_setup
from timing import measure, measure_host, operand_sets

import gpu_conv
from gpu_conv import dispatch, execute

HERE = Path(__file__).parent
ENOUGH_BYTES = 16e6  # below that a launch is over before the memory is busy
UNIT = {"float16": 2.0**-11, "float32": 2.0**-24}
TORCH_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "silu": "silu", "gelu": "gelu"}


@dataclass(frozen=True)
class Layer:
    """One row of ``layers.json`` in one layout, dtype and batch."""

    row: dict[str, Any]
    case: Case
    channels_last: bool

    @property
    def name(self) -> str:
        return f"{self.row['model']} {self.row['layer']}"

    @property
    def activation(self) -> str | None:
        return next((TORCH_ACTIVATIONS[e] for e in self.row["epilogue"] if e != "add"), None)

    @property
    def has_residual(self) -> bool:
        return "add" in self.row["epilogue"]

    def shape(self, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        n = self.case.batch
        return (n, *spatial, channels) if self.channels_last else (n, channels, *spatial)

    def options(self) -> dict[str, Any]:
        case, axes = self.case, "dhw"[3 - len(self.case.spatial) :]
        return {
            "strides": case.strides,
            "padding": tuple((p, 0 if case.causal else p) for p in case.padding),
            "dilations": case.dilations,
            "groups": case.groups,
            "input_layout": f"n{axes}c" if self.channels_last else f"nc{axes}",
            "filter_layout": f"o{axes}i" if self.channels_last else f"oi{axes}",
            "activation": self.activation,
        }


def layers(rows: list[dict[str, Any]], dtypes: list[str], formats: list[str]) -> Iterator[Layer]:
    """The benchmark's cases, every layout and dtype of one row together."""
    for row in rows:
        for dtype in dtypes:
            sizes = [from_row(row, batch, dtype) for batch in row["batches"]]
            case = next((c for c in sizes if c.nbytes >= ENOUGH_BYTES), sizes[-1])
            for layout in formats:
                yield Layer(row, case, layout == "nhwc")


def random(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> cupy.ndarray:
    return (cupy.random.standard_normal(shape, dtype=cupy.float32) * scale).astype(dtype)


class Run:
    """The arrays and the planned layer of one case."""

    def __init__(self, layer: Layer, sets: int) -> None:
        case = self.case = layer.case
        self.layer = layer
        taps = case.channels // case.groups * math.prod(case.kernel)
        depth = case.channels // case.groups
        filter_shape = (
            (case.filters, *case.kernel, depth) if layer.channels_last else (case.filters, depth, *case.kernel)
        )
        self.xs = [random(layer.shape(case.channels, case.spatial), case.dtype) for _ in range(sets)]
        self.w = random(filter_shape, case.dtype, 1 / math.sqrt(taps))
        self.bias = random((case.filters,), case.dtype)
        out = layer.shape(case.filters, case.out_spatial)
        self.ys = [cupy.full(out, cupy.nan, case.dtype) for _ in range(sets)]
        self.residual = random(out, case.dtype) if layer.has_residual else None
        self.conv = gpu_conv.Conv(self.w, self.bias, **layer.options())

    def __call__(self, i: int) -> None:
        self.conv(self.xs[i], residual=self.residual, out=self.ys[i])

    def check(self) -> float:
        """Largest error over the computed tolerance on the first and last image, against PyTorch in float64."""
        torch = torch_setup()
        self(0)
        worst = 0.0
        for image in {0, self.case.batch - 1}:
            got = self._planar(self.ys[0][image : image + 1])
            exact, scale = self._reference(torch, image)
            unit = UNIT[self.case.dtype]
            taps = self.case.channels // self.case.groups * math.prod(self.case.kernel) + 2
            bound = unit * exact.abs() + (2 * math.sqrt(taps) + 12) * 2.0**-24 * (scale + 1) * 1.2 + 6e-8
            error = ((got - exact).abs() / bound).max().item()
            worst = max(worst, math.inf if math.isnan(error) else error)
        return worst

    def _planar(self, array: cupy.ndarray) -> Any:
        """A channels-first float64 PyTorch tensor."""
        import torch

        axes = (0, array.ndim - 1, *range(1, array.ndim - 1)) if self.layer.channels_last else range(array.ndim)
        return torch.from_dlpack(cupy.ascontiguousarray(array.transpose(tuple(axes)).astype(cupy.float64)))

    def _reference(self, torch: Any, image: int) -> tuple[Any, Any]:
        case = self.case
        x, w = self._planar(self.xs[0][image : image + 1]), self._planar(self.w)
        bias = torch.from_dlpack(self.bias.astype(cupy.float64))
        rank = len(case.spatial)
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        length = case.out_spatial[-1]

        def conv(x: Any, w: Any, bias: Any) -> Any:
            y = function(x, w, bias, case.strides, case.padding, case.dilations, case.groups)
            return y[..., :length]

        exact, scale = conv(x, w, bias), conv(x.abs(), w.abs(), bias.abs())
        if self.residual is not None:
            residual = self._planar(self.residual[image : image + 1])
            exact, scale = exact + residual, scale + residual.abs()
        if self.layer.activation:
            exact = getattr(torch.nn.functional, self.layer.activation)(exact)
        return exact, scale


def describe(layer: Layer) -> dict[str, Any]:
    case = layer.case
    return {
        "layer": layer.name,
        "class": layer.row["cls"],
        "rank": layer.row["nd"],
        "batch": case.batch,
        "dtype": case.dtype,
        "layout": "nhwc" if layer.channels_last else "nchw",
        "epilogue": layer.row["epilogue"],
    }


def ours(layer: Layer, copy_bandwidth: float) -> dict[str, Any]:
    """Check, time, and relate to the roof."""
    sets = operand_sets(layer.case.nbytes, most=64)
    run = Run(layer, sets)
    error = run.check()
    problem = gpu_conv.explain(run.xs[0], run.w, run.bias, **layer.options()).problem
    launch = dispatch.plan(problem, execute.target("cuda"))
    entry = {
        "kernel": dispatch.select(problem, execute.target("cuda")).name,
        "launch": launch.name_expression,
        "grid": launch.grid,
        "block": launch.block,
        "error_over_tolerance": round(error, 3),
    }
    moved = problem.bytes + (run.residual.nbytes if run.residual is not None else 0)
    timing = measure([lambda i=i: run(i) for i in range(sets)])  # type: ignore[misc]
    host = measure_host(lambda: run(0), cupy.cuda.Device().synchronize, budget_s=0.01, min_samples=3)
    return {
        **entry,
        **timing.as_dict(),
        "bytes": moved,
        "gb_per_s": round(moved / timing.us / 1e3, 1),
        "of_copy": round(moved / timing.us * 1e6 / copy_bandwidth, 4) if copy_bandwidth else None,
        "tflops": round(problem.flops / timing.us / 1e6, 3),
        "call_us": round(host.us, 2),
    }


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row's result, or its error: one bad row must not end a run that cannot be repeated cheaply."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc(limit=-3)[-600:]}
    finally:
        cupy.get_default_memory_pool().free_all_blocks()


def bench_row(layer: Layer, copy_bandwidth: float, peers: list[str]) -> dict[str, Any]:
    entry = describe(layer) | attempt(lambda: ours(layer, copy_bandwidth))
    suffix = "nhwc" if layer.channels_last else "nchw"
    wanted = [p for p in peers if p.endswith(suffix) or (p.endswith("matmul") and layer.channels_last)]
    entry["peers"] = {}
    for name in wanted:
        if name.endswith("matmul") and not layer.case.is_pointwise:
            continue
        entry["peers"][name] = attempt(
            lambda name=name: PEERS[name](layer.case, graph=True, budget_s=0.02).as_dict()  # type: ignore[misc]
        )
    return entry


def line(entry: dict[str, Any]) -> str:
    head = f"{entry['layer'][:62]:<62} b{entry['batch']:<4}{entry['dtype'][5:]:<3}{entry['layout']:<5}"
    if "error" in entry:
        return f"{head} {entry['error'][:150]}"
    peers = " ".join(f"{k.split('_')[1]} {v['us']:.1f}" for k, v in entry["peers"].items() if "us" in v)
    share = f"{100 * (entry['of_copy'] or 0):.0f}%"
    wrong = "" if entry["error_over_tolerance"] <= 1 else f" WRONG {entry['error_over_tolerance']}"
    return f"{head} {entry['kernel']:<17}{entry['us']:>9.1f} us {share:>5} call {entry['call_us']:.1f} | {peers}{wrong}"


def main() -> None:
    """Run the suite within the time budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=Path, default=HERE / "layers.json")
    parser.add_argument("--calibration", type=Path, help="result of calibrate.py: the copy bandwidth comes from there")
    parser.add_argument("--classes", nargs="*", help="only these classes: depthwise pointwise grouped dense ...")
    parser.add_argument("--dtypes", nargs="*", default=["float16", "float32"])
    parser.add_argument("--layouts", nargs="*", default=["nhwc", "nchw"])
    parser.add_argument("--peers", nargs="*", default=["torch_nhwc", "torch_nchw", "torch_matmul"], choices=list(PEERS))
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds; rows that do not fit are listed")
    arguments = parser.parse_args()

    rows = [
        r for r in json.loads(arguments.layers.read_text()) if not arguments.classes or r["cls"] in arguments.classes
    ]
    copy = (
        1e9 * json.loads(arguments.calibration.read_text())["copy"]["copy_gb_per_s"] if arguments.calibration else 0.0
    )
    result: dict[str, Any] = {"environment": environment(), "copy_bytes_per_s": copy, "rows": [], "not_run": []}
    cupy.random.seed(0)
    start = time.monotonic()
    for layer in layers(rows, arguments.dtypes, arguments.layouts):
        if time.monotonic() - start > arguments.budget:
            result["not_run"].append(describe(layer))
            continue
        entry = bench_row(layer, copy, arguments.peers)
        result["rows"].append(entry)
        print(line(entry), flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['rows'])} rows, {len(result['not_run'])} not run, {time.monotonic() - start:.0f} s")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
