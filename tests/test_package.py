"""What is shipped, and what an import costs. Everything runs offline, with the build backend of the environment."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Set
from pathlib import Path

import pytest

import gpu_conv

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 1_000_000
MAX_LINES = 400


def python(code: str, *path: Path, cwd: Path) -> str:
    """Output of the code in a fresh interpreter that finds packages below ``path`` first."""
    search = os.pathsep.join(map(str, path))
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(project: Path, target: str, folder: Path) -> Path:
    """Build one distribution with hatchling; ``target`` is wheel or sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


def tracked(folder: str) -> set[str]:
    """Files of the repository below a folder; in an unpacked sdist, all files that lie there."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
        return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    files = {file for file in (ROOT / folder).rglob("*") if file.is_file() and file.suffix != ".pyc"}
    return {str(file.relative_to(ROOT)) for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_image_runs_the_tests_as_make_does() -> None:
    command = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert f"pytest {' '.join(json.loads(command))} $(ARGS)" in (ROOT / "Makefile").read_text()


# ------------------------------------------------------------------------------------------------------ distributions


def test_the_wheel_holds_the_package_and_the_kernels_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kernels = {f"gpu_conv/{name}" for name in tracked("kernels")}
    assert kernels, "no kernels in the repository"
    assert names == kernels | tracked("gpu_conv")
    assert "gpu_conv/py.typed" in names
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    assert wheel.name == f"gpu_conv-{gpu_conv.__version__}-py3-none-any.whl"


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python 3.11.2 has no filters
        packed.extractall(tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    again = zipfile.ZipFile(build(unpacked, "wheel", tmp_path / "again"))
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    assert all(again.read(name) == first.read(name) for name in first.namelist() if name.startswith("gpu_conv/"))
    assert (unpacked / "tests" / Path(__file__).name).is_file()


def test_two_builds_of_the_wheel_are_identical(wheel: Path, tmp_path: Path) -> None:
    """Whenever, wherever and with whatever rights of the files: whoever builds it again can compare the digests."""
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in tracked("gpu_conv") | tracked("kernels"):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        os.utime(target, (1, 1e9))
    assert build(copy, "wheel", tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_the_wheel_finds_its_kernels(installed: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, gpu_conv; from gpu_conv.cuda import source\n"
        "home = pathlib.Path(gpu_conv.__file__).parent\n"
        "print(home); print(sum(len(source.load(f.name)) > 500 for f in (home / 'kernels').glob('*.cu')))"
    )
    home, loaded = python(code, installed, cwd=tmp_path).splitlines()
    assert Path(home) == installed / "gpu_conv"
    assert int(loaded) == sum(name.endswith(".cu") for name in tracked("kernels"))


def test_the_editable_install_finds_its_kernels(tmp_path: Path) -> None:
    code = f"import hatchling.build as backend; print(backend.build_editable({str(tmp_path)!r}))"
    name = python(code, cwd=ROOT).splitlines()[-1]
    zipfile.ZipFile(tmp_path / name).extractall(tmp_path / "site")
    code = (
        f"import site; site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import gpu_conv; from gpu_conv.cuda import source\n"
        f"source.load({next(f.name for f in sorted((ROOT / 'kernels').glob('*.cu')))!r}); print(gpu_conv.__file__)"
    )
    assert Path(python(code, cwd=tmp_path)) == ROOT / "gpu_conv" / "__init__.py"


# ------------------------------------------------------------------------------------------------------------- import

HEAVY = ("cupy", "onnx", "onnxruntime", "torch", "jax", "dask", "numba", "cuda", "typer", "rich", "PIL", "scipy")


def test_import_is_light_and_touches_no_disk(installed: Path, tmp_path: Path) -> None:
    """Nothing heavy and no kernel family is imported, nothing is written, no folder made, no process started."""
    code = f"""
import sys, numpy, ml_dtypes
sys.dont_write_bytecode = True
before = set(sys.modules)
acts = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
        acts.append(arguments)
    elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "os.fork", "socket.connect"):
        acts.append((event, arguments))
sys.addaudithook(hook)
import gpu_conv
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new & set({HEAVY!r})), acts, [name for name in sys.modules if name.startswith("gpu_conv.families")])
"""
    assert python(code, installed, cwd=tmp_path) == "[] [] []"


def test_public_names_are_those_of_all() -> None:
    missing = [name for name in gpu_conv.__all__ if not hasattr(gpu_conv, name)]
    assert missing == []
    assert gpu_conv.__all__ == sorted(gpu_conv.__all__)


# -------------------------------------------------------------------------------------------------------- the house


def imports(file: Path, modules: Set[str]) -> set[str]:
    """Those of the modules that a file imports when it is imported itself."""
    package = file.relative_to(ROOT).with_suffix("").parts
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else ()
            source = ".".join([*base, *filter(None, [node.module])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names if names <= modules else names | {source}
    return found & modules


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "gpu_conv").rglob("*.py")
    }
    graph = {name: imports(file, files.keys()) - {name, "gpu_conv"} for name, file in files.items()}
    # A module that imports nothing of what is left is on the ground; in a circle nobody is.
    while ground := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in ground}
    assert graph == {}


@pytest.mark.parametrize("folder", ["gpu_conv", "kernels", "tests", "benchmarks"])
def test_files_stay_short(folder: str) -> None:
    names = [name for name in tracked(folder) if name.endswith((".py", ".cu", ".cuh"))]
    lines = {name: (ROOT / name).read_text().count("\n") for name in names if (ROOT / name).is_file()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
