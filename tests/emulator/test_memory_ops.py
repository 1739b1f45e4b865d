"""Loads and stores of every width and space, and the bounds of the caller's arrays."""

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError, Emulator

from .ptx import apply, module, run


@pytest.mark.parametrize(("kind", "register", "expected"), [
    ("u8", "b16", [200, 5]), ("s8", "b16", [0x10000 - 56, 5]), ("b8", "b32", [200, 5]), ("s8", "b32", [2**32 - 56, 5]),
    ("u16", "b32", [200 + 256 * 5, 7]), ("s16", "b32", [1480, 7]), ("u8", "b64", [200, 5]),
    ("s8", "b64", [2**64 - 56, 5]),
])  # fmt: skip
def test_narrow_loads_extend_into_wide_registers(kind, register, expected):
    data = np.array([200, 5, 7, 0], np.uint8)
    out = np.zeros(2, f"u{int(register[1:]) // 8}")
    size = int(kind[1:]) // 8
    body = f""".reg .{register} %v; .reg .b64 %a; .reg .b64 %o; .reg .b64 %w;
        mul.wide.u32 %w, %tid, {size}; add.s64 %a, %p0, %w; ld.global.{kind} %v, [%a];
        mul.wide.u32 %w, %tid, {out.itemsize}; add.s64 %o, %p1, %w; st.global.{register} [%o], %v;"""
    run(body, [data, out], threads=2, strict=True)
    assert out.tolist() == expected


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic global", "generic shared", "generic local"])
@pytest.mark.parametrize(
    "vector", ["b8", "b16", "b32", "b64", "v2.b8", "v4.b8", "v2.b16", "v4.b16", "v2.b32", "v4.b32", "v2.b64"]
)
def test_round_trip(space, vector):
    """Global -> space -> global, with all lanes, a part of them, and a uniform address."""
    count = int(vector[1]) if vector[0] == "v" else 1
    width = int(vector.rsplit("b", 1)[1])
    size = count * width // 8
    data = np.random.default_rng(size).integers(0, 256, 64 * size).astype(np.uint8)
    register = f".b{max(16, width)}"
    names = [f"%v{i}" for i in range(count)]
    values = names[0] if count == 1 else "{" + ", ".join(names) + "}"
    where, generic = space.split()[-1], space.startswith("generic")
    place = {
        "global": "mov.b64 %s, %p2; add.s64 %s, %s, %w;",
        "shared": ".shared .align 16 .b8 tile[4096]; mov.u64 %s, tile; add.s64 %s, %s, %w;",
        "local": ".local .align 16 .b8 mine[32]; mov.u64 %s, mine;",
    }[where]
    if generic:
        place += f"cvta.{where}.u64 %s, %s;"
        where = ""
    dot = f".{where}" if where else ""
    body = f""".reg {register} %v<{count}>; .reg .b64 %a; .reg .b64 %o; .reg .b64 %w; .reg .b64 %s; .reg .pred %q;
        mul.wide.u32 %w, %tid, {size}; add.s64 %a, %p0, %w; add.s64 %o, %p1, %w; {place}
        ld.global.{vector} {values}, [%a];
        st{dot}.{vector} [%s], {values};
        setp.ne.u32 %q, %tid, 5;
        @%q ld{dot}.{vector} {values}, [%s];
        st.global.{vector} [%o], {values};"""
    out, scratch = np.zeros_like(data), np.zeros_like(data)
    run(body, [data, out, scratch], threads=64, strict=True)
    np.testing.assert_array_equal(out, data)


def test_wide_vectors_of_blackwell():
    data = np.arange(32 * 8, dtype=np.float32)
    out = np.zeros_like(data)
    body = """.reg .b32 %v<8>; .reg .b64 %a; .reg .b64 %o; .reg .b64 %w;
        mul.wide.u32 %w, %tid, 32; add.s64 %a, %p0, %w; add.s64 %o, %p1, %w;
        ld.global.nc.v8.b32 {%v0, %v1, %v2, %v3, %v4, %v5, %v6, %v7}, [%a];
        st.global.v8.b32 [%o], {%v0, %v1, %v2, %v3, %v4, %v5, %v6, %v7};"""
    run(body, [data, out], strict=True)
    np.testing.assert_array_equal(out, data)


def test_uniform_addresses_and_offsets():
    x = np.arange(16, dtype=np.uint32)
    assert apply("{{ld.global.b32 {d}, [%rd0+4];}}", [x], ["u32"], "u32", uniform=(0,)).tolist() == [1] * 16
    assert (
        apply("{{add.s64 %rd1, %rd0, 32; ld.global.b32 {d}, [%rd1+-24];}}", [x], ["u32"], "u32", uniform=(0,)).tolist()
        == [2] * 16
    )


