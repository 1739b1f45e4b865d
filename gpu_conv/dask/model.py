"""ONNX models over a stream of batches: loaded once in every worker process, called once per chunk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem
from typing import TYPE_CHECKING, Any

import dask.array as da
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ..arrays import Array
from ..locks import new_lock
from .checks import check, stand_in

if TYPE_CHECKING:
    from ..graph.ir import Port
    from ..graph.model import Model

_LIMIT = 4  # models kept per process; the oldest goes first

_loaded: dict[str, Model] = {}
_lock = new_lock()


def map_model(
    source: Any, inputs: Mapping[str, da.Array] | da.Array, *, device: str | None = None
) -> dict[str, da.Array]:
    """Run an ONNX model over the first axis of dask arrays, chunk by chunk.

    Every worker process loads the model with its first chunk and keeps it; threads of one process take turns, so give a
    worker one thread. The calling process loads it too, for the types and shapes of the outputs.

    Args:
        source: path of an ``.onnx`` file that every worker can read, or the file's bytes or an ``onnx.ModelProto``,
            which travel to every worker once.
        inputs: dask arrays by input name; a bare one where the model has one input. Chunks of the first axis are the
            batches; other axes are brought into one chunk. NumPy chunks run on the CPU, CuPy chunks on the GPU.
        device: as in :func:`gpu_conv.onnx.load`.

    Returns:
        Dask arrays by output name, chunked like the inputs along the first axis.

    Raises:
        ValueError: the model cannot be run, inputs do not fit, or the model does not declare the shapes of its outputs
            (``gpu_conv.onnx.ModelError``; a TypeError too for element types); before anything is computed.

    Example:
        >>> scores = gpu_conv.dask.map_model("mobilenet_v2.onnx", pictures)["scores"]   # doctest: +SKIP
        >>> best = scores.argmax(axis=1).compute()                                      # doctest: +SKIP
    """
    origin = _Origin.of(source, device)
    model = origin.model()
    if isinstance(inputs, da.Array) and len(model.inputs) == 1:
        inputs = {model.inputs[0].name: inputs}
    elif not isinstance(inputs, Mapping) or not inputs:
        names = ", ".join(repr(port.name) for port in model.inputs)
        raise TypeError(f"inputs must be a dict of dask arrays named {names}, got {type(inputs).__name__}")
    arrays = _batches(inputs)
    chunks = next(iter(arrays.values())).chunks[0]
    for size in set(chunks):  # every rule of the model for its inputs, on arrays without memory
        model._arrays({name: stand_in((size, *a.shape[1:]), a.dtype) for name, a in arrays.items()})
    items = {port.name: _item(port, _symbols(model, arrays), chunks) for port in model.outputs}

    runs = _runs(origin, arrays, items, chunks)
    meta = next(iter(arrays.values()))._meta
    return {port.name: _output(runs, port, items[port.name], chunks, meta) for port in model.outputs}


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from.

    Attributes:
        source: path or bytes.
        token: identifies the contents.
        device: that its convolutions are computed on.
    """

    source: str | bytes
    token: str
    device: str | None

    @classmethod
    def of(cls, source: Any, device: str | None) -> _Origin:
        if isinstance(source, (str, os.PathLike)):
            path = os.path.abspath(os.fspath(source))
            found = os.stat(path)
            return cls(path, tokenize(path, found.st_mtime_ns, found.st_size, device), device)
        if hasattr(source, "SerializeToString"):
            source = source.SerializeToString()
        if not isinstance(source, (bytes, bytearray, memoryview)):
            raise TypeError(f"model must be a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
        return cls(bytes(source), tokenize(bytes(source), device), device)

    def model(self) -> Model:
        """The model, loaded if this process has not got it yet."""
        from ..graph.model import load

        with _lock:
            model = _loaded.get(self.token)
            if model is None:
                model = load(self.source, device=self.device)
                while len(_loaded) >= _LIMIT:
                    del _loaded[next(iter(_loaded))]
                _loaded[self.token] = model
        return model


def _batches(inputs: Mapping[str, da.Array]) -> dict[str, da.Array]:
    """The inputs with one chunk per batch, all chunked as the first of them."""
    for name, array in inputs.items():
        check(array, f"input {name!r}")
    shapes = {name: array.shape for name, array in inputs.items()}
    if any(not shape for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"inputs must have first axes of one length, the batch, got {shapes}")
    batches = next(iter(inputs.values())).chunks[0]
    return {name: a.rechunk({0: batches, **dict.fromkeys(range(1, a.ndim), -1)}) for name, a in inputs.items()}


def _symbols(model: Model, arrays: Mapping[str, da.Array]) -> dict[str, int]:
    """Sizes that the inputs give to the model's symbolic ones, beyond the batch."""
    pairs = (
        (size, n) for p in model.inputs for size, n in zip((p.shape or ())[1:], arrays[p.name].shape[1:], strict=False)
    )
    return {symbol: n for symbol, n in pairs if isinstance(symbol, str)}


def _item(port: Port, symbols: Mapping[str, int], batches: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one item of an output."""
    from ..graph.errors import ModelError

    advice = "; onnx.shape_inference.infer_shapes fills in what follows from the inputs"
    if port.dtype is None or not port.shape:
        raise ModelError(f"output {port} must be declared with its type and a first axis, the batch{advice}")
    first, *rest = port.shape
    if isinstance(first, int) and set(batches) != {first}:
        raise ModelError(f"output {port} has a fixed first axis, but the input's chunks of it are {batches}")
    sizes = tuple(symbols.get(size) if isinstance(size, str) else size for size in rest)
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise ModelError(f"output {port} must be declared with all its sizes but the first{advice}")
    return known


def _runs(
    origin: _Origin, arrays: Mapping[str, da.Array], items: Mapping[str, tuple[int, ...]], batches: tuple[int, ...]
) -> da.Array:
    """One dictionary of outputs per batch."""
    name = "model-" + tokenize(origin.token, {key: array.name for key, array in arrays.items()})
    graph: dict[Any, Any] = {"origin-" + name: origin}
    for i in range(len(batches)):
        blocks = [(a.name, i, *(0,) * (a.ndim - 1)) for a in arrays.values()]
        graph[name, i] = (_Run(tuple(arrays), dict(items)), "origin-" + name, blocks)
    layers = HighLevelGraph.from_collections(name, graph, list(arrays.values()))
    return da.Array(layers, name, ((1,) * len(batches),), dtype=object)


@dataclass(frozen=True)
class _Run:
    """One call of the model: names of its inputs, shapes of one item of its outputs."""

    inputs: tuple[str, ...]
    items: dict[str, tuple[int, ...]]

    def __call__(self, origin: _Origin, blocks: list[Array]) -> dict[str, Array]:
        outputs = origin.model()(dict(zip(self.inputs, blocks, strict=True)))
        for name, item in self.items.items():
            wanted = (len(blocks[0]), *item)
            if outputs[name].shape != wanted:
                raise ValueError(f"output {name!r} of the model has the shape {outputs[name].shape}, not {wanted}")
        return outputs


def _output(runs: da.Array, port: Port, item: tuple[int, ...], batches: tuple[int, ...], meta: Array) -> da.Array:
    name = f"{runs.name}-{port.name}"
    tasks = {(name, i, *(0,) * len(item)): (getitem, (runs.name, i), port.name) for i in range(len(batches))}
    layers = HighLevelGraph.from_collections(name, tasks, [runs])
    made = meta_from_array(meta, ndim=len(item) + 1, dtype=port.dtype)
    return da.Array(layers, name, (batches, *((n,) for n in item)), meta=made)
