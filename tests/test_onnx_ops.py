"""Every operator of the ONNX runner against onnxruntime, each with its attributes and its changes between opsets.

Each case runs three times: planned, replayed with the same values, replayed with others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from gpu_conv.graph.ops import OPS
from gpu_conv.onnx import load

from .graph_models import expected, one_node
from .onnx_cases import CASES


def other_values(array: Any) -> Any:
    """Other numbers of the same kind; integer operands and scalars, which steer, stay."""
    return np.ascontiguousarray(np.roll(array[..., ::-1], 3)) if array.dtype.kind == "f" and array.ndim > 1 else array


def assert_same(found: Any, wanted: Any, what: str) -> None:
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    if wanted.dtype.kind in "iub":
        np.testing.assert_array_equal(found, wanted, err_msg=what)
    else:
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        tolerance = 2e-3 if wanted.dtype == np.float16 else 5e-6
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=what)


@pytest.mark.parametrize(("op", "inputs", "constants", "outputs", "opset", "attributes"), CASES)
def test_operator(op: str, inputs: Any, constants: Any, outputs: int, opset: int, attributes: Any) -> None:
    model, feeds = one_node(op, inputs, constants, outputs, opset, **attributes)
    runner = load(model)
    changed = {name: other_values(a) for name, a in feeds.items()}
    try:
        wanted = [expected(model, f) for f in (feeds, feeds, changed)]
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        pytest.fail("onnxruntime cannot run this case: it proves nothing")
    for run, (values, outs) in enumerate(zip((feeds, feeds, changed), wanted, strict=True)):
        found = runner(values)
        assert list(found) == list(outs)
        for name in outs:
            assert_same(found[name], outs[name], f"run {run}, output {name}")


MADE_BY_FUSION = {"Affine", "ChannelShuffle", "InvertedResidual", "Silu"}


def test_every_operator_has_a_case() -> None:
    tested_elsewhere = {"If", "Swish", "IsNaN"}
    tested = {c.values[0] for c in CASES}
    assert set(OPS) - tested == MADE_BY_FUSION | tested_elsewhere


def test_operators_are_onnx_ones() -> None:
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert set(OPS) - known == MADE_BY_FUSION
