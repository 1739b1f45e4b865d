"""Cold start: what MobileNetV2 costs before its first result, without a GPU: compilation, planning, loading.

    python benchmarks/cold.py [--arch sm_90a] [--batch 1] [--json OUT]

For float32 and float16: all kernels of the network from an empty cache of compiled kernels, as ``gpu_conv.warmup``
compiles them, one thread per processor; then, in new processes, the same from the cache that this left: reading the
model, planning every convolution, reading the kernels. What a driver adds (loading the machine code) is not in it.
Seconds of the CPU tell more than the clock's on a machine that does other things.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
CACHED = 0.03  # seconds: no compilation is as fast


def seconds(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, and its time by the clock and of the processors."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"clock": round(time.perf_counter() - clock, 3), "cpu": round(time.process_time() - cpu, 3)}


def network(dtype: str, batch: int, arch: str) -> dict[str, Any]:
    """One start in this process: the steps, and how long each kernel took."""
    import numpy as np
    from networks import NETWORKS

    import gpu_conv.onnx
    from gpu_conv.cuda import compiler
    from gpu_conv.execute import Recorder, instead, target

    proto = NETWORKS["mobilenet_v2"]()
    x, recorder = np.zeros((batch, 3, 224, 224), np.float32), Recorder(target("emulator", arch))

    def plan(model: Any) -> list[Any]:
        with instead(recorder):
            model(x)
        return list({launch.name_expression: launch for launch in recorder.launches}.values())

    model, read = seconds(lambda: gpu_conv.onnx.load(proto, device="emulator", dtype=dtype))
    launches, planned = seconds(lambda: plan(model))
    took: dict[str, float] = {}

    def compile_one(launch: Any) -> None:
        start = time.thread_time()
        compiler.compile_launch(launch, arch)
        took[launch.name_expression] = round(time.thread_time() - start, 3)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        _, compiled = seconds(lambda: list(pool.map(compile_one, launches)))
    steps = {"read the model": read, "plan": planned, "kernels": compiled}
    return {"launches": len(recorder.launches), "kernels": len(launches), "steps": steps, "took": took}


def start(dtype: str, batch: int, arch: str, cache: str) -> dict[str, Any]:
    """The same in a process of its own, with a cache folder of its own."""
    command = [sys.executable, __file__, "--arch", arch, "--batch", str(batch), "--process", dtype]
    done = subprocess.run(
        command, env=os.environ | {"GPU_CONV_CACHE": cache}, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Both dtypes, from an empty cache and from a full one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process:
        print(json.dumps(network(arguments.process, arguments.batch, arguments.arch)))
        return
    found = {}
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as cache:
            for name in ("empty cache", "full cache"):
                row = found[f"{dtype}, {name}"] = start(dtype, arguments.batch, arguments.arch, cache)
                steps = ", ".join(f"{key} {s['cpu']:.2f} s CPU ({s['clock']:.2f} s)" for key, s in row["steps"].items())
                print(f"{dtype}, {name}: {row['launches']} launches, {row['kernels']} kernels; {steps}", flush=True)
    took = sorted(((s, name) for row in found.values() for name, s in row["took"].items() if s > CACHED), reverse=True)
    print(f"a kernel took {took[len(took) // 2][0]:.2f} s CPU (median), {took[0][0]:.2f} s at most; the longest:")
    for duration, name in took[:10]:
        print(f"  {duration:.2f} s  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
