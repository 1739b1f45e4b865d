"""The pointwise kernel in the emulator: every tile, every way of reading and writing, every arithmetic."""

import numpy as np
import pytest

from gpu_conv import arguments
from gpu_conv.cuda import compiler
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import Row, pointwise
from gpu_conv.families.pointwise_tiles import SPILLING, TILES, Engine
from tests.kernels.checking import ARCHES, TARGETS, arrays, assert_lean, assert_params_match, plant, run

ROW = pointwise.ROWS[0]
RESIDENT, STREAMING, FEW, SPLIT = 0, 1, 2, 3


def with_tile(tile):
    """The row with one tile instead of the planner's choice; k is divided only where multiprocessors are idle."""

    def plan(problem, target):
        return pointwise.plan(problem, KNOWN_TARGETS[target.arch] if tile.split else target, tile)

    return Row("pointwise", pointwise.refuses, plan)


def tile_of(engine, in_rows, kind):
    """The smallest tile of a kind."""

    def kind_of(tile):
        return RESIDENT if tile.resident else SPLIT if tile.split else FEW if tile.k_warps > 1 else STREAMING

    tiles = [tile for tile in TILES[engine, in_rows] if kind_of(tile) == kind]
    return min(tiles, key=lambda tile: tile.rows * tile.columns)


def conv1x1(dtype, channels, outputs, size, *, in_rows=True, w_layout=None, groups=1, batch=2, exact=True, seed=0):
    """x and w of a 1x1 convolution, channels-last (pixels in the rows of the product) or channels-first."""
    layout = "nhwc" if in_rows else "nchw"
    sizes = (dtype, channels, groups, outputs, size, (1, 1))
    made = arrays(*sizes, batch=batch, last=in_rows, w_layout=w_layout or "oihw", exact=exact, seed=seed)
    return *made, {"input_layout": layout, "filter_layout": w_layout or "oihw", "groups": groups}


def every_tile():
    for (engine, in_rows), tiles in TILES.items():
        for i, tile in enumerate(tiles):
            name = f"{engine.name}-{'rows' if in_rows else 'columns'}-{tile.rows}x{tile.columns}x{tile.slab}-{i}"
            yield pytest.param(engine, in_rows, tile, ARCHES[i % 2], id=name)


