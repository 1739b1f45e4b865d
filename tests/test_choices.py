"""Measured choices are followed: those of every family, and for the arrays of both libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv import choices, dispatch, execute
from gpu_conv.arguments import prepare
from gpu_conv.emulator import Emulator
from gpu_conv.layout import settled
from gpu_conv.tune import candidates

ARCH = "sm_90a"
NHWC: dict[str, Any] = dict(input_layout="nhwc", filter_layout="ohwi")
# Together they reach every family.
LAYERS: list[tuple[tuple[int, ...], tuple[int, ...], str, dict[str, Any]]] = [
    ((1, 64, 9, 9), (64, 64, 1, 1), "float16", {}),
    ((1, 9, 9, 64), (64, 3, 3, 64), "float16", NHWC),
    ((1, 9, 9, 64), (64, 1, 1, 64), "float32", NHWC),
    ((2, 28, 28, 64), (64, 3, 3, 1), "float16", dict(groups=64, padding=1, **NHWC)),
    ((1, 14, 14, 64), (64, 3, 3, 1), "int8", dict(groups=64, padding=1, **NHWC)),
    ((1, 16, 14, 14), (16, 1, 9, 9), "float16", dict(groups=16, padding=4)),
    ((1, 16, 14, 14), (16, 1, 3, 3), "float32", dict(groups=16, padding=1)),
    ((1, 16, 64), (16, 1, 9), "float32", dict(groups=16, padding=4)),
    ((1, 16, 12, 12), (16, 16, 3, 3), "float32", dict(padding=1)),
    ((1, 16, 16, 3), (16, 3, 3, 3), "float16", dict(padding=1, strides=2, **NHWC)),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tuned.json"


def test_whatever_is_fastest_is_followed(file: Path) -> None:
    target, families = execute.target("emulator", ARCH), set()
    for x, w, dtype, options in LAYERS:
        problem = prepare(np.zeros(x, dtype), np.zeros(w, dtype), **options).problem
        for candidate in candidates(problem, target, most=2):
            families.add(candidate.kernel)
            key = choices.signature(problem)
            choice = choices.Choice(str(problem), key, **candidate.facts(), us=1.0, table_us=2.0)
            choices.write(file, choices.stamp(target, None, "13.0"), [asdict(choice)])
            with gpu_conv.tuned(file) as found:
                assert dispatch.select(problem, target, choices=found).name == candidate.kernel
                assert dispatch.plan(problem, target, choices=found) == candidate.launch
    assert families == {row.name for row in dispatch.TABLE}, "a layer for every row"


@pytest.mark.peers
def test_what_was_tuned_with_numpy_is_followed_for_cupy(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's ``reshape`` sets other strides of axes of length 1: the problem has to be the same, or it is not found."""
    cupy = pytest.importorskip("cupy")

    def array(shape: tuple[int, ...], dtype: Any = "float16") -> Any:
        """Without a device: nothing is behind the address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = cupy.cuda.UnownedMemory(0x10000, size, None, 0)
        return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0))

    monkeypatch.setattr("gpu_conv.arguments.overlap", lambda a, b: False)
    for x, w, dtype, options in LAYERS:
        wanted = prepare(np.zeros(x, dtype), np.zeros(w, dtype), **options).problem
        assert prepare(array(x, dtype), array(w, dtype), empty=array, **options).problem == wanted
    x, w = (2, 28, 28, 64), (5, 5, 1, 64)
    layer = dict(groups=64, padding=2, input_layout="nhwc", filter_layout="hwio")
    monkeypatch.setattr(Emulator, "run", lambda self, launch, operands: operands["y"].fill(1))

    def timer(calls: Sequence[Any]) -> float:
        return 5.0 if calls[0].args[0].kernel == "depthwise_nhwc" else 10.0

    gpu_conv.tune(x, w, dtype="float16", path=file, timer=timer, device="emulator", arch=ARCH, most=2, **layer)
    problem, target = prepare(array(x), array(w), empty=array, **layer).problem, execute.target("emulator", ARCH)
    with gpu_conv.tuned(file) as found:
        assert dispatch.select(problem, target).name == "depthwise_nhwc_tile"
        assert dispatch.select(problem, target, choices=found).name == "depthwise_nhwc"


def test_axes_of_length_one_have_the_strides_that_numpys_reshape_sets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = rng.integers(1, 4, 4)
        array = np.zeros(shape).transpose(rng.permutation(4))
        with_ones = list(array.shape)
        for at in sorted(rng.integers(0, 5, 2), reverse=True):
            with_ones.insert(at, 1)
        view = array.reshape(with_ones)
        wanted = tuple(s // 8 for s in view.strides)
        given = [int(rng.integers(99)) if n == 1 else s for n, s in zip(view.shape, wanted, strict=True)]
        assert settled(view.shape, given) == wanted
