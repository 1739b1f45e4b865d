"""The kernel of inverted residuals in the emulator, against the three convolutions in float64, and its operator."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import gpu_conv
from gpu_conv import arguments, execute, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import inverted_residual as family
from gpu_conv.families.inverted_residual import Chain, Shape, Tile
from gpu_conv.testing.tolerance import SLOPE, tolerance
from tests.kernels.checking import ARCHES, TARGETS, assert_lean, assert_params_match, guarded, numbers, plant

SMALL = Tile(7, 7, 32, 2, 1)
LONG = Tile(7, 7, 64, 4, 7)
BLOCKS = {  # of MobileNetV2: map, channels in, expanded and out, stride
    1: (112, 32, 32, 16, 1),
    2: (112, 16, 96, 24, 2),
    3: (56, 24, 144, 24, 1),
    5: (28, 32, 192, 32, 1),
    7: (28, 32, 192, 64, 2),
    8: (14, 64, 384, 64, 1),
    12: (14, 96, 576, 96, 1),
    14: (14, 96, 576, 160, 2),
    15: (7, 160, 960, 160, 1),
    17: (7, 160, 960, 320, 1),
}


@dataclass
class Block:
    """Arrays of a chain, its convolutions one by one, and the arguments of the operator."""

    x: np.ndarray
    filters: list
    options: dict

    def steps(self, out=None):
        """The calls of the convolutions that the operator stands for; results are stand-ins or ``out``."""
        calls, x, given = [], self.x, self.options
        rows = zip(("expand_", "depthwise_", ""), self.filters, strict=True)
        for name, w in [row for row in rows if row[1] is not None]:
            options = {"bias": given[f"{name}bias"], "activation": given[f"{name}activation"], "input_layout": "nhwc"}
            if name == "depthwise_":
                options |= {k: given[k] for k in ("strides", "padding")} | {"groups": len(w)}
            if not name:
                options |= {"residual": self.x if given["residual"] else None, "out": out}
            calls.append(arguments.prepare(x, w, **options))
            x = calls[-1].result
        return calls

    @property
    def chain(self):
        problems = [call.problem for call in self.steps()]
        return Chain(problems[0] if len(problems) == 3 else None, *problems[-2:])

    def truth(self, rounded):
        """The result in float64, intermediate results rounded or not, and how far a right one may lie from it."""
        value, error = None, 0.0
        for call in self.steps():
            problem, operands = call.problem, dict(call.operands)
            if value is not None:
                operands["x"] = value.reshape(problem.x.shape)
            value = reference.convolve(problem, operands)
            own = tolerance(problem, operands, value)
            if np.any(error):
                spread = {"x": error.reshape(problem.x.shape), "w": np.abs(operands["w"].astype(float))}
                inner = reference.convolve(problem, {**operands, **spread}, magnitude=True)
                zero = {**operands, "x": np.zeros(problem.x.shape)}
                slope = SLOPE.get(problem.activation.name, 1.0) if problem.activation else 1.0
                own = own + slope * (inner - reference.convolve(problem, zero, magnitude=True))
            error = own
            if rounded:
                value = value.astype(problem.y.dtype).astype(float)
        shape = call.result.shape
        return [np.moveaxis(v[:, 0], 1, -1).reshape(shape) for v in (value, error)]


def block(size, channels, *, dtype="float16", expand=True, residual=False, batch=1, exact=True, seed=0, **options):
    """A block of ``channels`` (in, expanded, out). ``exact``: integers so small that float16 holds all."""
    rng = np.random.default_rng(seed)
    c, e, o = channels
    shapes = ((e, c, 1, 1), (e, 1, 3, 3), (o, e, 1, 1))
    made = [numbers(shape, dtype, rng, exact) for shape in shapes]
    if exact:
        made[0] *= (rng.random(shapes[0]) < 4 / c).astype(dtype)
    else:
        made = [(w / np.sqrt(w[0].size)).astype(dtype) for w in made]
    biases = [numbers(n, "float32", rng, exact) for n in (e, e, o)]
    given = dict(zip(("expand_bias", "depthwise_bias", "bias"), biases, strict=True))
    given |= {"expand_activation": "relu6", "depthwise_activation": "relu6", "activation": None}
    given |= {"strides": 1, "padding": 1, "residual": residual} | options
    if not expand:
        made[0] = None
    return Block(numbers((batch, *size, c), dtype, rng, exact), made, given)


def run(made, *, tile=None, arch="sm_80", exact=True, seed=None):
    """In the emulator with every check on, compared with the truth; returns launch and report."""
    chain, target = made.chain, TARGETS[arch]
    assert family.refuses(chain, target) is None
    tile = tile or family.tiles(chain, target)[0]
    out, clear, check_guards = guarded(made.steps()[-1].result.shape, made.x.dtype)
    clear()
    filters = dict(zip(("expand", "depthwise", "project"), made.filters, strict=True))
    filters = {k: w if w is None else w[:, 0] if k == "depthwise" else w[:, :, 0, 0] for k, w in filters.items()}
    filters |= {k: made.options[k] for k in ("expand_bias", "depthwise_bias")}
    launch = family.plan(chain, target, tile)
    operands = {"x": made.x, "w": family.weights(chain, tile, filters, np), "bias": made.options["bias"], "y": out}
    report = Emulator(arch, seed=seed).run(launch, operands)
    check_guards()
    truth, error = made.truth(rounded=exact)
    if exact:
        np.testing.assert_array_equal(out.astype(float), truth)
    else:
        assert np.array_equal(np.isnan(out.astype(float)), np.isnan(truth))
        worst = np.nanmax(np.abs(out.astype(float) - truth) / error)
        assert worst <= 1, worst
        assert worst > 1e-4, "so far from the bound that the bound says nothing"
    return launch, report, out


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


@pytest.mark.parametrize("i", range(0, len(family.TILES), 2))
def test_tiles(i):
    """Every second of the table; the compile matrix has them all."""
    tile = family.TILES[i]
    stride = 2 if tile.run < 4 else 1
    made = block((tile.rows * stride - 1, tile.columns * stride), (16, tile.slab + 8, 40), strides=stride)
    run(made, tile=tile, arch="sm_80")


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


def test_every_schedule_gives_the_same(seed):
    made = block((8, 8), (16, 72, 16), exact=False, residual=True)
    assert len({run(made, tile=SMALL, exact=False, seed=s)[2].tobytes() for s in (None, seed)}) == 1


def test_traffic():
    """Nothing of the expanded tensor reaches memory, and shared memory is next to free of conflicts."""
    made = block((7, 14), (32, 64, 32))
    _, report, _ = run(made, tile=Tile(7, 14, 64, 4, 7))
    counters = report.counters
    assert counters.bytes_written == made.x.nbytes
    assert counters.bytes_read + counters.bytes_written <= 1.35 * made.chain.bytes  # lines of the weights are padded
    assert counters.bank_conflict_factor <= 1.25
    assert counters.store_sectors_per_request > 15  # of 16; the last warp has a quarter


def shape_of(number, batch=256):
    """A block of MobileNetV2 as a chain; its memory is never touched."""
    size, c, e, o, stride = BLOCKS[number]
    filters = [np.empty(s, "float16") for s in ((e, c, 1, 1), (e, 1, 3, 3), (o, e, 1, 1))]
    filters[0] = filters[0] if e != c else None
    options = {"expand_bias": None, "depthwise_bias": None, "bias": None, "strides": stride, "padding": 1}
    options |= {"expand_activation": "relu6", "depthwise_activation": "relu6", "activation": None}
    x = np.empty((batch, size, size, c), "float16")
    return Block(x, filters, options | {"residual": stride == 1 and c == o}).chain


@pytest.mark.parametrize(("number", "arch"), [(12, "sm_80"), (17, "sm_90a"), (8, "sm_120")])
def test_registers_do_not_spill(number, arch):
    """The most that a thread keeps in registers where the shared memory allows it; the compile matrix has more."""
    assert_lean([family.plan(shape_of(number), KNOWN_TARGETS[arch])], [arch])


def test_every_block_of_mobilenet_fits_an_h100():
    target = KNOWN_TARGETS["sm_90a"]
    for number in BLOCKS:
        chain = shape_of(number)
        assert family.refuses(chain, target) is None, number
        for tile in family.tiles(chain, target):
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


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"strides": 2}, {"padding": "same_upper", "strides": 2}])
def test_operator(options):
    """On the emulator in one launch, on NumPy as three convolutions: the same numbers."""
    made = block((8, 10), (16, 48, 16), **options)
    call = partial(gpu_conv.inverted_residual, made.x, *made.filters, input_layout="nhwc", **made.options)
    recorder = execute.Recorder(KNOWN_TARGETS["sm_80"])
    with execute.instead(recorder):
        call()
    assert [launch.kernel for launch in recorder.launches] == ["inverted_residual"]
    truth, _ = made.truth(rounded=True)
    for device in ("emulator", "cpu"):
        out = np.full(truth.shape, np.nan, "float16")
        assert call(device=device, out=out) is out
        np.testing.assert_array_equal(out.astype(float), truth)


def test_operator_falls_back_to_three_convolutions():
    """Channels first, another dtype, another filter: what the kernel refuses."""
    made = block((6, 5), (8, 24, 8), dtype="float32", residual=True)
    truth, _ = made.truth(rounded=True)
    x = np.ascontiguousarray(np.moveaxis(made.x, -1, 1))
    y = gpu_conv.inverted_residual(x, *made.filters, **made.options)
    np.testing.assert_array_equal(np.moveaxis(y, 1, -1), truth)
    recorder = execute.Recorder(KNOWN_TARGETS["sm_80"])
    with execute.instead(recorder):
        gpu_conv.inverted_residual(x, *made.filters, **made.options)
    assert len(recorder.launches) == 3


def test_operator_without_expansion():
    made = block((6, 5), (8, 8, 16), expand=False)
    y = gpu_conv.inverted_residual(made.x, *made.filters, input_layout="nhwc", device="emulator", **made.options)
    np.testing.assert_array_equal(y.astype(float), made.truth(rounded=True)[0])


BUGS = {
    "no wait for the weights": ("copy_wait<0>();\n        __syncthreads();  // the", "__syncthreads();  // the"),
    "no barrier before a slab": ("        __syncthreads();  // the weights", "        // the weights"),
    "no barrier after the expansion": (
        "            __syncthreads();\n        }\n        const int from",
        "}\nconst int from",
    ),
    "no barrier after the depthwise convolution": (
        "        __syncthreads();\n        projection.add",
        "projection.add",
    ),
    "no barrier before the results are staged": ("    __syncthreads();  // the results", "    // the results"),
    "no barrier before the results are stored": ("    __syncthreads();\n    T* const image", "    T* const image"),
    "the padding is not cleared": ("i < (Tile::kTable - Tile::kExpanded) / 16;", "i < 0;"),
    "the wrong slab of weights": ("int64(slab + 1) * Tile::kWeights", "int64(slab) * Tile::kWeights"),
    "the residual of a neighbour": ("pixel % COLUMNS + p.padding[1]", "pixel % COLUMNS"),
    "a ragged tile is stored": ("column >= p.out[1]) continue", "column >= p.out[1] + 1) continue"),
    "the filling channels are live": ("p.expanded - slab * SLAB, act", "SLAB, act"),
    "the pixels of another image": ("x + int64(n) *", "x + 0 *"),
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
