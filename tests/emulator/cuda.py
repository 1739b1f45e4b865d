"""CUDA kernels of these tests, compiled by NVRTC and run in the emulator."""

from functools import cache
from pathlib import Path

from gpu_conv.cuda import compiler
from gpu_conv.emulator import Emulator

KERNELS = Path(__file__).parent / "kernels"
DIALECTS = ("sm_80", "sm_120")  # NVVM 7 and NVVM 23


@cache
def compiled(name, expression, arch):
    text = (KERNELS / name).read_text() if name.endswith(".cu") else name
    source = f'#line 1 "{name}"\n{text}' if name.endswith(".cu") else text
    return compiler.compile(source, expression, arch)


def launch(name, expression, grid, block, args, shared=0, *, arch="sm_80", **options):
    """Run a kernel of ``kernels/`` (or a source text) and return the report."""
    outputs, names = options.pop("outputs", ()), options.pop("names", None)
    kernel = compiled(name, expression, arch)
    emulator = Emulator(arch, **{"strict": False, **options})
    return emulator.execute(kernel.ptx, kernel.lowered, grid, block, args, shared, outputs=outputs, names=names)


def marked_lines(name):
    """Lines with ``// FOUND: kind``, by kind."""
    marks = {}
    for number, line in enumerate((KERNELS / name).read_text().splitlines(), 1):
        if "// FOUND: " in line:
            marks.setdefault(line.split("// FOUND: ")[1].strip(), set()).add(number)
    return marks
