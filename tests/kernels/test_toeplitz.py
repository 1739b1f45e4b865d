"""The depthwise tensor-core kernel: windows, bands, strips, tails and non-finite values, in both PTX dialects."""

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError
from gpu_conv.families import toeplitz, toeplitz_tiles
from gpu_conv.launch import Target

from . import checking
from .checking import ARCHES, arrays, run

(ROW,) = toeplitz.ROWS
FILE = "depthwise_toeplitz.cu"


def go(size, taps, *, groups=2, multiplier=1, dtype="float16", exact=True, batch=2, **options):
    """Arrays and one run; returns the launch."""
    x, w = arrays(dtype, 1, groups, multiplier, size, taps, batch=batch, exact=exact)
    return run(ROW, x, w, groups=groups, exact=exact, **options)


def test_params_match_the_header():
    checking.assert_params_match(FILE, toeplitz.PARAMS)


@pytest.mark.parametrize("stride", [1, 2])
def test_residues(stride):
    """All residues of the columns modulo the blocks of 8, hence copies of 4, 2 and 1 columns; rows around chunks."""
    rows = (4, 10, 16) if stride == 1 else (7, 15, 1)
    for columns in range(1, 17):
        go((rows[columns % 3], columns), (3, 3), target=ARCHES[columns // 4 % 2], padding=1, strides=stride, groups=1)


@pytest.mark.parametrize("arch", ARCHES)
def test_shapes_of_one_instantiation(arch, monkeypatch):
    """Maps of 24 columns whose other sizes vary: images, channels, rows, padding; several chunks for each warp."""
    monkeypatch.setattr(toeplitz_tiles, "CHUNKS", 100)
    cases = (
        (1, 1, 3, (1, 1)),
        (2, 5, 1, (0, 2)),
        (9, 3, 2, (2, 0)),
        (16, 1, 1, (3, 4)),
        (25, 2, 1, (-2, 1)),
        (8, 9, 2, (5, 0)),
    )
    for rows, batch, groups, padding in cases:
        for columns in ((1, 1), (2, 0)):
            options = {"groups": groups, "batch": batch, "padding": (padding, columns), "bias": "float32"}
            go((rows, 24), (3, 3), target=arch, **options)


@pytest.mark.parametrize("arch", ARCHES)
def test_shapes_of_one_tall_instantiation(arch):
    for batch, groups, padding in ((1, 2, (7, 7)), (5, 1, (9, 5)), (3, 2, (6, 8)), (2, 1, (14, 0)), (9, 3, (-2, 16))):
        options = {"groups": groups, "batch": batch, "padding": (padding, (7, 7)), "bias": "float32"}
        assert go((17, 12), (15, 15), target=arch, **options).kernel == "depthwise_toeplitz_tall"


@pytest.mark.parametrize(
    ("taps", "stride"),
    [
        ((1, 1), 1),
        ((2, 2), 2),
        ((4, 4), 1),
        ((5, 5), 2),
        ((6, 7), 1),
        ((7, 7), 2),
        ((9, 9), 1),
        ((7, 1), 1),
        ((3, 31), 1),
    ],
)
def test_filters(taps, stride):
    """Padding that differs on the two sides, filters larger than the map."""
    padding = tuple((k // 2, (k - 1) // 2) for k in taps)
    target = ARCHES[sum(taps) % 2]
    go((12, 16 if stride == 1 else 14), taps, target=target, padding=padding, strides=stride, groups=1, batch=3)


@pytest.mark.parametrize("padding", [((-1, 2), (3, -2)), ((4, 5), (6, 1)), ((0, 0), (0, 0)), ((9, 0), (0, 20))])
def test_padding(padding):
    """Cropping, every phase of the alignment, and windows that lie in the padding."""
    for arch, columns in zip(ARCHES, (20, 18)):
        go((9, columns), (3, 3), target=arch, padding=padding, groups=1)


@pytest.mark.parametrize("arch", ARCHES)
def test_wide_maps_are_cut_into_strips(arch):
    for columns in (128, 260):
        go((5, columns), (3, 3), target=arch, padding=1, groups=1, batch=1)
    go((7, 264), (5, 5), target=arch, padding=2, strides=2, groups=1, batch=1)


@pytest.mark.parametrize("arch", ARCHES)
def test_one_axis(arch):
    """The images are the rows: a filter of one row mixes none of them."""
    for length, taps, batch in ((132, 4, 1), (50, 31, 5), (300, 31, 3), (132, 87, 9)):
        go((length,), (taps,), target=arch, padding=((taps - 1, 0),), batch=batch)
    go((1, 132), (1, 4), target=arch, padding=((0, 0), (2, 2)), batch=3, strides=2)


@pytest.mark.parametrize("arch", ARCHES)
def test_strips_of_few_images_are_rows(arch):
    """Copies of 4, 2 and 1 columns; the last strip whole, of one column, of an odd number; padding on either side."""
    for length, taps, batch, padding in (
        (256, 31, 1, (15, 15)),
        (257, 9, 2, (8, 0)),
        (650, 128, 1, (127, 0)),
        (390, 63, 3, (0, 62)),
        (1100, 87, 1, (-3, 90)),
    ):
        options = {"target": arch, "padding": (padding,), "batch": batch, "bias": "float32", "residual": taps == 31}
        launch = go((length,), (taps,), **options)
        assert launch.grid[2] == 1 and np.frombuffer(launch.params, toeplitz.PARAMS)[0]["shift"] == 128
    x, w = arrays("float16", 1, 2, 1, (300,), (31,), batch=1, exact=False)
    x[0, 0, 127], x[0, 1, 256], x[0, 1, -1] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        run(ROW, x, w, groups=2, padding=15, exact=False, target=arch, activation="relu", residual=True)


def test_many_images_and_groups_per_warp(monkeypatch):
    """The ring runs on from one group of streams to the next, and warps find less work than others."""
    monkeypatch.setattr(toeplitz_tiles, "CHUNKS", 100)
    for size, taps, batch in (((14, 14), (3, 3), 37), ((6, 28), (5, 5), 21), ((7, 7), (3, 3), 40)):
        launch = go(size, taps, padding=taps[0] // 2, batch=batch)
        assert launch.grid[0] <= 4


def test_bands():
    """A large device cuts a small problem into bands of a few rows."""
    large = Target("sm_80", 108, 163 * 1024)
    for columns, stride in ((16, 1), (28, 2), (13, 1)):
        x, w = arrays("float16", 1, 4, 1, (23, columns), (5, 5), batch=3)
        options = {"groups": 4, "padding": 2, "strides": stride}
        cut = ROW.plan(checking.problem(x, w, **options), large)
        run(ROW, x, w, edit=lambda launch, cut=cut: cut, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_and_epilogues(dtype):
    """Rounding of sums, bias in both dtypes, residual, output of another dtype, activations that are not linear."""
    for arch, bias, out, activation, columns in (
        ("sm_80", "float32", dtype, "silu", 12),
        ("sm_120", dtype, dtype, ("clip", -0.25, 0.5), 9),
        ("sm_80", "float32", "float32", "gelu", 12),
        ("sm_120", False, "float16", "hard_swish", 14),
    ):
        go(
            (9, columns), (3, 3), dtype=dtype, exact=False, target=arch, padding=1,
            bias=bias, out_dtype=out, activation=activation, residual=True,
        )  # fmt: skip


def test_multipliers():
    for groups, multiplier in ((3, 2), (1, 3), (2, 1)):
        go((5, 8), (3, 3), groups=groups, multiplier=multiplier, padding=1, bias="float32", residual=True)


def test_strided_filters_and_views():
    """Any strides of w; rows, channels and images of x, y and the residual that lie apart."""
    x, w = arrays("float16", 1, 4, 1, (9, 16), (3, 5))
    wide = np.zeros((4, 9, 9, 32), x.dtype)
    wide[::2, 1:9:2, :, 8:24] = x
    options = {"groups": 4, "padding": ((1, 1), (2, 2)), "residual": True}
    run(ROW, wide[::2, 1:9:2, :, 8:24], w, **options)
    run(ROW, x, w[:, :, ::-1, ::-1], **options)
    run(ROW, x, np.asfortranarray(w), flip_filter=True, **options)
    turned = np.ascontiguousarray(np.moveaxis(x, 2, 0))  # hncw
    run(ROW, turned, w, input_layout="hncw", **options)


def test_misaligned_arrays_take_narrower_copies():
    for shift, vector in ((1, 1), (2, 2), (4, 4)):
        x, w = arrays("float16", 1, 3, 1, (5, 16), (3, 3))
        buffer = np.empty(x.size + shift, x.dtype)
        buffer[shift:] = x.ravel()
        launch = run(ROW, buffer[shift:].reshape(x.shape), w, groups=3, padding=1)
        assert launch.template[7] == vector


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("columns", "stride"), [(24, 1), (21, 1), (20, 2)])
def test_non_finite_inputs_stay_in_their_receptive_field(arch, columns, stride):
    """At corners and borders, in the second image, beside zero weights: 0 * Inf is NaN in the field, and only there."""
    x, w = arrays("float16", 1, 3, 1, (20, columns), (5, 5), exact=False)
    w[1, :, 2] = 0
    x[0, 0, 0, 0], x[0, 1, 10, 11], x[0, 1, 3, 8] = np.inf, -np.inf, np.inf
    x[0, 0, 19, -1], x[1, 2, 0, -1] = np.nan, np.nan
    for activation, residual in ((None, False), ("relu6", True), ("silu", False)):
        options = {"activation": activation, "residual": residual, "strides": stride, "bias": "float32"}
        with np.errstate(invalid="ignore"):
            run(ROW, x, w, groups=3, padding=2, exact=False, target=arch, **options)


def test_every_place_of_a_non_finite_input():
    """Each column of a small map in turn: no place in a block hides it."""
    for column in range(12):
        x, w = arrays("bfloat16", 1, 2, 1, (3, 12), (3, 3), batch=3)
        for row, value in enumerate((np.inf, -np.inf, np.nan)):
            x[row, row % 2, row, column] = value
        run(ROW, x, w, groups=2, padding=1, exact=False)


def test_sums_beyond_float32_stay_infinite():
    """bfloat16 reaches 3e38: products that overflow are no reason to touch a neighbour."""
    x, w = arrays("bfloat16", 1, 2, 1, (5, 12), (3, 3), batch=1)
    x[0, 0, 2, 5] = 3e38
    w[...] = 2
    with np.errstate(over="ignore"):
        run(ROW, x, w, groups=2, padding=1, exact=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 4}, "2 input channels"),
        ({"strides": (1, 2)}, "the same along rows and columns"),
        ({"strides": 3}, "takes 1 or 2"),
        ({"dilations": 2}, "dilations"),
        ({"input_layout": "nhwc"}, "last axis of x has stride"),
    ],
)
def test_refusals(options, reason):
    options = {"groups": 8, **options}
    x = np.zeros((1, 8, 8, 8), "float16")
    w = np.zeros((8, 8 // options["groups"], 3, 3), "float16")
    assert reason in ROW.refuses(checking.problem(x, w, **options), checking.TARGETS["sm_80"])


def test_refuses_dtypes_devices_and_filters():
    def refusal(taps=(3, 3), dtype="float16", target=checking.TARGETS["sm_80"]):
        x, w = np.zeros((1, 4, 20, 20), dtype), np.zeros((4, 1, *taps), dtype)
        return ROW.refuses(checking.problem(x, w, groups=4, padding=40), target)

    assert "float32" in refusal(dtype="float32")
    assert "8.0" in refusal(target=Target("sm_75", 40, 64 * 1024))
    assert "63x73" in refusal((64, 3))
    assert refusal((13, 13)) is None


def test_small_shared_memory_takes_fewer_streams():
    """13 x 13 on 7 x 7 maps: 16 streams would need more shared memory than most devices have."""
    x, w = arrays("float16", 1, 2, 1, (7, 7), (13, 13), batch=5, exact=False)
    launch = run(ROW, x, w, target="sm_120", groups=2, padding=6, exact=False)
    assert launch.shared_bytes <= 99 * 1024


@pytest.mark.parametrize(
    ("size", "taps", "arch", "batch"),
    [((14, 14), (27, 27), "sm_80", 20), ((28, 28), (29, 15), "sm_120", 3), ((9, 13), (31, 31), "sm_80", 2)],
)
def test_tall_filters(size, taps, arch, batch):
    """More rows than registers hold: bands of 7 and 8 rows, one and two products, windows cut to the map."""
    padding = tuple((k // 2, k // 2 - 1) for k in taps)
    launch = go(size, taps, target=arch, padding=padding, groups=1, batch=batch, residual=True, activation="relu")
    assert launch.kernel == "depthwise_toeplitz_tall"
    go((20, 140), taps, target=arch, padding=padding, groups=1, batch=1)
    x, w = arrays("bfloat16", 1, 2, 1, size, taps, exact=False)
    x[0, 0, 0, 0], x[1, 1, -1, -1] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        run(ROW, x, w, target=arch, groups=2, padding=13, exact=False)


PLANTED = [
    ("__syncwarp();  // this", "// this"),
    (
        "shared_store_16(ring + i, {0, 0, 0, 0})",
        "shared_store_16(ring + i, {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00})",
    ),
    ("copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
    ("return uint32(row) < uint32(p.in[0]);", "return row < p.in[0];"),
    ("row[c] = stream.exists ? first : p.in[0];", "row[c] = first;"),
    ("min_of(p.band, p.out[0] - s.first_row)", "p.band"),
    ("uint32(first + step) < uint32(rows[half])", "first + step < rows[half]"),
    ("rows[half] = columns[half] > 0 ? units[half].rows(p, stream) : 0;", "rows[half] = units[half].rows(p, stream);"),
    ("left >= STAGES", "left > STAGES"),
    ("if (!RESIDUAL && __any_sync(0xffffffffu, probe != probe)) again = 0;", ""),
    ("if (!kProbeFirst) probe =", "if (!kProbeFirst && half) probe ="),
    ("sum[(step + 1) % Walk::kLive];", "sum[step % Walk::kLive];"),
    (": min_of(window + width, p.in[1]);", ": window + width;"),
    ("uint32(window + (place[c] & 0xffff) + row * p.shift) >= uint32(p.in[1])", "false"),
    ("exist = min_of(exist, max_of(row_columns[half], 0));", ""),
    ("column + shift >= p.out[1]", "column >= p.out[1]"),
]


@pytest.mark.parametrize(("old", "new"), PLANTED)
def test_planted_bugs_are_found(monkeypatch, old, new):
    checking.plant(monkeypatch, FILE, old, new)
    monkeypatch.setattr(toeplitz_tiles, "CHUNKS", 100)
    with pytest.raises((AssertionError, EmulationError)):
        run_all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if (uint32(tap - o) >= uint32(p.filter[0])) continue;", "if (tap - o >= p.filter[0]) continue;"),
        ("    __syncthreads();", ""),
        ("+ 2 * t - g - p.lead;", "+ 2 * t - g;"),
        ("__syncwarp();  // this", "// this"),
        ("return min_of(group % p.bands * p.band + p.band - 1", "return min_of(group % p.bands * p.band + p.band - 2"),
        ("if (__any_sync(0xffffffffu, probe != probe)) {", "if (false) {"),
    ],
)
def test_planted_bugs_in_tall_filters_are_found(monkeypatch, old, new):
    checking.plant(monkeypatch, "depthwise_toeplitz_tall.cu", old, new)
    x, w = arrays("float16", 1, 1, 1, (17, 28), (15, 15), batch=9)
    with pytest.raises((AssertionError, EmulationError)):
        run_tall(x, w)


def run_tall(x, w):
    run(ROW, x, w, groups=1, padding=7)
    x[4, 0, 3, 5] = np.inf
    run(ROW, x, w, groups=1, padding=7, exact=False)


def run_all():
    go((300,), (31,), padding=((15, 15),), batch=1, groups=1)
    x, w = arrays("float16", 1, 1, 1, (300,), (31,), batch=1, exact=False)
    x[0, 0, 290] = np.inf
    run(ROW, x, w, groups=1, padding=15, exact=False)
    go((13, 14), (3, 3), padding=1, batch=21, groups=1)
    go((13, 12), (3, 3), padding=1, batch=3, groups=1)
    go((13, 13), (3, 3), padding=1, batch=3, groups=1)
    x, w = arrays("float16", 1, 2, 1, (13, 14), (3, 3), exact=False)
    x[0, 0, 4, 3] = np.inf
    run(ROW, x, w, groups=2, padding=1, exact=False)


def test_lean():
    """No spills, no local memory on any architecture, for the epilogues that need most registers."""
    problems = []
    for size, taps, stride in (((56, 56), 3, 1), ((28, 28), 7, 2)):
        x, w = arrays("float16", 1, 2, 1, size, (taps, taps), batch=1)
        problems.append(checking.problem(x, w, groups=2, padding=taps // 2, strides=stride, activation="gelu"))
    for arch in ("sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"):
        checking.assert_lean([ROW.plan(p, Target(arch, 100, 99 * 1024)) for p in problems], [arch])
