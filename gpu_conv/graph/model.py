"""``load`` and ``Model``: the runner's face."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..execute import DEVICES
from .check import check
from .device import namespace
from .errors import ModelError, ModelTypeError
from .execute import Executor
from .fold import drop_unread, fold
from .fuse import fuse
from .ir import Array, Graph, Port
from .limits import Limits
from .narrow import SUPPORTED, narrow
from .parse import read
from .patterns import recognise
from .profile import Profile, Recorder


def load(
    source: str | os.PathLike[str] | bytes | Any,
    *,
    device: str | None = None,
    dtype: Any = None,
    graph: bool = False,
    limits: Limits | None = None,
) -> Model:
    """Load an ONNX model, check it, and prepare it for running.

    Args:
        source: path of an ``.onnx`` file, its bytes, or an ``onnx.ModelProto``. Tensors in files of their own are read
            only from below the model's folder.
        device: where convolutions are computed, as in :func:`gpu_conv.conv`: None follows the arrays, "emulator" runs
            the CUDA kernels on NumPy arrays.
        dtype: "float16" computes a float32 model in float16: weights are rounded once, when the model is loaded, sums
            stay float32. Inputs may be of either type, outputs have the types that the file declares.
        graph: on the GPU, replay each set of input shapes as one CUDA graph from its second call on. Models whose
            shapes depend on values, or that multiply two computed matrices, run step by step all the same:
            ``model.plans`` says so.
        limits: what the file may ask for while it is loaded, for models that somebody else made; see :class:`Limits`.

    Raises:
        ModelError: the model cannot be run; the message names the node or tensor and the reason.
        OSError: the file cannot be read.

    Example:
        >>> model = load("mobilenet_v2.onnx")                   # doctest: +SKIP
        >>> scores = model(picture)["scores"]                   # doctest: +SKIP
    """
    if device is not None and device not in DEVICES:
        raise ValueError(f"device must be None or one of {', '.join(DEVICES)}, got {device!r}")
    computed = np.dtype(dtype or np.float32)
    if computed.name not in SUPPORTED:
        raise TypeError(f"dtype must be None or one of {', '.join(SUPPORTED)}, got {dtype!r}")
    nodes, label = read(source, limits or Limits())
    check(nodes)
    nodes = fuse(drop_unread(recognise(fold(nodes))))
    if computed == np.float32:
        return Model(nodes, label, device, capture=graph)
    return Model(drop_unread(narrow(nodes, computed)), label, device, computed, graph)


@dataclass(frozen=True)
class PlanSummary:
    """What a model keeps for one set of input shapes.

    Attributes:
        inputs: shapes.
        steps: operations of one run.
        buffer_bytes: memory of the results that outlive a step, taken once.
        live_bytes: the most that those needed at one time: what ``buffer_bytes`` cannot go below.
        captured: whether calls replay a CUDA graph.
        uncaptured: why they cannot, if it was tried.
    """

    inputs: tuple[tuple[int, ...], ...]
    steps: int
    buffer_bytes: int
    live_bytes: int
    captured: bool
    uncaptured: str | None


class Model:
    """A model ready to run; made by :func:`load`.

    Attributes:
        inputs, outputs: name, dtype and shape of each, as the file declares them.
    """

    def __init__(
        self,
        graph: Graph,
        label: str,
        device: str | None = None,
        dtype: np.dtype[Any] | None = None,
        capture: bool = False,
    ) -> None:
        self.graph = graph
        self.inputs: tuple[Port, ...] = tuple(graph.inputs)
        self.outputs: tuple[Port, ...] = tuple(graph.outputs)
        self._label = label
        self._dtype = dtype
        self._executor = Executor(graph, device, dtype, capture)

    def __call__(self, inputs: Mapping[str, Array] | Array, *, overwrite: bool = False) -> dict[str, Array]:
        """Run the model.

        The first call with new input shapes plans buffers and packs filters; later calls with them are fast. Calls from
        several threads wait for each other.

        Args:
            inputs: arrays by input name; a bare array where the model has one input. NumPy arrays run on the CPU, CuPy
                arrays on the GPU.
            overwrite: let the next call with these shapes overwrite the results where a CUDA graph is replayed; it
                saves a copy of each.

        Returns:
            New arrays by output name, of the inputs' kind.

        Raises:
            ModelError: missing or unknown names, shapes that do not fit (a ``TypeError`` too for element types).
        """
        results = self._executor(self._arrays(inputs), overwrite=overwrite)
        return {port.name: array for port, array in zip(self.outputs, results, strict=True)}

    @property
    def plans(self) -> tuple[PlanSummary, ...]:
        """What is kept for the input shapes seen last, the latest at the end."""
        return tuple(
            PlanSummary(
                tuple(shape for _, shape, *_ in key),
                len(plan.steps),
                plan.nbytes,
                plan.live,
                plan.captured is not None,
                plan.uncaptured,
            )
            for key, plan in self._executor.plans
        )

    def profile(self, inputs: Mapping[str, Array] | Array, repeat: int = 5) -> Profile:
        """Run the model a few times and report time, kernel and bytes of each step; print the result for a table.

        Args:
            repeat: number of runs; each step's time is its median.
        """
        if repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {repeat}")
        arrays = self._arrays(inputs)
        recorder = Recorder()
        for _ in range(repeat):
            recorder.start()
            self._executor(arrays, recorder)
        return recorder.profile()

    def _narrow(self, port: Port) -> Any:
        """The other type that an input may have."""
        return self._dtype if self._dtype is not None and port.dtype == np.float32 else port.dtype

    def __repr__(self) -> str:
        ports = (", ".join(map(str, p)) for p in (self.inputs, self.outputs))
        return f"<Model {self._label}: {' -> '.join(ports)}; {len(self.graph.nodes)} nodes>"

    def _arrays(self, inputs: Mapping[str, Array] | Array) -> list[Array]:
        if not isinstance(inputs, Mapping):
            if len(self.inputs) != 1:
                names = ", ".join(repr(p.name) for p in self.inputs)
                raise ModelError(f"{self._label} has {len(self.inputs)} inputs ({names}): pass a dict of arrays")
            inputs = {self.inputs[0].name: inputs}
        known = {port.name for port in self.inputs}
        for name in inputs:
            if name not in known:
                raise ModelError(
                    f"{self._label} has no input {name!r}; its inputs are {'; '.join(map(str, self.inputs))}"
                )
        sizes: dict[str, tuple[int, str]] = {}
        return [self._array(port, inputs, sizes) for port in self.inputs]

    def _array(self, port: Port, inputs: Mapping[str, Array], sizes: dict[str, tuple[int, str]]) -> Array:
        """One input, checked against what the model declares."""
        if port.name not in inputs:
            raise ModelError(f"{self._label}: input {port} is missing")
        array = inputs[port.name]
        if isinstance(array, (bool, int, float, np.generic)):
            array = np.asarray(array, port.dtype)
        if not all(hasattr(array, a) for a in ("shape", "dtype", "strides")):
            raise ModelTypeError(f"input {port.name!r} must be a NumPy or CuPy array, got {type(array).__name__}")
        if namespace(array).__name__ not in ("numpy", "cupy"):
            raise ModelTypeError(f"input {port.name!r} must be a NumPy or CuPy array, got {type(array)}")
        if port.dtype is not None and array.dtype not in (port.dtype, self._narrow(port)):
            raise ModelTypeError(
                f"input {port} got an array of {array.dtype}; array.astype({port.dtype.name!r}) would fit"
            )
        if port.shape is None:
            return array
        if len(array.shape) != len(port.shape):
            raise ModelError(f"input {port} got an array of shape {array.shape}")
        for axis, (given, wanted) in enumerate(zip(array.shape, port.shape, strict=True)):
            if isinstance(wanted, str):
                first, where = sizes.setdefault(wanted, (given, port.name))
                if first != given:
                    other = f"{wanted!r} is {first} in input {where!r}"
                    raise ModelError(f"input {port} got an array of shape {array.shape}, but {other}")
            elif wanted is not None and given != wanted:
                raise ModelError(f"input {port} got an array of shape {array.shape}: axis {axis} must be {wanted}")
        return array
