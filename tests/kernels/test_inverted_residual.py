"""The kernel of inverted residuals in the emulator, against the three convolutions in float64."""

from math import ceil

import numpy as np
import pytest

from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError
from gpu_conv.families import inverted_residual as family
from gpu_conv.families.inverted_residual_model import TILES, Shape, Tile, tiles
from tests.kernels.chains import BLOCKS, LONG, SMALL, block, run, shape_of
from tests.kernels.checking import ARCHES, assert_lean, assert_params_match, plant


@pytest.mark.parametrize(
    ("dtype", "stride", "arch"),
    [("float16", 1, "sm_80"), ("float16", 2, "sm_120"), ("bfloat16", 1, "sm_120"), ("bfloat16", 2, "sm_80")],
)
def test_normal_numbers(dtype, stride, arch):
    """Ragged everywhere: pixels, channels that are no multiple of 16, a last slab that is not full."""
    made = block((9, 12), (24, 40, 24), dtype=dtype, exact=False, strides=stride, residual=stride == 1)
    run(made, tile=SMALL, arch=arch, exact=False)


@pytest.mark.parametrize("residue", range(7))
def test_residues(residue):
    """Every residue of rows and columns modulo the tile."""
    size, stride = (1 + residue, 8 + (3 * residue) % 7), 1 + residue % 2
    run(block(size, (8, 24, 16), strides=stride, seed=residue), tile=SMALL, arch=ARCHES[residue // 2 % 2])


@pytest.mark.parametrize("i", range(0, len(TILES), 2))
def test_tiles(i):
    """Every second of the table; the compile matrix has them all."""
    tile = TILES[i]
    stride = 2 if tile.pixels <= 64 else 1
    made = block((tile.rows * stride - 1, tile.columns * stride), (16, tile.slab + 8, 40), strides=stride)
    run(made, tile=tile, arch="sm_80")


@pytest.mark.parametrize(
    ("splits", "arch", "options"),
    [(2, "sm_80", {"residual": True}), (3, "sm_120", {"strides": 2, "batch": 2}), (3, "sm_80", {"expand": False})],
)
def test_blocks_that_share_the_slabs(splits, arch, options):
    """Parts of one and two slabs, the last one not full, several tiles."""
    channels = (72, 72, 16) if "expand" in options else (16, 72, 16)
    launch, _, _ = run(block((9, 12), channels, **options), tile=SMALL._replace(splits=splits), arch=arch)
    assert launch.grid[0] % splits == 0


def test_split_sums_are_rounded_once():
    made = block((9, 12), (24, 136, 24), exact=False, residual=True, activation="relu")
    run(made, tile=SMALL._replace(splits=5), exact=False)


@pytest.mark.parametrize("number", BLOCKS)
def test_a_split_fills_an_idle_device_once(number):
    """At batch 1 parts of a tile run side by side; at batch 256 there are enough tiles."""
    target = KNOWN_TARGETS["sm_90a"]
    for chain in (shape_of(number, batch=1), shape_of(number)):
        for tile in tiles(chain, target):
            shape = Shape(chain, tile)
            assert tile.splits == 1 or shape.blocks <= target.multiprocessors * shape.together(target, tile.splits)
            assert (tile.splits - 1) * ceil(shape.slabs / tile.splits) < shape.slabs, "no part is empty"
    assert tiles(chain, target)[0].splits == 1
    assert tiles(shape_of(number, batch=1), target)[0].splits > 1 or number < 8


@pytest.mark.parametrize("channels", [(8, 8, 8), (40, 40, 24)])
def test_without_expansion(channels):
    """MobileNetV2's first block, and one with a residual."""
    made = block((8, 9), channels, expand=False, residual=channels[0] == channels[2])
    run(made, tile=SMALL, arch="sm_120")


@pytest.mark.parametrize("channels", [(8, 32, 136), (56, 72, 48)])
def test_channels(channels):
    run(block((7, 6), channels, batch=2), tile=LONG)


@pytest.mark.parametrize("padding", [0, ((0, 1), (0, 1)), ((2, 1), (1, 0)), 2])
def test_padding(padding):
    """Also the lopsided one of "same_upper" with stride 2."""
    run(block((9, 8), (8, 32, 8), padding=padding, strides=2), tile=SMALL)


def test_residual_with_lopsided_padding():
    run(block((8, 8), (8, 32, 8), padding=((2, 0), (0, 2)), residual=True), tile=SMALL)


@pytest.mark.parametrize(
    "activations",
    [("silu", "hard_swish", None), ("gelu", ("clip", -1, 1), "relu"), (None, ("leaky_relu", 0.1), "silu")],
)
def test_activations(activations):
    names = ("expand_activation", "depthwise_activation", "activation")
    made = block((7, 7), (16, 40, 16), exact=False, residual=True, **dict(zip(names, activations, strict=True)))
    run(made, tile=SMALL, exact=False)


def test_without_biases():
    made = block((7, 7), (8, 32, 8), expand_bias=None, depthwise_bias=None, bias=None)
    run(made, tile=SMALL)


def test_infinity_in_one_pixel():
    """The channels that fill the last slab are zero: 0 times Inf must not reach the result through them."""
    made = block((7, 7), (16, 40, 16), exact=False)
    made.filters[0] = np.abs(made.filters[0]) + np.float16(0.1)
    made.x[0, 3, 3, 5] = np.inf
    _, _, out = run(made, tile=SMALL, exact=False)
    assert np.isfinite(out).all()


def infinite_in_one_channel():
    made = block((9, 10), (40, 40, 16), expand=False, exact=False)
    made.filters[1] = np.abs(made.filters[1]) + np.float16(0.1)
    made.x[0, 3, 6, 5] = np.inf
    return made


@pytest.mark.parametrize("arch", ARCHES)
def test_infinity_in_one_channel(arch):
    """The zeros beside the diagonal must not make NaN of it in the other channels of its group."""
    _, _, out = run(infinite_in_one_channel(), tile=SMALL, exact=False, arch=arch)
    assert np.isfinite(out).all()


def test_the_wrong_sums_beside_infinity_are_seen(monkeypatch):
    plant(monkeypatch, "inverted_residual.cu", "__any_sync(0xffffffffu, probe != probe)", "false")
    with pytest.raises(AssertionError):
        run(infinite_in_one_channel(), tile=SMALL, exact=False)


@pytest.mark.parametrize("splits", [1, 2])
def test_nan_in_one_pixel(splits):
    """It reaches the outputs whose window holds it, and no others; ``run`` compares which are NaN."""
    made = block((9, 9), (16, 40, 16), exact=False, residual=True)
    made.x[0, 3, 6, 5] = np.nan
    _, _, out = run(made, tile=SMALL._replace(splits=splits), exact=False)
    assert np.isnan(out[0, 2:5, 5:8]).all()
    assert np.isnan(out).sum() == 9 * 16


def test_every_schedule_gives_the_same(seed):
    made = block((8, 8), (16, 72, 16), exact=False, residual=True)
    for tile in (SMALL, SMALL._replace(splits=3)):
        assert len({run(made, tile=tile, exact=False, seed=s)[2].tobytes() for s in (None, seed)}) == 1


def test_traffic():
    """Nothing of the expanded tensor reaches memory, and shared memory is next to free of conflicts."""
    made = block((7, 14), (32, 64, 32))
    _, report, _ = run(made, tile=Tile(7, 14, 64, 4))
    counters = report.counters
    assert counters.bytes_written == made.x.nbytes
    assert counters.bytes_read + counters.bytes_written <= 1.35 * made.chain.bytes  # lines of the weights are padded
    assert counters.bank_conflict_factor <= 1.25
    assert counters.store_sectors_per_request > 15  # of 16; the last warp has a quarter


@pytest.mark.parametrize(("number", "arch"), [(12, "sm_80"), (17, "sm_90a"), (8, "sm_120")])
def test_registers_do_not_spill(number, arch):
    """The most that a thread keeps in registers where the shared memory allows it; the compile matrix has more."""
    assert_lean([family.plan(shape_of(number), KNOWN_TARGETS[arch])], [arch])


def test_every_block_of_mobilenet_fits_an_h100():
    target = KNOWN_TARGETS["sm_90a"]
    for number in BLOCKS:
        chain = shape_of(number)
        assert family.refuses(chain, target) is None, number
        for tile in tiles(chain, target):
            assert Shape(chain, tile).shared_bytes <= target.shared_per_block


def test_params():
    assert_params_match("inverted_residual.cuh", family.PARAMS)


def test_refusals():
    def reason(*, arch="sm_80", size=(8, 8), channels=(8, 32, 8), **options):
        return family.refuses(block(size, channels, **options).chain, KNOWN_TARGETS[arch])

    assert reason() is None
    assert "float32" in reason(dtype="float32")
    assert "8.0" in reason(arch="sm_75")
    assert "stride 1 or 2" in reason(strides=3)
    assert "multiples" in reason(channels=(12, 32, 8)) or "8 channels" in reason(channels=(12, 32, 8))
    assert "too many channels" in reason(channels=(1024, 32, 8))
    assert "up to 2048 channels" in reason(channels=(8, 32, 2056))
    assert "up to 2048 channels" in reason(channels=(2056, 2056, 8), expand=False)
    assert "65535 images and rows" in reason(size=(1, 1), channels=(8, 8, 8), batch=65536)
    assert "65535 images and rows" in reason(size=(65536, 1), channels=(8, 8, 8))


BUGS = {
    "no wait for the weights": ("copy_wait<0>();\n        __syncthreads();  // the", "__syncthreads();  // the"),
    "no barrier before a slab": ("        __syncthreads();  // the weights", "        // the weights"),
    "no barrier after the expansion": (
        "            __syncthreads();\n        }\n        const Epilogue",
        "}\nconst Epilogue",
    ),
    "no barrier after the depthwise convolution": (
        "        __syncthreads();\n        projection.add",
        "projection.add",
    ),
    "no barrier before the results are staged": ("    __syncthreads();  // the results", "    // the results"),
    "no barrier before the results are stored": ("    __syncthreads();\n    T* const image", "    T* const image"),
    "the padding is not cleared": ("i < Tile::kTable - Tile::kExpanded;", "i < 0;"),
    "the wrong slab of weights": ("int64(slab + 1) * Tile::kWeights", "int64(slab) * Tile::kWeights"),
    "the residual of a neighbour": ("pixel % COLUMNS + p.padding[1]", "pixel % COLUMNS"),
    "a ragged tile is stored": ("column >= p.out[1]) return", "column >= p.out[1] + 1) return"),
    "the filling channels are live": ("p.expanded - slab * SLAB, act", "SLAB, act"),
    "the pixels of another image": ("x + int64(n) *", "x + 0 *"),
    "a band begins a row late": ("first_row = band * Tile::kRows /", "first_row = (band + 1) * Tile::kRows /"),
    "a tap beside the diagonal": ("t == g / 2 ? 1u", "t == g / 2 + 1 ? 1u"),
    "two streams are one": ("named(pair + lane / 8 % 2,", "named(pair,"),
}
SPLIT_BUGS = {
    "every part adds the bias": ("part == 0 ? bias : nullptr", "bias"),
    "a part takes what follows, too": ("min_of(p.slabs, first_slab + slabs_per_part)", "p.slabs"),
    "the first weights in the other half": ("first_slab % 2 * Tile::kWeights", "0"),
    "the weights of the first part": ("w + int64(first_slab) * Tile::kWeights", "w"),
    "the ticket of another tile": ("workspace, tile,", "workspace, 0,"),
    "no fence before the ticket": (
        "__threadfence();\n    __syncthreads();\n    if (thr",
        "__syncthreads();\n    if (thr",
    ),
    "a part is left out": ("for (int other = 1; other < parts", "for (int other = 2; other < parts"),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name, monkeypatch):
    plant(monkeypatch, "inverted_residual.cu", *BUGS[name])
    channels, expand = (
        ((24, 24, 24), False) if name == "no barrier before the results are staged" else ((16, 72, 16), True)
    )
    made = block((5, 8), channels, expand=expand, batch=2, residual=True)
    if name == "the filling channels are live":
        made.x[0, 3, 3, 5] = np.inf
        made.filters[0] = np.abs(made.filters[0]) + np.float16(0.1)
    with pytest.raises((EmulationError, AssertionError)):
        run(made, tile=SMALL, exact=name != "the filling channels are live")


@pytest.mark.parametrize("name", SPLIT_BUGS)
def test_planted_bugs_of_a_split_are_found(name, monkeypatch):
    plant(monkeypatch, "inverted_residual.cu", *SPLIT_BUGS[name])
    with pytest.raises((EmulationError, AssertionError)):
        run(block((5, 8), (16, 72, 16), batch=2, residual=True), tile=SMALL._replace(splits=3))
