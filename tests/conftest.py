"""Options and fixtures of the whole suite."""

import gc
import importlib.util
import os

import numpy as np
import pytest

# Parsing a kernel makes 100,000 objects that live on; looking through them again and again took 15 % of the time.
gc.set_threshold(200_000, 20, 100)


def pytest_addoption(parser):
    parser.addoption(
        "--configurations", type=int, default=2000, help="random configurations per run of the tests against peers"
    )


def pytest_collection_modifyitems(config, items):
    """Only two kinds of tests may be left out, and .ci/run knows them by these reasons."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "jax", "cupy")):
        _skip(config, items, "peers", "needs the extra peers")
    if not _cuda_device():
        _skip(config, items, "gpu", "needs a CUDA device")


def _skip(config, items, marker, reason):
    """The first test of a file says so for all of them: 5,000 skipped one by one took seven seconds."""
    left_out = [item for item in items if item.get_closest_marker(marker)]
    first = {item.path: item for item in reversed(left_out)}.values()
    for item in first:
        item.add_marker(pytest.mark.skip(reason=reason))
    silent = {id(item) for item in left_out} - {id(item) for item in first}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in silent])
    items[:] = [item for item in items if id(item) not in silent]


def _cuda_device():
    if not importlib.util.find_spec("cupy"):
        return False
    import cupy

    return cupy.cuda.is_available()


@pytest.fixture(scope="session")
def seed():
    """The seed of this run, printed at its end; GPU_CONV_SEED repeats a run."""
    return int(os.environ.get("GPU_CONV_SEED", np.random.SeedSequence().entropy % 2**32))


def pytest_terminal_summary(terminalreporter):
    properties = [dict(report.user_properties) for report in terminalreporter.getreports("")]
    seeds = {found.get("seed") for found in properties} - {None}
    if seeds:
        terminalreporter.write_line(f"seed: {', '.join(map(str, sorted(seeds)))} (GPU_CONV_SEED repeats it)")
    for line in {found.get("mutants") for found in properties} - {None}:
        terminalreporter.write_line(line)
    passed = [dict(report.user_properties).get("onnx_backend") for report in terminalreporter.getreports("passed")]
    for device in sorted({case[0] for case in passed if case}):
        names = sorted(case[1] for case in passed if case and case[0] == device)
        terminalreporter.write_line(f"ONNX backend cases passed on {device}: {len(names)}: {' '.join(names)}")
