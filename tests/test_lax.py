"""``gpu_conv.lax`` by hand, and what wrong calls say."""

import types
from pathlib import Path

import numpy as np
import pytest

from gpu_conv import lax

from .test_peers import integers

# ------------------------------------------------------------------------------------------------------------- by hand

LHS = np.arange(1.0, 6.0).reshape(1, 1, 5)  # 1 2 3 4 5
RHS = np.array([[[1.0, 10.0]]])


def row(values):
    return np.array([[values]], float)


HAND = {
    "cross-correlation": (dict(padding="VALID"), [21, 32, 43, 54]),
    "reversed": (dict(padding="VALID", window_reversal=(True,)), [12, 23, 34, 45]),
    "not reversed": (dict(padding="VALID", window_reversal=[False]), [21, 32, 43, 54]),
    "same": (dict(padding="SAME"), [21, 32, 43, 54, 5]),
    "same lower": (dict(padding="same_lower"), [10, 21, 32, 43, 54]),
    "strided same": (dict(window_strides=(2,), padding="SAME"), [21, 43, 5]),
    "padding": (dict(padding=[(2, 1)]), [0, 10, 21, 32, 43, 54, 5]),
    "cropped": (dict(padding=[(-1, -2)]), [32]),
    "cropped and padded": (dict(padding=[(-3, 1)]), [54, 5]),
    "lhs dilated": (dict(padding=[(0, 0)], lhs_dilation=(2,)), [1, 20, 2, 30, 3, 40, 4, 50]),
    "lhs dilated, then cropped": (dict(padding=[(-1, 0)], lhs_dilation=(2,)), [20, 2, 30, 3, 40, 4, 50]),
    "rhs dilated": (dict(padding="VALID", rhs_dilation=(3,)), [41, 52]),
    "empty": (dict(padding=[(-4, 0)]), []),
}


@pytest.mark.parametrize("name", HAND)
def test_by_hand(name):
    options, wanted = HAND[name]
    got = lax.conv_general_dilated(LHS, RHS, **{"window_strides": (1,), **options})
    np.testing.assert_array_equal(got, row(wanted), strict=True)


def test_feature_groups_are_contiguous():
    lhs = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1)
    rhs = np.array([[1.0, 1], [10, 10], [100, 100], [0, 1000]]).reshape(4, 2, 1)
    got = lax.conv_general_dilated(lhs, rhs, (1,), "VALID", feature_group_count=2)
    np.testing.assert_array_equal(got.ravel(), [3, 30, 700, 4000])


def test_batch_groups_meet_their_own_filters():
    lhs = np.array([1.0, 2, 3, 4]).reshape(4, 1, 1)  # two groups of two images
    rhs = np.array([1.0, 10]).reshape(2, 1, 1)
    got = lax.conv_general_dilated(lhs, rhs, (1,), "VALID", batch_group_count=2)
    np.testing.assert_array_equal(got[..., 0], [[1, 30], [2, 40]])


def test_one_spatial_dimension_reversed_of_two():
    lhs, rhs = np.arange(1.0, 5.0).reshape(1, 1, 2, 2), np.array([[[[1.0, 10], [100, 1000]]]])
    for reversal, wanted in (
        ((False, False), 4321),
        ((True, False), 2143),
        ((False, True), 3412),
        ((True, True), 1234),
    ):
        got = lax.conv_general_dilated(lhs, rhs, (1, 1), "VALID", window_reversal=reversal)
        assert got.item() == wanted


def test_the_result_may_have_another_order_of_dimensions():
    lhs = np.arange(6.0).reshape(1, 2, 3, 1)  # batch, height, width, feature
    got = lax.conv_general_dilated(
        lhs, np.ones((1, 1, 1, 1)), (2, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "WCNH")
    )
    np.testing.assert_array_equal(got, np.arange(3.0).reshape(3, 1, 1, 1))


