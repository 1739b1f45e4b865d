"""Bulk copies against NumPy: boxes of every rank, edges, strides, swizzles; runs of bytes; groups; what is refused."""

import itertools

import numpy as np
import pytest

from gpu_conv.emulator import Emulator, UnsupportedPtx
from gpu_conv.launch import TensorMap

from .ptx import module

HEAD = """.shared .align 1024 .b8 tile[{size}]; .shared .align 8 .b64 bar; .reg .b64 %p<4>, %map, %x, %w;
    .reg .pred %q, %t0; .reg .b32 %tid, %s, %b, %i, %v<4>, %c<5>; mov.u32 %tid, %tid.x; setp.eq.u32 %t0, %tid, 0;
    mov.u32 %s, tile; mov.u32 %b, bar; ld.param.u64 %p0, [p0]; ld.param.u64 %p1, [p1];
    mov.b64 %map, pm; cvta.param.u64 %map, %map;
    @%t0 mbarrier.init.shared::cta.b64 [%b], 1; @%t0 fence.mbarrier_init.release.cluster; bar.sync 0;
    {coordinates}"""
LOAD = """@%t0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], {bytes};
    @%t0 cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
        [%s], [%map, {{{names}}}], [%b];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;"""
DUMP = """shl.b32 %i, %tid, 4;
    LOOP: setp.ge.u32 %q, %i, {bytes}; @%q bra END; add.u32 %v0, %s, %i; cvt.u64.u32 %w, %i; add.s64 %x, %p1, %w;
    ld.shared.v4.b32 {{%v0, %v1, %v2, %v3}}, [%v0]; st.global.v4.b32 [%x], {{%v0, %v1, %v2, %v3}}; add.u32 %i, %i, 512;
    bra LOOP; END:"""
FILL = """shl.b32 %i, %tid, 4;
    LOOP: setp.ge.u32 %q, %i, {bytes}; @%q bra END; add.u32 %s, %s, %i; cvt.u64.u32 %w, %i; add.s64 %x, %p0, %w;
    ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%x]; st.shared.v4.b32 [%s], {{%v0, %v1, %v2, %v3}}; sub.u32 %s, %s, %i;
    add.u32 %i, %i, 512; bra LOOP; END: fence.proxy.async.shared::cta; bar.sync 0;"""
STORE = """@%t0 cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%map, {{{names}}}], [%s];
    @%t0 cp.async.bulk.commit_group; @%t0 cp.async.bulk.wait_group{read} 0;"""


def execute(body, x, y, tensor_map, corner=(), size=1024, names=("x", "y", "map"), **options):
    coordinates = "".join(f"mov.b32 %c{i}, {c & 0xFFFFFFFF:#x};" for i, c in enumerate(corner))
    text = HEAD.format(size=max(size, 1024), coordinates=coordinates) + body
    text = module(text, [("u64", "p0"), ("u64", "p1"), ("align 64 .b8", "pm[128]")])
    emulator = Emulator("sm_90a", **{"strict": False, **options})
    return emulator.execute(text, "k", 1, 32, [x, y, tensor_map], names=list(names))


