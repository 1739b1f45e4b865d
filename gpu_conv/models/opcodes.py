"""The few pickle opcodes that a dictionary of tensors needs, interpreted without importing or calling anything."""

from __future__ import annotations

import pickletools
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAX_PICKLE_BYTES = 1 << 22  # of one pickle: names and sizes, about 200 bytes for each tensor
MAX_RANK = 32

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.uint8,  # a byte other than 0 and 1 is no NumPy bool; converted after reading
}


class WeightsError(ValueError):
    """The file is no dictionary of tensors, or it is damaged, or it asks for something that this reader refuses."""


class _Global(NamedTuple):
    """A name that the pickle refers to. It stays a name."""

    module: str
    name: str


class Storage(NamedTuple):
    """A flat run of ``elements`` numbers; ``kind`` is PyTorch's name of its type, ``key`` finds its bytes."""

    kind: str
    key: str
    elements: int

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(DTYPES[self.kind])
        return dtype


class Tensor(NamedTuple):
    """A strided window on a storage; ``offset`` and ``stride`` in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def interpret(stream: BinaryIO) -> Any:
    """The value of the pickle at the stream's position, which is left behind its end."""
    machine = _Machine()
    start = stream.tell()
    try:
        for opcode, argument, position in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            require((position or 0) - start <= MAX_PICKLE_BYTES, f"a pickle of more than {MAX_PICKLE_BYTES} bytes")
            machine.step(opcode.name, argument)
    except WeightsError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, Warning) as error:  # how pickletools reports damage
        raise WeightsError(f"the pickle is damaged: {error}") from error
    raise WeightsError("the pickle has no end")


class _Machine:
    """The pickle machine cut down to plain values, tensors and storages."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name in _SHORT_TUPLES:
            stack.append(tuple(self.pop(_SHORT_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_mark()
            require(isinstance(stack[-1], list), "items for something that is no list")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.pop_mark())
        elif name == "GLOBAL":
            stack.append(_Global(*argument.split(" ", 1)))
        elif name == "BINPERSID":
            stack.append(_storage(self.pop(1)[0]))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(_construct(function, arguments))
        elif name == "BUILD":  # the attribute _metadata of a state dictionary: versions of modules, not needed
            target, _ = self.pop(2)
            require(isinstance(target, dict), "attributes for something that is no dictionary")
            stack.append(target)
        elif name != "PROTO":
            raise WeightsError(f"pickle opcode {name} has no place in a dictionary of tensors")

    def pop(self, count: int) -> list[Any]:
        require(len(self.stack) >= count, "the pickle takes more values than it has")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise WeightsError("the pickle takes more values than it has")

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        require(isinstance(target, dict) and len(flat) % 2 == 0, "items for something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Only strings: hashing a deeply nested tuple would overflow the C stack.
            require(isinstance(key, str), f"a dictionary key is {type(key).__name__}, not a string")
            target[key] = value


def _construct(function: object, arguments: object) -> object:
    """What ``function(*arguments)`` would be, for the three functions that a dictionary of tensors needs."""
    require(isinstance(arguments, tuple), "arguments that are no tuple")
    match function, arguments:
        case _Global("collections", "OrderedDict"), ():
            return {}
        case _Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, *_):
            return _tensor(storage, offset, size, stride)
        case _Global("torch._utils", "_rebuild_parameter"), (Tensor() as data, *_):
            return data
        case _Global(module, name), _:
            raise WeightsError(f"the file calls {module}.{name}, which is not on the list of allowed names")
        case _:
            raise WeightsError("the file calls something that is no function")


def _storage(identifier: object) -> Storage:
    match identifier:
        case ("storage", _Global("torch", kind), str(key), str(), int(count), *view):
            require(kind in DTYPES, f"storage type torch.{kind} is not read; known: {', '.join(DTYPES)}")
            require(not any(part is not None for part in view), "storages that are views of others are not read")
            require(_is_size(count), f"storage {key!r} announces {count} elements")
            return Storage(kind, key, count)
        case _:
            raise WeightsError("a reference to something that is no tensor storage")


def _tensor(storage: object, offset: object, size: object, stride: object) -> Tensor:
    match storage, offset, size, stride:
        case Storage(), int(), tuple(), tuple():
            sound = len(size) == len(stride) <= MAX_RANK and all(map(_is_size, (offset, *size, *stride)))
            require(sound, "a tensor whose size, stride or offset is no list of counts")
            return Tensor(storage, offset, size, stride)
        case _:
            raise WeightsError("a tensor without storage, size or stride")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def require(condition: bool, message: str) -> None:
    """Raise WeightsError with the message unless the condition holds."""
    if not condition:
        raise WeightsError(message)
