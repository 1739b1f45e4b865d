"""Random programs with divergence, loops and guards against an interpreter that runs one thread at a time."""

import operator
import random

import numpy as np
import pytest

from .ptx import run

REGISTERS = 6
OPERATIONS = {
    "add.u32": operator.add, "sub.u32": operator.sub, "mul.lo.u32": operator.mul, "xor.b32": operator.xor,
    "and.b32": operator.and_, "min.u32": min, "max.u32": max,
}  # fmt: skip
COMPARISONS = {"lt": operator.lt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne}


class Generator:
    """Statements are tuples; conditions compare a register with a constant modulo 8."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def operand(self):
        return self.random.choice([self.random.randrange(REGISTERS), f"#{self.random.randrange(1 << 12)}"])

    def condition(self):
        return self.random.choice(list(COMPARISONS)), self.random.randrange(REGISTERS), self.random.randrange(8)

    def block(self, depth):
        return [self.statement(depth) for _ in range(self.random.randint(1, 4))]

    def statement(self, depth):
        kind = self.random.choice(["op", "op", "op", "guarded", "guarded", "if", "if", "loop", "shuffle", "exit"])
        if kind in ("op", "guarded") or depth == 0 or (kind in ("shuffle", "exit") and depth < 3):
            opcode, target = self.random.choice(list(OPERATIONS)), self.random.randrange(REGISTERS)
            return (
                "op",
                opcode,
                target,
                self.operand(),
                self.operand(),
                self.condition() if kind == "guarded" else None,
            )
        if kind == "if":
            return ("if", self.condition(), self.block(depth - 1), self.block(depth - 1))
        if kind == "loop":
            return ("loop", self.random.randrange(REGISTERS), self.block(depth - 1))
        if kind == "shuffle":  # only outside of branches, where the whole warp arrives
            target, source = self.random.randrange(REGISTERS), self.random.randrange(REGISTERS)
            return ("shuffle", target, source, self.random.randrange(32))
        return ("op", "add.u32", 0, 0, "#1", None)


class Ptx:
    """The program as PTX text; trip counts are a register modulo 4."""

    def __init__(self):
        self.labels = 0
        self.lines = []

    def text(self, operand):
        return operand[1:] if isinstance(operand, str) else f"%r{operand}"

    def compare(self, condition, predicate):
        comparison, register, constant = condition
        self.lines.append(f"and.b32 %t, %r{register}, 7; setp.{comparison}.u32 {predicate}, %t, {constant};")

    def label(self):
        self.labels += 1
        return f"L{self.labels}"

    def block(self, statements):
        for statement in statements:
            getattr(self, statement[0] + "_")(*statement[1:])

    def op_(self, opcode, target, a, b, guard):
        if guard:
            self.compare(guard, "%g")
        self.lines.append(f"{'@%g ' if guard else ''}{opcode} %r{target}, {self.text(a)}, {self.text(b)};")

    def if_(self, condition, then, other):
        away, join = self.label(), self.label()
        self.compare(condition, "%c")
        self.lines.append(f"@!%c bra {away};")
        self.block(then)
        self.lines.append(f"bra {join}; {away}:")
        self.block(other)
        self.lines.append(f"{join}:")

    def loop_(self, register, body):
        head, done = self.label(), self.label()
        counter = f"%i{self.labels}"
        self.lines.append(f".reg .b32 {counter}; and.b32 {counter}, %r{register}, 3;")
        self.lines.append(f"{head}: setp.eq.u32 %c, {counter}, 0; @%c bra {done};")
        self.block(body)
        self.lines.append(f"sub.u32 {counter}, {counter}, 1; bra {head}; {done}:")

    def shuffle_(self, target, source, lane_mask):
        self.lines.append(f"shfl.sync.bfly.b32 %r{target}, %r{source}, {lane_mask}, 31, -1;")


def interpret(statements, threads):
    """Registers of all threads; statement by statement, so that shuffles see everybody."""
    for kind, *rest in statements:
        if kind == "shuffle":
            target, source, lane_mask = rest
            values = [t[source] for t in threads]
            for i, thread in enumerate(threads):
                thread[target] = values[i ^ lane_mask]
            continue
        for thread in threads:
            step(thread, kind, *rest)


def holds(thread, condition):
    comparison, register, constant = condition
    return COMPARISONS[comparison](thread[register] & 7, constant)


def step(thread, kind, *rest):
    if kind == "op":
        opcode, target, a, b, guard = rest
        if guard is None or holds(thread, guard):
            x, y = (int(o[1:]) if isinstance(o, str) else thread[o] for o in (a, b))
            thread[target] = OPERATIONS[opcode](x, y) % 2**32
    elif kind == "if":
        condition, then, other = rest
        for statement in then if holds(thread, condition) else other:
            step(thread, *statement)
    else:
        register, body = rest
        for _ in range(thread[register] & 3):
            for statement in body:
                step(thread, *statement)


@pytest.mark.parametrize("seed", range(40))
def test_random_program(seed):
    program = Generator(seed).block(3) + Generator(seed + 1000).block(3)
    data = np.random.default_rng(seed).integers(0, 2**32, (64, REGISTERS)).astype(np.uint32)
    data[:, 0] = 5  # the same in every lane
    threads = [[int(v) for v in row] for row in data]
    for start in (0, 32):
        interpret(program, threads[start : start + 32])
    ptx = Ptx()
    ptx.block(program)
    registers = ".reg .b32 %r<6>, %t; .reg .pred %c, %g; .reg .b64 %w, %x;"
    loads = "".join(f"ld.global.u32 %r{i}, [%x+{4 * i}];" for i in range(1, REGISTERS)) + "mov.u32 %r0, 5;"
    stores = "".join(f"st.global.u32 [%x+{4 * i}], %r{i};" for i in range(REGISTERS))
    body = "mul.wide.u32 %w, %tid, 24; add.s64 %x, %p0, %w;" + loads + "\n".join(ptx.lines) + stores
    for schedule in (None, 1, 2):
        out = data.copy()
        run(body, [out], threads=64, registers=registers, seed=schedule, strict=True)
        np.testing.assert_array_equal(out, np.array(threads, np.uint32))
