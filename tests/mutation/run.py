"""Run mutants of the kernels of a family and count those that the kernels' tests would let pass."""

import contextlib
import io
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from gpu_conv.emulator import EmulationError, PtxSyntaxError, UnsupportedPtx

from . import cases, mutants
from .explained import explain

REFUSED = "refused"  # no PTX that the emulator takes: not counted
SURVIVED = "survived"


@dataclass
class Result:
    """What became of one mutant: a kind of finding, ``wrong numbers``, ``survived``, ``refused`` or a crash."""

    kernel: str
    arch: str
    mutant: mutants.Mutant
    outcome: str
    source: str
    explanation: str | None = None


@dataclass
class Summary:
    """Results of one family."""

    family: str
    seed: int
    results: list[Result] = field(default_factory=list)
    instantiations: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def counted(self):
        return [result for result in self.results if result.outcome != REFUSED]

    @property
    def survivors(self):
        return [result for result in self.counted if result.outcome == SURVIVED]

    @property
    def unexplained(self):
        return [result for result in self.survivors if result.explanation is None]

    @property
    def crashes(self):
        return [result for result in self.counted if result.outcome.startswith("crash")]

    @property
    def kill_rate(self):
        return 1 - len(self.survivors) / max(1, len(self.counted))

    def line(self):
        """One line for people."""
        return (
            f"{self.family}: {len(self.counted)} mutants, {len(self.counted) - len(self.survivors)} killed"
            f" ({self.kill_rate:.1%}), {len(self.survivors)} survived, {len(self.unexplained)} of them unexplained"
            f" (seed {self.seed}, {self.seconds:.0f} s of CPU)"
        )

    def json(self):
        """Everything as plain data."""
        outcomes = Counter(result.outcome for result in self.results)
        return {
            "family": self.family,
            "seed": self.seed,
            "mutants": len(self.counted),
            "killed": len(self.counted) - len(self.survivors),
            "kill_rate": self.kill_rate,
            "seconds": round(self.seconds, 1),
            "outcomes": dict(outcomes.most_common()),
            "kinds": {
                kind: f"{sum(r.outcome != SURVIVED for r in found)} of {len(found)} killed"
                for kind in sorted({r.mutant.kind for r in self.counted})
                if (found := [r for r in self.counted if r.mutant.kind == kind])
            },
            "explanations": dict(Counter(r.explanation or "unexplained" for r in self.survivors).most_common()),
            "instantiations": self.instantiations,
            "survivors": [asdict(result) for result in self.survivors],
            "crashes": [asdict(result) for result in self.crashes],
        }


def judge(instantiation, ptx):
    """Run the cases until one kills the mutant; that case comes first from now on, where it is as cheap."""
    for position, case in enumerate(instantiation.cases):
        try:
            instantiation.run(case, ptx)
        except EmulationError as error:
            outcome = error.report.findings[0].kind if error.report else "stopped"
        except AssertionError:
            outcome = "wrong numbers"
        except (UnsupportedPtx, PtxSyntaxError):
            return REFUSED
        except Exception as error:  # noqa: BLE001  a hole in the emulator, which the tests report
            return f"crash: {type(error).__name__}: {error}"
        else:
            continue
        if position:
            before = instantiation.cases[position - 1]
            if instantiation.steps[case] < 2 * instantiation.steps[before]:
                instantiation.cases[position - 1 : position + 1] = case, before
        return outcome
    return SURVIVED


def mutate(family, count, seed, *, kernels=4, seconds=float("inf"), progress=None):
    """Mutants of the instantiations that have most cases.

    Args:
        family: name of a kernel.
        count: of mutants, spread over the instantiations.
        seed: of the choice of mutants.
        kernels: how many instantiations.
        seconds: of CPU time after which no more mutants are run.
        progress: called with every result.
    """
    started = time.process_time()
    summary = Summary(family, seed)
    with contextlib.redirect_stdout(io.StringIO()):
        chosen = cases.choose(family, kernels)
    calibrated = time.process_time()
    for i, instantiation in enumerate(chosen):
        ptx, key = instantiation.compiled.ptx, (instantiation.compiled.name_expression, instantiation.compiled.arch)
        share = (count * (i + 1)) // len(chosen) - (count * i) // len(chosen)
        run = 0
        for mutant in mutants.sample(ptx, instantiation.reached, share, seed + i):
            if time.process_time() - calibrated > seconds * (i + 1) / len(chosen):
                break
            outcome = judge(instantiation, mutant.apply(ptx))
            source = " < ".join(str(line) for line in instantiation.sources[mutant.line])
            result = Result(*key, mutant, outcome, source)
            if outcome == SURVIVED:
                result.explanation = explain(result)
            summary.results.append(result)
            run += 1
            if progress:
                progress(result)
        facts = {"cases": len(instantiation.cases), "coverage": round(instantiation.coverage, 3), "mutants": run}
        summary.instantiations.append({"kernel": key[0], "arch": key[1], **facts})
    summary.seconds = time.process_time() - started
    return summary
