"""The depthwise kernels: tiles, tails, strides, filters, dilations, multipliers, in both PTX dialects."""

from itertools import product

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError
from gpu_conv.families import (
    depthwise,
    depthwise_common,
    depthwise_nchw,
    depthwise_nchw_tile,
    depthwise_ncw,
    depthwise_nhwc,
    depthwise_nhwc_tile,
)

from . import checking
from .checking import ARCHES, arrays, run

ROWS = {row.name: row for row in depthwise.ROWS}
NHWC, NCHW, NCW, ANY = (ROWS[name] for name in ("depthwise_nhwc", "depthwise_nchw", "depthwise_ncw", "depthwise"))
NHWC_TILE, NCHW_TILE = ROWS["depthwise_nhwc_tile"], ROWS["depthwise_nchw_tile"]
FAMILIES = (depthwise, depthwise_nchw, depthwise_nchw_tile, depthwise_ncw, depthwise_nhwc, depthwise_nhwc_tile)
LAYOUT = {1: "nwc", 2: "nhwc", 3: "ndhwc"}


def go(row, multiplier, groups, size, taps, *, last, dtype="float16", exact=True, w_layout=None, **options):
    """Arrays and one run; returns the launch."""
    batch = options.pop("batch", 2)
    x, w = arrays(dtype, 1, groups, multiplier, size, taps, batch=batch, last=last, w_layout=w_layout, exact=exact)
    if last:
        options["input_layout"] = LAYOUT[len(size)]
    if w_layout:
        options["filter_layout"] = w_layout
    return run(row, x, w, groups=groups, exact=exact, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_params_match_the_header(family):
    checking.assert_params_match(f"{family.__name__.split('.')[-1]}.cu", family.PARAMS)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("stride", [1, 2])
def test_nhwc_residues(arch, stride):
    """All residues of the columns modulo the strip, rows around every band edge, vectors of 4, 2 and 1 channels."""
    for columns, rows, groups in zip(
        range(1, 13), (1, 2, 3, 6, 7, 8, 13, 14, 15, 16, 17, 23), (8, 2, 3) * 4, strict=True
    ):
        options = {"padding": 1, "strides": stride, "w_layout": "hwio", "bias": columns % 2 and "float32"}
        go(NHWC, 1, groups, (rows, columns), (3, 3), last=True, target=arch, **options)
    go(NHWC, 1, 64, (5, 45 * stride), (3, 3), last=True, target=arch, **options)  # several blocks for a band


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("stride", [1, 2])
def test_nchw_residues(arch, stride):
    """All residues of the columns modulo the strip, hence vectors of 8 to 1 elements and single loads at both edges."""
    for columns, rows in zip(range(1, 25), (1, 2, 3, 6, 7, 8, 13, 14) * 3, strict=True):
        if columns * stride > 1:
            options = {"padding": 1, "strides": stride, "batch": 1, "bias": columns % 2 and "float32"}
            go(NCHW, 1, 3, (rows, columns), (3, 3), last=False, target=arch, **options)
    go(NCHW, 1, 40, (9, 26), (3, 3), last=False, target=arch, **options | {"batch": 2})  # several blocks


@pytest.mark.parametrize("arch", ARCHES)
def test_nhwc_tile_residues(arch):
    """Channels, columns and rows around the edges of every tile."""
    for groups, rows, columns in ((8, 1, 1), (16, 13, 17), (64, 15, 15), (72, 12, 16), (136, 7, 8), (8, 29, 31)):
        go(NHWC_TILE, 1, groups, (rows, columns), (3, 3), last=True, target=arch, padding=1, batch=1, w_layout="hwio")
        for padding in (((0, 2), (3, 0)), ((9, 1), (20, 3))):
            options = {"padding": padding, "batch": 1, "bias": "float32", "target": arch}
            go(NHWC_TILE, 1, groups, (rows, columns), (3, 3), last=True, **options)
    for dilations in ((2, 3), (3, 1), (1, 2)):  # phases of rows and columns, more than one image
        options = {"padding": 2, "dilations": dilations, "target": arch, "last": True}
        go(NHWC_TILE, 1, 24, (19, 37), (3, 3), batch=2, **options)


@pytest.mark.parametrize(("tile", "arch"), list(zip(depthwise_nhwc_tile.TILES, ARCHES * 6, strict=True)))
def test_every_nhwc_tile(monkeypatch, tile, arch):
    monkeypatch.setattr(depthwise_nhwc_tile, "TILES", (tile,))
    size, channels = (tile.rows + 3, tile.columns + 5), tile.channels + 8
    launch = go(NHWC_TILE, 1, channels, size, (tile.taps,) * 2, last=True, target=arch, padding=1, batch=1)
    assert launch.block[0] == tile.threads


@pytest.mark.parametrize(("arch", "stride"), list(zip(ARCHES * 2, (1, 2, 2, 1), strict=True)))
def test_nchw_tile_residues(arch, stride):
    """Rows that start anywhere in a 16-byte unit, groups of planes, bands, exact and ragged thread tiles."""
    for size in ((7, 1), (7, 3), (7, 7), (7, 14), (14, 7), (28, 28), (9, 9), (9, 13), (9, 203), (70, 105), (1, 7)):
        options = {"padding": 1, "strides": stride, "batch": 1, "bias": "float32", "target": arch}
        go(NCHW_TILE, 1, 5, size, (3, 3), last=False, **options)
    options |= {"batch": 3}
    go(
        NCHW_TILE, 1, 7, (21 * stride, 35 * stride), (3, 3), last=False, **options
    )  # planes of several images in a block
    go(NCHW_TILE, 1, 1, (140, 105), (3, 3), last=False, **options | {"batch": 2})  # several bands of a plane


@pytest.mark.parametrize("arch", ARCHES)
def test_nchw_tile_shapes_of_one_instantiation(arch):
    """Thread tiles of 5x5 that do not fit, or whose padding is not known to the compiler."""
    for rows, columns, padding in (
        (9, 19, ((1, 1), (1, 1))), (19, 9, ((0, 2), (2, 0))), (10, 9, ((3, -1), (-2, 4))), (9, 9, ((5, -3), (-1, 3))),
        (20, 19, ((2, 0), (0, 2))),
    ):  # fmt: skip
        options = {"padding": padding, "batch": 1 + rows % 3, "bias": "float32", "target": arch, "last": False}
        launch = go(NCHW_TILE, 1, 3, (rows, columns), (3, 3), **options)
        assert launch.template[3:10] == (5, 5, 3, 3, 1, -1, -1)


def test_nchw_tile_filters():
    for k, dtype, arch in ((2, "float16", "sm_80"), (5, "float32", "sm_120"), (7, "float16", "sm_80")):
        for padding in (((k // 2, (k - 1) // 2),) * 2, ((-1, 3), (4, 0))):
            go(NCHW_TILE, 1, 4, (14, 21), (k, k), last=False, dtype=dtype, target=arch, padding=padding, residual=True)


@pytest.mark.parametrize("taps", [(k, k) for k in range(1, 8)] + [(1, 7), (7, 1), (2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_filters(taps, stride):
    """Even and odd filters with padding that differs on the two sides."""
    padding = tuple((k // 2, (k - 1) // 2) for k in taps)
    arch = ARCHES[(sum(taps) + stride) % 2]
    for row, last in ((NHWC, True), (NCHW, False)):
        go(row, 1, 4, (9, 12), taps, last=last, target=arch, padding=padding, strides=stride, batch=1)


@pytest.mark.parametrize("arch", ARCHES)
def test_every_bound(arch):
    """Padding wider than the window of a thread: each of its unrolled loads leaves the map on every side."""
    for columns in range(1, 5):
        for groups in (3, 4):
            options = {"padding": ((5, 5), (7, 7)), "batch": 1, "target": arch}
            go(NHWC, 1, groups, (columns, columns), (3, 3), last=True, **options)
    for columns, rows in product((1, 3, 6, 8), (5, 6)):
        options = {"padding": ((5, 5), (1, 9)), "batch": 1, "target": arch}
        go(NCHW, 1, 3, (rows, columns), (3, 3), last=False, **options)


@pytest.mark.parametrize("arch", ARCHES)
def test_every_index(monkeypatch, arch):
    """More than one of everything that a block number is divided into: blocks, bands, phases, slices, images."""
    monkeypatch.setattr(depthwise_common, "HEIGHTS", (2,))
    options = {"padding": ((0, 0), (2, 3), (1, 1)), "target": arch}
    for multiplier, groups in ((1, 132), (2, 18)):
        go(NHWC, multiplier, groups, (2, 8, 11), (1, 3, 3), last=True, dilations=(1, 3, 2), **options)
    for columns in (9, 10, 16):
        x, w = arrays("float16", 1, 3, 2, (2, 8, columns), (1, 3, 3), batch=3)
        w = np.ascontiguousarray(w.reshape(3, 2, *w.shape[1:]).swapaxes(0, 1))  # groups are not the slowest
        run(NCHW, x, w, groups=3, filter_layout="ogidhw", dilations=(1, 3, 1), **options)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("multiplier", "groups", "last"), [(1, 4, True), (2, 3, False), (2, 3, True)])
def test_any_residues(arch, multiplier, groups, last):
    """Strips around and beyond the ends of rows, with and without a residual; unequal sizes along every axis."""
    for columns, residual in product(range(1, 9), (False, True)):
        options = {"padding": ((1, 1), (11, 11)), "residual": residual, "target": arch, "last": last}
        go(ANY, multiplier, groups, (1 + columns % 3, columns), (3, 3), batch=1, **options)
    options |= {"padding": ((1, 0), (1, 1), (3, 2)), "dilations": (1, 1, 2), "batch": 3, "bias": "float32"}
    for residual in (False, True):
        go(ANY, multiplier, 3 * groups, (3, 4, 19), (2, 3, 3), **options | {"residual": residual})


@pytest.mark.parametrize("arch", ARCHES)
def test_columns_apart(arch):
    """Every second column of a wider array."""
    x, w = arrays("float16", 1, 3, 1, (5, 38), (3, 3))
    launch = run(ANY, x[..., ::2], w, groups=3, padding=1, target=arch)
    assert launch.template[3:8] == (1, 8, 4, 1, 0)


@pytest.mark.parametrize("padding", [((-1, 2), (3, -2)), ((4, 4), (5, 7)), ((0, 0), (0, 0))])
def test_padding(padding):
    """Cropping, and whole strips and bands in the padding."""
    for row, last in ((NHWC, True), (NCHW, False), (ANY, True), (ANY, False)):
        go(row, 1, 4, (6, 8), (3, 3), last=last, padding=padding)


@pytest.mark.parametrize("arch", ARCHES)
def test_dilations(arch):
    for dilations in ((2, 3), (3, 1), (1, 4)):
        for columns in (5, 8, 13, 14):
            go(NHWC, 1, 4, (8, columns), (3, 3), last=True, target=arch, padding=2, dilations=dilations)
        for columns in (5, 22):
            go(ANY, 1, 4, (8, columns), (3, 3), last=True, target=arch, padding=2, dilations=dilations)
            go(ANY, 1, 3, (8, columns), (3, 3), last=False, target=arch, padding=2, dilations=dilations)
    go(NCHW, 1, 3, (11, 8), (3, 3), last=False, target=arch, padding=((3, 2), (1, 1)), dilations=(3, 1))


@pytest.mark.parametrize(("row", "last"), [(NHWC, True), (NCHW, False), (ANY, True), (ANY, False)])
def test_multipliers(row, last):
    for groups, multiplier in ((3, 2), (2, 3), (1, 4), (4, 1)):
        go(row, multiplier, groups, (5, 8), (3, 3), last=last, padding=1, bias="float32", residual=True)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("row", "last"), [(NHWC, True), (NCHW, False), (ANY, True), (ANY, False)])
def test_three_axes(row, last, arch):
    for strides, dilations in (((1, 1, 1), (1, 1, 1)), ((2, 2, 2), (1, 1, 1)), ((3, 1, 1), (2, 2, 1))):
        options = {"padding": 1, "strides": strides, "dilations": dilations, "target": arch}
        go(row, 1, 2, (5, 5, 8), (3, 3, 3), last=last, dtype="float32", batch=1, **options)
    go(row, 1, 2, (3, 4, 8), (2, 1, 3), last=last, batch=1, target=arch)


@pytest.mark.parametrize("arch", ARCHES)
def test_any_size_at_run_time(arch):
    for row_of_taps, stride in product((1, 4, 9, 31), (1, 3)):
        for last in (False, True):
            options = {"padding": row_of_taps // 2, "strides": stride, "target": arch}
            go(ANY, 1, 4, (40,), (row_of_taps,), last=last, **options)
    go(
        ANY,
        1,
        2,
        (9, 13),
        (9, 5),
        last=False,
        target=arch,
        padding=((-1, 4), (2, -2)),
        strides=(1, 2),
        dilations=(1, 2),
    )


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("taps", [(1, 0), (4, 3), (3, 1), (9, 8), (5, 0), (9, 4)])
def test_rows_of_any_length(arch, taps):
    """Every phase of a row inside a 16-byte unit, lengths around the edges of units, segments and warps."""
    k, before = taps
    options = {"padding": ((before, k - 1 - before),), "target": arch, "last": False}
    for length in (1, 2, 7, 8, 9, 15, 16, 255, 256, 257, 263, 264, 511, 512, 513, 520, 770, 1030, 1032):
        go(NCW, 1, 9, (length,), (k,), batch=1, bias=length % 2 and "float32", **options)
    if k < 9:
        for length in (3, 4, 127, 128, 129, 260):
            go(NCW, 1, 5, (length,), (k,), dtype="float32", bias="float32", residual=True, activation="relu", **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("row", "last"), [(NHWC, True), (NCHW, False), (ANY, True), (NHWC_TILE, True), (NCHW_TILE, False)]
)
def test_dtypes_and_epilogues(row, last, dtype):
    """Rounding of sums, bias in both dtypes, residual, output of another dtype, activations that are not linear."""
    for arch, bias, out, activation in (
        ("sm_80", "float32", dtype, "silu"),
        ("sm_120", dtype, dtype, ("clip", -0.25, 0.5)),
        ("sm_80", dtype, "float32", "gelu"),
        ("sm_120", False, "float16", "hard_swish"),
    ):
        bias = bias if bias in (False, "float32", out) else "float32"
        if row is NHWC_TILE and dtype == "float32":
            continue
        columns = 9 if row is NCHW_TILE else 8
        go(
            row, 1, 8, (9, columns), (3, 3), last=last, dtype=dtype, exact=False, target=arch,
            padding=1, bias=bias, out_dtype=out, activation=activation, residual=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "last"), [(NHWC, True), (NCHW, False), (ANY, True), (NHWC_TILE, True), (NCHW_TILE, False)]
)
def test_non_finite_inputs_stay_in_their_receptive_field(row, last):
    x, w = arrays("float16", 1, 8, 1, (9, 15 if row is NCHW_TILE else 16), (3, 3), last=last, exact=False)
    pixels = x if last else np.moveaxis(x, 1, -1)
    pixels[0, 3, 5, 1], pixels[0, 8, 14, 0], pixels[1, 0, 0, 3] = np.inf, np.nan, -np.inf
    layouts = {"input_layout": "nhwc"} if last else {}
    for activation in (None, "relu6", "silu"):
        run(row, x, w, groups=8, padding=1, exact=False, activation=activation, **layouts)


@pytest.mark.parametrize(("row", "last"), [(NHWC, True), (NCHW, False), (ANY, True)])
def test_misaligned_arrays_take_narrower_vectors(row, last):
    options = {"input_layout": "nhwc"} if last else {}
    for (shift, columns, right), arch in product(((1, 16, 6), (1, 16, 7), (1, 18, 6), (2, 16, 7), (4, 16, 7)), ARCHES):
        x, w = arrays("float16", 1, 8, 1, (5, columns), (3, 3), last=last)
        buffer = np.empty(x.size + shift, x.dtype)
        buffer[shift:] = x.ravel()
        x = buffer[shift:].reshape(x.shape)
        launch = run(row, x, w, groups=8, padding=((1, 1), (1, right)), target=arch, **options)
        assert launch.template[3] <= shift


@pytest.mark.parametrize("height", depthwise_common.HEIGHTS)
def test_every_height_of_a_band(monkeypatch, height):
    """Rows around the edge of a band; the height that the planner takes depends on the size of the device."""
    monkeypatch.setattr(depthwise_common, "HEIGHTS", (height,))
    for row, last in ((NHWC, True), (NCHW, False)):
        for rows in (height, height + 1, 2 * height - 1, 2 * height):
            go(row, 1, 8, (rows, 16), (3, 3), last=last, padding=1, batch=1)


def test_the_tallest_band_that_fills_the_device():
    assert depthwise_common.height(112, 112 * 256, 528) == 7
    assert depthwise_common.height(14, 14 * 128, 528) == 2
    assert depthwise_common.height(1, 1, 528) == 1


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (NHWC, {"strides": (1, 2)}, "the same along rows and columns"),
        (NHWC, {"dilations": 2, "strides": 2}, "dilates at stride 1"),
        (NHWC, {"input_layout": "nchw"}, "channels last"),
        (NHWC, {"input_dilations": 2}, "input_dilations"),
        (NCHW, {}, "channels first"),
        (NCHW, {"input_layout": "nchw", "dilations": (1, 2)}, "does not dilate"),
        (ANY, {"groups": 4}, "2 input channels"),
    ],
)
def test_refusals(row, options, reason):
    options = {"input_layout": "nhwc", "groups": 8, **options}
    x = np.zeros((1, 8, 8, 8), "float32")
    w = np.zeros((8, 8 // options["groups"], 3, 3), "float32")
    assert reason in row.refuses(checking.problem(x, w, **options), checking.TARGETS["sm_80"])
    small = np.zeros((1, 8, 8, 8), "float64"), np.zeros((8, 1, 3, 3), "float64")
    assert "float64" in row.refuses(checking.problem(*small, groups=8), checking.TARGETS["sm_80"])


@pytest.mark.parametrize(("row", "last"), [(NHWC, True), (NCHW, False)])
def test_padding_of_slices_under_a_filter_of_one_slice(row, last):
    """Those that are unrolled do not look for it; the general kernel does."""
    options = {"groups": 4, "padding": ((1, 2), (1, 1), (1, 1)), "input_layout": "ndhwc" if last else "ncdhw"}
    x, w = arrays("float16", 1, 4, 1, (3, 5, 8), (1, 3, 3), last=last)
    assert "one slice" in row.refuses(checking.problem(x, w, **options), checking.TARGETS["sm_80"])
    for arch in ARCHES:
        run(ANY, x, w, target=arch, **options)


PLANTED = [
    (NHWC, "uint32(h0 + step * p.dilations[1]) < uint32", "uint32(h0 + step * p.dilations[1]) <= uint32"),
    (NHWC, "if (first + done >= rows) return;", "if (first + done > rows) return;"),
    (NHWC, "ahead[k] = ahead[k + 1];", "ahead[k + 1] = ahead[k];"),
    (NHWC, "if (q0 + t * p.dilations[2] >= p.out[2]) continue;", "if (q0 + t * p.dilations[2] > p.out[2]) continue;"),
    (NHWC, "(step - r) / STRIDE >= ROWS) continue;", "(step - r) / STRIDE >= ROWS - 1) continue;"),
    (NHWC, "if (mask >> j & 1) to", "if (row_inside) to"),
    (NCHW, "w0 + j * VX < p.in[2]", "w0 + j * VX <= p.in[2]"),
    (NCHW, "if (q0 + t >= p.out[2]) continue;", ""),
    (NCHW, "w0 - PAD + j >= 0 &&", "w0 - PAD + j >= -1 &&"),
    (NCHW, "w0 + kBody + j < p.in[2]", "w0 + kBody + j <= p.in[2]"),
    (NCHW, "if (thread >= p.threads) return;", ""),
    (NHWC_TILE, "__syncthreads();\n\n    // Compute and", "// Compute and"),
    (NHWC_TILE, "    copy_wait<0>();\n    __syncthreads();", "    __syncthreads();"),
    (NHWC_TILE, "uint32(column) < uint32(p.in[1]) &&", ""),
    (NHWC_TILE, "if (channel >= p.channels || q", "if (q"),
    (NHWC_TILE, "if (row + done * p.dilations[0] >= p.out[0]) return;", ""),
    (NHWC_TILE, "(step - r) / STRIDE >= ROWS) continue;", "(step - r) / STRIDE >= ROWS - 1) continue;"),
    (NCHW_TILE, "copy_wait<0>();\n    __syncthreads();", "copy_wait<0>();"),
    (NCHW_TILE, "    __syncthreads();\n\n    // Store.", ""),
    (NCHW_TILE, "if (e + kUnit <= left)", "if (e <= left)"),
    (NCHW_TILE, "(inner || inside >> j & 1)", "true"),
    (NCHW_TILE, "max_of(e, out_phase); i <", "e; i <"),
    (NCHW_TILE, "step <= PAD_ROWS + (ROWS - 1) * STRIDE;", "step <= PAD_ROWS + ROWS * STRIDE;"),
    (NCW, "lane == 31 ? last", "lane == 30 ? last"),
    (NCW, "lane == 0 ? first", "lane == 1 ? first"),
    (
        NCW,
        "at >= 0 && at + N <= p.length) {\n            store",
        "at >= 0 && at + N <= p.length + 1) {\n            store",
    ),
    (NCW, "(lane + 31) % 32", "(lane + 30) % 32"),
    (NCW, "if (row >= p.rows) return;", ""),
    (ANY, "uint32(from + j * pitch) < uint32(p.in[2])", "from + j * pitch < p.in[2]"),
    (ANY, "if (first + s >= p.filter[2]) break;", ""),
    (ANY, "if (s < ALONG - 1 && first + s < 0) continue;", ""),
    (ANY, "ALONG > 1 ? -p.padding[2] & (ALONG - 1) : 0", "0"),
    (ANY, "in[j][i] = in[j + CHUNK][i];", "in[j][i] = in[j + CHUNK - 1][i];"),
    (ANY, "if constexpr (WINDOW) load_columns(0, kKept, -early);", "if constexpr (WINDOW) load_columns(0, kKept, 0);"),
    (ANY, "element<float>(together, i)", "element<float>(together, 0)"),
    (ANY, "if (q0 + column >= p.out[2]) break;", "if (q0 + column > p.out[2]) break;"),
]


def run_all(row, last):
    if row is NCW:
        for length in (301, 513):
            go(row, 1, 3, (length,), (4,), last=False, padding=((2, 1),), batch=1)
        return
    if row is ANY:
        for channels_last, w_layout in ((False, None), (True, "wio")):
            options = {"dtype": "float32", "padding": ((3, 7),), "batch": 1, "w_layout": w_layout}
            go(row, 1, 4, (20,), (11,), last=channels_last, **options)
    for size in ((9, 15), (7, 7)) if row is NCHW_TILE else ((9, 16), (5, 13)):
        go(row, 1, 8 if row is NHWC_TILE else 3, size, (3, 3), last=last, padding=1)
        if row is NHWC:
            go(row, 1, 2, size, (3, 3), last=last, padding=1, dtype="float32")


@pytest.mark.parametrize(("row", "old", "new"), PLANTED)
def test_planted_bugs_are_found(monkeypatch, row, old, new):
    checking.plant(monkeypatch, row.plan.__module__.split(".")[-1] + ".cu", old, new)
    with pytest.raises((AssertionError, EmulationError)):
        run_all(row, row in (NHWC, NHWC_TILE))
