"""Mutation testing of the kernels: what share of one-instruction mistakes in their PTX do their tests find?

``python -m tests.mutation --family direct --mutants 300 --seed 0 --json results.json``
"""

import argparse
import json
import sys
from pathlib import Path

from .cases import TESTS
from .run import SURVIVED, mutate


def show(result):
    if result.outcome == SURVIVED or result.outcome.startswith("crash"):
        mutant = result.mutant
        print(f"{result.outcome}: {result.source}: PTX line {mutant.line} of {result.kernel}, {result.arch}")
        change = f"{mutant.before}  ->  {mutant.after or 'nothing'}"
        print(f"    {mutant.kind}: {change}    {result.explanation or ''}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--family", choices=TESTS, nargs="*", default=list(TESTS), help="kernels (all)")
    parser.add_argument("--mutants", type=int, default=100, help="of each family (100)")
    parser.add_argument("--kernels", type=int, default=4, help="instantiations of each family (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="CPU time for each family")
    parser.add_argument("--bound", type=float, default=0.0, help="fail if a smaller share is killed or explained")
    parser.add_argument("--json", type=Path, help="file for all results")
    options = parser.parse_args()
    summaries = []
    for family in options.family:
        limits = {"kernels": options.kernels, "seconds": options.seconds}
        summaries.append(mutate(family, options.mutants, options.seed, **limits, progress=show))
        print(summaries[-1].line(), flush=True)
        if options.json:
            options.json.write_text(json.dumps([made.json() for made in summaries], indent=1))
    counted, survived, unexplained, crashes = (
        sum(len(getattr(made, name)) for made in summaries)
        for name in ("counted", "survivors", "unexplained", "crashes")
    )
    killed = f"{counted - survived} of {counted} mutants killed ({1 - survived / max(1, counted):.1%})"
    print(f"{', '.join(options.family)}: {killed}, {unexplained} survived unexplained")
    return int(unexplained > (1 - options.bound) * counted or crashes > 0)


sys.exit(main())
