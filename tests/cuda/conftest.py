import sys

import pytest

from gpu_conv.cuda import compiler, device
from tests.cuda import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test starts with an empty disk cache and an empty memo, and leaves none behind."""
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path / "cache"))
    compiler._slots.clear()
    yield tmp_path / "cache" / "kernels"
    compiler._slots.clear()


def forget():
    """What the device remembers of CuPy and of kernels."""
    for cached in (device._cupy, device._target, device._load, device._prepare):
        cached.cache_clear()


@pytest.fixture
def stand_in(monkeypatch):
    """Function that puts a fake into the place of CuPy, with the kernels of tiny.cu."""

    def install(fake):
        monkeypatch.setitem(sys.modules, "cupy", fake)
        monkeypatch.setattr(device, "load", lambda name: tiny.TEXT)
        forget()
        return fake

    yield install
    forget()
