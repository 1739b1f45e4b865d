"""The public operators: normalise, build the problem, choose, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from .arrays import Array
from .calls import run as _run

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ConvOptions(TypedDict, total=False):
    """The keyword options of :func:`conv`, shared by its fixed-rank siblings."""

    strides: Any
    padding: Any
    dilations: Any
    groups: int
    input_dilations: Any
    batch_groups: int
    flip_filter: bool
    input_layout: str | None
    filter_layout: str | None
    output_layout: str | None
    activation: Any
    residual: Array | None
    x_zero_point: Any
    w_zero_point: Any
    requantize: Any
    out: Array | None
    out_dtype: Any
    precision: str
    kernel: str | None
    device: str | None


class ConvTransposeOptions(TypedDict, total=False):
    """The keyword options of :func:`conv_transpose`, shared by its fixed-rank siblings."""

    strides: Any
    padding: Any
    dilations: Any
    groups: int
    output_padding: Any
    output_sizes: Any
    input_layout: str | None
    filter_layout: str | None
    output_layout: str | None
    activation: Any
    residual: Array | None
    out: Array | None
    out_dtype: Any
    precision: str
    kernel: str | None
    device: str | None


def conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    strides: Any = 1,
    padding: Any = 0,
    dilations: Any = 1,
    groups: int = 1,
    input_dilations: Any = 1,
    batch_groups: int = 1,
    flip_filter: bool = False,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    output_layout: str | None = None,
    activation: Any = None,
    residual: Array | None = None,
    x_zero_point: Any = 0,
    w_zero_point: Any = 0,
    requantize: Any = None,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str = "ieee",
    kernel: str | None = None,
    device: str | None = None,
) -> Array:
    """Grouped convolution (cross-correlation) over any number of spatial axes.

    ``y = activation(conv(x - x_zero_point, w - w_zero_point) + bias + residual)``, accumulated in float32 (float64 for
    float64, int32 for 8-bit integers), rounded once.

    Args:
        x: input ``[n, c, *spatial]`` in ``input_layout``: NumPy (computed on the CPU), CuPy (on the current stream), or
            of another library with DLPack or the CUDA array interface (PyTorch, JAX, Numba), whose kind is handed back.
            float16, bfloat16, float32, float64, int8, uint8; on the CPU also other integers and complex numbers.
        w: filter ``[o, c / groups, *filter]`` in ``filter_layout``, of x's dtype (int8 and uint8 may mix).
        bias: ``[o]`` (or one value, or an array that broadcasts to the result along its channel axis), or None.
        strides: step of the filter, an integer or one per axis.
        padding: zeros around the input: an integer, one per axis, one ``(lo, hi)`` pair per axis (negative crops), or
            "valid", "same_upper", "same_lower" (output ``ceil(size / stride)``, the odd zero at the end or the start).
        dilations: spacing of the filter's elements.
        groups: input and output channels are split into this many contiguous blocks, convolved separately.
        input_dilations: spacing of the input's elements (zeros between them, before padding).
        batch_groups: the batch is split instead; block b meets the b-th block of filters (XLA's batch_group_count).
        flip_filter: reverse the filter along all spatial axes: convolution in the mathematical sense.
        input_layout: permutation of ``n``, ``c`` and the spatial axes (``w``, ``hw``, ``dhw``), default channels-first.
        filter_layout: permutation of ``o``, ``i`` and the spatial axes, default ``oihw``; ``ogihw`` has a group axis.
        output_layout: layout of the result, default ``input_layout``.
        activation: "relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "hard_swish", "gelu", "elu", "softplus",
            "softsign", "celu", "selu", "linear", "shrink", "thresholded_relu", ("clip", lo, hi), ("leaky_relu", alpha),
            ("scaled_tanh", alpha, beta), ("parametric_softplus", alpha, beta), or None.
        residual: array with the shape and dtype of the result, added before the activation.
        x_zero_point: integer subtracted from an 8-bit x; padding contributes zero.
        w_zero_point: integer, or one per output channel ``[o]``, subtracted from an 8-bit w.
        requantize: ``(scale, zero_point)``, the scale a number or one per output channel ``[o]``: the sum becomes
            ``saturate(round((sum + bias) * scale) + zero_point)`` of int8 or uint8 (see :func:`qlinear_conv`), and
            ``out_dtype`` is by default the type of the zero point if it has 8 bits, else that of x.
        out: array to write the result into; must not share memory with x or w.
        out_dtype: dtype of the result; default x's, int32 for 8-bit integers that are not requantised.
        precision: "ieee", or "tf32" to let the GPU round float32 operands to TF32.
        kernel: force a row of the dispatch table by name (CuPy and the emulator).
        device: None (follow the arrays), "cpu", "cuda", or "emulator" (the CUDA kernels on NumPy arrays, on the CPU).

    Returns:
        ``[n, o, *out_spatial]`` in ``output_layout``, with
        ``out = (lo + (size - 1) * input_dilation + 1 + hi - (filter - 1) * dilation - 1) // stride + 1`` per axis;
        0, and so an empty result, where the dilated filter does not fit into the padded input (as in XLA).

    Raises:
        ValueError: shapes or values that break a rule, before anything is computed.
        TypeError: dtypes or array kinds that do not fit.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
        >>> gpu_conv.conv(x, np.ones((1, 1, 3), np.float32), padding=1)
        array([[[1., 3., 6., 9., 7.]]], dtype=float32)
    """
    options = locals()
    del options["kernel"], options["device"]
    return _run(options, device, kernel)


def _fixed(rank: int, transposed: bool, x: Array, w: Array, bias: Array | None, options: dict[str, Any]) -> Array:
    device, kernel = options.pop("device", None), options.pop("kernel", None)
    arrays = {"x": x, "w": w, "bias": bias}
    return _run(arrays | options, device, kernel, rank=rank, transposed=transposed)


def conv1d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """:func:`conv` over one spatial axis: x ``[n, c, w]``, w ``[o, c / groups, w]`` in the default layouts.

    Example:
        A causal filter, as sequence models use it: pad on the left only.

        >>> import numpy as np, gpu_conv
        >>> gpu_conv.conv1d(np.ones((1, 1, 4), np.float32), np.ones((1, 1, 3), np.float32), padding=((2, 0),))
        array([[[1., 2., 3., 3.]]], dtype=float32)
    """
    return _fixed(1, False, x, w, bias, dict(options))


def conv2d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """:func:`conv` over two spatial axes: x ``[n, c, h, w]``, w ``[o, c / groups, h, w]`` in the default layouts.

    Example:
        A depthwise 3x3 in MobileNet's layout.

        >>> import numpy as np, gpu_conv
        >>> x = np.ones((1, 4, 4, 2), np.float32)
        >>> w = np.ones((3, 3, 1, 2), np.float32)
        >>> layouts = dict(input_layout="nhwc", filter_layout="hwio")
        >>> y = gpu_conv.conv2d(x, w, groups=2, padding=1, activation="relu6", **layouts)
        >>> y[0, :, :, 0]
        array([[4., 6., 6., 4.],
               [6., 6., 6., 6.],
               [6., 6., 6., 6.],
               [4., 6., 6., 4.]], dtype=float32)
    """
    return _fixed(2, False, x, w, bias, dict(options))


def conv3d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """:func:`conv` over three spatial axes: x ``[n, c, d, h, w]``, w ``[o, c / groups, d, h, w]`` by default.

    Example:
        >>> import numpy as np, gpu_conv
        >>> gpu_conv.conv3d(np.ones((1, 1, 2, 2, 2), np.float32), np.ones((1, 1, 2, 2, 2), np.float32)).item()
        8.0
    """
    return _fixed(3, False, x, w, bias, dict(options))


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    strides: Any = 1,
    padding: Any = 0,
    dilations: Any = 1,
    groups: int = 1,
    output_padding: Any = 0,
    output_sizes: Any = None,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    output_layout: str | None = None,
    activation: Any = None,
    residual: Array | None = None,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str = "ieee",
    kernel: str | None = None,
    device: str | None = None,
) -> Array:
    """Transposed convolution: the gradient of :func:`conv` with respect to its input, over any number of spatial axes.

    Args:
        x: input ``[n, c, *spatial]`` in ``input_layout``.
        w: filter ``[c, o / groups, *filter]`` in ``filter_layout`` (default ``iohw``: ``i`` counts all input channels,
            ``o`` the output channels of one group).
        bias: ``[o]``, or None.
        strides: distance of neighbouring input elements in the output.
        padding: rows removed from the output: as in :func:`conv`; "same_upper" and "same_lower" give ``size * stride``.
        output_padding: extra rows at the end, smaller than stride or dilation: one of the sizes that share an input.
        output_sizes: the wanted spatial sizes instead of ``output_padding``.
        dilations, groups, input_layout, output_layout, activation, residual, out, out_dtype, precision, kernel, device:
            as in :func:`conv`.

    Returns:
        ``[n, o, *out_spatial]`` in ``output_layout``, per axis
        ``out = (size - 1) * stride + (filter - 1) * dilation + 1 - lo - hi + output_padding``.

    Raises:
        ValueError: shapes or values that break a rule, before anything is computed.
        TypeError: dtypes or array kinds that do not fit.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.array([[[1, 2]]], np.float32)
        >>> gpu_conv.conv_transpose(x, np.ones((1, 1, 3), np.float32), strides=2)
        array([[[1., 1., 3., 2., 2.]]], dtype=float32)
    """
    options = locals()
    del options["kernel"], options["device"]
    return _run(options, device, kernel, transposed=True)


def conv_transpose1d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvTransposeOptions]) -> Array:
    """:func:`conv_transpose` over one spatial axis: x ``[n, c, w]``, w ``[c, o / groups, w]`` by default.

    Example:
        >>> import numpy as np, gpu_conv
        >>> gpu_conv.conv_transpose1d(np.ones((1, 1, 3), np.float32), np.ones((1, 1, 2), np.float32), strides=2).shape
        (1, 1, 6)
    """
    return _fixed(1, True, x, w, bias, dict(options))


def conv_transpose2d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvTransposeOptions]) -> Array:
    """:func:`conv_transpose` over two spatial axes: x ``[n, c, h, w]``, w ``[c, o / groups, h, w]`` by default.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x, w = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
        >>> gpu_conv.conv_transpose2d(x, w, padding=((0, 1), (0, 1)))[0, 0]
        array([[1., 2.],
               [2., 4.]], dtype=float32)
    """
    return _fixed(2, True, x, w, bias, dict(options))


def conv_transpose3d(x: Array, w: Array, bias: Array | None = None, **options: Unpack[ConvTransposeOptions]) -> Array:
    """:func:`conv_transpose` over three spatial axes: x ``[n, c, d, h, w]``, w ``[c, o / groups, d, h, w]`` by default.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x, w = np.ones((1, 1, 1, 1, 1), np.float32), np.ones((1, 1, 2, 2, 2), np.float32)
        >>> float(gpu_conv.conv_transpose3d(x, w, strides=2).sum())
        8.0
    """
    return _fixed(3, True, x, w, bias, dict(options))
