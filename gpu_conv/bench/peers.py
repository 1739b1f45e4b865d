"""How fast the other libraries run one convolution, in this process, on this GPU.

Every peer gets random data, operand sets beyond three times the L2 cache, and its outputs kept alive so that it cannot
rewrite one cached buffer. PyTorch runs with ``cudnn.benchmark`` on and TF32 off unless asked. Peers compute the
convolution with its bias and nothing else: the epilogue that we fuse is a gift to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..cuda.timing import Timing, measure, measure_host, operand_sets, rotate


@dataclass(frozen=True)
class Case:
    """One convolution: sizes per spatial axis in tuples of length 1, 2 or 3; dtype as NumPy spells it."""

    batch: int
    channels: int
    filters: int
    groups: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilations: tuple[int, ...]
    causal: bool = False
    dtype: str = "float16"

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output sizes; a causal convolution is padded on the left only and keeps its length."""
        if self.causal:
            return self.spatial
        sizes = zip(self.spatial, self.kernel, self.strides, self.padding, self.dilations, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    @property
    def is_pointwise(self) -> bool:
        return math.prod(self.kernel) == 1 and self.groups == 1 and set(self.strides) == {1} and not any(self.padding)

    @property
    def nbytes(self) -> int:
        """Input, output and weights once, in bytes."""
        size = 4 if self.dtype == "float32" else 2
        x = self.batch * self.channels * math.prod(self.spatial)
        y = self.batch * self.filters * math.prod(self.out_spatial)
        return size * (x + y + self.filters * self.channels // self.groups * math.prod(self.kernel))


def from_row(row: Mapping[str, Any], batch: int, dtype: str = "float16") -> Case:
    """The case of one row of ``benchmarks/layers.json`` at one batch size."""
    return Case(
        batch=batch,
        channels=row["C"],
        filters=row["K"],
        groups=row["groups"],
        spatial=tuple(row["in_spatial"]),
        kernel=tuple(row["filter"]),
        strides=tuple(row["stride"]),
        padding=tuple(row["pad"]),
        dilations=tuple(row["dilation"]),
        causal=bool(row["causal"]),
        dtype=dtype,
    )


def _lift_1d(case: Case) -> Case:
    """A 1-D case as 2-D with height 1, for libraries whose channels-last format is 2-D."""
    if len(case.spatial) != 1:
        return case
    return replace(
        case,
        spatial=(1, *case.spatial),
        kernel=(1, *case.kernel),
        strides=(1, *case.strides),
        padding=(0, *case.padding),
        dilations=(1, *case.dilations),
    )


def torch_setup(allow_tf32: bool = False) -> Any:
    """PyTorch with cuDNN autotuning on and TF32 off unless asked."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    return torch


def torch_operands(case: Case, channels_last: bool, sets: int) -> tuple[list[Any], Any, Any]:
    """``sets`` random inputs, one filter (OIHW meaning) and one bias on the GPU in the wanted memory format."""
    import torch

    dtype = getattr(torch, case.dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats[len(case.spatial) + 2] if channels_last else torch.contiguous_format
    shape = (case.batch, case.channels, *case.spatial)
    taps = case.channels // case.groups * math.prod(case.kernel)
    xs = [torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=layout) for _ in range(sets)]
    w = torch.randn((case.filters, case.channels // case.groups, *case.kernel), device="cuda") / math.sqrt(taps)
    bias = torch.randn(case.filters, device="cuda", dtype=dtype)
    return xs, w.to(dtype).contiguous(memory_format=layout), bias


def _torch_function(case: Case, compiled: bool) -> Callable[[Any, Any, Any], Any]:
    import torch

    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(case.spatial) - 1]
    length = case.spatial[-1]

    def function(x: Any, w: Any, bias: Any) -> Any:
        y = convolve(x, w, bias, case.strides, case.padding, case.dilations, case.groups)
        return y[..., :length] if case.causal else y  # symmetric padding, then a view: what users write

    return torch.compile(function, dynamic=False) if compiled else function


def torch_conv(
    case: Case,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    graph: bool = False,
    allow_tf32: bool = False,
    budget_s: float = 0.06,
) -> Timing:
    """PyTorch, eager or through ``torch.compile``, in one of the two memory formats.

    ``graph=False`` is what an eager user sees; ``graph=True`` removes the host cost, the fair figure next to our own
    graph-timed kernels on small layers.
    """
    torch = torch_setup(allow_tf32)
    if channels_last:
        case = _lift_1d(case)
    xs, w, bias = torch_operands(case, channels_last, operand_sets(case.nbytes))
    function = _torch_function(case, compiled)
    with torch.inference_mode():
        return measure(rotate(len(xs), lambda i: function(xs[i], w, bias)), graph=graph, budget_s=budget_s)


def _matmul_shapes(case: Case) -> tuple[int, int, int]:
    if not case.is_pointwise:
        raise ValueError(f"a matrix product is a peer of pointwise convolutions only, not of kernel {case.kernel}")
    return case.batch * math.prod(case.spatial), case.channels, case.filters


def torch_matmul(case: Case, *, graph: bool = False, allow_tf32: bool = False, budget_s: float = 0.06) -> Timing:
    """PyTorch (cuBLAS) on the NHWC matrix ``[batch * pixels, channels] @ [channels, filters]``, no bias."""
    torch = torch_setup(allow_tf32)
    m, k, n = _matmul_shapes(case)
    dtype = getattr(torch, case.dtype)
    sets = operand_sets(case.nbytes)
    xs = [torch.randn((m, k), device="cuda", dtype=dtype) for _ in range(sets)]
    ys = [torch.empty((m, n), device="cuda", dtype=dtype) for _ in range(sets)]
    w = torch.randn((n, k), device="cuda", dtype=dtype).t()
    with torch.inference_mode():
        calls = rotate(sets, lambda i: torch.matmul(xs[i], w, out=ys[i]))
        return measure(calls, graph=graph, budget_s=budget_s)


def cupy_matmul(case: Case, *, graph: bool = False, budget_s: float = 0.06) -> Timing:
    """CuPy (cuBLAS) on the same matrix, no bias."""
    from ..cuda.device import cupy as load

    cupy = load()
    m, k, n = _matmul_shapes(case)
    sets = operand_sets(case.nbytes)
    xs = [cupy.random.standard_normal((m, k), dtype=cupy.float32).astype(case.dtype) for _ in range(sets)]
    ys = [cupy.empty((m, n), case.dtype) for _ in range(sets)]
    w = cupy.random.standard_normal((n, k), dtype=cupy.float32).astype(case.dtype).T
    calls = rotate(sets, lambda i: cupy.matmul(xs[i], w, out=ys[i]))
    return measure(calls, graph=graph, budget_s=budget_s)


def jax_conv(case: Case, *, channels_last: bool = False, budget_s: float = 0.2) -> Timing:
    """XLA through ``jax.lax.conv_general_dilated`` under ``jit``, host clock.

    Set ``XLA_PYTHON_CLIENT_PREALLOCATE=false`` before JAX is imported, or it takes most of the memory.
    """
    import jax
    import jax.numpy as jnp

    spatial = "DHW"[-len(case.spatial) :]
    specs = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C") if channels_last else (f"NC{spatial}", f"OI{spatial}") * 2
    sizes = (case.batch, *case.spatial, case.channels) if channels_last else (case.batch, case.channels, *case.spatial)
    depth = case.channels // case.groups
    filters = (*case.kernel, depth, case.filters) if channels_last else (case.filters, depth, *case.kernel)
    padding = [(p, 0 if case.causal else p) for p in case.padding]
    dtype = jnp.dtype(case.dtype)
    keys = jax.random.split(jax.random.PRNGKey(0), operand_sets(case.nbytes))
    xs = [jax.random.normal(key, sizes, dtype) for key in keys]
    w = jax.random.normal(keys[0], filters, dtype)
    bias_shape = (case.filters,) if channels_last else (case.filters, *([1] * len(case.spatial)))
    bias = jax.random.normal(keys[0], bias_shape, dtype)

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def function(x: Any, w: Any, bias: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x,
            w,
            case.strides,
            padding,
            rhs_dilation=case.dilations,
            dimension_numbers=specs[:3],
            feature_group_count=case.groups,
            precision=jax.lax.Precision.HIGHEST if case.dtype == "float32" else None,
        )
        return y + bias

    kept: dict[int, Any] = {}
    turn = 0

    def call() -> None:
        nonlocal turn
        kept[turn % len(xs)] = function(xs[turn % len(xs)], w, bias)
        turn += 1

    return measure_host(call, lambda: jax.block_until_ready(list(kept.values())), budget_s=budget_s)


# Name in the result files -> function of (case, budget_s). Pointwise-only peers raise ValueError elsewhere.
PEERS: dict[str, Callable[..., Timing]] = {
    "torch_nchw": lambda case, **options: torch_conv(case, channels_last=False, **options),
    "torch_nhwc": lambda case, **options: torch_conv(case, channels_last=True, **options),
    "torch_compile_nchw": lambda case, **options: torch_conv(case, compiled=True, **options),
    "torch_compile_nhwc": lambda case, **options: torch_conv(case, channels_last=True, compiled=True, **options),
    "torch_matmul": torch_matmul,
    # CuPy captures no cuBLAS, and JAX has its own streams: with their launches.
    "cupy_matmul": lambda case, graph=False, **options: cupy_matmul(case, **options),
    "jax_nchw": lambda case, graph=False, **options: jax_conv(case, channels_last=False, **options),
    "jax_nhwc": lambda case, graph=False, **options: jax_conv(case, channels_last=True, **options),
}
