"""The command line, called as a user calls it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner, Result

import gpu_conv
from gpu_conv import models
from gpu_conv.cli.app import app
from gpu_conv.cuda import CudaUnavailable, device
from gpu_conv.models import pictures


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def fails(*arguments: object) -> str:
    """The message of a call that must end with status 2 and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def network(path: Path, *, classes: int = 5, size: int | str = 8, softmax: bool = False, name: str = "scores") -> Path:
    """A classifier of one convolution with random weights."""
    rng = np.random.default_rng(1)
    w = numpy_helper.from_array(rng.standard_normal((classes, 3, 3, 3), dtype=np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["c"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f" if softmax else name]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["f"], [name], axis=1))
    shape = ["n", 3, size, size]
    x = helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
    graph = helper.make_graph(nodes, "net", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def runtime(model: Path, x: np.ndarray) -> np.ndarray:
    (y,) = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"picture": x})
    return y


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    return file


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "labels", lambda report: [f"thing {i}, another name" for i in range(1000)])


# ---------------------------------------------------------------------------------------------------------- classify


@pytest.mark.parametrize("name", models.MODELS)
def test_the_demonstration_agrees_with_onnxruntime(name: str) -> None:
    result = call("classify", "--model", name, "--top", 3)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(str(models.path(name)), providers=["CPUExecutionProvider"])
    known = [label.partition(",")[0] for label in models.labels()]
    found = re.findall(r"^(\S.*?) +(0\.\d{3})", result.stdout, re.MULTILINE)
    assert len(found) == 12
    for index, file in enumerate(pictures.demonstration()):
        assert file.name in result.stdout
        (scores,) = session.run(None, {"input": models.MODELS[name].preprocess(file)})
        exponentials = np.exp(scores[0] - scores[0].max())
        want = exponentials / exponentials.sum()
        for rank, (label, probability) in enumerate(found[3 * index : 3 * index + 3]):
            assert label == known[int(np.argsort(-want)[rank])]
            assert float(probability) == pytest.approx(np.sort(want)[-1 - rank], abs=0.01)
    if name == "mobilenet_v2":
        assert [label for label, _ in found[::3]] == ["espresso", "Egyptian cat", "palace", "moped"]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("classes", "label"), [(5, "class {}"), (1000, "thing {}"), (1001, "thing {}")])
def test_a_model_of_the_users_own(
    classes: int, label: str, softmax: bool, picture: Path, labels: None, tmp_path: Path
) -> None:
    model = network(tmp_path / "own.onnx", classes=classes, softmax=softmax)
    x = models.Preprocess(size=8, short=9)(picture)
    scores = runtime(model, x)[0].astype(np.float64)
    want = scores if softmax else np.exp(scores) / np.exp(scores).sum()
    result = call("classify", picture, "--model", model, "--top", 1)
    assert result.exit_code == 0, result.output
    best = int(want.argmax())
    name = label.format(best - (classes == 1001))  # 1001 classes: the first one is the background
    assert re.search(rf"^{name} +{want[best]:.3f}", result.stdout, re.MULTILINE), result.stdout


def test_profile_names_the_convolution(picture: Path, labels: None, tmp_path: Path) -> None:
    result = call("classify", picture, "--model", network(tmp_path / "own.onnx"), "--profile")
    assert result.exit_code == 0, result.output
    assert "Conv" in result.stdout
    assert "GB/s" in result.stdout


def test_what_cannot_be_classified(picture: Path, labels: None, tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx")
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model.read_bytes()[:100])
    flat = onnx.load(model)
    del flat.graph.input[0].type.tensor_type.shape.dim[3:]
    onnx.save(flat, tmp_path / "flat.onnx")
    assert f"{tmp_path / 'absent.png'}: No such file" in fails("classify", tmp_path / "absent.png", "--model", model)
    assert "text.jpg is not a picture" in fails("classify", text, "--model", model)
    assert "neither a file nor one of mobilenet_v2, efficientnet_lite0" in fails("classify", picture, "--model", "vgg")
    assert "truncated.onnx" in fails("classify", picture, "--model", truncated)
    assert "flat.onnx" in fails("classify", picture, "--model", tmp_path / "flat.onnx")
    assert "--top" in fails("classify", picture, "--top", 0)
    assert "--device" in fails("classify", picture, "--device", "tpu")


