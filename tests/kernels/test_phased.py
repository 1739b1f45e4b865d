"""All phases of a dilated input in one launch: every kernel that can, on filters of every remainder of the stride."""

from functools import partial

import numpy as np
import pytest

from gpu_conv import arguments, dispatch, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import implicit_gemm, implicit_gemm_tiles, phased, pointwise, pointwise_tiles, tile
from gpu_conv.families.tile_model import Tile
from tests.cases import Case, fill
from tests.kernels import checking
from tests.kernels.checking import ARCHES, TARGETS, assert_lean, assert_params_match, plant

ROWS = {row.name: row for row in (*pointwise.ROWS, *tile.ROWS, *implicit_gemm.ROWS)}


def up(name, c, o, size, k, dtype="float16", last=True, *, batch=1, residual=False, **options):
    """A transposed layer of c to o channels."""
    shapes = (batch, c, *size), (c, o // options.get("groups", 1), *k)
    return Case(name, *shapes, dtype, last, residual=residual, transposed=True, options={"strides": 2} | options)


PADDED = {"padding": 1, "output_padding": 1}
LAYERS = (  # and how many phases they have
    (4, up("k2", 16, 24, (5, 6), (2, 2), residual=True)),
    (4, up("k2", 5, 7, (5, 6), (2, 2), "float32", residual=True, activation="relu")),
    (4, up("k2 first", 16, 24, (4, 8), (2, 2), last=False, residual=True, activation="gelu")),
    (4, up("k2 first", 6, 10, (3, 5), (2, 2), "float32", False, batch=3)),
    (4, up("k2 groups", 24, 18, (4, 3), (2, 2), "bfloat16", groups=3, residual=True)),
    (4, up("k2 cropped", 8, 12, (5, 6), (2, 2), padding=1)),
    (2, up("k2 1-D", 40, 24, (33,), (2,), residual=True)),
    (8, up("k2 3-D", 16, 24, (3, 2, 5), (2, 2, 2), batch=2)),
    (8, up("k2 3-D first", 6, 9, (2, 3, 4), (2, 2, 2), "float32", False, residual=True)),
    (2, up("k2 along one axis", 16, 8, (5, 6), (2, 1), strides=(2, 1))),
    (4, up("k2 int8", 32, 24, (5, 6), (2, 2), "int8")),
    (4, up("k4", 16, 24, (5, 6), (4, 4), padding=1, residual=True, activation="relu6")),
    (4, up("k4", 8, 12, (5, 6), (4, 4), "float32", padding=1, residual=True)),
    (4, up("k4 first", 16, 8, (6, 8), (4, 4), "bfloat16", False, padding=1)),
    (4, up("k4 first", 5, 9, (6, 5), (4, 4), "float32", False, padding=1, batch=2, residual=True)),
    (4, up("k4 groups", 24, 36, (4, 5), (4, 4), "float32", groups=3, padding=1)),
    (4, up("k4 small groups", 32, 32, (4, 5), (4, 4), groups=8, padding=1)),
    (2, up("k4 1-D", 24, 40, (70,), (4,), padding=1, residual=True)),
    (8, up("k4 3-D", 8, 12, (2, 3, 2), (4, 4, 4), "float32", padding=1)),
    (4, up("k4 uint8", 32, 24, (5, 6), (4, 4), "uint8", padding=1, x_zero_point=7)),
    (4, up("k3", 16, 24, (5, 6), (3, 3), residual=True, activation="relu", **PADDED)),
    (4, up("k3 three chunks", 24, 16, (5, 6), (3, 3), **PADDED)),
    (4, up("k3 one chunk", 8, 16, (5, 6), (3, 3), batch=2, **PADDED)),
    (4, up("k3 first", 5, 9, (5, 6), (3, 3), "bfloat16", False, residual=True, **PADDED)),
    (4, up("k3", 8, 12, (5, 6), (3, 3), "float32", residual=True, **PADDED)),
    (4, up("k3 first", 6, 9, (5, 7), (3, 3), "float32", False, batch=2, **PADDED)),
    (4, up("k3 small groups", 32, 16, (4, 5), (3, 3), groups=8, **PADDED)),
    (2, up("k3 1-D", 24, 40, (70,), (3,), **PADDED)),
    (8, up("k3 3-D", 8, 12, (2, 3, 2), (3, 3, 3), "float16", **PADDED)),
    (4, up("k3 int8", 32, 24, (5, 6), (3, 3), "int8", x_zero_point=-3, **PADDED)),
    (4, up("k4, paddings", 16, 136, (5, 6), (4, 4), padding=(2, 1))),
    (4, up("k4, paddings", 8, 136, (5, 6), (4, 4), "float32", padding=(1, 2))),
    (4, up("k5 x k4", 16, 8, (4, 6), (5, 4), padding=(2, 1), output_padding=(1, 0))),
    (6, up("k5 x k4, strides", 8, 12, (4, 5), (5, 4), "float32", strides=(3, 2), output_padding=(1, 0))),
    (6, up("k5 x k4, strides", 8, 12, (4, 5), (5, 4), strides=(3, 2), output_padding=(1, 0))),
    (16, up("k4 s4", 16, 8, (3, 5), (4, 4), strides=4, residual=True)),
    (16, up("k4 s4 first", 5, 9, (3, 5), (4, 4), "float32", False, strides=4)),
    (4, up("k6", 8, 16, (4, 5), (6, 6), padding=2)),
    (4, up("k3 dilated", 8, 16, (6, 5), (4, 4), strides=2, dilations=3, padding=(4, 4), output_padding=0)),
)  # fmt: skip


def accepted():
    for number, (count, case) in enumerate(LAYERS):
        problem = fill(case, exact=True).call.problem
        for name, row in ROWS.items():
            if row.refuses(problem, TARGETS["sm_80"]) is None:
                yield pytest.param(count, case, name, ARCHES[number % 2], id=f"{name}-{case}")


def emulate(filled, launch, arch):
    """As the other tests of kernels do, whose cases mutation testing collects."""
    problem, fresh = filled.call.problem, filled.buffer.copy()
    exact = problem.activation is None or problem.activation.name != "gelu"
    clear = partial(np.copyto, filled.buffer, fresh)
    checking.Case(problem, filled.call.operands, launch, arch, exact, clear, filled.check).check()


def test_params_match_the_header():
    assert_params_match("phases.cuh", phased.PHASES)


def test_every_layer_has_a_kernel():
    assert {str(parameters.values[1]) for parameters in accepted()} == {str(case) for _, case in LAYERS}


@pytest.mark.parametrize(("count", "case", "name", "arch"), list(accepted()))
def test_layers(count, case, name, arch):
    filled = fill(case, exact=True)
    launch = ROWS[name].plan(filled.call.problem, TARGETS[arch])
    assert np.frombuffer(launch.params[-phased.PHASES.itemsize :], phased.PHASES)["count"] == count
    emulate(filled, launch, arch)


def kinds(tiles):
    """One tile of every kind: resident, divided, shared by warps; the smallest."""
    found = {}
    for one in sorted(tiles, key=lambda t: t.rows * t.columns):
        found.setdefault((one.resident, one.split, one.k_warps > 1), one)
    return list(found.values())


def products():
    """The two layers are for one family each: 1x1 phases and others."""
    for last in (True, False):
        shapes = {pointwise: (200, 40, (5, 7), (2, 2)), implicit_gemm: (64, 40, (5, 7), (3, 3))}
        for family, given in ((pointwise, pointwise_tiles.TILES), (implicit_gemm, implicit_gemm_tiles.TILES)):
            tiles = given[last] if family is implicit_gemm else given[pointwise_tiles.Engine.IEEE, last]
            layer = up(
                "tiles", *shapes[family], "float32", last, residual=True, **(PADDED if family is implicit_gemm else {})
            )
            for one in kinds(tiles):
                yield pytest.param(family, layer, one, id=f"{family.__name__.rpartition('.')[2]}-{one.cpp}-{last}")


@pytest.mark.parametrize(("family", "layer", "one"), list(products()))
def test_kinds_of_tiles(family, layer, one):
    """Blocks that share a sum, and blocks that walk over tiles, keep the phases apart."""
    filled = fill(layer, exact=True)
    target = KNOWN_TARGETS["sm_80"] if one.split else TARGETS["sm_80"]
    launch = family.plan(filled.call.problem, target, one)
    assert one.cpp in launch.template
    assert bool(launch.workspace_bytes) == one.split
    emulate(filled, launch, "sm_80")


# images, strips of rows and columns, bars, units, chunks, unit tiles, warps, stages, resident
@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize(
    "numbers",
    [(1, 2, 1, 4, 1, 1, 2, 1, 3, False), (1, 1, 2, 4, 1, 2, 2, 1, 4, True), (1, 2, 2, 4, 1, 3, 4, 2, 2, False),
     (2, 1, 1, 4, 1, 3, 3, 1, 2, True), (1, 2, 2, 4, 1, 6, 4, 2, 2, False)],
    ids=str,
)  # fmt: skip
def test_tiles_of_conv_tile(numbers, k):
    """Slabs of one, two, three and six chunks: a missing column ends a step, or lies in the middle of one."""
    options = {"padding": 1, "output_padding": k % 2}
    filled = fill(up("tiles", 48, 28, (11, 18), (k, k), batch=3, residual=True, **options), exact=True)
    launch = tile.plan(filled.call.problem, TARGETS["sm_120"], Tile(*numbers))
    emulate(filled, launch, "sm_120")


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_not_finite_stays_with_the_taps_that_meet_it(dtype, k):
    """A tap that a phase does not have is not multiplied, not even with zero."""
    rng = np.random.default_rng(k)
    x, w = rng.integers(-2, 3, (2, 5, 6, 8)).astype(dtype), rng.integers(1, 3, (8, 16, k, k)).astype(dtype)
    x[0, 2, 3, 1], x[1, 4, 5, 7], x[1, 0, 0, 0] = np.inf, np.nan, -np.inf
    options = {"strides": 2, "padding": (k - 1) // 2, "output_padding": k % 2, "input_layout": "nhwc"}
    call = arguments.prepare(x, w, transposed=True, **options)
    with np.errstate(invalid="ignore"):
        truth = reference.convolve(call.problem, call.operands).astype(dtype)
    assert np.isfinite(truth).mean() > 0.8
    for row in ROWS.values():
        if row.refuses(call.problem, TARGETS["sm_80"]) is None:
            call.operands["y"][...] = 77
            Emulator("sm_80").run(row.plan(call.problem, TARGETS["sm_80"]), call.operands)
            np.testing.assert_array_equal(call.operands["y"], truth)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (up("k5 s5", 16, 8, (4, 4), (5, 5), strides=5), "16 phases"),
        (up("k1", 16, 8, (4, 4), (1, 1), output_padding=1), "meet no tap"),
        (up("k3 odd", 16, 8, (4, 4), (3, 3)), "outputs of one size"),
        (up("depthwise", 16, 16, (4, 4), (4, 4), groups=16, padding=1), "one channel per group"),
        (up("4-D", 4, 4, (2, 2, 2, 2), (2, 2, 2, 1), last=False, strides=(2, 2, 2, 1)), "3 axes"),
    ],
    ids=str,
)
def test_refusals(case, reason):
    problem = fill(case, exact=True).call.problem
    assert reason in phased.refuses(problem)
    assert all(row.refuses(problem, TARGETS["sm_80"]) for row in ROWS.values())


