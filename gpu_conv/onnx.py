"""ONNX models on NumPy or CuPy arrays, every convolution done by this package.

Example:
    >>> model = gpu_conv.onnx.load("mobilenet_v2.onnx")         # doctest: +SKIP
    >>> outputs = model({"input": pictures})                    # doctest: +SKIP
    >>> print(model.profile(pictures))                          # doctest: +SKIP

``Backend`` is the same behind the interface of ``onnx.backend.base``. Needs the extra ``onnx``.
"""

from __future__ import annotations

from .graph import backend
from .graph.backend import Backend
from .graph.errors import ModelError, ModelTypeError
from .graph.ir import Port
from .graph.limits import Limits
from .graph.model import Model, PlanSummary, load
from .graph.profile import Profile, Record

__all__ = [
    "Backend",
    "Limits",
    "Model",
    "ModelError",
    "ModelTypeError",
    "PlanSummary",
    "Port",
    "Profile",
    "Record",
    "backend",
    "load",
]
