import pytest

from gpu_conv.cuda import compiler


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test starts with an empty disk cache and an empty memo, and leaves none behind."""
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path / "cache"))
    compiler._slots.clear()
    yield tmp_path / "cache" / "kernels"
    compiler._slots.clear()
