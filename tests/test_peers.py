"""Random configurations against PyTorch and JAX on the CPU.

GPU_CONV_SEED repeats a run, --configurations lengthens it.
"""

import numpy as np
import pytest

import gpu_conv

pytestmark = pytest.mark.peers


@pytest.fixture
def configurations(request):
    """How many of the whole run's a test takes: JAX compiles each of its own for 0.1 s, PyTorch runs it."""
    shares = {"test_torch_forward": 1 / 2, "test_torch_transposed": 1 / 3, "test_jax": 1 / 18}
    return round(request.config.getoption("--configurations") * shares[request.function.__name__])


@pytest.fixture
def rng(seed, record_property, request):
    record_property("seed", seed)
    return np.random.default_rng([seed, *request.node.name.encode()])


def integers(rng, *shape, dtype=np.float64):
    """Small integers: every sum is exact in every dtype under test, so results must be equal."""
    return rng.integers(-3, 4, shape).astype(dtype)


def pick(rng, *values, p=None):
    return values[rng.choice(len(values), p=p)]


def sizes(rng, rank, low, high):
    return tuple(int(v) for v in rng.integers(low, high + 1, rank))


def channels(rng):
    """groups, input channels, output channels: depthwise, multipliers, grouped and dense."""
    groups = int(pick(rng, 1, 1, 2, 3, 5))
    depth = 1 if rng.random() < 0.3 else int(rng.integers(1, 5))
    return groups, groups * depth, groups * int(rng.integers(1, 4))


def layouts(rng, rank):
    axes = "nc" + "dhw"[3 - rank :]
    kernel = "oi" + "dhw"[3 - rank :]
    return (
        "".join(rng.permutation(list(axes))),
        "".join(rng.permutation(list(kernel))),
        "".join(rng.permutation(list(axes))),
    )


def arranged(array, axes, layout):
    """``array`` (axes named by ``axes``) with its axes in the order of ``layout``; sometimes not contiguous."""
    return np.ascontiguousarray(array.transpose([axes.index(a) for a in layout]))


def compare(got, want, context):
    assert got.shape == want.shape, context
    np.testing.assert_array_equal(got, want, err_msg=str(context))


