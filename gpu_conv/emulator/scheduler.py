"""Runs a chunk of blocks: groups of lanes, each at one basic block; the lowest block number first.

NVVM lays blocks out in topological order, so the lowest one is where diverged lanes meet again. Lanes wait at
barriers until their block is complete and at warp-synchronous instructions until their member mask is. With a random
schedule any group may run next, or any part of it that consists of whole warps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .cfg import WARPGROUP, Block
from .errors import Stopped
from .ir import Immediate, Register
from .lanes import EMPTY, WARP, Active, Empty, Indices, Lanes, Value, intersect, lanes_where, per_warp, spread, union
from .machine import Machine
from .numeric import select
from .phases import PhaseWaits
from .site import Barrier, Site

MAX_STEPS = 2_000_000
FAIRNESS = 256  # steps after which the group that has waited longest runs, so that spinning threads stop no others
# These need all 32 lanes of the warp, not just those that are still running.
_ALIGNED = frozenset(("mma", "ldmatrix", "wgmma", "setmaxnreg"))

Bools = npt.NDArray[np.bool_]


@dataclass
class _Arrival:
    """Lanes that wait at a block barrier."""

    block: int
    lanes: Lanes
    operand: Value
    barrier: Barrier


class Scheduler:
    """State of the run of one chunk.

    Attributes:
        pending: basic block -> lanes that are about to execute it.
        parked: basic block -> lanes that wait there for the rest of their member mask.
        waiting: lanes at barriers; ``phases``: lanes that wait for mbarriers.
        live: lanes that have not exited; ``None``: all.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.program = machine.launch.program
        self.registers = self.program.fresh_registers()
        self.pending: dict[int, Lanes] = {0: machine.existing}
        self.parked: dict[int, Lanes] = {}
        self.waiting: list[_Arrival] = []
        self.phases = PhaseWaits(machine, self.registers, self._add)
        existing = machine.existing
        self.live: Bools | None = None if existing is None else existing.active
        self.steps = self.events = 0
        self._groups: dict[int, Indices] = {}

    def run(self) -> None:
        random = self.machine.random
        while self.pending or self.waiting or self.parked or self.phases.asleep:
            eager = self._fair_turn() if random is None else random.integers(2)
            if random is not None and not random.integers(4):
                self.machine.bulk.land()
            if self.phases.asleep:
                self.phases.wake()
            if not self.pending or (self.waiting and eager):
                self._release()
            if self.pending:
                self._run_group()
        self.machine.bulk.finish()
        if self.machine.copies.queue:
            self.machine.launch.recorder.notes["cp.async copies were still in flight when their threads exited"] = None

    # ---- one group

    def _run_group(self) -> None:
        random = self.machine.random
        if random is None:
            index = next(iter(self.pending)) if self._fair_turn() else min(self.pending)
            lanes = self.pending.pop(index)
        else:
            index = int(random.choice(list(self.pending)))
            lanes = self._some_warps(index, self.pending.pop(index))
        blocks = self.program.blocks
        while True:
            if index >= len(blocks):
                self._exit(lanes)
                return
            block = blocks[index]
            if block.parks:
                ready = self._complete(block, lanes)
                if isinstance(ready, Empty):
                    return
                lanes = ready
            result = self._execute(index, lanes)
            after = self._follow(block, lanes, result)
            if after is None:
                return
            index, lanes = after
            if random is not None or (self.pending and (index >= min(self.pending) or self._fair_turn())):
                self._add(index, lanes)
                return

    def _fair_turn(self) -> bool:
        return self.steps % FAIRNESS == FAIRNESS - 1

    def _some_warps(self, index: int, lanes: Lanes) -> Lanes:
        """A random part of a group; the rest stays pending."""
        assert self.machine.random is not None
        chosen = np.repeat(self.machine.random.integers(0, 2, self.machine.lane_count // WARP) == 1, WARP)
        part, rest = intersect(lanes, chosen), intersect(lanes, ~chosen)
        if isinstance(part, Empty) or isinstance(rest, Empty):
            return lanes
        self._add(index, rest)
        return part

    def _add(self, index: int, lanes: Lanes) -> None:
        self.pending[index] = union(self.pending[index], lanes) if index in self.pending else lanes

    def _execute(self, index: int, lanes: Lanes) -> Value:
        """Run one basic block, keeping the registers that other groups still need in their lanes."""
        launch, machine = self.machine.launch, self.machine
        self.steps += 1
        if self.steps > MAX_STEPS:
            self._report_lanes("endless loop", "the block doesn't come to an end", index, lanes)
            raise Stopped("endless loop")
        launch.block_threads[index] += machine.active(lanes)
        launch.block_warps[index] += machine.warps(lanes)
        saved: dict[int, Value] = {}
        asleep = self.phases.asleep
        if lanes is not None and (self.pending or self.parked or self.waiting or asleep):
            live_in, touched = self.program.live_in, self.program.touched[index]
            others = (*self.pending, *self.parked, *(a.block for a in self.waiting), *(s.block for s in asleep))
            needed = frozenset().union(*(live_in[o] for o in others if o < len(live_in))) & touched
            saved = {number: self.registers[number] for number in needed}
        result = self.program.functions[index](self.registers, lanes, machine)
        for number, old in saved.items():
            new = self.registers[number]
            if new is None:
                self.registers[number] = old
            elif new is not old and old is not None and lanes is not None:
                self.registers[number] = select(lanes.active, new, old)
        return result

    def _follow(self, block: Block, lanes: Lanes, result: Value) -> tuple[int, Lanes] | None:
        """Where the group goes on; ``None`` if it has split, waits or is done."""
        following = block.index + 1
        match block.end:
            case "next":
                return following, lanes
            case "jump":
                return block.targets[0], lanes
            case "branch":
                taken, rest = self._split(lanes, result)
                if isinstance(taken, Empty):
                    return following, lanes
                if isinstance(rest, Empty):
                    return block.targets[0], lanes
                self.machine.launch.divergent_branches += 1
                self._add(block.targets[0], taken)
                self._add(following, rest)
                return None
            case "switch":
                return self._switch(block, lanes, result)
            case "exit":
                leaving, rest = (lanes, EMPTY) if result is None else self._split(lanes, result)
                if not isinstance(leaving, Empty):
                    self._exit(leaving)
                return None if isinstance(rest, Empty) else (following, rest)
            case "barrier":
                self.waiting.append(_Arrival(following, lanes, result, self.program.barriers[block.index]))
                return None
            case "phase":
                going = self.phases.test(following, lanes, self.program.phase_tests[block.index], *result)
                return None if isinstance(going, Empty) else (following, going)
        self._report_lanes("trap", "executes trap", block.index, lanes)
        raise Stopped("trap")

    def _split(self, lanes: Lanes, condition: Value) -> tuple[Active, Active]:
        taken = intersect(lanes, condition)
        if isinstance(taken, Empty):
            return EMPTY, lanes
        if taken is lanes:
            return lanes, EMPTY
        return taken, intersect(lanes, ~condition)

    def _switch(self, block: Block, lanes: Lanes, selector: Value) -> tuple[int, Lanes] | None:
        for number in np.unique(selector).tolist():
            part = intersect(lanes, selector == number)
            if isinstance(part, Empty):
                continue
            if number >= len(block.targets):
                self._report_lanes(
                    "out of bounds", f"branch target {number} of {len(block.targets)}", block.index, part
                )
                raise Stopped("wild branch")
            if part is lanes:
                return block.targets[number], lanes
            self._add(block.targets[number], part)
        self.machine.launch.divergent_branches += 1
        return None

    def _exit(self, lanes: Lanes) -> None:
        self.events += 1
        if lanes is None:
            self.live = np.zeros(self.machine.lane_count, np.bool_)
        else:
            self.live = ~lanes.active if self.live is None else self.live & ~lanes.active

    # ---- warp-synchronous instructions

    def _complete(self, block: Block, lanes: Lanes) -> Active:
        """The lanes whose member mask has arrived; the others are parked."""
        index = block.index
        if index in self.parked:
            lanes = union(self.parked.pop(index), lanes)
        instruction = block.instructions[0]
        if lanes is None and block.together == WARP:
            return None
        active = np.ones(self.machine.lane_count, np.bool_) if lanes is None else lanes.active
        live = np.ones(len(active), np.bool_) if self.live is None else self.live
        if block.together:
            group = self._neighbours(block.together)
            if instruction.opcode in _ALIGNED:
                self._check_exited(block, active, live, group)
            ready = active & ~np.bincount(group, live & ~active).astype(np.bool_)[group]
        else:
            ready = self._members_present(block, active, live)
        rest = lanes_where(active & ~ready)
        if not isinstance(rest, Empty):
            self.parked[index] = rest
            return lanes_where(ready)
        return lanes

    def _members_present(self, block: Block, active: Bools, live: Bools) -> Bools:
        match block.member_mask:
            case Register(name):
                members = self.registers[self.program.numbers[name]]
            case Immediate(value):
                members = np.uint32(value & 0xFFFFFFFF)
            case other:
                raise block.instructions[0].unsupported(f"member mask {other}")
        rows, active_rows = per_warp(members, len(active)), active.reshape(-1, WARP)
        named = ((rows[:, :, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1)) != 0
        outside = active & ~named[:, np.arange(WARP), np.arange(WARP)].ravel()
        if outside.any():
            text = "a lane executes it that its member mask doesn't name"
            self._report_lanes("incomplete warp", text, block.index, lanes_where(outside))
            raise Stopped("member mask")
        here = active_rows[:, None, :] & (rows[:, :, None] == rows[:, None, :])
        missing = (named & live.reshape(-1, 1, WARP) & ~here).any(axis=2)
        ready: Bools = active & ~missing.ravel()
        return ready

    def _neighbours(self, count: int) -> Indices:
        """Per lane its warp or warpgroup."""
        if count not in self._groups:
            width = self.machine.block_lanes
            lane = np.arange(self.machine.lane_count)
            self._groups[count] = lane // width * -(-width // count) + lane % width // count
        return self._groups[count]

    def _check_exited(self, block: Block, active: Bools, live: Bools, group: Indices) -> None:
        gone = (np.bincount(group, live) < block.together)[group] & active
        if gone.any():
            what = "warpgroup" if block.together == WARPGROUP else "warp"
            text = f"some lanes of the {what} don't exist or have exited"
            self._report_lanes(f"incomplete {what}", text, block.index, lanes_where(gone))
            if block.together == WARPGROUP:
                raise Stopped("incomplete warpgroup")

    # ---- barriers

    def _release(self) -> None:
        """Let the blocks go on whose live lanes have all arrived; if nothing can move any more, stop."""
        machine = self.machine
        width = machine.block_lanes
        arrived = np.zeros(machine.lane_count, np.int64)  # barrier number + 1
        for arrival in self.waiting:
            arrived[_selection(arrival.lanes)] = arrival.barrier.number + 1
        live = np.ones(len(arrived), np.bool_) if self.live is None else self.live
        numbers = np.where(live, arrived, -1).reshape(-1, width)
        highest = numbers.max(axis=1)
        lowest = np.where(numbers == -1, np.iinfo(np.int64).max, numbers).min(axis=1)
        blocks = np.flatnonzero((highest > 0) & (highest == lowest))
        if not blocks.size:
            if self.pending or machine.bulk.land() or self.phases.time_out(self.events + machine.mbarriers.version):
                return
            self._deadlock(live, arrived)
        self._check_divergence(blocks)
        self._reduce(blocks)
        released = np.zeros((machine.block_count, width), np.bool_)
        released[blocks] = True
        waiting = []
        for arrival in self.waiting:
            going, staying = self._split(arrival.lanes, released.ravel())
            if not isinstance(going, Empty):
                self._add(arrival.block, going)
            if not isinstance(staying, Empty):
                arrival.lanes = staying
                waiting.append(arrival)
        self.waiting = waiting
        machine.block_barrier(blocks)
        self.events += 1

    def _check_divergence(self, blocks: Indices) -> None:
        """``bar.sync`` wants all threads of a warp at the same instruction."""
        if len({a.block for a in self.waiting}) < 2:
            return
        seen = np.zeros(self.machine.lane_count // WARP, np.int64)
        released = np.isin(self.machine.local_block[::WARP], blocks)
        for arrival in self.waiting:
            warps: Any = True if arrival.lanes is None else arrival.lanes.warps
            clash = warps & released & (seen != 0) & (seen != arrival.block)
            if np.any(clash) and arrival.barrier.aligned:
                text = "threads of one warp wait at different barriers"
                self._report_lanes("divergent barrier", text, arrival.block - 1, lanes_where(np.repeat(clash, WARP)))
            seen = np.where(warps & released, arrival.block, seen)

    def _reduce(self, blocks: Indices) -> None:
        """``bar.red``: the same result for all threads of a block."""
        arrivals = [a for a in self.waiting if a.barrier.reduction]
        if not arrivals:
            return
        machine = self.machine
        votes = np.zeros(machine.lane_count, np.bool_)
        taking_part = np.zeros(machine.lane_count, np.bool_)
        for arrival in arrivals:
            lanes = _selection(arrival.lanes)
            votes[lanes] = spread(arrival.operand, machine.lane_count)[lanes]
            taking_part[lanes] = True
        rows, part = votes.reshape(machine.block_count, -1), taking_part.reshape(machine.block_count, -1)
        results = {
            "popc": rows.sum(axis=1).astype(np.uint32),
            "or": rows.any(axis=1),
            "and": (rows | ~part).all(axis=1),
        }
        chosen = np.isin(machine.local_block, blocks)
        for arrival in arrivals:
            assert arrival.barrier.reduction
            value = np.repeat(results[arrival.barrier.reduction], machine.block_lanes)
            mask = chosen & (True if arrival.lanes is None else arrival.lanes.active)
            target = arrival.barrier.target
            old = self.registers[target]
            self.registers[target] = value if old is None or mask.all() else select(mask, value, old)

    def _deadlock(self, live: Bools, arrived: npt.NDArray[np.int64]) -> None:
        self.phases.report()
        for index, lanes in self.parked.items():
            text = "waits for lanes of its member mask that never arrive"
            self._report_lanes("incomplete warp", text, index, lanes)
        missing = (live & (arrived == 0)).reshape(-1, self.machine.block_lanes)
        count = int(missing.sum())
        stuck = np.repeat(missing.any(axis=1) | (not count), self.machine.block_lanes)
        text = f"{count} threads of the block never arrive" if count else "threads wait at different barriers"
        for arrival in self.waiting:
            self._report_lanes("barrier deadlock", text, arrival.block - 1, intersect(arrival.lanes, stuck))
        raise Stopped("deadlock")

    def _report_lanes(self, kind: str, text: str, index: int, lanes: Active) -> None:
        if isinstance(lanes, Empty):
            return
        block = self.program.blocks[index]
        instruction = block.instructions[0] if block.parks else block.instructions[-1]
        self.machine.report(kind, Site(-1, instruction, ""), np.bool_(True), lanes, text)


def _selection(lanes: Lanes) -> Any:
    return slice(None) if lanes is None else lanes.active
