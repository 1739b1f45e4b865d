"""The pytest plugin: ``pytest_plugins = ["gpu_conv.testing.plugin"]`` in the ``conftest.py`` at the top."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .devices import DEVICES, Device, missing, use


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The test runs three times: on NumPy, with the CUDA kernels in the emulator, on the GPU if there is one."""
    if reason := missing(request.param):
        pytest.skip(reason)
    with use(request.param) as chosen:
        yield chosen
