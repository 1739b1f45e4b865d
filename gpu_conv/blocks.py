"""Operators that are several convolutions, and one kernel where the GPU has one for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import execute
from .arguments import Call, prepare
from .arrays import Array, name_of, namespace, overlap
from .borrow import Lent, borrow, untraced
from .layer import Conv
from .locks import new_lock
from .ops import conv2d
from .packing import Filters
from .plan import array_key

_LIMIT = 64  # plans kept per layer
_UNKNOWN: Any = object()  # no plan yet; None is the plan of three convolutions

Step = dict[str, Any]  # a convolution: the arguments of ``conv2d`` but x, residual and out


@untraced
def inverted_residual(
    x: Array,
    expand_filter: Array | None,
    depthwise_filter: Array,
    project_filter: Array,
    bias: Array | None = None,
    *,
    expand_bias: Array | None = None,
    depthwise_bias: Array | None = None,
    expand_activation: Any = "relu6",
    depthwise_activation: Any = "relu6",
    activation: Any = None,
    residual: bool = False,
    strides: Any = 1,
    padding: Any = 1,
    expand_strides: Any = 1,
    expand_padding: Any = 0,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    out: Array | None = None,
    device: str | None = None,
) -> Array:
    """MobileNetV2's block: a 1x1 convolution to more channels, a depthwise one, one to fewer, and x added.

    It equals three calls of :func:`conv2d`, roundings between them included; sums may be added up in another order. On
    the GPU and in the emulator, NumPy and CuPy arrays of float16 or bfloat16 run in one kernel, and the expanded tensor
    never reaches memory, where ``x`` and the result are channels last (``input_layout="nhwc"``), the channels are
    multiples of 8, the depthwise filter is 3x3, and ``families/inverted_residual_model.py`` predicts a gain. Large
    images of float32 or float64 that are channels last go by blocks of rows on the CPU (``cpu/chain.py``). All else
    runs as three convolutions. The filters are packed in every call: :class:`InvertedResidual` keeps them.

    Args:
        x: input ``[n, c, h, w]`` in ``input_layout``.
        expand_filter: ``[e, c, 1, 1]`` in ``filter_layout``, or None: no expansion, e is c.
        depthwise_filter: ``[e, 1, h, w]`` in ``filter_layout``.
        project_filter: ``[o, e, 1, 1]`` in ``filter_layout``.
        bias, expand_bias, depthwise_bias: ``[o]``, ``[e]`` and ``[e]``, or None.
        activation, expand_activation, depthwise_activation: names as in :func:`conv`; ``activation`` comes last.
        residual: whether x is added before ``activation``; then the result has x's shape.
        strides, padding: of the depthwise convolution.
        expand_strides, expand_padding: of the first convolution, which may have any filter: a network's stem.
        input_layout, filter_layout, out, device: as in :func:`conv`.

    Returns:
        ``[n, o, out_h, out_w]`` in ``input_layout``, of x's dtype.

    Raises:
        ValueError, TypeError: as :func:`conv`.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.ones((1, 2, 3, 3), np.float32)
        >>> ones = [np.ones(shape, np.float32) for shape in ((4, 2, 1, 1), (4, 1, 3, 3), (2, 4, 1, 1))]
        >>> gpu_conv.inverted_residual(x, *ones, residual=True)[0, 0, 0]
        array([25., 25., 25.], dtype=float32)
    """
    options = locals()
    for name in ("x", "residual", "out", "device"):
        del options[name]
    return _run(_steps(**options), x, x if residual else None, out, device)


@untraced
def depthwise_separable_conv2d(
    x: Array,
    depthwise_filter: Array,
    pointwise_filter: Array,
    bias: Array | None = None,
    *,
    depthwise_bias: Array | None = None,
    depthwise_activation: Any = None,
    strides: Any = 1,
    padding: Any = 0,
    dilations: Any = 1,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    output_layout: str | None = None,
    activation: Any = None,
    residual: Array | None = None,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str = "ieee",
    device: str | None = None,
) -> Array:
    """A depthwise pass followed by a 1x1 pass: the block that MobileNets are made of.

    It equals two calls of :func:`conv2d`, the rounding between them included, and runs in one launch where
    :func:`inverted_residual` without expansion does; ``residual`` is then None or x itself.

    Args:
        x: input ``[n, c, h, w]`` in ``input_layout``.
        depthwise_filter: ``[c * m, 1, h, w]`` in ``filter_layout``: m filters for every input channel.
        pointwise_filter: ``[o, c * m, 1, 1]`` in ``filter_layout``.
        bias: ``[o]``, added after the 1x1 pass, or None.
        depthwise_bias: ``[c * m]``, added after the depthwise pass, or None.
        depthwise_activation, activation: after the depthwise and the 1x1 pass, names as in :func:`conv`.
        strides, padding, dilations: of the depthwise pass.
        input_layout, filter_layout, output_layout, residual, out, out_dtype, precision, device: as in :func:`conv`.

    Returns:
        ``[n, o, out_h, out_w]`` in ``output_layout``.

    Raises:
        ValueError, TypeError: as :func:`conv`.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.ones((1, 2, 3, 3), np.float32)
        >>> gpu_conv.depthwise_separable_conv2d(x, np.ones((2, 1, 3, 3), np.float32), np.ones((1, 2, 1, 1), np.float32))
        array([[[[18.]]]], dtype=float32)
    """
    layouts = {"input_layout": input_layout, "filter_layout": filter_layout}
    depthwise = {"w": depthwise_filter, "bias": depthwise_bias, "activation": depthwise_activation, **layouts}
    depthwise |= {"strides": strides, "padding": padding, "dilations": dilations, "precision": precision}
    depthwise["groups"] = x.shape[(input_layout or "nchw").index("c")] if x.ndim == 4 else 1
    pointwise = {"w": pointwise_filter, "bias": bias, "activation": activation, **layouts}
    pointwise |= {"output_layout": output_layout, "out_dtype": out_dtype, "precision": precision}
    return _run([depthwise, pointwise], x, residual, out, device)


class InvertedResidual:
    """:func:`inverted_residual` as a layer for inference: filters are packed once, plans kept per input shape.

    Args:
        expand_filter, depthwise_filter, project_filter, bias: as in :func:`inverted_residual`. The arrays must not
            change afterwards: packed copies may be in use.
        **options: every option of :func:`inverted_residual` except ``out``, which belongs to a call.

    Example:
        >>> import numpy as np, gpu_conv
        >>> ones = [np.ones(shape, np.float32) for shape in ((4, 2, 1, 1), (4, 1, 3, 3), (2, 4, 1, 1))]
        >>> block = gpu_conv.InvertedResidual(*ones, strides=2)
        >>> block(np.ones((1, 2, 8, 8), np.float32)).shape
        (1, 2, 4, 4)
    """

    def __init__(
        self,
        expand_filter: Array | None,
        depthwise_filter: Array,
        project_filter: Array,
        bias: Array | None = None,
        *,
        residual: bool = False,
        device: str | None = None,
        **options: Any,
    ) -> None:
        self._steps = _steps(expand_filter, depthwise_filter, project_filter, bias, **options)
        self._layers = [Conv(**step, device=device) for step in self._steps]
        self._residual, self._device = residual, device
        self._filters = Filters()
        self._plans: dict[Any, _Plan | None] = {}
        self._lock = new_lock()

    @untraced
    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """The result as :func:`inverted_residual` gives it, written into ``out`` if given."""
        with borrow({"x": x, "out": out}) as lent:
            plan = self._plan(lent)
            if plan is not None:
                operands, result = plan.operands(x, out)
                plan.run(operands)
                return result
        value = x
        for layer in self._layers[:-1]:
            value = layer(value)
        return self._layers[-1](value, residual=x if self._residual else None, out=out)

    def bind(self, x: Array, *, out: Array | None = None) -> Callable[[], Array]:
        """The call with its arrays fixed: see :meth:`Conv.bind`."""
        with borrow({"x": x, "out": out}) as lent:
            plan = self._plan(lent)
            if plan is None:
                given = self(x, out=out)
                return lambda: self(x, out=given)
            operands, result = plan.operands(x, out)
            bound = execute.bind(plan.run, operands)

        def run() -> Array:
            with lent.place():
                bound()
            return result

        return run

    def in_one_launch(self, x: Array) -> bool:
        """Whether one kernel computes arrays like ``x``; elsewhere three convolutions are predicted to be faster."""
        with borrow({"x": x, "out": None}) as lent:
            return self._plan(lent) is not None

    def _plan(self, lent: Lent) -> _Plan | None:
        if lent.kind not in ("numpy", "cupy"):
            return None
        x, out = lent.arguments["x"], lent.arguments["out"]
        where = execute.device_of(lent.library, self._device)
        key = where, x.data.device_id if where == "cuda" else None, array_key(x), array_key(out)
        plan: _Plan | None = self._plans.get(key, _UNKNOWN)
        if plan is _UNKNOWN:
            plan = _in_one_launch(self._steps, x, x if self._residual else None, out, where, self._filters)
            with self._lock:
                while len(self._plans) >= _LIMIT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = plan
        return plan


def _steps(
    expand_filter: Array | None,
    depthwise_filter: Array,
    project_filter: Array,
    bias: Array | None = None,
    *,
    expand_bias: Array | None = None,
    depthwise_bias: Array | None = None,
    expand_activation: Any = "relu6",
    depthwise_activation: Any = "relu6",
    activation: Any = None,
    strides: Any = 1,
    padding: Any = 1,
    expand_strides: Any = 1,
    expand_padding: Any = 0,
    input_layout: str | None = None,
    filter_layout: str | None = None,
) -> list[Step]:
    """The convolutions of an inverted residual."""
    layouts = {"input_layout": input_layout, "filter_layout": filter_layout}
    expand = {"w": expand_filter, "bias": expand_bias, "activation": expand_activation, **layouts}
    expand |= {"strides": expand_strides, "padding": expand_padding}
    depthwise = {"w": depthwise_filter, "bias": depthwise_bias, "activation": depthwise_activation, **layouts}
    makes = depthwise_filter if expand_filter is None else expand_filter
    groups = makes.shape[(filter_layout or "oihw").find("o")] if makes.ndim == 4 else 1  # else conv2d complains
    depthwise |= {"strides": strides, "padding": padding, "groups": groups}
    project = {"w": project_filter, "bias": bias, "activation": activation, **layouts}
    return [*([expand] if expand_filter is not None else []), depthwise, project]


def _run(steps: list[Step], x: Array, residual: Array | None, out: Array | None, device: str | None) -> Array:
    """The result of the steps, each computed once."""
    with borrow({"x": x, "out": out}) as lent:
        if lent.kind in ("numpy", "cupy"):
            where = execute.device_of(lent.library, device)
            plan = _in_one_launch(steps, x, residual, out, where, Filters())
            if plan is not None:
                operands, result = plan.operands(x, out)
                plan.run(operands)
                return result
    for step in steps[:-1]:
        x = conv2d(x, device=device, **step)
    return conv2d(x, residual=residual, out=out, device=device, **steps[-1])


class _Plan:
    """One launch for the steps on arrays of one kind.

    Attributes:
        run: a function of the operands.
    """

    def __init__(self, run: execute.Run, fixed: dict[str, Array | None], call: Call) -> None:
        self.run = run
        self._fixed = fixed
        self._shape, self._dtype = call.result.shape, call.result.dtype
        self._empty = namespace(call.library).empty

    def operands(self, x: Array, out: Array | None) -> tuple[dict[str, Any], Array]:
        """What ``run`` takes, and the array that it writes."""
        if out is None:
            out = self._empty(self._shape, self._dtype)
        elif overlap(out, x):
            raise ValueError("out must not share memory with x or w")
        return {**self._fixed, "x": x, "y": out}, out


def _in_one_launch(
    steps: list[Step], x: Array, residual: Array | None, out: Array | None, where: execute.Device, filters: Filters
) -> _Plan | None:
    """How one kernel (on the CPU, one pass over the rows) computes the steps; None where none does, or not faster."""
    if len({type(x), *(type(step["w"]) for step in steps)}) > 1:
        return None
    if residual is not None and residual is not x:
        return None
    if where == "cpu":
        calls = _calls(steps, x, residual, out)
        together = execute.chained(calls)
        return together and _Plan(together, {}, calls[-1])
    from .families import inverted_residual as fused  # here: `import gpu_conv` loads no kernel family
    from .families.inverted_residual_model import Chain, slower, tiles

    if name_of(x.dtype) not in fused.DTYPES:  # before three calls are prepared: a float32 model has nothing but these
        return None
    calls = _calls(steps, x, residual, out)
    problems = [call.problem for call in calls]
    chain = Chain(problems[0] if len(problems) == 3 else None, problems[-2], problems[-1])
    target = execute.target_of(where)
    if fused.refuses(chain, target) or slower(chain, target):
        return None
    tile = tiles(chain, target)[0]
    run = execute.launched(fused.plan(chain, target, tile), where)
    return _Plan(run, filters.pack_chain(calls, chain, tile), calls[-1])


def _calls(steps: list[Step], x: Array, residual: Array | None, out: Array | None) -> list[Call]:
    """The steps as calls; what lies between them has no memory."""
    calls: list[Call] = []
    for step in steps:
        last = {"residual": residual, "out": out} if step is steps[-1] else {"allocate": False}
        calls.append(prepare(calls[-1].result if calls else x, **step, **last, rank=2))
    return calls
