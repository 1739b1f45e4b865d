"""Long depthwise filters, channels last: windows, bands, strips, tails and non-finite values, in both PTX dialects."""

import numpy as np
import pytest

from gpu_conv import arguments, dispatch
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import depthwise_nhwc_toeplitz as toeplitz
from gpu_conv.launch import Target

from . import checking
from .checking import ARCHES, arrays, run

(ROW,) = toeplitz.ROWS
FILE = "depthwise_nhwc_toeplitz.cu"


def go(size, taps, *, channels=8, dtype="float16", batch=2, exact=True, spoil=None, **options):
    """One problem of dense arrays, channels last, compared with float64; the launch."""
    x, w = arrays(dtype, 1, channels, 1, size, taps, batch=batch, last=True, exact=exact)
    if spoil:
        spoil(x, w)
    layout = "nwc" if len(size) == 1 else "nhwc"
    options = {"padding": [(t // 2, (t - 1) // 2) for t in taps], "input_layout": layout, "groups": channels} | options
    with np.errstate(invalid="ignore", over="ignore"):
        return run(ROW, x, w, exact=exact, **options)


def test_params_match_the_header():
    checking.assert_params_match(FILE, toeplitz.PARAMS)


def test_residues():
    """Columns modulo the blocks, rows modulo the bands, channels, and batches that fill a product and do not."""
    for i in range(1, 18):
        size, taps = (1 + 5 * i % 19, i), (9, 9)
        go(size, taps, channels=8 + 8 * (i % 3), batch=1 + 3 * i % 7, target=ARCHES[i % 2], bias="float16")


@pytest.mark.parametrize("arch", ARCHES)
def test_shapes_of_one_instantiation(arch):
    """Maps of 24 columns whose other sizes vary: rows, padding, images, several groups for each block; Inf, NaN."""
    rows = ((1, (5, 3)), (2, (8, 0)), (7, (0, 8)), (14, (4, 4)), (13, (11, 9)), (20, (-2, 3)), (6, (15, 0)))
    columns = ((4, 4), (6, 2), (12, -4), (5, 5), (7, 0), (3, 6))
    kernels = set()
    for i in range(21):
        size, padding = (rows[i % 7][0], 24), (rows[i % 7][1], columns[(i + i // 7) % 6])
        options = {"batch": 5 + i % 7, "padding": padding, "bias": "float32", "target": arch}
        kernels.add(go(size, (9, 11), channels=8 if i else 16, exact=i % 4 < 3, **options).name_expression)
    for place in ((0, 3, 5), (4, 13, 23)):

        def spoil(x, w, place=place):
            x[(*place, 3)], x[(*place, 6)] = np.inf, np.nan

        options = {"exact": False, "spoil": spoil, "bias": "float32", "target": arch}
        kernels.add(go((14, 24), (9, 11), batch=5, padding=((4, 4), (5, 5)), **options).name_expression)
    assert len(kernels) == 1, kernels


@pytest.mark.parametrize("arch", ARCHES)
def test_rows_of_one_instantiation(arch):
    """Three to nine strips, one to three groups of them for each image; the last strip full and not."""
    cases = ((384, 1, (15, 15)), (497, 2, (30, 0)), (889, 3, (0, 30)), (512, 5, (-3, 33)), (1000, 1, (140, 15)))
    kernels = set()
    for length, batch, padding in cases:
        options = {"batch": batch, "padding": (padding,), "bias": "float32", "target": arch}
        kernels.add(go((length,), (31,), channels=16 if batch == 2 else 8, **options).name_expression)

    def spoil(x, w):
        x[0, 127, 3], x[1, 300, 5], x[1, -1, 0] = np.inf, np.nan, -np.inf

    options = {"exact": False, "spoil": spoil, "bias": "float32", "target": arch}
    kernels.add(go((500,), (31,), batch=2, **options).name_expression)
    assert len(kernels) == 1, kernels


@pytest.mark.parametrize(
    ("size", "taps", "batch"),
    [
        ((7, 7), (13, 13), 18),
        ((14, 14), (27, 27), 9),
        ((28, 28), (29, 15), 5),
        ((56, 56), (31, 31), 2),
        ((20, 40), (51, 51), 1),
        ((9, 80), (2, 65), 2),
        ((5, 5), (63, 63), 2),
        ((20, 6), (31, 1), 3),
        ((11, 30), (1, 17), 4),
        ((3, 3), (1, 1), 3),
    ],
)
def test_filters(size, taps, batch):
    """Filters of many rows, of one, of one column, and larger than the map, whose windows end before their taps."""
    options = {"residual": True, "activation": "relu", "batch": batch}
    go(size, taps, target=("sm_90a", "sm_120")[sum(taps) < 90 and sum(taps) % 2], **options)


@pytest.mark.parametrize("padding", [((-1, 2), (3, -2)), ((14, 5), (6, 21)), ((0, 0), (0, 0)), ((19, 0), (0, 40))])
def test_padding(padding):
    """Cropping, every phase of the octets, and windows and bands that lie in the padding."""
    for arch, columns in zip(ARCHES, (20, 13)):
        go((13, columns), (9, 10), padding=padding, target=arch)
    go((13, 20), (1, 10), padding=padding)


@pytest.mark.parametrize("arch", ARCHES)
def test_wide_maps_are_cut_into_strips(arch):
    for columns in (128, 260):
        assert go((9, columns), (9, 9), batch=1, target=arch).grid[2] == -(-columns // 128)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("padding", ["same", "causal", "none", "crop"])
def test_one_axis(arch, padding):
    """Strips are the rows: 1 to 9 of them, the last one full or of one column, of one image or several."""
    for length, taps, batch in ((50, 31, 5), (128, 9, 1), (129, 63, 2), (516, 31, 1), (700, 87, 2), (1100, 128, 1)):
        if padding == "none" and length < taps:
            continue
        pads = {"same": (taps // 2, taps // 2), "causal": (taps - 1, 0), "none": (0, 0), "crop": (-3, taps)}[padding]
        assert go((length,), (taps,), padding=(pads,), batch=batch, target=arch).grid[2] == 1


def test_blocks_with_several_groups():
    """The ring runs on from group to group, over bands, sets of images and strips, and blocks find less than others."""
    for size, taps, batch in (((14, 14), (9, 9), 21), ((30, 28), (13, 9), 7), ((300,), (31,), 9)):
        launch = go(size, taps, batch=batch)
        p = np.frombuffer(launch.params, toeplitz.PARAMS)[0]
        assert p["groups_per_block"] > 1, (size, launch.grid)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_and_epilogues(dtype):
    """Rounding of sums, bias in both dtypes, residual, activations that are not linear."""
    for arch, bias, activation, size in (
        ("sm_80", "float32", "silu", (9, 12)),
        ("sm_120", dtype, ("clip", -0.25, 0.5), (9, 9)),
        ("sm_80", False, "gelu", (12, 15)),
    ):
        options = {"bias": bias, "activation": activation, "residual": True, "target": arch}
        go(size, (9, 9), dtype=dtype, exact=False, **options)
        go(size[1:], (9,), dtype=dtype, exact=False, **options)


def test_strided_filters():
    x, w = arrays("float16", 1, 16, 1, (9, 16), (9, 11), last=True)
    options = {"groups": 16, "padding": 5, "input_layout": "nhwc", "residual": True}
    run(ROW, x, w[:, :, ::-1, ::-1], **options)
    run(ROW, x, np.asfortranarray(w), flip_filter=True, **options)
    run(ROW, x, np.ascontiguousarray(w.transpose(1, 2, 3, 0)), filter_layout="ihwo", **options)


def test_the_residual_may_be_the_output():
    """Each element is read before it is written, where a row is computed again, too."""
    x, w = arrays("float16", 1, 8, 1, (20, 12), (9, 9), last=True)
    x[1, 3, 4, 5] = np.inf
    options = {"padding": 4, "input_layout": "nhwc", "groups": 8}
    out = np.ones(x.shape, x.dtype)
    call = arguments.prepare(x, w, out=out, residual=out, **options)
    expected = checking.reference.convolve(call.problem, call.operands).astype(x.dtype)
    launch = ROW.plan(call.problem, checking.TARGETS["sm_80"])
    Emulator("sm_80").run(launch, call.operands)
    np.testing.assert_array_equal(call.operands["y"], expected)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("size", [(20, 24), (13, 9), (300,)])
def test_non_finite_inputs_stay_in_their_receptive_field(arch, size):
    """At corners and borders, in the second image, beside zero weights: 0 * Inf is NaN in the field, and only there."""

    def spoil(x, w):
        w[1, :, 2] = 0
        flat = x.reshape(len(x), -1, x.shape[-1])
        flat[0, 0, 0], flat[0, 37, 1], flat[0, flat.shape[1] // 2, 1] = np.inf, -np.inf, np.inf
        flat[0, -1, 0], flat[1, 3, 2] = np.nan, np.nan

    taps = (9, 11)[-len(size) :]
    for activation, residual in ((None, False), ("relu6", True), ("silu", False)):
        options = {"activation": activation, "residual": residual, "bias": "float32", "target": arch}
        go(size, taps, exact=False, spoil=spoil, **options)


def test_every_place_of_a_non_finite_input():
    """Each column of a small map in turn, and rows that only the first or the last output row of a band reads."""
    for column in range(12):

        def spoil(x, w, column=column):
            for row, value in enumerate((np.inf, -np.inf, np.nan)):
                x[row, row, column, row % 2] = value

        go((3, 12), (9, 9), dtype="bfloat16", batch=3, exact=False, spoil=spoil)
    for row in (3, 10):
        for image in (0, 6):

            def spoil(x, w, row=row, image=image):
                x[image, row, 5, 3] = np.inf

            go((14, 24), (9, 11), batch=7, exact=False, spoil=spoil, bias="float32")


def test_sums_beyond_float32_stay_infinite():
    """bfloat16 reaches 3e38: products that overflow are no reason to touch a neighbour."""

    def spoil(x, w):
        x[0, 2, 5, 1] = 3e38
        w[...] = 2

    go((5, 12), (9, 9), dtype="bfloat16", batch=1, exact=False, spoil=spoil)


def test_no_bank_conflicts():
    for size, taps, batch in (((56, 56), (9, 9), 2), ((28, 28), (13, 13), 4), ((500,), (31,), 4)):
        x, w = arrays("float16", 1, 8, 1, size, taps, batch=batch, last=True)
        options = {"input_layout": "nwc" if len(size) == 1 else "nhwc", "groups": 8}
        options["padding"] = [(t // 2, (t - 1) // 2) for t in taps]
        probe = arguments.prepare(x, w, **options)
        call = arguments.prepare(x, w, out=np.empty(probe.result.shape, "float16"), **options)
        launch = ROW.plan(call.problem, checking.TARGETS["sm_90a"])
        counters = Emulator("sm_90a").run(launch, call.operands).counters
        assert counters.bank_conflict_factor < 1.02, (size, counters.bank_conflicts())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 8}, "2 input channels"),
        ({"strides": 2}, "takes 1"),
        ({"dilations": 2}, "dilations"),
        ({"input_layout": "nchw"}, "x is not dense with channels last"),
    ],
)
def test_refusals(options, reason):
    options = {"groups": 16, "padding": 8, "input_layout": "nhwc", **options}
    x = np.zeros((1, 16, 16, 16), "float16")
    w = np.zeros((16, 16 // options["groups"], 9, 9), "float16")
    assert reason in ROW.refuses(checking.problem(x, w, **options), checking.TARGETS["sm_80"])


def test_refuses_dtypes_devices_channels_and_filters():
    def refusal(taps=(9, 9), dtype="float16", target="sm_90a", channels=8, size=(20, 20), **options):
        x, w = np.zeros((1, *size, channels), dtype), np.zeros((channels, 1, *taps), dtype)
        layout = {1: "nwc", 2: "nhwc"}[len(size)]
        padding = [t // 2 for t in taps]
        p = checking.problem(x, w, groups=channels, padding=padding, input_layout=layout, **options)
        return ROW.refuses(p, checking.TARGETS[target] if isinstance(target, str) else target)

    assert "float32" in refusal(dtype="float32")
    assert "y float32" in refusal(out_dtype="float32")
    assert "8.0" in refusal(target=Target("sm_75", 40, 64 * 1024))
    assert "12 are no multiple" in refusal(channels=12)
    assert "63x65" in refusal((64, 64), size=(20, 200))
    assert "63x65" in refusal((2, 75), size=(20, 200))
    assert refusal((63, 65), size=(80, 80)) is None
    assert "153" in refusal((154,), size=(500,))
    assert refusal((153,), size=(500,)) is None
    assert "shared memory" in refusal((63, 63), size=(80, 80), target="sm_120")


def test_the_dispatcher_takes_it_for_long_filters():
    """Up to 8 taps, and where it refuses, the other depthwise kernels stay."""

    def kernel(size, taps, channels=64):
        x, w = np.zeros((32, *size, channels), "float16"), np.zeros((channels, 1, *taps), "float16")
        layout = {1: "nwc", 2: "nhwc"}[len(size)]
        padding = [t // 2 for t in taps]
        p = checking.problem(x, w, groups=channels, padding=padding, input_layout=layout)
        return dispatch.plan(p, Target("sm_90a", 132, 227 * 1024)).kernel

    assert kernel((56, 56), (31, 31)) == kernel((500,), (31,)) == kernel((20, 20), (1, 9)) == ROW.name
    assert kernel((56, 56), (7, 7)) != ROW.name and kernel((500,), (4,)) != ROW.name
    assert kernel((56, 56), (31, 31), channels=12) == "depthwise"


def infinite(x, w):
    x.reshape(-1)[x.size // 2] = np.inf


# What shows a planted bug.
MAP = {"size": (17, 20), "taps": (9, 11), "batch": 7}
ROWS = {"size": (300,), "taps": (31,), "batch": 3}
PADDED_ROWS = {"size": (9, 12), "taps": (1, 9), "padding": ((9, 9), (4, 4))}
LARGE_FILTER = {"size": (5, 5), "taps": (63, 63), "batch": 1, "target": "sm_90a"}
INFINITE = {"size": (12, 12), "taps": (9, 9), "exact": False, "spoil": infinite}

PLANTED = [
    (MAP, "__syncthreads();  // this chunk", "// this chunk"),
    (MAP, "__syncthreads();  // the planes are whole", ""),
    (MAP, "__syncthreads();  // all are done with the planes\n", "\n"),
    (MAP, "__syncthreads();  // the outputs are whole", ""),
    (ROWS, "__syncthreads();  // the filters are whole", ""),
    (MAP, "copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
    (MAP, "shared_store_16(zeros + threadIdx.x * 16, {0, 0, 0, 0});", ""),
    (MAP, "exists ? pixel : zeros + pixel % 128", "pixel"),
    (MAP, "uint32(r) < uint32(p.in[0]) && ", ""),
    (ROWS, "exists && uint32(column[c] + r * p.shift) < uint32(p.in[1]);", "exists;"),
    (ROWS, " && column + row * p.shift < p.out[1];", ";"),
    (MAP, "min_of(uint32(row), uint32(p.filter[0]))", "uint32(row)"),
    (LARGE_FILTER, "const int32 taps = min_of(p.filter[1], kPairs - kBefore);", "const int32 taps = p.filter[1];"),
    (LARGE_FILTER, "load_band(band[OUTPUTS - r], place.first - r);", "load_band(band[r], place.first - r);"),
    (MAP, "if (row >= p.out[0]) row = 0, image += p.per_group;", "if (row >= p.out[0]) row = 0, image += 1;"),
    (INFINITE, "probe = fmaf(0.0f, sum[o][half][0], probe);", ""),
    (PADDED_ROWS, "min_of(-top, OUTPUTS - 2 + p.filter[0])", "-top"),
    (MAP, "shared_store_2(word - 2, bits);", ""),
]


@pytest.mark.parametrize(("case", "old", "new"), PLANTED)
def test_planted_bugs_are_found(monkeypatch, case, old, new):
    checking.plant(monkeypatch, FILE, old, new)
    with pytest.raises((AssertionError, EmulationError)):
        go(**case)


@pytest.mark.parametrize("case", [MAP, ROWS, PADDED_ROWS, LARGE_FILTER, INFINITE])
def test_without_a_planted_bug_nothing_is_found(case):
    go(**case)


def test_lean():
    """No spills, no local memory where registers are capped, for activations that need most."""
    shapes = (((56, 56), (9, 9)), ((28, 28), (13, 13)), ((1000,), (9,)), ((1000,), (57,)), ((1000,), (121,)))
    for arch, shared in (("sm_80", 163), ("sm_90a", 227), ("sm_120", 99)):
        target, launches = Target(arch, 100, shared * 1024), []
        for i, (size, taps) in enumerate(shapes):
            x, w = arrays("float16", 1, 64, 1, size, taps, batch=32, last=True)
            options = {"input_layout": "nwc" if len(size) == 1 else "nhwc", "groups": 64}
            options["padding"] = [(t // 2, (t - 1) // 2) for t in taps]
            p = checking.problem(x, w, activation=("silu", "gelu", "selu")[i % 3], **options)
            launches.append(ROW.plan(p, target))
        checking.assert_lean(launches, [arch])
