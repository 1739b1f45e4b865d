import json
import shutil
from pathlib import Path

import pytest

from tests.cuda import tiny

pytest.importorskip("cuda.bindings.nvrtc")
runner = pytest.importorskip("typer.testing").CliRunner()


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import compile_matrix

    monkeypatch.setattr(compile_matrix.source, "load", lambda name: tiny.TEXT)
    return compile_matrix


def invoke(matrix, *arguments):
    import typer

    app = typer.Typer()
    app.command()(matrix.main)
    return runner.invoke(app, arguments)


def test_every_instantiation_once_for_every_architecture(matrix):
    names, archs = ("tiny<float, 3>", "tiny<float, 4>", "tiny<float, 3>"), ("sm_80", "sm_120")
    builds = list(matrix.compile_all((arch, "tiny.cu", name) for arch in archs for name in names))
    assert [(one.name, one.arch) for one in builds] == [(name, arch) for arch in archs for name in names[:2]]
    assert all(one.is_clean and one.registers > 0 for one in builds)


def test_spills_local_memory_and_errors_are_not_clean(matrix):
    names = ("spills<float>", "frames<float>", "nothing<float>")
    spills, frames, nothing = matrix.compile_all(("sm_80", "tiny.cu", name) for name in names)
    assert spills.spill_bytes > 0
    assert frames.local_bytes == 256
    assert "nothing" in nothing.error
    assert not any(one.is_clean for one in (spills, frames, nothing))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on the path")
def test_plain_nvcc(matrix):
    names = ("tiny<float, 3>", "spills<float>", "nothing<float>")
    jobs = [("sm_80", "tiny.cu", name) for name in names]
    good, spills, nothing = matrix.compile_all(jobs, compile_one=matrix.build_with_nvcc)
    assert good.is_clean
    assert good.registers > 0
    assert spills.spill_bytes > 0
    assert "nothing" in nothing.error
    assert matrix.nvcc_version().startswith("nvcc ")


def test_the_command_writes_json_and_fails_for_a_kernel_that_is_not_clean(matrix, tmp_path):
    file = tmp_path / "matrix.json"
    result = invoke(matrix, "tiny.cu:tiny<float, 3>", "--arch", "sm_80", "--json", str(file))
    assert result.exit_code == 0, result.output
    (report,) = json.loads(file.read_text()).values()  # of the only NVRTC
    (row,) = report["summary"]
    assert (row["family"], row["arch"], row["instantiations"], row["clean"]) == ("tiny", "sm_80", 1, 1)
    assert row["registers"] == report["most_registers"][0]["registers"] > 0
    assert not report["not_clean"]
    result = invoke(matrix, "tiny.cu:tiny<float, 3>", "tiny.cu:frames<float>", "--arch", "sm_80")
    assert result.exit_code == 1
    assert "sm_80 frames<float>: " in result.output
    assert "256 local" in result.output