FORMS = {
    "strings": ("NHWC", "WHIO", "NHWC"),
    "list": ["NHWC", "WHIO", "NHWC"],
    "other letters": ("NxyC", "yxIO", "NxyC"),
    "XLA": "b01f_10io->b01f",
    "positions": ((0, 3, 2, 1), (3, 2, 0, 1), (0, 3, 2, 1)),
    "lists of positions": [[0, 3, 2, 1], [3, 2, 0, 1], [0, 3, 2, 1]],
    "object": lax.ConvDimensionNumbers((0, 3, 2, 1), (3, 2, 0, 1), (0, 3, 2, 1)),
    "other object": types.SimpleNamespace(lhs_spec=(0, 3, 2, 1), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 2, 1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_dimension_numbers(form):
    """The options follow the order of the spatial dimensions in rhs: here width comes first."""
    lhs = np.arange(12.0).reshape(1, 3, 4, 1)
    rhs = np.array([1.0, 10.0]).reshape(2, 1, 1, 1)  # two columns
    got = lax.conv_general_dilated(lhs, rhs, (2, 1), ((0, 0), (1, 0)), dimension_numbers=FORMS[form])
    np.testing.assert_array_equal(got[0, ..., 0], [[0, 0], [10, 32], [54, 76], [98, 120]])


def test_no_spatial_dimension():
    got = lax.conv_general_dilated(np.array([[1.0, 2]]), np.array([[3.0, 4], [5, 6]]), (), "VALID")
    np.testing.assert_array_equal(got, [[11, 17]])


def test_8_bit_integers_wrap_unless_a_wider_element_type_is_preferred():
    lhs, rhs = np.full((1, 4, 1), 100, np.int8), np.full((1, 4, 1), 3, np.int8)
    assert lax.conv(lhs, rhs, (1,), "VALID").item() == 1200 - 5 * 256
    got = lax.conv(lhs, rhs, (1,), "VALID", preferred_element_type=np.int32)
    assert got.item() == 1200 and got.dtype == np.int32


def test_preferred_element_type_is_not_rounded_first():
    lhs, rhs = np.full((1, 2, 1), 2048, np.float16), np.array([[[1.0], [0.5 / 1024]]], np.float16)
    assert lax.conv(lhs, rhs, (1,), "VALID").item() == 2048
    assert lax.conv(lhs, rhs, (1,), "VALID", None, np.float32).item() == 2049


@pytest.mark.parametrize("precision", [None, "highest", "default", ("high", "highest"), ["fastest", "fastest"]])
def test_precision_changes_nothing_on_the_cpu(precision):
    lhs = np.full((1, 1, 1), 1 + 2.0**-20, np.float32)
    assert lax.conv(lhs, np.ones((1, 1, 1), np.float32), (1,), "VALID", precision=precision).item() == lhs.item()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (dict(padding="VALID"), [3, 2, 7, 4, 11, 6, 3]),
        (dict(padding="SAME"), [3, 2, 7, 4, 11, 6]),
        (dict(padding=((1, 0),)), [2, 7, 4, 11]),
        (dict(padding="VALID", transpose_kernel=True), [1, 2, 5, 4, 9, 6, 9]),
        (dict(padding=((1, 1),), transpose_kernel=True, use_consistent_padding=True), [2, 5, 4, 9, 6]),
    ],
)  # fmt: skip
def test_transposed_by_hand(options, wanted):
    """1 2 3 spread by a stride of 2, under the kernel 1 2 3."""
    lhs, rhs = np.array([1.0, 2, 3]).reshape(1, 3, 1), np.array([1.0, 2, 3]).reshape(3, 1, 1)
    np.testing.assert_array_equal(lax.conv_transpose(lhs, rhs, (2,), **options).ravel(), wanted)


def test_the_same_in_the_emulator():
    rng = np.random.default_rng(0)
    lhs, rhs = integers(rng, 4, 5, 6, 2, dtype=np.float32), integers(rng, 3, 2, 2, 4, dtype=np.float32)
    options = dict(
        lhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "CNHW"),
        batch_group_count=2,
        window_reversal=(True, False),
    )
    here, there = (
        lax.conv_general_dilated(lhs, rhs, (1, 2), ((1, -1), (0, 2)), **options, device=device)
        for device in (None, "emulator")
    )
    np.testing.assert_array_equal(here, there, strict=True)


@pytest.mark.gpu
def test_the_same_on_the_gpu():
    import cupy

    rng = np.random.default_rng(0)
    lhs, rhs = integers(rng, 2, 9, 9, 8, dtype=np.float16), integers(rng, 3, 3, 8, 8, dtype=np.float16)
    got = lax.conv_transpose(cupy.asarray(lhs), cupy.asarray(rhs), (2, 2), "SAME")
    np.testing.assert_array_equal(got.get(), lax.conv_transpose(lhs, rhs, (2, 2), "SAME"), strict=True)


# ------------------------------------------------------------------------------------------------------- wrong calls


