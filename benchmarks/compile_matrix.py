"""Compile what the dispatch table can ask for, for every architecture, with no GPU: registers, spills, local memory.

    python benchmarks/compile_matrix.py --json matrix.json                   # all: 28,000 kernels, 2 to 5 CPU hours
    python benchmarks/compile_matrix.py --arch sm_90a --sample 200 --seed 1  # a part drawn at random
    python benchmarks/compile_matrix.py "direct.cu:direct<float, 3>"         # these only
    python benchmarks/compile_matrix.py --nvcc --sample 400                  # with plain nvcc, as a C++ project would

Exit status 1 if one does not compile, spills, uses local memory or draws a warning. Everything passes through the disk
cache of compiled kernels, so that a run that was stopped goes on where it stopped; a whole run needs 10 GB there, so
give it a folder of its own: GPU_CONV_CACHE=FOLDER. ``instantiations.py`` says what is asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import instantiations
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gpu_conv.cuda import CompileError, cache, compiler, resources, source
from gpu_conv.cuda.targets import KNOWN_TARGETS

ARCHS = tuple(KNOWN_TARGETS)
CACHED = 0.03  # CPU seconds: below, the disk cache had it; the fastest compilation takes 0.09
WORST = 20  # builds listed by name

Job = tuple[str, str, str]  # architecture, file below kernels/, name expression


@dataclass(frozen=True)
class Build:
    """One instantiation for one architecture; ``error`` is None where it compiled.

    ``seconds`` are of the CPU with NVRTC, of the clock with nvcc.
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
    def family(self) -> str:
        return self.name.partition("<")[0]

    @property
    def is_clean(self) -> bool:
        """Compiled, with everything in registers and no warning."""
        return not (self.error or self.spill_bytes or self.local_bytes or self.warnings)


def build(job: Job) -> Build:
    """Compile, or read from the disk cache."""
    arch, file, name = job
    start = time.thread_time()
    try:
        compiled = compiler.compile(source.load(file), name, arch)
    except CompileError as error:
        return Build(file, name, arch, time.thread_time() - start, error=str(error))
    return Build(
        file,
        name,
        arch,
        time.thread_time() - start,
        compiled.registers,
        compiled.spill_bytes,
        compiled.local_bytes,
        compiled.shared_bytes,
        tuple(compiled.warnings),
    )


def build_with_nvcc(job: Job) -> Build:
    """Compile as a C++ project would that includes the kernel and takes its address; nothing is cached."""
    arch, file, name = job
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        unit = Path(folder, file)
        unit.write_text(f"{source.load(file)}\nvoid* wanted() {{ return (void*)({name}); }}\n")
        options = ("-std=c++17", f"-arch={arch}", "-cubin", "--ptxas-options=-v", "-o", os.devnull)
        done = subprocess.run(["nvcc", *options, unit], capture_output=True, text=True, check=False)
    seconds, log = time.perf_counter() - start, done.stdout + done.stderr
    if done.returncode:
        return Build(file, name, arch, seconds, error=log)
    return Build(file, name, arch, seconds, **vars(resources.parse(log)), warnings=tuple(resources.warnings(log)))


def nvcc_version() -> str:
    """``"nvcc 13.0"``."""
    if not shutil.which("nvcc"):
        raise typer.BadParameter("no nvcc is on the path: it comes with the CUDA toolkit", param_hint="--nvcc")
    told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return "nvcc " + re.findall(r"release (\d+\.\d+)", told)[0]


