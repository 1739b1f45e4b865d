"""PTX text -> :class:`ir.Kernel`. It reads what NVRTC emits, for all its targets; unknown syntax raises."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

from .declarations import parameter, parse_integer, variable
from .errors import PtxSyntaxError
from .ir import (
    TYPE_SIZES,
    Address,
    FloatImmediate,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    SourceLine,
    Special,
    Symbol,
    TensorAddress,
    Variable,
    Vector,
)

_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
_ENTRY = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.entry\b")
_FUNCTION = re.compile(r"(?:\.(?:visible|weak|extern)\s+)*\.func\b")
_MODULE_VARIABLE = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(?:global|const|shared)\b")
_MODULE_LINE = re.compile(r"\.(?:version|target|address_size)\b[^\n]*")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"[^\n]*')
# `.loc` is a prefix of `.local`, and both `.loc` and `.file` end with their line, not with a semicolon.
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)([^\n]*)")
_INLINED_AT = re.compile(r"inlined_at\s+(\d+)\s+(\d+)\s+(\d+)")
_LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
_GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+(.*)$")
_NUMBERED = re.compile(r"(%?[A-Za-z_]+)\d+$")
_OPCODE = re.compile(r"([a-z][\w.:]*)\s*(.*)$", re.S)
_BRACKET = re.compile(r"[{\[(]")
_BRACE = re.compile(r"[{}]")
_SPACE = re.compile(r"\s*")
_ADDRESS = re.compile(r"([^\s+\-][^\s+]*)\s*(?:\+\s*(-?\w+))?$")
# Device functions are refused where they are called, so the declarations around a call say nothing new.
_IGNORED_STATEMENTS = (".pragma", ".callprototype", ".param")
Place: TypeAlias = tuple[Any, ...]  # number of the file, line, column, as written


@lru_cache(8)
def parse(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX module, by mangled name."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str) -> None:
        # Comments become blanks so that positions keep their lines; string literals may hold "//".
        self.text = _COMMENT.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)
        self.position = 0
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.files = {int(m[1]): m[2] for m in _FILE.finditer(self.text)}  # the table follows the code
        self.variables: dict[str, Variable] = {}
        self.kernels: dict[str, Kernel] = {}

    def line(self, position: int) -> int:
        return bisect_left(self.newlines, position) + 1

    def error(self, what: str) -> PtxSyntaxError:
        near = self.text[self.position : self.position + 60]
        return PtxSyntaxError(f"PTX line {self.line(self.position)}: {what}: {near!r}")

    def skip_space(self) -> bool:
        self.skip(_SPACE)
        return self.position < len(self.text)

    def skip(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def skip_braces(self) -> None:
        depth = 0
        for brace in _BRACE.finditer(self.text, self.position):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                self.position = brace.end()
                return
        raise self.error("braces that do not close")

    def statement(self) -> str:
        end = self.text.find(";", self.position)
        if end < 0:
            raise self.error("statement without its semicolon")
        text = self.text[self.position : end]
        self.position = end + 1
        return " ".join(text.split())

    def module(self) -> dict[str, Kernel]:
        while self.skip_space():
            if self.skip(_MODULE_LINE) or self.skip(_FILE):
                continue
            if self.text.startswith(".section", self.position):
                self.skip_braces()
            elif _ENTRY.match(self.text, self.position):
                self.entry()
            elif _FUNCTION.match(self.text, self.position):
                self.function()
            elif _MODULE_VARIABLE.match(self.text, self.position):
                found = variable(self.statement())
                self.variables[found.name] = found
            else:
                raise self.error("cannot parse")
        return self.kernels

    def function(self) -> None:
        """Device functions are skipped: a kernel that calls one is refused when it is translated."""
        brace, semicolon = self.text.find("{", self.position), self.text.find(";", self.position)
        if semicolon >= 0 and (brace < 0 or semicolon < brace):
            self.position = semicolon + 1
        else:
            self.skip_braces()

    def entry(self) -> None:
        brace = self.text.index("{", self.position)
        head = self.text[self.position : brace]
        self.position = brace + 1
        match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?", head, re.S)
        if not match:
            raise self.error("kernel without a name")
        kernel = Kernel(match[1], [parameter(p) for p in _split(match[2] or "")])
        if bound := re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", head):
            kernel.max_threads = prod(int(size) for size in bound[1].split(","))
        if cluster := re.search(r"\.reqnctapercluster\s+([\d, ]+)", head):
            kernel.cluster_blocks = prod(int(size) for size in cluster[1].split(","))
        kernel.variables.update({v.name: Variable(**vars(v)) for v in self.variables.values()})
        _Body(self, kernel).parse()
        kernel.place_variables()
        self.kernels[kernel.name] = kernel


class _Body:
    """The statements between the braces of one kernel."""

    def __init__(self, parser: _Parser, kernel: Kernel) -> None:
        self.parser = parser
        self.kernel = kernel
        self.scopes: list[dict[str, str]] = [{}]
        self.starts: list[int] = []  # of the inner scopes: how long the body was
        self.families: dict[str, str] = {}  # `%r<20>` declares %r0..%r19
        self.source: tuple[SourceLine, ...] = ()
        self.callers: dict[Place, Place] = {}
        self.lines: dict[Place, SourceLine] = {}
        self.known: dict[str, Operand] = {}  # operands read since the last declaration: most come up many times

    def parse(self) -> None:
        parser = self.parser
        while self.scopes:
            if not parser.skip_space():
                raise parser.error("kernel without its closing brace")
            character = parser.text[parser.position]
            if character == "{":  # at the start of a statement: a scope, not a vector
                self.scopes.append({})
                self.starts.append(len(self.kernel.body))
                parser.position += 1
                self.known.clear()
            elif character == "}":
                self.scopes.pop()
                if self.starts:
                    self.rename_labels(self.starts.pop())
                parser.position += 1
                self.known.clear()
            elif character == "." and self.directive():
                continue
            elif match := parser.skip(_LABEL):
                self.label(match[1])
            else:
                line = parser.line(parser.position)
                try:
                    self.statement(parser.statement(), line)
                except PtxSyntaxError as error:
                    raise PtxSyntaxError(f"PTX line {line}: {error}") from None

    def directive(self) -> bool:
        """One of the directives that do not end with a semicolon, if it stands here."""
        parser = self.parser
        if match := parser.skip(_LOC):
            self.location(match)
        elif parser.text.startswith(".section", parser.position):
            parser.skip_braces()
        else:
            return parser.skip(_FILE) is not None
        return True

    def location(self, match: re.Match[str]) -> None:
        """Remember the source line. `inlined_at` names the caller, which an earlier `.loc` may place in its own."""
        where = match.group(1, 2, 3)
        inlined = _INLINED_AT.search(match[4])
        if inlined:
            self.callers[where] = inlined.group(1, 2, 3)
        if match[2] == "0":  # compiler-made code keeps the line before it
            return
        chain = [where]
        while chain[-1] in self.callers and len(chain) < 16 and (inlined or len(chain) > 1):
            chain.append(self.callers[chain[-1]])
        self.source = tuple([self.lines.get(place) or self.source_line(place) for place in chain])

    def source_line(self, place: Place) -> SourceLine:
        file, number, _ = place
        line = self.lines[place] = SourceLine(self.parser.files.get(int(file), "?"), int(number))
        return line

    def label(self, name: str) -> None:
        parser = self.parser
        parser.skip_space()
        if parser.text.startswith(".branchtargets", parser.position):
            targets = parser.statement().removeprefix(".branchtargets")
            self.kernel.branch_targets[name] = [t.strip() for t in targets.split(",")]
        else:
            self.kernel.body.append(name)

    def rename_labels(self, start: int) -> None:
        """A label belongs to its scope: inline asm that is used twice has it twice."""
        body = self.kernel.body
        names = {name: f"{name}@{start}" for name in body[start:] if isinstance(name, str) and "@" not in name}
        for i in range(start, len(body) if names else start):
            item = body[i]
            if isinstance(item, str):
                body[i] = names.get(item, item)
            elif item.opcode == "bra" and isinstance(target := item.operands[-1], Symbol) and target.name in names:
                item.operands = (*item.operands[:-1], Symbol(names[target.name]))

    def statement(self, text: str, line: int) -> None:
        if not text.startswith("."):
            if text:
                self.kernel.body.append(self.instruction(text, line))
        elif text.startswith(".reg"):
            self.declare(text)
        elif re.match(r"\.(shared|local|global|const)\b", text):
            found = variable(text)
            self.kernel.variables[found.name] = found
        elif not text.startswith(_IGNORED_STATEMENTS):
            raise PtxSyntaxError(f"directive {text!r}")

    def declare(self, text: str) -> None:
        match = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text)  # inline asm may write `{.reg.b16 h`
        if not match or match[1] not in TYPE_SIZES:
            raise PtxSyntaxError(f"register declaration {text!r}")
        self.known.clear()
        for name in (n.strip() for n in match[2].split(",")):
            family = re.match(r"(%?[\w$]+)<(\d+)>$", name)
            if family:
                self.families[family[1]] = match[1]
            else:
                unique = name if len(self.scopes) == 1 else f"{name}@{len(self.kernel.registers)}"
                self.scopes[-1][name] = unique
                self.kernel.registers[unique] = match[1]

    def instruction(self, text: str, line: int) -> Instruction:
        guard, body = None, text
        if text[0] == "@":
            match = _GUARD.match(text)
            register = self.register(match[2]) if match else None
            if not match or register is None:
                raise PtxSyntaxError(f"guard of {text!r}")
            guard, body = (register, match[1] == "!"), match[3]
        match = _OPCODE.match(body)
        if not match:
            raise PtxSyntaxError(f"instruction {text!r}")
        operands = tuple([self.operand(o) for o in _split(match[2])])
        return Instruction(*_opcode(match[1]), operands, guard, line, self.source, text)

    def register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        family = _NUMBERED.match(name)
        if family and family[1] in self.families:
            self.kernel.registers.setdefault(name, self.families[family[1]])
            self.scopes[0][name] = name
            return Register(name)
        return None

    def operand(self, text: str) -> Operand:
        found = self.known.get(text)
        if found is None:
            found = self.known[text] = self._operand(text)
        return found

    def _operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self.operand(t) for t in _split(text[1:-1])))
        if text.startswith("["):
            return self.address(text[1:-1].strip())
        if text == "_":
            return Sink()
        if text.startswith("!"):
            return Negated(self.operand(text[1:].strip()))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        if text[:2] in ("0f", "0F") and len(text) == 10:
            return FloatImmediate(int(text[2:], 16), 4)
        if text[:2] in ("0d", "0D") and len(text) == 18:
            return FloatImmediate(int(text[2:], 16), 8)
        if _NUMBER.match(text):
            return Immediate(parse_integer(text))
        return self.register(text) or (Special(text[1:]) if text.startswith("%") else Symbol(text))

    def address(self, text: str) -> Address | TensorAddress:
        if "," in text:
            first, rest = (part.strip() for part in text.split(",", 1))
            where, vector = self.address(first), self.operand(rest)
            if not isinstance(where, Address) or not isinstance(vector, Vector):
                raise PtxSyntaxError(f"address [{text}]")
            return TensorAddress(where, vector)
        match = _ADDRESS.match(text)
        if not match:
            raise PtxSyntaxError(f"address [{text}]")
        offset = parse_integer(match[2]) if match[2] else 0
        if _NUMBER.match(match[1]):
            return Address(None, parse_integer(match[1]) + offset)
        base = self.operand(match[1])
        if not isinstance(base, Register | Symbol):
            raise PtxSyntaxError(f"address [{text}]")
        return Address(base, offset)


@lru_cache(4096)
def _opcode(text: str) -> tuple[str, tuple[str, ...]]:
    """The first dotted component and the others."""
    opcode, *modifiers = text.replace("::", "\0").split(".")
    return opcode, tuple(m.replace("\0", "::") for m in modifiers)


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    if not _BRACKET.search(text):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