def test_generic_loads_with_lanes_in_different_spaces():
    data, out = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    body = """.shared .align 4 .b8 tile[128]; .reg .b32 %v, %j; .reg .b64 %s, %w, %a, %o; .reg .pred %q, %i;
        mul.wide.u32 %w, %tid, 4; mov.u64 %s, tile; add.s64 %s, %s, %w; add.u32 %j, %tid, 100; st.shared.u32 [%s], %j;
        cvta.shared.u64 %s, %s; add.s64 %a, %p0, %w; add.s64 %o, %p1, %w;
        setp.lt.u32 %q, %tid, 9; selp.b64 %s, %s, %a, %q;
        ld.u32 %v, [%s]; isspacep.shared %i, %s; @%i add.u32 %v, %v, 1000; st.global.u32 [%o], %v;"""
    run(body, [data, out], strict=True)
    assert out.tolist() == [1100 + i if i < 9 else i for i in range(32)]


def test_constants_structs_and_parameters_indexed_at_run_time():
    constants = ".const .align 4 .b32 table[4] = {10, 20, 0xFFFFFFFF, -4};\n.global .align 8 .b8 text[8] = {1, 2, 3};"
    body = """.reg .b64 %rd<8>; .reg .b32 %r<8>; .reg .b32 %tid; mov.u32 %tid, %tid.x;
        ld.param.u64 %rd0, [po]; mul.wide.u32 %rd1, %tid, 16; add.s64 %rd0, %rd0, %rd1;
        mul.wide.u32 %rd2, %tid, 4; mov.u64 %rd3, table; add.s64 %rd3, %rd3, %rd2; ld.const.u32 %r0, [%rd3];
        mov.b64 %rd4, ps; add.s64 %rd4, %rd4, %rd2; ld.param.u32 %r1, [%rd4];
        ld.param.u32 %r2, [ps+8]; ld.global.u8 %r3, [text+1];
        st.global.v4.b32 [%rd0], {%r0, %r1, %r2, %r3};"""
    out = np.zeros((4, 4), np.uint32)
    text = module(body, [("u64", "po"), ("align 8 .b8", "ps[16]")], constants)
    Emulator().execute(text, "k", 1, 4, [out, np.arange(5, 9, dtype=np.uint32).tobytes()])
    assert out[:, 0].tolist() == [10, 20, 2**32 - 1, 2**32 - 4]
    assert out[:, 1].tolist() == [5, 6, 7, 8]
    assert out[:, 2].tolist() == [7] * 4
    assert out[:, 3].tolist() == [2] * 4


@pytest.mark.parametrize("align", [4, 8, 16, 32])
def test_variables_and_structs_keep_their_alignment(align):
    loads = {4: "b32 %r", 8: "b64 %d", 16: "v2.b64 {%d, %e}", 32: "v4.b64 {%d, %e, %f, %g}"}
    form, value = loads[align].split(" ", 1)
    body = f""".reg .b64 %a, %b, %d, %e, %f, %g; .reg .b32 %r; mov.u64 %a, table; mov.b64 %b, ps;
        ld.global.{form} {value}, [%a]; ld.param.{form} {value}, [%b];"""
    text = module(body, [(f"align {align} .b8", "ps[32]")], f".global .align {align} .b8 table[32];")
    for _ in range(4):
        assert Emulator().execute(text, "k", 1, 1, [bytes(32)]).counters.traffic == {}


COPY = """.reg .b32 %v; .reg .b64 %a; .reg .b64 %o; .reg .b64 %w;
    mul.wide.{sign}32 %w, %i, 4; add.s64 %a, %p0, %w; ld.global.u32 %v, [%a];
    mul.wide.u32 %w, %tid, 4; add.s64 %o, %p1, %w; st.global.u32 [%o], %v;"""


def copy(x, index, threads=4):
    """out[t] = x[index(t)], where ``index`` is PTX that sets %i from %tid."""
    out = np.zeros(threads, np.uint32)
    report = run(".reg .b32 %i; " + index + COPY.format(sign="s"), [x, out], threads=threads)
    return out, report


def test_arrays_are_used_in_place_with_any_strides():
    base = np.arange(100, dtype=np.uint32)
    out, report = copy(base[10:20], "mov.u32 %i, %tid;")
    assert report.ok
    assert out.tolist() == [10, 11, 12, 13]
    out, report = copy(base[20:10:-1], "neg.s32 %i, %tid;")
    assert report.ok
    assert out.tolist() == [20, 19, 18, 17]
    out, report = copy(base.reshape(10, 10)[2:5, 3:7].T, "mul.lo.u32 %i, %tid, 10; min.u32 %i, %i, 20;")
    assert report.ok
    assert out.tolist() == [23, 33, 43, 43]


