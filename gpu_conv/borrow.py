"""The arrays of one call: which library they are of, on which device and stream its work belongs, what is handed back.

Below this floor everything is NumPy or CuPy. ``with borrow(arguments) as lent`` enters the device and the stream of the
caller's arrays, and ``lent.arguments`` holds views of them; nothing is copied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from .arrays import Array, library

if TYPE_CHECKING:
    from .adapters import Adapter

P = ParamSpec("P")
R = TypeVar("R")

ARRAYS = ("x", "w", "bias", "residual", "out")
_CACHE_LINE = 64  # bytes; XLA copies arrays on the CPU that are aligned to less
_ABSENT = type(None)
_HERE = nullcontext()


class Lent:
    """What a call works on.

    Attributes:
        kind: the library of the arrays, "numpy", "cupy", "torch", ...
        library: what they are seen as, "numpy" or "cupy".
        original: the arguments of the call.
        arguments: the same with views for arrays, once the block is entered.
    """

    def __init__(self, kind: str, adapter: Adapter | None, arguments: Mapping[str, Any], device: int | None) -> None:
        self.kind = kind
        self.library = "numpy" if device is None else "cupy"
        self.original = self.arguments = arguments
        self._adapter = adapter
        self._device = device
        self._made: Any = None
        self._place: AbstractContextManager[Any] = _HERE

    @property
    def bindable(self) -> bool:
        """Whether a call may be repeated on the same views: the stream of their library orders the repetitions."""
        return self._adapter is None or self._adapter.stream is not None

    @property
    def empty(self) -> Callable[[tuple[int, ...], np.dtype[Any]], Array] | None:
        """Makes memory for the result where NumPy's and CuPy's own will not do: (shape, dtype) -> array."""
        return self._empty if self._adapter else None

    def place(self) -> AbstractContextManager[Any]:
        """The device of the arrays, and the stream on which their library works now."""
        if self._device is None:
            return _HERE
        cuda = _cupy().cuda
        if self._adapter is None and cuda.runtime.getDevice() == self._device:
            return _HERE
        stream = self._adapter.stream(self._device) if self._adapter and self._adapter.stream else None
        return _on(cuda, self._device, stream)

    def __enter__(self) -> Lent:
        if self._device is not None:
            self._place = self.place()
            self._place.__enter__()
        if self._adapter:
            try:
                self.arguments = {**self.original, **self._views(self._adapter)}
            except BaseException as error:
                self._place.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._place.__exit__(*error)

    def give(self, result: Array) -> Any:
        """The result as an array of the caller's library: ``out``, or one that owns the memory of ``result``."""
        if self._adapter is None:
            return result
        if self._device is not None and self._adapter.stream is None:
            _cupy().cuda.get_current_stream().synchronize()
        if self.original.get("out") is not None:
            return self.original["out"]
        return self._made if self._adapter.give is None else self._adapter.give(result, self._like)

    @property
    def _like(self) -> Any:
        return next(self.original[name] for name in ARRAYS if self.original.get(name) is not None)

    def _views(self, adapter: Adapter) -> dict[str, Any]:
        given = {name: self.original[name] for name in ARRAYS if self.original.get(name) is not None}
        views = {name: adapter.view(array, name) for name, array in given.items()}
        dtype = self.original.get("out_dtype")
        return views if dtype is None else views | {"out_dtype": adapter.dtype(dtype)}

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if self._adapter and self._adapter.empty:
            self._made = self._adapter.empty(shape, dtype, self._like)
            return self._adapter.view(self._made, "the result")
        return _aligned(shape, dtype) if self._device is None else _cupy().empty(shape, dtype)


def borrow(arguments: Mapping[str, Any]) -> Lent:
    """The arrays among the arguments of a call (by the names in ``ARRAYS``), whatever library they are of.

    Raises:
        TypeError: no array, arrays of several libraries, or one whose memory cannot be had.
        ValueError: arrays on several devices.
    """
    x: Any = arguments.get("x")
    if (native := _native(x)) and all(type(arguments.get(name)) in (type(x), _ABSENT) for name in ARRAYS[1:]):
        return Lent(native, None, arguments, None if native == "numpy" else x.data.device_id)
    given = {name: array for name in ARRAYS if (array := arguments.get(name)) is not None}
    kinds = {name: _kind(array, name) for name, array in given.items()}
    kind, adapter = next(iter(kinds.values()), ("numpy", None))
    if any(other != kind for other, _ in kinds.values()):
        listed = ", ".join(f"{name} is a {kind} array" for name, (kind, _) in kinds.items())
        raise TypeError(f"all arrays of one call must live in one library, but {listed}")
    if adapter is None:
        device = next(iter(given.values())).data.device_id if kind == "cupy" else None
        return Lent(kind, None, arguments, device)
    if "out" in given and not adapter.writable:
        raise TypeError(f"{kind} arrays cannot be written: leave out away")
    devices = {name: adapter.device(array, name) for name, array in given.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{n} is on {'the CPU' if d is None else f'cuda:{d}'}" for n, d in devices.items())
        raise ValueError(f"all arrays of one call must be on one device, but {listed}")
    return Lent(kind, adapter, arguments, next(iter(devices.values())))


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that keeps ``torch.compile`` from looking into a function: it would take NumPy's calls apart."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        torch = sys.modules.get("torch")
        if torch is None or not torch.compiler.is_compiling():
            return function(*arguments, **options)
        hidden = torch.compiler.disable(function, reason="gpu_conv.torch has operators that torch.compile takes")
        result: R = hidden(*arguments, **options)
        return result

    return call


def _kind(array: object, name: str) -> tuple[str, Adapter | None]:
    if native := _native(array):
        return native, None
    from . import adapters

    adapter = adapters.find(array)
    if adapter is None:
        return library(array, name), None  # raises
    return adapter.kind or type(array).__module__.partition(".")[0], adapter


def _native(array: object) -> str | None:
    if isinstance(array, np.ndarray):
        return "numpy"
    cupy = sys.modules.get("cupy")
    return "cupy" if cupy is not None and isinstance(array, cupy.ndarray) else None


def _cupy() -> Any:
    from .cuda import device

    return device.cupy()


class _Stream:
    """A CUDA stream by its address, as the CUDA stream protocol wants it."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address  # the protocol's version


@contextmanager
def _on(cuda: Any, device: int, stream: int | None) -> Iterator[None]:
    with cuda.Device(device), _HERE if stream is None else cuda.Stream.from_external(_Stream(stream)):
        yield


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)
