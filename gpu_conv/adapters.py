"""Arrays of other libraries, seen as NumPy or CuPy arrays of the same memory and handed back without a copy.

A row of ``TABLE`` is one library. None is imported here: an array of it proves that it is loaded. The names of element
types are NumPy's (and ml_dtypes') in all of them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = Any  # NumPy or CuPy
Foreign = Any  # any other library's

_HOST, _CUDA = (1, 3), (2, 13)  # DLPack's numbers: CPU, pinned; CUDA, managed
_INT, _BFLOAT = 0, 4  # DLPack's numbers of element types
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Adapter:
    """How the arrays of one library are looked at and made.

    Attributes:
        kind: the library's name, or None for that of the module of the array's type.
        owns: whether an object is one of its arrays.
        device: of an array by its name in the call: the number of its CUDA device, or None for the host's memory;
            TypeError for arrays that have neither.
        view: the array, and its name, as a NumPy or CuPy array of the same memory.
        give: the reverse: of the result, and an array that tells the device; None where ``empty`` makes the result.
        empty: a new array of the library's own allocator (shape, dtype, an array that tells the device), or None.
        dtype: what the library calls an element type, as NumPy calls it.
        stream: address of the CUDA stream that the library works on, by device. A library without one orders its work
            by DLPack or the CUDA array interface, and since neither says when an input is not read any more, the call
            waits for its own end.
        writable: whether ``out`` may be one of its arrays.
    """

    kind: str | None
    owns: Callable[[object], bool]
    device: Callable[[Foreign, str], int | None]
    view: Callable[[Foreign, str], Array]
    give: Callable[[Array, Foreign], Foreign] | None = None
    empty: Callable[[tuple[int, ...], np.dtype[Any], Foreign], Foreign] | None = None
    dtype: Callable[[Any], Any] = lambda value: value
    stream: Callable[[int], int] | None = None
    writable: bool = True


def find(array: object) -> Adapter | None:
    """The row for an array, or None."""
    return next((adapter for adapter in TABLE if adapter.owns(array)), None)


def _instance(array: object, module: str, name: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and isinstance(array, getattr(found, name, ()))


def _cupy() -> Any:
    from .cuda import device

    return device.cupy()


# ------------------------------------------------------------------------------------------------------------- PyTorch


def _torch_device(tensor: Any, name: str) -> int | None:
    torch = sys.modules["torch"]
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name} requires a gradient, which is not computed here: call under torch.no_grad(), or pass "
            f"{name}.detach(); gpu_conv.torch.conv may stand in a model whose gradient is not asked for"
        )
    if tensor.device.type not in ("cpu", "cuda") or tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {tensor.layout} tensor on {tensor.device}; strided ones on cpu and cuda are taken"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise TypeError(f"{name} is a lazy conjugate or negative; {name}.resolve_conj().resolve_neg() would work")
    number: int | None = tensor.device.index if tensor.device.type == "cuda" else None
    return number


def _torch_view(tensor: Any, name: str) -> Array:
    torch = sys.modules["torch"]
    tensor = tensor.detach()
    wide = tensor.dtype == torch.bfloat16  # which neither NumPy nor CuPy imports
    bits = tensor.view(torch.int16) if wide else tensor
    array = bits.numpy() if tensor.device.type == "cpu" else _cupy().from_dlpack(bits)
    return array.view(_BFLOAT16) if wide else array


def _torch_empty(shape: tuple[int, ...], dtype: np.dtype[Any], like: Any) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, dtype.name), device=like.device)


def _torch_stream(device: int) -> int:
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)


# ----------------------------------------------------------------------------------------------------------------- JAX


def _jax_device(array: Any, name: str) -> int | None:
    jax = sys.modules["jax"]
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced by jax.jit and has no values; jax.pure_callback can call gpu_conv from there"
        )
    devices = array.devices()
    if len(devices) != 1:
        raise TypeError(f"{name} is spread over {len(devices)} devices; pass one shard, {name}.addressable_data(0)")
    return _dlpack_device(array, name)


def _jax_view(array: Any, name: str) -> Array:
    on_host = _jax_device(array, name) is None
    return np.asarray(array) if on_host else _dlpack_view(array, name)  # NumPy's view waits for the values


def _jax_give(array: Array, like: Any) -> Any:
    jax = sys.modules["jax"]
    if isinstance(array, np.ndarray):
        (device,) = like.devices()
        given = jax.device_put(array, device, may_alias=True)
    else:
        given = jax.dlpack.from_dlpack(_exportable(array))
    if given.dtype != array.dtype:
        raise TypeError(f"JAX makes {given.dtype} of {array.dtype}: set jax_enable_x64, or choose another out_dtype")
    return given


# ------------------------------------------------------------------- anything with DLPack or the CUDA array interface


class _Recoded:
    """An array whose DLPack capsule names another element type of the same width: bfloat16 for int16, or the reverse.

    NumPy and CuPy know no bfloat16 in DLPack. The name is one byte of the capsule, which belongs to its consumer.
    """

    def __init__(self, array: Any, code: int) -> None:
        self._array, self._code = array, code

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device

    def __dlpack__(self, **arguments: Any) -> Any:
        capsule = self._array.__dlpack__(**arguments)
        _capsule_tensor(capsule).code = self._code
        return capsule


class _Tensor(ctypes.Structure):
    """The head of DLPack's ``DLTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
    )


