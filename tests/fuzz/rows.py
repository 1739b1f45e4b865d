"""A convolution for every row of the table; a new row comes in by itself, or a test says that it needs a shape here."""

import functools

import numpy as np

from gpu_conv import arguments, dispatch
from gpu_conv.cuda.targets import KNOWN_TARGETS
from tests.fuzz import oracle

ROWS = [row.name for row in dispatch.TABLE]
# x, w, options, in channels-first order: every row takes one of them, with the channels first or last.
SHAPES = (
    ((2, 16, 5, 7), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    ((2, 16, 24), (16, 1, 4), {"groups": 16, "padding": ((3, 0),)}),
    ((2, 16, 5, 8), (16, 16, 3, 3), {"padding": 1}),
    ((2, 64, 5, 8), (64, 64, 3, 3), {"padding": 1}),
    ((2, 64, 5, 8), (64, 64, 1, 1), {}),
    ((2, 4, 5, 8), (16, 4, 3, 3), {"padding": 1}),
)
WITHOUT_RESIDUAL = ("conv_stem",)


@functools.cache
def accepted(name, dtype, orders=(False, True)):
    """Architecture, sizes of x and w, and options of the first shape that a row takes in this dtype, or None.

    ``orders``: with the channels first (False), last (True), or either.
    """
    row = dispatch.row(name)
    for x_shape, w_shape, options in SHAPES:
        names = oracle.letters(len(x_shape) - 2)
        layouts = {"input_layout": f"n{names}c", "filter_layout": f"o{names}i"}
        last = tuple((shape[0], *shape[2:], shape[1]) for shape in (x_shape, w_shape))
        for shapes, order in [((x_shape, w_shape), {}), (last, layouts)][min(orders) : max(orders) + 1]:
            problem = arguments.prepare(*(np.empty(shape, dtype) for shape in shapes), **options, **order).problem
            for arch in ("sm_80", "sm_90a", "sm_120"):
                if row.refuses(problem, KNOWN_TARGETS[arch]) is None:
                    return arch, *shapes, options | order
    return None


def taking(problem, arch="sm_80"):
    """Names of the rows that take a problem."""
    return [row.name for row in dispatch.TABLE if row.refuses(problem, KNOWN_TARGETS[arch]) is None]


def usual(name):
    """The dtype in which a row is looked at once: float16, or int8 where it takes no floats."""
    return next((dtype for dtype in ("float16", "float32", "int8") if accepted(name, dtype)), None)
