"""Control flow."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..ir import Array
from .registry import Call, host, op


@op("If", views=True, host=(0,), data_dependent=True)
def if_(call: Call, condition: Array, *captured: Array) -> Any:
    """Run one of two subgraphs; what they read from outside follows the condition."""
    value = host(condition)
    if value.size != 1:
        raise ModelError(f"condition must be one element, got shape {value.shape}")
    results = call.branches["then_branch" if value.reshape(())[()] else "else_branch"](*captured)
    return results[0] if len(results) == 1 else tuple(results)
