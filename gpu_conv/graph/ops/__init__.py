"""The operators, grouped; importing this package fills the table ``OPS``."""

from . import control, conv, elementwise, nn, recurrent, reduce, resize, shape
from .registry import OPS, Call, Op

__all__ = ["OPS", "Call", "Op", "control", "conv", "elementwise", "nn", "recurrent", "reduce", "resize", "shape"]
