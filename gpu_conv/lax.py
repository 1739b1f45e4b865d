"""XLA's convolution under the names and signatures of ``jax.lax``, for arrays of every library. JAX is not needed.

Every parameter of JAX stands in its place. After them come, by keyword only, what StableHLO has and JAX has not
(``window_reversal``), and the ``device`` of this package. Dimension numbers become layouts; all else is
:func:`gpu_conv.conv`. Errors speak of lhs, rhs and StableHLO's attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from . import ops
from .arrays import Array
from .stablehlo import (
    ConvDimensionNumbers,
    Operands,
    borrowed,
    element_type,
    layout,
    paddings,
    positive,
    precision_name,
)

__all__ = ["ConvDimensionNumbers", "conv", "conv_general_dilated", "conv_transpose", "conv_with_general_padding"]

# Default dimension numbers of conv_transpose by rank: TensorFlow's.
_TRANSPOSED = {
    2: ("NC", "IO", "NC"),
    3: ("NHC", "HIO", "NHC"),
    4: ("NHWC", "HWIO", "NHWC"),
    5: ("NHWDC", "HWDIO", "NHWDC"),
}


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: None = None,
    *,
    window_reversal: Sequence[bool] | None = None,
    device: str | None = None,
) -> Array:
    """General convolution of n spatial dimensions: ``stablehlo.convolution``, ``jax.lax.conv_general_dilated``.

    Args:
        lhs: input of rank n + 2.
        rhs: kernel of rank n + 2, with the element type of lhs.
        window_strides: n integers, in the order in which the spatial dimensions appear in rhs.
        padding: "VALID", "SAME", "SAME_LOWER" (not with an lhs_dilation), or n pairs ``(low, high)``; negative crops.
        lhs_dilation: n integers, or None: spacing of the elements of lhs (transposed convolution).
        rhs_dilation: n integers, or None: spacing of the elements of rhs (atrous convolution).
        dimension_numbers: None for ``("NCHW", "OIHW", "NCHW")`` and its siblings; three such strings; XLA's
            ``"b01f_01io->b01f"``; three sequences of positions; or an object with ``lhs_spec``, ``rhs_spec`` and
            ``out_spec`` like :class:`ConvDimensionNumbers` or JAX's.
        feature_group_count: input and output features are split into this many contiguous groups.
        batch_group_count: the batch is split instead; not together with feature_group_count.
        precision: None or "highest": IEEE float32. "high" and "default" let the GPU round float32 operands to TF32.
            The names, the enum and the pairs of JAX are taken; of a pair the more exact one counts.
        preferred_element_type: element type of the result, no narrower than that of lhs; default that of lhs, in which
            8-bit integers wrap.
        out_sharding: must be None: one device computes.
        window_reversal: n booleans, or None: reverse the kernel along these dimensions.
        device: as in :func:`gpu_conv.conv`; "emulator" runs the CUDA kernels on NumPy arrays.

    Returns:
        The result with its dimensions in the order of ``out_spec``.

    Raises:
        TypeError: element types, arrays and dimension numbers that do not fit.
        ValueError: every other constraint, before anything is computed.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import lax
        >>> lhs, rhs = np.arange(4.0).reshape(1, 1, 4), np.array([[[1.0, 2.0]]])
        >>> lax.conv_general_dilated(lhs, rhs, (1,), "VALID", window_reversal=(True,))
        array([[[1., 4., 7.]]])
    """
    if out_sharding is not None:
        raise ValueError(f"out_sharding must be None, one device computes; got {out_sharding!r}")
    with borrowed(lhs, rhs, preferred_element_type) as lent:
        lhs, rhs, preferred = (lent.arguments[name] for name in ("x", "w", "out_dtype"))
        numbers = Operands.of(lhs, rhs, dimension_numbers)
        numbers.check_features(feature_group_count, batch_group_count)
        pads = paddings(padding, numbers.rank)
        dilation = positive("lhs_dilation", lhs_dilation, numbers.rank, default=1)
        numbers.check_padding(pads, dilation)
        result = ops.conv(
            lhs,
            numbers.reversed(rhs, window_reversal),
            strides=positive("window_strides", window_strides, numbers.rank),
            padding=pads,
            dilations=positive("rhs_dilation", rhs_dilation, numbers.rank, default=1),
            input_dilations=dilation,
            groups=feature_group_count,
            batch_groups=batch_group_count,
            input_layout=layout(numbers.dimensions.lhs_spec, "nc"),
            filter_layout=layout(numbers.dimensions.rhs_spec, "oi"),
            output_layout=layout(numbers.dimensions.out_spec, "nc"),
            out_dtype=element_type(lhs, preferred),
            precision=precision_name(precision),
            device=device,
        )
        return lent.give(result)


def conv(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    device: str | None = None,
) -> Array:
    """:func:`conv_general_dilated` of ``NCHW`` by ``OIHW`` without dilations: ``jax.lax.conv``.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import lax
        >>> lax.conv(np.ones((1, 1, 3)), np.ones((1, 1, 3)), (1,), "SAME")
        array([[[2., 3., 2.]]])
    """
    return conv_general_dilated(
        lhs, rhs, window_strides, padding,
        precision=precision, preferred_element_type=preferred_element_type, device=device,
    )  # fmt: skip


def conv_with_general_padding(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    device: str | None = None,
) -> Array:
    """:func:`conv_general_dilated` of ``NCHW`` by ``OIHW``: ``jax.lax.conv_with_general_padding``.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import lax
        >>> lax.conv_with_general_padding(np.ones((1, 1, 3)), np.ones((1, 1, 2)), (1,), [(1, 1)], (2,), None)
        array([[[1., 1., 1., 1., 1., 1.]]])
    """
    return conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation,
        precision=precision, preferred_element_type=preferred_element_type, device=device,
    )  # fmt: skip


def conv_transpose(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
    *,
    device: str | None = None,
) -> Array:
    """Convolution of lhs dilated by ``strides``: ``jax.lax.conv_transpose``.

    Args:
        lhs, rhs, rhs_dilation, precision, preferred_element_type, device: as in :func:`conv_general_dilated`.
        strides: n integers: the lhs_dilation.
        padding: "SAME" (result ``size * stride``) or "VALID", of the forward convolution; or n pairs ``(low, high)``,
            of the dilated lhs, but of the forward convolution with ``use_consistent_padding``.
        dimension_numbers: as in :func:`conv_general_dilated`; None for ``("NHWC", "HWIO", "NHWC")`` and its siblings.
        transpose_kernel: reverse the kernel and swap its features: the gradient of the convolution with this kernel.
        use_consistent_padding: see ``padding``.

    Example:
        >>> import numpy as np
        >>> from gpu_conv import lax
        >>> lax.conv_transpose(np.ones((1, 2, 1)), np.arange(3.0).reshape(3, 1, 1), (2,), "VALID").ravel()
        array([2., 1., 2., 1., 0.])
    """
    with borrowed(lhs, rhs, preferred_element_type) as lent:
        lhs, rhs, preferred = (lent.arguments[name] for name in ("x", "w", "out_dtype"))
        if dimension_numbers is None and lhs.ndim not in _TRANSPOSED:
            raise ValueError(f"lhs of rank {lhs.ndim} has no default dimension_numbers: give them")
        numbers = Operands.of(lhs, rhs, dimension_numbers or _TRANSPOSED[lhs.ndim])
        pads = paddings(padding, numbers.rank)
        if use_consistent_padding or pads in ("valid", "same_upper"):
            dilation = positive("rhs_dilation", rhs_dilation, numbers.rank, default=1)
            windows = ((k - 1) * d + 1 for k, d in zip(numbers.window, dilation, strict=True))
            forward = [pads] * numbers.rank if isinstance(pads, str) else pads
            steps = positive("strides", strides, numbers.rank)
            padding = [_transposed_padding(*axis) for axis in zip(windows, steps, forward, strict=True)]
        if transpose_kernel:
            rhs = numbers.reversed(rhs, (True,) * numbers.rank).swapaxes(*numbers.dimensions.rhs_spec[:2])
        result = conv_general_dilated(
            lhs, rhs, (1,) * numbers.rank, padding, strides, rhs_dilation, numbers.dimensions,
            precision=precision, preferred_element_type=preferred, device=device,
        )  # fmt: skip
        return lent.give(result)


def _transposed_padding(window: int, stride: int, forward: str | tuple[int, int]) -> tuple[int, int]:
    """Padding of the dilated input that undoes a forward convolution with this padding."""
    if not isinstance(forward, str):
        low, high = forward
        return window - 1 - low, window - 1 - high
    if forward == "same_upper":
        total = window + stride - 2
        low = window - 1 if stride > window - 1 else ceil(total / 2)
    elif forward == "valid":
        total = window + stride - 2 + max(window - stride, 0)
        low = window - 1
    else:
        raise ValueError("use_consistent_padding knows 'SAME', 'VALID' and (low, high) pairs, got 'SAME_LOWER'")
    return low, total - low
