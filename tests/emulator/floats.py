"""Operands and the comparison of the floating-point tests."""

import numpy as np

from .exact import same_bits
from .ptx import DTYPES, apply

LANES = 192
INF = float("inf")


def operands(kind, seed, lanes=LANES):
    """Ordinary values of both signs, values that need rounding, subnormals, infinities, NaN."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(DTYPES[kind])
    scale = {"f16": 3, "bf16": 20, "f32": 20, "f64": 60}[kind]
    usual = rng.standard_normal(lanes) * 2.0 ** rng.integers(-scale, scale, lanes)
    tiny = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 5e-324}[kind]
    edges = np.array([0.0, -0.0, 1.0, -1.0, 1.5, 2.0, 0.5, 3.0, -7.0, INF, -INF, np.nan, tiny, -tiny, 6.0])
    pool = np.concatenate([usual, edges, rng.integers(-9, 9, lanes)])
    return rng.choice(pool, lanes).astype(dtype)


def check(instruction, kinds, out_kind, reference, lanes=LANES, arrays=None, compare=same_bits):
    arrays = arrays or [operands(kind, 7 * i + len(instruction), lanes) for i, kind in enumerate(kinds)]

    def expected(columns):
        with np.errstate(all="ignore"):
            rows = zip(*(np.asarray(c).astype(np.float64).tolist() for c in columns), strict=True)
            return np.array([reference(*row) for row in rows]).astype(DTYPES[out_kind])

    def agree(got, want):
        wrong = np.flatnonzero([not compare(g, w) for g, w in zip(got, want, strict=True)])
        assert not wrong.size, [(got[i], want[i], [a[i] for a in arrays]) for i in wrong[:4]]

    agree(apply(instruction, arrays, kinds, out_kind), expected(arrays))
    every = tuple(range(len(kinds)))
    for uniform, start in ((every, 3), (every[1:], 11)):
        shifted = [np.roll(a, -start) for a in arrays]
        seen = [np.full_like(a, a[0]) if i in uniform else a for i, a in enumerate(shifted)]
        agree(apply(instruction, shifted, kinds, out_kind, uniform=uniform), expected(seen))
