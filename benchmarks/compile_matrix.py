"""Compile instantiations for every supported architecture, with no GPU: registers, spills, local memory, time.

    python benchmarks/compile_matrix.py "direct.cu:direct<float, 3>" --arch sm_80 --arch sm_90a --json matrix.json

Exit status 1 if one does not compile, spills or uses local memory. ``compile_all`` is the part for other scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gpu_conv.cuda import CompileError, compiler, source

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


@dataclass(frozen=True)
class Build:
    """One instantiation for one architecture; ``error`` is None where it compiled.

    ``seconds`` is near zero where the disk cache had it.
    """

    source: str
    name: str
    arch: str
    seconds: float
    registers: int = 0
    spill_bytes: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0
    warnings: tuple[str, ...] = ()
    error: str | None = None

    @property
    def is_clean(self) -> bool:
        """Compiled, with everything in registers and no warning."""
        return not (self.error or self.spill_bytes or self.local_bytes or self.warnings)


def build(file: str, name: str, arch: str) -> Build:
    start = time.perf_counter()
    try:
        compiled = compiler.compile(source.load(file), name, arch)
    except CompileError as error:
        return Build(file, name, arch, time.perf_counter() - start, error=str(error))
    return Build(
        file,
        name,
        arch,
        time.perf_counter() - start,
        compiled.registers,
        compiled.spill_bytes,
        compiled.local_bytes,
        compiled.shared_bytes,
        tuple(compiled.warnings),
    )


def compile_all(
    instantiations: Iterable[tuple[str, str]], archs: Iterable[str] = ARCHS, threads: int = 2
) -> Iterator[Build]:
    """Every (file below ``kernels/``, name expression) for every architecture, in order, as soon as each is there."""
    archs = tuple(archs)
    jobs = [(file, name, arch) for file, name in dict.fromkeys(instantiations) for arch in archs]
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda job: build(*job), jobs)


def table(builds: Iterable[Build]) -> Table:
    """One row per instantiation, one column per architecture: registers, then what is not clean."""
    cells: dict[str, dict[str, Build]] = {}
    for one in builds:
        cells.setdefault(one.name, {})[one.arch] = one
    archs = list(dict.fromkeys(arch for row in cells.values() for arch in row))
    result = Table("kernel", *archs, "seconds", title="registers (S spilled bytes, L local bytes, W warnings)")
    for name, row in cells.items():
        texts = [_cell(row[arch]) if arch in row else "" for arch in archs]
        result.add_row(name, *texts, f"{sum(one.seconds for one in row.values()):.2f}")
    return result


def _cell(one: Build) -> str:
    if one.error:
        return "[red]error[/red]"
    marks = [("S", one.spill_bytes), ("L", one.local_bytes), ("W", len(one.warnings))]
    extra = "".join(f" {mark}{value}" for mark, value in marks if value)
    return f"{one.registers}[red]{extra}[/red]" if extra else str(one.registers)


def main(
    instantiations: Annotated[list[str], typer.Argument(help='"file.cu:kernel<arguments>"')],
    arch: Annotated[list[str] | None, typer.Option(help="architecture; all supported ones without it")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every build as JSON")] = None,
    threads: Annotated[int, typer.Option(help="compilations at a time")] = 2,
) -> None:
    """Compile instantiations and show what they take."""
    pairs = [(file, name) for file, _, name in (text.partition(":") for text in instantiations)]
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file has room for the names
    builds = list(compile_all(pairs, arch or ARCHS, threads))
    console.print(table(builds))
    for one in builds:
        for message in filter(None, (one.error, *one.warnings)):
            console.print(f"{one.name} {one.arch}: {message}", style="red", markup=False, highlight=False)
    if json_file:
        json_file.write_text(json.dumps([asdict(one) for one in builds], indent=1) + "\n")
    raise typer.Exit(0 if all(one.is_clean for one in builds) else 1)


if __name__ == "__main__":
    typer.run(main)
