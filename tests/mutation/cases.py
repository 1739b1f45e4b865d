"""The convolutions that the kernels' tests run, collected without running them."""

import functools
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product
from unittest import mock

import numpy as np
import pytest

from gpu_conv import dispatch, emulator, reference
from gpu_conv.cuda import compiler
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import scheduler
from gpu_conv.launch import Launch
from tests import cases as corpus
from tests.kernels import checking

# Where the tests of each kernel are: modules.
TESTS = {
    "direct": "direct",
    "pointwise": "pointwise phased",
    "depthwise": "depthwise depthwise_long",
    "depthwise_ncw": "depthwise",
    "depthwise_nchw": "depthwise",
    "depthwise_nchw_tile": "depthwise",
    "depthwise_nhwc": "depthwise",
    "depthwise_nhwc_tile": "depthwise",
    "depthwise_nhwc_toeplitz": "nhwc_toeplitz",
    "depthwise_toeplitz": "toeplitz",
    "depthwise_toeplitz_tall": "toeplitz",
    "conv_tile": "tile phased",
    "implicit_gemm": "implicit_gemm phased",
}
STEPS = 3  # times the basic blocks that the correct kernel needs: more is an endless loop


@dataclass
class Instantiation:
    """One kernel for one architecture, and the cases of its tests in the order in which they are tried."""

    compiled: compiler.Compiled
    cases: list[checking.Case]
    steps: dict[checking.Case, int] = field(default_factory=dict)
    sources: dict[int, tuple] = field(default_factory=dict)  # of each line of PTX
    reached: set[int] = field(default_factory=set)  # lines of PTX that some case runs

    def run(self, case, ptx):
        """Run a case on another text of the kernel; raises what the test would raise."""
        changed = mock.Mock(ptx=ptx, lowered=self.compiled.lowered)
        limit = self.steps.get(case, scheduler.MAX_STEPS)
        with (
            mock.patch.object(compiler, "compile_launch", return_value=changed),
            mock.patch.object(scheduler, "MAX_STEPS", limit),
            mock.patch.object(reference, "convolve", _remembered),
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
        ):
            warnings.simplefilter("ignore")
            case.check()

    def calibrate(self):
        """Run the correct kernel; the cases are left in the order of their cost."""
        schedulers = []

        class Remembered(scheduler.Scheduler):
            def run(self):
                super().run()
                schedulers.append(self)

        for case in self.cases:
            schedulers.clear()
            with mock.patch.object(emulator.emulator, "Scheduler", Remembered):
                self.run(case, self.compiled.ptx)
            self.steps[case] = STEPS * max(ran.steps for ran in schedulers) + 100
            launch = schedulers[-1].machine.launch
            for block, threads in zip(launch.program.blocks, launch.block_threads):
                self.sources |= {i.line: i.source for i in block.instructions}
                self.reached |= {i.line for i in block.instructions if threads}
        self.cases.sort(key=lambda case: self.steps[case] * case.launch.threads * case.launch.grid[0])

    @property
    def coverage(self):
        """Share of the instructions that some case runs."""
        return len(self.reached) / len(self.sources)


class _Recorder:
    """A plugin of pytest that runs the tests up to the place where they would run a kernel."""

    def __init__(self):
        self.cases = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        def stop(*_):
            pytest.skip("nothing is compiled")

        def record(case):
            if compiler.load is load:  # not a kernel with a planted bug
                self.cases.append(case)

        load = compiler.load
        with mock.patch.object(checking.Case, "check", record), mock.patch.object(compiler, "compile", stop):
            yield


@dataclass(frozen=True, eq=False)
class _CorpusCase:
    """A case of ``tests/cases.py`` through one row of the table."""

    filled: corpus.Filled
    fresh: np.ndarray
    launch: Launch
    target: str

    def check(self):
        self.filled.buffer[...] = self.fresh
        emulator.Emulator(self.target).run(self.launch, self.filled.call.operands)
        self.filled.check()


def _corpus(family):
    """What ``tests/test_table.py`` runs through the row of this kernel."""
    found = []
    (row,) = (row for row in dispatch.TABLE if row.name == family.removesuffix("_tall"))
    for case, exact in product(corpus.CASES, (True, False)):
        filled = corpus.fill(case, exact=exact)
        for arch in checking.ARCHES:
            target = KNOWN_TARGETS[arch]
            if row.refuses(filled.call.problem, target) is None:
                launch = row.plan(filled.call.problem, target)
                found.append(_CorpusCase(filled, filled.buffer.copy(), launch, arch))
    return found


@functools.cache
def _recorded(names):
    recorder = _Recorder()
    files = [f"tests/kernels/test_{name}.py" for name in names.split()]
    options = ["-qq", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    pytest.main([*options, "--capture=sys", *files], plugins=[recorder])
    return recorder.cases


def instantiations(family):
    """(name expression, architecture) -> cases, those with most different shapes first."""
    found = defaultdict(list)
    for case in (*_recorded(TESTS[family]), *_corpus(family)):
        if case.launch.kernel == family:
            found[case.launch.name_expression, case.target].append(case)
    return dict(sorted(found.items(), key=lambda item: (-len({c.launch.params for c in item[1]}), item[0])))


def choose(family, count):
    """The ``count`` instantiations with most different shapes, calibrated."""
    made = []
    for (_, arch), recorded in list(instantiations(family).items())[:count]:
        made.append(Instantiation(compiler.compile_launch(recorded[0].launch, arch), recorded))
        made[-1].calibrate()
    return made


_convolve = reference.convolve
_results = {}


def _remembered(problem, operands, **options):
    """The reference of each case is computed once."""
    key = (problem, *sorted(options.items()))
    if id(operands) not in _results:
        _results[id(operands)] = operands, {}
    known = _results[id(operands)][1]
    if key not in known:
        known[key] = _convolve(problem, operands, **options)
    return known[key]
