"""``tune`` with a clock that the tests set: what is tried, what is chosen, what is written, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv import choices, dispatch, execute, reference, stand_in
from gpu_conv.arguments import prepare
from gpu_conv.arrays import address
from gpu_conv.cuda import CudaUnavailable, device
from gpu_conv.emulator import Emulator
from gpu_conv.launch import Launch
from tests.test_cli import fails, network

ARCH = "sm_80"
X, W = (1, 16, 5, 5), (16, 1, 3, 3)
LAYER: dict[str, Any] = dict(groups=16, padding=1)


def clock(times: Callable[[Launch], float]) -> Callable[[Sequence[Any]], float]:
    """A timer that knows the launch of its calls and runs nothing."""
    return lambda calls: times(calls[0].args[0])


def prefers(kernel: str) -> Callable[[Sequence[Any]], float]:
    return clock(lambda launch: 5.0 if launch.kernel == kernel else 10.0)


def tune(path: Path, timer: Any, x: Any = X, w: Any = W, **options: Any) -> list[choices.Choice]:
    options = {"device": "emulator", "arch": ARCH, "most": 2, **(LAYER if w == W else {}), **options}
    return gpu_conv.tune(x, w, path=path, timer=timer, **options)


def kernel(**options: Any) -> str:
    return gpu_conv.explain(X, W, **{"arch": ARCH, **LAYER, **options}).kernel


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tuned.json"


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch writes ones at once."""
    monkeypatch.setattr(Emulator, "run", lambda self, launch, operands: operands["y"].fill(1))


# ----------------------------------------------------------------------------------------------------- on real kernels


def test_the_fastest_of_the_real_kernels_is_dispatched_and_right(file: Path) -> None:
    ran: list[str] = []

    def timer(calls: Sequence[Any]) -> float:
        calls[0]()
        ran.append(calls[0].args[0].kernel)
        return 5.0 if ran[-1] == "depthwise" else 10.0

    (choice,) = tune(file, timer, most=1)
    assert ran == ["depthwise_nchw_tile", "depthwise_nchw", "depthwise", "direct"]
    assert (choice.kernel, choice.tile, choice.us, choice.table_us, choice.speedup) == ("depthwise", None, 5, 10, 2)
    assert not [facts for facts in choice.tried if "error" in facts], "they agree on small integers"
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal(X, dtype=np.float32), rng.standard_normal(W, dtype=np.float32)
    with gpu_conv.tuned(file):
        recorder = execute.Recorder(execute.target("emulator", ARCH))
        with execute.instead(recorder):
            gpu_conv.conv(x, w, **LAYER)
        y = gpu_conv.conv(x, w, device="emulator", **LAYER)
    assert [launch.kernel for launch in recorder.launches] == ["depthwise"]
    call = prepare(x, w, **LAYER)
    exact = reference.convolve(call.problem, call.operands).reshape(y.shape)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------- what dispatch follows


@pytest.mark.usefixtures("instant")
def test_nothing_is_followed_unless_asked(file: Path) -> None:
    table = kernel()
    tune(file, prefers("direct"))
    assert kernel() == table != "direct"
    with gpu_conv.tuned(file) as found:
        assert len(found) == 1
        assert kernel() == "direct"
        assert kernel(kernel="depthwise") == "depthwise", "a forced kernel is forced"
        assert kernel(arch="sm_90a") == table, "another device was not measured"
        assert kernel(padding=0) == table, "another problem neither"
        assert kernel(precision="tf32") == table, "nor another arithmetic"
    assert kernel() == table


@pytest.mark.usefixtures("instant")
def test_a_layer_keeps_the_plan_of_its_first_call(file: Path) -> None:
    tune(file, prefers("direct"))
    recorder = execute.Recorder(execute.target("emulator", ARCH))
    x, w = np.zeros(X, np.float32), np.zeros(W, np.float32)
    before, within = gpu_conv.Conv(w, **LAYER), gpu_conv.Conv(w, **LAYER)
    with execute.instead(recorder):
        before(x)
        with gpu_conv.tuned(file):
            before(x), within(x)
        within(x)
    first, *_ = kernels = [launch.kernel for launch in recorder.launches]
    assert kernels == [first, first, "direct", "direct"]


