"""Options and fixtures of the whole suite."""

import os

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--configurations", type=int, default=2000, help="random configurations per run of the tests against peers"
    )


@pytest.fixture(scope="session")
def seed():
    """The seed of this run, printed at its end; GPU_CONV_SEED repeats a run."""
    return int(os.environ.get("GPU_CONV_SEED", np.random.SeedSequence().entropy % 2**32))


def pytest_terminal_summary(terminalreporter):
    seeds = {dict(report.user_properties).get("seed") for report in terminalreporter.getreports("")} - {None}
    if seeds:
        terminalreporter.write_line(f"seed: {', '.join(map(str, sorted(seeds)))} (GPU_CONV_SEED repeats it)")
