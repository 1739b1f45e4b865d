"""WebNN's convolutions on NumPy and CuPy arrays: the specification's options, checks and words.

``conv2d`` and ``conv_transpose2d`` are ``MLGraphBuilder.conv2d()`` and ``convTranspose2d()``, computed at once. Every
condition of the specification is checked in its order, and every failure is a TypeError that begins with the label.
``conv1d`` and ``conv3d``, which the specification does not have, follow the same rules with one and three spatial axes.

Options come as a mapping, as keyword arguments or both, in camelCase or snake_case:

===================== ========================== ===============================================================
option                default (two axes)         meaning
===================== ========================== ===============================================================
padding               [0, 0, 0, 0]               [beginningHeight, endingHeight, beginningWidth, endingWidth]
strides               [1, 1]                     [strideHeight, strideWidth]
dilations             [1, 1]                     [dilationHeight, dilationWidth]
groups                1                          channels are divided into this many blocks
inputLayout           "nchw"                     or "nhwc"; the output has the same
filterLayout          "oihw"; transposed "iohw"  or "hwio", "ohwi", "ihwo"; transposed "hwoi", "ohwi"
bias                  none                       [outputChannels], of the input's data type
label                 ""                         stands at the beginning of every error
outputPadding         [0, 0]                     transposed only; smaller than the stride
outputSizes           none                       transposed only; overrides outputPadding
===================== ========================== ===============================================================

Options that the specification had once: ``autoPad`` ("explicit", "same-upper", "same-lower"; padding is then ignored),
``activation`` (a name or ``(name, *parameters)``), ``groupCount`` (groups) and the five-axis filter
``[outputChannels / groups, groups, inputChannels / groups, height, width]``, known by its number of axes.

Beside them stand this package's own ``device``, ``kernel``, ``precision`` and ``out``, as in :func:`gpu_conv.conv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays import Array
from .idl import Operator
from .steps import call

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose2d"]

CONV1D = Operator("conv1d", 1)
CONV2D = Operator("conv2d", 2)
CONV3D = Operator("conv3d", 3)
CONV_TRANSPOSE2D = Operator("convTranspose2d", 2, transposed=True)


def conv2d(input: Array, filter: Array, options: Mapping[str, Any] | None = None, **more: Any) -> Array:
    """2-D convolution of 4-D operands, as ``MLGraphBuilder.conv2d()``.

    Args:
        input: float32 or float16 ``[batches, inputChannels, height, width]``, or ``[batches, height, width,
            inputChannels]`` with inputLayout "nhwc".
        filter: ``[outputChannels, inputChannels / groups, height, width]``, or as ``filterLayout`` says.
        options: the options of the table at the head of this module.
        more: options as keyword arguments.

    Returns:
        ``[batches, outputChannels, outputHeight, outputWidth]`` (or nhwc), with ``outputSize = floor((inputSize -
        (filterSize - 1) * dilation - 1 + beginningPadding + endingPadding) / stride) + 1``.

    Raises:
        TypeError: any condition of the specification that does not hold.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import webnn
        >>> ones = np.ones((1, 1, 3, 3), np.float32)
        >>> webnn.conv2d(ones, ones, {"padding": [1, 1, 1, 1], "inputLayout": "nchw"})[0, 0]
        array([[4., 6., 4.],
               [6., 9., 6.],
               [4., 6., 4.]], dtype=float32)
    """
    return call(CONV2D, input, filter, options, more)


def conv_transpose2d(input: Array, filter: Array, options: Mapping[str, Any] | None = None, **more: Any) -> Array:
    """2-D transposed convolution of 4-D operands, as ``MLGraphBuilder.convTranspose2d()``.

    Args:
        input: as in :func:`conv2d`.
        filter: ``[inputChannels, outputChannels / groups, height, width]``, or as ``filterLayout`` says.
        options, more: as in :func:`conv2d`.

    Returns:
        ``[batches, outputChannels, outputHeight, outputWidth]`` (or nhwc), of ``outputSizes``, or with ``outputSize =
        (inputSize - 1) * stride + (filterSize - 1) * dilation + 1 - beginningPadding - endingPadding + outputPadding``.

    Raises:
        TypeError: any condition of the specification that does not hold; and, beyond the specification, groups that do
            not divide inputChannels.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import webnn
        >>> x, w = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
        >>> webnn.conv_transpose2d(x, w, {"outputPadding": [0, 1], "strides": [1, 2]})[0, 0]
        array([[1., 1., 1., 1., 0.],
               [2., 2., 2., 2., 0.],
               [1., 1., 1., 1., 0.]], dtype=float32)
    """
    return call(CONV_TRANSPOSE2D, input, filter, options, more)


def conv1d(input: Array, filter: Array, options: Mapping[str, Any] | None = None, **more: Any) -> Array:
    """1-D convolution of 3-D operands: :func:`conv2d` without the height.

    padding is ``[beginningWidth, endingWidth]``, strides and dilations have one item, the layouts are ``ncw`` (default)
    and ``nwc``, ``oiw`` (default), ``wio``, ``owi`` and ``iwo``.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import webnn
        >>> webnn.conv1d(np.ones((1, 1, 4), np.float32), np.ones((1, 1, 3), np.float32), padding=[2, 0])
        array([[[1., 2., 3., 3.]]], dtype=float32)
    """
    return call(CONV1D, input, filter, options, more)


def conv3d(input: Array, filter: Array, options: Mapping[str, Any] | None = None, **more: Any) -> Array:
    """3-D convolution of 5-D operands: :func:`conv2d` with a depth before the height.

    padding has six items from beginningDepth to endingWidth, strides and dilations three, the layouts are ``ncdhw``
    (default) and ``ndhwc``, ``oidhw`` (default), ``dhwio``, ``odhwi`` and ``idhwo``.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import webnn
        >>> x = np.ones((1, 1, 2, 2, 2), np.float32)
        >>> webnn.conv3d(x, x, strides=[2, 2, 2], padding=[0, 0, 0, 0, 0, 1]).shape
        (1, 1, 1, 1, 1)
    """
    return call(CONV3D, input, filter, options, more)