@pytest.mark.usefixtures("instant")
def test_a_tile_is_chosen_and_found_again(file: Path) -> None:
    x, w = (1, 64, 9, 9), (64, 64, 1, 1)
    wanted: list[Launch] = []

    def times(launch: Launch) -> float:
        wanted.append(launch)
        return 1.0 if len(wanted) == 3 else 7.0

    (choice,) = tune(file, clock(times), x, w, dtype="float16", most=4)
    assert choice.kernel == "pointwise" and choice.tile
    with gpu_conv.tuned(file):
        assert gpu_conv.explain(x, w, dtype="float16", arch=ARCH).launch == wanted[2] != wanted[0]


@pytest.mark.usefixtures("instant")
def test_a_choice_that_the_table_knows_no_more_is_passed_over(file: Path) -> None:
    table = kernel()
    tune(file, prefers("direct"))
    document = json.loads(file.read_text())
    for change in ({"kernel": "depthwise_of_yore"}, {"kernel": "pointwise"}, {"tile": {"rows": 3}}):
        entry = document["choices"][0] | change
        file.write_text(json.dumps(document | {"choices": [entry]}))
        with gpu_conv.tuned(file):
            assert kernel() == table


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(("us", "chosen"), [(9.9, "depthwise_nchw_tile"), (9.7, "direct")])
def test_noise_does_not_replace_the_table(file: Path, us: float, chosen: str) -> None:
    (choice,) = tune(file, clock(lambda launch: us if launch.kernel == "direct" else 10.0))
    assert (choice.kernel, choice.table_us) == (chosen, 10.0)


def test_what_disagrees_or_fails_is_never_chosen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Emulator, launch: Launch, operands: Any) -> None:
        if launch.kernel == broken:
            raise RuntimeError("too many resources requested")
        operands["y"].fill(2 if launch.kernel == "direct" else 1)

    monkeypatch.setattr(Emulator, "run", run)
    broken = "depthwise"
    (choice,) = tune(file, prefers("direct"))
    assert choice.kernel == "depthwise_nchw_tile"
    errors = {facts["kernel"]: facts["error"] for facts in choice.tried if "error" in facts}
    assert errors == {
        "direct": "its result differs from that of the table's choice",
        "depthwise": "RuntimeError: too many resources requested",
    }
    broken = "depthwise_nchw_tile"
    with pytest.raises(
        RuntimeError, match=r"depthwise_nchw_tile does not run 1 x 16 -> 16 channels.*too many resources"
    ):
        tune(file, prefers("direct"))


