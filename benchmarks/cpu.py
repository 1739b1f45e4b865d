"""The NumPy fallback beside onnxruntime, layer by layer and for the whole MobileNetV2.

    python benchmarks/cpu.py [--threads 1 2] [--rounds 15] [--only TEXT]

Every thread count is a process of its own: BLAS reads its number of threads when it is loaded. Within a process the
contestants take turns, round by round, so that other programs on the machine disturb all of them alike; a row shows
medians over the quieter half of the rounds: of processor time with one thread, of wall-clock time with several. Each
contestant has its own layout: onnxruntime gets NCHW arrays. Calls are complete: output allocation, padding, bias.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean, median

PER_ROUND = 0.03  # seconds that one contestant runs in one round
BUSY = 0.15  # share of the machine that other programs may use before the table warns


@dataclass(frozen=True)
class Layer:
    """One convolution of MobileNet or ResNet, batch 1, float32."""

    kind: str
    name: str
    channels: int
    filters: int
    size: int
    k: int = 3
    stride: int = 1
    groups: int = 1


LAYERS = (
    Layer("stem", "3x3 s2 3>32 @224", 3, 32, 224, stride=2),
    Layer("depthwise", "3x3 32 @112", 32, 32, 112, groups=32),
    Layer("depthwise", "3x3 s2 96 @112", 96, 96, 112, stride=2, groups=96),
    Layer("depthwise", "3x3 144 @56", 144, 144, 56, groups=144),
    Layer("depthwise", "3x3 192 @28", 192, 192, 28, groups=192),
    Layer("depthwise", "3x3 384 @14", 384, 384, 14, groups=384),
    Layer("depthwise", "3x3 960 @7", 960, 960, 7, groups=960),
    Layer("pointwise", "32>16 @112", 32, 16, 112, k=1),
    Layer("pointwise", "24>144 @56", 24, 144, 56, k=1),
    Layer("pointwise", "96>576 @14", 96, 576, 14, k=1),
    Layer("pointwise", "320>1280 @7", 320, 1280, 7, k=1),
    Layer("grouped", "3x3 g32 128 @56", 128, 128, 56, groups=32),
    Layer("dense", "3x3 64 @56", 64, 64, 56),
    Layer("dense", "3x3 128 @28", 128, 128, 28),
    Layer("dense", "3x3 256 @14", 256, 256, 14),
    Layer("dense", "3x3 512 @7", 512, 512, 7),
)


def main() -> None:
    """Print one table per thread count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="rows whose kind or name contains this")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_all(args.child, args.rounds, args.only)
        return
    for threads in args.threads:
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, __file__, "--child", str(threads), f"--rounds={args.rounds}", f"--only={args.only}"]
        child = subprocess.Popen(
            command, env=os.environ | dict.fromkeys(names, str(threads)), stdout=subprocess.PIPE, text=True
        )
        assert child.stdout
        show(threads, [json.loads(line) for line in child.stdout])
        if child.wait():
            sys.exit(child.returncode)


