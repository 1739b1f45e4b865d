"""The backend interface of the onnx package: what its own test suite, and tools written against it, call."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend as Base
from onnx.backend.base import BackendRep, namedtupledict

from ..cuda import device as cuda_device
from ..cuda.errors import CudaUnavailable
from .errors import ModelError
from .ir import Array
from .model import Model, load
from .parse import newest_opset

KINDS = ("CPU", "CUDA", "EMULATOR")
_IR_VERSION = 8  # of the model around a single node


class Backend(Base):
    """ONNX's ``Backend``: class methods that take a model or a node, arrays and a device.

    A device is "CPU", "CUDA", "CUDA:1" or, beyond ONNX, "EMULATOR": the CUDA kernels on the CPU.

    Example:
        >>> import numpy as np, onnx, gpu_conv.onnx
        >>> node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1])
        >>> x, w = np.arange(5, dtype=np.float32).reshape(1, 1, 5), np.ones((1, 1, 3), np.float32)
        >>> gpu_conv.onnx.Backend.run_node(node, [x, w])["y"]
        array([[[1., 3., 6., 9., 7.]]], dtype=float32)
    """

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model can be run, as far as that can be told without inputs."""
        try:
            cls.prepare(model, device, **kwargs)
        except ModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Load a model for a device. ``kwargs`` are none: every option of other backends is refused.

        Raises:
            ModelError: the model cannot be run; the message names the node or tensor and the reason.
            ValueError: an unknown device.
            CudaUnavailable: there is no such GPU, or no CuPy.
        """
        if kwargs:
            raise TypeError(f"prepare takes a model and a device, no {', '.join(kwargs)}")
        kind, number = _parsed(device)
        if kind == "CUDA":
            cuda_device.target(number)
        return Prepared(load(model, device="emulator" if kind == "EMULATOR" else None), kind, number)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """``prepare`` and run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a single node.

        Args:
            inputs: arrays by name, or in the order of the node's inputs, absent ones left out.
            outputs_info: not needed.
            kwargs: ``opset_version``; default the newest that the runner and the installed onnx know.
        """
        version = kwargs.pop("opset_version", newest_opset())
        arrays = _by_name([name for name in node.input if name], inputs)
        ports = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], node.op_type, ports, outputs)
        opset = helper.make_opsetid(node.domain, version)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return cls.prepare(model, device, **kwargs).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether this machine has the device; False for one of an unknown kind."""
        try:
            kind, number = _parsed(device)
            if kind == "CUDA":
                cuda_device.target(number)
        except (ValueError, CudaUnavailable):
            return False
        return kind != "EMULATOR" or importlib.util.find_spec("cuda") is not None


prepare, run_model, run_node = Backend.prepare, Backend.run_model, Backend.run_node
is_compatible, supports_device = Backend.is_compatible, Backend.supports_device


class Prepared(BackendRep):
    """A model on a device.

    Attributes:
        model: the runner's model, for its ports and its profile.
    """

    def __init__(self, model: Model, kind: str, number: int) -> None:
        self.model = model
        self._kind = kind
        self._number = number
        self._outputs = namedtupledict("Outputs", [port.name for port in model.outputs])

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Args:
            inputs: arrays by name, or in the order of the model's inputs, or the one array. On "CUDA", NumPy arrays are
                copied to the GPU, and the results back.

        Returns:
            A tuple of the outputs, which are also found by name, of the inputs' kind.
        """
        if kwargs:
            raise TypeError(f"run takes inputs, no {', '.join(kwargs)}")
        arrays = _by_name([port.name for port in self.model.inputs], inputs)
        results = self._on_gpu(arrays) if self._kind == "CUDA" else self.model(arrays)
        return self._outputs(*results.values())

    def _on_gpu(self, arrays: dict[str, Array]) -> dict[str, Array]:
        import cupy

        with cupy.cuda.Device(self._number):
            results = self.model({name: cupy.asarray(array) for name, array in arrays.items()})
            if all(isinstance(array, (np.ndarray, np.generic)) for array in arrays.values()):
                return {name: cupy.asnumpy(array) for name, array in results.items()}
        return results


def _parsed(device: str) -> tuple[str, int]:
    """Kind and number of a device."""
    kind, _, number = device.partition(":")
    if kind not in KINDS or not (number.isdecimal() or device == kind):
        raise ValueError(f"device must be one of {', '.join(KINDS)}, or numbered as in 'CUDA:1', got {device!r}")
    return kind, int(number or 0)


def _by_name(names: list[str], inputs: Any) -> dict[str, Array]:
    """Arrays by name, from whatever form they came in."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if len(arrays) != len(names):
        raise ModelError(f"takes {len(names)} inputs ({', '.join(names)}), got {len(arrays)}")
    return dict(zip(names, arrays, strict=True))
