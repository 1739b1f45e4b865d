"""From plans to a dask graph: one task per output chunk, and one per part of an input chunk that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any

import dask.array as da
import numpy as np
from dask.array.chunk import getitem
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from .. import ops
from ..arrays import Array, library, namespace
from .tiles import ALL, Part, Range, pieces


@dataclass(frozen=True)
class Filter:
    """How a filter is cut: as an array with an explicit group axis.

    Attributes:
        layout: with the letter ``g``.
        split: the axis that holds the filters (or, transposed, the channels) of all groups; None if ``g`` is its own.
    """

    layout: str
    split: int | None

    @classmethod
    def of(cls, layout: str, transposed: bool) -> Filter:
        """The filter of an operator; ``i`` of a transposed convolution counts the channels of all groups."""
        if "g" in layout:
            return cls(layout, None)
        letter = "i" if transposed else "o"
        return cls(layout.replace(letter, "g" + letter), layout.index(letter))

    def cut(self, w: Array, groups: int, part: Part) -> Array:
        """The filters of some output channels."""
        if self.split is not None:
            before, size, after = w.shape[: self.split], w.shape[self.split], w.shape[self.split + 1 :]
            w = w.reshape(*before, groups, size // groups, *after)
        taken = {"g": part.groups, "o": part.filters}
        return w[tuple(slice(*taken.get(letter, ALL)) for letter in self.layout)]


@dataclass(frozen=True)
class Operator:
    """What all tiles of one call have in common.

    Attributes:
        filter: how ``w`` is cut.
        groups: of the whole.
        of_batch: whether they are batch groups.
        options: those of :func:`gpu_conv.conv` that are the same for every tile.
        per_channel: those that may hold one number per output channel.
    """

    filter: Filter
    groups: int
    of_batch: bool
    options: dict[str, Any]
    per_channel: dict[str, Any]

    def __call__(
        self, x: Array, w: Array, bias: Array | None, residual: Array | None, part: Part, padding: tuple[Any, ...]
    ) -> Array:
        """One tile."""
        xp = namespace(library(x, "a chunk of x"))
        w, bias, residual = (None if a is None else xp.asarray(a) for a in (w, bias, residual))
        filters = self.filter.cut(w, self.groups, part)
        groups = filters.shape[self.filter.layout.index("g")]
        return ops.conv(
            x,
            filters,
            _cut(bias, part.channels),
            padding=padding,
            residual=residual,
            filter_layout=self.filter.layout,
            **{"batch_groups" if self.of_batch else "groups": groups},
            **{name: _cut(value, part.channels) for name, value in self.per_channel.items()},
            **self.options,
        )


def _cut(value: Any, channels: Range) -> Any:
    """The numbers of some output channels of a value that may be one for all, or of each of a tuple of values."""
    if isinstance(value, tuple):
        return tuple(_cut(v, channels) for v in value)
    return value.reshape(-1)[slice(*channels)] if getattr(value, "size", 1) > 1 else value


@dataclass(frozen=True)
class Tile:
    """The task of one output chunk.

    Attributes:
        operator: what is computed.
        channels: the plan along the channel axis.
        padding: of this tile.
        lengths: sizes of the pieces of the input along each of its axes, in the input's layout.
    """

    operator: Operator
    channels: Part
    padding: tuple[tuple[int, int], ...]
    lengths: tuple[tuple[int, ...], ...]

    def __call__(self, parts: Sequence[Array], w: Array, bias: Array | None, residual: Array | None) -> Array:
        """Join the pieces and convolve."""
        return self.operator(self._join(parts), w, bias, residual, self.channels, self.padding)

    def _join(self, parts: Sequence[Array]) -> Array:
        for shape, piece in zip(product(*self.lengths), parts, strict=True):
            if tuple(piece.shape) != shape:
                raise ValueError(f"x declares a part {shape} of a chunk, but what was computed is {tuple(piece.shape)}")
        if len(parts) == 1:
            return parts[0]
        xp = namespace(library(parts[0], "a chunk of x"))
        whole = xp.empty([sum(axis) for axis in self.lengths], parts[0].dtype)
        slices = [[slice(a, b) for a, b in pairwise(accumulate(axis, initial=0))] for axis in self.lengths]
        for target, piece in zip(product(*slices), parts, strict=True):
            whole[target] = piece
        return whole


@dataclass(frozen=True)
class Grid:
    """The output's chunks and what each of them reads.

    Attributes:
        x: the input.
        parts: the plan of every axis: batch, channels, spatial axes.
        x_axes, y_axes: where these axes lie in the input and in the output.
    """

    x: da.Array
    parts: Sequence[Sequence[Part]]
    x_axes: Sequence[int]
    y_axes: Sequence[int]

    def build(
        self, operator: Operator, dtype: np.dtype[Any], w: da.Array, bias: da.Array | None, residual: Any
    ) -> da.Array:
        """The output. Nothing is computed."""
        chunks = tuple(tuple(part.length for part in self.parts[axis]) for axis in _order(self.y_axes))
        if residual is not None:
            residual = da.asarray(residual).rechunk(chunks)
        arrays = [a for a in (self.x, w, bias, residual) if a is not None]
        name = "conv-" + tokenize([a.name for a in arrays], self.parts, operator)
        fixed = [None if a is None else (a.name, *(0,) * a.ndim) for a in (w, bias)]
        graph = dict(self._tasks(name, operator, fixed, None if residual is None else residual.name))
        meta = meta_from_array(self.x._meta, ndim=len(chunks), dtype=dtype)
        return da.Array(HighLevelGraph.from_collections(name, graph, arrays), name, chunks, meta=meta)

    def _tasks(
        self, name: str, operator: Operator, fixed: list[Any], residual: str | None
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Keys and tasks."""
        read = [self._pieces(axis, parts) for axis, parts in enumerate(self.parts)]
        x_order, y_order = _order(self.x_axes), _order(self.y_axes)
        for index in product(*(range(len(parts)) for parts in self.parts)):
            found = [read[axis][index[axis]] for axis in x_order]
            keys = []
            for piece in product(*found):
                key, task = self._piece(name, piece)
                keys.append(key)
                if task is not None:
                    yield key, task
            lengths = tuple(tuple(b - a for _, (a, b) in axis) for axis in found)
            _, channels, *spatial = (parts[i] for parts, i in zip(self.parts, index, strict=True))
            tile = Tile(operator, channels, tuple(part.padding for part in spatial), lengths)
            block = tuple(index[axis] for axis in y_order)
            yield (name, *block), (tile, keys, *fixed, residual and (residual, *block))

    def _pieces(self, axis: int, parts: Sequence[Part]) -> list[list[tuple[int, tuple[int, int]]]]:
        edges = list(accumulate(self.x.chunks[self.x_axes[axis]], initial=0))
        return [pieces(edges, *part.read) for part in parts]

    def _piece(self, name: str, piece: tuple[tuple[int, tuple[int, int]], ...]) -> tuple[tuple[Any, ...], Any]:
        """Key of a part of an input chunk, and the task that cuts it out where its chunk lies; None for a whole one."""
        source = (self.x.name, *(i for i, _ in piece))
        if all((a, b) == (0, chunks[i]) for chunks, (i, (a, b)) in zip(self.x.chunks, piece, strict=True)):
            return source, None
        bounds = (edge for _, pair in piece for edge in pair)
        return ("piece-" + name, *source[1:], *bounds), (getitem, source, tuple(slice(a, b) for _, (a, b) in piece))


def _order(axes: Sequence[int]) -> list[int]:
    """The axes, batch first, in the order in which they lie in an array."""
    return sorted(range(len(axes)), key=axes.__getitem__)
