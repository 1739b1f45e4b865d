"""Every kernel and tile that could run a layer, timed on the GPU: what the models of the families are fitted to.

    python benchmarks/tiles.py --output tiles.json [--budget 240] [--sets layers network blocks]

- ``layers``: the rows of ``layers.json`` as ``bench.py`` measures them, float16 and float32, NHWC and NCHW;
- ``network``: the convolutions of MobileNetV2 in float16, channels last, batch 1, 32 and 256;
- ``blocks``: its inverted residuals, each in one launch.

Operands are small integers: all candidates must give what the table's choice gives, the first of each list. Times are
medians of graph replays with cold L2. The first line is the environment, then one per problem; a candidate is
[kernel, tile, microseconds], or has the error in place of the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from calibrate import environment
from rows import BOTH, LAYERS, measured, measured_batch, problem, title

from gpu_conv import execute, stand_in
from gpu_conv.cuda import cache, compiler
from gpu_conv.families import inverted_residual
from gpu_conv.families.inverted_residual_model import Chain, tiles
from gpu_conv.launch import Launch, Target
from gpu_conv.problem import ConvProblem
from gpu_conv.tune import candidates
from tests.kernels.chains import BLOCKS, shape_of
from tests.test_mobilenet import LAYERS as MOBILENET

BATCHES = (1, 32, 256)
MOST = {"conv_tile": 12, "implicit_gemm": 12}  # tiles of those families, the best predicted first; all of the others
SLOW = ("direct", "depthwise")  # rows without a tile to choose: not timed where the table has something else


@dataclass(frozen=True)
class Task:
    """What is to be computed, and how results name it."""

    facts: Mapping[str, Any]
    problem: ConvProblem | Chain

    def __str__(self) -> str:
        facts = self.facts
        return f"{facts['layer']} {facts.get('dtype', 'float16')} {facts.get('layout', 'nhwc')} b{facts['batch']}"


@dataclass(frozen=True)
class Plan:
    """A task with its candidates: kernel, tile and launch, the table's choice first."""

    task: Task
    candidates: tuple[tuple[str, Any, Launch], ...]


def layers() -> Iterator[Task]:
    """The rows of ``layers.json`` that can be planned."""
    for dtype, row, last in itertools.product(("float16", "float32"), LAYERS, BOTH):
        facts = {"set": "layers", "layer": title(row), "batch": measured_batch(row, dtype)}
        yield Task(facts | {"dtype": dtype, "layout": "nhwc" if last else "nchw"}, measured(row, dtype, last))