def test_torch_forward(rng, configurations):
    torch = pytest.importorskip("torch")
    for _ in range(configurations):
        rank = int(rng.integers(1, 4))
        groups, c, o = channels(rng)
        k, s, d = sizes(rng, rank, 1, 4 if rank < 3 else 3), sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 3)
        pad = sizes(rng, rank, 0, 3)
        n = int(rng.integers(1, 4))
        size = tuple(
            max(1, (kk - 1) * dd + 1 - 2 * p) + int(e) for kk, dd, p, e in zip(k, d, pad, rng.integers(0, 8, rank))
        )
        dtype = pick(rng, np.float32, np.float64)
        x, w, b = integers(rng, n, c, *size), integers(rng, o, c // groups, *k), integers(rng, o)
        xl, wl, yl = layouts(rng, rank)
        axes = "nc" + "dhw"[3 - rank :]
        options = dict(strides=s, padding=pad, dilations=d, groups=groups, activation=pick(rng, None, "relu"))
        residual = rng.random() < 0.3
        torch_conv = getattr(torch.nn.functional, f"conv{rank}d")
        want = torch_conv(*map(torch.from_numpy, (x, w, b)), stride=s, padding=pad, dilation=d, groups=groups).numpy()
        extra = integers(rng, *want.shape) if residual else None
        want = want + extra if residual else want
        want = np.maximum(want, 0) if options["activation"] else want
        got = gpu_conv.conv(
            arranged(x.astype(dtype), axes, xl),
            arranged(w.astype(dtype), "oi" + axes[2:], wl),
            b.astype(dtype),
            input_layout=xl,
            filter_layout=wl,
            output_layout=yl,
            residual=arranged(extra.astype(dtype), axes, yl) if residual else None,
            **options,
        )
        assert got.dtype == dtype
        compare(got, arranged(want, axes, yl), (x.shape, w.shape, xl, wl, yl, options))


def test_torch_transposed(rng, configurations):
    torch = pytest.importorskip("torch")
    for _ in range(configurations):
        rank = int(rng.integers(1, 4))
        groups, c, o = channels(rng)
        k, s, d = sizes(rng, rank, 1, 4 if rank < 3 else 3), sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 2)
        pad = tuple(int(rng.integers(0, (kk - 1) * dd + 1)) for kk, dd in zip(k, d))
        extra = tuple(int(rng.integers(0, max(ss, dd))) for ss, dd in zip(s, d))
        size = sizes(rng, rank, 2, 6)
        out = [(n - 1) * ss - 2 * p + dd * (kk - 1) + e + 1 for n, ss, p, dd, kk, e in zip(size, s, pad, d, k, extra)]
        if min(out) < 1:
            continue
        n = int(rng.integers(1, 3))
        x, w, b = integers(rng, n, c, *size), integers(rng, c, o // groups, *k), integers(rng, o)
        torch_conv = getattr(torch.nn.functional, f"conv_transpose{rank}d")
        want = torch_conv(
            *map(torch.from_numpy, (x, w, b)),
            stride=s,
            padding=pad,
            output_padding=extra,
            dilation=d,
            groups=groups,
        ).numpy()
        xl, wl, yl = layouts(rng, rank)
        axes = "nc" + "dhw"[3 - rank :]
        options = dict(strides=s, padding=pad, dilations=d, groups=groups)
        asked = (
            {"output_sizes": tuple(out)} if rng.random() < 0.5 and max(extra) < min(s) else {"output_padding": extra}
        )
        got = gpu_conv.conv_transpose(
            arranged(x.astype(np.float32), axes, xl),
            arranged(w.astype(np.float32), "io" + axes[2:], wl),
            b.astype(np.float32),
            input_layout=xl,
            filter_layout=wl,
            output_layout=yl,
            **options,
            **asked,
        )
        compare(got, arranged(want, axes, yl), (x.shape, w.shape, xl, wl, yl, options, asked))


@pytest.mark.parametrize("part", range(3))  # one test would run on after all others
def test_jax(part, rng, configurations):
    """conv_general_dilated in full: dilations, negative padding, both kinds of groups, dimension numbers."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    for _ in range(configurations):
        rank = int(rng.integers(0, 4))
        groups, c, o = channels(rng)
        batch_groups = groups if rng.random() < 0.25 else 1
        if batch_groups > 1:
            groups, c = 1, max(1, c // groups)
        n = batch_groups * int(rng.integers(1, 3))
        k, s, d, ld = sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 2), sizes(rng, rank, 1, 3)
        size = sizes(rng, rank, 1, 7)
        pad = tuple((int(a), int(b)) for a, b in rng.integers(-2, 5, (rank, 2)))
        padding = pick(rng, pad, "valid", "same_upper", "same_lower", p=(0.7, 0.1, 0.1, 0.1))
        if isinstance(padding, str):
            ld = (1,) * rank
        cropped = [-min(a, 0) - min(b, 0) for a, b in pad]
        dilated = [(m - 1) * step + 1 for m, step in zip(size, ld)]
        if not isinstance(padding, str) and any(crop >= full for crop, full in zip(cropped, dilated)):
            continue
        dtype = pick(rng, np.float32, np.int32, np.complex64, p=(0.7, 0.2, 0.1))
        x, w = integers(rng, n, c, *size, dtype=dtype), integers(rng, o, c // groups, *k, dtype=dtype)
        xl, wl, yl = layouts(rng, rank)
        axes, kernel = "nc" + "dhw"[3 - rank :], "oi" + "dhw"[3 - rank :]
        x, w = arranged(x, axes, xl), arranged(w, kernel, wl)
        spelled = {"valid": "VALID", "same_upper": "SAME", "same_lower": "SAME_LOWER"}
        order = [axes[2:].index(a) for a in wl if a in axes[2:]]  # JAX numbers the axes as the filter's layout does

        def numbered(values, order=order):
            return values if isinstance(values, str) else tuple(values[a] for a in order)

        seen, given, dilated_by = x, spelled.get(padding, padding), ld
        if not isinstance(given, str) and any(min(p) < 0 for p in given):
            # XLA's CPU convolution reads outside of some cropped inputs (JAX 0.10.2, grouped 1-D); its pad dilates and
            # crops by the same definition.
            by_axis = dict(zip(axes[2:], zip(given, ld)))
            widths = [(*by_axis[a][0], by_axis[a][1] - 1) if a in by_axis else (0, 0, 0) for a in xl]
            seen, given, dilated_by = jax.lax.pad(x, np.zeros((), dtype), widths), ((0, 0),) * rank, (1,) * rank
        want = jax.lax.conv_general_dilated(
            seen,
            w,
            numbered(s),
            numbered(given),
            lhs_dilation=numbered(dilated_by),
            rhs_dilation=numbered(d),
            dimension_numbers=jax.lax.conv_dimension_numbers(x.shape, w.shape, (xl.upper(), wl.upper(), yl.upper())),
            feature_group_count=groups,
            batch_group_count=batch_groups,
        )
        options = dict(
            strides=s, padding=padding, dilations=d, input_dilations=ld, groups=groups, batch_groups=batch_groups
        )
        got = gpu_conv.conv(x, w, input_layout=xl, filter_layout=wl, output_layout=yl, **options)
        assert got.dtype == dtype
        compare(got, np.asarray(want), (x.shape, w.shape, xl, wl, yl, options))
