"""Random convolutions on chunked arrays, and what their results are compared by."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np

import gpu_conv
import gpu_conv.dask as gd
from gpu_conv.layout import spatial_axes

FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*FLOATS, "int8", "uint8", "int32", "complex64")


@dataclass
class Configuration:
    """One call, on arrays and on dask arrays."""

    x: Any
    w: Any
    bias: Any
    transposed: bool
    options: dict[str, Any]
    x_chunks: Any
    chunks: Any = None

    def __str__(self):
        shown = {name: getattr(value, "shape", value) for name, value in self.options.items()}
        return (
            f"x {self.x.shape} {self.x.dtype} w {self.w.shape} bias {self.bias is not None} "
            f"transposed {self.transposed} {shown} x_chunks {self.x_chunks} chunks {self.chunks}"
        )

    def whole(self):
        operator = gpu_conv.conv_transpose if self.transposed else gpu_conv.conv
        return operator(self.x, self.w, self.bias, **self.options)

    def tiled(self):
        operator = gd.conv_transpose if self.transposed else gd.conv
        x = da.from_array(self.x, chunks=self.x_chunks)
        return operator(x, self.w, self.bias, chunks=self.chunks, **self.options)


class Draw:
    """Random configurations: every option, and any chunks."""

    def __init__(self, rng, dtypes=DTYPES, exact=True):
        self.rng, self.dtypes, self.exact = rng, dtypes, exact

    def one_of(self, *values):
        return values[self.rng.integers(len(values))]

    def upto(self, most, least=1):
        return int(self.rng.integers(least, most + 1))

    def array(self, shape, dtype):
        kind = np.dtype(dtype)
        if not self.exact:
            return self.rng.standard_normal(shape).astype(kind)
        low = 0 if kind.kind == "u" else -3
        values = self.rng.integers(low, 4, shape)
        return (values + 1j * self.rng.integers(low, 4, shape) if kind.kind == "c" else values).astype(kind)

    def cuts(self, size, multiple=1):
        """Random chunks of an axis: at multiples of a number, or at all of them and between."""
        every = np.arange(1, size)
        at_multiples = every % multiple == 0
        kept = self.rng.random(len(every)) < self.one_of(0.0, 0.1, 0.3)
        kept = kept & at_multiples if self.rng.random() < 0.5 else kept | (at_multiples & (multiple > 1))
        return tuple(int(b - a) for a, b in pairwise([0, *every[kept], size]))

    def padding(self, rank):
        pairs = [[self.upto(4, -2) for _ in "ab"] for _ in range(rank)]
        return self.one_of(0, 1, 2, "valid", "same_upper", "same_lower", tuple(self.upto(3, 0) for _ in pairs), pairs)

    def per_axis(self, most, rank):
        return self.one_of(1, 1, self.upto(most), tuple(self.upto(most) for _ in range(rank)))

    def permuted(self, letters):
        return "".join(self.rng.permutation(list(letters)))

    def configuration(self):
        """Not always a valid one."""
        rank = self.one_of(1, 2, 2, 2, 3)
        spatial, transposed = spatial_axes(rank), self.rng.random() < 0.25
        dtype, kind = self.one_of(*self.dtypes), self.one_of("dense", "grouped", "depthwise", "batch")
        groups = 1 if kind == "dense" else self.upto(4, 2)
        inputs, filters = (1, self.upto(2)) if kind == "depthwise" else (self.upto(4), self.upto(4))
        options = {"strides": self.per_axis(3, rank), "dilations": self.per_axis(3, rank)}
        options["padding"] = self.padding(rank)
        batch = self.upto(3)
        if kind == "batch" and not transposed:
            options["batch_groups"] = groups
            batch, channels = batch * groups, inputs
        else:
            options["groups"] = groups
            channels = inputs * groups
        if not transposed:
            options |= {
                "input_dilations": self.one_of(1, 1, self.per_axis(3, rank)),
                "flip_filter": self.one_of(True, False),
            }
        elif self.rng.random() < 0.3:
            options["output_padding"] = self.upto(1, 0)

        sizes = {"n": batch, "c": channels} | {a: self.upto(17 if rank < 3 else 8, 4) for a in spatial}
        taps = {a: self.upto(4) for a in spatial}
        grouped = self.rng.random() < 0.2
        if grouped:
            filter_sizes = {"g": groups, "o": filters, "i": inputs} | taps
        elif transposed:
            filter_sizes = {"i": channels, "o": filters} | taps
        else:
            filter_sizes = {"o": filters * groups, "i": inputs} | taps
        layout, filter_layout = self.permuted("nc" + spatial), self.permuted(filter_sizes)
        options |= {"input_layout": layout, "filter_layout": filter_layout}
        if self.rng.random() < 0.3:
            options["output_layout"] = self.permuted(layout)
        x = self.array([sizes[a] for a in layout], dtype)
        w = self.array([filter_sizes[a] for a in filter_layout], dtype)
        outputs = filters * groups
        bias = self.array((outputs,), "int32" if x.dtype.kind in "iu" else dtype) if self.rng.random() < 0.5 else None
        if dtype in ("int8", "uint8") and not transposed:
            options |= {"x_zero_point": self.upto(2, 0), "w_zero_point": self.rng.integers(0, 3, outputs)}
            if self.rng.random() < 0.3:
                options["requantize"] = (self.rng.random(outputs) + 0.1, np.int8(3))
        chunks = [self.cuts(n) for n in x.shape]
        made = Configuration(x, w, bias, transposed, options, chunks)
        return self._with_output(made, filters)

    def _with_output(self, made, filters):
        """A residual and chunks of the output, for which its shape must be known."""
        try:
            y = made.whole()
        except (ValueError, TypeError):
            return made
        layout = made.options.get("output_layout") or made.options["input_layout"]
        options = dict(made.options)
        if "requantize" not in options and self.rng.random() < 0.3:
            options["residual"] = self.array(y.shape, y.dtype)
        if "requantize" not in options and y.dtype.kind != "c" and self.rng.random() < 0.3:
            options["activation"] = self.one_of("relu", ("clip", -5, 9))
        chunks = None
        if self.rng.random() < 0.5:
            chunks = [self.cuts(n, filters if a == "c" else 1) for n, a in zip(y.shape, layout)]
            if options.get("batch_groups", 1) > 1:
                chunks = [(n,) if a in "nc" else c for c, n, a in zip(chunks, y.shape, layout)]
        return Configuration(made.x, made.w, made.bias, made.transposed, options, made.x_chunks, chunks)


def compute(array):
    """The result, put together from its blocks, each with the shape and dtype that was declared."""
    result = np.empty(array.shape, array.dtype)
    blocks = dask.get(dict(array.dask), [*dask.core.flatten(array.__dask_keys__())])
    for place, block in zip(da.core.slices_from_chunks(array.chunks), blocks):
        assert block.shape == result[place].shape and block.dtype == array.dtype
        result[place] = block
    return result


def bits(array):
    """The bytes of an array, without the sign of zeros: that depends on the order of additions even in exact sums."""
    return (array + np.zeros((), array.dtype)).tobytes()
