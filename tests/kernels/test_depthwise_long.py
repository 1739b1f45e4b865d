"""The kernel for any depthwise filter, with long rows of taps: its wide tiles."""

from itertools import product

import numpy as np
import pytest

from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.families import depthwise

from . import checking
from .checking import ARCHES, arrays, run
from .test_depthwise import ANY, go

LONG = [  # columns from which the planner takes each of these tiles, channels last or first
    (True, range(9, 27)),
    (True, range(2, 9)),
    (False, range(12, 76, 4)),
    (False, (8,) + (4,) * 15),
    (False, (1, 2, 3, 5, 6, 7, 9, 15, 17, 23, 26)),
]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("tile", "last", "sizes"), [(t, *s) for t, s in zip(depthwise.LONG_TILES, LONG, strict=True)])
def test_long_filters(monkeypatch, tile, last, sizes, dtype, arch):
    """Every tile: columns and taps around its edges, every phase of the padding, rows and slices of a filter."""
    monkeypatch.setattr(depthwise, "FULL", 0)  # small problems take wide tiles too
    for (i, columns), residual in product(enumerate(sizes), (False, True)):
        before = (2, 5, 0, 3, 9, -1, 21, 6)[i % 8]
        k = 9 + (i + before % tile.along - 9) % tile.chunk  # every last chunk, and below every residue of the outputs
        after = k - 1 - before + (i // 4 % 4 if tile.along > 1 else 0)
        rows, rest = ((), (3,), (2, 2))[i % 3], ((), ((1, 1),), ((1, 0), (0, 1)))[i % 3]
        launch = go(
            ANY, 1, 6, (*(3,) * len(rows), columns), (*rows, k), last=last, padding=(*rest, (before, after)),
            w_layout="dhwio"[2 - len(rows) :] if last and i % 2 else None, dtype=dtype,
            residual=residual, batch=1 + i % 2, target=arch,
        )  # fmt: skip
        assert launch.template[3:7] == tile


@pytest.mark.parametrize("arch", ARCHES)
def test_long_filters_in_the_corners_of_the_table(monkeypatch, arch):
    """Dilated windows, several outputs of a channel, vectors that strides or addresses forbid."""
    monkeypatch.setattr(depthwise, "FULL", 0)
    for columns in (9, 24, 40):
        options = {"padding": ((9, 11),), "dilations": 2, "target": arch, "dtype": "float32"}
        assert go(ANY, 1, 4, (columns,), (11,), last=True, **options).template[3] == 2
        assert go(ANY, 2, 3, (columns,), (11,), last=columns > 9, **options).template[3] == 1
        options |= {"dilations": 1, "dtype": "float16", "residual": True}
        assert go(ANY, 2, 3, (2, columns), (2, 11), last=False, **options | {"padding": 5}).template[3] == 1
    x, w = arrays("float32", 1, 3, 1, (24,), (11,))
    for view in (x[..., 1:17], x[..., ::2], x[..., :15]):
        assert run(ANY, view, w, groups=3, padding=5, target=arch).template[6] == 1
    assert run(ANY, x[..., 4:20], w, groups=3, padding=5, target=arch).template[6] == 4


def test_wide_tiles_of_long_filters_where_they_fill_the_device():
    def columns(batch, length):
        x, w = np.zeros((batch, length, 512), "float16"), np.zeros((512, 1, 31), "float16")
        problem = checking.problem(x, w, groups=512, padding=15, input_layout="nwc")
        return ANY.plan(problem, KNOWN_TARGETS["sm_90a"]).template[4]

    assert [columns(*size) for size in ((1, 500), (8, 500), (64, 500), (64, 8))] == [8, 16, 16, 8]
