"""Texts of a PTX kernel in which one instruction is wrong.

Every function below takes one statement without its semicolon and yields wrong versions of it; an empty one drops it.
"""

import random
import re
from dataclasses import dataclass

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
OPPOSITE = {
    "lt": "le",
    "le": "lt",
    "gt": "ge",
    "ge": "gt",
    "eq": "ne",
    "ne": "eq",
    "lo": "ls",
    "ls": "lo",
    "hi": "hs",
    "hs": "hi",
}
INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
GUARD = re.compile(r"@(!?)([%\w]+)\s+")
STATEMENT = re.compile(r"[@a-z][^;]*(?=;)")
OPERATION = re.compile(r"((?:@!?[%\w]+\s+)?)([a-z][\w.:]*)(\s+)(.*)$", re.S)


@dataclass(frozen=True)
class Mutant:
    """``before`` became ``after``, from column ``start`` of a line (from 1); ``kind`` says how."""

    kind: str
    line: int
    start: int
    before: str
    after: str

    def apply(self, ptx):
        """The text with the mistake in it."""
        lines = ptx.split("\n")
        line = lines[self.line - 1]
        rest = line[self.start + len(self.before) :]
        lines[self.line - 1] = line[: self.start] + self.after + (rest if self.after else rest.removeprefix(";"))
        return "\n".join(lines)


def _parts(statement):
    """Guard, opcode, blank and operands of a statement."""
    match = OPERATION.match(statement)
    return (match[1], match[2], match[3], _split(match[4])) if match else ("", "", "", [])


def _split(text):
    return [operand.strip() for operand in re.split(r",(?![^{]*})(?![^\[]*\])", text)]


def _join(guard, opcode, blank, operands):
    return f"{guard}{opcode}{blank}{', '.join(operands)}"


def drop_synchronisation(s):
    if re.match(r"bar\.|barrier\.|membar|fence|cp\.async\.(wait|commit)", s):
        yield ""


def wait_for_fewer(s):
    match = re.match(r"(cp\.async\.wait_group\s+)(\d+)$", s)
    if match:
        yield f"{match[1]}{int(match[2]) + 1}"


def drop_store(s):
    if re.match(r"(@!?[%\w]+\s+)?(st\.(global|shared)|red\.|cp\.async\.c[ag]\.)", s):
        yield ""


def change_immediate(s):
    guard, opcode, blank, operands = _parts(s)
    root = opcode.split(".")[0]
    if root in ("ld", "st", "cp", "bra", "bar", "shl", "shr", "atom", "ldmatrix", "mma"):
        return
    for i, operand in enumerate(operands[1:], 1):
        if INTEGER.fullmatch(operand):
            value = int(operand.rstrip("U"), 0)
            for changed in (value + 1, value - 1, 2 * value):
                if changed != value:
                    yield _join(guard, opcode, blank, [*operands[:i], str(changed), *operands[i + 1 :]])


def change_shift(s):
    guard, opcode, blank, operands = _parts(s)
    if opcode.split(".")[0] in ("shl", "shr") and INTEGER.fullmatch(operands[2]):
        for step in (-1, 1):
            yield _join(guard, opcode, blank, [*operands[:2], str(int(operands[2], 0) + step)])


def swap_operands(s):
    guard, opcode, blank, operands = _parts(s)
    commutes = re.match(r"setp\.(eq|ne)", opcode)
    if opcode.split(".")[0] in ("sub", "setp", "selp", "div", "rem") and not commutes:
        first, second = operands[1], operands[2]
        if first != second:
            yield _join(guard, opcode, blank, [operands[0], second, first, *operands[3:]])


def change_comparison(s):
    match = re.match(r"setp\.(\w+)\b", s)
    if match and match[1] in OPPOSITE:
        yield f"setp.{OPPOSITE[match[1]]}{s[match.end() :]}"


def compare_as_signed(s):
    if re.match(r"setp\.\w+\.u(16|32|64)\b", s) and not INTEGER.fullmatch(_parts(s)[3][-1]):
        yield re.sub(r"\.u(16|32|64)\b", r".s\1", s, count=1)


def change_guard(s):
    match = GUARD.match(s)
    if match:
        yield s[match.end() :]
        yield f"@{'' if match[1] else '!'}{match[2]} {s[match.end() :]}"