def test_pointwise_wants_phases_of_one_tap():
    for k, options in ((4, {"padding": 1}), (2, {"padding": 1}), (3, PADDED)):
        problem = fill(up("no", 16, 8, (5, 6), (k, k), **options), exact=True).call.problem
        assert "no padding" in ROWS["pointwise"].refuses(problem, TARGETS["sm_80"])


DECODERS = (  # channels, outputs, size, taps, batch, activation
    (512, 256, 14, 4, 1, "gelu"),
    (64, 32, 112, 2, 32, "softplus"),
    (64, 32, 112, 3, 32, "gelu"),
)


@pytest.mark.parametrize(("number", "layer"), list(enumerate(DECODERS)), ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_spills(number, layer, dtype):
    """Layers of decoders as planned for real devices, layouts and architectures in turn; the compile matrix has all."""
    c, o, size, k, batch, activation = layer
    turn = 2 * number + (dtype == "float16")
    arch, last = ("sm_90a", "sm_120", "sm_80", "sm_100", "sm_75", "sm_89")[turn], turn % 4 in (0, 3)
    x = np.zeros((batch, size, size, c) if last else (batch, c, size, size), dtype)
    options = {"strides": 2, "padding": (k - 1) // 2, "output_padding": k % 2, "activation": activation}
    options |= {"input_layout": "nhwc" if last else "nchw", "transposed": True}
    problem = arguments.prepare(x, np.zeros((c, o, k, k), dtype), **options).problem
    for row in ROWS.values():
        if row.refuses(problem, KNOWN_TARGETS[arch]) is None:
            assert_lean([row.plan(problem, KNOWN_TARGETS[arch])], [arch])


def test_one_launch_of_the_kernel_of_the_largest_phase():
    for _, case in LAYERS:
        problem, target = fill(case, exact=True).call.problem, TARGETS["sm_80"]
        (step,) = dispatch.steps(problem, target)
        assert step.phase is None
        assert step.launch.kernel in ROWS


BUGS = (
    ("conv_tile.cu", 3, "w += phase.w, y += phase.y;", "w += phase.w;"),
    ("conv_tile.cu", 3, "w += phase.w, y += phase.y;", "y += phase.y;"),
    ("conv_tile.cu", 3, "|| !taps.has_row(r)) continue;", ") continue;"),
    ("conv_tile.cu", 3, "if (!taps.has_column(item / TILE::kChunks)) break;", ""),
    ("conv_tile.cu", 3, "& taps.has_column(tap % F::kColumns);", ";"),
    ("conv_tile.cu", 3, "a[2] = a[3] = 0;", ";"),
    ("conv_tile.cu", 4, "p.padding_rows = padding[1], p.padding_columns", "p.padding_columns"),
    ("implicit_gemm.cu", 3, "p.depth = p.depth / most * taps;", ""),
    ("implicit_gemm.cu", 4, "w = opaque(w + (phase.w + ", "w = opaque(w + ("),
    ("implicit_gemm.cu", 4, "p.padding[axis] = padding[axis], ", ""),
    ("implicit_gemm.cu", 3, ", p.filter[axis] = filter[axis]", ""),
    ("implicit_gemm.cu", 3, "number * whose.count + whose.index", "number"),
    ("pointwise.cu", 2, "Phase(given, opaque(blockIdx.x)).residual + ", ""),
    ("pointwise.cu", 2, "tile_id * phase.count + phase.index", "tile_id"),
)


@pytest.mark.parametrize(("file", "k", "old", "new"), BUGS)
def test_planted_bugs_are_found(file, k, old, new, monkeypatch):
    """Phases that are mixed up, taps that do not exist."""
    plant(monkeypatch, file, old, new)  # with the text of its headers
    family = {"conv_tile.cu": tile, "implicit_gemm.cu": implicit_gemm, "pointwise.cu": pointwise}[file]
    dtype = "float16" if family is tile else "float32"
    options = {"padding": (k - 1) // 2, "output_padding": k % 2, "residual": True}
    filled = fill(up("bugs", 24 if family is tile else 200, 16, (4, 5), (k, k), dtype, **options), exact=True)
    x = filled.call.operands["x"]
    x[0, 0, 3, 2, 3] = x[0, 0, 10, 1, 1] = np.inf  # beside a missing tap in a step, and in a step of one
    chosen = Tile(1, 2, 2, 4, 1, 3, 4, 2, 2, False)
    if family is not tile:
        tiles = (
            implicit_gemm_tiles.TILES[True]
            if family is implicit_gemm
            else pointwise_tiles.TILES[pointwise_tiles.Engine.IEEE, True]
        )
        chosen = next(t for t in tiles if t.split)
    launch = family.plan(filled.call.problem, KNOWN_TARGETS["sm_80"], chosen)

    def check():
        report = Emulator("sm_80").run(launch, filled.call.operands)
        assert report.ok
        with np.errstate(invalid="ignore"):
            truth = reference.convolve(filled.call.problem, filled.call.operands)
        np.testing.assert_array_equal(filled.call.operands["y"], truth.astype(dtype))

    with pytest.raises((AssertionError, EmulationError)):
        check()