def call(lhs=(2, 6, 8, 8), rhs=(4, 3, 3, 3), strides=(1, 1), padding="VALID", dtypes=(np.float32,) * 2, **options):
    arrays = [a if hasattr(a, "dtype") else np.zeros(a, t) for a, t in zip((lhs, rhs), dtypes)]
    return lambda module: module.conv_general_dilated(
        *arrays, strides, padding, **{"feature_group_count": 2, **options}
    )


WRONG = {
    "ranks": (call(rhs=(4, 3, 3)), TypeError, r"one rank, got lhs \(2, 6, 8, 8\) and rhs \(4, 3, 3\)"),
    "element types": (
        call(dtypes=(np.float32, np.float16)),
        TypeError,
        "one element type, got lhs float32 and rhs float16",
    ),
    "number of strides": (call(strides=(1,)), ValueError, "window_strides must have one entry per spatial"),
    "stride of a float": (call(strides=(1, 1.5)), TypeError, r"window_strides\[1\] must be an integer, got 1.5"),
    "one stride for all": (call(strides=2), TypeError, "window_strides must be a sequence of 2 integers, got 2"),
    "number of lhs_dilation": (
        call(padding=((0, 0), (0, 0)), lhs_dilation=(1,)),
        ValueError,
        "lhs_dilation must have one entry per spatial dimension",
    ),
    "number of rhs_dilation": (call(rhs_dilation=(1, 1, 1)), ValueError, "rhs_dilation must have one entry"),
    "feature groups 0": (call(feature_group_count=0), ValueError, "feature_group_count must be at least 1, got 0"),
    "feature groups of lhs": (
        call(feature_group_count=4),
        ValueError,
        "feature_group_count=4 must divide the input_feature_dimension of lhs, 6",
    ),
    "feature groups of rhs": (
        call(rhs=(4, 2, 3, 3), feature_group_count=3),
        ValueError,
        "feature_group_count=3 must divide the kernel_output_feature_dimension of rhs, 4",
    ),
    "input features": (
        call(rhs=(4, 6, 3, 3)),
        ValueError,
        "rhs, 6, must be the input_feature_dimension of lhs, 6, / feature_group_count=2",
    ),
    "batch groups 0": (call(batch_group_count=0), ValueError, "batch_group_count must be at least 1, got 0"),
    "batch groups of lhs": (
        call(rhs=(6, 6, 3, 3), feature_group_count=1, batch_group_count=3),
        ValueError,
        "batch_group_count=3 must divide the input_batch_dimension of lhs, 2",
    ),
    "batch groups of rhs": (
        call(rhs=(5, 6, 3, 3), feature_group_count=1, batch_group_count=2),
        ValueError,
        "batch_group_count=2 must divide the kernel_output_feature_dimension of rhs, 5",
    ),
    "both groups": (
        call(batch_group_count=2),
        ValueError,
        "feature_group_count=2 or batch_group_count=2 must be 1",
    ),
    "padding name": (call(padding="FULL"), (ValueError, RuntimeError), "padding='FULL' is unknown; known are VALID"),
    "padding name with lhs_dilation": (
        call(padding="SAME", lhs_dilation=(2, 1)),
        ValueError,
        r"padding must be \(low, high\) pairs where lhs_dilation=\(2, 1\)",
    ),
    "number of pads": (call(padding=((1, 1),)), (ValueError, TypeError), "padding must have one entry per spatial"),
    "pads are no pairs": (call(padding=(1, 1)), ValueError, r"padding must be a string or 2 \(low, high\) pairs"),
    "padding of a float": (
        call(padding=((1, 1), (0.5, 0))),
        (ValueError, TypeError),
        r"padding\[1\]\[0\] must be an integer",
    ),
    "crop": (
        call(padding=((0, 0), (-5, -4))),
        ValueError,
        r"padding=\(-5, -4\) crops more than the 8 elements of dimension 3 of the dilated lhs",
    ),
    "preferred kind": (
        call(preferred_element_type=np.int32),
        TypeError,
        "preferred_element_type=int32 does not fit float32 operands",
    ),
    "preferred narrower": (call(preferred_element_type=np.float16), TypeError, "and no narrower"),
    "preferred unsigned": (
        call(dtypes=(np.int8,) * 2, preferred_element_type=np.uint32),
        TypeError,
        "preferred_element_type=uint32 does not fit int8 operands",
    ),
    "precision": (call(precision="best"), ValueError, "precision must be None, a jax.lax.Precision, one of 'highest'"),
    "three precisions": (call(precision=("high",) * 3), ValueError, "or a pair of them; got"),
    "number of dimension_numbers": (
        call(dimension_numbers=("NCHW", "OIHW")),
        TypeError,
        "must be None or name lhs, rhs and result, got",
    ),
    "dimension_numbers of a number": (call(dimension_numbers=3), TypeError, "must be None or name lhs, rhs and result"),
    "length of a string": (
        call(dimension_numbers=("NCHW", "OIHW", "NCDHW")),
        TypeError,
        "'NCDHW' must name 4 dimensions, N, C and the spatial ones of rhs, each once",
    ),
    "no feature letter": (call(dimension_numbers=("NXHW", "OIHW", "NCHW")), TypeError, "'NXHW' must name 4 dimensions"),
    "letter twice": (call(dimension_numbers=("NCHW", "OIHH", "NCHW")), TypeError, "'NCHW' must name 4 dimensions"),
    "other spatial letters": (call(dimension_numbers=("NCHW", "OIHW", "NCXY")), TypeError, "'NCXY' must name 4"),
}  # fmt: skip