def network() -> Iterator[Task]:
    """The different convolutions of MobileNetV2, and its classifier."""
    classifier = (1, 1280, 1000, 1, 1, 1, None, False)
    for batch, layer in itertools.product(BATCHES, dict.fromkeys((*MOBILENET, classifier))):
        size, c, o, k, stride, groups, activation, residual = layer
        row = {"C": c, "K": o, "groups": groups, "in_spatial": (size, size), "filter": (k, k), "causal": False}
        row |= {"stride": (stride, stride), "pad": (k // 2, k // 2), "dilation": (1, 1)}
        row |= {"epilogue": [*([activation] if activation else []), *(["add"] if residual else [])]}
        facts = {"set": "network", "layer": f"{k}x{k} s{stride} g{groups} {c}>{o} {size}", "batch": batch}
        facts |= {"dtype": "float16", "layout": "nhwc", "residual": residual, "activation": activation}
        yield Task(facts, problem(row, "float16", True, batch))


def blocks() -> Iterator[Task]:
    """The inverted residuals of MobileNetV2."""
    for batch, number in itertools.product(BATCHES, BLOCKS):
        yield Task({"set": "blocks", "layer": f"block {number}", "batch": batch}, shape_of(number, batch))


SETS: Mapping[str, Callable[[], Iterable[Task]]] = {"blocks": blocks, "network": network, "layers": layers}


def plan(task: Task, target: Target) -> Plan:
    """The candidates of a task; in a worker that never touches the GPU."""
    found = task.problem
    if isinstance(found, Chain):
        launches = ((t, inverted_residual.plan(found, target, t)) for t in tiles(found, target)[:24])
        return Plan(task, tuple(("inverted_residual", *one) for one in launches))
    first, *others = candidates(found, target, 24)
    count, kept = Counter[str](), [first]
    for one in others:
        count[one.kernel] += 1
        most = 0 if one.kernel in SLOW or (found.is_pointwise and one.kernel in MOST) else MOST.get(one.kernel, 24)
        kept += [one] if count[one.kernel] <= most else []
    return Plan(task, tuple((c.kernel, c.tile, c.launch) for c in kept))


def compile_one(launch: Launch, arch: str) -> str | None:
    """Into the disk cache; what does not compile fails again where it is used."""
    cache.MAX_BYTES = 1 << 40  # what was compiled first is still wanted
    try:
        compiler.compile_launch(launch, arch)
    except compiler.CompileError as error:
        return f"{launch.name_expression}: {error}"[:300]
    return None


def plans(wanted: Iterable[str], only: str, target: Target) -> list[Plan]:
    """All plans of these sets, their kernels compiled, on all cores."""
    with ProcessPoolExecutor() as pool:
        tasks = [task for name in wanted for task in SETS[name]() if re.search(only, str(task))]
        found = list(pool.map(partial(plan, target=target), tasks, chunksize=2))
        unique = {(c[2].source, c[2].name_expression): c[2] for p in found for c in p.candidates}
        errors = [e for e in pool.map(partial(compile_one, arch=target.arch), unique.values(), chunksize=4) if e]
    print(f"{len(found)} problems, {sum(len(p.candidates) for p in found)} candidates, {len(unique)} kernels")
    print(*errors, sep="\n")
    return found


class Bench:
    """Runs and times candidates on the GPU."""

    def __init__(self) -> None:
        from gpu_conv.cuda import device, timing

        self.xp: Any = device.cupy()
        self.ready, self.timing = device.ready, timing

    def time(self, found: Plan) -> dict[str, Any]:
        """A row of the results."""
        task, wanted, tried = found.task, None, []
        chain = isinstance(task.problem, Chain)
        sets = self._of_chain(task.problem) if chain else self._of_problem(task.problem)
        for kernel, tile, launch in found.candidates:
            operands = [one(tile) for one in sets] if chain else [dict(one.arrays) for one in sets]
            entry: list[Any] = [kernel, tile and list(tile)]
            try:
                calls = [self.ready(launch, 0).bind(one) for one in operands]
                operands[0]["y"].fill(math.nan)
                calls[0]()
                result = operands[0]["y"].copy()
                wanted = result if wanted is None else wanted
                if bool((result == wanted).all()):
                    us = self.timing.measure(calls, budget_s=0.008, min_samples=5, max_samples=21).us
                    entry.append(round(us, 2))
                else:
                    entry.append("its result differs from the first")
            except Exception as error:  # noqa: BLE001  (a bad candidate must not end the run)
                entry.append(f"{type(error).__name__}: {error}"[:300])
            tried.append(entry)
        return {**task.facts, "bytes": task.problem.bytes, "tried": tried}

    def _of_problem(self, found: ConvProblem) -> list[stand_in.Operands]:
        return stand_in.operand_sets(found, self.xp, self.timing.operand_sets(found.bytes, most=64))

    def _of_chain(self, chain: Chain) -> list[Callable[[Any], dict[str, Any]]]:
        """One function per operand set, which packs the filters for a tile once."""
        xp, rng, packed = self.xp, self.xp.random.RandomState(0), {}
        e = chain.expanded

        def ints(*shape: int, dtype: str = "float16") -> Any:
            return rng.randint(-2, 3, shape).astype(dtype)

        few = (rng.random_sample((e, chain.in_channels)) < 4 / chain.in_channels).astype("float16")
        filters = {"expand": ints(e, chain.in_channels) * few if chain.expand else None, "depthwise": ints(e, 3, 3)}
        filters |= {"project": ints(chain.out_channels, e)}
        filters |= {name: ints(e, dtype="float32") for name in ("expand_bias", "depthwise_bias")}
        bias, (n, _, _, h, w) = ints(chain.out_channels, dtype="float32"), chain.project.y.shape
        rows, columns = chain.first.in_spatial

        def operands(tile: Any, x: Any, y: Any) -> dict[str, Any]:
            if tile not in packed:
                packed.clear()
                packed[tile] = inverted_residual.weights(chain, tile, filters, xp)
            return {"x": x, "y": y, "w": packed[tile], "bias": bias if chain.project.bias else None}

        count = self.timing.operand_sets(chain.bytes, most=64)
        image = ints(1, rows, columns, chain.in_channels)
        xs = [xp.repeat(image, n, axis=0) for _ in range(count)]
        return [partial(operands, x=x, y=xp.empty((n, h, w, chain.out_channels), "float16")) for x in xs]


def line(row: Mapping[str, Any]) -> str:
    """The table's choice, the fastest, and what is wrong."""
    first, *_ = row["tried"]
    timed = [t for t in row["tried"] if isinstance(t[2], float)]
    best = min(timed, key=lambda t: t[2], default=first)
    wrong = [t for t in row["tried"] if not isinstance(t[2], float)]
    head = f"{row['layer'][:56]:<56} b{row['batch']:<4}{row.get('dtype', 'float16')[5:]:<3}{row.get('layout', ''):<5}"
    return f"{head} {first[2]!s:>9} {first[0]:<16} best {best[2]!s:>9} {best[0]} {best[1] or ''} {wrong[:1] or ''}"


def main() -> None:
    """Plan, compile, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--only", default="", help="regular expression: layer, float16, nhwc, b32")
    parser.add_argument("--without", nargs="*", default=[], help="kernels not to run")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds of timing; the rest is left out")
    parser.add_argument("--compile", action="store_true", help="fill the disk cache, and stop")
    arguments = parser.parse_args()
    found = plans(arguments.sets, arguments.only, execute.target("cuda"))
    if arguments.compile:
        return
    bench, start = Bench(), time.monotonic()
    with arguments.output.open("w") as file:
        file.write(json.dumps({"environment": environment()}) + "\n")
        for one in found:
            if time.monotonic() - start > arguments.budget:
                print(f"not timed: {one.task.facts}")
                continue
            kept = tuple(c for c in one.candidates if c[0] not in arguments.without)
            if not kept:
                continue
            row = bench.time(replace(one, candidates=kept))
            bench.xp.get_default_memory_pool().free_all_blocks()
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
