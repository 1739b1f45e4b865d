"""mma and ldmatrix against the fragment tables of the PTX manual, spelled out lane by lane."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from .ptx import run

SHAPES = [
    ("m16n8k16", "f16"),
    ("m16n8k8", "f16"),
    ("m16n8k16", "bf16"),
    ("m16n8k8", "bf16"),
    ("m16n8k8", "tf32"),
    ("m16n8k4", "tf32"),
]
SHAPES += [(s, a, b) for s in ("m16n8k16", "m16n8k32") for a, b in itertools.product(("s8", "u8"), repeat=2)]
ELEMENTS = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}


def fragment(matrix, rows_are_groups, count, per_register):
    """Registers (lane, register, element) of an operand; ``matrix`` has the 8 or 16 group rows first."""
    lanes = np.zeros((32, count, per_register), matrix.dtype)
    for lane in range(32):
        group, member = divmod(lane, 4)
        for register in range(count):
            row = group + 8 * (register % 2) if rows_are_groups else group
            block = register // 2 if rows_are_groups else register
            for e in range(per_register):
                lanes[lane, register, e] = matrix[row, block * 4 * per_register + member * per_register + e]
    return np.ascontiguousarray(lanes).view(np.uint32).reshape(32, count)


@pytest.mark.parametrize("warps", [1, 3])
@pytest.mark.parametrize("case", SHAPES, ids=[".".join(c) for c in SHAPES])
def test_mma(case, warps):
    shape, kind, *other = case
    second = other[0] if other else kind
    depth = int(shape.rsplit("k", 1)[1])
    integers = kind in ("s8", "u8")
    rng = np.random.default_rng(depth)

    def values(dtype, *size):
        info = np.iinfo(dtype) if integers else None
        numbers = rng.integers(info.min, info.max, size, dtype, True) if info else rng.integers(-16, 16, size)
        return numbers.astype(dtype)

    a, b = values(ELEMENTS[kind], warps, 16, depth), values(ELEMENTS[second], warps, depth, 8)
    accumulator = np.int32 if integers else np.float32
    c = (
        rng.integers(-(2**31), 2**31 - 1, (warps, 16, 8)).astype(np.int32)
        if integers
        else values(np.float32, warps, 16, 8)
    )
    per_register = 4 // a.itemsize
    count = depth // (4 * per_register)
    fragments_a = np.concatenate([fragment(m, True, 2 * count, per_register) for m in a])
    fragments_b = np.concatenate([fragment(m.T, False, count, per_register) for m in b])
    fragments_c = np.zeros((32 * warps, 4), accumulator)
    for lane in range(32 * warps):
        group, member = divmod(lane % 32, 4)
        for j in range(4):
            fragments_c[lane, j] = c[lane // 32, group + 8 * (j // 2), 2 * member + j % 2]
    out = np.zeros((32 * warps, 4), accumulator)
    types = ("s32", "s32") if integers else ("f32", "f32")
    names = [
        "{" + ", ".join(f"%{x}{i}" for i in range(n)) + "}"
        for x, n in (("a", 2 * count), ("b", count), ("c", 4), ("d", 4))
    ]
    loads = ""
    for letter, pointer, n in (("a", 0, 2 * count), ("b", 1, count), ("c", 2, 4)):
        loads += f"mul.wide.u32 %w, %tid, {4 * n}; add.s64 %x, %p{pointer}, %w;"
        loads += "".join(f"ld.global.b32 %{letter}{i}, [%x+{4 * i}];" for i in range(n))
    body = f""".reg .b32 %a<4>, %b<2>, %c<4>, %d<4>; .reg .b64 %w, %x; {loads}
        mma.sync.aligned.{shape}.row.col.{types[0]}.{kind}.{second}.{types[1]}
            {names[3]}, {names[0]}, {names[1]}, {names[2]};
        mul.wide.u32 %w, %tid, 16; add.s64 %x, %p3, %w; st.global.v4.b32 [%x], {names[3]};"""
    report = run(body, [fragments_a, fragments_b, fragments_c, out], threads=32 * warps, strict=True)
    assert report.counters.mma == warps
    assert report.counters.macs == warps * 16 * 8 * depth
    wide = np.int64 if integers else np.float64
    expected = a.astype(wide) @ b.astype(wide) + c.astype(wide)
    expected = expected.astype(np.int64).astype(np.int32) if integers else expected
    for lane in range(32 * warps):
        group, member = divmod(lane % 32, 4)
        for j in range(4):
            assert out[lane, j] == expected[lane // 32, group + 8 * (j // 2), 2 * member + j % 2]


def test_tf32_ignores_the_low_bits():
    a = np.full((32, 4), 1 + 2.0**-12, np.float32)
    out = np.zeros((32, 4), np.float32)
    body = """.reg .b32 %a<4>, %d<4>; .reg .b64 %w, %x; mul.wide.u32 %w, %tid, 16; add.s64 %x, %p0, %w;
        ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%x]; mov.b32 %d0, 0f00000000;
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
            {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a0, %a1}, {%d0, %d0, %d0, %d0};
        add.s64 %x, %p1, %w; st.global.v4.b32 [%x], {%d0, %d1, %d2, %d3};"""
    run(body, [a, out], strict=True)
    assert (out == 8).all()


def test_non_finite_operands_reach_only_their_row():
    a = np.zeros((32, 4), np.uint32)
    a[4, 0] = np.array([np.inf, 0], np.float16).view(np.uint32)[0]  # row 1, column 0
    out = np.zeros((32, 4), np.float32)
    body = """.reg .b32 %a<4>, %d<4>, %b; .reg .b64 %w, %x; mul.wide.u32 %w, %tid, 16; add.s64 %x, %p0, %w;
        ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%x]; mov.b32 %b, 0x3C003C00; mov.b32 %d0, 0;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
            {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b, %b}, {%d0, %d0, %d0, %d0};
        add.s64 %x, %p1, %w; st.global.v4.b32 [%x], {%d0, %d1, %d2, %d3};"""
    run(body, [a, out], strict=True)
    assert np.isinf(out[4:8, :2]).all()
    assert (np.delete(out, np.s_[4:8], axis=0) == 0).all()
    assert (out[4:8, 2:] == 0).all()


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans):
    """64 lanes; row r of matrix j of warp w starts at a place of its own."""
    data = np.arange(2 * 8 * count * 8, dtype=np.uint16).reshape(2, count, 8, 8)
    places = np.random.default_rng(count).permutation(2 * 8 * count).reshape(2, count, 8)
    memory = np.zeros((2 * 8 * count, 8), np.uint16)
    address = np.zeros(64, np.uint32)
    for warp, j, row in np.ndindex(2, count, 8):
        memory[places[warp, j, row]] = data[warp, j, row]
        address[32 * warp + 8 * j + row] = 16 * places[warp, j, row]
    names = ", ".join(f"%v{i}" for i in range(count))
    bytes_per_thread = memory.nbytes // 64
    fill = "".join(f"ld.global.u8 %b, [%a+{i}]; st.shared.u8 [%s+{i}], %b;" for i in range(bytes_per_thread))
    stores = "".join(f"st.global.u32 [%o+{4 * i}], %v{i};" for i in range(count))
    body = f""".shared .align 16 .b8 tile[1024]; .reg .b32 %v<4>, %s, %i; .reg .b64 %a, %o, %w; .reg .b16 %b;
        mul.lo.u32 %i, %tid, {bytes_per_thread}; mov.u32 %s, tile; add.u32 %s, %s, %i;
        cvt.u64.u32 %w, %i; add.s64 %a, %p0, %w; {fill}
        bar.sync 0; mul.wide.u32 %w, %tid, 4; add.s64 %a, %p1, %w; ld.global.u32 %i, [%a];
        mov.u32 %s, tile; add.u32 %s, %s, %i;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if trans else ""}.shared.b16 {{{names}}}, [%s];
        mul.wide.u32 %w, %tid, {4 * count}; add.s64 %o, %p2, %w; {stores}"""
    out = np.zeros((64, count, 2), np.uint16)
    run(body, [memory, address, out], threads=64, strict=True)
    for lane, j, half in np.ndindex(64, count, 2):
        group, member = divmod(lane % 32, 4)
        row, column = (2 * member + half, group) if trans else (group, 2 * member + half)
        assert out[lane, j, half] == data[lane // 32, j, row, column]


def test_ldmatrix_bounds_and_alignment():
    body = """.shared .align 16 .b8 tile[128]; .reg .b32 %v, %s; mul.lo.u32 %s, %tid, 16; mov.u32 %v, tile;
        add.u32 %s, %s, %v; add.u32 %s, %s, {}; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%v}}, [%s];"""
    assert {f.kind for f in run(body.format(0), []).findings} == {"uninitialised read"}
    finding = run(body.format(16), []).findings[0]
    assert (finding.kind, finding.thread) == ("out of bounds", (7, 0, 0))
    assert "misaligned" in {f.kind for f in run(body.format(8), []).findings}
