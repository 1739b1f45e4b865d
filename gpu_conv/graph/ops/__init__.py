"""The operators, grouped; importing this package fills the table ``OPS``."""

from . import blocks, control, conv, deform, elementwise, nn, quantised, recurrent, reduce, resize, shape
from .registry import OPS, Call, Op

__all__ = [
    "OPS",
    "Call",
    "Op",
    "blocks",
    "control",
    "conv",
    "deform",
    "elementwise",
    "nn",
    "quantised",
    "recurrent",
    "reduce",
    "resize",
    "shape",
]
