"""What the emulator doesn't know it refuses, before anything runs and by name."""

import numpy as np
import pytest

from gpu_conv.emulator import Emulator, UnsupportedPtx

from .cuda import compiled
from .ptx import apply, module, run

REGISTERS = ".reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<3>; .reg .b16 %h<4>; .reg .f32 %f<9>; .reg .f64 %g<4>; "
REFUSED = [
    "wgmma.wait_group.sync.aligned %r1",
    "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {F}, %d1, %d2, %r1, 0, %p1, 1, 1, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%r1, %r2}, %d1, %d2, %p1, 1, 1, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {F}, %d1, %d2, %p1, 1, 1",
    "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8.satfinite {V}, %d1, %d2, %p1",
    "wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8 {V}, %d1, %d2, %p1",
    "wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16 {F}, %d1, %d2, %p1, 1, 1, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.bf16 {F}, %d1, %d2, %p1, 1, 1, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {F}, %d1, %d2, %p1, 1, 2, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {F}, %d1, %d2, %p1, 1, 1, 0, 0",
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {F}, %d1, %d2, %p1, 1, 1, 0, 0",
    "mbarrier.arrive.noComplete.b64 %d1, [%d2], 1",
    "mbarrier.arrive_drop.b64 %d1, [%d2]",
    "mbarrier.pending_count.b64 %r1, %d1",
    "mbarrier.complete_tx.shared::cta.b64 [%r1], 16",
    "mbarrier.arrive.shared::cta.b64 %d1, [%r1], %r2, %r3",
    "mbarrier.test_wait.shared::cta.b64 %p1, [%r1], %d1, %r2",
    "mbarrier.try_wait.parity.shared::cluster.b64 %p1, [%r1], %r2",
    "fence.proxy.alias",
    "fence.proxy.tensormap::generic.release.gpu",
    "fence.mbarrier_init.release.gpu",
    "cp.async.bulk.wait_group %r1",
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r1], [%r2], 16, [%r3]",
    "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%d2], [%r3]",
    "cp.async.bulk.prefetch.L2.global [%d1], 16",
    "cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r1], [%d1, {%r1, %r2}], [%r3]",
    "cp.async.bulk.tensor.4d.shared::cta.global.im2col.mbarrier::complete_tx::bytes"
    " [%r1], [%d1, {V}], [%r3], {%h1, %h2}",
    "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
    " [%r1], [%d1, {%r1}], [%r3], %h1",
    "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%d1, {%r1}], [%r2]",
    "tcgen05.wait.ld",
    "bar.sync 0, 64",
    "bar.arrive 1, 64",
    "bar.red.popc.u32 %r1, 0, 64, %p1",
    "barrier.cluster.arrive",
    "addc.u32 %r1, %r2, %r3",
    "add.cc.u32 %r1, %r2, %r3",
    "mul24.lo.u32 %r1, %r2, %r3",
    "mad.lo.cc.u32 %r1, %r2, %r3, %r4",
    "add.f16.u32 %r1, %r2, %r3",
    "add.u16x2 %r1, %r2, %r3",
    "add.rn.f32x2 %d1, %d2, %d3",
    "add.rz.f64 %g1, %g2, %g3",
    "fma.rn.ftz.f64 %g1, %g2, %g3, %g1",
    "min.xorsign.abs.f32 %f1, %f2, %f3",
    "add.f32.f16 %f1, %f2, %h1",
    "fma.rn.f32.bf16 %f1, %h1, %h2, %f3",
    "fma.rm.f16 %h1, %h2, %h3, %h1",
    "fma.rn.oob.f16 %h1, %h2, %h3, %h1",
    "cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2",
    "cvt.rn.f16.u64 %h1, %d1",
    "cvt.f32.s32 %f1, %r1",
    "cvt.u32.f32 %r1, %f1",
    "cvt.rn.relu.s32.f32 %r1, %f1",
    "ld.global.f32.u32 %r1, [%d1]",
    "ld.global.b128 %d1, [%d2]",
    "ld.global.L2::cache_hint.u32 %r1, [%d1], %d2",
    "st.param.u32 [%d1], %r1",
    "ld.shared::cluster.u32 %r1, [%r2]",
    "atom.global.add.v4.f32 %f1, [%d1], %f2",
    "atom.global.min.f32 %f1, [%d1], %f2",
    "atom.global.and.u32.b32 %r1, [%d1], %r2",
    "cp.async.cg.shared.global [%r1], [%d1], 8",
    "cp.async.ca.shared.global [%r1], [%d1], 12",
    "cp.async.wait_group %r1",
    "cp.async.mbarrier.arrive.shared.b64 [%r1]",
    "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16 {%r1}, [%r2]",
    "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2}",
    "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r1, %r2, %r3, %r4}, {%r1, %r2}, {%r3, %r4}",
    "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {V}, {V}, {%r1,%r2}, {V}",
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {F}, {V}, {%r1,%r2}, {F}",
    "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%g1,%g2}, {%g1}, {%g2}, {%g1,%g2}",
    "shfl.idx.b32 %r1, %r2, 0, 31",
    "vote.ballot.b32 %r1, %p1",
    "redux.sync.min.f32 %f1, %f2, -1",
    "prmt.b32.f4e %r1, %r2, %r3, %r4",
    "bfe.u64 %d1, %d2, 1, 2",
    "txq.width.b32 %r1, [%d1]",
    "call.uni f, (%r1)",
    "setp.lt.f16x2 %p1|%p2, %r1, %r2",
    "set.lt.f64.f32 %g1, %f1, %f2",
    "cvta.shared.u32 %r1, %r2",
    "isspacep.const %p1, %d1",
    "and.u32 %r1, %r2, %r3",
    "not.u32 %r1, %r2",
    "lop3.and.b32 %r1|%p1, %r2, %r3, %r4, 5, %p2",
    "mapa.shared::cluster.u32 %r1, %r2, 1",
    "mov.u32 %r1, %cluster_ctarank",
    "multimem.ld_reduce.global.add.u32 %r1, [%d1]",
    "setmaxnreg.dec.sync.aligned.u32 44",
    "setmaxnreg.inc.sync.aligned.u32 264",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d1], [%r1], 16",
    "copysign.f16 %h1, %h2, %h3",
    "div.f16 %h1, %h2, %h3",
    "mov.u32 %r1, WARP_SZ",
    "abs.u32 %r1, %r2",
    "neg.u32 %r1, %r2",
    "mul.lo.b32 %r1, %r2, %r3",
    "min.b32 %r1, %r2, %r3",
    "sad.b32 %r1, %r2, %r3, %r4",
    "clz.f32 %r1, %f1",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_refused(statement):
    statement = statement.replace("{V}", "{%r1,%r2,%r3,%r4}").replace("{F}", "{%f1,%f2,%f3,%f4}")
    with pytest.raises(UnsupportedPtx, match=r"PTX line \d+: ") as caught:
        run(REGISTERS + "\n" + statement + ";", [])
    assert statement.split(";")[0].split()[0] in str(caught.value)