@pytest.mark.parametrize(("view", "index", "text"), [
    (np.s_[10:14], "add.u32 %i, %tid, 1;", "ends 4 bytes past its end"),
    (np.s_[10:14], "add.u32 %i, %tid, -1;", "4 bytes before p0"),
    (np.s_[13:9:-1], "add.u32 %i, %tid, -2;", "ends 4 bytes past its end"),
    (np.s_[13:9:-1], "sub.u32 %i, -1, %tid;", "4 bytes before p0"),
    (np.s_[10:14], "shl.b32 %i, %tid, 29;", "ends 2147483636 bytes past its end"),
])  # fmt: skip
def test_bounds_are_those_of_the_view(view, index, text):
    """Neighbours inside the same base array are out of bounds: guard bands work."""
    _, report = copy(np.arange(100, dtype=np.uint32)[view], index)
    assert [f.kind for f in report.findings] == ["out of bounds"]
    assert text in report.findings[0].message


def test_null_and_wild_pointers():
    report = run(".reg .b32 %v; ld.global.u32 %v, [%p0+8];", [None])
    assert "null pointer" in report.findings[0].message
    assert report.findings[0].lanes == 32
    report = run(".reg .b32 %v; mov.u64 %p0, 0x7FFFFFFFFF00; ld.global.u32 %v, [%p0];", [None])
    assert "in no allocation" in report.findings[0].message


@pytest.mark.parametrize(
    ("offset", "aligned"), [(0, 16), (4, 4), (8, 8), (12, 4), (16, 16), (256, 16), (272, 16), (2, 2)]
)
def test_views_keep_their_offset_from_an_aligned_base(offset, aligned):
    """A CuPy array starts at a multiple of 256 bytes; so does the base of a NumPy array here, wherever it is."""
    raw = np.zeros(1024, np.uint8)
    view = raw[offset : offset + 64].view(np.uint16)
    out = np.zeros(1, np.uint64)
    for size, kind in ((2, "b16"), (4, "b32"), (8, "b64"), (16, "v2.b64")):
        register = ".reg .b64 %v, %u;" if size == 16 else f".reg .b{8 * size} %v;"
        value = "{%v, %u}" if size == 16 else "%v"
        report = run(f"{register} ld.global.{kind} {value}, [%p0]; st.global.u64 [%p1], %p0;", [view, out], threads=1)
        assert report.ok == (size <= aligned), (size, report)
        if not report.ok:
            assert report.findings[0].kind == "misaligned"
    assert int(out[0]) % 256 == offset % 256


def test_memory_that_numpy_cannot_view_as_words_is_copied_and_written_back():
    raw = np.frombuffer(bytearray(512), np.uint8)
    owner = np.ndarray((101,), np.uint8, raw, 3)  # starts at an odd address and owns nothing
    view = owner[1:65]
    body = """.reg .b64 %a, %w; .reg .b16 %v; cvt.u16.u32 %v, %tid; cvt.u64.u32 %w, %tid;
        add.s64 %a, %p0, %w; st.global.u8 [%a], %v;"""
    run(body, [view], threads=64, strict=True)
    assert view.tolist() == list(range(64))


def test_unwritten_output_and_reads_of_it():
    y = np.full((4, 8), np.nan, np.float32)
    store = ".reg .b64 %a, %w; mul.wide.u32 %w, %tid, 4; add.s64 %a, %p0, %w; st.global.f32 [%a], 0f3F800000;"
    report = run(store, [y], threads=30, outputs=[0])
    assert [f.kind for f in report.findings] == ["unwritten output"]
    assert report.findings[0].lanes == 2
    assert "first [3, 6]" in report.findings[0].message
    assert run(store, [y], threads=32, outputs=[0]).ok
    report = run(".reg .f32 %v; " + store.replace("st.", "ld.global.f32 %v, [%a]; st."), [y], threads=32, outputs=[0])
    assert [f.kind for f in report.findings] == ["uninitialised read"]


def test_only_the_elements_of_a_strided_output_must_be_written():
    y = np.full((4, 16), np.nan, np.float32)[:, ::2]
    body = """.reg .b64 %a, %w; .reg .b32 %i;
        mul.lo.u32 %i, %tid, 2; mul.wide.u32 %w, %i, 4; add.s64 %a, %p0, %w; st.global.f32 [%a], 0f3F800000;"""
    assert run(body, [y], threads=32, outputs=[0]).ok
    assert (y == 1).all()


