"""What the shape of a problem decides for the Toeplitz kernels: windows, streams, the ring of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..launch import Target
from ..problem import ITEMSIZE, ConvProblem, Tensor

WARPS = 4  # kToeplitzWarps
UNITS = 16  # rows of a product: column blocks that a warp computes at a time
COLUMNS = 8  # columns of a product: outputs of a column block
STEP = 16  # columns of x in one product


class Tile(NamedTuple):
    """How a filter is compiled.

    Attributes:
        rows: most filter rows; ``depthwise_toeplitz`` is unrolled over the true number.
        stride: of rows and columns.
        steps: most products along a filter row.
        min_blocks: blocks per multiprocessor to compile for; it caps the registers at 65536 / (128 * min_blocks). One
            less for each of: x is read element by element, there is a residual, the activation is gelu.
        tall: whether this is ``depthwise_toeplitz_tall``, which keeps the filter in shared memory.
    """

    rows: int
    stride: int
    steps: int
    min_blocks: int
    tall: bool = False


# The first row that covers the filter. Registers are the filter (2 * rows * steps), the sums (4 * rows / stride) and 60
# to 80 more: 84 to 100 for 3x3, 94 for 5x5, 106 for 7x7. The caps leave room for other compilers; they are no aim.
TILES = (
    Tile(3, 1, 3, 4),
    Tile(1, 1, 6, 4),
    Tile(1, 1, 10, 2),
    Tile(5, 1, 1, 4),
    Tile(5, 1, 3, 3),
    Tile(7, 1, 1, 4),
    Tile(7, 1, 2, 2),
    Tile(9, 1, 2, 2),
    Tile(13, 1, 1, 2),
    Tile(3, 2, 2, 4),
    Tile(3, 2, 3, 3),
    Tile(5, 2, 2, 3),
    Tile(7, 2, 3, 2),
    Tile(11, 2, 2, 1),
    Tile(63, 1, 5, 3, tall=True),
)
STAGES = (4, 3, 2)  # chunks of rows in a warp's ring: the most for which min_blocks blocks share a multiprocessor
TALL_CHUNK = 4  # kInputs of depthwise_toeplitz_tall

# A warp starts with some 500 instructions, a chunk takes 300 to 400: it gets CHUNKS of them, unless that leaves less
# than one warp for every place of the device. Where there are too few streams for that, they are cut into bands of at
# least SHORT rows. Four chunks instead of 16 took 14x14x512 with 3x3 from 72 to 66 us and 14x14x384 with 7x7 from 58 to
# 50 (H100, float16, batch 256).
CHUNKS, SHORT = 4, 4


def two(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Rows and columns of a problem that may have columns only."""
    return (fill, *values)[-2:]  # type: ignore[return-value]


def _vector(t: Tensor, widest: int) -> int:
    """Elements per access along the last axis: they divide a row, and every row is aligned to them."""
    strides = [s for s, n in zip(t.strides[:-1], t.shape[:-1], strict=True) if n > 1]
    size = ITEMSIZE[t.dtype]
    candidates = (v for v in (4, 2, 1) if v <= widest)
    return next(v for v in candidates if t.align >= v * size and all(s % v == 0 for s in (t.shape[-1], *strides)))