@pytest.mark.parametrize(("engine", "in_rows", "tile", "arch"), list(every_tile()))
def test_every_tile(engine, in_rows, tile, arch):
    """More than one tile along pixels and channels, two slabs of k, everything ragged; a resident block walks on."""
    dtype = {Engine.IEEE: "float32", Engine.TENSOR_CORES: "float16", Engine.TENSOR_CORES_ZERO_POINTS: "uint8"}[engine]
    pixels, channels = (tile.rows, tile.columns) if in_rows else (tile.columns, tile.rows)
    slab = tile.slab // np.dtype(dtype).itemsize
    height = pixels * (tile.blocks + 1 if tile.resident else 1) // 16 + 1  # 16 wide: more tiles than blocks
    zero_points = {"x_zero_point": np.uint8(7), "w_zero_point": np.uint8(9)}
    options = {**zero_points, "residual": False} if dtype == "uint8" else {"residual": True}
    x, w, layout = conv1x1(
        dtype, slab * (4 if tile.split else 1) + 16, min(channels + 8, 72), (height, 8), in_rows=in_rows
    )
    probe = arguments.prepare(x, w, **layout, w_zero_point=options.get("w_zero_point", 0)).problem
    if not pointwise.demand_of(probe).blocks(tile, TARGETS[arch]):  # its shared memory is for larger GPUs
        arch = "sm_80"
    launch = run(with_tile(tile), x, w, target=arch, bias="int32" if dtype == "uint8" else dtype, **options, **layout)
    assert tile.cpp in launch.template
    if tile.split:
        rows = x.size // x.shape[-1 if in_rows else 1]
        assert launch.grid[0] > -(-rows // pixels) * -(-len(w) // channels)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("engine", "dtype"), [(Engine.TENSOR_CORES, "float16"), (Engine.IEEE, "float32")])
@pytest.mark.parametrize("in_rows", [True, False])
def test_residues(engine, dtype, in_rows, arch):
    """Every residue of pixels, channels and k modulo the smallest tile; odd ones need narrow access."""
    tile = min(TILES[engine, in_rows], key=lambda tile: tile.rows * tile.columns)
    step = 8 if dtype == "float16" else 4
    for i in range(1, tile.columns // step + 1):  # as wide as it goes
        wide, other = i * step, 16 + 3 * i
        outputs, pixels = (wide, other) if in_rows else (other, wide)
        groups = {"groups": 1 + i % 2, "batch": 1, "seed": i}
        x, w, layout = conv1x1(dtype, i * step * 5, outputs, (1, pixels), in_rows=in_rows, **groups)
        bias = i % 4 < 2 and "float32"
        run(with_tile(tile), x, w, target=arch, bias=bias, residual=i % 3 == 0, **layout)


@pytest.mark.parametrize("arch", ARCHES)
def test_depths(arch):
    """Numbers of slabs around the stages of the ring, ragged everywhere, through one instantiation."""
    tile = tile_of(Engine.TENSOR_CORES, True, STREAMING)
    for i, channels in enumerate((8, 64, 72, 128, 192, 200, 328)):
        x, w, layout = conv1x1("float16", channels, 8 * (1 + i % 4), (1 + i, 13), groups=1 + i % 3, batch=1 + i % 2)
        run(with_tile(tile), x, w, target=arch, bias="float32", **layout)


@pytest.mark.parametrize(("dtype", "in_rows"), [("float16", True), ("float16", False), ("float32", True)])
def test_odd_residues(dtype, in_rows):
    """One element at a time, where nothing is aligned; once more slabs of k than the ring holds."""
    engine = Engine.IEEE if dtype == "float32" else Engine.TENSOR_CORES
    for i in range(1, 18, 2):
        sizes = (dtype, 3 * i + 14 + (i == 17) * 324, 34 - i, (1, 8 + i))
        x, w, layout = conv1x1(*sizes, in_rows=in_rows, groups=1 + i // 2 % 2, batch=1 + i // 6 % 2, seed=i)
        bias = i % 5 < 3 and "float32"  # alone, beside a residual, or neither
        run(with_tile(tile_of(engine, in_rows, FEW)), x, w, bias=bias, residual=i % 3 == 0, **layout)


ACCESSES = {
    "strided": ("float16", True, 24, 40, {"strides": (2, 3)}),
    "strided-first": ("float16", False, 24, 40, {"strides": 2}),
    "strided-odd": ("float32", True, 7, 5, {"strides": 2, "residual": True}),
    "8-byte": ("bfloat16", True, 12, 20, {"residual": True}),
    "4-byte": ("float16", True, 10, 6, {}),
    "2-byte": ("float16", True, 9, 7, {"residual": True}),
    "groups": ("float16", True, 24, 16, {"groups": 3}),
    "groups-first": ("float32", False, 12, 9, {"groups": 3, "residual": True}),
    "groups-odd": ("float16", True, 5, 3, {"groups": 2}),
    "hwio": ("float16", True, 24, 40, {"w_layout": "hwio"}),
    "hwio-first": ("float32", False, 12, 20, {"w_layout": "hwio"}),
    "to-first": ("float16", True, 24, 40, {"output_layout": "nchw"}),
    "to-last": ("float32", False, 24, 40, {"output_layout": "nhwc"}),
    "to-nhcw": ("float16", True, 24, 40, {"output_layout": "nhcw"}),
    "wide-out": ("float16", True, 24, 40, {"out_dtype": "float32"}),
    "bfloat16-first": ("bfloat16", False, 24, 40, {}),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", ACCESSES)
def test_access(name, arch):
    """Layouts, strides, alignments: whatever the planner chooses for them."""
    dtype, in_rows, channels, outputs, given = ACCESSES[name]
    options = dict(given)
    residual, w_layout = options.pop("residual", False), options.pop("w_layout", None)
    x, w, layout = conv1x1(
        dtype, channels, outputs, (8, 8), in_rows=in_rows, w_layout=w_layout, groups=options.pop("groups", 1)
    )
    run(ROW, x, w, target=arch, bias="float32", residual=residual, **layout, **options)


@pytest.mark.parametrize("kind", [RESIDENT, STREAMING, FEW, SPLIT])
@pytest.mark.parametrize(
    ("engine", "dtype", "in_rows", "precision"),
    [
        (Engine.TENSOR_CORES, "float16", True, "ieee"),
        (Engine.TENSOR_CORES, "bfloat16", False, "ieee"),
        (Engine.TENSOR_CORES, "float32", True, "tf32"),
        (Engine.TENSOR_CORES, "float32", False, "tf32"),
        (Engine.IEEE, "float32", True, "ieee"),
        (Engine.IEEE, "float32", False, "ieee"),
    ],
)
def test_rounding(engine, dtype, in_rows, precision, kind):
    """Normal numbers within the computed tolerance, with an activation behind bias and residual."""
    tile = tile_of(engine, in_rows, kind)
    x, w, layout = conv1x1(dtype, 264, 40, (9, 8), in_rows=in_rows, exact=False)
    arch = ARCHES[kind % 2]
    options = {"precision": precision, "activation": "relu6", "residual": True, "bias": "float32"}
    run(with_tile(tile), x, w, target=arch, exact=False, **options, **layout)


@pytest.mark.parametrize("activation", ["gelu", "hard_swish", ("clip", -1.5, 2.0), ("leaky_relu", 0.1)])
def test_activation(activation):
    x, w, layout = conv1x1("float16", 16, 8, (5, 5), exact=False)
    run(ROW, x, w, bias="float16", residual=True, exact=False, activation=activation, **layout)


@pytest.mark.parametrize("in_rows", [True, False])
@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"), [("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")]
)
def test_integers(x_dtype, w_dtype, in_rows):
    """Extremes of both types; zero points per tensor and per output channel; k that ends inside a product."""
    rng = np.random.default_rng(1)
    x, w, layout = conv1x1(x_dtype, 37, 19, (5, 7), in_rows=in_rows)
    x = rng.choice([np.iinfo(x_dtype).min, 3, np.iinfo(x_dtype).max], x.shape).astype(x_dtype)
    w = rng.choice([np.iinfo(w_dtype).min, 5, np.iinfo(w_dtype).max], w.shape).astype(w_dtype)
    zero_points = {
        "x_zero_point": np.array(np.iinfo(x_dtype).min, x_dtype),
        "w_zero_point": rng.integers(np.iinfo(w_dtype).min, np.iinfo(w_dtype).max, 19, endpoint=True).astype(w_dtype),
    }
    run(ROW, x, w, bias="int32", **zero_points, **layout)


@pytest.mark.parametrize("in_rows", [True, False])
def test_integers_without_zero_points(in_rows):
    x, w, layout = conv1x1("int8", 48, 40, (8, 8), in_rows=in_rows)
    run(ROW, x, w, residual=True, activation="relu", **layout)


@pytest.mark.parametrize(
    ("kind", "in_rows", "arch"),
    [(RESIDENT, True, "sm_80"), (STREAMING, False, "sm_120"), (FEW, True, "sm_80"), (SPLIT, True, "sm_120")],
)
def test_a_zero_point_of_x_alone(kind, in_rows, arch):
    """It joins the bias, also where several warps or blocks share a sum; filters of every width, requantised."""
    for k, w_layout in ((96 if kind == SPLIT else 48, "oihw"), (20, "oihw"), (37, "oihw"), (32, "hwio")):
        x, w, layout = conv1x1("uint8", k * (8 if kind == SPLIT else 1), 40, (5, 8), in_rows=in_rows, w_layout=w_layout)
        options = {"bias": "int32", "x_zero_point": np.uint8(250), "requantize": (1e-4, np.uint8(9)), **layout}
        run(with_tile(tile_of(Engine.TENSOR_CORES, in_rows, kind)), x, w.view("int8"), target=arch, **options)


def test_requantisation_does_not_spill():
    x, w, layout = conv1x1("uint8", 64, 256, (8, 8))
    options = {"x_zero_point": 3, "requantize": (0.1, 0), **layout}
    problem = arguments.prepare(x, w, **options).problem
    tile = max(TILES[Engine.TENSOR_CORES, True], key=lambda tile: tile.warp_rows * tile.warp_columns)
    assert_lean([pointwise.plan(problem, KNOWN_TARGETS["sm_90a"], tile)], ["sm_90a", "sm_75"])


@pytest.mark.parametrize("kind", [RESIDENT, STREAMING, SPLIT])
@pytest.mark.parametrize(("engine", "dtype"), [(Engine.TENSOR_CORES, "float16"), (Engine.IEEE, "float32")])
def test_non_finite_values_stay_in_their_pixel(engine, dtype, kind):
    """k ends inside a slab: its padding must be zero on both sides. Zero times Inf is NaN in that pixel alone."""
    x, w, layout = conv1x1(dtype, 264 if kind == SPLIT else 20, 24, (6, 6))
    x[0, 2, 3, -1], x[1, 5, 5, 0], x[1, 0, 0, 3] = np.inf, -np.inf, np.nan
    w[:, :, 0, 0][5] = 0
    run(with_tile(tile_of(engine, True, kind)), x, w, exact=False, activation="relu6", bias="float32", **layout)


@pytest.mark.parametrize("arch", ARCHES)
def test_padding_of_k_is_zero_on_both_sides(arch):
    """Inf where a copy that should write zeros would start; the ragged slab is in the ring at first, or comes later."""
    for channels in (20, 21, 84, 85, 148, 149, 276, 277):
        x, w, layout = conv1x1("float32", channels, 32 + channels % 2, (3, 5), batch=1)
        x[0, 0, 0, 0], w[0, 0, 0, 0] = np.inf, -np.inf
        run(with_tile(tile_of(Engine.IEEE, True, FEW)), x, w, exact=False, target=arch, **layout)


@pytest.mark.parametrize("engine", [Engine.TENSOR_CORES, Engine.IEEE])
def test_split_sums_do_not_depend_on_the_order_of_blocks(engine):
    dtype = "float16" if engine is Engine.TENSOR_CORES else "float32"
    x, w, layout = conv1x1(dtype, 330, 24, (3, 8), exact=False)
    results = set()
    for seed in (None, 1, 2):
        call = arguments.prepare(x, w, **layout)
        launch = pointwise.plan(call.problem, KNOWN_TARGETS["sm_80"], tile_of(engine, True, SPLIT))
        Emulator("sm_80", seed=seed).run(launch, call.operands)
        results.add(call.result.tobytes())
    assert launch.grid[0] > 4
    assert len(results) == 1


def test_every_schedule_of_the_ring_gives_the_same(seed):
    """Random order of blocks and warps, asynchronous copies that land late."""
    x, w, layout = conv1x1("float16", 72, 24, (13, 40), batch=1)
    call = arguments.prepare(x, w, **layout)
    for kind in (RESIDENT, STREAMING, FEW):
        launch = pointwise.plan(call.problem, TARGETS["sm_80"], tile_of(Engine.TENSOR_CORES, True, kind))
        results = set()
        for schedule in (None, seed):
            call.result[...] = np.nan
            Emulator("sm_80", seed=schedule).run(launch, call.operands)
            results.add(call.result.tobytes())
        assert len(results) == 1, kind


def test_memory_traffic_of_a_mobilenet_layer():
    """144 -> 32 channels, 28x28: whole sectors, next to no bank conflicts, nothing read twice."""
    x, w, layout = conv1x1("float16", 144, 32, (28, 28), batch=1)
    call = arguments.prepare(x, w, **layout)
    tile = next(t for t in TILES[Engine.TENSOR_CORES, True] if t.resident and t.columns == 32)
    report = Emulator("sm_80").run(pointwise.plan(call.problem, TARGETS["sm_80"], tile), call.operands)
    counters = report.counters
    assert counters.store_sectors_per_request == 16
    assert counters.load_sectors_per_request > 14  # 144 channels end inside the fifth slab
    assert counters.bank_conflict_factor <= 1.1
    assert counters.bytes_read <= 1.01 * (x.nbytes + w.nbytes)
    assert counters.bytes_written == call.result.nbytes


@pytest.mark.parametrize("engine", list(Engine))
def test_registers_do_not_spill(engine):
    """One wide tile per engine here; the compile matrix has them all."""
    dtype = {Engine.IEEE: "float32", Engine.TENSOR_CORES: "float16", Engine.TENSOR_CORES_ZERO_POINTS: "uint8"}[engine]
    zero_point = {"w_zero_point": 3} if dtype == "uint8" else {}
    x, w, layout = conv1x1(dtype, 64, 256, (8, 8))
    problem = arguments.prepare(x, w, **zero_point, **layout).problem
    tile = max(TILES[engine, True], key=lambda tile: tile.warp_rows * tile.warp_columns)
    for arch in ("sm_90a", "sm_120"):
        launch = pointwise.plan(problem, KNOWN_TARGETS[arch], tile)
        assert_lean([launch], [arch])
        assert compiler.compile_launch(launch, arch).registers * launch.threads * tile.blocks <= 65536


@pytest.mark.parametrize("arch", ["sm_86", "sm_90a", "sm_120"])
@pytest.mark.parametrize(("size", "tile"), SPILLING)
def test_spilling_tiles_are_not_offered(arch, size, tile):
    dtype, options = {4: ("float32", {"precision": "tf32"}), 1: ("int8", {})}[size]
    target, offered = KNOWN_TARGETS[arch], set()
    for shape in ((1, 8, 8, 64), (1, 64, 8, 8)):
        layouts = {"input_layout": "nhwc"} if shape[-1] == 64 else {}
        x, w = np.zeros(shape, dtype), np.zeros((256, 64, 1, 1), dtype)
        offered |= set(pointwise.tiles(arguments.prepare(x, w, **options, **layouts).problem, target))
    spills = any(target.capability in some for some in SPILLING[size, tile])
    assert (tile in offered) is not spills


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
@pytest.mark.parametrize(("size", "layout"), [(28, "iohw"), (7, "oihw")], ids=["filter", "pixels"])
def test_what_is_gathered_does_not_spill(arch, size, layout):
    """16 loads under way of 16-bit elements did."""
    x = np.empty((1, 64, size, size), np.float16)
    w = np.empty((64, 256, 1, 1) if layout == "iohw" else (256, 64, 1, 1), np.float16)
    problem = arguments.prepare(x, w, filter_layout=layout, activation="gelu").problem
    target = KNOWN_TARGETS[arch]
    tiles = [tile for tile in pointwise.tiles(problem, target) if (tile.warp_rows, tile.warp_columns) == (48, 32)]
    assert tiles
    assert_lean([pointwise.plan(problem, target, tile) for tile in tiles], [arch])


def test_params():
    assert_params_match("pointwise.cu", pointwise.PARAMS)


def test_refusals():
    def reason(dtype="float32", arch="sm_80", taps=(1, 1), **options):
        x, w = arrays(dtype, 8, 1, 8, (6, 6), taps)
        return pointwise.refuses(arguments.prepare(x, w, **options).problem, KNOWN_TARGETS[arch])

    assert reason() is None
    assert "filter of ones" in reason(taps=(3, 3))
    assert "filter of ones" in reason(padding=1)
    assert "float64" in reason("float64")
    assert "8.0" in reason("bfloat16", arch="sm_75")
    assert "TF32" in reason(precision="tf32", arch="sm_75")
    assert reason("float16", arch="sm_75") is None


@pytest.mark.parametrize("arch", KNOWN_TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_tile_fits_every_gpu(arch, dtype):
    """From one pixel to a large layer: shared memory and the grid stay inside the limits."""
    target = KNOWN_TARGETS[arch]
    for channels, outputs, size in ((8, 8, (1, 1)), (32, 16, (112, 112)), (960, 320, (7, 7)), (4096, 4096, (14, 14))):
        for in_rows in (True, False):
            layout = {"input_layout": "nhwc" if in_rows else "nchw"}
            shape = (2, *size, channels) if in_rows else (2, channels, *size)
            x = np.broadcast_to(np.zeros((), dtype), shape)  # no memory; its strides are not what is tested
            w = np.broadcast_to(np.zeros((), dtype), (outputs, channels, 1, 1))
            launch = pointwise.plan(arguments.prepare(x, w, **layout).problem, target)
            assert launch.shared_bytes <= target.shared_per_block
            assert 0 < launch.grid[0] < 2**31
            assert launch.threads <= 1024


def test_unaligned_arrays():
    """A view that starts one element into its buffer loses the wide copies, not the result."""
    rng = np.random.default_rng(0)
    buffer = rng.integers(-3, 4, 1 + 2 * 5 * 5 * 16).astype("float16")
    x = buffer[1:].reshape(2, 5, 5, 16)
    w = rng.integers(-3, 4, (8, 16, 1, 1)).astype("float16")
    call = arguments.prepare(x, w, input_layout="nhwc")
    launch = pointwise.plan(call.problem, TARGETS["sm_80"])
    Emulator("sm_80").run(launch, call.operands)
    np.testing.assert_array_equal(call.result, np.einsum("nhwc,oc->nhwo", x.astype(float), w[:, :, 0, 0].astype(float)))


BUGS = {
    "no wait for copies": ("            copy_wait<kStages - 2>();\n", "", RESIDENT),
    "no barrier before a slab": (
        "            copy_wait<kStages - 2>();\n            __syncthreads();",
        "copy_wait<0>();",
        STREAMING,
    ),
    "no barrier before the ring is used again": ("            __syncthreads();  // the ring is free", "", STREAMING),
    "no barrier of the warp before the store": (
        "        }\n        __syncwarp();\n    }\n\n    DEVICE void flush",
        "        }\n    }\n\n    DEVICE void flush",
        RESIDENT,
    ),
    "k is not padded with zeros": (
        "const bool valid = line != nullptr && k < end_k;",
        "const bool valid = line != nullptr;",
        STREAMING,
    ),
    "no fence before the ticket": (
        "    __threadfence();\n    __syncthreads();\n    if (threadIdx.x == 0)",
        "    __syncthreads();\n    if (threadIdx.x == 0)",
        SPLIT,
    ),
    "rows of a ragged tile are stored": ("if (inside) store(", "store(", FEW),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found(name, monkeypatch):
    old, new, kind = BUGS[name]
    plant(monkeypatch, "pointwise.cu", old, new)
    x, w, layout = conv1x1("float16", 248, 24, (20, 21))
    with pytest.raises((EmulationError, AssertionError)):
        run(with_tile(tile_of(Engine.TENSOR_CORES, True, kind)), x, w, **layout)
