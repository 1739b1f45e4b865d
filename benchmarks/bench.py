"""Layers on the GPU: checked, then timed beside the peers in the same process; one JSON, rewritten after each row.

    python benchmarks/bench.py --output result.json [--calibration calibration.json] [--budget 240]
    python benchmarks/bench.py --output forced.json --kernel wgmma --classes pointwise dense --dtypes float16

Every row of ``layers.json`` (the core layers of real models) runs in float16 and float32, NHWC and NCHW, at the
smallest batch that moves 16 MB. Before timing, the first and the last image are compared with PyTorch's float64
convolution. ``--kernel`` forces one row of the dispatch table; the rows that it refuses say why.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cupy

sys.path.insert(0, str(Path(__file__).parent.parent))

from calibrate import environment

from gpu_conv.bench.gpu import ENOUGH_BYTES, Device, GpuLayer, Run, row
from gpu_conv.bench.peers import PEERS, from_row, torch_setup

HERE = Path(__file__).parent
UNIT = {"float16": 2.0**-11, "float32": 2.0**-24}
TORCH_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "silu": "silu", "gelu": "gelu"}


def layers(rows: list[dict[str, Any]], dtypes: list[str], formats: list[str], kernel: str | None) -> Iterator[GpuLayer]:
    """The benchmark's cases, every layout and dtype of one row together."""
    for r in rows:
        activation = next((TORCH_ACTIVATIONS[e] for e in r["epilogue"] if e != "add"), None)
        for dtype in dtypes:
            sizes = [from_row(r, batch, dtype) for batch in r["batches"]]
            case = next((c for c in sizes if c.nbytes >= ENOUGH_BYTES), sizes[-1])
            for layout in formats:
                name = f"{r['model']} {r['layer']}"
                yield GpuLayer(name, r["cls"], case, layout == "nhwc", activation, "add" in r["epilogue"], kernel)


def check(run: Run) -> float:
    """Largest error over the computed tolerance on the first and last image, against PyTorch in float64."""
    torch, case = torch_setup(), run.layer.case
    run(0)
    worst = 0.0
    for image in {0, case.batch - 1}:
        got = _planar(run, run.ys[0][image : image + 1])
        exact, scale = _reference(run, torch, image)
        unit = UNIT[case.dtype]
        taps = case.channels // case.groups * math.prod(case.kernel) + 2
        bound = unit * exact.abs() + (2 * math.sqrt(taps) + 12) * 2.0**-24 * (scale + 1) * 1.2 + 6e-8
        error = ((got - exact).abs() / bound).max().item()
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def _planar(run: Run, array: cupy.ndarray) -> Any:
    """A channels-first float64 PyTorch tensor."""
    import torch

    axes = (0, array.ndim - 1, *range(1, array.ndim - 1)) if run.layer.channels_last else range(array.ndim)
    return torch.from_dlpack(cupy.ascontiguousarray(array.transpose(tuple(axes)).astype(cupy.float64)))


def _reference(run: Run, torch: Any, image: int) -> tuple[Any, Any]:
    case = run.layer.case
    x, w = _planar(run, run.xs[0][image : image + 1]), _planar(run, run.w)
    bias = torch.from_dlpack(run.bias.astype(cupy.float64))
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[len(case.spatial) - 1]
    length = case.out_spatial[-1]

    def conv(x: Any, w: Any, bias: Any) -> Any:
        y = function(x, w, bias, case.strides, case.padding, case.dilations, case.groups)
        return y[..., :length]

    exact, scale = conv(x, w, bias), conv(x.abs(), w.abs(), bias.abs())
    if run.residual is not None:
        residual = _planar(run, run.residual[image : image + 1])
        exact, scale = exact + residual, scale + residual.abs()
    if run.layer.activation:
        exact = getattr(torch.nn.functional, run.layer.activation)(exact)
    return exact, scale


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
    parser.add_argument("--kernel", help="force this row of the dispatch table")
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
    device = Device()
    start = time.monotonic()
    for layer in layers(rows, arguments.dtypes, arguments.layouts, arguments.kernel):
        if time.monotonic() - start > arguments.budget:
            result["not_run"].append(layer.describe())
            continue
        entry = row(layer, device, arguments.peers, copy, check)
        result["rows"].append(entry)
        print(line(entry), flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result['rows'])} rows, {len(result['not_run'])} not run, {time.monotonic() - start:.0f} s")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
