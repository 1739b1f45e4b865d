"""wgmma: every type, layout, swizzle and shape against NumPy, with layouts built from the documented formulas."""

import ml_dtypes
import numpy as np
import pytest

from gpu_conv.emulator import UnsupportedPtx

from .ptx import run

TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}
DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32, "u8": 32}
MODES = {0: 0, 128: 1, 64: 2, 32: 3}  # swizzle bytes -> field of the descriptor


def values(kind, rng, *shape):
    dtype = TYPES[kind]
    if kind in ("s8", "u8"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, np.int64, endpoint=True).astype(dtype)
    return rng.integers(-8, 9, shape).astype(dtype)


def place(matrix, swizzle, across, start):
    """Bytes of shared memory from address 1024 on that hold a matrix (rows, k) at ``start``, and its descriptor.

    Element by element, after the canonical layouts of the PTX manual; leading and stride offsets are this test's.
    """
    rows, depth = matrix.shape
    size = matrix.itemsize
    per_piece, width = 16 // size, max(1, swizzle // 16)
    memory = np.zeros(64 * 1024, np.uint8)
    if not across:
        stride = 8 * width * 16 if swizzle else 128 + 16
        leading = 16 if swizzle else -(-rows // 8) * stride + 32
        bytes_used = rows // 8 * stride + leading * (not swizzle) * 2 + 1024
    else:
        groups = -(-rows // (8 * width))
        leading = depth * width * 16 if swizzle else -(-rows // 8) * 128
        stride = 8 * width * 16 if swizzle else 128
        bytes_used = groups * leading + 4096
    for row in range(rows):
        for k in range(depth):
            if not across:
                piece, inside = divmod(k, per_piece)
                offset = row % 8 * width * 16 + row // 8 * stride + piece * (16 if swizzle else leading)
            else:
                piece, inside = divmod(row, per_piece)
                if swizzle:
                    offset = piece % width * 16 + piece // width * leading + k % 8 * width * 16 + k // 8 * stride
                else:
                    offset = piece * stride + k % 8 * 16 + k // 8 * leading
            address = start + offset
            address ^= (address >> 7 & (width - 1)) << 4
            at = address - 1024 + inside * size
            memory[at : at + size] = np.frombuffer(matrix[row, k].tobytes(), np.uint8)
    bits = start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | MODES[swizzle] << 62
    return memory, bits, bytes_used


BODY = """.shared .align 1024 .b8 tile[{size}]; .reg .b32 %d<{registers}>, %i, %s, %a<4>; .reg .pred %q, %keep;
    .reg .b64 %w, %x, %da, %db; .reg .b32 %v<4>;
    shl.b32 %i, %tid, 4;
    FILL: cvt.u64.u32 %w, %i; add.s64 %x, %p0, %w; ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%x]; mov.u32 %s, tile;
    add.u32 %s, %s, %i; st.shared.v4.b32 [%s], {{%v0, %v1, %v2, %v3}}; add.u32 %i, %i, {step};
    setp.lt.u32 %q, %i, {size}; @%q bra FILL;
    fence.proxy.async; bar.sync 0;
    mul.wide.u32 %w, %tid, {result}; add.s64 %x, %p1, %w; {initial}
    mul.wide.u32 %w, %tid, 16; add.s64 %w, %p2, %w; ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%w];
    ld.global.b64 %da, [%p3]; ld.global.b64 %db, [%p3+8]; setp.ne.u32 %keep, {keep}, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.{name} {{{names}}}, {left}, %db, %keep{constants};
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
    {stores}"""


def multiply(kind, columns, *, second=None, swizzles=(128, 128), across=(0, 0), signs=(1, 1), keep=1, registers=False,
             threads=128, seed=0, **options):  # fmt: skip
    """Run one product; returns (result, expected, report)."""
    rng = np.random.default_rng(seed + columns)
    second = second or kind
    depth, integers = DEPTH[kind], kind in ("s8", "u8")
    a, b = values(kind, rng, 64, depth), values(second, rng, columns, depth)
    total = np.int32 if integers else np.float32
    c = rng.integers(-(2**31) if integers else -99, 2**31 if integers else 99, (64, columns)).astype(total)
    first, a_bits, used = place(a, swizzles[0], across[0], 1024)
    used = -(-used // 1024) * 1024
    other, b_bits, more = place(b, swizzles[1], across[1], 1024 + used)
    size = -(-(used + more) // 2048) * 2048
    memory = first[:size] | other[:size]
    lane = np.arange(128)
    row, column = lane // 32 * 16 + lane % 32 // 4, lane % 4 * 2
    order = [(i, h, e) for i in range(columns // 8) for h in (0, 1) for e in (0, 1)]
    fragments = np.stack([c[row + 8 * h, column + 8 * i + e] for i, h, e in order], axis=1)
    fragments = np.ascontiguousarray(np.tile(fragments, (threads // 128, 1)))
    elements = 4 // a.itemsize
    k = (lane % 4 * elements)[:, None] + np.arange(elements)
    parts = [a[(row + 8 * (j % 2))[:, None], k + 4 * elements * (j // 2)] for j in range(4)]
    of_a = np.ascontiguousarray(np.tile(np.stack(parts, 1).reshape(128, -1), (threads // 128, 1)))
    constants = "" if integers else f", {signs[0]}, {signs[1]}"
    if kind in ("f16", "bf16"):
        constants += f", {across[1]}" if registers else f", {across[0]}, {across[1]}"
    count = columns // 2
    shown = {"f16": "f32.f16.f16", "bf16": "f32.bf16.bf16", "tf32": "f32.tf32.tf32"}.get(kind, f"s32.{kind}.{second}")
    text = BODY.format(
        size=size, registers=count, step=16 * threads, result=4 * count, keep=keep, constants=constants,
        initial="".join(f"ld.global.b32 %d{j}, [%x+{4 * j}];" for j in range(count)),
        name=f"m64n{columns}k{depth}.{shown}", names=", ".join(f"%d{j}" for j in range(count)),
        left="{%a0, %a1, %a2, %a3}" if registers else "%da",
        stores="".join(f"st.global.b32 [%x+{4 * j}], %d{j};" for j in range(count)),
    )  # fmt: skip
    report = run(text, [memory, fragments, of_a, np.array([a_bits, b_bits], np.uint64)], threads=threads, **options)
    wide = np.int64 if integers else np.float64
    expected = signs[0] * signs[1] * (a.astype(wide) @ b.astype(wide).T) + keep * c.astype(wide)
    expected = expected.astype(np.int64).astype(np.int32) if integers else expected
    expected = np.stack([expected[row + 8 * h, column + 8 * i + e] for i, h, e in order], axis=1)
    return fragments, np.tile(expected, (threads // 128, 1)), report


@pytest.mark.parametrize("columns", [8, 24, 64, 256])
@pytest.mark.parametrize("kind", TYPES)
def test_types_and_sizes(kind, columns):
    result, expected, report = multiply(kind, columns)
    assert report.ok, report
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("swizzle", MODES)
@pytest.mark.parametrize("kind", TYPES)
def test_k_major_swizzles(kind, swizzle):
    result, expected, report = multiply(kind, 32, swizzles=(swizzle, {0: 128, 128: 64, 64: 32, 32: 0}[swizzle]))
    assert report.ok, report
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("across", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("swizzle", MODES)
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mn_major_layouts(kind, swizzle, across):
    result, expected, report = multiply(kind, 96 if across[1] else 40, swizzles=(swizzle, swizzle), across=across)
    assert report.ok, report
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("kind", TYPES)
def test_a_from_registers(kind, keep):
    across = (0, 1) if kind in ("f16", "bf16") and keep else (0, 0)
    result, expected, report = multiply(kind, 16, registers=True, keep=keep, across=across)
    assert report.ok, report
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("kind", ["f16", "tf32"])
def test_signs(kind, signs):
    result, expected, _ = multiply(kind, 8, signs=signs)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("kind", "second"), [("s8", "u8"), ("u8", "s8")])
def test_mixed_signedness(kind, second):
    result, expected, _ = multiply(kind, 48, second=second)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_two_warpgroups_of_two_blocks(seed):
    result, expected, report = multiply("f16", 8, threads=256, grid=1)
    assert report.ok
    np.testing.assert_array_equal(result, expected)
    assert report.counters.wgmma == {"m64n8k16.f16.f16": 2}
    assert report.counters.wgmma_flops == {"m64n8k16.f16.f16": 2 * 2 * 64 * 8 * 16}
    assert report.counters.macs == 2 * 64 * 8 * 16
    assert report.counters.classes["wgmma"] == 256


# ---- what may go wrong: a 64 x 8 x 16 product of ones, with lines to put in between

STEPS = """.shared .align 1024 .b8 tile[4096]; .reg .b32 %d<8>, %i, %s, %a<4>, %v;
    .reg .pred %q, %one; .reg .b64 %w, %x, %da, %db;
    shl.b32 %i, %tid, 2; mov.u32 %s, tile; add.u32 %s, %s, %i; mov.b32 %v, 0x3C003C00; setp.eq.u32 %q, %tid, %tid;
    setp.eq.u32 %one, %tid, 0; mov.b32 %a0, %v; mov.b32 %a1, %v; mov.b32 %a2, %v; mov.b32 %a3, %v;
    FILL: st.shared.b32 [%s], %v; add.u32 %s, %s, {step}; add.u32 %i, %i, {step}; setp.lt.u32 %q, %i, 4096;
    @%q bra FILL;
    mov.u32 %s, tile; mov.u64 %da, tile; shr.u64 %da, %da, 4; add.s64 %da, %da, {layout}; add.s64 %db, %da, 128;
    setp.eq.u32 %q, %tid, %tid; {zero} mul.wide.u32 %w, %tid, 16; add.s64 %x, %p0, %w;
    {ready}
    {fence}
    {product}
    {then}
    {commit}
    {wait}
    st.global.v4.b32 [%x], {{%d0, %d1, %d2, %d3}};"""
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%d0, %d1, %d2, %d3}, %da, %db, %q, 1, 1, 0, 0;"
FROM_A = PRODUCT.replace("%da", "{%a0, %a1, %a2, %a3}").replace("1, 1, 0, 0", "1, 1, 0")
PARTS = {
    "layout": 8 << 32 | 1024 >> 4 << 16,  # no swizzle: 8 rows every 128 bytes, the second half of k 1024 bytes on
    "zero": "mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;",
    "ready": "fence.proxy.async.shared::cta; bar.sync 0;",
    "fence": "wgmma.fence.sync.aligned;",
    "product": PRODUCT,
    "then": "",
    "commit": "wgmma.commit_group.sync.aligned;",
    "wait": "wgmma.wait_group.sync.aligned 0;",
}


def kinds(threads=128, expected=None, **parts):
    out = np.zeros((threads, 4), np.float32)
    report = run(STEPS.format(**{**PARTS, **parts}, step=4 * threads), [out], threads=threads)
    if expected is not None:
        assert (out == expected).all()
    return [f.kind for f in report.findings]


def test_the_steps_are_right():
    assert kinds(expected=16) == kinds(threads=256, expected=16) == []
    assert kinds(product=FROM_A, expected=16) == []
    again = "wgmma.commit_group.sync.aligned;" + PRODUCT
    assert kinds(then=again, expected=32) == []  # products of one shape need nothing between them
    assert kinds(product=FROM_A + FROM_A, expected=32) == []


REGISTERS_IN_FLIGHT = {
    "no wait": {"wait": ""},
    "no group": {"commit": ""},
    "too weak a wait": {"wait": "wgmma.wait_group.sync.aligned 1;"},
    "read": {"then": "add.f32 %d7, %d0, %d1;"},
    "written": {"then": "mov.b32 %d3, 0;"},
    "read through a copy": {"then": "mov.b32 %d5, %d1; mov.b32 %d6, %d5; add.u32 %d7, %d6, 1;"},
    "A written": {"product": FROM_A, "then": "mov.b32 %a2, 0;"},
    "A read": {"product": FROM_A, "then": "add.u32 %d7, %a2, 1;"},
    "result used as A": {
        "then": FROM_A.replace("%a0", "%d0").replace("{%d0, %d1, %d2, %d3}", "{%d4, %d5, %d6, %d7}", 1)
    },
    "in a branch": {"then": "@%one bra SKIP; bra DONE; SKIP: add.f32 %d7, %d0, %d1; DONE:"},
}


@pytest.mark.parametrize("case", REGISTERS_IN_FLIGHT)
def test_registers_in_flight(case):
    assert "wgmma not waited for" in kinds(**REGISTERS_IN_FLIGHT[case])


def test_registers_that_are_not_in_flight():
    assert kinds(then="add.f32 %d7, %d4, 0f00000000; mov.b32 %d5, %d1;", zero=PARTS["zero"] + "mov.b32 %d4, 0;") == []
    other = PRODUCT.replace("{%d0, %d1, %d2, %d3}", "{%d4, %d5, %d6, %d7}")
    second = "wgmma.commit_group.sync.aligned;" + other
    more = PARTS["zero"] + "mov.b32 %d4, 0; mov.b32 %d5, 0; mov.b32 %d6, 0; mov.b32 %d7, 0;"
    assert kinds(then=second, wait="wgmma.wait_group.sync.aligned 1;", zero=more, expected=16) == []  # the first group
    both = "wgmma.wait_group.sync.aligned 1; add.f32 %d4, %d4, %d4;"
    assert kinds(then=second, wait=both, zero=more) == ["wgmma not waited for"]
    never = "setp.ne.u32 %one, %tid, %tid; @%one bra SKIP; bra DONE; SKIP: add.f32 %d7, %d0, %d1; DONE:"
    assert kinds(then=never) == []  # only what is executed counts


def test_fences_of_registers():
    assert kinds(fence="") == ["missing wgmma fence"]
    assert kinds(fence=PARTS["fence"] + PARTS["zero"]) == ["missing wgmma fence"]
    assert kinds(product=FROM_A, fence=PARTS["fence"] + "mov.b32 %a1, 0;") == ["missing wgmma fence"]
    again = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; add.f32 %d0, %d0, %d0;"
    assert kinds(then=again + PRODUCT) == ["missing wgmma fence"]
    assert kinds(then=again + PARTS["fence"] + PRODUCT) == []
    renamed = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;" + "".join(
        f"mov.b32 %d{j + 4}, %d{j};" for j in range(4)
    )
    more = PRODUCT.replace("{%d0, %d1, %d2, %d3}", "{%d4, %d5, %d6, %d7}")
    assert kinds(then=renamed + more) == []  # a copy of a result is the result


def test_shared_memory_in_use():
    write = "@%one st.shared.b32 [%s], %v;"
    assert kinds(then=write) == ["shared race"]
    waited = PARTS["wait"] + write
    assert kinds(wait=waited) == []
    other = PARTS["wait"] + "{} setp.eq.u32 %one, %tid, {}; @%one st.shared.b32 [%s], %v;"
    assert kinds(wait=other.format("", 100)) == []  # a thread of the warpgroup, which has waited
    assert kinds(wait=other.format("", 200), threads=256) == ["shared race"]  # the other one reads it too
    assert kinds(wait=other.format("bar.sync 0;", 200), threads=256) == []


def test_what_products_read_must_be_there():
    assert kinds(ready="fence.proxy.async.shared::cta;") == ["shared race"]
    assert kinds(ready="bar.sync 0;") == ["missing proxy fence"]
    assert kinds(ready="bar.sync 0; fence.proxy.async;") == []
    assert kinds(layout=PARTS["layout"] + (2048 >> 4)) == ["out of bounds"]
    swizzled = 8 << 32 | 3 << 62  # 8 rows of 32 bytes, but the next 8 only 128 bytes on: all inside the tile
    assert kinds(layout=(swizzled - (1 << 64)) if swizzled >> 63 else swizzled) == []


def test_memory_that_nobody_has_written():
    body = STEPS.format(**PARTS, step=512).replace("setp.lt.u32 %q, %i, 4096", "setp.lt.u32 %q, %i, 2048")
    assert [f.kind for f in run(body, [np.zeros((128, 4), np.float32)], threads=128).findings] == ["uninitialised read"]


def test_descriptors_that_the_emulator_does_not_know():
    for bits in (1 << 49, 1 << 14, 1 << 46, 1 << 52):
        with pytest.raises(UnsupportedPtx, match="matrix descriptor"):
            kinds(layout=PARTS["layout"] + bits)
    differ = "cvt.u64.u32 %w, %tid; add.s64 %db, %db, %w;"
    assert "undefined operand" in kinds(fence=PARTS["fence"] + differ)
    assert "undefined operand" in kinds(fence=PARTS["fence"] + "setp.lt.u32 %q, %tid, 64;")


def test_warpgroups_must_be_complete():
    assert kinds(threads=96) == ["incomplete warpgroup"]
    assert kinds(fence="setp.ge.u32 %one, %tid, 100; @%one ret; setp.eq.u32 %one, %tid, 0;" + PARTS["fence"]) == [
        "incomplete warpgroup"
    ]
    assert kinds(threads=160, product="setp.ge.u32 %one, %tid, 128; @%one bra END;" + PRODUCT,
                 wait=PARTS["wait"] + "END:", fence="")[0] == "missing wgmma fence"  # fmt: skip
    alone = "setp.lt.u32 %one, %tid, 64; @%one bra LOW;" + PRODUCT + "bra END; LOW: bar.sync 0; END:"
    assert set(kinds(product=alone)) == {"incomplete warp", "barrier deadlock"}
