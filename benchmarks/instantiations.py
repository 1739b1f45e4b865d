"""Which kernels the dispatch table can ask for: the set that ``compile_matrix.py`` compiles for every architecture.

Filters, strides, vector widths and tiles are template arguments: their product has no end. So the table itself is
asked, for sets of problems that together reach every tile of every family:

- ``corpus``: the tests' cases, in every row that accepts them;
- ``layers``: real layers (``layers.json``) in three dtypes, two layouts and their batches, as dispatch runs them;
- ``decoders``: transposed layers, all phases in one launch, with every tile of the matrix products;
- ``inverted_residuals``: chains for the kernel of that name, with every tile that fits;
- ``graph_steps``: what the runner of models has kernels for beside convolutions;
- ``tiles``: a grid over the filters, strides, sizes, dtypes and layouts that tile tables tell apart, in every row that
  accepts them, and with every tile of the matrix products. The epilogues are those that need most registers: gelu
  (sm_90a, float16: 128 where the others need 72 to 126) and softplus, alone and with a residual.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

from rows import BOTH, FLOATS, LAYERS, problem

from gpu_conv import dispatch
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.families import (
    channels_last,
    global_average,
    implicit_gemm,
    implicit_gemm_tiles,
    inverted_residual,
    pointwise,
    pointwise_tiles,
)
from gpu_conv.families.inverted_residual_model import Chain, tiles
from gpu_conv.launch import Launch, Target
from gpu_conv.layout import contiguous_strides
from gpu_conv.problem import ConvProblem, Tensor

Shape = tuple[int, ...]
Key = tuple[str, str]  # file below kernels/, name expression


@dataclass(frozen=True)
class GraphStep:
    """A step of a model that is no convolution: its family, what it reads and what it writes."""

    family: ModuleType
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, family: ModuleType, x: Shape, x_dtype: str, y: Shape, y_dtype: str) -> GraphStep:
        """For dense arrays."""
        arrays = ((x_dtype, x), (y_dtype, y))
        return cls(family, *(Tensor(dtype, shape, contiguous_strides(shape)) for dtype, shape in arrays))


@dataclass(frozen=True)
class Request:
    """One problem on one architecture, and which launches of the table it stands for."""

    problem: Any  # ConvProblem, the Chain of an inverted residual, or the GraphStep of a model
    arch: str
    ask: Callable[[Any, Target], Iterable[Launch]]

    def launches(self) -> list[Launch]:
        return list(self.ask(self.problem, KNOWN_TARGETS[self.arch]))


def requests(archs: Iterable[str]) -> Iterator[Request]:
    """Everything that is asked, architecture by architecture; planning happens in ``Request.launches``."""
    sets: tuple[tuple[Iterable[Any], Any], ...] = (
        *((corpus(), every_row), (layers(), chosen), (grid(), every_row), (products(), every_tile)),
        (patches(), every_tile),
        (decoders((1,)), every_tile),
        (decoders((1, 32)), chosen),
        (inverted_residuals(), every_tile_of_chain),
        (graph_steps(), step),
    )
    asked = [(problem, ask) for problems, ask in sets for problem in problems]
    for arch in archs:
        yield from (Request(problem, arch, ask) for problem, ask in asked)


def instantiations(archs: Iterable[str]) -> Iterator[tuple[str, Key]]:
    """(architecture, instantiation), each once."""
    seen = set()
    for request in requests(archs):
        for launch in request.launches():
            found = request.arch, (launch.source, launch.name_expression)
            if found not in seen:
                seen.add(found)
                yield found


def sample(count: int, seed: int, archs: Iterable[str]) -> Iterator[tuple[str, Key]]:
    """``count`` of them: one launch of each of as many requests, both drawn at random."""
    rng, seen = random.Random(seed), set()
    drawn = list(requests(archs))
    rng.shuffle(drawn)
    for request in drawn:
        if len(seen) >= count:
            return
        launches = request.launches()
        launch = rng.choice(launches) if launches else None
        if launch and (found := (request.arch, (launch.source, launch.name_expression))) not in seen:
            seen.add(found)
            yield found


def every_row(problem: ConvProblem, target: Target) -> Iterator[Launch]:
    """One launch of every row that does not refuse: what ``kernel="name"`` reaches."""
    return (row.plan(problem, target) for row in dispatch.TABLE if row.refuses(problem, target) is None)


def chosen(problem: ConvProblem, target: Target) -> Iterator[Launch]:
    """What runs where no kernel is forced."""
    return (step.launch for step in dispatch.steps(problem, target))


def every_tile(problem: ConvProblem, target: Target) -> Iterator[Launch]:
    """The matrix products with every tile that fits the device; another size would choose another of them."""
    for family in (pointwise, implicit_gemm):
        if family.refuses(problem, target) is None:
            yield from (family.plan(problem, target, tile) for tile in family.tiles(problem, target))


def every_tile_of_chain(chain: Chain, target: Target) -> Iterator[Launch]:
    """The kernel of inverted residuals with every tile that fits."""
    if inverted_residual.refuses(chain, target) is None:
        yield from (inverted_residual.plan(chain, target, t) for t in tiles(chain, target))


def step(asked: GraphStep, target: Target) -> Iterator[Launch]:
    """The one launch of a step."""
    yield asked.family.plan(asked.x, asked.y, target)


def corpus() -> Iterator[ConvProblem]:
    """The tests' cases."""
    from tests.cases import CASES, fill

    return (fill(case, exact=True).call.problem for case in CASES)


