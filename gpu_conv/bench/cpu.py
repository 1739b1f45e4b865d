"""The NumPy engine beside the CPU libraries that are installed: layers, and the whole MobileNetV2; batch 1, float32.

Every thread count is a process of its own: BLAS reads its number of threads when it is loaded. Within a process the
contestants take turns, round by round, so that other programs on the machine disturb all of them alike; a row holds
medians over the quieter half of the rounds: of processor time with one thread, of wall-clock time with several. Each
contestant has its own layout: the others get NCHW arrays. Calls are complete: output allocation, padding, bias.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from . import LAYERS, Layer

PER_ROUND = 0.03  # seconds that one contestant runs in one round
# Seconds before each turn where there are several threads: those of the contestant before wait for work, busily. On two
# processors onnxruntime's MobileNetV2 took 8.2 ms right after OpenBLAS, 2.2 after this pause, or alone.
SETTLE = 0.1
NET = "net MobileNetV2 224"

Row = dict[str, Any]
Runs = dict[str, Callable[[], object]]


def rows(threads: Sequence[int], rounds: int, only: str, peers: Sequence[str]) -> Iterator[Row]:
    """Measure in one process per thread count; a row as soon as it is done.

    Args:
        threads: of BLAS and of the peers.
        rounds: in which the contestants take turns.
        only: rows whose kind and name contain this.
        peers: of :data:`PEERS`; what is not installed is left out.

    Yields:
        ``threads``, ``kind``, ``name``, the milliseconds ``ms`` of each contestant, the ``strategy`` of the NumPy
        engine, its ``extra`` memory in KiB, its ``blas``, and ``foreign``, the largest share of the machine that others
        used.

    Raises:
        RuntimeError: a process failed; it has said why on standard error.
    """
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    for count in threads:
        command = [sys.executable, "-m", __name__, json.dumps([count, rounds, only, list(peers)])]
        environment = os.environ | dict.fromkeys(names, str(count)) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            for line in child.stdout:
                yield {"threads": count, **json.loads(line)}
        if child.returncode:
            raise RuntimeError(f"the measurement with {count} threads ended with status {child.returncode}")


def measure(threads: int, rounds: int, only: str, peers: Sequence[str]) -> Iterator[Row]:
    """Measure in this process."""
    from gpu_conv.cpu import gemm

    blas = gemm.blas()
    # A single thread's processor time leaves out the time in which other programs had the core.
    clock, settle = (time.thread_time, 0.0) if threads == 1 else (time.perf_counter, SETTLE)
    for layer in LAYERS:
        if only in str(layer):
            runs, strategy, extra = contest(layer, threads, peers)
            row = {"kind": layer.kind, "name": layer.name, **interleaved(runs, rounds, clock, settle)}
            yield row | {"strategy": strategy, "extra": extra >> 10, "blas": blas}
    if only in NET and (net := whole_net(threads, peers)):
        row = {"kind": "net", "name": NET.removeprefix("net "), **interleaved(net, rounds, clock, settle)}
        yield row | {"strategy": "gpu_conv.onnx", "extra": 0, "blas": blas}


def interleaved(runs: Runs, rounds: int, clock: Callable[[], float], settle: float = 0.0) -> Row:
    """Medians of contestants that take turns, ``settle`` seconds apart, and what others used of the machine."""
    repeats = {}
    for contestant, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[contestant] = max(2, int(PER_ROUND / (time.perf_counter() - start)))
    laps: list[tuple[float, dict[str, float]]] = []  # of each round: what others used, and each contestant's median
    for _ in range(rounds):
        before, own, wall = _machine(), time.process_time(), time.perf_counter()
        times = {contestant: _lap(run, repeats[contestant], clock, settle) * 1e3 for contestant, run in runs.items()}
        elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
        foreign = (_machine() - before - (time.process_time() - own)) / elapsed
        laps.append((max(0.0, foreign), times))
    laps.sort(key=lambda lap: lap[0])
    quiet = laps[: (rounds + 1) // 2]
    return {"ms": {c: median(times[c] for _, times in quiet) for c in runs}, "foreign": quiet[-1][0]}


def _lap(run: Callable[[], object], repeats: int, clock: Callable[[], float], settle: float) -> float:
    """Median seconds of some calls."""
    time.sleep(settle)
    marks = [clock()]
    for _ in range(repeats):
        run()
        marks.append(clock())
    return median(b - a for a, b in pairwise(marks))


def _machine() -> float:
    """Seconds of processor time used by all programs since the machine started; 0 where the system does not say."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, steal = map(int, statistics.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def contest(layer: Layer, threads: int, peers: Sequence[str]) -> tuple[Runs, str, int]:
    """The contestants of a layer, the strategy and the extra memory in bytes of NHWC; results are compared first."""
    import numpy as np

    import gpu_conv
    from gpu_conv import arguments, cpu
    from gpu_conv.testing import assert_conv_close

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.channels, layer.size, layer.size), dtype=np.float32)
    w = rng.standard_normal((layer.filters, layer.channels // layer.groups, layer.k, layer.k), dtype=np.float32)
    bias = rng.standard_normal(layer.filters, dtype=np.float32)
    options: Any = {"strides": layer.stride, "padding": layer.k // 2, "groups": layer.groups}
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    nchw, nhwc = gpu_conv.Conv(w, bias, **options), gpu_conv.Conv(w, bias, input_layout="nhwc", **options)
    runs: Runs = {}
    for peer in peers:
        try:
            run = PEERS[peer](layer, x, w, bias, threads)
        except ImportError:
            continue
        if run:
            runs[peer] = run
    ours: Runs = {"NHWC": lambda: nhwc(last), "NCHW": lambda: nchw(x)}
    shape = nchw(x).shape
    for name, run in (runs | ours).items():
        got = np.asarray(run())
        got = got.transpose(0, 3, 1, 2) if name == "NHWC" else got.reshape(shape)
        try:
            assert_conv_close(got, x, w, bias, **options)
        except AssertionError as error:
            raise AssertionError(f"{layer}: {name}: {error}") from error
    call = arguments.prepare(last, w, bias, input_layout="nhwc", **options)
    filters: Any = call.operands["w"]
    prepared = cpu.prepare(call.problem, filters, bias)
    return runs | ours, prepared.name, prepared.workspace_bytes


def _onnxruntime(layer: Layer, x: Any, w: Any, bias: Any, threads: int) -> Callable[[], object]:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], pads=[layer.k // 2] * 4, strides=[layer.stride] * 2, group=layer.groups
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "layer", [value], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = _session(model.SerializeToString(), threads)
    return lambda: session.run(None, {"x": x})[0]


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _torch(layer: Layer, x: Any, w: Any, bias: Any, threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in (x, w, bias)]

    def run() -> object:
        with torch.inference_mode():
            return torch.conv2d(*tensors, layer.stride, layer.k // 2, 1, layer.groups)

    return run


def _scipy(layer: Layer, x: Any, w: Any, bias: Any, threads: int) -> Callable[[], object] | None:
    """``scipy.ndimage`` channel by channel: depthwise layers, the only ones that SciPy has no worse way for."""
    import numpy as np
    from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

    if layer.groups != layer.channels:
        return None
    s = layer.stride

    def run() -> object:
        y = np.empty((1, layer.filters, -(-layer.size // s), -(-layer.size // s)), np.float32)
        for c in range(layer.channels):
            whole = ndimage.correlate(x[0, c], w[c, 0], mode="constant")
            np.add(whole[::s, ::s], bias[c], out=y[0, c])
        return y

    return run


PEERS: dict[str, Callable[..., Callable[[], object] | None]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "scipy": _scipy,
}


def whole_net(threads: int, peers: Sequence[str]) -> Runs | None:
    """MobileNetV2 with its original weights through ``gpu_conv.onnx``; None where they cannot be had."""
    import numpy as np

    try:
        import gpu_conv.models
        import gpu_conv.onnx

        path = gpu_conv.models.path("mobilenet_v2")
        session = _session(path.read_bytes(), threads) if "onnxruntime" in peers else None
    except (ImportError, OSError) as error:
        print(f"MobileNetV2 is left out: {error}", file=sys.stderr)
        return None
    model = gpu_conv.onnx.load(path)
    name = model.inputs[0].name
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    ours: Runs = {"NHWC": lambda: model({name: x})}
    if session is None:
        return ours
    wanted = session.run(None, {name: x})[0]
    (found,) = model({name: x}).values()
    np.testing.assert_allclose(found, wanted, atol=2e-4 * float(np.abs(wanted).max()))
    return {"onnxruntime": lambda: session.run(None, {name: x}), **ours}


if __name__ == "__main__":
    for found in measure(*json.loads(sys.argv[1])):
        print(json.dumps(found), flush=True)
