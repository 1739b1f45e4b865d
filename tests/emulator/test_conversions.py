"""Every conversion from and to floating point against correct rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import round_to, same_bits
from .floats import INF, check, operands
from .ptx import DTYPES, apply

NARROW = [("f64", "f32", m) for m in ("rn", "rz", "rm", "rp")]
NARROW += [("f32", t, m) for t in ("f16", "bf16") for m in ("rn", "rz")] + [("f64", t, "rn") for t in ("f16", "bf16")]


@pytest.mark.parametrize(("source", "target", "mode"), NARROW)
def test_narrowing(source, target, mode):
    check(f"cvt.{mode}.{target}.{source} {{d}}, {{a}}", (source,), target,
          lambda a: round_to(Fraction(a), target, mode) if math.isfinite(a) else a)  # fmt: skip


def test_ties_to_even_when_narrowing():
    halfway = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 3 * 2.0**-25, 65519.996, 65520.0], np.float32)
    got = apply("cvt.rn.f16.f32 {d}, {a}", [halfway], ("f32",), "f16")
    assert got.tolist() == [1.0, 1 + 2.0**-9, 0.0, 2.0**-23, 65504.0, INF]
    halfway = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    assert apply("cvt.rn.bf16.f32 {d}, {a}", [halfway], ("f32",), "bf16").tolist() == [1.0, 1 + 2.0**-6]


@pytest.mark.parametrize(("source", "target"), [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("f32", "f64")])
def test_widening_is_exact(source, target):
    check(f"cvt.{target}.{source} {{d}}, {{a}}", (source,), target, lambda a: a)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_pairs(kind, mode):
    high, low = operands("f32", 1), operands("f32", 2)
    for relu in ("", ".relu"):
        got = apply(f"cvt.{mode}{relu}.{kind}x2.f32 {{d}}, {{a}}, {{b}}", [high, low], ("f32", "f32"), f"{kind}x2")
        halves = got.view(DTYPES[kind]).reshape(-1, 2)
        for column, values in ((0, low), (1, high)):
            want = [v if not math.isfinite(v) else round_to(Fraction(v), kind, mode) for v in values.tolist()]
            if relu:
                want = [v if math.isnan(v) else max(v, 0.0) for v in want]
            assert same_bits(halves[:, column], np.array(want).astype(DTYPES[kind]))


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_tf32(mode):
    x = operands("f32", 8)
    x = x[np.isfinite(x)]
    got = apply(f"cvt.{mode}.tf32.f32 {{d}}, {{a}}", [x], ("f32",), "tf32").view(np.float32)
    assert same_bits(got, np.array([round_to(Fraction(v), "tf32", mode) for v in x.tolist()], np.float32))


ROUND = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("mode", list(ROUND))
@pytest.mark.parametrize("target", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_to_integer(target, mode):
    info = np.iinfo(DTYPES[target])

    def reference(a):
        if math.isnan(a):
            return 0
        value = ROUND[mode](a) if math.isfinite(a) else (info.max if a > 0 else info.min)
        return min(max(value, int(info.min)), int(info.max))

    for source in ("f32", "f64", "f16"):
        values = operands(source, 12, 96)
        got = apply(f"cvt.{mode}.{target}.{source} {{d}}, {{a}}", [values], (source,), target)
        assert got.tolist() == [reference(v) for v in values.astype(np.float64).tolist()]


@pytest.mark.parametrize("mode", list(ROUND))
def test_to_integral(mode):
    check(
        f"cvt.{mode}.f32.f32 {{d}}, {{a}}", ("f32",), "f32", lambda a: float(ROUND[mode](a)) if math.isfinite(a) else a
    )
    check(
        f"cvt.{mode}.f64.f64 {{d}}, {{a}}", ("f64",), "f64", lambda a: float(ROUND[mode](a)) if math.isfinite(a) else a
    )


FROM_INTEGER = [(f"{s}{n}", t) for s in "us" for n in (8, 16, 32) for t in ("f32", "f64", "f16", "bf16")]
FROM_INTEGER += [(s, t) for s in ("u64", "s64") for t in ("f32", "f64")]


@pytest.mark.parametrize(("source", "target"), FROM_INTEGER)
def test_from_integer(source, target):
    info = np.iinfo(DTYPES[source])
    rng = np.random.default_rng(6)
    edges = np.array([0, 1, info.max, info.min, info.max - 1], DTYPES[source])
    values = np.concatenate([edges, rng.integers(info.min, info.max, 90, DTYPES[source], True)])
    got = apply(f"cvt.rn.{target}.{source} {{d}}, {{a}}", [values], (source,), target)
    assert same_bits(got, np.array([round_to(Fraction(v), target) for v in values.tolist()]).astype(DTYPES[target]))
    if target == "f32" and not source.endswith("64"):
        for mode in ("rz", "rm", "rp"):
            got = apply(f"cvt.{mode}.f32.{source} {{d}}, {{a}}", [values], (source,), "f32")
            assert same_bits(got, np.array([round_to(Fraction(v), "f32", mode) for v in values.tolist()], np.float32))
