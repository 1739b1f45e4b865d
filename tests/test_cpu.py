"""The NumPy fallback: every strategy on everything that it accepts, against the float64 reference."""

import threading
from itertools import product

import numpy as np
import pytest

from gpu_conv import Conv, arguments, cpu, reference
from gpu_conv.cpu import scratch
from gpu_conv.cpu.col2im import Col2im
from gpu_conv.cpu.exact import carried
from gpu_conv.cpu.general import General
from gpu_conv.cpu.phases import Phases
from gpu_conv.testing.tolerance import assert_close

from .cases import CASES, fill


def strategies(call):
    """Every strategy that accepts the call, prepared, suited or not."""
    problem, o = call.problem, call.operands
    weights, carrier = carried(problem, o["w"], o["w_zero_point"])
    for choice in cpu.STRATEGIES:
        strategy = choice.strategy
        if strategy.refuses(problem) is None and (carrier.kind != "i" or strategy in (Phases, General)):
            extra = (General,) if strategy is Phases else ()
            yield strategy(problem, weights, o["bias"], carrier, *extra)
    yield cpu.prepare(problem, o["w"], o["bias"], o["w_zero_point"])


def run(prepared, call, **changed):
    o = {**call.operands, **changed}
    prepared.run(o["x"], o["y"], o["residual"], o["x_zero_point"])


