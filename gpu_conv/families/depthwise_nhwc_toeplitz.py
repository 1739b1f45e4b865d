"""Host half of ``kernels/depthwise_nhwc_toeplitz.cu``: long depthwise filters on the tensor cores, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ConvProblem
from . import Row, depthwise_common
from .direct import INT32_LIMIT, activation_parameters
from .toeplitz_tiles import COLUMNS, STEP, UNITS, two

PARAMS = struct(
    "DepthwiseNhwcToeplitzParams",
    [
        *((name, "int64") for name in ("x_image", "y_image", "w_group")),
        *((name, "float64") for name in ("alpha", "beta")),
        *((name, "int32") for name in ("w_row", "w_column", "x_row", "y_row", "shift", "channels", "images")),
        *((name, "int32", 2) for name in ("in", "out", "padding", "filter")),
        *((name, "int32") for name in ("blocks", "per_group", "bands", "groups", "groups_per_block")),
        *((name, "int32") for name in ("columns", "stream_pitch", "channel_pitch")),
    ],
)

CHANNELS = 8  # kChannels: of a block, one for each warp
PIXEL = 16  # kPixel: bytes
LINE = 16  # bytes: what a transposing load reads or a lane stores
THREADS = 32 * CHANNELS

# Output rows of a group: those that waste fewest, a group costing one more. Rows share nothing under a filter of one.
BANDS = (8, 7)
BANDS_ALONE = (4, 2, 1)
STEPS = 5  # products along a filter row whose bands and sums are kept in registers
STEPS_ALONE = 10  # the same where the filter has one row
STAGES = (4, 3, 2)  # chunks in the ring: the most with which min_blocks blocks share a multiprocessor
COPIES = 8  # of a thread, of a chunk: 16 bytes each
TAPS = 4096  # that the kernel's division reaches
HEAVY = ("gelu", "softplus", "parametric_softplus", "softsign", "celu")  # activations that take 8 registers more
# Chunks that a block could compute in the time in which it begins; how many a search for the fewest waves tries.
BEGIN, MOST = 3, 64


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    if p.x.dtype not in ("float16", "bfloat16") or p.y.dtype != p.x.dtype:
        return f"it computes float16 and bfloat16, got x {p.x.dtype}, y {p.y.dtype}"
    if target.capability < 80:
        return f"its products need compute capability 8.0, {target.arch} has less"
    if p.rank > 2 or p.out_per_group != 1:
        return f"it takes 1 or 2 spatial axes and 1 output per group; got {p.rank} and {p.out_per_group}"
    if max(p.strides + p.dilations) > 1:
        return f"strides are {p.strides}, dilations {p.dilations}; depthwise_nhwc_toeplitz takes 1"
    if p.groups % CHANNELS:
        return f"it computes {CHANNELS} channels at a time, {p.groups} are no multiple of that"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not (tensor.channels_last and tensor.align >= PIXEL):
            return f"{name} is not dense with channels last and aligned to {PIXEL} bytes (strides {tensor.strides})"
    geometry = _Geometry(p, target)
    if geometry.steps > (STEPS if geometry.rows > 1 else STEPS_ALONE) or prod(p.filter) >= TAPS:
        return f"the filter is {p.filter}; depthwise_nhwc_toeplitz takes up to 63x65, 56x73, or 153 in a single row"
    if geometry.shared_bytes > target.shared_per_block:
        return f"a block needs {geometry.shared_bytes} bytes of shared memory, {target.name} has less"
    taps = max(abs(n * s) for n, s in zip(p.filter, p.w.strides[3:], strict=True))
    reach = max(map(max, zip(p.in_spatial, p.out_spatial, p.filter, strict=True)))
    pads = max(abs(lo) for lo, _ in p.padding)
    pixels = geometry.per_group * prod(p.in_spatial) + BANDS[0] * p.in_spatial[-1] + geometry.columns
    indices = taps, pixels * p.groups, geometry.groups, 4 * (reach + pads), geometry.strips * 2**15, p.batch * UNITS
    if max(indices) >= INT32_LIMIT:
        return "it has too many elements in an image, or too many images, for 32-bit indices"
    return None


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem that is not refused."""
    geometry = _Geometry(p, target)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        alpha=alpha,
        beta=beta,
        w_row=p.w.strides[3] if p.rank == 2 else 0,
        w_column=p.w.strides[-1],
        channels=p.groups,
        images=p.batch,
        x_image=prod(p.in_spatial),
        y_image=prod(p.out_spatial),
        x_row=geometry.shift or p.in_spatial[-1],
        y_row=geometry.shift or p.out_spatial[-1],
        shift=geometry.shift,
        out=geometry.out,
        padding=geometry.padding,
        filter=(geometry.rows, p.filter[-1]),
        blocks=geometry.blocks,
        per_group=geometry.per_group,
        bands=geometry.bands,
        groups=geometry.groups,
        groups_per_block=geometry.groups_per_block,
        columns=geometry.columns,
        stream_pitch=geometry.stream_pitch,
        channel_pitch=geometry.channel_pitch,
        **{"in": geometry.size},
    )
    sizes = (geometry.outputs, geometry.steps, geometry.copies, geometry.stages, geometry.rows == 1)
    types = (CTYPES[p.x.dtype], CTYPES[p.bias or "float32"])
    return Launch(
        source="depthwise_nhwc_toeplitz.cu",
        kernel="depthwise_nhwc_toeplitz",
        template=(*types, *sizes, p.residual is not None, code, geometry.min_blocks),
        grid=(p.groups // CHANNELS, -(-geometry.groups // geometry.groups_per_block), geometry.grid_strips),
        block=(THREADS, 1, 1),
        params=params,
        shared_bytes=geometry.shared_bytes,
    )


@dataclass(frozen=True)
class _Geometry:
    """How a problem is cut: strips of columns, bands of rows, sets of images; what of it lies in shared memory."""

    p: ConvProblem
    target: Target

    @cached_property
    def flat(self) -> bool:
        """One row, of images and of the filter: strips are computed as rows, each ``shift`` columns behind the last."""
        return self.rows == two(self.p.in_spatial, 1)[0] == two(self.p.out_spatial, 1)[0] == 1

    @property
    def shift(self) -> int:
        return COLUMNS * self.blocks if self.flat else 0

    @cached_property
    def size(self) -> tuple[int, int]:
        rows, columns = two(self.p.in_spatial, 1)
        return (self.strips if self.flat else rows), columns

    @cached_property
    def out(self) -> tuple[int, int]:
        rows, columns = two(self.p.out_spatial, 1)
        return (self.strips if self.flat else rows), columns

    @cached_property
    def padding(self) -> tuple[int, int]:
        return two(tuple(lo for lo, _ in self.p.padding), 0)

    @cached_property
    def rows(self) -> int:
        return two(self.p.filter, 1)[0]

    @cached_property
    def outputs(self) -> int:
        """Output rows of a group, and rows of x in a chunk."""
        return min(BANDS_ALONE if self.rows == 1 else BANDS, key=lambda n: -(-self.out[0] // n) * (n + 1))

    @cached_property
    def bands(self) -> int:
        return -(-self.out[0] // self.outputs)

    @cached_property
    def strips(self) -> int:
        return -(-self.p.out_spatial[-1] // (UNITS * COLUMNS))

    @property
    def grid_strips(self) -> int:
        return 1 if self.flat else self.strips

    @cached_property
    def blocks(self) -> int:
        return -(-self.p.out_spatial[-1] // (self.strips * COLUMNS))

    @cached_property
    def steps(self) -> int:
        """Products along a filter row: windows of one strip need not reach beyond the map."""
        columns = 7 + self.p.filter[-1]
        if self.strips == 1:
            columns = min(columns, self.p.in_spatial[-1] + self.padding[1])
        return max(1, -(-columns // STEP))

    @cached_property
    def octets(self) -> int:
        """Of columns, under the windows of a strip."""
        return self.blocks - 1 + 2 * self.steps

    @cached_property
    def columns(self) -> int:
        """Of x that exist there, and up to 7 before them."""
        left = max(self.padding[1], 0) % 8
        if self.flat:
            return self.octets * 8
        return max(8, min(self.octets * 8, -(-(left + self.size[1]) // 8) * 8))

    @property
    def wanted_blocks(self) -> int:
        """Blocks per multiprocessor that registers suffice for: 80 of a thread leave room for three, 128 for two."""
        if self.p.residual is not None:  # addresses of 64 bits, of all outputs of a lane
            return 1
        heavy = self.p.activation is not None and self.p.activation.name in HEAVY
        small, large = (4, 8) if self.rows == 1 else (0, 2)
        blocks = 3 if self.steps <= small else 2 if self.steps <= large else 1
        return max(1, blocks - heavy)

    @property
    def min_blocks(self) -> int:
        """Blocks per multiprocessor to compile for: what shared memory has no room for needs no cap of registers."""
        return max(1, min(self.wanted_blocks, self.target.shared_per_block // self.shared_bytes))

    @cached_property
    def per_group(self) -> int:
        """Images side by side: as many as a product has rows for, or shared memory."""
        most = min(UNITS // self.blocks, self.p.batch, COPIES * THREADS // (self.outputs * self.columns))
        fits = (n for n in range(most, 1, -1) if self._shared(n, STAGES[-1]) <= self.target.shared_per_block)
        return next(fits, 1)

    @property
    def copies(self) -> int:
        """Of a thread, of a chunk."""
        return -(-self.outputs * self.per_group * self.columns // THREADS)

    @cached_property
    def stages(self) -> int:
        limit = self.target.shared_per_block // max(2, self.wanted_blocks) - 1024  # what the system takes per block
        return next((s for s in STAGES if self._shared(self.per_group, s) <= limit), STAGES[-1])

    @cached_property
    def shared_bytes(self) -> int:
        return self._shared(self.per_group, self.stages)

    @cached_property
    def stream_pitch(self) -> int:
        """Bytes; neighbouring column blocks lie in neighbouring banks, those of the next image too."""
        return (self.octets + (self.blocks - self.octets) % 8) * LINE

    @property
    def channel_pitch(self) -> int:
        return self._channel_pitch(self.per_group)

    def _channel_pitch(self, per_group: int) -> int:
        """Bytes; two channels are stored at a time, 64 bytes of each."""
        size = self.outputs * per_group * self.stream_pitch
        return size + (64 - size) % 128

    def _shared(self, per_group: int, stages: int) -> int:
        filters = CHANNELS * (-(-((self.rows + 1) * (64 * self.steps + 32) - 16) // 128) * 128 + 16)
        stage = self.outputs * per_group * self.columns * PIXEL
        turned = CHANNELS * max(self._channel_pitch(per_group), self.outputs * UNITS * LINE + 64)
        return 128 + filters + stages * stage + turned

    @cached_property
    def groups(self) -> int:
        return self.bands * -(-self.p.batch // self.per_group)

    @cached_property
    def groups_per_block(self) -> int:
        """Those with which the waves of blocks take least, in chunks."""
        chunks = -(-(self.outputs + self.rows - 1) // self.outputs)
        columns = self.p.groups // CHANNELS * self.grid_strips
        resident = self.target.multiprocessors * self.min_blocks

        def time(n: int) -> int:
            return -(-columns * -(-self.groups // n) // resident) * (BEGIN + n * chunks)

        least = -(-self.groups // 2**15)
        return min(range(least, max(least, min(self.groups, MOST)) + 1), key=time)


ROWS = (Row("depthwise_nhwc_toeplitz", refuses, plan),)
