"""Whole networks through the ONNX runner on CuPy arrays, random weights: milliseconds per call.

    python benchmarks/nets.py --output nets.json [--batches 1 32 256] [--networks shufflenet_v2 ...]

A call from Python, as a user makes it, its host cost included: float32 and float16, step by step and as the replay of a
CUDA graph. Where blocks of convolutions run as one launch each (``blocks`` counts them), the replay without such
launches is timed beside it: it shows whether the model that chose them is right. PyTorch eager runs the convolutions of
the same network, channels-last, batch norm folded, in both types; its time without the host, from the replay of a CUDA
graph, is given too, and the same of ``torch.compile``.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import cupy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from calibrate import environment
from networks import NETWORKS

import gpu_conv.onnx
from gpu_conv.bench.gpu import attempt
from gpu_conv.bench.peers import torch_setup
from gpu_conv.cuda.timing import measure, measure_host
from tests.test_mobilenet import LAYERS


def ours(name: str, batch: int, dtype: str) -> dict[str, Any]:
    """Time of one call of the runner and of one replay, memory of its plan, and the distance from NumPy's answer."""
    proto = NETWORKS[name]()
    x = cupy.random.standard_normal((batch, 3, 224, 224), dtype=cupy.float32)
    want = next(iter(gpu_conv.onnx.load(proto)(cupy.asnumpy(x[:1])).values()))
    result: dict[str, Any] = {}

    def run(key: str, graph: bool) -> gpu_conv.onnx.Model:
        model = gpu_conv.onnx.load(proto, dtype=dtype, graph=graph)
        for _ in range(3):  # planned, captured, replayed
            got = cupy.asnumpy(next(iter(model(x).values()))[:1])
        call = measure_host(lambda: model(x), cupy.cuda.Device().synchronize, budget_s=0.5)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        result.update({key: round(call.us / 1e3, 4), "error": max(error, result.get("error", 0.0))})
        return model

    run("call_ms", graph=False)
    model = run("replay_ms", graph=True)
    (plan,) = model.plans
    result |= {"buffer_mb": round(plan.buffer_bytes / 1e6, 3), "captured": plan.captured}
    if plan.uncaptured:
        result["uncaptured"] = plan.uncaptured
    result["blocks"] = [step.kernel for step in model.profile(x, repeat=1)].count("inverted_residual")
    if result["blocks"]:
        with mock.patch("gpu_conv.families.inverted_residual_model.slower", return_value="one by one"):
            run("replay_one_by_one_ms", graph=True)
    return result


def torch_mobilenet_v2(batch: int, dtype: str, compiled: bool) -> dict[str, Any]:
    """PyTorch on the 52 convolutions, activations and residuals: channels-last, float32 without TF32."""
    torch = torch_setup()
    functional = torch.nn.functional
    place = {"device": "cuda", "dtype": getattr(torch, dtype)}
    weights = [
        (
            torch.randn(o, c // g, k, k, **place).to(memory_format=torch.channels_last),
            torch.randn(o, **place),
        )
        for _, c, o, k, _, g, _, _ in LAYERS
    ]

    def net(x: Any) -> Any:
        block = x
        for (w, b), (_, _, _, k, stride, groups, activation, residual) in zip(weights, LAYERS, strict=True):
            x = functional.conv2d(x, w, b, stride, k // 2, 1, groups)
            if activation:
                x = functional.relu6(x)
            else:  # the projection ends a block
                x = block = x + block if residual else x
        return x.mean((2, 3))

    x = torch.randn(batch, 3, 224, 224, **place).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        call = measure_host(lambda: net(x), torch.cuda.synchronize, budget_s=0.5)
        graph = measure([lambda: net(x)], min_samples=5)
        found = {"call_ms": round(call.us / 1e3, 4), "graph_ms": round(graph.us / 1e3, 4)}
        if compiled:
            fast = torch.compile(net, dynamic=False)
            fast(x)
            found["compiled_graph_ms"] = round(measure([lambda: fast(x)], min_samples=5).us / 1e3, 4)
    return found


def main() -> None:
    """Every network at every batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32, 256])
    default = ["mobilenet_v2", "efficientnet_lite0"]
    parser.add_argument("--networks", nargs="*", default=default, help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile too: it takes a minute")
    arguments = parser.parse_args()
    free = cupy.get_default_memory_pool().free_all_blocks
    result: dict[str, Any] = {"environment": environment(), "nets": []}
    for batch, name, dtype in product(arguments.batches, arguments.networks, arguments.dtypes):
        row = {"net": name, "batch": batch, "dtype": dtype}
        row |= attempt(lambda n=name, b=batch, t=dtype: ours(n, b, t), free)
        if name == "mobilenet_v2":
            row["torch_nhwc"] = attempt(lambda b=batch, t=dtype: torch_mobilenet_v2(b, t, arguments.compile), free)
        result["nets"].append(row)
        print(json.dumps(row), flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