def compile_all(jobs: Iterable[Job], threads: int = 2, compile_one: Callable[[Job], Build] = build) -> Iterator[Build]:
    """Every job once, in order, as soon as each is there."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(compile_one, dict.fromkeys(jobs))


def jobs_of(archs: Iterable[str], sample: int | None, seed: int) -> list[Job]:
    """All that the table can ask for, or as many of it drawn at random."""
    found = instantiations.instantiations(archs) if sample is None else instantiations.sample(sample, seed, archs)
    return [(arch, *key) for arch, key in found]


def summary(builds: Iterable[Build]) -> list[dict[str, Any]]:
    """One row per family and architecture."""
    groups: dict[tuple[str, str], list[Build]] = {}
    for one in builds:
        groups.setdefault((one.family, one.arch), []).append(one)
    return [_row(family, arch, group) for (family, arch), group in sorted(groups.items())]


def _row(family: str, arch: str, group: list[Build]) -> dict[str, Any]:
    seconds = [one.seconds for one in group if one.seconds > CACHED]
    return {
        "family": family,
        "arch": arch,
        "instantiations": len(group),
        "clean": sum(one.is_clean for one in group),
        "registers": max(one.registers for one in group),
        "spill_bytes": max(one.spill_bytes for one in group),
        "local_bytes": max(one.local_bytes for one in group),
        "seconds_median": round(statistics.median(seconds), 3) if seconds else None,
        "seconds_worst": round(max(seconds), 3) if seconds else None,
    }


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The summary for people; compile times are missing where everything came from the cache."""
    columns = ("instantiations", "clean", "registers", "spill_bytes", "local_bytes", "seconds_median", "seconds_worst")
    result = Table("family", "arch", *(name.replace("_", " ") for name in columns), title=title)
    for row in rows:
        style = None if row["clean"] == row["instantiations"] else "red"
        cells = ("" if row[name] is None else str(row[name]) for name in columns)
        result.add_row(row["family"], row["arch"], *cells, style=style)
    return result


def report(builds: list[Build]) -> dict[str, Any]:
    """What is kept as JSON: the summary, every build that is not clean, and those that need most registers."""
    worst = sorted(builds, key=lambda one: -one.registers)[:WORST]
    facts = ("source", "name", "arch", "registers", "spill_bytes", "local_bytes", "warnings", "error")

    def listed(some: Iterable[Build]) -> list[dict[str, Any]]:
        return [{name: asdict(one)[name] for name in facts} for one in some]

    return {
        "instantiations": len({(one.source, one.name) for one in builds}),
        "builds": len(builds),
        "summary": summary(builds),
        "not_clean": listed(one for one in builds if not one.is_clean),
        "most_registers": listed(worst),
    }


def main(
    kernels: Annotated[list[str] | None, typer.Argument(help='"file.cu:kernel<arguments>" instead')] = None,
    arch: Annotated[list[str] | None, typer.Option(help="architecture; all supported ones without it")] = None,
    sample: Annotated[int | None, typer.Option(help="so many of all builds, drawn at random")] = None,
    seed: Annotated[int, typer.Option(help="of the sample")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="put the report there, beside other NVRTCs'")] = None,
    threads: Annotated[int, typer.Option(help="compilations at a time")] = os.cpu_count() or 1,
    nvcc: Annotated[bool, typer.Option("--nvcc", help="with the nvcc on the path instead of NVRTC")] = False,
) -> None:
    """Compile, and show what the kernels take."""
    cache.MAX_BYTES = 1 << 40  # what was compiled an hour ago is still wanted
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file has room for the names
    if kernels:
        pairs = [text.partition(":") for text in kernels]
        jobs: list[Job] = [(one, file, name) for file, _, name in pairs for one in arch or ARCHS]
    else:
        jobs = jobs_of(arch or ARCHS, sample, seed)
    compile_one, version = (build_with_nvcc, nvcc_version()) if nvcc else (build, compiler.nvrtc_version())
    building = compile_all(jobs, threads, compile_one)
    builds = list(track(building, total=len(set(jobs)), console=console, disable=not console.is_terminal))
    result = {"sample": sample, "seed": seed if sample else None} | report(builds)
    console.print(table(result["summary"], f"{len(builds)} kernels, {version if nvcc else f'NVRTC {version}'}"))
    for one in builds:
        if not one.is_clean:
            found = f"{one.registers} registers, {one.spill_bytes} bytes spilled, {one.local_bytes} local"
            text = f"{one.arch} {one.name}: {one.error or found} {' '.join(one.warnings)}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if json_file:
        reports = json.loads(json_file.read_text()) if json_file.exists() else {}
        json_file.write_text(json.dumps(reports | {version: result}, indent=1) + "\n")
    raise typer.Exit(0 if all(one.is_clean for one in builds) else 1)


if __name__ == "__main__":
    typer.run(main)