OURS_ALONE = {  # JAX has no such option, fails later, or in a way of its own
    "no feature dimension": (
        call(lhs=(6,), rhs=(6,), strides=(), feature_group_count=1),
        TypeError,
        r"lhs needs a batch and a feature dimension, got lhs \(6,\)",
    ),
    "stride 0": (call(strides=(1, 0)), ValueError, r"window_strides\[1\] must be at least 1, got 0"),
    "lhs_dilation 0": (
        call(padding=((0, 0), (0, 0)), lhs_dilation=(0, 1)),
        ValueError,
        r"lhs_dilation\[0\] must be at least 1",
    ),
    "rhs_dilation 0": (call(rhs_dilation=(1, 0)), ValueError, r"rhs_dilation\[1\] must be at least 1, got 0"),
    "kernel of size 0": (call(rhs=(4, 3, 0, 3)), ValueError, "kernel_spatial_dimensions of rhs must be at least 1"),
    "positions": (
        call(dimension_numbers=((0, 1, 2, 2), (0, 1, 2, 3), (0, 1, 2, 3))),
        TypeError,
        r"lhs_spec=\(0, 1, 2, 2\) must name each of the 4 dimensions",
    ),
    "out_sharding": (call(out_sharding="x"), ValueError, "out_sharding must be None, one device computes; got 'x'"),
    "number of reversals": (call(window_reversal=(True,)), ValueError, "window_reversal must have one entry per"),
    "reversal of a number": (call(window_reversal=(1, 0)), TypeError, "window_reversal must be booleans"),
    "one reversal for all": (call(window_reversal=True), TypeError, "must be a sequence of 2 booleans, got True"),
    "integers to floats": (
        call(dtypes=(np.int8,) * 2, preferred_element_type=np.float32),
        TypeError,
        "preferred_element_type=float32 does not fit int8 operands",
    ),
    "device": (call(device="tpu"), ValueError, "device must be None or one of cpu, cuda, emulator, got 'tpu'"),
    "lists": (
        lambda lax: lax.conv_transpose([[1.0]], np.ones((1, 1)), (), "VALID"),
        TypeError,
        "lhs must be a.* got builtins.list",
    ),
    "transposed, rank": (
        lambda lax: lax.conv_transpose(np.ones((1,) * 6), np.ones((1,) * 6), (1,) * 4, "VALID"),
        ValueError,
        "lhs of rank 6 has no default dimension_numbers",
    ),
    "transposed, SAME_LOWER": (
        lambda lax: lax.conv_transpose(LHS, RHS, (2,), "SAME_LOWER", use_consistent_padding=True),
        ValueError,
        "use_consistent_padding knows 'SAME', 'VALID'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG | OURS_ALONE)
def test_wrong_call(name):
    wrong, error, message = (WRONG | OURS_ALONE)[name]
    with pytest.raises(error, match=message) as raised:
        wrong(lax)
    assert type(raised.value) in (ValueError, TypeError)


# ---------------------------------------------------------------------------------------------------------- the page

PAGE = Path(__file__).parents[1] / "docs" / "xla.md"


def test_the_messages_of_the_page():
    said = []
    for wrong, error, _ in (WRONG | OURS_ALONE).values():
        with pytest.raises(error) as raised:
            wrong(lax)
        said.append(str(raised.value))
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").split("## Errors")[1].split("\n")]
    messages = [row[-1] for row in rows if len(row) > 1][1:]
    assert len(messages) >= 10
    assert [m for m in messages if not any(m in text for text in said)] == []
