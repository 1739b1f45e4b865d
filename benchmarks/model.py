"""A model of times on an H100. What it says is a prediction: from counts and from the models that choose tiles.

Kernels whose family has a model of its own (products, tiles, inverted residuals) take what that says. For the others
the counts of ``static.json`` become times of device memory, cache, issue, arithmetic and shared memory; what binds and
a part of the rest add up. Rates of the machine are those of ``results/h100/calibration.json``; the numbers below are
fitted to ``results/h100/layers.json``, which ``predicted.py`` compares with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

from gpu_conv.families import implicit_gemm, pointwise, pointwise_model, tile, tile_model, wgmma, wgmma_model
from gpu_conv.launch import Launch, Target
from gpu_conv.problem import ConvProblem

RESULTS = Path(__file__).parent / "results/h100"
_MEASURED = json.loads((RESULTS / "calibration.json").read_text())
COPY = 1e9 * _MEASURED["copy"]["copy_gb_per_s"]  # bytes read and written per second
_INSTRUCTIONS = {name: 1e12 * _MEASURED["instructions"][f"{name}_tflop_per_s"] for name in ("mma_f16", "ffma")}
NODE = _MEASURED["graph"]["21_nodes_1x32"]["us_per_node"]  # microseconds of a launch in a graph

# A copy of 8 to 256 MB takes its bytes at full speed and this many microseconds more, the launch included.
START = 1.8
CLOCK = 1.755e9  # that the families' models count with
_BOOST = 1.98e9  # at which the calibration and the layers were measured
_SECOND = 0.1  # how much of what does not bind adds to what binds
_TAIL = 0.2  # power of whole waves over waves
_CACHE = 128  # bytes of requests that a multiprocessor's first-level cache serves per clock
_SHARED = 0.5  # wavefronts of shared memory per clock
# Issue slots used of those there are, while nothing else binds: what latencies leave.
_ISSUE = {
    "depthwise": 0.43,
    "depthwise_toeplitz": 0.5,
    "depthwise_toeplitz_tall": 0.9,
    "depthwise_nhwc": 0.6,
    "depthwise_nhwc_tile": 0.6,
    "depthwise_nchw": 0.55,
    "depthwise_nchw_tile": 0.4,
    "depthwise_ncw": 0.9,
    "conv_stem": 0.6,
    "depthwise_nhwc_mma": 0.4,
    "depthwise_nhwc_toeplitz": 0.5,  # that of depthwise_toeplitz: no GPU has timed it
}
_DIRECT = 3e12  # FLOP per second of the kernel ``direct``: 1.7 to 5.3 were measured


def predicted_us(problem: ConvProblem, launch: Launch, target: Target, row: Mapping[str, Any]) -> float:
    """Microseconds of a launch.

    Args:
        problem, launch, target: what runs where.
        row: its figures in ``static.json``, or those of a layer that is like it but for batch and channels.
    """
    if launch.kernel in ("pointwise", "implicit_gemm"):
        demand = (pointwise if launch.kernel == "pointwise" else implicit_gemm).demand_of(problem)
        return NODE + 1e6 / CLOCK * pointwise_model.clocks(demand, pointwise_model.choose(demand, target), target)
    if launch.kernel == "wgmma":
        return NODE + 1e6 / CLOCK * wgmma_model.fastest(wgmma.demand_of(problem), target)
    if launch.kernel == "conv_tile":
        demand = tile.demand_of(problem)
        best = tile_model.choose(demand, target)
        return NODE + 1e6 / CLOCK * tile_model.clocks(demand, best, target, demand.blocks(best, target))
    if not row.get("slots"):
        return START + 1e6 * max(problem.bytes / COPY, problem.flops / _DIRECT)
    times = terms(problem, launch, target, row).values()
    waves = prod(launch.grid) / (target.multiprocessors * row["blocks"])
    return START + 1e6 * (ceil(waves) / waves) ** _TAIL * (max(times) + _SECOND * (sum(times) - max(times)))


def terms(problem: ConvProblem, launch: Launch, target: Target, row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that each part of the machine is busy, by name."""
    outputs, clocks = problem.y.size, target.multiprocessors * _BOOST
    return {
        "memory": problem.bytes * row["dram"] / COPY,
        "cache": problem.bytes * row["l2"] / (clocks * _CACHE),
        "issue": outputs * row["slots"] / (128 * clocks * _ISSUE[launch.kernel]),
        "ffma": outputs * 2 * row["ffma"] / _INSTRUCTIONS["ffma"],
        "mma": outputs * 2 * row["mma"] / _INSTRUCTIONS["mma_f16"],
        "shared": outputs * row["shared"] / (clocks * _SHARED),
    }


def floor_us(problem: ConvProblem) -> tuple[float, str]:
    """The least time, and what takes it: every byte moved once, or every product that meets no padding computed.

    Depthwise products count on the ordinary cores, others of 16-bit types on the tensor cores.
    """
    ordinary = problem.is_depthwise or problem.x.dtype == "float32"
    rate = _INSTRUCTIONS["ffma" if ordinary else "mma_f16"]
    memory, arithmetic = 1e6 * problem.bytes / COPY, 2e6 * _products(problem) / rate
    return max((memory, "memory"), (arithmetic, "arithmetic"))


def _products(p: ConvProblem) -> int:
    """Without taps in the padding."""
    axes = zip(p.in_spatial, p.out_spatial, p.filter, p.strides, p.padding, p.dilations, strict=True)
    found = p.batch * p.out_channels * p.in_per_group
    for size, out, taps, step, (low, _), dilation in axes:
        found *= sum(0 <= q * step - low + k * dilation < size for k in range(taps) for q in range(out))
    return found
