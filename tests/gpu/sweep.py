"""Launch every row of the table on the corpus, once each: what compute-sanitizer watches, and how the cache is warmed.

python -m tests.gpu.sweep run [--every N] [--offset K]   launch (under compute-sanitizer: plain cudaMalloc, true bounds)
python -m tests.gpu.sweep warm                           compile everything for this GPU, on all cores
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import cupy

from gpu_conv import dispatch, execute
from gpu_conv.cuda import compiler, device

from ..cases import CASES, fill


def launches(cases, target):
    """(row, case, launch) of everything that a kernel accepts."""
    for case in cases:
        problem = fill(case, exact=False).call.problem
        for row in dispatch.TABLE:
            if row.refuses(problem, target) is None:
                yield row, case, row.plan(problem, target)


def run(every, offset):
    """Launch a part of the corpus; results are checked by the tests, memory accesses by the sanitizer."""
    cupy.cuda.set_allocator(None)
    target, count = execute.target("cuda"), 0
    for row, case, _ in launches(CASES[offset::every], target):
        filled = fill(case, exact=False, asarray=cupy.asarray)
        device.run(row.plan(filled.call.problem, target), filled.call.operands)
        cupy.cuda.Device().synchronize()
        count += 1
    print(f"{count} launches")


def compile_one(job):
    """One instantiation into the disk cache; in a worker that never touches the GPU."""
    launch, arch = job
    compiled = compiler.compile_launch(launch, arch)
    return launch.name_expression, compiled.registers, compiled.spill_bytes, compiled.local_bytes


def warm():
    """Compile all instantiations of the corpus in parallel."""
    target = execute.target("cuda")
    unique = {launch.name_expression: launch for _, _, launch in launches(CASES, target)}
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(compile_one, [(launch, target.arch) for launch in unique.values()], chunksize=4))
    spilling = [d for d in done if d[2] or d[3]]
    print(f"{len(done)} instantiations for {target.arch}, {len(spilling)} with spills or local memory")
    for name, registers, spills, local in spilling:
        print(f"  {name}: {registers} registers, {spills} bytes spilled, {local} local")


def main():
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "warm"))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    arguments = parser.parse_args()
    warm() if arguments.what == "warm" else run(arguments.every, arguments.offset)


if __name__ == "__main__":
    main()
