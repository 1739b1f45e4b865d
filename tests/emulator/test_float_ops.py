"""Every floating-point instruction against correctly rounded rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import round_to, same_bits
from .floats import INF, check, operands
from .ptx import DTYPES, apply


def both_finite(*values):
    return all(math.isfinite(v) for v in values)


def exact(function, special):
    """Apply a function of Fractions; infinities and NaN go to ``special``, which works on floats."""

    def reference(kind, mode, *values):
        if not both_finite(*values):
            return special(*values)
        return round_to(function(*map(Fraction, values)), kind, mode)

    return reference


def product(a, b):
    return math.nan if (a == 0 and math.isinf(b)) or (b == 0 and math.isinf(a)) else a * b


ADD = exact(lambda a, b: a + b, lambda a, b: a + b)
SUB = exact(lambda a, b: a - b, lambda a, b: a - b)
MUL = exact(lambda a, b: a * b, product)
FMA = exact(lambda a, b, c: a * b + c, lambda a, b, c: product(a, b) + c)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(("opcode", "reference"), [("add", ADD), ("sub", SUB), ("mul", MUL)])
def test_float32(opcode, reference, mode):
    check(f"{opcode}.{mode}.f32 {{d}}, {{a}}, {{b}}", ("f32", "f32"), "f32", lambda *v: reference("f32", mode, *v))


@pytest.mark.parametrize(("opcode", "reference"), [("add", ADD), ("sub", SUB), ("mul", MUL)])
def test_float64(opcode, reference):
    check(f"{opcode}.f64 {{d}}, {{a}}, {{b}}", ("f64", "f64"), "f64", lambda *v: reference("f64", "rn", *v))
    check(f"{opcode}.rn.f64 {{d}}, {{a}}, {{b}}", ("f64", "f64"), "f64", lambda *v: reference("f64", "rn", *v))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_fma32(mode):
    check(f"fma.{mode}.f32 {{d}}, {{a}}, {{b}}, {{c}}", ("f32",) * 3, "f32", lambda *v: FMA("f32", mode, *v))


def test_fma64():
    check("fma.rn.f64 {d}, {a}, {b}, {c}", ("f64",) * 3, "f64", lambda *v: FMA("f64", "rn", *v))
    a = np.random.default_rng(5).standard_normal(192)
    nearly = [a, 1 / a, -(a * (1 / a))]  # what is left is the rounding error of the product
    check("fma.rn.f64 {d}, {a}, {b}, {c}", ("f64",) * 3, "f64", lambda *v: FMA("f64", "rn", *v), arrays=nearly)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("opcode", "reference", "count"), [("add", ADD, 2), ("sub", SUB, 2), ("mul", MUL, 2), ("fma.rn", FMA, 3)]
)
def test_half(opcode, reference, count, kind):
    names = ", ".join(f"{{{c}}}" for c in "dabc"[: count + 1])
    check(f"{opcode}.{kind} {names}", (kind,) * count, kind, lambda *v: reference(kind, "rn", *v))


def packed(low, high):
    return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << 16


PAIRS = [(f"{o}{m}", 2) for o in ("min", "max") for m in ("", ".NaN")] + [("neg", 1), ("abs", 1)]
PAIRS += [("add", 2), ("sub", 2), ("mul", 2), ("fma.rn", 3), ("fma.rn.relu", 3)]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize(("opcode", "count"), PAIRS)
def test_half_pairs_do_what_the_scalar_does_to_each_half(opcode, count, kind):
    names = ", ".join(f"{{{c}}}" for c in "dabc"[: count + 1])
    low = [operands(kind, i, 96) for i in range(count)]
    high = [operands(kind, 40 + i, 96) for i in range(count)]
    single = [apply(f"{opcode}.{kind} {names}", half, (kind,) * count, kind) for half in (low, high)]
    pairs = [packed(a, b) for a, b in zip(low, high, strict=True)]
    for uniform in ((), tuple(range(count)), tuple(range(1, count))):
        got = apply(f"{opcode}.{kind}x2 {names}", pairs, (f"{kind}x2",) * count, f"{kind}x2", uniform=uniform)
        got = np.ascontiguousarray(got).view(DTYPES[kind]).reshape(-1, 2).T
        if uniform == ():
            assert same_bits(got[0], single[0])
            assert same_bits(got[1], single[1])
        elif len(uniform) == count:
            assert same_bits(got[0], np.full(96, single[0][0]))
            assert same_bits(got[1], np.full(96, single[1][0]))


def smaller(a, b):
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b)


def larger(a, b):
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)


def strict(function):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else function(a, b)


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_min_max(kind):
    for name, function in (("min", smaller), ("max", larger)):
        check(f"{name}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), kind, function)
        if kind != "f64":
            check(f"{name}.NaN.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), kind, strict(function))
    if kind == "f32":
        check("min.f32 {d}, {a}, {b}, {c}", ("f32",) * 3, "f32", lambda a, b, c: smaller(smaller(a, b), c))


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_sign(kind):
    def signed_zero_too(got, want):
        return same_bits(got, want) and (np.isnan(got) or np.signbit(got) == np.signbit(want))

    check(f"neg.{kind} {{d}}, {{a}}", (kind,), kind, lambda a: -a, compare=signed_zero_too)
    check(f"abs.{kind} {{d}}, {{a}}", (kind,), kind, abs, compare=signed_zero_too)
    if kind in ("f32", "f64"):
        check(f"copysign.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), kind, lambda a, b: math.copysign(b, a))


def divided(kind, mode, a, b):
    if not both_finite(a, b) or b == 0:
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b))
    return round_to(Fraction(a) / Fraction(b), kind, mode)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_division_and_roots(kind):
    check(f"div.rn.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), kind, lambda a, b: divided(kind, "rn", a, b))
    check(f"rcp.rn.{kind} {{d}}, {{a}}", (kind,), kind, lambda a: divided(kind, "rn", 1.0, a))
    positive = [np.abs(operands(kind, 3))]
    root = np.sqrt(positive[0])
    assert same_bits(apply(f"sqrt.rn.{kind} {{d}}, {{a}}", positive, (kind,), kind), root)


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_division(mode):
    check(f"div.{mode}.f32 {{d}}, {{a}}, {{b}}", ("f32", "f32"), "f32", lambda a, b: divided("f32", mode, a, b))
    check(f"rcp.{mode}.f32 {{d}}, {{a}}", ("f32",), "f32", lambda a: divided("f32", mode, 1.0, a))


APPROXIMATE = [
    ("ex2.approx.f32", "f32", lambda a: 2.0**a),
    ("lg2.approx.f32", "f32", lambda a: math.log2(abs(a))),
    ("sin.approx.f32", "f32", math.sin),
    ("cos.approx.f32", "f32", math.cos),
    ("tanh.approx.f32", "f32", math.tanh),
    ("rsqrt.approx.f32", "f32", lambda a: 1 / math.sqrt(abs(a))),
    ("rsqrt.approx.f64", "f64", lambda a: 1 / math.sqrt(abs(a))),
    ("sqrt.approx.f32", "f32", lambda a: math.sqrt(abs(a))),
    ("rcp.approx.f32", "f32", lambda a: 1 / a),
    ("ex2.approx.f16", "f16", lambda a: 2.0**a),
    ("tanh.approx.f16", "f16", math.tanh),
    ("tanh.approx.bf16", "bf16", math.tanh),
]


@pytest.mark.parametrize(("opcode", "kind", "function"), APPROXIMATE, ids=[row[0] for row in APPROXIMATE])
def test_approximate_functions(opcode, kind, function):
    x = np.random.default_rng(1).uniform(0.1, 8, 128) * np.random.default_rng(2).choice([-1, 1], 128)
    x = np.abs(x) if opcode.startswith(("lg2", "sqrt", "rsqrt")) else x
    x = x.astype(DTYPES[kind])
    got = apply(f"{opcode} {{d}}, {{a}}", [x], (kind,), kind).astype(np.float64)
    want = np.array([function(v) for v in x.astype(np.float64).tolist()])
    tolerance = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-21, "f64": 2.0**-50}[kind]
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_seeds_of_float64_newton_iterations_have_an_empty_low_word():
    x = np.concatenate([np.random.default_rng(1).uniform(0.1, 100, 60), [np.inf, 5e-324, 1.0, 4.0]])
    for opcode, function in (("rcp", lambda v: 1 / v), ("rsqrt", lambda v: 1 / np.sqrt(v))):
        got = apply(f"{opcode}.approx.ftz.f64 {{d}}, {{a}}", [x], ("f64",), "f64")
        assert not (got.view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
        np.testing.assert_allclose(got[:60], function(x[:60]), rtol=2.0**-18)
        assert got[60:62].tolist() == [0, INF]


def test_approximate_division():
    a, b = operands("f32", 1), operands("f32", 2)
    b = np.where(np.isfinite(b) & (np.abs(b) > 1e-6), b, np.float32(3))
    for opcode in ("div.approx.f32", "div.full.f32"):
        np.testing.assert_allclose(
            apply(f"{opcode} {{d}}, {{a}}, {{b}}", [a, b], ("f32", "f32"), "f32"), a / b, rtol=2**-21
        )


def test_saturation():
    def saturated(function):
        def reference(*values):
            result = function("f32", "rn", *values)
            return 0.0 if math.isnan(result) else min(max(result, 0.0), 1.0)

        return reference

    check("add.sat.f32 {d}, {a}, {b}", ("f32", "f32"), "f32", saturated(ADD))
    check("fma.rn.sat.f32 {d}, {a}, {b}, {c}", ("f32",) * 3, "f32", saturated(FMA))
    check("cvt.sat.f32.f32 {d}, {a}", ("f32",), "f32", lambda a: 0.0 if math.isnan(a) else min(max(a, 0.0), 1.0))


def flushed(value):
    return math.copysign(0.0, value) if abs(value) < 2.0**-126 else value


def test_flush_to_zero():
    rng = np.random.default_rng(3)
    a = (rng.standard_normal(128) * 2.0 ** rng.integers(-149, -100, 128)).astype(np.float32)
    b = (rng.standard_normal(128) * 2.0 ** rng.integers(-30, 5, 128)).astype(np.float32)
    check(
        "add.ftz.f32 {d}, {a}, {b}",
        ("f32", "f32"),
        "f32",
        lambda x, y: flushed(ADD("f32", "rn", flushed(x), flushed(y))),
        arrays=[a, a[::-1]],
    )
    check(
        "mul.ftz.f32 {d}, {a}, {b}",
        ("f32", "f32"),
        "f32",
        lambda x, y: flushed(MUL("f32", "rn", flushed(x), flushed(y))),
        arrays=[a, b],
    )
    wide = b.astype(np.float64) * 2.0**-110
    check(
        "cvt.rn.ftz.f32.f64 {d}, {a}",
        ("f64",),
        "f32",
        lambda x: flushed(round_to(Fraction(x), "f32")),
        arrays=[wide],
    )
    check(
        "setp.eq.ftz.f32 {d}, {a}, {b}",
        ("f32", "f32"),
        "pred",
        lambda x, y: flushed(x) == flushed(y),
        arrays=[a, a * 0],
    )


ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_comparisons(kind):
    for name, symbol in ORDERED.items():

        def ordered(a, b, symbol=symbol):
            return not (math.isnan(a) or math.isnan(b)) and eval(f"a {symbol} b")

        def unordered(a, b, symbol=symbol):
            return math.isnan(a) or math.isnan(b) or eval(f"a {symbol} b")

        check(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), "pred", ordered)
        check(f"setp.{name}u.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), "pred", unordered)
    check(
        f"setp.num.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), "pred", lambda a, b: not (math.isnan(a) or math.isnan(b))
    )
    check(f"setp.nan.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), "pred", lambda a, b: math.isnan(a) or math.isnan(b))
    one = {"f32": "f32", "f16": "f16", "bf16": "bf16"}.get(kind)
    if one:
        check(f"set.lt.{one}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), one, lambda a, b: float(a < b))


def test_classification():
    x = operands("f32", 4)
    tests = {
        "finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan, "number": lambda v: ~np.isnan(v),
        "normal": lambda v: np.isfinite(v) & (np.abs(v) >= 2.0**-126),
        "subnormal": lambda v: (np.abs(v) < 2.0**-126) & (v != 0),
    }  # fmt: skip
    for name, function in tests.items():
        np.testing.assert_array_equal(apply(f"testp.{name}.f32 {{d}}, {{a}}", [x], ("f32",), "pred") != 0, function(x))
