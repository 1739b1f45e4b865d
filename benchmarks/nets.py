"""Whole networks through the ONNX runner on CuPy arrays, random weights: milliseconds per call, float32.

    python benchmarks/nets.py --output nets.json [--batches 1 32 256] [--networks shufflenet_v2 ...]

A call from Python, as a user makes it, its host cost included. PyTorch eager runs the convolutions of the same network,
channels-last, batch norm folded; its time without the host, from the replay of a CUDA graph, is given too. (CuPy does
not let cuBLAS be captured, and the runner's last layer is a matrix product.)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cupy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import attempt
from calibrate import environment
from networks import NETWORKS
from peers import torch_setup
from timing import measure, measure_host

import gpu_conv.onnx
from tests.test_mobilenet import LAYERS


def ours(name: str, batch: int) -> dict[str, Any]:
    """Time of one call of the runner, and its distance from NumPy's answer."""
    model = gpu_conv.onnx.load(NETWORKS[name]())
    x = cupy.random.standard_normal((batch, 3, 224, 224), dtype=cupy.float32)
    want = next(iter(model(cupy.asnumpy(x[:1])).values()))
    got = cupy.asnumpy(next(iter(model(x).values()))[:1])
    call = measure_host(lambda: model(x), cupy.cuda.Device().synchronize, budget_s=0.5)
    return {"error": float(np.abs(got - want).max() / np.abs(want).max()), "call_ms": round(call.us / 1e3, 4)}


def torch_mobilenet_v2(batch: int) -> dict[str, Any]:
    """PyTorch eager on the 52 convolutions, activations and residuals: channels-last, float32 without TF32."""
    torch = torch_setup()
    functional = torch.nn.functional
    weights = [
        (
            torch.randn(o, c // g, k, k, device="cuda").to(memory_format=torch.channels_last),
            torch.randn(o, device="cuda"),
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

    x = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    with torch.inference_mode():
        call = measure_host(lambda: net(x), torch.cuda.synchronize, budget_s=0.5)
        graph = measure([lambda: net(x)], min_samples=5)
    return {"call_ms": round(call.us / 1e3, 4), "graph_ms": round(graph.us / 1e3, 4)}


def main() -> None:
    """Every network at every batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 32, 256])
    default = ["mobilenet_v2", "efficientnet_lite0"]
    parser.add_argument("--networks", nargs="*", default=default, help=f"of {', '.join(NETWORKS)}")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "nets": []}
    for batch in arguments.batches:
        for name in arguments.networks:
            row = {"net": name, "batch": batch, "dtype": "float32"} | attempt(lambda n=name, b=batch: ours(n, b))
            if name == "mobilenet_v2":
                row["torch_nhwc"] = attempt(lambda b=batch: torch_mobilenet_v2(b))
            result["nets"].append(row)
            print(json.dumps(row), flush=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
