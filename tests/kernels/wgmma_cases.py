"""Convolutions for ``kernels/wgmma.cu``, small and awkward: run in the emulator and on the GPU."""

from dataclasses import dataclass, field
from typing import Any

from tests.kernels.checking import arrays


@dataclass(frozen=True)
class Case:
    """One convolution, channels last."""

    name: str
    channels: int
    outputs: int
    size: tuple[int, ...]
    taps: tuple[int, ...] = (3, 3)
    groups: int = 1
    batch: int = 1
    dtype: str = "float16"
    bias: str | None = None
    residual: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def arrays(self, exact: bool = True) -> tuple[Any, Any]:
        """x and w."""
        shape = self.channels // self.groups, self.groups, self.outputs // self.groups
        layout = self.layouts["filter_layout"]
        return arrays(
            self.dtype, *shape, self.size, self.taps, batch=self.batch, last=True, w_layout=layout, exact=exact
        )

    @property
    def layouts(self) -> dict[str, Any]:
        axes = "hw"[-len(self.size) :]
        return {"input_layout": f"n{axes}c", "filter_layout": f"o{axes}i", "groups": self.groups}


CASES = (
    Case("pointwise", 72, 136, (5, 7), (1, 1), batch=4, bias="float32"),
    Case("pointwise, every second pixel", 40, 64, (9, 14), (1, 1), batch=2, residual=True, options={"strides": 2}),
    Case("pointwise, one axis", 200, 8, (131,), (1,), options={"activation": "relu"}),
    Case("3x3", 72, 80, (9, 11), bias="float16", options={"padding": 1, "activation": "relu6"}),
    Case("3x3, stride 2", 16, 24, (12, 9), batch=3, dtype="bfloat16", options={"padding": 1, "strides": 2}),
    Case("3x3, strides 3 and 8", 8, 8, (11, 41), batch=2, options={"padding": 2, "strides": (3, 8)}),
    Case("3x3, dilated", 64, 64, (13, 10), residual=True, options={"padding": (2, 3), "dilations": (2, 3)}),
    Case("2x4, uneven padding", 24, 40, (7, 12), (2, 4), options={"padding": ((0, 1), (3, 0)), "strides": (1, 2)}),
    Case("3x3, cropped", 24, 16, (11, 12), bias="float32", options={"padding": ((-2, 1), (-1, -3))}),
    Case("1x1, padded", 16, 16, (5, 6), (1, 1), options={"padding": 1}),
    Case("1x5", 8, 72, (4, 30), (1, 5), batch=2, dtype="bfloat16", options={"padding": ((0, 0), (2, 2))}),
    Case("one axis", 40, 24, (70,), (4,), batch=2, bias="float32", options={"padding": ((3, 0),), "dilations": 2}),
    Case("groups", 96, 64, (6, 7), groups=2, batch=2, residual=True, options={"padding": 1, "activation": "relu"}),
    Case("many groups", 40, 80, (5, 5), groups=5, bias="float32", options={"padding": 1}),
    Case("grouped pointwise", 144, 24, (4, 9), (1, 1), groups=3, batch=2, dtype="bfloat16", bias="bfloat16"),
    Case(
        "float32 output", 16, 40, (6, 9), residual=True, bias="float32", options={"padding": 1, "out_dtype": "float32"}
    ),
    Case("leaky", 16, 40, (6, 9), bias="float32", options={"activation": ("leaky_relu", 0.5), "out_dtype": "bfloat16"}),
)