def test_every_candidate_starts_from_nan(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(self: Emulator, launch: Launch, operands: Any) -> None:
        if launch.kernel != "direct":
            operands["y"].fill(1)

    monkeypatch.setattr(Emulator, "run", lazy)
    (choice,) = tune(file, prefers("direct"))
    assert choice.kernel != "direct"


# ---------------------------------------------------------------------------------------------------- what is measured


def test_candidates_are_all_rows_that_can_and_their_tiles() -> None:
    from gpu_conv.tune import candidates

    target = execute.target("emulator", "sm_90a")
    x, w = np.zeros((4, 28, 28, 64), np.float16), np.zeros((64, 1, 3, 3), np.float16)
    problem = prepare(x, w, groups=64, padding=1, input_layout="nhwc").problem
    found = candidates(problem, target, most=3)
    assert found[0].kernel == dispatch.select(problem, target).name
    assert found[0].launch == dispatch.plan(problem, target)
    assert {c.kernel for c in found} == {r.name for r in dispatch.TABLE if r.refuses(problem, target) is None}
    assert len({c.launch for c in found}) == len(found)
    assert max(sum(c.kernel == name for c in found) for name in {c.kernel for c in found}) == 3
    for row in dispatch.TABLE:
        tiles = list(row.tiles(problem, target)) if row.refuses(problem, target) is None else []
        if tiles:
            assert row.plan(problem, target, tiles[0]) == row.plan(problem, target), f"{row.name}: the first is its own"


@pytest.mark.usefixtures("instant")
def test_a_function_a_model_and_phases(file: Path, tmp_path: Path) -> None:
    x, w = np.zeros(X, np.float32), np.zeros(W, np.float32)

    def program() -> None:
        for _ in range(2):
            gpu_conv.conv(x, w, **LAYER)
        gpu_conv.conv(x, w, groups=16)
        gpu_conv.conv(x, w, groups=16, strides=2, kernel="direct")  # forced: nothing to choose
        gpu_conv.conv(x[:0], w, groups=16)  # nothing to compute

    assert [c.problem["padding"][0] for c in tune(file, prefers("direct"), program, None)] == [(1, 1), (0, 0)]
    (own,) = tune(file, prefers("direct"), network(tmp_path / "own.onnx"), None, dims={"n": 2})
    assert own.problem["x"]["shape"][0] == 2
    up = {"dtype": "float16", "strides": 2, "transposed": True}
    (whole,) = tune(file, prefers("direct"), (1, 64, 28, 28), (64, 32, 4, 4), **up)
    assert whole.problem["input_dilations"] == (2, 2) and whole.kernel == "direct", "all phases in one launch"
    phases = tune(file, prefers("direct"), (1, 64, 56, 56), (64, 32, 3, 3), **up)
    assert {c.problem["input_dilations"] for c in phases} == {(1, 1)}
    assert len(phases) == 4, "113 rows: launches of their own"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_stand_ins_lie_in_memory_like_the_originals(dtype: str, layout: str) -> None:
    shape = (2, 6, 7, 8) if layout == "nchw" else (2, 7, 8, 6)
    x = np.zeros(2000, dtype)[1:][: 2 * 6 * 7 * 8].reshape(shape)
    w = np.zeros((4, 6, 3, 3), dtype)[..., ::-1]
    options = {"x_zero_point": 3, "w_zero_point": np.arange(4)} if dtype == "int8" else {"bias": np.zeros(4, dtype)}
    problem = prepare(x, w, input_layout=layout, flip_filter=True, **options).problem
    first, second = stand_in.operand_sets(problem, np, 2)
    for name in ("x", "w", "y"):
        tensor, array = getattr(problem, name), first.arrays[name]
        assert (array.shape, array.dtype.name) == (tensor.shape, tensor.dtype)
        assert tuple(s // array.itemsize for s in array.strides) == tensor.strides
        assert (address(array) & -address(array) & 15 or 16) == tensor.align
    assert set(np.unique(first.arrays["x"].astype(int))) == {-2, -1, 0, 1, 2}
    assert not np.shares_memory(first.arrays["x"], second.arrays["x"])
    assert first.arrays["w"] is second.arrays["w"]
    assert [n for n in first.arrays if first.arrays[n] is None] == [
        n for n in ("bias", "residual", "x_zero_point", "w_zero_point") if not getattr(problem, n)
    ]
    if dtype != "int8":
        assert np.isnan(first.arrays["y"].astype(float)).all()


# ------------------------------------------------------------------------------------------------------------ the file


@pytest.mark.usefixtures("instant")
def test_the_file_says_what_it_depends_on_and_grows(file: Path) -> None:
    tune(file, prefers("direct"), activation=("clip", 0, float("inf")))
    tune(file, prefers("direct"), padding=0)
    tune(file, prefers("depthwise"), padding=0)
    text = file.read_text()
    document = json.loads(text)
    assert "Infinity" not in text
    assert [entry["kernel"] for entry in document["choices"]] == ["direct", "depthwise"]
    assert document["schema"] == "gpu_conv-tuned-1"
    assert document["gpu_conv"] == gpu_conv.__version__
    assert document["device"] == {"name": "A100 (data sheet)", "arch": ARCH, "multiprocessors": 108}
    assert set(document) == {"schema", "gpu_conv", "device", "driver", "nvrtc", "choices"}
    assert document["nvrtc"].count(".") == 1
    assert list(file.parent.iterdir()) == [file], "no partial file is left"
    file.write_text(json.dumps(document | {"nvrtc": "11.0"}))
    tune(file, prefers("direct"))
    assert len(json.loads(file.read_text())["choices"]) == 1, "times of other machine code do not stay"


@pytest.mark.usefixtures("instant")
def test_the_cache_keeps_one_file_for_each_device_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nothing was tuned for gpu_conv .* in .*tuned"), gpu_conv.tuned():
        pass
    for arch in (ARCH, "sm_90a"):
        gpu_conv.tune(X, W, device="emulator", arch=arch, timer=prefers("direct"), most=1, **LAYER)
    assert sorted(path.name for path in (tmp_path / "tuned").iterdir()) == [
        f"a100-data-sheet-{gpu_conv.__version__}.json",
        f"h100-sxm-data-sheet-{gpu_conv.__version__}.json",
    ]
    with gpu_conv.tuned():
        assert {kernel(), kernel(arch="sm_90a")} == {"direct"}


@pytest.mark.usefixtures("instant")
def test_files_of_others(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), gpu_conv.tuned(file):
        pass
    file.write_text("{")
    with pytest.raises(ValueError, match=r"not a file of gpu_conv\.tune"), gpu_conv.tuned(file):
        pass
    file.write_text('{"schema": "another"}')
    with pytest.raises(ValueError, match="its schema is 'another'"):
        tune(file, prefers("direct"))
    assert file.read_text() == '{"schema": "another"}'
    own = tmp_path / "own.json"
    tune(own, prefers("direct"))
    with pytest.raises(ValueError, match=r"holds choices for A100 .*, this is H100 .*another path"):
        tune(own, prefers("direct"), arch="sm_90a")
    own.write_text(json.dumps(json.loads(own.read_text()) | {"gpu_conv": "0.0.1"}))
    with pytest.raises(ValueError, match=r"measured with gpu_conv 0\.0\.1, this is"), gpu_conv.tuned(own):
        pass


# --------------------------------------------------------------------------------------------------------- wrong calls


def test_wrong_calls(file: Path) -> None:
    with pytest.raises(ValueError, match="the emulator has no clock: give a timer"):
        gpu_conv.tune(X, W, device="emulator", **LAYER)
    with pytest.raises(ValueError, match="device must be 'cuda' or 'emulator', got 'cpu'"):
        gpu_conv.tune(X, W, device="cpu", **LAYER)
    with pytest.raises(TypeError, match="groups: options belong to a layer"):
        tune(file, prefers("direct"), lambda: None, None, groups=2)
    with pytest.raises(ValueError, match="groups"):
        tune(file, prefers("direct"), X, (16, 2, 3, 3), groups=16)
    assert not file.exists()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(device_id: int | None = None) -> Any:
        raise CudaUnavailable("CuPy finds no NVIDIA driver that it can use")

    monkeypatch.setattr(device, "target", no_driver)
    with pytest.raises(CudaUnavailable, match="no NVIDIA driver"):
        gpu_conv.tune(X, W, **LAYER)
    assert "no NVIDIA driver" in fails("tune", "--x", "1,16,5,5", "--w", "16,1,3,3", "--groups", "16")


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, instant: None, tmp_path: Path) -> None:
    """The command finds an emulated A100 with a clock in the place of the CUDA device."""
    own = gpu_conv.tune
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "target", lambda: execute.target("emulator", ARCH))
    options = dict(device="emulator", arch=ARCH, timer=prefers("direct"))
    monkeypatch.setattr(gpu_conv, "tune", lambda *arguments, **given: own(*arguments, **given, **options))


