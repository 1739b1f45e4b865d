"""Neural-network convolution for CuPy and NumPy arrays."""

from .blocks import InvertedResidual, depthwise_separable_conv2d, inverted_residual
from .choices import tuned
from .explain import Explanation, explain
from .layer import Conv
from .ops import (
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from .quantized import qlinear_conv
from .tune import tune
from .warm import warmup

__version__ = "0.1.0"
__all__ = [
    "Conv",
    "Explanation",
    "InvertedResidual",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "depthwise_separable_conv2d",
    "explain",
    "inverted_residual",
    "qlinear_conv",
    "tune",
    "tuned",
    "warmup",
]