def layers() -> Iterator[ConvProblem]:
    """The layers of real models, at every batch at which they are measured."""
    for row, dtype, last in product(LAYERS, FLOATS, BOTH):
        yield from (problem(row, dtype, last, batch) for batch in row["batches"])


def grid() -> Iterator[ConvProblem]:
    """Filters and sizes that the tables of tiles tell apart. A batch of 512 takes the tallest bands, 1 the lowest."""
    for geometry, last, batch in product(_geometries(), BOTH, (1, 512)):
        for dtype, epilogue in product(FLOATS, (("gelu",), ("softplus", "add"))):
            yield problem(geometry | {"epilogue": epilogue}, dtype, last, batch)
        yield problem(geometry | {"epilogue": ()}, "uint8", last, batch, x_zero_point=3, requantize=(0.5, 128))


def _geometries() -> Iterator[dict[str, Any]]:
    for (channels, groups), stride in product(((128, 32), (256, 32), (192, 4), (64, 1), (3, 1)), (1, 2)):
        yield _geometry(channels, max(channels, 32), groups, (28, 28), (3, 3), stride)
    squares = ((3, 3), (5, 5), (7, 7), (1, 7), (7, 1))
    for filter_, size, stride in product(squares, (56, 13), (1, 2)):  # rows that are whole vectors, and others
        yield _geometry(96, 96, 96, (size, size), filter_, stride)
    for filter_, size in (((9, 9), 28), ((13, 13), 28), ((31, 31), 28), ((57, 57), 64)):
        yield _geometry(96, 96, 96, (size, size), filter_)
    for stride in (1, 2):
        yield _geometry(96, 96, 96, (8, 28, 28), (3, 3, 3), stride)
        yield _geometry(35, 70, 35, (28, 27), (3, 3), stride)  # a multiplier, and channels that are no vector
    for taps in (4, 9, 33, 65, 97, 129):
        yield _geometry(96, 96, 96, (2048,), (taps,)) | {"pad": (taps - 1,), "causal": True}


