"""Steps that are no convolutions and have a kernel of their own all the same."""

from __future__ import annotations

from types import ModuleType

from ... import execute
from ...arguments import tensor
from ...arrays import library
from ...problem import Tensor
from ..ir import Array
from .registry import Call


def in_one_launch(call: Call, family: ModuleType, x: Array, y: Array) -> bool:
    """Whether one launch of ``family`` wrote ``y``; on the CPU, and where it refuses, nothing is done."""
    where = execute.device_of(library(x, "x"), call.device)
    if where == "cpu":
        return False
    tensors = tensor(x), tensor(y)
    run = call.remember((family.__name__, where, *tensors), lambda: _planned(family, *tensors, where))
    if run is None:
        return False
    call.kernel = family.__name__.rpartition(".")[-1]
    run({"x": x, "y": y})
    return True


def _planned(family: ModuleType, x: Tensor, y: Tensor, where: execute.Device) -> execute.Run | None:
    if family.refuses(x, y):
        return None
    return execute.launched(family.plan(x, y, execute.target_of(where)), where)
