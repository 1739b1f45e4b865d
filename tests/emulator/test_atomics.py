"""Atomics against the same operations in a loop."""

import operator

import ml_dtypes
import numpy as np
import pytest

from .ptx import DTYPES, run

CASES = {
    "add": operator.add,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "exch": lambda old, new: new,
    "inc": lambda old, top: 0 if old >= top else old + 1,
    "dec": lambda old, top: top if old == 0 or old > top else old - 1,
}
ROWS = [(o, k) for o in ("add", "min", "max") for k in ("u32", "s32", "u64", "s64") if (o, k) != ("add", "s64")]
ROWS += [(o, k) for o in ("and", "or", "xor", "exch") for k in ("b32", "b64")] + [("inc", "u32"), ("dec", "u32")]


def body(operation, kind, space, returns, extra=""):
    """Lane t changes word t % 5; stores what it found in p2[t]."""
    size = np.dtype(DTYPES[kind]).itemsize
    where = "%a" if space == "global" else "%s"
    opcode = f"atom.{space}.{operation}.{kind} %r," if returns else f"red.{space}.{operation}.{kind}"
    load = save = ""
    if space == "shared":
        load = f"""mov.u64 %s, tile; add.s64 %s, %s, %w; ld.global.b{8 * size} %v, [%a];
            setp.lt.u32 %q, %tid, 5; @%q st.shared.b{8 * size} [%s], %v; bar.sync 0;"""
        save = f"bar.sync 0; @%q ld.shared.b{8 * size} %v, [%s]; @%q st.global.b{8 * size} [%a], %v;"
    return f""".shared .align 8 .b8 tile[64]; .reg .b{8 * size} %v, %r, %e; .reg .b64 %a, %b, %o, %w, %s; .reg .b32 %j;
        .reg .pred %q; mov.b{8 * size} %r, 0; rem.u32 %j, %tid, 5; mul.wide.u32 %w, %j, {size}; add.s64 %a, %p0, %w;
        {load}
        mul.wide.u32 %w, %tid, {size}; add.s64 %b, %p1, %w; add.s64 %o, %p2, %w; ld.global.b{8 * size} %v, [%b];
        {opcode} [{where}], {extra}%v;
        st.global.b{8 * size} [%o], %r;
        {save}"""


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("operation", "kind"), ROWS, ids=[".".join(r) for r in ROWS])
def test_integers(operation, kind, space):
    dtype = np.dtype(DTYPES[kind])
    info = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    small = operation in ("inc", "dec")
    start = rng.integers(0, 9, 5, dtype) if small else rng.integers(info.min, info.max, 5, dtype)
    values = rng.integers(3, 7, 40, dtype) if small else rng.integers(info.min, info.max, 40, dtype)
    memory, found = start.tolist(), []
    for lane, value in enumerate(values.tolist()):
        found.append(memory[lane % 5])
        new = CASES[operation](memory[lane % 5], value)
        memory[lane % 5] = int(np.array(new % (1 << info.bits), f"u{dtype.itemsize}").view(dtype))
    for returns in (True, False):
        data, out = start.copy(), np.zeros(40, dtype)
        run(body(operation, kind, space, returns), [data, values, out], threads=40, strict=True)
        assert data.tolist() == memory
        assert not returns or out.tolist() == found


@pytest.mark.parametrize("kind", ["b32", "b64"])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_compare_and_swap(kind, space):
    """Lanes 0, 5, 10, ... of a word swap only the value that the lane before them left there."""
    dtype = np.dtype(DTYPES[kind])
    width = 8 * dtype.itemsize
    text = body("cas", kind, space, True, extra="%e, ")
    text = text.replace(f"mov.b{width} %r, 0;", f"cvt.u{width}.u32 %e, %tid;")
    data, values, out = np.arange(5, dtype=dtype), np.arange(5, 45, dtype=dtype), np.zeros(40, dtype)
    run(text, [data, values, out], threads=40, strict=True)
    assert data.tolist() == list(range(40, 45))
    assert out.tolist() == list(range(40))


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
def test_float_add(kind, space):
    base = {"f16x2": np.float16, "bf16x2": ml_dtypes.bfloat16}.get(kind, DTYPES[kind])
    per_lane = 2 if kind.endswith("x2") else 1
    rng = np.random.default_rng(4)
    start = rng.integers(-8, 8, 5 * per_lane).astype(base)  # sums of small integers are exact in every format
    values = rng.integers(-8, 8, 40 * per_lane).astype(base)
    expected = start.astype(np.float64)
    np.add.at(expected.reshape(5, -1), np.arange(40) % 5, values.astype(np.float64).reshape(40, -1))
    operation = "add.noftz" if "16" in kind else "add"
    text = body(operation, kind, space, True)
    data, out = start.copy(), np.zeros(40 * per_lane, base)
    run(text, [data, values, out], threads=40, strict=True)
    np.testing.assert_array_equal(data.astype(np.float64), expected)


def test_random_order_changes_what_lanes_find_but_not_the_sum():
    data, values = np.zeros(5, np.uint32), np.ones(40, np.uint32)
    seen = set()
    for seed in range(6):
        data[:], out = 0, np.zeros(40, np.uint32)
        run(body("add", "u32", "global", True), [data, values, out], threads=40, strict=True, seed=seed)
        assert data.tolist() == [8] * 5
        seen.add(tuple(out.tolist()))
    assert len(seen) > 1


def test_guarded_atomics():
    data = np.zeros(1, np.uint32)
    text = (
        ".reg .pred %q; setp.lt.u32 %q, %tid, 7; @%q red.global.add.u32 [%p0], 1; @!%q red.global.add.u32 [%p0], 100;"
    )
    run(text, [data], strict=True)
    assert data[0] == 7 + 25 * 100


def test_generic_address():
    data = np.zeros(1, np.uint32)
    text = """.shared .align 4 .b8 t[4]; .reg .b64 %s; .reg .pred %q; .reg .b32 %v; setp.eq.u32 %q, %tid, 0;
        @%q st.shared.u32 [t], 5; bar.sync 0;
        mov.u64 %s, t; cvta.shared.u64 %s, %s; selp.b64 %s, %s, %p0, %q; red.add.u32 [%s], 2;
        bar.sync 0; ld.shared.u32 %v, [t]; @%q red.global.add.u32 [%p0], %v;"""
    run(text, [data], strict=True)
    assert data[0] == 31 * 2 + 7


def test_bounds_and_protection():
    data = np.zeros(1, np.uint32)
    assert run("red.global.add.u32 [%p0+4], 1;", [data]).findings[0].kind == "out of bounds"
    data.flags.writeable = False
    assert run("red.global.add.u32 [%p0], 1;", [data]).findings[0].kind == "write to read-only memory"