def test_writes_to_inputs():
    x = np.zeros(32, np.float32)
    x.flags.writeable = False
    report = run(
        ".reg .b64 %a, %w; mul.wide.u32 %w, %tid, 4; add.s64 %a, %p0, %w; st.global.f32 [%a], 0f3F800000;", [x]
    )
    assert [f.kind for f in report.findings] == ["write to read-only memory"]
    assert not x.any()


# %s: the address of word %tid of a tile of 32 words
TILE = """.shared .align 4 .b8 tile[128]; .reg .b64 %s, %w; .reg .b32 %v;
    mul.wide.u32 %w, %tid, 4; mov.u64 %s, tile; add.s64 %s, %s, %w;"""


def test_shared_and_local_bounds():
    body = TILE + "st.shared.u32 [%s+{}], 1;"
    assert run(body.format(0), []).ok
    report = run(body.format(4), [])
    assert [(f.kind, f.lanes, f.thread) for f in report.findings] == [("out of bounds", 1, (31, 0, 0))]
    assert "misaligned" in [f.kind for f in run(body.format(2), []).findings]
    body = """.local .align 8 .b8 mine[8]; .reg .b64 %s; .reg .b32 %v; mov.u64 %s, mine;
        st.local.u32 [%s+{}], 1; ld.local.u32 %v, [%s+{}];"""
    assert run(body.format(4, 4), []).ok
    assert run(body.format(8, 4), []).findings[0].kind == "out of bounds"
    assert run(body.format(0, 4), []).findings[0].kind == "uninitialised read"


@pytest.mark.parametrize("dynamic", [0, 64])
def test_one_shared_variable_does_not_run_into_the_next(dynamic):
    """Nor into dynamic shared memory; the lanes of one access may use several variables."""
    declared = ".shared .align 4 .b8 first[128]; .shared .align 4 .b8 second[64]; .reg .pred %q; .reg .b64 %s2;"
    body = declared + TILE.replace("tile", "third") + "mov.u64 %s2, {}; add.s64 %s2, %s2, %w;{}st.shared.u32 [%s2], 1;"
    assert run(body.format("first", ""), [], shared=dynamic).ok
    report = run(body.format("second", ""), [], shared=dynamic)
    first = report.findings[0]
    assert (first.kind, first.lanes, first.thread) == ("out of bounds", 16, (16, 0, 0))
    assert "4 bytes at second + 64, which has 64 bytes" in str(report)
    mixed = "setp.lt.u32 %q, %tid, 16; selp.b64 %s2, %s2, %s, %q;"
    assert run(body.format("second", mixed), [], shared=dynamic).ok


def test_shared_memory_that_is_not_there():
    report = run(".reg .b32 %v; .reg .b64 %s; mov.u64 %s, 1024; ld.shared.u32 %v, [%s];", [])
    assert [f.kind for f in report.findings][:1] == ["out of bounds"]


def test_uninitialised_shared_memory():
    body = TILE + "{}"
    report = run(body.format("ld.shared.u32 %v, [%s];"), [])
    assert [f.kind for f in report.findings] == ["uninitialised read"]
    assert run(body.format("st.shared.u32 [%s], 1; ld.shared.u32 %v, [%s];"), []).ok
    assert run(body.format("ld.shared.u32 %v, [tile];"), []).findings[0].lanes == 32


def test_an_error_carries_its_report():
    with pytest.raises(EmulationError, match="out of bounds: reads 4 bytes") as caught:
        run(".reg .b32 %v; ld.global.u32 %v, [%p0+16];", [np.zeros(4, np.uint32)], strict=True)
    assert caught.value.report.findings[0].ptx_line > 0
    assert not caught.value.report.ok


def test_without_checks_only_addresses_are_checked():
    y = np.zeros(4, np.float32)
    assert run("", [y], outputs=[0], checks=False).ok
    assert not run(".reg .b32 %v; ld.global.u32 %v, [%p0+16];", [y], checks=False).ok


def test_a_32_bit_address_wraps():
    """Loops that NVRTC shifts begin below the first address and add as much in the instruction."""
    out = np.zeros(4, np.uint32)
    body = """.shared .align 16 .b8 tile[64]; .reg .b32 %s; .reg .b32 %v; .reg .b64 %o; .reg .b64 %w;
        mov.u32 %s, tile; shl.b32 %v, %tid, 2; add.u32 %s, %s, %v; sub.u32 %s, %s, 4096;
        st.shared.u32 [%s+4096], %tid; ld.shared.u32 %v, [%s+4096];
        mul.wide.u32 %w, %tid, 4; add.s64 %o, %p0, %w; st.global.u32 [%o], %v;"""
    run(body, [out], threads=4, strict=True)
    assert out.tolist() == [0, 1, 2, 3]