@pytest.mark.parametrize("exact", [True, False], ids=["integers", "normal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_strategy_on_the_corpus(case, exact):
    filled = fill(case, exact=exact)
    untouched = filled.buffer.copy()
    for prepared in strategies(filled.call):
        filled.buffer[...] = untouched
        run(prepared, filled.call)
        filled.check()


def integers(rng, shape, dtype):
    """Small integers, in memory of a random axis order, sometimes with gaps or backwards."""
    order = rng.permutation(len(shape))
    gap = rng.integers(1, 3)
    memory = np.zeros([shape[a] * (gap if i + 1 == len(shape) else 1) for i, a in enumerate(order)], dtype)
    low = 0 if memory.dtype.kind == "u" else -3
    view = memory[..., ::gap].transpose(np.argsort(order)) if len(shape) else memory
    view[...] = rng.integers(low, 4, shape)
    if memory.dtype.kind == "c":
        view[...] += 1j * rng.integers(-3, 4, shape)
    flips = tuple(slice(None, None, -1 if rng.random() < 0.15 else 1) for _ in shape)
    return view[flips]


DTYPES = ("float32", "float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "uint32", "int64")
DTYPES += ("complex64", "complex128")


def random_call(rng):
    """A valid call with every option at random."""
    rank = int(rng.choice(5, p=[0.05, 0.25, 0.4, 0.2, 0.1]))
    dtype = str(rng.choice(DTYPES))
    kind = np.dtype(dtype).kind
    groups, c, o = (int(rng.choice(a)) for a in ([1, 1, 2, 3, 17], [0, 1, 1, 2, 5, 20], [1, 1, 2, 6]))
    n = int(rng.choice([0, 1, 1, 2, 3]))

    def each(choices):
        return tuple(int(rng.choice(choices)) for _ in range(rank))

    k = each([1, 1, 2, 3, 4])
    options = {
        "strides": each([1, 1, 2, 3]),
        "dilations": each([1, 1, 2, 3]),
        "input_dilations": each([1, 1, 1, 2, 3]) if rng.random() < 0.3 else (1,) * rank,
        "padding": tuple(zip(each([0, 0, 1, 2, 4, -1]), each([0, 0, 1, 2, 5, -1]), strict=True)),
        "groups": groups,
        "flip_filter": bool(rng.random() < 0.2),
    }
    axes = "nc" + "dhw"[3 - rank :] if rank < 4 else "nc0123"
    shuffled = ["".join(rng.permutation(list(axes))) for _ in range(2)]
    last = axes[0] + axes[2:] + axes[1]
    options["input_layout"], options["output_layout"] = (str(rng.choice([axes, last, s])) for s in shuffled)
    window = [
        (a - 1) * d + 1 - sum(pair) for a, d, pair in zip(k, options["dilations"], options["padding"], strict=True)
    ]
    smallest = [-(-(a - 1) // ld) + 1 for a, ld in zip(window, options["input_dilations"], strict=True)]
    size = [max(1, a) + extra for a, extra in zip(smallest, each([0, 1, 2, 5, 8]), strict=True)]
    sizes = dict(zip(axes, (n, groups * c, *size), strict=True))
    x = integers(rng, [sizes[a] for a in options["input_layout"]], dtype)
    w = integers(rng, (groups * o, c, *k), dtype)
    bias = None
    if rng.random() < 0.6:
        bias = integers(rng, (groups * o,), "int32" if kind in "iu" else dtype)
    activation = [None, "relu", ("clip", -2, 5)][rng.integers(3)] if kind != "c" else None
    options["activation"] = activation if activation or kind in "iuc" else [None, "sigmoid"][rng.integers(2)]
    if dtype in ("int8", "uint8") and rng.random() < 0.5:
        options["x_zero_point"] = int(rng.integers(0, 9))
        options["w_zero_point"] = rng.integers(0, 5, groups * o)
    elif kind == "f" and rng.random() < 0.2:
        options["out_dtype"] = rng.choice(["float16", "float32", "float64"])
    result = arguments.prepare(x, w, bias, **options).result
    if rng.random() < 0.3:
        options["residual"] = integers(rng, result.shape, result.dtype)
    out = integers(rng, result.shape, result.dtype)
    out[...] = np.nan if out.dtype.kind not in "iu" else 55
    return arguments.prepare(x, w, bias, out=out, **options)


def transposed(x, w, **options):
    return arguments.prepare(x, w, transposed=True, **options)


TINY = {
    "im2col": {"COLUMNS": 40, "PIXELS": 7, "NARROW": 2},
    "gemm": {"SMALL": 30, "STRIP": 2, "WIDEST": 4, "NARROWEST": 2, "NEAR": 8, "WEIGHTS": 12, "CACHED": 40, "FEW": 3}
    | {"unpacked": lambda: True},
    "pointwise": {"BLOCK": 12, "FIRST": 12},
    "depthwise": {"BLOCK": 40, "RUN": (5, 20), "ROW": 30, "WIDE": 3},
    "flat": {"BLOCK": 60},
    "col2im": {"BLOCK": 50},
    "epilogue": {"TILE": 30},
    "scratch": {"KEEP": 4000},
}


@pytest.mark.parametrize("blocks", ["whole", "tiny"])
@pytest.mark.parametrize("seed", range(400))
def test_every_strategy_on_random_calls(seed, blocks, monkeypatch):
    for module, constants in TINY.items() if blocks == "tiny" else ():
        for name, value in constants.items():
            monkeypatch.setattr(f"gpu_conv.cpu.{module}.{name}", value)
    call = random_call(np.random.default_rng(seed + 1000 * (blocks == "tiny")))
    for prepared in strategies(call):
        call.result[...] = np.nan if call.result.dtype.kind not in "iu" else 55
        run(prepared, call)
        assert_close(call.operands["y"], call.problem, call.operands)


def random_transposed(rng):
    """A call whose input is dilated, with one or two spatial axes and everything that moves or crops the result."""
    rank, dtype = int(rng.integers(1, 3)), str(rng.choice(["float32", "float32", "float16", "int8"]))
    axes = "n" + "hw"[2 - rank :] + "c"
    n, c, o = (int(rng.integers(1, high)) for high in (3, 9, 5))
    size, filter_ = (tuple(map(int, rng.integers(1, high, rank))) for high in (7, 6))
    pads = [(int(lo), int(hi)) for lo, hi in rng.integers(-2, 7, (rank, 2))]
    x, w = integers(rng, (n, *size, c), dtype), integers(rng, (o, c, *filter_), dtype)
    options = {
        "input_dilations": tuple(map(int, rng.permutation([int(rng.integers(2, 4)), int(rng.integers(1, 4))])[:rank])),
        "dilations": tuple(map(int, rng.choice([1, 1, 2], rank))),
        "padding": pads,
        "activation": [None, "relu"][rng.integers(2)],
        "x_zero_point": 2 if dtype == "int8" else 0,
    }
    bias = integers(rng, (o,), "int32" if dtype == "int8" else dtype) if rng.random() < 0.7 else None
    result = arguments.prepare(x, w, bias, input_layout=axes, **options).result
    residual = integers(rng, result.shape, result.dtype) if rng.random() < 0.3 else None
    return arguments.prepare(x, w, bias, input_layout=axes, residual=residual, **options)


@pytest.mark.parametrize("blocks", ["whole", "tiny"])
@pytest.mark.parametrize("seed", range(40))
def test_transposed_convolutions_as_one_product(seed, blocks, monkeypatch):
    for module in ("col2im", "gemm") if blocks == "tiny" else ():
        for name, value in TINY[module].items():
            monkeypatch.setattr(f"gpu_conv.cpu.{module}.{name}", value)
    rng, done = np.random.default_rng(seed), 0
    while done < 5:
        call = random_transposed(rng)
        if Col2im.refuses(call.problem):
            continue
        weights, carrier = carried(call.problem, call.operands["w"], None)
        prepared = Col2im(call.problem, weights, call.operands["bias"], carrier)
        scratch.thread_block().fill(255)  # NaN
        call.result[...] = np.nan if call.result.dtype.kind == "f" else 55
        run(prepared, call)
        assert_close(call.operands["y"], call.problem, call.operands)
        done += 1


def test_decoders_are_one_product_and_others_phases():
    def strategy(c, o, k, layout="nhwc"):
        x = np.ones((1, 8, 8, c) if layout == "nhwc" else (1, c, 8, 8), np.float32)
        w = np.ones((c, o, k, k), np.float32)
        return next(s for s, no in cpu.explain(transposed(x, w, strides=2, input_layout=layout).problem) if no is None)

    assert strategy(64, 32, 4) == strategy(64, 32, 3) == strategy(56, 1, 9) == "matmul_col2im"
    assert strategy(64, 32, 4, "nchw") == "matmul_col2im"
    assert strategy(64, 32, 2) == strategy(32, 64, 4) == "phases"


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_bound_arrays_are_read_again_in_every_call(case):
    filled = fill(case, exact=True)
    for prepared in strategies(filled.call):
        o = filled.call.operands
        bound = prepared.bind(o["x"], o["y"], o["residual"], o["x_zero_point"])
        for _ in range(2):
            filled.call.result[...] = np.nan if filled.is_float else 77
            o["x"][...] = -o["x"]
            bound()
            filled.check()


def test_a_bound_call_follows_its_thread():
    """Bound in one thread, called in others while the first goes on with the same working memory."""
    rng = np.random.default_rng(4)
    x = rng.integers(-3, 4, (1, 30, 30, 8)).astype(np.float32)
    w = rng.integers(-3, 4, (8, 8, 3, 3)).astype(np.float32)
    calls = [arguments.prepare(x, w, padding=1, input_layout="nhwc", activation="relu") for _ in range(3)]
    prepared = cpu.prepare(calls[0].problem, calls[0].operands["w"])
    truth = reference.convolve(calls[0].problem, calls[0].operands)
    bounds = [prepared.bind(call.operands["x"], call.operands["y"]) for call in calls]
    for bound in bounds:
        bound()
    wrong = []

    def work(call, bound):
        for _ in range(50):
            call.result[...] = np.nan
            bound()
            if not np.array_equal(call.operands["y"], truth):
                wrong.append(call)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, bounds, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("k", [1, 3])
def test_one_prepared_serves_many_threads(last, groups, k):
    rng = np.random.default_rng(1)
    shape = (2, 20, 20, 8) if last else (2, 8, 20, 20)
    x = [rng.integers(-3, 4, shape).astype(np.float32) for _ in range(4)]
    w = rng.integers(-3, 4, (8, 8 // groups, k, k)).astype(np.float32)
    layout = "nhwc" if last else "nchw"
    calls = [arguments.prepare(a, w, padding=k // 2, groups=groups, input_layout=layout) for a in x]
    prepared = cpu.prepare(calls[0].problem, calls[0].operands["w"])
    wanted = [reference.convolve(call.problem, call.operands) for call in calls]
    wrong = []

    def work(call, truth):
        for _ in range(30):
            call.result[...] = np.nan
            run(prepared, call)
            if not np.array_equal(call.operands["y"], truth):
                wrong.append(call)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_residual_may_be_the_output():
    rng = np.random.default_rng(2)
    for groups, k in product((1, 6), (1, 3)):
        x = rng.integers(-3, 4, (2, 7, 7, 6)).astype(np.float32)
        w = rng.integers(-3, 4, (6, 6 // groups, k, k)).astype(np.float32)
        out = rng.integers(-3, 4, (2, 7, 7, 6)).astype(np.float32)
        options = {"padding": k // 2, "groups": groups, "input_layout": "nhwc"}
        call = arguments.prepare(x, w, residual=out.copy(), **options)
        wanted = reference.convolve(call.problem, call.operands)
        call = arguments.prepare(x, w, residual=out, out=out, **options)
        run(cpu.prepare(call.problem, call.operands["w"]), call)
        np.testing.assert_array_equal(call.operands["y"], wanted)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_special_value_reaches_its_receptive_field_only(layout, groups, value):
    x = np.ones((1, 6, 9, 9) if layout == "nchw" else (1, 9, 9, 6), np.float32)
    w = np.zeros((6, 6 // groups, 3, 3), np.float32)
    view = x if layout == "nchw" else x.transpose(0, 3, 1, 2)
    view[0, 2, 4, 8] = value
    call = arguments.prepare(x, w, padding=1, groups=groups, input_layout=layout)
    for prepared in strategies(call):
        call.result[...] = 5
        run(prepared, call)
        y = call.operands["y"].reshape(6, 9, 9)
        reached = np.zeros((6, 9, 9), bool)
        reached[slice(2, 3) if groups == 6 else slice(None), 3:6, 7:] = True
        np.testing.assert_array_equal(np.isnan(y), reached)
        assert not y[~reached].any()


def test_padding_does_not_meet_an_infinite_weight():
    w = np.ones((1, 1, 3), np.float32)
    w[..., 0] = np.inf
    call = arguments.prepare(np.ones((1, 1, 3), np.float32), w, padding=1)
    run(cpu.prepare(call.problem, call.operands["w"]), call)
    np.testing.assert_array_equal(call.result[0, 0], [2, np.inf, np.inf])


def test_quantised_sums_beyond_float32_stay_exact():
    rng = np.random.default_rng(3)
    x = rng.integers(250, 256, (1, 700, 4, 4)).astype(np.uint8)
    w = rng.integers(120, 128, (3, 700, 3, 3)).astype(np.int8)
    call = arguments.prepare(x, w)
    assert carried(call.problem, call.operands["w"], None)[1] == np.float64
    run(cpu.prepare(call.problem, call.operands["w"]), call)
    assert_close(call.operands["y"], call.problem, call.operands)


def test_float16_overflows_to_infinity_without_a_warning():
    call = arguments.prepare(np.full((1, 1, 1, 1), 300, np.float16), np.full((1, 1, 1, 1), 300, np.float16))
    run(cpu.prepare(call.problem, call.operands["w"]), call)
    assert np.isposinf(call.result).all()


def test_working_memory_is_bounded():
    """A dense 3x3 over 64 channels at 224 x 224: full im2col would take 115 MB."""
    x, w = np.empty((1, 224, 224, 64), np.float32), np.ones((64, 64, 3, 3), np.float32)
    call = arguments.prepare(x, w, padding=1, input_layout="nhwc")
    padded = 226 * 226 * 64 * 4
    assert cpu.prepare(call.problem, call.operands["w"]).workspace_bytes < padded + (2 << 20)
    # A decoder whose result of 32 MB lies channels first, while sums lie channels last; all products would take 128 MB.
    up = transposed(np.empty((1, 64, 256, 256), np.float32), np.ones((64, 32, 4, 4), np.float32), strides=2, padding=1)
    assert cpu.prepare(up.problem, up.operands["w"]).workspace_bytes < 2 << 20
    blurred = np.empty((1, 512, 512, 96), np.float32), np.ones((96, 1, 3, 3), np.float32)
    call = arguments.prepare(*blurred, padding=1, input_layout="nhwc", groups=96)
    assert cpu.prepare(call.problem, call.operands["w"]).workspace_bytes < 3 << 20


def test_explain_names_one_reason_per_strategy():
    call = arguments.prepare(np.ones((1, 4, 5, 5), np.float32), np.ones((4, 4, 3, 3), np.float32))
    rows = dict(cpu.explain(call.problem))
    assert rows["im2col_matmul"] is None
    assert "1x1" in rows["pointwise_matmul"]
    assert list(rows) == [choice.strategy.name for choice in cpu.STRATEGIES]


def test_a_bound_layer_returns_its_array_filled_anew():
    x, w = np.ones((1, 5, 5, 4), np.float32), np.ones((4, 1, 3, 3), np.float32)
    layer = Conv(w, groups=4, padding=1, input_layout="nhwc")
    out = np.full_like(x, np.nan)
    bound = layer.bind(x, out=out)
    for factor in (1, 2):
        x[...] = factor
        assert bound() is out
        np.testing.assert_array_equal(out, layer(x))
    with pytest.raises(ValueError, match="share memory"):
        layer.bind(x, out=x)
