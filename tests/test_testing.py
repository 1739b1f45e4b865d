"""``gpu_conv.testing``, used as the documentation says, and the promises about importing the package."""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpu_conv
from gpu_conv import emulator, execute, testing
from gpu_conv.cuda import CudaUnavailable

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page, language):
    """The code blocks of a page; the comment in the first line may name a file."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def rng(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------------------------------------------------- fixture


def test_the_pages_example_runs(tmp_path):
    """The files of docs/testing.md, run as a user would run them."""
    files = {block.partition("\n")[0].removeprefix("# "): block for block in blocks("testing.md", "python")}
    assert {"conftest.py", "test_blur.py"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if testing.missing("cuda"):
        assert re.search(r"[^\d]4 passed, 2 skipped", done.stdout), done.stdout
    else:
        assert "6 passed" in done.stdout, done.stdout


def test_the_workflow_is_one():
    """The example for GitHub Actions has what such a file needs, and installs what the fixture needs."""
    (text,) = blocks("testing.md", "yaml")
    for needed in ("on:", "jobs:", "runs-on:", "actions/checkout", "gpu-conv[emulator", "pytest"):
        assert needed in text


@pytest.mark.parametrize("page", ["testing.md", "container.md"])
def test_workflows_can_be_read(page):
    yaml = pytest.importorskip("yaml")
    (text,) = blocks(page, "yaml")
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert all(step.keys() & {"uses", "run"} for step in job["steps"])


def test_numpy_arrays_are_convolved_by_the_emulator():
    x, w = rng(1, 4, 6, 6), rng(4, 1, 3, 3)
    plain = gpu_conv.conv2d(x, w, groups=4)
    with testing.use("emulator") as device:
        assert (device.name, device.xp) == ("emulator", np)
        y = gpu_conv.conv2d(device.asarray(x), device.asarray(w), groups=4)
        kernel = emulator.last_report().kernel
        layer = gpu_conv.Conv(w, groups=4)
        np.testing.assert_array_equal(layer(x), y)
        assert gpu_conv.conv2d(x, w, groups=4, device="cpu").tobytes() == plain.tobytes()
    assert "depthwise" in kernel
    assert execute.device_of("numpy", None) == "cpu"
    assert layer(x).tobytes() == plain.tobytes(), "the layer left the emulator too"
    np.testing.assert_allclose(device.asnumpy(y), plain, rtol=1e-5, atol=1e-5)


def test_devices_that_are_not_here(monkeypatch):
    with pytest.raises(ValueError, match="one of numpy, emulator, cuda, got 'tpu'"):
        testing.missing("tpu")
    from gpu_conv.cuda import compiler

    def no_compiler():
        raise CudaUnavailable('NVRTC is missing: pip install "gpu-conv[cuda13]"')

    monkeypatch.setattr(compiler, "nvrtc_version", no_compiler)
    assert "pip install" in testing.missing("emulator")
    with pytest.raises(CudaUnavailable, match="NVRTC is missing"), testing.use("emulator"):
        pass
    assert testing.missing("numpy") is None


# ----------------------------------------------------------------------------------------------------------- tolerance


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_right_result_passes_and_a_wrong_one_does_not(dtype):
    x, w, b = (rng(*shape).astype(dtype) for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (4,)))
    options = dict(padding=1, strides=2, activation="silu", input_layout="nchw", output_layout="nhwc")
    y = gpu_conv.conv2d(x, w, b, **options)
    testing.assert_conv_close(y, x, w, b, **options, device="cpu")
    for wrong, message in (
        (y[:1], "shape"),
        (y.astype("float32" if dtype != "float32" else "float64"), "dtype"),
        (np.where(np.arange(y.size).reshape(y.shape) == 3, np.nan, y).astype(dtype), "NaN in other places"),
        ((y * np.asarray(1 + 2.0**-5, dtype)).astype(dtype), "of the tolerance"),
    ):
        with pytest.raises(AssertionError, match=message):
            testing.assert_conv_close(wrong, x, w, b, **options)


def test_transposed_integers_and_views():
    x, w = rng(1, 4, 5), rng(4, 2, 3)
    y = gpu_conv.conv_transpose(x, w, strides=2)
    testing.assert_conv_close(y, x, w, strides=2, transposed=True)
    x8, w8 = (np.random.default_rng(1).integers(-128, 128, s).astype(np.int8) for s in ((1, 4, 5), (2, 4, 3)))
    y8 = gpu_conv.conv(x8, w8, x_zero_point=3)
    testing.assert_conv_close(y8, x8, w8, x_zero_point=3)
    with pytest.raises(AssertionError):
        testing.assert_conv_close(y8 + 1, x8, w8, x_zero_point=3)


@pytest.mark.peers
def test_tensors_are_compared_too():
    torch = pytest.importorskip("torch")
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3)
    testing.assert_conv_close(torch.nn.functional.conv2d(x, w), x, w)
    with pytest.raises(AssertionError, match="of the tolerance"):
        testing.assert_conv_close(torch.nn.functional.conv2d(x, w) * 1.01, x, w)


# ------------------------------------------------------------------------------------------------- what an import costs

BUDGET = 0.060  # seconds beyond NumPy and ml_dtypes, on a free machine
HEAVY = ("cupy", "onnx", "torch", "jax", "dask", "numba", "cuda", "typer", "rich", "scipy", "pytest")


def test_importing_is_quick_and_loads_no_other_library():
    """The median of processor time over five processes, with a margin for a busy machine."""
    code = (
        "import numpy, ml_dtypes, sys, time\n"
        "before, start = set(sys.modules), time.process_time()\n"
        "import gpu_conv, gpu_conv.testing\n"
        "seconds = time.process_time() - start\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"print(seconds, sorted(new & set({HEAVY!r})))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(5)
    ]
    assert all(run.split(maxsplit=1)[1].strip() == "[]" for run in runs), runs
    seconds = statistics.median(float(run.split()[0]) for run in runs)
    assert seconds < 4 * BUDGET, f"{seconds * 1e3:.0f} ms"


# ---------------------------------------------------------------------------------------------------------- the pages


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_examples_of_the_arrays_page_run():
    names = {}
    for block in blocks("arrays.md", "python"):
        exec(compile(block, "docs/arrays.md", "exec"), names)  # the page is ours


def test_the_command_line_page_names_every_command_and_option():
    typer = pytest.importorskip("typer")
    from gpu_conv.cli.app import app

    text = (DOCS / "cli.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():
        assert f"gpu-conv {name}" in text
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        missing = {option for option in options if f"`{option}`" not in text and f"{option} " not in text}
        assert not missing, f"{name}: {missing}"