def swizzle_bytes(data, swizzle):
    """A dense box as it lies in shared memory from a multiple of 1024 on: pieces of each 128-byte line exchanged."""
    out = np.empty_like(data).reshape(-1, 16)
    for i, piece in enumerate(data.reshape(-1, 16)):
        line, column = divmod(i, 8)
        out[line * 8 + (column ^ line % max(1, swizzle // 16))] = piece
    return out.reshape(-1)


def box_of(x, tensor_map, corner):
    """What a box holds, element by element."""
    out = np.zeros(tensor_map.fetched[::-1], x.dtype)
    flat = x.reshape(-1)
    for index in itertools.product(*(range(n) for n in tensor_map.fetched)):
        at = [c + i * s for c, i, s in zip(corner, index, tensor_map.element_strides, strict=True)]
        if all(0 <= p < n for p, n in zip(at, tensor_map.shape, strict=True)):
            rest = sum(p * s for p, s in zip(at[1:], tensor_map.strides, strict=True))
            out[index[::-1]] = flat[tensor_map.offset + at[0] + rest]
    return out


def load(x, tensor_map, corner, **options):
    size = tensor_map.box_bytes
    out = np.zeros(size, np.uint8)
    names = ", ".join(f"%c{i}" for i in range(len(corner)))
    body = LOAD.format(bytes=size, rank=len(corner), names=names) + DUMP.format(bytes=size)
    report = execute(body, x, out, tensor_map, corner, -(-size // 1024) * 1024, **options)
    return out, report


# dtype, shape and strides (innermost first), box, steps, swizzle, corner: a multiple of 16 bytes on the innermost axis
BOXES = {
    "1d": ("float32", (100,), (), (64,), (1,), 0, (16,)),
    "1d over the end": ("float32", (98,), (), (64,), (1,), 0, (72,)),
    "1d before the start": ("int32", (100,), (), (64,), (1,), 0, (-8,)),
    "1d all outside": ("float32", (100,), (), (64,), (1,), 0, (200,)),
    "2d 128": ("float16", (72, 33), (80,), (64, 20), (1, 1), 128, (0, 4)),
    "2d 128, both ends": ("float16", (72, 12), (80,), (64, 20), (1, 1), 128, (-8, -3)),
    "2d 128, far end": ("bfloat16", (71, 12), (80,), (64, 20), (1, 1), 128, (24, 3)),
    "2d 64": ("float16", (72, 33), (80,), (32, 20), (1, 1), 64, (8, 20)),
    "2d 32": ("float32", (72, 33), (80,), (8, 36), (1, 1), 32, (8, -2)),
    "2d bytes": ("int8", (41, 9), (48,), (32, 9), (1, 1), 0, (16, 1)),
    "2d doubles": ("float64", (48, 9), (50,), (16, 4), (1, 1), 128, (4, 7)),
    "3d with steps": ("float32", (12, 7, 6), (16, 112), (8, 7, 5), (1, 2, 3), 0, (4, -1, 1)),
    "4d with an axis of one": ("float16", (16, 5, 1, 3), (16, 80, 80), (8, 3, 1, 3), (1, 1, 1, 1), 0, (8, 3, 0, -1)),
    "5d, a convolution": ("float16", (64, 2, 6, 5, 3), (72, 144, 864, 4320), (64, 1, 8, 4, 2), (1, 1, 2, 2, 1), 128,
                          (0, 1, -1, -1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("case", BOXES)
def test_loads_of_boxes(case, seed):
    dtype, shape, strides, box, steps, swizzle, corner = BOXES[case]
    tensor_map = TensorMap("x", dtype, 16 // np.dtype(dtype).itemsize, shape, strides, box, steps, swizzle)
    count = tensor_map.offset + 1 + sum((n - 1) * s for n, s in zip(shape, (1, *strides), strict=True))
    x = (np.arange(count) % 125 + 1).astype(dtype)
    out, report = load(x, tensor_map, corner, seed=seed)
    assert report.ok, report
    expected = box_of(x, tensor_map, corner)
    np.testing.assert_array_equal(out, swizzle_bytes(expected.reshape(-1).view(np.uint8), swizzle))
    counters = report.counters
    assert counters.total("bytes", "cp.async.bulk.shared") == tensor_map.box_bytes
    assert counters.total("bytes", "cp.async.bulk.global") == np.count_nonzero(expected.astype(np.float64)) * x.itemsize
    assert counters.classes["bulk copy"] == 32


# Stores begin inside of the tensor, on every axis, and rows end with a whole piece of 16 bytes.
STORES = {name: BOXES[name] for name in ("1d", "1d all outside", "2d 128", "2d 64", "2d doubles")} | {
    "1d over an end of whole pieces": ("float32", (100,), (), (64,), (1,), 0, (72,)),
    "2d 128, both far ends": ("bfloat16", (72, 12), (80,), (64, 20), (1, 1), 128, (24, 3)),
    "2d 32, far end": ("float32", (72, 33), (80,), (8, 36), (1, 1), 32, (8, 2)),
    "2d bytes, a gap behind rows": ("int8", (48, 9), (64,), (32, 9), (1, 1), 0, (32, 1)),
    "3d": ("float32", (12, 7, 6), (16, 112), (8, 7, 5), (1, 1, 1), 0, (8, 1, 3)),
    "4d": ("float16", (16, 5, 1, 3), (16, 80, 80), (8, 3, 1, 3), (1, 1, 1, 1), 0, (8, 3, 0, 1)),
    "5d": ("float16", (64, 2, 6, 5, 3), (72, 144, 864, 4320), (64, 1, 4, 2, 2), (1, 1, 1, 1, 1), 128, (0, 1, 3, 4, 2)),
}  # fmt: skip


def store(case):
    """Before and after: data of the box, the array stored to, the tensor map, the report."""
    dtype, shape, strides, box, steps, swizzle, corner = case
    tensor_map = TensorMap("y", dtype, 0, shape, strides, box, steps, swizzle)
    y = np.zeros(1 + sum((n - 1) * s for n, s in zip(shape, (1, *strides), strict=True)), dtype)
    data = (np.arange(tensor_map.box_bytes // y.itemsize) % 120 + 1).astype(dtype)
    memory = swizzle_bytes(data.view(np.uint8), swizzle)
    names = ", ".join(f"%c{i}" for i in range(len(corner)))
    body = FILL.format(bytes=memory.size) + STORE.format(rank=len(corner), names=names, read=".read")
    return data, y, tensor_map, execute(body, memory, y, tensor_map, corner, -(-memory.size // 1024) * 1024)


@pytest.mark.parametrize("case", STORES)
def test_stores_of_boxes(case):
    data, y, tensor_map, report = store(STORES[case])
    assert report.ok, report
    expected = np.zeros_like(y)
    numbers = box_of(np.arange(1, y.size + 1, dtype=np.int64), tensor_map, STORES[case][-1]).reshape(-1)
    expected[numbers[numbers > 0] - 1] = data[numbers > 0]
    np.testing.assert_array_equal(y, expected)


NEGATIVE = [name for name, case in BOXES.items() if min(case[-1]) < 0]


@pytest.mark.parametrize("case", NEGATIVE)
def test_stores_that_the_copy_engine_refuses(case):
    """An H100 answers with an illegal instruction to a negative corner on whichever axis, though it loads there."""
    _, y, _, report = store(BOXES[case])
    assert [(f.kind, f.lanes) for f in report.findings] == [("out of bounds", 1)]
    assert f"corner {BOXES[case][-1]} of a store is negative" in report.findings[0].message
    assert not y.any()


@pytest.mark.parametrize(("case", "behind"), [("1d over the end", 8), ("2d 128, far end", 2), ("2d bytes", 7)])
def test_stores_that_would_write_behind_rows(case, behind):
    """An H100 writes the last 16 bytes of each row as a whole."""
    _, y, _, report = store(BOXES[case])
    assert [(f.kind, f.lanes) for f in report.findings] == [("out of bounds", 1)]
    assert f"{behind} bytes behind each row" in report.findings[0].message
    assert not y.any()
    *rest, corner = BOXES[case]
    assert store((*rest, (0, *corner[1:])))[3].ok  # a box that ends before its row does


def test_stores_with_steps():
    with pytest.raises(UnsupportedPtx, match=r"a store with steps of \(1, 2, 3\) elements"):
        store(("float32", (12, 7, 6), (16, 112), (8, 7, 5), (1, 2, 3), 0, (4, 1, 1)))


LINEAR = """@%t0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], {bytes};
    @%t0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%p0+{offset}], {count}, [%b];
    WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;"""
MAP = TensorMap("x", "float32", 0, (64,), (), (32,), (1,), 0)


@pytest.mark.parametrize("size", [16, 48, 2048])
def test_runs_of_bytes(size):
    x = np.random.default_rng(size).integers(0, 256, 4096).astype(np.uint8)
    y = np.zeros(4096, np.uint8)
    body = LINEAR.format(bytes=size, count=size, offset=32)
    body += f"""@%t0 cp.async.bulk.global.shared::cta.bulk_group [%p1+16], [%s], {size};
        @%t0 cp.async.bulk.commit_group; @%t0 cp.async.bulk.wait_group 0;"""
    report = execute(body, x, y, MAP, size=2048)
    assert report.ok, report
    np.testing.assert_array_equal(y[16 : 16 + size], x[32 : 32 + size])
    assert not y[:16].any()
    assert not y[16 + size :].any()


@pytest.mark.parametrize(
    ("offset", "count", "kind"), [(8, 16, "misaligned"), (0, 24, "misaligned"), (4080, 32, "out of bounds")]
)
def test_wrong_runs_of_bytes(offset, count, kind):
    report = execute(LINEAR.format(bytes=count, count=count, offset=offset), np.zeros(4096, np.uint8), None, MAP)
    assert report.findings[0].kind == kind


def kinds(body, x=None, tensor_map=MAP, corner=(0,), **options):
    x = np.zeros(4096, np.float32) if x is None else x
    return [f.kind for f in execute(body, x, np.zeros(4096, np.float32), tensor_map, corner, **options).findings]


def test_maps_that_reach_outside_of_their_array():
    body = LOAD.format(bytes=128, rank=1, names="%c0")
    assert kinds(body, np.zeros(64, np.float32)) == []
    found = kinds(body, np.zeros(31, np.float32))
    assert found[0] == "out of bounds"


@pytest.mark.parametrize(("corner", "dtype"), [(2, "float32"), (-5, "float32"), (4, "float16"), (15, "int8")])
def test_corners_that_the_copy_engine_refuses(corner, dtype):
    """It reads and writes whole pieces of 16 bytes: an H100 answers with an illegal instruction."""
    here = TensorMap("x", dtype, 0, (64,), (), (32,), (1,), 0)
    bodies = LOAD.format(bytes=here.box_bytes, rank=1, names="%c0"), STORE.format(rank=1, names="%c0", read="")
    for body in bodies:
        finding = execute(body, np.zeros(4096, dtype), np.zeros(4096, dtype), here, (corner,)).findings[0]
        assert (finding.kind, finding.lanes) == ("misaligned", 1)
        assert f"{corner} on the innermost axis is no multiple of {16 // np.dtype(dtype).itemsize}" in finding.message
    two = TensorMap("x", "float32", 0, (64, 8), (64,), (32, 1), (1, 1), 0)
    body = LOAD.format(bytes=128, rank=2, names="%c0, %c1")
    assert kinds(body, tensor_map=two, corner=(8, 3)) == []  # of the other axes any number will do


def test_places_and_maps():
    body = LOAD.format(bytes=128, rank=1, names="%c0")
    assert kinds("add.u32 %s, %s, 64;" + body)[0] == "misaligned"
    assert kinds("add.u32 %s, %s, 1024;" + body)[0] == "out of bounds"
    assert kinds("add.s64 %map, %map, 64;" + body)[0] == "invalid tensor map"
    assert kinds("mov.b64 %map, %p0;" + body)[0] == "invalid tensor map"
    two = TensorMap("x", "float32", 0, (64, 2), (64,), (32, 1), (1, 1), 0)
    assert kinds(body, tensor_map=two)[0] == "invalid tensor map"
    with pytest.raises(UnsupportedPtx, match="rows of 64 bytes in a swizzle of 128"):
        kinds(body, tensor_map=TensorMap("x", "float32", 0, (64,), (), (16,), (1,), 128))
    with pytest.raises(ValueError, match="misaligned"):
        kinds(body, np.zeros(4097, np.float32)[1:])


def test_a_copy_that_nobody_waits_for():
    body = LOAD.format(bytes=128, rank=1, names="%c0").split("WAIT")[0]
    assert kinds(body) == ["bulk copy not waited for"]
    assert kinds(body + "bar.sync 0;" + DUMP.format(bytes=128))[0] == "bulk copy read before wait"


def test_groups_of_stores():
    """The source of a store may be overwritten once its group is among those waited for."""
    store = "@%t0 cp.async.bulk.global.shared::cta.bulk_group [%p1], [%s], 16; @%t0 cp.async.bulk.commit_group;"
    second = store.replace("[%s]", "[%s+32]").replace("[%p1]", "[%p1+64]")
    again = "@%t0 st.shared.b32 [%s], %tid;"
    tail = "@%t0 cp.async.bulk.wait_group 0;"
    fill = FILL.format(bytes=512)
    for wait, bad in (("", True), ("wait_group.read 1;", False), ("wait_group 2;", True)):
        wait = wait and f"@%t0 cp.async.bulk.{wait}"
        assert (kinds(fill + store + second + wait + again + tail) == ["shared race"]) == bad
    other = "setp.eq.u32 %q, %tid, 1; @%q st.shared.b32 [%s], %tid;"  # another thread needs a barrier, or a warp's
    waited = "@%t0 cp.async.bulk.wait_group.read 0;"
    assert kinds(fill + store + waited + other) == ["shared race"]
    assert kinds(fill + store + waited + "bar.warp.sync -1;" + other) == []
    assert kinds(fill + store + waited + "bar.sync 0;" + other) == []


def test_fences_between_the_proxies():
    store = STORE.format(rank=1, names="%c0", read="")
    here = TensorMap("y", "float32", 0, (64,), (), (32,), (1,), 0)
    fill = FILL.format(bytes=128)
    assert kinds(fill + store, tensor_map=here) == []
    without = fill.replace("fence.proxy.async.shared::cta;", "")
    assert kinds(without + store, tensor_map=here) == ["missing proxy fence"]
    assert kinds(without + "@%t0 fence.proxy.async;" + store, tensor_map=here) == []  # after the barrier will do
    assert kinds(fill.replace("bar.sync 0;", "") + store, tensor_map=here) == ["shared race"]
    unready = LOAD.format(bytes=128, rank=1, names="%c0")
    assert kinds(without + unready) == ["missing proxy fence"]  # a copy over what was stored
    assert kinds(fill + unready) == []


@pytest.mark.parametrize("case", ["x", "y"])
def test_tensors_of_read_only_and_foreign_memory(case):
    body = FILL.format(bytes=128) + STORE.format(rank=1, names="%c0", read="")
    x = np.zeros(4096, np.float32)
    x.flags.writeable = False
    found = kinds(body, x, TensorMap(case, "float32", 0, (64,), (), (32,), (1,), 0))
    assert found == (["write to read-only memory"] if case == "x" else [])


def test_two_blocks_that_store_to_one_place():
    body = FILL.format(bytes=128) + STORE.format(rank=1, names="%c0", read="")
    head = HEAD.format(size=1024, coordinates="mov.b32 %c0, {};")
    text = module(head + body, [("u64", "p0"), ("u64", "p1"), ("align 64 .b8", "pm[128]")])
    here = TensorMap("y", "float32", 0, (64,), (), (32,), (1,), 0)
    for corner, expected in (("0", ["global race"]), ("%ctaid.x; shl.b32 %c0, %c0, 5", [])):
        report = Emulator("sm_90a", strict=False).execute(
            text.replace("{}", corner), "k", 2, 32, [np.zeros(64, np.float32), np.zeros(64, np.float32), here],
            names=["x", "y", "map"],
        )  # fmt: skip
        assert [f.kind for f in report.findings] == expected