def _geometry(
    channels: int, filters: int, groups: int, spatial: tuple[int, ...], filter_: tuple[int, ...], stride: int = 1
) -> dict[str, Any]:
    """A row as in ``layers.json``."""
    pad, strides, dilation = tuple(k // 2 for k in filter_), (stride,) * len(spatial), (1,) * len(spatial)
    sizes = {"C": channels, "K": filters, "groups": groups, "in_spatial": spatial, "filter": filter_}
    return sizes | {"pad": pad, "stride": strides, "dilation": dilation, "causal": False}


def products() -> Iterator[ConvProblem]:
    """Products for the tiles of the pointwise kernel: every dtype and engine, pixels in rows and in columns."""
    kinds = [(dtype, "gelu", {}) for dtype in FLOATS] + [("float32", "gelu", {"precision": "tf32"})]
    kinds += [(dtype, ("clip", -9, 9), zero) for dtype in ("int8", "uint8") for zero in ({}, {"w_zero_point": 3})]
    for (dtype, activation, extra), last, residual, size in product(kinds, BOTH, BOTH, (28, 7)):
        # Planes of 7x7 are gathered and stored element by element.
        row = _geometry(64, 64, 1, (size, size), (1, 1)) | {"epilogue": ("add",) * residual}
        yield problem(row, dtype, last, activation=activation, **extra)


def patches() -> Iterator[ConvProblem]:
    """Convolutions for the tiles of the implicit GEMM: four channels at a time, single ones, three axes."""
    dense, stem = _geometry(64, 64, 1, (28, 28), (3, 3)), _geometry(3, 64, 1, (28, 28), (3, 3))
    volume = _geometry(64, 64, 1, (8, 14, 14), (3, 3, 3))
    kinds = [(dense, "float32"), (stem, "float32"), (volume, "float32"), (volume, "float16"), (volume, "bfloat16")]
    for (geometry, dtype), last, epilogue in product(kinds, BOTH, (("gelu",), ("softplus", "add"))):
        yield problem(geometry | {"epilogue": epilogue}, dtype, last)


def decoders(batches: Shape) -> Iterator[ConvProblem]:
    """Stride 2: phases of one tap, of several, of different numbers; channels by four and one by one; three axes."""
    square, row, volume = (28, 28), (200,), (8, 14, 14)
    kinds = [(64, square, k, dtype) for k in (2, 3, 4) for dtype in ("float32", "float16")]
    kinds += [(3, square, 3, "float32"), (64, row, 4, "float16")]
    kinds += [(64, volume, 3, "float32"), (64, volume, 2, "float16")]
    for (channels, size, k, dtype), last, batch in product(kinds, BOTH, batches):
        geometry = _geometry(channels, 64, 1, size, (k,) * len(size), 2) | {"pad": ((k - 1) // 2,) * len(size)}
        for epilogue in (("gelu",), ("softplus", "add")):
            options = {"transposed": True, "output_padding": k % 2}
            yield problem(geometry | {"epilogue": epilogue}, dtype, last, batch, **options)


def inverted_residuals() -> Iterator[Chain]:
    """Few and many channels, with and without expansion and residual: (in, expanded, out), stride, activation."""
    sizes = (
        (16, 96, 24),
        (32, 192, 32),
        (64, 384, 64),
        (96, 576, 96),
        (96, 576, 160),
        (160, 960, 160),
        (160, 960, 320),
    )
    for (c, e, o), stride, activation in product(((32, 32, 16), (56, 96, 40), *sizes), (1, 2), ("relu6", "gelu")):
        size, same = (14, 14), stride == 1 and c == o
        after = {"epilogue": (activation,)}
        expand = problem(_geometry(c, e, 1, size, (1, 1)) | after, "float16", True)
        depthwise = problem(_geometry(e, e, e, size, (3, 3), stride) | after, "float16", True)
        narrow = _geometry(e, o, 1, depthwise.out_spatial, (1, 1)) | {"epilogue": ("add",) * same}
        project = problem(narrow, "float16", True)
        yield Chain(None if c == e else expand, depthwise, project)


def graph_steps() -> Iterator[GraphStep]:
    """Every number of planes, small and large pictures; means of every width of vectors and of runs."""
    for channels, given, wanted, size in product((1, 2, 3, 4), FLOATS, FLOATS, (8, 2048)):
        yield GraphStep.of(channels_last, (1, channels, size, size), given, (1, size, size, channels), wanted)
    for vectors, width, dtype, batch in product((1, 3, 5, 9, 17, 33), (1, 2, 4, 8), (*FLOATS, "float64"), (1, 512)):
        channels = vectors * width
        yield GraphStep.of(global_average, (batch, 64, 64, channels), dtype, (batch, 1, 1, channels), dtype)


def tiles_of_products() -> set[str]:
    """How the name expressions spell the tiles of the pointwise kernel and of the implicit GEMM."""
    return {
        tile.cpp
        for table in (pointwise_tiles.TILES, implicit_gemm_tiles.TILES)
        for tiles in table.values()
        for tile in tiles
    }
