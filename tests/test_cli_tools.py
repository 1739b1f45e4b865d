"""``gpu-conv doctor`` and ``warmup``, and what all commands share: JSON and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv.cli import doctor
from gpu_conv.cuda import CudaUnavailable, cache, compiler, device
from tests.test_cli import call, fails, network, runtime

SHAPES = ("--x", "1,8,9,9", "--w", "8,1,3,3", "--groups", "8", "--padding", "1")


def document(*arguments: object, status: int = 0) -> Any:
    """The JSON that a call prints on standard output, which holds nothing else."""
    result = call(*arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_slots", type(compiler._slots)())
    return tmp_path / "cache" / "kernels"


# -------------------------------------------------------------------------------------------------------------- doctor


def checks(*arguments: object, status: int = 0) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in document("doctor", *arguments, status=status)["checks"]}


def test_doctor_tries_what_it_calls_working(own_cache: Path) -> None:
    found = checks("--require", "cpu", "--require", "emulator", "--require", "cache")
    assert found["cpu"]["found"] == f"NumPy {np.__version__}"
    assert found["emulator"]["found"] == f"NVRTC {compiler.nvrtc_version()}"
    assert found["onnx"]["found"] == f"onnx {metadata.version('onnx')}"
    assert str(own_cache) in found["cache"]["found"]
    assert len(list(own_cache.iterdir())) == 1, "it convolved in the emulator"
    result = call("doctor")
    assert result.exit_code == 0
    assert "NVRTC" in result.stdout


@pytest.mark.parametrize("told", ["Haswell", None])
@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX", None])
def test_doctor_knows_the_kernels_of_blas(
    monkeypatch: pytest.MonkeyPatch, kernels: str | None, told: str | None
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    if told:
        monkeypatch.setenv("OPENBLAS_CORETYPE", told)
    library = {"architecture": kernels, "num_threads": 3}
    monkeypatch.setattr("gpu_conv.cpu.gemm.openblas", lambda: [library] if kernels else [])
    config = {"SIMD Extensions": {"found": ["X86_V4"]}, "Build Dependencies": {"blas": {"name": "accelerate"}}}
    monkeypatch.setattr(np, "show_config", lambda mode: config)
    check = checks()["blas"]
    assert check["works"] is (kernels != "Haswell")
    wanted = "unset OPENBLAS_CORETYPE" if told else "export OPENBLAS_CORETYPE=SkylakeX"
    assert check["repair"] == (None if check["works"] else wanted)
    assert (f"kernels for {kernels}, threads: 3" if kernels else "accelerate") in check["found"]


def test_doctor_names_the_repair_and_fails_for_what_is_required(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    def no_compiler() -> str:
        raise CudaUnavailable("kernels are compiled with NVRTC, which is missing: pip install ...")

    def no_driver() -> Any:
        raise CudaUnavailable("CuPy finds no NVIDIA driver that it can use: install one ...")

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler, "nvrtc_version", no_compiler)
    monkeypatch.setattr(device, "cupy", no_driver)
    monkeypatch.setattr(doctor, "_distributions", lambda: ["cupy-cuda13x"])
    monkeypatch.setattr(doctor.metadata, "version", not_installed)
    monkeypatch.setattr("gpu_conv.cpu.gemm.openblas", list)
    found = checks("--require", "emulator", "--require", "onnx", status=1)
    assert {name: check["repair"] for name, check in found.items() if not check["works"]} == {
        "emulator": "pip install 'gpu-conv[emulator]'",
        "cuda": "install or update the NVIDIA driver",
        "onnx": "pip install 'gpu-conv[onnx]'",
        "demo": "pip install 'gpu-conv[demo]'",
        "bench": "pip install 'gpu-conv[bench]'",
        "dask": "pip install 'gpu-conv[dask]'",
        "torch": "pip install torch",
        "jax": "pip install jax",
    }
    assert found["emulator"]["found"] == "kernels are compiled with NVRTC, which is missing"
    result = call("doctor", "--require", "onnx")
    assert result.exit_code == 1
    assert "required and missing: onnx" in result.stdout
    assert "gpu-conv[onnx]" in result.stdout
    assert "Nothing is missing that is required (cpu)" in call("doctor").stdout, "without a GPU it works on the CPU"


def test_doctor_finds_wrong_results_two_cupys_and_a_foreign_cache(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(gpu_conv, "conv2d", lambda x, w, device: np.zeros((1, 1, 2, 2), np.float32))
    monkeypatch.setattr(doctor, "_distributions", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    found = checks(status=1)
    assert found["cpu"]["repair"] == "please report this"
    assert found["cuda"]["found"] == "cupy-cuda12x and cupy-cuda13x hide each other"
    assert found["cuda"]["repair"] == "pip uninstall cupy-cuda12x"
    assert found["cache"]["repair"] == "set GPU_CONV_CACHE to a folder of your own"
    own_cache.rmdir()
    own_cache.touch()
    assert not checks(status=1)["cache"]["works"], "a file is no folder"


def test_doctor_knows_what_it_knows() -> None:
    assert "--require luck: expected one of cpu, blas, emulator, cuda" in fails("doctor", "--require", "luck")


# -------------------------------------------------------------------------------------------------------------- warmup


def test_warmup_fills_the_cache_once(own_cache: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx")
    first = document("warmup", model, "--arch", "sm_90a", "--dim", "n=2")
    assert first["compiled"] == len(first["kernels"]) == len(list(own_cache.iterdir())) == 3
    assert {kernel["arch"] for kernel in first["kernels"]} == {"sm_90a"}
    compiler._slots.clear()  # another process
    second = document("warmup", model, "--arch", "sm_90a", "--arch", "sm_80", "--dim", "n=2")
    assert [kernel["arch"] for kernel in second["kernels"]] == ["sm_90a"] * 3 + ["sm_80"] * 3
    assert second["compiled"] == 3
    result = call("warmup", model, "--arch", "sm_80")
    assert "3 kernels: 0 compiled now, 3 in the cache before" in " ".join(result.stdout.split())


def test_warmup_that_keeps_nothing_fails(own_cache: Path, tmp_path: Path) -> None:
    cache._refuse.cache_clear()
    own_cache.parent.mkdir()
    own_cache.touch()
    assert f"{own_cache}: a file or a link, no folder; kernels are compiled anew" in fails(
        "warmup", network(tmp_path / "own.onnx"), "--arch", "sm_80", "--dim", "n=1"
    )


def test_warmup_of_what_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(tmp_path / "own.onnx", size="side")
    assert "vgg: neither a file nor one of mobilenet_v2" in fails("warmup", "vgg", "--arch", "sm_80")
    assert "arch='sm_1' is unknown; known are sm_75" in fails("warmup", model, "--arch", "sm_1")
    assert "axis 2 of input 'picture'" in fails("warmup", model, "--arch", "sm_80")
    for size in ("side", "side=0"):
        assert f"--dim {size}: expected NAME=SIZE" in fails("warmup", model, "--arch", "sm_80", "--dim", size)
    assert "no open axis called width: 'picture'" in fails("warmup", model, "--arch", "sm_80", "--dim", "width=8")

    def no_gpu() -> None:
        raise CudaUnavailable("a GPU needs CuPy")

    monkeypatch.setattr(device, "target", no_gpu)
    assert "say which one to compile for: --arch sm_90a. Here a GPU needs CuPy" in fails("warmup", model)


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_explain_in_json() -> None:
    found = document("explain", *SHAPES, "--arch", "sm_90a")
    want = gpu_conv.explain((1, 8, 9, 9), (8, 1, 3, 3), groups=8, padding=1, arch="sm_90a")
    assert found["kernel"] == want.kernel
    assert [row["kernel"] for row in found["rows"]] == [name for name, _ in want.rows]
    assert found["launch"] == {
        "kernel": want.launch.name_expression,
        "grid": list(want.launch.grid),
        "block": list(want.launch.block),
    }
    assert (found["bytes"], found["floor_us"], found["target"]["bandwidth"]) == (want.bytes, None, None)
    assert document("explain", *SHAPES)["launch"] is None


def test_emulate_in_json() -> None:
    found = document("emulate", *SHAPES, "--kernel", "direct")
    assert found["findings"] == []
    assert found["kernel"].startswith("direct<")
    assert found["counters"]["instructions per output"] > 9


def test_run_in_json(tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx")
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    (output,) = document("run", model, "-i", f"picture={tmp_path / 'x.npy'}", "--output", tmp_path)["outputs"]
    want = runtime(model, x)
    assert (output["name"], output["shape"], output["dtype"]) == ("scores", [2, 5], "float32")
    assert output["mean"] == pytest.approx(want.mean(), abs=1e-5)
    np.testing.assert_allclose(np.load(output["file"]), want, rtol=1e-5, atol=1e-6)


def test_classify_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr("gpu_conv.models.labels", lambda report: [f"thing {i}, too" for i in range(1000)])
    picture = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)).save(picture)
    model = network(tmp_path / "own.onnx")
    found = document("classify", picture, "--model", model, "--top", 2, "--profile")
    (shown,) = found["pictures"]
    assert shown["file"] == str(picture)
    first, second = shown["classes"]
    assert first["probability"] >= second["probability"] > 0
    assert any(step["op"].startswith("Conv") for step in found["profile"])


def test_what_json_has_no_word_for_is_null() -> None:
    from gpu_conv.cli.output import _plain

    values = {"a": float("nan"), "b": (np.float32(1.5), np.int64(2), Path("x")), 3: float("inf")}
    assert _plain(values) == {"a": None, "b": [1.5, 2, "x"], "3": None}


# ---------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("gpu-conv war", "warmup"),
        ("gpu-conv explain --kernel depthwise_nhw", "depthwise_nhwc"),
        ("gpu-conv explain --arch sm_90", "sm_90a"),
        ("gpu-conv doctor --require emu", "emulator"),
    ],
)
def test_the_shell_completes(words: str, wanted: str) -> None:
    last = str(len(words.split()) - 1)
    environment = {"_GPU_CONV_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": last}
    code = "import sys; sys.argv = ['gpu-conv']; from gpu_conv.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert wanted in done.stdout.split(), done.stderr
