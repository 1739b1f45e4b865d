"""Threads that wait for phases of mbarriers, without spinning.

The first test of an incomplete phase fails at once, as it may on a GPU, so that a kernel that forgets to loop is
found out. A second one puts the thread to sleep until the phase completes, or until nothing else can run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .lanes import Bools, Empty, Lanes, Mask, Value, intersect
from .numeric import select
from .site import PhaseTest

if TYPE_CHECKING:
    from .lanes import Active
    from .machine import Machine


@dataclass
class _Sleeper:
    """Lanes that go on at ``block`` with the answer to their test."""

    block: int
    lanes: Lanes
    test: PhaseTest
    address: Value
    phase: Value


class PhaseWaits:
    """The sleeping threads of a chunk."""

    def __init__(self, machine: Machine, registers: list[Any], resume: Callable[[int, Lanes], None]) -> None:
        self.machine = machine
        self.registers = registers
        self.resume = resume
        self.asleep: list[_Sleeper] = []
        self._tried = np.full(machine.lane_count, -1)  # per lane, the block whose test has failed last
        self._seen = 0  # version of the mbarriers at the last look
        self._stalled = -1  # and at the last time-out

    def test(self, block: int, lanes: Lanes, test: PhaseTest, address: Value, phase: Value) -> Active:
        """Answer the test at the end of ``block - 1``; returns the lanes that go on at once."""
        done = self._poll(lanes, test, address, phase)
        stays = ~done & (self._tried == block)
        going = intersect(lanes, ~stays)
        tried = np.where(done, -1, block)
        self._tried = tried if lanes is None else np.where(lanes.active, tried, self._tried)
        sleeping = intersect(lanes, stays)
        if not isinstance(sleeping, Empty):
            self.asleep.append(_Sleeper(block, sleeping, test, address, phase))
        if not isinstance(going, Empty):
            self._answer(test, going, done)
        return going

    def _poll(self, lanes: Lanes, test: PhaseTest, address: Value, phase: Value) -> Bools:
        mbarriers = self.machine.mbarriers
        return mbarriers.poll(test.site, address, lanes, test.offset, phase, test.parity, test.acquire)

    def _answer(self, test: PhaseTest, lanes: Lanes, done: Value) -> None:
        old = self.registers[test.target]
        if isinstance(lanes, Mask) and old is not None:
            done = select(lanes.active, done, old)
        self.registers[test.target] = done

    def wake(self) -> None:
        """Let those go on whose phase has completed."""
        version = self.machine.mbarriers.version
        if version == self._seen:
            return
        self._seen = version
        asleep, self.asleep = self.asleep, []
        for sleeper in asleep:
            done = self._poll(sleeper.lanes, sleeper.test, sleeper.address, sleeper.phase)
            going, staying = intersect(sleeper.lanes, done), intersect(sleeper.lanes, ~done)
            if not isinstance(going, Empty):
                self._answer(sleeper.test, going, done)
                self.resume(sleeper.block, going)
            if not isinstance(staying, Empty):
                sleeper.lanes = staying
                self.asleep.append(sleeper)

    def time_out(self, progress: int) -> bool:
        """Nothing else can run: all tests fail, once. ``False`` if that has not helped the last time."""
        if not self.asleep or progress == self._stalled:
            return False
        self._stalled = progress
        asleep, self.asleep = self.asleep, []
        for sleeper in asleep:
            self._answer(sleeper.test, sleeper.lanes, np.zeros(self.machine.lane_count, np.bool_))
            self.resume(sleeper.block, sleeper.lanes)
        return True

    def report(self) -> None:
        """These will never go on."""
        for sleeper in self.asleep:
            site, lanes = sleeper.test.site, sleeper.lanes
            text = self.machine.mbarriers.describe(site, sleeper.address, lanes, sleeper.test.offset)
            self.machine.report("barrier deadlock", site, np.bool_(True), lanes, text)