def show(threads: int, rows: list[dict[str, object]]) -> None:
    """One table; the rows are printed by :func:`measure_all`."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"float32, batch 1, {threads} thread{'s' * (threads > 1)}: ms, and ratio to onnxruntime")
    for column in ("layer", "onnxruntime", "NHWC", "ratio", "NCHW", "ratio", "strategy", "extra KiB"):
        table.add_column(column, justify="left" if column in ("layer", "strategy") else "right")
    ratios: dict[str, list[float]] = {}
    busy = 0.0
    for row in rows:
        ort, nhwc, nchw = (row["ms"].get(k) for k in ("onnxruntime", "NHWC", "NCHW"))  # type: ignore[attr-defined]
        ratios.setdefault(str(row["kind"]), []).append(nhwc / ort)
        cells = [f"{nchw:.3f}", f"{nchw / ort:.2f}"] if nchw else ["", ""]
        label = f"{row['kind']} {row['name']}"
        table.add_row(
            label, f"{ort:.3f}", f"{nhwc:.3f}", f"{nhwc / ort:.2f}", *cells, str(row["strategy"]), str(row["extra"])
        )
        busy = max(busy, float(row["foreign"]))  # type: ignore[arg-type]
    console = Console(width=120)
    console.print(table)
    for kind, values in ratios.items():
        console.print(f"{kind}: geometric mean {geometric_mean(values):.2f}, worst {max(values):.2f}")
    if busy > BUSY:
        console.print(f"[yellow]Other programs used up to {busy:.0%} of the machine: ratios are less certain.[/yellow]")


def measure_all(threads: int, rounds: int, only: str) -> None:
    """Measure all rows; one line of JSON each."""
    # A single thread's processor time leaves out the time in which other programs had the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    for layer in LAYERS:
        if only in f"{layer.kind} {layer.name}":
            report(layer.kind, layer.name, *contest(layer, threads), rounds, clock)
    if only in "net MobileNetV2 224":
        net = whole_net(threads)
        if net:
            report("net", "MobileNetV2 224", *net, rounds, clock)


def report(
    kind: str,
    name: str,
    runs: dict[str, Callable[[], object]],
    strategy: str,
    extra: int,
    rounds: int,
    clock: Callable[[], float],
) -> None:
    """Interleave the contestants and print their medians."""
    repeats = {}
    for contestant, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[contestant] = max(2, int(PER_ROUND / (time.perf_counter() - start)))
    laps: list[tuple[float, dict[str, float]]] = []  # of each round: what others used, and each contestant's median
    for _ in range(rounds):
        before, own, wall = machine(), time.process_time(), time.perf_counter()
        times = {contestant: lap(run, repeats[contestant], clock) * 1e3 for contestant, run in runs.items()}
        elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
        foreign = (machine() - before - (time.process_time() - own)) / elapsed
        laps.append((max(0.0, foreign), times))
    laps.sort(key=lambda lap: lap[0])
    quiet = laps[: (rounds + 1) // 2]
    row = {"kind": kind, "name": name, "ms": {c: median(times[c] for _, times in quiet) for c in runs}}
    print(json.dumps(row | {"strategy": strategy, "extra": extra >> 10, "foreign": quiet[-1][0]}), flush=True)


def lap(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Median seconds of some calls."""
    marks = [clock()]
    for _ in range(repeats):
        run()
        marks.append(clock())
    return median(b - a for a, b in pairwise(marks))


def machine() -> float:
    """Seconds of processor time used by all programs since the machine started; 0 where the system does not say."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, steal = map(int, statistics.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def contest(layer: Layer, threads: int) -> tuple[dict[str, Callable[[], object]], str, int]:
    """The contestants of a layer, the strategy and the extra memory in bytes of NHWC; results are compared first."""
    import numpy as np

    import gpu_conv
    from gpu_conv import arguments, cpu

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.channels, layer.size, layer.size), dtype=np.float32)
    w = rng.standard_normal((layer.filters, layer.channels // layer.groups, layer.k, layer.k), dtype=np.float32)
    bias = rng.standard_normal(layer.filters, dtype=np.float32)
    options = {"strides": layer.stride, "padding": layer.k // 2, "groups": layer.groups}
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    nchw, nhwc = gpu_conv.Conv(w, bias, **options), gpu_conv.Conv(w, bias, input_layout="nhwc", **options)
    session = onnx_session(onnx_conv(layer, w, bias), threads)
    wanted = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(nchw(x), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nhwc(last).transpose(0, 3, 1, 2), wanted, rtol=1e-4, atol=1e-4)
    call = arguments.prepare(last, w, bias, input_layout="nhwc", **options)
    prepared = cpu.prepare(call.problem, call.operands["w"], bias)
    runs = {
        "onnxruntime": lambda: session.run(None, {"x": x}),
        "NHWC": lambda: nhwc(last),
        "NCHW": lambda: nchw(x),
    }
    return runs, prepared.name, prepared.workspace_bytes


def onnx_conv(layer: Layer, w: object, bias: object) -> bytes:
    """A model of one convolution."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], pads=[layer.k // 2] * 4, strides=[layer.stride] * 2, group=layer.groups
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, layer.channels, layer.size, layer.size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def onnx_session(model: bytes, threads: int):  # type: ignore[no-untyped-def]
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def whole_net(threads: int) -> tuple[dict[str, Callable[[], object]], str, int] | None:
    """MobileNetV2 with its original weights through ``gpu_conv.onnx``; None where they cannot be had."""
    import numpy as np

    import gpu_conv.models
    import gpu_conv.onnx

    try:
        path = gpu_conv.models.path("mobilenet_v2")
    except OSError as error:
        print(f"MobileNetV2 is left out: {error}", file=sys.stderr)
        return None
    model = gpu_conv.onnx.load(path)
    session = onnx_session(path.read_bytes(), threads)
    name = model.inputs[0].name
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    wanted = session.run(None, {name: x})[0]
    (found,) = model({name: x}).values()
    np.testing.assert_allclose(found, wanted, atol=2e-4 * float(np.abs(wanted).max()))
    runs = {"onnxruntime": lambda: session.run(None, {name: x}), "NHWC": lambda: model({name: x})}
    return runs, "gpu_conv.onnx", 0


if __name__ == "__main__":
    main()
