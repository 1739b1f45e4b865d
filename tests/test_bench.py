"""``gpu-conv bench``, the core of the CPU and GPU measurements, and the pictures of recorded results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv import execute
from gpu_conv.bench import LAYERS, Layer, cpu, gpu, plot
from gpu_conv.bench.peers import Case
from gpu_conv.cuda import CudaUnavailable, device
from tests.test_cli import call, fails
from tests.test_cli_tools import document

ROOT = Path(__file__).parent.parent
SYNTHETIC = Path(__file__).parent / "synthetic"
TINY = Layer("depthwise", "tiny", 4, 4, 8, stride=2, groups=4)


# ---------------------------------------------------------------------------------------------------------------- CPU


def test_the_contestants_of_a_layer_agree() -> None:
    runs, strategy, extra = cpu.contest(TINY, 1, list(cpu.PEERS))
    assert {"onnxruntime", "scipy", "NHWC", "NCHW"} <= set(runs), "the extra `test` brings them"
    assert strategy.startswith("depthwise") and extra >= 0
    results = {name: np.asarray(run()) for name, run in runs.items()}
    for name in set(runs) - {"NHWC"}:
        np.testing.assert_allclose(results[name], results["NHWC"].transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert "scipy" not in cpu.contest(Layer("dense", "tiny", 4, 4, 8), 1, ["scipy"])[0]


def test_a_contestant_that_is_wrong_stops_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cpu.PEERS, "wrong", lambda layer, x, w, bias, threads: lambda: np.zeros((1, 4, 4, 4)))
    with pytest.raises(AssertionError, match="depthwise tiny: wrong"):
        cpu.contest(TINY, 1, ["wrong"])


def test_contestants_take_turns_and_the_quieter_half_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    cost = {"a": 0.010, "b": 0.020}

    def run(name: str) -> None:
        order.append(name)
        busy_round = len(order) > 15
        now[0] += cost[name] * (9 if busy_round else 1)

    monkeypatch.setattr(cpu.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cpu.time, "process_time", lambda: 0.0)
    used = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.9])  # before and after each round
    monkeypatch.setattr(cpu, "_machine", lambda: next(used))
    row = cpu.interleaved({name: lambda name=name: run(name) for name in cost}, 4, lambda: now[0])
    turns = "".join(order[4:])
    assert turns == ("aaa" + "bb") * 4, "30 ms each per round, at least two calls"
    assert row["ms"] == pytest.approx({"a": 10, "b": 20})
    assert row["foreign"] == 0


def test_the_command_on_the_cpu(tmp_path: Path) -> None:
    picture = tmp_path / "ratios.svg"
    options = ("--only", "depthwise 3x3 960", "--rounds", 1, "--peer", "onnxruntime")
    found = document("bench", *options, "--threads", 1, "--plot", picture)
    (row,) = found["rows"]
    assert (row["kind"], row["name"], row["threads"]) == ("depthwise", "3x3 960 @7", 1)
    assert set(row["ms"]) == {"onnxruntime", "NHWC", "NCHW"} and min(row["ms"].values()) > 0
    assert found["schema"] == "gpu_conv-bench-1" and found["environment"]["numpy"] == np.__version__
    assert "depthwise 3x3 960 @7, 1 thread" in picture.read_text()


def test_the_script_of_the_repository_prints_the_same_table() -> None:
    command = [sys.executable, "benchmarks/cpu.py", "--threads", "1", "--rounds", "1", "--only", "320>1280"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 thread: ms, and ratio to onnxruntime" in done.stdout
    assert "pointwise: geometric mean" in done.stdout


def test_wrong_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--only @9999: no layer is called that" in fails("bench", "--only", "@9999")
    assert "--peer cudnn: expected one of onnxruntime, torch, scipy" in fails("bench", "--peer", "cudnn")
    assert "--peer scipy: expected one of torch_nhwc" in fails("bench", "--device", "cuda", "--peer", "scipy")
    assert "the emulator has no clock" in fails("bench", "--device", "emulator")
    assert "--dtype float99: expected" in fails("bench", "--device", "cuda", "--dtype", "float99")
    assert "--plot ratios.doc: expected a file name" in fails("bench", "--plot", "ratios.doc")

    def no_driver() -> Any:
        raise CudaUnavailable("CuPy finds no NVIDIA driver that it can use")

    monkeypatch.setattr(device, "cupy", no_driver)
    assert "no NVIDIA driver" in fails("bench", "--device", "cuda")
    monkeypatch.setattr("gpu_conv.cli.bench.find_spec", lambda name: None)
    assert "--peer torch is not installed: pip install torch" in fails("bench", "--peer", "torch")
    assert "none is installed: pip install onnxruntime" in fails("bench", "--plot", "ratios.svg")
    assert "there is no folder absent" in fails("bench", "--plot", "absent/ratios.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'gpu-conv[bench]'" in fails("bench", "--plot", "ratios.svg")


# ---------------------------------------------------------------------------------------------------------------- GPU


class Emulated(gpu.Device):
    """NumPy arrays on the emulated GPU, with a clock that says 20 us."""

    name = "emulator"

    def __init__(self) -> None:
        self.xp, self.target = np, execute.target("emulator", "sm_80")
        self.random = np.random.default_rng(0)

    def operand_sets(self, nbytes: int) -> int:
        return 2

    def measure(self, calls: Any) -> dict[str, Any]:
        return {"us": 20.0, "n": len(calls)}

    def call_us(self, call: Any) -> float:
        return 25.0

    def copy_bandwidth(self) -> float:
        return 1e9

    def free(self) -> None:
        pass


def tiny(**options: Any) -> gpu.GpuLayer:
    case = Case(2, 8, 8, 8, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), dtype=options.pop("dtype", "float32"))
    return gpu.GpuLayer("tiny", "depthwise", case, **{"channels_last": True, **options})


def test_a_row_of_the_gpu_is_checked_and_related_to_the_copy() -> None:
    row = gpu.row(tiny(activation="relu6", has_residual=True), Emulated(), [], 1e9)
    assert "error" not in row, row["error"]
    assert 0 < row["error_over_tolerance"] <= 1
    assert row["bytes"] == 4 * (3 * 2 * 200 + 72 + 8), "x, residual and y, the filter, the bias"
    assert row["of_copy"] == pytest.approx(row["bytes"] / 20e-6 / 1e9, abs=1e-3)
    assert (row["us"], row["n"], row["call_us"]) == (20, 2, 25)
    assert (row["kernel"], row["layout"], row["epilogue"]) == ("depthwise_nhwc", "nhwc", ["add", "relu6"])
    assert row["launch"].startswith("depthwise_nhwc<")


def test_a_wrong_or_failing_layer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.Run, "__call__", lambda self, i: None)
    assert gpu.row(tiny(), Emulated(), [])["error_over_tolerance"] == float("inf"), "y is still NaN"

    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(gpu.Run, "__call__", fail)
    monkeypatch.setitem(gpu.PEERS, "torch_nhwc", fail)
    row = gpu.row(tiny(), Emulated(), ["torch_nhwc", "torch_nchw", "torch_matmul"])
    assert row["error"] == "MemoryError: out of memory"
    assert list(row["peers"]) == ["torch_nhwc"], "the other layout and a product are no peers of this layer"
    assert row["peers"]["torch_nhwc"]["error"] == "MemoryError: out of memory"


def test_gpu_layers_move_enough() -> None:
    found = list(gpu.layers("", ["float16"]))
    assert len(found) == 2 * len(LAYERS)
    assert all(layer.case.nbytes >= gpu.ENOUGH_BYTES or layer.case.batch == 256 for layer in found)
    assert {layer.case.batch for layer in gpu.layers("dense", ["float32"], 3)} == {3}


def test_the_command_on_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "Device", Emulated)
    monkeypatch.setattr(gpu, "layers", lambda only, dtypes, batch: [tiny(), tiny(channels_last=False)])
    timing = type("Timing", (), {"as_dict": lambda self: {"us": 50.0}})
    monkeypatch.setitem(gpu.PEERS, "torch_nhwc", lambda case, **options: timing())
    picture = tmp_path / "ratios.svg"
    found = document("bench", "--device", "cuda", "--peer", "torch_nhwc", "--plot", picture)
    assert [row["layout"] for row in found["rows"]] == ["nhwc", "nchw"]
    assert found["rows"][0]["peers"] == {"torch_nhwc": {"us": 50.0}}
    assert "2.50x" in picture.read_text()
    result = call("bench", "--device", "cuda", "--peer", "torch_nhwc")
    assert "2.50" in result.stdout and "median share of the copy bandwidth" in result.stdout, result.output


# ----------------------------------------------------------------------------------------------------------- pictures


def report(*arguments: object) -> str:
    command = [sys.executable, "benchmarks/report.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tables_and_picture_of_a_synthetic_folder_say_that_it_is_synthetic(tmp_path: Path) -> None:
    picture = tmp_path / "synthetic.svg"
    text = report(SYNTHETIC, "--rows", "--plot", picture)
    note = "SYNTHETIC: made up to test the pictures, measured on nothing"
    assert note in text and note in picture.read_text()
    assert "| depthwise | float16 | nhwc | 2 | 4.00 | 2.00 | 8.0 |" in text, "2 and 8 times faster"
    assert "| depthwise | float32 | nchw | 1 | 0.50 |" in text
    assert "| synthetic_net | 1 | float32 | 1.000 | 0.500 | 3.000 | 2.000 | 1.000 |" in text
    drawn = picture.read_text()
    assert "copy 1.00 TB/s, matmul 100 TFLOP/s" in drawn and "synthetic_net" in drawn
    assert "synthetic_other" not in drawn, "no peer beside it"


def test_the_picture_shows_the_numbers() -> None:
    rows = [row for row in json.loads((SYNTHETIC / "layers.json").read_text())["rows"] if "us" in row]
    axes = plot.canvas()().subplots(1, 2)
    plot.ratio_bars(axes[0], rows)
    heights = [float(bar.get_y() + bar.get_height()) for bar in axes[0].patches]
    drawn = sorted(round(height, 6) for height in heights if not np.isnan(height))
    assert drawn == [0.5, 1.0, 4.0], "geometric means"
    plot.roofline(axes[1], rows, 1e12, {})
    points = [tuple(point) for dots in axes[1].collections for point in dots.get_offsets()]
    assert [x for x, _ in points] == pytest.approx([4, 8, 60], rel=1e-3), "float16 alone: FLOP per byte"


def test_the_picture_of_the_readme_is_that_of_the_recorded_results(tmp_path: Path) -> None:
    kept = ROOT / "docs/images/h100.svg"
    assert kept.stat().st_size < 100_000
    text = kept.read_text()
    recorded = json.loads((ROOT / "benchmarks/results/h100/layers.json").read_text())
    assert f"{recorded['environment']['gpu']}, {sum('us' in row for row in recorded['rows'])} layers" in text
    assert recorded["environment"]["commit"][:7] in text
    assert "SYNTHETIC" not in text and "background" not in text
    assert "fill: #ffffff" in text, "readable on a dark page"


def test_one_input_is_one_picture(tmp_path: Path) -> None:
    folder = {n: json.loads((SYNTHETIC / f"{n}.json").read_text()) for n in ("layers", "nets", "calibration")}
    for name in ("a.svg", "b.svg"):
        plot.overview(folder["layers"], folder["nets"], folder["calibration"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_nothing_to_draw() -> None:
    row = {"kind": "dense", "name": "a", "threads": 1, "ms": {"NHWC": 1.0}}
    with pytest.raises(ValueError, match="no other library ran"):
        plot.bars_of({"device": "cpu", "environment": {}, "rows": [row]}, Path("never.svg"))


def test_importing_the_package_loads_none_of_it() -> None:
    code = "import sys, gpu_conv; print([m for m in sys.modules if m.startswith(('gpu_conv.bench', 'matplotlib'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and gpu_conv.tuned


def test_decoders_beside_convolutions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import decoders

    tiny = decoders.Decoder(4, 3, 5, 3, padding=1, output_padding=1)
    transposed, forward = tiny.calls(np, "float32", 2)
    assert transposed().shape == (2, 10, 10, 3)
    assert forward().shape == (2, 5, 5, 4)
    file = tmp_path / "decoders.json"
    first, *_ = decoders.LAYERS
    monkeypatch.setattr(decoders, "LAYERS", (tiny,))
    monkeypatch.setattr(decoders, "has_gpu", lambda: False)
    monkeypatch.setattr(decoders.sys, "argv", ["decoders.py", "--output", str(file)])
    decoders.main()
    (row,) = json.loads(file.read_text())["rows"]
    assert row["ratio"] == pytest.approx(row["transposed"] / row["forward"], rel=0.01)

    monkeypatch.setattr(decoders, "LAYERS", (first,))
    monkeypatch.setattr(decoders.sys, "argv", ["decoders.py", "--predicted", "--output", str(file)])
    decoders.main()
    modelled = json.loads(file.read_text())
    assert modelled["device"] == "model" and [row["dtype"] for row in modelled["rows"]] == ["float32", "float16"]
    assert all(0.5 < row["ratio"] < 1.3 for row in modelled["rows"])  # all phases in one launch
