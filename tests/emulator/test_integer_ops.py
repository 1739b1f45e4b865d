"""Every integer, bit, predicate and move instruction against Python's unbounded integers."""

import operator

import numpy as np
import pytest

from .ptx import DTYPES, apply

LANES = 192
COMPARISONS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
COMPARISONS |= {"ge": operator.ge, "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def width(kind):
    return 8 * np.dtype(DTYPES[kind]).itemsize


def wrap(value, kind):
    """A Python integer modulo 2**n, in the range of the type."""
    value %= 1 << width(kind)
    return value - (1 << width(kind)) if kind[0] == "s" and value >> (width(kind) - 1) else value


def quotient(a, b):
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


def clamp(value, kind):
    info = np.iinfo(DTYPES[kind])
    return min(max(value, int(info.min)), int(info.max))


def unsigned(value, n):
    return value % (1 << n)


def operands(kind, seed, lanes=LANES):
    """Edge values and random ones, small and large."""
    info = np.iinfo(DTYPES[kind])
    low, high = int(info.min), int(info.max)
    if kind == "pred":
        return np.random.default_rng(seed).integers(0, 2, lanes)
    rng = np.random.default_rng(seed)
    edges = [
        v
        for v in (0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 100, 127, 128, 255, -1, -2, -7, low, low + 1, high, high - 1)
        if low <= v <= high
    ]
    wide = [int.from_bytes(rng.bytes(16), "little") % (high - low + 1) + low for _ in range(lanes)]
    small = rng.integers(max(low, -9), min(high, 9), lanes).tolist()
    pool = edges + wide + small
    return np.array([pool[int(i)] for i in rng.integers(0, len(pool), lanes)], DTYPES[kind])


def check(instruction, kinds, out_kind, reference, lanes=LANES, restrict=lambda i, x: x):
    """Per-lane, uniform and mixed operands must all give what ``reference`` says of Python integers."""
    arrays = [restrict(i, operands(kind, 10 * i + len(instruction), lanes)) for i, kind in enumerate(kinds)]
    arrays = [np.asarray(x, DTYPES[k]) for x, k in zip(arrays, kinds, strict=True)]

    def expected(columns):
        rows = zip(*(c.tolist() for c in columns), strict=True)
        return np.array(
            [wrap(int(reference(*row)), "u32" if out_kind == "pred" else out_kind) for row in rows], DTYPES[out_kind]
        )

    np.testing.assert_array_equal(apply(instruction, arrays, kinds, out_kind), expected(arrays))
    every = tuple(range(len(kinds)))
    for uniform, start in ((every, 0), (every, 5), (every[1:], 9), (every[:1], 17)):
        shifted = [np.roll(a, -start) for a in arrays]
        seen = [np.full_like(a, a[0]) if i in uniform else a for i, a in enumerate(shifted)]
        np.testing.assert_array_equal(apply(instruction, shifted, kinds, out_kind, uniform=uniform), expected(seen))


BINARY = [
    *((f"add.{k}", k, operator.add) for k in ("u16", "s16", "u32", "s32", "u64", "s64")),
    *((f"sub.{k}", k, operator.sub) for k in ("u16", "s16", "u32", "s32", "u64", "s64")),
    *((f"mul.lo.{k}", k, operator.mul) for k in ("u16", "s16", "u32", "s32", "u64", "s64")),
    *((f"mul.hi.{s}{n}", f"{s}{n}", lambda a, b, n=n: (a * b) >> n) for s in "us" for n in (16, 32, 64)),
    *((f"min.{k}", k, min) for k in ("u16", "s16", "u32", "s32", "u64", "s64")),
    *((f"max.{k}", k, max) for k in ("u16", "s16", "u32", "s32", "u64", "s64")),
    ("min.relu.s32", "s32", lambda a, b: max(0, min(a, b))),
    ("max.relu.s32", "s32", lambda a, b: max(0, a, b)),
    *((f"and.b{n}", f"b{n}", operator.and_) for n in (16, 32, 64)),
    *((f"or.b{n}", f"b{n}", operator.or_) for n in (16, 32, 64)),
    *((f"xor.b{n}", f"b{n}", operator.xor) for n in (16, 32, 64)),
    ("add.sat.s32", "s32", lambda a, b: clamp(a + b, "s32")),
    ("sub.sat.s32", "s32", lambda a, b: clamp(a - b, "s32")),
    ("and.pred", "pred", operator.and_),
    ("or.pred", "pred", operator.or_),
    ("xor.pred", "pred", operator.xor),
]


@pytest.mark.parametrize(("opcode", "kind", "reference"), BINARY, ids=[row[0] for row in BINARY])
def test_binary(opcode, kind, reference):
    check(f"{opcode} {{d}}, {{a}}, {{b}}", (kind, kind), kind, reference)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize(("opcode", "function"), [("div", quotient), ("rem", lambda a, b: a - quotient(a, b) * b)])
def test_division(opcode, function, kind):
    def no_zero(i, values):
        return np.where(values == 0, 3, values) if i else values

    check(f"{opcode}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), kind, function, restrict=no_zero)


def test_division_by_zero_gives_all_ones_as_the_hardware_does():
    values = np.array([0, 1, 2**32 - 1, 77], np.uint32)
    assert (apply("div.u32 {d}, {a}, {b}", [values, values * 0], ("u32", "u32"), "u32") == 2**32 - 1).all()


UNARY = [
    *((f"neg.{k}", k, k, operator.neg) for k in ("s16", "s32", "s64")),
    *((f"abs.{k}", k, k, abs) for k in ("s16", "s32", "s64")),
    *((f"not.b{n}", f"b{n}", f"b{n}", operator.invert) for n in (16, 32, 64)),
    *((f"cnot.b{n}", f"b{n}", f"b{n}", operator.not_) for n in (16, 32, 64)),
    ("not.pred", "pred", "pred", operator.not_),
    *((f"popc.b{n}", f"b{n}", "u32", lambda a: bin(a).count("1")) for n in (32, 64)),
    *((f"clz.b{n}", f"b{n}", "u32", lambda a, n=n: n - a.bit_length()) for n in (32, 64)),
    *((f"brev.b{n}", f"b{n}", f"b{n}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2)) for n in (32, 64)),
    *((f"bfind.u{n}", f"u{n}", "u32", lambda a: a.bit_length() - 1) for n in (32, 64)),
    *((f"bfind.s{n}", f"s{n}", "u32", lambda a: (a if a >= 0 else ~a).bit_length() - 1) for n in (32, 64)),
    ("bfind.shiftamt.u32", "u32", "u32", lambda a: 32 - a.bit_length() if a else -1),
    *((f"mov.{k}", k, k, lambda a: a) for k in ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "pred")),
]


@pytest.mark.parametrize(("opcode", "kind", "out_kind", "reference"), UNARY, ids=[row[0] for row in UNARY])
def test_unary(opcode, kind, out_kind, reference):
    check(f"{opcode} {{d}}, {{a}}", (kind,), out_kind, reference)


WIDE = [(k, k[0] + str(2 * width(k))) for k in ("u16", "s16", "u32", "s32")]


@pytest.mark.parametrize(("kind", "out_kind"), WIDE)
def test_wide(kind, out_kind):
    check(f"mul.wide.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), out_kind, operator.mul)
    check(f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, kind, out_kind), out_kind, lambda a, b, c: a * b + c)
    check(f"mul.wide.{kind} {{d}}, {{a}}, 3", (kind,), out_kind, lambda a: a * 3)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_mad(kind):
    n = width(kind)
    check(f"mad.lo.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind,) * 3, kind, lambda a, b, c: a * b + c)
    check(f"mad.hi.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind,) * 3, kind, lambda a, b, c: ((a * b) >> n) + c)
    check(f"sad.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind,) * 3, kind, lambda a, b, c: abs(a - b) + c)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_shifts(kind):
    n = width(kind)
    if kind[0] == "b":
        check(f"shl.{kind} {{d}}, {{a}}, {{b}}", (kind, "u32"), kind, lambda a, s: a << s if s < n else 0)
        check(f"shl.{kind} {{d}}, {{a}}, {n - 3}", (kind,), kind, lambda a: a << (n - 3))
        check(f"shl.{kind} {{d}}, {{a}}, {n}", (kind,), kind, lambda a: 0)
    check(f"shr.{kind} {{d}}, {{a}}, {{b}}", (kind, "u32"), kind, lambda a, s: a >> min(s, n))
    check(f"shr.{kind} {{d}}, {{a}}, 5", (kind,), kind, lambda a: a >> 5)


@pytest.mark.parametrize("table", [0x00, 0x1E, 0x80, 0x96, 0xCA, 0xE8, 0xFE, 0xFF])
def test_lop3(table):
    def reference(a, b, c):
        return sum(1 << i for i in range(32) if table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1)

    check(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table}", ("b32",) * 3, "b32", reference, lanes=64)


def test_prmt():
    def reference(a, b, s):
        source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
        out = 0
        for i in range(4):
            nibble = s >> (4 * i) & 15
            byte = source[nibble & 7]
            out |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << (8 * i)
        return out

    check("prmt.b32 {d}, {a}, {b}, {c}", ("b32",) * 3, "b32", reference)
    check("prmt.b32 {d}, {a}, {b}, 0x5410", ("b32",) * 2, "b32", lambda a, b: (a & 0xFFFF) | (b & 0xFFFF) << 16)


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(direction, mode):
    def reference(a, b, c):
        c = min(c, 32) if mode == "clamp" else c & 31
        both = b << 32 | a
        return (both << c) >> 32 if direction == "l" else both >> c

    check(f"shf.{direction}.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}}", ("b32", "b32", "u32"), "b32", reference)


def byte_lanes(value, signed):
    return [b - 256 if signed and b > 127 else b for b in unsigned(value, 32).to_bytes(4, "little")]


@pytest.mark.parametrize("a", ["u32", "s32"])
@pytest.mark.parametrize("b", ["u32", "s32"])
def test_dot_products(a, b):
    def dp4a(x, y, c):
        return c + sum(p * q for p, q in zip(byte_lanes(x, a == "s32"), byte_lanes(y, b == "s32"), strict=True))

    def dp2a(x, y, c, part):
        halves = [wrap(x >> 16 * i, a[0] + "16") for i in range(2)]
        return c + sum(h * q for h, q in zip(halves, byte_lanes(y, b == "s32")[2 * part :], strict=False))

    kinds = ("b32", "b32", "b32")
    check(f"dp4a.{a}.{b} {{d}}, {{a}}, {{b}}, {{c}}", kinds, "b32", dp4a)
    check(f"dp2a.lo.{a}.{b} {{d}}, {{a}}, {{b}}, {{c}}", kinds, "b32", lambda *x: dp2a(*x, 0))
    check(f"dp2a.hi.{a}.{b} {{d}}, {{a}}, {{b}}, {{c}}", kinds, "b32", lambda *x: dp2a(*x, 1))


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_bit_fields(kind):
    def extract(a, position, length):
        position, length = position & 255, length & 255
        if length == 0:
            return 0
        bits = [(unsigned(a, 32) >> min(i, 31 if kind == "s32" else i)) & 1 for i in range(position, position + length)]
        value = sum(b << i for i, b in enumerate(bits[:32]))
        last = unsigned(a, 32) >> min(position + length - 1, 31) & 1
        return value | (-1 << min(length, 32)) if kind == "s32" and last else value

    def insert(a, b, position, length):
        position, length = position & 255, length & 255
        mask = ((1 << min(length, 32)) - 1) << min(position, 32)
        return b & ~mask | (a << min(position, 32)) & mask

    check(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, "u32", "u32"), kind, extract)
    if kind == "u32":
        check("bfi.b32 {d}, {a}, {b}, {c}, {e}", ("b32", "b32", "u32", "u32"), "b32", insert)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64", "b16", "b32", "b64"])
def test_comparisons(kind):
    for name, function in COMPARISONS.items():
        if (kind[0] == "b" and name not in ("eq", "ne")) or (kind[0] != "u" and name in ("lo", "ls", "hi", "hs")):
            continue
        check(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}}", (kind, kind), "pred", function, lanes=64)


def test_combined_comparisons():
    kinds = ("s32", "s32", "pred")
    check("setp.lt.and.s32 {d}, {a}, {b}, {c}", kinds, "pred", lambda a, b, c: a < b and c)
    check("setp.lt.or.s32 {d}, {a}, {b}, {c}", kinds, "pred", lambda a, b, c: a < b or c)
    check("setp.lt.xor.s32 {d}, {a}, {b}, !{c}", kinds, "pred", lambda a, b, c: (a < b) != (not c))
    check("{{.reg .pred q; setp.lt.s32 q|{d}, {a}, {b};}}", kinds[:2], "pred", lambda a, b: not a < b)
    check("set.lt.u32.s32 {d}, {a}, {b}", kinds[:2], "u32", lambda a, b: -1 if a < b else 0)


@pytest.mark.parametrize("kind", ["b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"])
def test_select(kind):
    check(f"selp.{kind} {{d}}, {{a}}, {{b}}, {{c}}", (kind, kind, "pred"), kind, lambda a, b, p: a if p else b)
    check(f"slct.{kind}.s32 {{d}}, {{a}}, {{b}}, {{c}}", (kind, kind, "s32"), kind, lambda a, b, c: a if c >= 0 else b)


def test_packing():
    check("mov.b32 {d}, {{{a}, {b}}}", ("b16", "b16"), "b32", lambda a, b: a | b << 16)
    check("mov.b64 {d}, {{{a}, {b}}}", ("b32", "b32"), "b64", lambda a, b: a | b << 32)
    check("{{.reg .b16 l; mov.b32 {{l, {d}}}, {a};}}", ("b32",), "b16", lambda a: a >> 16)
    check("{{mov.b32 {{{d}, _}}, {a};}}", ("b32",), "b16", lambda a: a)
    check("{{.reg .b32 l; mov.b64 {{l, {d}}}, {a};}}", ("b64",), "b32", lambda a: a >> 32)


INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_conversion(source, target):
    check(f"cvt.{target}.{source} {{d}}, {{a}}", (source,), target, lambda a: a, lanes=96)
    check(f"cvt.sat.{target}.{source} {{d}}, {{a}}", (source,), target, lambda a: clamp(a, target), lanes=96)


def test_guarded_results_keep_the_old_value():
    check("{{ mov.u32 {d}, 9; @{b} add.u32 {d}, {a}, 1; }}", ("u32", "pred"), "u32", lambda a, p: a + 1 if p else 9)
    check("{{ mov.u32 {d}, 9; @!{b} add.u32 {d}, {a}, 1; }}", ("u32", "pred"), "u32", lambda a, p: 9 if p else a + 1)


def test_immediates():
    check("add.s32 {d}, {a}, -7", ("s32",), "s32", lambda a: a - 7)
    check("and.b32 {d}, {a}, 0xFFFF0000U", ("b32",), "b32", lambda a: a & 0xFFFF0000)
    check("add.u32 {d}, {a}, 0b101", ("u32",), "u32", lambda a: a + 5)
    check("add.u32 {d}, {a}, 017", ("u32",), "u32", lambda a: a + 15)
    check("mov.b32 {d}, 0f3F800000", ("b32",), "b32", lambda a: 0x3F800000)