@dataclass(frozen=True)
class Geometry:
    """What the shape alone decides: windows, streams, the ring of rows."""

    p: ConvProblem
    target: Target

    @cached_property
    def flat(self) -> bool:
        """Whether the images are the rows of one image: they and the filter have one row, and there are many."""
        return self._single and not self.shift

    @cached_property
    def shift(self) -> int:
        """Columns between rows that are strips of one row: of few images only, it takes a tenth more slots; else 0."""
        return UNITS * COLUMNS if self._single and self.all_strips > self.p.batch else 0

    @cached_property
    def _single(self) -> bool:
        rows = two(self.p.in_spatial, 1)[0], two(self.p.out_spatial, 1)[0], self.rows, self.stride
        return rows == (1, 1, 1, 1)

    @cached_property
    def images(self) -> int:
        return 1 if self.flat else self.p.batch

    @cached_property
    def size(self) -> tuple[int, int]:
        rows, columns = two(self.p.in_spatial, 1)
        return self._rows(rows), columns

    @cached_property
    def out(self) -> tuple[int, int]:
        rows, columns = two(self.p.out_spatial, 1)
        return self._rows(rows), columns

    def _rows(self, rows: int) -> int:
        if self.flat:
            return self.p.batch
        return self.all_strips if self.shift else rows

    def row_stride(self, t: Tensor) -> int:
        """Elements between rows of x, y or the residual."""
        if self.shift:
            return self.shift
        return t.strides[0] if self.flat else two(t.strides[3:], 0)[0]

    @cached_property
    def padding(self) -> tuple[int, int]:
        return two(tuple(lo for lo, _ in self.p.padding), 0)

    @property
    def rows(self) -> int:
        return two(self.p.filter, 1)[0]

    @property
    def stride(self) -> int:
        return self.p.strides[-1]

    @cached_property
    def vector(self) -> int:
        """Columns per copy."""
        return _vector(self.p.x, 4)

    @cached_property
    def y_vector(self) -> int:
        return min(_vector(t, 2) for t in (self.p.y, self.p.residual or self.p.y))

    @cached_property
    def left(self) -> int:
        """Columns between the start of the first window and the first column of x: a multiple of the vector.

        They need not reach further than the windows of the other column blocks do.
        """
        left = self.padding[1] + -self.padding[1] % self.vector
        return min(left, COLUMNS * self.stride * (self.blocks - 1)) if self.all_strips == 1 else left

    @property
    def lead(self) -> int:
        """Column of a window where the filter of its first output starts."""
        return self.left - self.padding[1]

    @cached_property
    def steps(self) -> int:
        columns = (COLUMNS - 1) * self.stride + self.p.filter[-1] + self.lead
        if self.all_strips == 1:
            columns = min(columns, self.size[1] + self.left)
        return max(1, -(-columns // STEP))

    @cached_property
    def tile(self) -> Tile | None:
        size = self.rows, self.stride, self.steps
        return next((t for t in TILES if size[0] <= t.rows and size[1] == t.stride and size[2] <= t.steps), None)

    @property
    def tall(self) -> bool:
        return self.tile is not None and self.tile.tall

    @cached_property
    def min_blocks(self) -> int:
        assert self.tile is not None
        gelu = self.p.activation is not None and self.p.activation.name == "gelu"  # its error function takes 8 more
        return max(1, self.tile.min_blocks - (self.vector == 1) - (self.p.residual is not None) - gelu)

    @cached_property
    def all_strips(self) -> int:
        """Of columns: what 16 column blocks do not cover is another block's, or the next row."""
        return -(-self.p.out_spatial[-1] // (UNITS * COLUMNS))

    @property
    def strips(self) -> int:
        """Those that are other blocks' work."""
        return 1 if self.shift else self.all_strips

    @cached_property
    def blocks(self) -> int:
        return UNITS if self.shift else -(-self.out[1] // (self.strips * COLUMNS))

    @cached_property
    def tiles(self) -> int:
        """Products side by side; ``tall`` ones take two where there are streams for them."""
        return 2 if self.tall and self.images * self.blocks > UNITS else 1

    @cached_property
    def per_group(self) -> int:
        """Streams that a warp walks down together: as many as its products have rows for, or shared memory."""
        room = self.target.shared_per_block - self.table_bytes
        return max(1, min(UNITS * self.tiles // self.blocks, room // (WARPS * STAGES[-1] * self.stream_bytes)))

    @cached_property
    def window(self) -> int:
        """Columns of x under the windows of a strip."""
        return (self.blocks - 1) * COLUMNS * self.stride + self.steps * STEP

    @cached_property
    def copies(self) -> int:
        """Copies of a lane per row; a power of two, and never fewer than most maps need: fewer kernels to compile."""
        vectors = (self.window if self.shift else min(self.window, self.size[1])) // self.vector
        needed = -(-self.per_group * vectors // 32)
        return max(4 * self.stride * self.tiles // self.vector, 1 << (needed - 1).bit_length())

    @cached_property
    def stream_pitch(self) -> int:
        """Bytes; an odd number of 16-byte lines, so that the lines of neighbouring streams lie in different banks."""
        return (self.window * 2 // 16 | 1) * 16

    @property
    def live(self) -> int:
        """Output rows that one input row feeds: ``ToeplitzWalk::kLive``."""
        return -(-self.rows // self.stride)

    @cached_property
    def repeats(self) -> int:
        """Makes chunks of at least 4 rows, so that memory is read in long runs; half as many if a tenth is gained."""
        most = -(-4 // self.live)
        half = -(-most // 2)
        return half if self.chunks(self.out[0], half) * half < 0.9 * self.chunks(self.out[0], most) * most else most

    def chunks(self, band: int, repeats: int) -> int:
        """Chunks that a band takes; its first output row is complete after ``live`` steps."""
        return -(-(band + self.live - 1) // (self.live * repeats))

    @property
    def stream_bytes(self) -> int:
        """One chunk of one stream."""
        rows = TALL_CHUNK if self.tall else self.live * self.repeats * self.stride
        return rows * self.stream_pitch

    @property
    def table_bytes(self) -> int:
        """The bands of ``depthwise_toeplitz_tall``: 8 bytes per lane, product and filter row."""
        return self.rows * self.steps * 32 * 8 if self.tall else 0

    @cached_property
    def stages(self) -> int:
        if self.vector == 1:  # plain loads do not run ahead
            return STAGES[-1]
        limit = self.target.shared_per_block // max(2, self.min_blocks) - 1024  # that much the system takes per block
        chunk = WARPS * self.per_group * self.stream_bytes
        return next((s for s in STAGES if self.table_bytes + s * chunk <= limit), STAGES[-1])

    @property
    def shared_bytes(self) -> int:
        return self.table_bytes + WARPS * self.stages * self.per_group * self.stream_bytes

    @cached_property
    def band(self) -> int:
        """Output rows of ``depthwise_toeplitz_tall``: 7 or 8, whichever wastes fewer."""
        return min((8, 7), key=lambda n: -(-self.out[0] // n) * n)

    @cached_property
    def split(self) -> Split:
        resident = self.target.multiprocessors * self.min_blocks * WARPS
        walks = self.p.out_channels * self.strips
        if self.tall:
            bands, band = -(-self.out[0] // self.band), self.band
            groups = bands * -(-self.images // self.per_group)
            chunks = -(-(band + self.rows - 1) // TALL_CHUNK)
        else:
            wanted = max(1, resident // walks) * self.per_group // self.images
            band = -(-self.out[0] // max(1, min(-(-self.out[0] // SHORT), wanted)))
            bands = -(-self.out[0] // band)
            groups = -(-self.images * bands // self.per_group)
            chunks = self.chunks(band, self.repeats)
        per_warp = max(1, min(-(-CHUNKS // chunks), groups * walks // resident), -(-groups // (WARPS * 2**15)))
        per_warp = -(-groups // (WARPS * -(-groups // (WARPS * per_warp))))  # no idle warps in the last block
        return Split(self.images * (1 if self.tall else bands), bands, band, groups, chunks, per_warp)


class Split(NamedTuple):
    """How the images of a channel are cut into streams, and these dealt to warps: the parameters of the same names."""

    streams: int
    bands: int
    band: int
    groups: int
    chunks: int
    groups_per_warp: int