def exchange_operation(s):
    pairs = ("add", "sub"), ("sub", "add"), ("min", "max"), ("max", "min"), ("and", "or"), ("or", "and"), ("xor", "or")
    guard, opcode, blank, operands = _parts(s)
    root, _, rest = opcode.partition(".")
    for old, new in pairs:
        if root == old:
            yield _join(guard, f"{new}.{rest}", blank, operands)
    if re.match(r"(mad\.lo|fma\.rn)\.\w+$", opcode):
        product = opcode.replace("mad", "mul").replace("fma", "mul")
        yield _join(guard, product, blank, operands[:3])


def lose_operation(s):
    """The result is the first operand."""
    guard, opcode, _, operands = _parts(s)
    roots = ("add", "sub", "min", "max", "and", "or", "xor", "shl", "shr", "mul", "mad", "fma", "rem", "div")
    if opcode.split(".")[0] in roots and "wide" not in opcode and operands[1] != operands[0]:
        kind = re.sub(r"^[su]", "b", opcode.split(".")[-1])
        yield f"{guard}mov.{kind} {operands[0]}, {operands[1]}"


def shift_address(s):
    """One element (one vector, where that is what is accessed) further or nearer."""
    match = re.match(r"(?:@!?[%\w]+\s+)?(ld|st|atom|red|cp|ldmatrix)\b([\w.:]*)", s)
    if not match or (match[1] == "cp" and "[" not in s):
        return
    size = 16
    if match[1] in ("ld", "st", "atom", "red"):
        element = re.search(r"\.[bsuf](\d+)", match[2])
        vector = re.search(r"\.v(\d)", match[2])
        size = SIZES[element[1]] * int(vector[1] if vector else 1)
    for address in re.finditer(r"\[([^\]+]+)(?:\+(-?\d+))?\]", s):
        for step in (size, -size):
            offset = int(address[2] or 0) + step
            yield f"{s[: address.start()]}[{address[1]}+{offset}]{s[address.end() :]}"


def copy_all(s):
    """An asynchronous copy without the number of bytes after which it writes zeros."""
    guard, opcode, blank, operands = _parts(s)
    if opcode.startswith("cp.async.c") and len(operands) == 4:
        yield _join(guard, opcode, blank, operands[:3])


KINDS = (
    drop_synchronisation,
    wait_for_fewer,
    drop_store,
    change_immediate,
    change_shift,
    swap_operands,
    change_comparison,
    compare_as_signed,
    change_guard,
    exchange_operation,
    lose_operation,
    shift_address,
    copy_all,
)


def _sign_corrections(lines):
    """Numbers of the lines that correct x / 2^n and x % 2^n for a negative x.

    NVVM writes them for every signed division; indices are never negative, so their mutants say nothing.
    """
    corrections, found = set(), set()
    for number, line in enumerate(lines, 1):
        _, opcode, _, operands = _parts(line.strip().removesuffix(";"))
        sign = re.fullmatch(r"shr\.s(\d+)", opcode)
        used = bool(corrections & set(operands[1:]))
        if (sign and operands[2] == str(int(sign[1]) - 1)) or (used and re.match(r"shr\.u|and\.b", opcode)):
            corrections.add(operands[0])
        elif not (used and opcode.startswith("add.s")):
            continue
        found.add(number)
    return found


def all_mutants(ptx, reached):
    """All mutants of some lines of the only kernel of a module, by kind."""
    lines = ptx.split("\n")
    reached = reached - _sign_corrections(lines)
    found = {kind.__name__.replace("_", " "): [] for kind in KINDS}
    for number, line in enumerate(lines, 1):
        if number not in reached:
            continue
        for match in STATEMENT.finditer(line):
            for kind, mutants in zip(KINDS, found.values()):
                for changed in kind(match[0]):
                    mutants.append(Mutant(kind.__name__.replace("_", " "), number, match.start(), match[0], changed))
    return found


def sample(ptx, reached, count, seed):
    """``count`` mutants, as evenly from all kinds as there are any."""
    draw = random.Random(seed)
    kinds = [draw.sample(found, len(found)) for found in all_mutants(ptx, reached).values()]
    draw.shuffle(kinds)
    turns = [mutant for i in range(max(map(len, kinds))) for found in kinds for mutant in found[i : i + 1]]
    return turns[:count]
