"""What the table can ask for compiles everywhere, in registers alone: a sample here, all of it by the benchmark."""

from pathlib import Path

import pytest

from gpu_conv.cuda import source
from gpu_conv.cuda.targets import KNOWN_TARGETS

pytest.importorskip("cuda.bindings.nvrtc")
pytest.importorskip("typer")

PER_ARCH = 6  # compilations of a run for each architecture; the whole set is `benchmarks/compile_matrix.py`


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import compile_matrix

    return compile_matrix


@pytest.mark.parametrize(("seed", "arch"), list(enumerate(KNOWN_TARGETS)))
def test_no_spills_and_no_local_memory(matrix, seed, arch):
    """The same kernels in every run: a change is judged by its own faults, and a second run finds them in the cache."""
    jobs = matrix.jobs_of([arch], PER_ARCH, seed)
    assert len(jobs) == PER_ARCH
    assert [one for one in matrix.compile_all(jobs, threads=1) if not one.is_clean] == []


def test_every_kernel_is_asked_for(matrix):
    """A kernel that no problem of the set reaches would never be compiled."""
    wanted = {path.name for path in source.KERNELS.glob("*.cu")}
    wanted |= matrix.instantiations.tiles_of_products()
    for request in reversed(list(matrix.instantiations.requests(["sm_90a"]))):  # the quickest to plan are last
        for launch in request.launches():
            wanted.discard(launch.source)
            wanted -= set(map(str, launch.template))
        if not wanted:
            return
    assert not wanted
