"""Kernels with one mistake each: found in both PTX dialects, at the marked source line, with any schedule."""

import numpy as np
import pytest

from .cuda import DIALECTS, launch, marked_lines

X = np.random.default_rng(0).integers(-9, 9, 4096).astype(np.float32)


def rows(n):
    return np.full(n, np.nan, np.float32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


# name, good template argument, bad one, grid, block, arguments with y second, expected y
CASES = {
    "barrier": (4, 128, lambda: [X[:514], rows(512)], lambda: X[:512] + X[1:513] + X[2:514]),
    "overwrite": (1, 128, lambda: [X[:256], rows(256)], lambda: X[:256].reshape(2, 128)[:, ::-1].ravel()),
    "halo": (2, 64, lambda: [X[:100], rows(100), 100], lambda: np.convolve(X[:100], [1, 1, 1], "same")),
    "vector": (3, 8, lambda: [X[:96].reshape(3, 32), rows(96), 32], lambda: X[:96]),
    "wait": (1, 128, lambda: [X[:640], rows(640), 5], lambda: X[:640].reshape(-1, 2)[:, ::-1].ravel()),
    "tail": (4, 32, lambda: [X[:101], rows(101), 101], lambda: 2 * X[:101]),
    "warp": (1, 128, lambda: [X[:384], rows(384)],
             lambda: (X[:384].reshape(-1, 32)[:, ::-1] + X[:384].reshape(-1, 32)[:, :1]).ravel()),
    "fence": (5, 64, lambda: [X[:1280], rows(64), zeros(5, 64), zeros(1, dtype=np.int32)],
              lambda: X[:1280].reshape(20, 64).sum(0)),
    "overlap": (4, 32, lambda: [X[:250], rows(250), 250], lambda: 2 * X[:250]),
    "deadlock": (1, 64, lambda: [X[:64], rows(64)], lambda: X[63::-1]),
}  # fmt: skip


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("arch", DIALECTS)
@pytest.mark.parametrize("name", CASES)
def test_the_correct_kernel_is_clean(name, arch, seed):
    grid, block, arguments, expected = CASES[name]
    args = arguments()
    report = launch(
        f"{name}.cu",
        f"{name}<{0 if name == 'fence' else 'false'}>",
        grid,
        block,
        args,
        arch=arch,
        seed=seed,
        outputs=[1],
    )
    assert report.ok, report
    np.testing.assert_array_equal(args[1], expected())


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("arch", DIALECTS)
@pytest.mark.parametrize("name", [n for n in CASES if n != "fence"])
def test_the_bug_is_found_at_its_line(name, arch, seed):
    grid, block, arguments, _ = CASES[name]
    report = launch(f"{name}.cu", f"{name}<true>", grid, block, arguments(), arch=arch, seed=seed, outputs=[1])
    ((kind, lines),) = marked_lines(f"{name}.cu").items()
    found = [f for f in report.findings if f.kind == kind]
    assert found, report
    assert {s.line for f in found for s in f.source} & lines, report
    assert f"{name}.cu:" in str(report)
    assert found[0].block is not None
    assert found[0].ptx_line > 0


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("arch", DIALECTS)
@pytest.mark.parametrize("bug", [1, 2])
def test_missing_fences(bug, arch, seed):
    grid, block, arguments, _ = CASES["fence"]
    report = launch("fence.cu", f"fence<{bug}>", grid, block, arguments(), arch=arch, seed=seed)
    assert {f.kind for f in report.findings} == {"global race"}
    assert {f.source[0].line for f in report.findings} <= marked_lines("fence.cu")["global race"]


@pytest.mark.parametrize("arch", DIALECTS)
def test_bank_conflicts_are_counted_at_their_line(arch):
    x = X[:1024].reshape(32, 32)
    for bug, factor in (("false", 1), ("true", 32)):
        y = np.full_like(x, np.nan)
        report = launch("transpose.cu", f"transpose<{bug}>", 1, (32, 32), [x, y], arch=arch, outputs=[1])
        assert report.ok
        np.testing.assert_array_equal(y, x.T)
        conflicts = report.counters.bank_conflicts()
        if factor == 1:
            assert not conflicts
            continue
        assert conflicts[0].instruction.source[0].line in marked_lines("transpose.cu")["bank conflict"]
        assert conflicts[0].wavefronts == factor * conflicts[0].ideal_wavefronts


@pytest.mark.parametrize("arch", DIALECTS)
def test_unwritten_output(arch):
    for bug, left in (("false", 0), ("true", 2)):
        y = rows(102)
        report = launch(
            "missing.cu", f"missing<{bug}>", 1, 32, [X[:102], y, 102], arch=arch, outputs=[1], names=["x", "y", "n"]
        )
        assert len(report.findings) == bool(left), report
        assert np.isnan(y).sum() == left
    assert "2 of 102 elements of y were never written, first [100]" in str(report)


def test_numbers_alone_would_not_show_most_of_them():
    """Lockstep execution hides races: these kernels compute the right result here, and only the checks see the bug."""
    for name in ("barrier", "overwrite", "warp", "overlap"):
        grid, block, arguments, expected = CASES[name]
        args = arguments()
        assert not launch(f"{name}.cu", f"{name}<true>", grid, block, args).ok
        np.testing.assert_array_equal(args[1], expected())
