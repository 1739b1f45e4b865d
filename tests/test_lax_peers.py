"""``gpu_conv.lax`` against JAX on the CPU: random configurations, signatures, wrong calls.

GPU_CONV_SEED repeats a run, --configurations lengthens it.
"""

import inspect

import ml_dtypes
import numpy as np
import pytest

from gpu_conv import lax

from .test_lax import WRONG
from .test_peers import arranged, channels, compare, integers, pick, sizes

pytestmark = pytest.mark.peers


@pytest.fixture
def jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    yield jax
    jax.clear_caches()  # of every configuration a program, 1.5 MB each


@pytest.fixture
def configurations(request):
    return request.config.getoption("--configurations") // 40


@pytest.fixture
def rng(seed, record_property, request):
    record_property("seed", seed)
    return np.random.default_rng([seed, *request.node.name.encode()])


@pytest.mark.parametrize("name", ["conv_general_dilated", "conv", "conv_with_general_padding", "conv_transpose"])
def test_signature(jax, name):
    """JAX's parameters, in its order and with its defaults; ours come after them, by keyword only."""
    ours, theirs = (inspect.signature(getattr(module, name)).parameters.values() for module in (lax, jax.lax))
    positional = [(p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert positional == [(p.name, p.default) for p in theirs]


# Element types, those that they may prefer, and the largest number that keeps every sum exact.
TYPES = (
    (np.float32, (None, np.float64), 3),
    (np.float16, (None, np.float32), 3),
    (ml_dtypes.bfloat16, (None, np.float32), 1),
    (np.float64, (None,), 3),
    (np.int8, (None, np.int16, np.int32), 127),
    (np.uint8, (None, np.uint32), 255),
    (np.int32, (None, np.int64), 1000),
    (np.complex64, (None, np.complex128), 3),
)


def numbers(rng, shape, dtype, most):
    low = 0 if np.dtype(dtype).kind == "u" else -most
    return rng.integers(low, most + 1, shape).astype(dtype)


def spelled(jax, rng, specs):
    """Dimension numbers for JAX, and the same in one of our forms."""
    shape = (1,) * len(specs[0])
    canonical = jax.lax.conv_dimension_numbers(shape, shape, specs)
    labels = "_".join(spec.translate(str.maketrans("NCIODHW", "bfio012")) for spec in specs[:2])
    labels += "->" + specs[2].translate(str.maketrans("NCIODHW", "bfio012"))
    ours = pick(rng, "strings", "labels", "object", "positions")
    positions = [list(map(int, spec)) for spec in canonical]
    return canonical, {"strings": specs, "labels": labels, "object": canonical, "positions": positions}[ours]


def mixed(rng, axes):
    return "".join(rng.permutation(list(axes)))


def test_conv_general_dilated(jax, rng, configurations):
    """Everything that XLA's convolution knows, in every order of dimensions."""
    compared = 0
    while compared < configurations:
        rank = int(rng.integers(0, 4))
        spatial = "DHW"[3 - rank :]
        groups, c, o = channels(rng)
        batch_groups = groups if rng.random() < 0.25 else 1
        if batch_groups > 1:
            groups, c = 1, max(1, c // groups)
        n = batch_groups * int(rng.integers(0 if rng.random() < 0.05 else 1, 3))
        k, s, d, ld = sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 3), sizes(rng, rank, 1, 3)
        size = sizes(rng, rank, 1, 7)
        padding = tuple((int(a), int(b)) for a, b in rng.integers(-3, 5, (rank, 2)))
        if any(lo + hi + (m - 1) * step + 1 <= 0 for (lo, hi), m, step in zip(padding, size, ld)):
            continue
        compared += 1
        if rng.random() < 0.3:
            padding, ld = str(pick(rng, "VALID", "SAME", "SAME_LOWER", "same")), (1,) * rank
        dtype, preferences, most = pick(rng, *TYPES, p=(0.3, *(0.1,) * 7))
        preferred = pick(rng, *preferences)
        x, w = numbers(rng, (n, c, *size), dtype, most), numbers(rng, (o, c // groups, *k), dtype, most)
        specs = mixed(rng, "NC" + spatial), mixed(rng, "OI" + spatial), mixed(rng, "NC" + spatial)
        order = [spatial.index(a) for a in specs[1] if a in spatial]  # options follow the kernel's dimensions
        window_strides, rhs_dilation, lhs_dilation = (tuple(v[a] for a in order) for v in (s, d, ld))
        pads = padding if isinstance(padding, str) else tuple(padding[a] for a in order)
        reversal = tuple(bool(b) for b in rng.random(rank) < 0.2)
        lhs, rhs = arranged(x, "NC" + spatial, specs[0]), arranged(w, "OI" + spatial, specs[1])
        theirs, ours = spelled(jax, rng, specs)
        options = dict(
            lhs_dilation=lhs_dilation if any(v > 1 for v in ld) else None,
            rhs_dilation=rhs_dilation if any(v > 1 for v in d) else None,
            feature_group_count=groups,
            batch_group_count=batch_groups,
            precision=pick(rng, None, "highest", jax.lax.Precision.HIGHEST),
            preferred_element_type=preferred,
        )
        got = lax.conv_general_dilated(
            lhs, rhs, window_strides, pads, dimension_numbers=ours, window_reversal=reversal, **options
        )
        turned = tuple(theirs.rhs_spec[2 + i] for i in range(rank) if reversal[i])
        given = _cropped(jax, lhs, theirs, pads, lhs_dilation) if not isinstance(pads, str) else None
        if given is not None:
            seen, rest = given, dict(options, lhs_dilation=None)
            want = jax.lax.conv_general_dilated(
                seen, np.flip(rhs, turned), window_strides, ((0, 0),) * rank, dimension_numbers=theirs, **rest
            )
        else:
            want = jax.lax.conv_general_dilated(
                lhs, np.flip(rhs, turned), window_strides, pads, dimension_numbers=theirs, **options
            )
        assert got.dtype == want.dtype
        compare(got, np.asarray(want), (lhs.shape, rhs.shape, window_strides, pads, reversal, ours, options))


def _cropped(jax, lhs, numbers, pads, dilation):
    """lhs padded by XLA's pad if anything is cropped: its CPU convolution reads outside of some cropped inputs."""
    if all(min(pair) >= 0 for pair in pads):
        return None
    widths = [(0, 0, 0)] * lhs.ndim
    for axis, (lo, hi), step in zip(numbers.lhs_spec[2:], pads, dilation):
        widths[axis] = (lo, hi, step - 1)
    return jax.lax.pad(lhs, np.zeros((), lhs.dtype), widths)


def test_conv_transpose(jax, rng, configurations):
    for _ in range(configurations // 2):
        rank = int(rng.integers(0, 4))
        spatial = "DHW"[3 - rank :]
        c, o, n = (int(v) for v in rng.integers(1, 5, 3))
        k, s, d = sizes(rng, rank, 1, 4), sizes(rng, rank, 1, 4), sizes(rng, rank, 1, 3)
        size = sizes(rng, rank, 1, 5)
        consistent = bool(rng.random() < 0.4)
        most = [(kk - 1) * dd for kk, dd in zip(k, d)] if consistent else [4] * rank
        pairs = tuple((int(rng.integers(0, m + 1)), int(rng.integers(0, m + 1))) for m in most)
        padding = pick(rng, "SAME", "VALID", pairs)
        if rng.random() < 0.5:
            specs, ours = None, None
            names = "N" + ("HWD" if rank == 3 else "HW"[:rank]) + "C", ("HWD" if rank == 3 else "HW"[:rank]) + "IO"
        else:
            specs = mixed(rng, "NC" + spatial), mixed(rng, "OI" + spatial), mixed(rng, "NC" + spatial)
            names, (_, ours) = specs[:2], spelled(jax, rng, specs)
        transpose = bool(rng.random() < 0.5)
        sizes_of = dict(zip([a for a in names[1] if a not in "OI"], range(rank)))
        lhs_sizes = {"N": n, "C": c, **{a: size[i] for a, i in sizes_of.items()}}
        rhs_sizes = {"O": c if transpose else o, "I": o if transpose else c, **{a: k[i] for a, i in sizes_of.items()}}
        dtype, preferences, largest = pick(rng, *TYPES)
        lhs = numbers(rng, [lhs_sizes[a] for a in names[0]], dtype, largest)
        rhs = numbers(rng, [rhs_sizes[a] for a in names[1]], dtype, largest)
        options = dict(
            rhs_dilation=d if any(v > 1 for v in d) else None,
            transpose_kernel=transpose,
            preferred_element_type=pick(rng, *preferences),
            use_consistent_padding=consistent,
        )
        context = (lhs.shape, rhs.shape, s, padding, ours, options)
        got = lax.conv_transpose(lhs, rhs, s, padding, dimension_numbers=ours, **options)
        want = jax.lax.conv_transpose(lhs, rhs, s, padding, dimension_numbers=specs, **options)
        assert got.dtype == want.dtype, context
        compare(got, np.asarray(want), context)


def test_short_forms(jax, rng):
    for _ in range(10):
        lhs, rhs = integers(rng, 2, 3, 7, 6, dtype=np.float32), integers(rng, 4, 3, 3, 2, dtype=np.float32)
        for padding in ("SAME", "VALID"):
            got, want = (module.conv(lhs, rhs, (2, 1), padding) for module in (lax, jax.lax))
            compare(got, np.asarray(want), padding)
        got, want = (
            module.conv_with_general_padding(lhs, rhs, (1, 2), [(1, 0), (2, 1)], (2, 1), (1, 3))
            for module in (lax, jax.lax)
        )
        compare(got, np.asarray(want), "general padding")


@pytest.mark.parametrize("name", WRONG)
def test_jax_refuses_it_too(jax, name):
    wrong, error, _ = WRONG[name]
    with pytest.raises(error):
        wrong(jax.lax)
