"""LSTM and GRU: one matrix product for the inputs of all steps, then one small one per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ModelError
from ..ir import Array
from .elementwise import Spec, activate
from .registry import Call, op

_GATES = {"LSTM": 4, "GRU": 3}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}
_NAMES = {
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "hardsigmoid": "hard_sigmoid",
    "leakyrelu": "leaky_relu",
    "elu": "elu",
}
_DEFAULT_PARAMETERS = {"hard_sigmoid": (0.2, 0.5), "leaky_relu": (0.01,), "elu": (1.0,)}

Step = Callable[[Array, Array], Array]


def _activations(call: Call, directions: int) -> list[list[Spec]]:
    """The activations of each direction."""
    per = _DEFAULTS[call.node.op]
    names = call.attrs.get("activations") or per * directions
    if len(names) != len(per) * directions:
        raise ModelError(f"activations {names}: {len(per)} are needed for each of {directions} directions")
    alphas, betas = (iter(call.attrs.get(f"activation_{p}") or ()) for p in ("alpha", "beta"))
    specs: list[Spec] = []
    for name in names:
        known = _NAMES.get(name.lower())
        if known is None:
            raise ModelError(f"activation {name!r} is not supported, only {', '.join(sorted(_NAMES))}")
        defaults = _DEFAULT_PARAMETERS.get(known, ())
        given = [next(source, d) for source, d in zip((alphas, betas), defaults, strict=False)]
        specs.append((known, *given) if defaults else known)
    return [specs[i * len(per) : (i + 1) * len(per)] for i in range(directions)]


@op("LSTM", "GRU")
def recurrent(
    call: Call,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    peepholes: Array | None = None,
) -> tuple[Array, ...]:
    """Every direction of the layer.

    Args:
        x: ``[steps, batch, inputs]`` (``[batch, steps, inputs]`` with layout 1).
        w, r, b: ``[directions, gates * hidden, inputs]``, ``[.., hidden]``, ``[directions, 2 * gates * hidden]``.
        lengths: valid steps of each sequence; beyond them the state stands still and y is zero.
        h0, c0: initial states ``[directions, batch, hidden]``.
        peepholes: LSTM only, ``[directions, 3 * hidden]`` for the gates i, o, f.

    Returns:
        y ``[steps, directions, batch, hidden]``, the last h and, for an LSTM, the last c; batch first with layout 1.
    """
    xp = call.xp
    batch_first = bool(call.attrs.get("layout", 0))
    if batch_first:
        x = x.swapaxes(0, 1)
        h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
    steps, batch, _ = x.shape
    hidden, directions = r.shape[-1], r.shape[0]
    expected = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[call.attrs["direction"]]
    if len(expected) != directions or w.shape[1] != _GATES[call.node.op] * hidden or w.shape[2] != x.shape[2]:
        raise ModelError(f"filter shapes {w.shape} and {r.shape} do not fit input {x.shape}")
    y = xp.zeros((steps, directions, batch, hidden), x.dtype)
    zeros = xp.zeros((batch, hidden), x.dtype)
    masks = None if lengths is None else xp.arange(steps)[:, None, None] < lengths[None, :, None]
    finals = []
    for d, (reverse, specs) in enumerate(zip(expected, _activations(call, directions), strict=True)):
        bias = xp.zeros(2 * w.shape[1], x.dtype) if b is None else b[d]
        wx = xp.matmul(x, w[d].T)
        state = [zeros if s is None else s[d] for s in ((h0, c0) if call.node.op == "LSTM" else (h0,))]
        if call.node.op == "LSTM":
            step = _lstm(call, r[d].T, specs, None if peepholes is None else peepholes[d])
            wx += bias[: 4 * hidden] + bias[4 * hidden :]
        else:
            step = _gru(call, r[d].T, specs, bias[3 * hidden :])
            wx += bias[: 3 * hidden]
        for t in reversed(range(steps)) if reverse else range(steps):
            new = step(wx[t], state)
            state = new if masks is None else [xp.where(masks[t], n, s) for n, s in zip(new, state, strict=True)]
            y[t, d] = new[0] if masks is None else xp.where(masks[t], new[0], zeros)
        finals.append(state)
    results = (y, *(xp.stack(s) for s in zip(*finals, strict=True)))
    if batch_first:
        results = (y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in results[1:]))
    return tuple(xp.ascontiguousarray(s) for s in results)


def _clipped(call: Call, gates: Array) -> Array:
    limit = call.attrs.get("clip", 0.0)
    return activate(("clip", -limit, limit), gates, gates) if limit else gates


def _lstm(call: Call, recurrence: Array, specs: list[Spec], peepholes: Array | None) -> Any:
    """One step, gates in ONNX's order i, o, f, c."""
    hidden = recurrence.shape[0]
    f, g, h = specs
    pi, po, pf = (None,) * 3 if peepholes is None else peepholes.reshape(3, hidden)

    def step(wx: Array, state: list[Array]) -> list[Array]:
        last, cell = state
        gates = call.xp.matmul(last, recurrence)
        gates += wx
        i, o, forget, c = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
        if pi is not None:
            i += pi * cell
            forget += pf * cell
        _clipped(call, gates)
        i = activate(f, i)
        forget = 1 - i if call.attrs.get("input_forget", 0) else activate(f, forget)
        cell = forget * cell + i * activate(g, c)
        if po is not None:
            o = _clipped(call, o + po * cell)
        return [activate(f, o) * activate(h, cell), cell]

    return step


def _gru(call: Call, recurrence: Array, specs: list[Spec], bias: Array) -> Any:
    """One step, gates in ONNX's order z, r, h."""
    hidden = recurrence.shape[0]
    f, g = specs
    late = bool(call.attrs.get("linear_before_reset", 0))

    def step(wx: Array, state: list[Array]) -> list[Array]:
        (last,) = state
        both = call.xp.matmul(last, recurrence[:, : 2 * hidden]) + wx[:, : 2 * hidden] + bias[: 2 * hidden]
        both = activate(f, _clipped(call, both))
        z, r = both[:, :hidden], both[:, hidden:]
        weights, extra = recurrence[:, 2 * hidden :], bias[2 * hidden :]
        if late:
            candidate = r * (call.xp.matmul(last, weights) + extra) + wx[:, 2 * hidden :]
        else:
            candidate = call.xp.matmul(r * last, weights) + extra + wx[:, 2 * hidden :]
        return [(1 - z) * activate(g, _clipped(call, candidate)) + z * last]

    return step
