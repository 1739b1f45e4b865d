"""What a model file may ask for before it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields

from .errors import ModelError


@dataclass(frozen=True)
class Limits:
    """Bounds for a model that was made by somebody else; ``load(source, limits=Limits(tensor_bytes=1 << 20))``.

    They bound what loading takes: the file, the tensors in it and beside it, and constants computed once. Memory stays
    below three times ``file_bytes`` plus twice ``tensor_bytes`` and 1 GiB. What a loaded model takes when it runs
    depends on its inputs too: bound it from outside, with ``ulimit`` or a container.

    Attributes:
        file_bytes: of the ``.onnx`` file. ONNX itself allows 2 GiB.
        tensor_bytes: of all tensors together, external data included.
        nodes: of the graph and its subgraphs.
        depth: of subgraphs within subgraphs.
        external_data: whether tensors may lie in files of their own, below the model's folder.
    """

    file_bytes: int = 2 << 30
    tensor_bytes: int = 8 << 30
    nodes: int = 100_000
    depth: int = 16
    external_data: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "external_data" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"limit {field.name} must be an integer of at least 0, got {value!r}")


class Budget:
    """What is left of the limits while a file is read."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._nodes = self._bytes = 0

    def nodes(self, count: int, where: str) -> None:
        """Take nodes."""
        self._nodes += count
        if self._nodes > self.limits.nodes:
            raise ModelError(f"{where}: more nodes than the limit of {self.limits.nodes}")

    def tensor(self, nbytes: int, where: str) -> None:
        """Take the bytes of one tensor, before it is read."""
        self._bytes += nbytes
        if self._bytes > self.limits.tensor_bytes:
            most = self.limits.tensor_bytes
            raise ModelError(f"{where}: needs {nbytes} bytes, which is above the limit of {most} for all tensors")


class TooLarge(ModelError):
    """A result that numbers in the file make larger than :func:`at_most` allows here."""


MAX_ELEMENTS = 1 << 30  # of one array that an operator makes out of numbers in the file: a guard against bombs
_elements: ContextVar[int] = ContextVar("gpu_conv_graph_elements", default=MAX_ELEMENTS)


def max_elements() -> int:
    """Elements that an operator may make out of numbers in the file, here."""
    return _elements.get()


@contextmanager
def at_most(elements: int) -> Iterator[None]:
    """In this block, operators make no larger arrays."""
    token = _elements.set(elements)
    try:
        yield
    finally:
        _elements.reset(token)
