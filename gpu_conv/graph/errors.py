"""The errors of the ONNX runner: every message names the node, tensor or input and the rule that it breaks."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be run as written, or inputs that do not fit it."""


class ModelTypeError(ModelError, TypeError):
    """The same for an element type or an array kind."""


class NodeError(ModelError):
    """An error that names its node already."""

    @classmethod
    def wrap(cls, node: object, error: Exception, detail: str = "") -> ModelError:
        """``error`` with the node that caused it; an error that names one is returned as it is."""
        if isinstance(error, cls):
            return error
        kind = NodeTypeError if isinstance(error, TypeError) else cls
        return kind(f"{node}: {error}{detail}")


class NodeTypeError(NodeError, ModelTypeError):
    """The same for an element type or an array kind."""


# What an operator may raise when operands do not fit; anything else is a bug and passes through.
EXPECTED = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