def test_code_that_would_never_run_is_refused_too():
    with pytest.raises(UnsupportedPtx, match="tcgen05"):
        run("ret; tcgen05.wait.ld;", [])


def test_unknown_special_registers():
    with pytest.raises(UnsupportedPtx, match="clusterid"):
        apply("mov.u32 {d}, %clusterid.x", [np.zeros(4, np.uint32)], ["u32"], "u32")


def test_device_functions_are_refused_where_they_are_called():
    source = """__device__ __noinline__ int f(int i) { return i * i + 1; }
        __global__ void k(int* y) { y[threadIdx.x] = f(threadIdx.x); }"""
    kernel = compiled(source, "k", "sm_80")
    with pytest.raises(UnsupportedPtx, match="device functions"):
        Emulator().execute(kernel.ptx, kernel.lowered, 1, 32, [np.zeros(32, np.int32)])


@pytest.mark.parametrize("blocks", [1, 2])
def test_clusters_of_several_blocks(blocks):
    kernel = compiled(
        f"__global__ void __cluster_dims__({blocks}, 1, 1) k(int* y) {{ y[threadIdx.x] = 1; }}", "k", "sm_90a"
    )
    y = np.zeros(32, np.int32)
    if blocks == 1:
        Emulator("sm_90a").execute(kernel.ptx, kernel.lowered, 1, 32, [y])
        assert y.all()
    else:
        with pytest.raises(UnsupportedPtx, match="clusters of 2 blocks"):
            Emulator("sm_90a").execute(kernel.ptx, kernel.lowered, 2, 32, [y])


def test_launches_that_a_gpu_would_refuse():
    text = module("ret;", [("u64", "p0")])
    emulator = Emulator()
    for grid, block, message in (
        (0, 32, "grid"),
        ((1, 70000), 32, "grid"),
        (1, 2048, "block"),
        (1, 0, "block"),
        (1, (1, 1, 65), "block"),
    ):
        with pytest.raises(ValueError, match=message):
            emulator.execute(text, "k", grid, block, [None])
    with pytest.raises(ValueError, match="1 parameters, got 2"):
        emulator.execute(text, "k", 1, 32, [None, None])
    with pytest.raises(ValueError, match="shared memory"):
        emulator.execute(text, "k", 1, 32, [None], 164 * 1024)
    with pytest.raises(ValueError, match="no kernel 'other'"):
        emulator.execute(text, "other", 1, 32, [None])
    with pytest.raises(ValueError, match="4 bytes, the kernel expects 8"):
        emulator.execute(text, "k", 1, 32, [np.float32(1)])