def _capsule_tensor(capsule: Any) -> _Tensor:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found = name(capsule)
    versioned = found == b"dltensor_versioned"  # version, context, deleter and flags come first: four times 8 bytes
    return _Tensor.from_address(pointer(capsule, found) + (32 if versioned else 0))


def _exportable(array: Array) -> Any:
    """A NumPy or CuPy array as others import it."""
    return _Recoded(array.view(np.int16), _BFLOAT) if array.dtype == _BFLOAT16 else array


def _dlpack_device(array: Any, name: str) -> int | None:
    kind, number = array.__dlpack_device__()
    if int(kind) not in (*_HOST, *_CUDA):
        raise TypeError(f"{name} is on a device of DLPack's type {int(kind)}; the CPU and CUDA devices are taken")
    return int(number) if int(kind) in _CUDA else None


def _dlpack_view(array: Any, name: str) -> Array:
    module = np if _dlpack_device(array, name) is None else _cupy()
    wide = "bfloat16" in str(getattr(array, "dtype", ""))
    seen = module.from_dlpack(_Recoded(array, _INT) if wide else array)
    return seen.view(_BFLOAT16) if wide else seen


def _dlpack_give(array: Array, like: Any) -> Any:
    module = sys.modules[type(like).__module__.partition(".")[0]]
    importer = getattr(module, "from_dlpack", None) or getattr(getattr(module, "dlpack", None), "from_dlpack", None)
    return array if importer is None else importer(_exportable(array))


def _interface_device(array: Any, name: str) -> int | None:
    runtime = _cupy().cuda.runtime
    address = array.__cuda_array_interface__["data"][0]
    return int(runtime.pointerGetAttributes(address).device if address else runtime.getDevice())


def _interface_give(array: Array, like: Any) -> Any:
    is_numba = type(like).__module__.partition(".")[0] == "numba"
    return sys.modules["numba"].cuda.as_cuda_array(array) if is_numba else array


TABLE = (
    Adapter(
        kind="torch",
        owns=lambda a: _instance(a, "torch", "Tensor"),
        device=_torch_device,
        view=_torch_view,
        empty=_torch_empty,
        dtype=lambda value: str(value).removeprefix("torch.") if "torch" in type(value).__module__ else value,
        stream=_torch_stream,
    ),
    Adapter(
        kind="jax",
        owns=lambda a: _instance(a, "jax", "Array"),
        device=_jax_device,
        view=_jax_view,
        give=_jax_give,
        writable=False,
    ),
    Adapter(
        kind=None,
        owns=lambda a: hasattr(a, "__dlpack__") and hasattr(a, "__dlpack_device__"),
        device=_dlpack_device,
        view=_dlpack_view,
        give=_dlpack_give,
    ),
    Adapter(
        kind=None,
        owns=lambda a: hasattr(a, "__cuda_array_interface__"),
        device=_interface_device,
        view=lambda array, name: _cupy().asarray(array),
        give=_interface_give,
    ),
)