@pytest.mark.usefixtures("emulated")
def test_the_command(tmp_path: Path) -> None:
    from tests.test_cli import call
    from tests.test_cli_tools import document

    layer = ("--x", "1,16,5,5", "--w", "16,1,3,3", "--groups", 16, "--padding", 1)
    found = document("tune", *layer, "--output", tmp_path / "own.json")
    assert found["file"] == str(tmp_path / "own.json")
    assert [(c["kernel"], c["us"], c["table_us"], c["speedup"]) for c in found["choices"]] == [("direct", 5, 10, 2)]
    assert {facts["kernel"] for facts in found["choices"][0]["tried"]} == {
        "depthwise_nchw_tile",
        "depthwise_nchw",
        "depthwise",
    }
    with gpu_conv.tuned(tmp_path / "own.json"):
        assert kernel() == "direct"
    result = call("tune", network(tmp_path / "own.onnx"), "--dim", "n=2", "--most", 1)
    assert result.exit_code == 0, result.output
    assert "1 choices in" in result.stdout and "gpu_conv.tuned()" in result.stdout
    with gpu_conv.tuned() as choices_in_cache:
        assert len(choices_in_cache) == 1


@pytest.mark.usefixtures("emulated")
def test_the_command_wants_a_model_or_a_layer(tmp_path: Path) -> None:
    for wrong in ((), ("--x", "1,3,8,8"), (network(tmp_path / "own.onnx"), "--x", "1,3,8,8", "--w", "4,3,3,3")):
        assert "give a model, or a layer by --x and --w" in fails("tune", *wrong)
    assert "vgg: neither a file nor one of mobilenet_v2" in fails("tune", "vgg")