# --------------------------------------------------------------------------------------------------------------- run


def test_run_saves_what_onnxruntime_computes(tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx", size="side")
    x = np.random.default_rng(3).standard_normal((2, 3, 12, 12), dtype=np.float32)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    result = call("run", model, "--input", f"picture={tmp_path / 'x.npy'}", "--output", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.output
    assert "(2, 5)" in result.stdout
    got = np.load(tmp_path / "new" / "folder" / "scores.npy")
    np.testing.assert_allclose(got, runtime(model, x), rtol=1e-5, atol=1e-6)


def test_names_of_outputs_stay_in_the_folder(tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx", name="../../evil")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    result = call("run", model, "-i", f"picture={tmp_path / 'x.npy'}", "--output", tmp_path / "deep" / "out")
    assert result.exit_code == 0, result.output
    written = [file.relative_to(tmp_path) for file in tmp_path.rglob("*evil*")]
    assert written == [Path("deep/out/_.._evil.npy")]


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    model = network(tmp_path / "own.onnx")
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((1, 3, 8, 8), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((1, 3, 8, 9), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 8, 8)))
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.npy").write_text("hello")

    def message(text: str) -> str:
        return fails("run", model, "--input", text)

    assert "expected NAME=FILE.npy" in message(str(good))
    assert "expected NAME=FILE.npy" in message("picture=")
    assert "'image'" in message(f"image={good}")
    assert "(1, 3, 8, 9)" in message(f"picture={tmp_path / 'wide.npy'}")
    assert "float64" in message(f"picture={tmp_path / 'double.npy'}")
    for file in ("objects.npy", "many.npz", "cut.npy", "text.npy"):
        assert "no .npy file of numbers" in message(f"picture={tmp_path / file}")
    assert "absent.npy" in message(f"picture={tmp_path / 'absent.npy'}")
    assert "'picture'" in fails("run", model)
    twice = ("--input", f"picture={good}") * 2
    assert "--input: 2 arrays for picture; every input takes one" in fails("run", model, *twice)
    assert "absent.onnx: No such file" in fails("run", tmp_path / "absent.onnx")


# ----------------------------------------------------------------------------------------------------------- explain


def test_explain_prints_the_report_of_the_library() -> None:
    options = ("--groups", 32, "--padding", "0:1,1:1", "--strides", "2,1", "--activation", "relu6")
    result = call("explain", "--x", "1,32,112,112", "--w", "32,1,3,3", *options)
    assert result.exit_code == 0, result.output
    want = gpu_conv.explain(
        (1, 32, 112, 112), (32, 1, 3, 3), groups=32, padding=((0, 1), (1, 1)), strides=(2, 1), activation="relu6"
    )
    assert result.stdout.strip() == str(want).strip()


@pytest.mark.parametrize("padding", ["valid", "same_upper", "1", "1,2", "1:2,3:4"])
def test_explain_reads_every_kind_of_padding(padding: str) -> None:
    result = call("explain", "--x", "1,8,9,9", "--w", "8,8,3,3", "--padding", padding)
    assert result.exit_code == 0, result.output


def test_options_of_explain_that_do_not_fit() -> None:
    good = ("explain", "--x", "1,8,9,9", "--w", "8,8,3,3")
    for shape in ("1x8", "-1,8,9,9"):
        assert f"--x {shape}: a shape is a list of sizes" in fails("explain", "--x", shape, "--w", "8,8,3,3")
    assert "--strides 1:2: expected an integer" in fails(*good, "--strides", "1:2")
    assert "--padding same: expected an integer, one for each axis as 2,1, pairs" in fails(*good, "--padding", "same")
    assert "groups" in fails(*good, "--groups", 3)
    assert "nchx" in fails(*good, "--input-layout", "nchx")
    assert "--dtype float99: expected float32, float16" in fails(*good, "--dtype", "float99")
    assert "kernel='direct' names a CUDA kernel" in fails(*good, "--kernel", "direct")
    assert "arch='sm_80' is a GPU's" in fails(*good, "--device", "cpu", "--arch", "sm_80")


def test_without_a_gpu_its_device_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_gpu() -> None:
        raise CudaUnavailable("a GPU needs CuPy")

    monkeypatch.setattr(device, "cupy", no_gpu)
    assert "a GPU needs CuPy" in fails("explain", "--x", "1,8,9,9", "--w", "8,8,3,3", "--device", "cuda")
    assert "a GPU needs CuPy" in fails("run", network(tmp_path / "own.onnx"), "--device", "cuda")


# ------------------------------------------------------------------------------------------------------------ around


def test_version_and_help() -> None:
    assert call("--version").stdout.strip() == f"gpu-conv {gpu_conv.__version__}"
    help_text = call("--help").stdout
    assert all(name in help_text for name in ("classify", "run", "explain", "emulate", "warmup", "doctor"))


def test_a_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("explain", "--x", "a", "--w", "1")
    assert isinstance(call("--traceback", *wrong).exception, ValueError)
    monkeypatch.setenv("GPU_CONV_TRACEBACK", "1")
    assert isinstance(call(*wrong).exception, ValueError)


def test_a_bug_is_not_mistaken_for_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_conv, "explain", lambda *_, **__: {}["bug"])
    good = ("explain", "--x", "1,8,9,9", "--w", "8,8,3,3")
    result = call(*good)
    assert result.exit_code == 70
    assert "KeyError: 'bug'; this is a bug: gpu-conv --traceback" in " ".join(result.stderr.split())
    assert isinstance(call("--traceback", *good).exception, KeyError)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from gpu_conv.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"gpu-conv needs {missing}: pip install 'gpu-conv[cli]', or [demo] for everything\n"


@pytest.mark.parametrize(
    ("module", "missing", "advice"),
    [
        ("gpu_conv.onnx", "onnx", "ONNX models need onnx: pip install 'gpu-conv[onnx]'"),
        ("gpu_conv.dask", "dask.array", "gpu_conv.dask needs dask.array: pip install 'gpu-conv[dask]'"),
        ("gpu_conv.torch", "torch", "gpu_conv.torch needs torch: pip install torch"),
    ],
)
def test_without_its_libraries_a_module_says_what_to_install(module: str, missing: str, advice: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {advice}"


# ----------------------------------------------------------------------------------------------------------- emulate


def test_emulate_prints_the_counters_of_a_kernel() -> None:
    options = ("--groups", "8", "--padding", "1", "--dtype", "float16", "--kernel", "depthwise")
    result = call("emulate", "--x", "1,8,9,9", "--w", "8,1,3,3", *options, "--seed", "1")
    assert result.exit_code == 0
    assert "depthwise<" in result.output
    assert re.search(r"findings\s+│\s+0", result.output)
    assert "emulated" in result.output


def test_emulate_says_why_it_cannot_run() -> None:
    assert "depthwise" in fails("emulate", "--x", "1,8,9,9", "--w", "8,8,3,3", "--kernel", "depthwise")
    assert "--dtype float99: expected" in fails("emulate", "--x", "1,8,9,9", "--w", "8,8,3,3", "--dtype", "float99")
    assert "the output is empty" in fails("emulate", "--x", "0,8,9,9", "--w", "8,8,3,3")
    assert "--seed" in fails("emulate", "--x", "1,8,9,9", "--w", "8,8,3,3", "--seed", -1)
