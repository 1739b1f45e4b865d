"""The state of the blocks that run together, and what generated code may ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .async_copy import AsyncCopies
from .atomics import Atomics
from .bulk_copy import BulkCopies
from .chunk import Chunk, Launched
from .flights import Flights
from .global_memory import GlobalMemory
from .knowledge import Knowledge
from .lanes import WARP, Active, Empty, Indices, Lanes, Value, intersect
from .local import BASE as LOCAL_BASE
from .local import LocalMemory
from .mbarrier import Mbarriers
from .memory import make_aligned
from .order import BlockOrder, LaunchOrder
from .program import Program
from .report import Coordinates
from .shared import BASE as SHARED_BASE
from .shared import SharedMemory
from .site import Site
from .tensor_core import TensorCore
from .warp import WarpOperations, lane_mask
from .wgmma import Wgmma
from .windows import LOCAL_WINDOW, SHARED_WINDOW


@dataclass(kw_only=True)
class LaunchState(Launched):
    """A launch as the machine and the scheduler see it."""

    program: Program
    parameters: dict[str, bytes]
    dynamic_shared: int
    order: LaunchOrder
    block_threads: list[int]
    block_warps: list[int]
    divergent_branches: int = 0
    mma: int = 0
    macs: int = 0
    _addresses: dict[str, int] = field(default_factory=dict)

    def address_of(self, name: str) -> int:
        """Address of a module variable or of a parameter that is indexed at run time."""
        if name not in self._addresses:
            variable, name_shown = self.program.kernel.variables.get(name), name
            if variable is not None:
                data = make_aligned(variable.data or max(1, variable.size))
                writable = variable.space == "global"
            else:
                data, writable = make_aligned(self.parameters[name]), False
                name_shown = "kernel parameter"
            allocation = self.space.add(name_shown, data, writable=writable, internal=True)
            self._addresses[name] = allocation.pointer
        return self._addresses[name]


class Machine(Chunk):
    """A chunk with everything that its kernel may use."""

    def __init__(self, launch: LaunchState, block_ids: Indices) -> None:
        super().__init__(launch, block_ids)
        self.launch = launch
        program = launch.program
        self.knowledge = Knowledge(self) if launch.checking and program.asynchronous else None
        self.order = BlockOrder(self, launch.order)
        self.memory = GlobalMemory(self, self.order)
        self.shared = SharedMemory(
            self, program.kernel, launch.dynamic_shared, program.shared_granule, self.knowledge,
            warp_barriers=program.orders_warps,
        )  # fmt: skip
        self.local = LocalMemory(self, program.kernel.local_bytes)
        self.generic = Generic(self)
        self.copies = AsyncCopies(self, self.memory, self.shared)
        self.mbarriers = Mbarriers(self, self.shared, self.knowledge)
        self.bulk = BulkCopies(self, self.memory, self.shared, self.mbarriers)
        self.warp = WarpOperations(self)
        self.tensor = TensorCore(self, self.shared)
        self.flights = Flights(self, list(program.numbers) if program.hazards.registers else [])
        self.wgmma = Wgmma(self, self.shared, self.flights)
        self.atomics = Atomics(self, self.memory, self.shared)
        self._special: dict[str, Value] = {}
        self._parameters: dict[tuple[str, int, Any], Value] = {}

    # ---- operands

    def special(self, name: str) -> Value:
        """A special register, as uint32 or uint64."""
        if name not in self._special:
            self._special[name] = self._make_special(name)
        return self._special[name]

    def _make_special(self, name: str) -> Value:
        base, _, axis = name.partition(".")
        thread = np.arange(self.lane_count, dtype=np.int64) % self.block_lanes
        launch = self.launch
        match base:
            case "tid" | "ctaid":
                sizes = launch.block if base == "tid" else launch.grid
                index = thread if base == "tid" else self.block_ids[self.local_block]
                return self._coordinate(index, sizes, "xyz".index(axis))
            case "ntid" | "nctaid":
                return np.uint32((launch.block if base == "ntid" else launch.grid)["xyz".index(axis)])
            case "laneid":
                return (thread % WARP).astype(np.uint32)
            case "warpid":
                return (thread // WARP).astype(np.uint32)
            case "nwarpid":
                return np.uint32(self.block_lanes // WARP)
            case "dynamic_smem_size":
                return np.uint32(launch.dynamic_shared)
            case "total_smem_size":
                return np.uint32(self.shared.size)
        return lane_mask(base.removeprefix("lanemask_"), self.lane_count)

    def _coordinate(self, index: Indices, sizes: Coordinates, axis: int) -> Value:
        if sizes[axis] == 1:
            return np.uint32(0)
        values = (index // int(np.prod(sizes[:axis])) % sizes[axis]).astype(np.uint32)
        return values[0] if sizes is self.launch.grid and self.block_count == 1 else values

    def parameter(self, name: str, offset: int, dtype: Any) -> Value:
        key = (name, offset, dtype)
        if key not in self._parameters:
            data = self.launch.parameters[name]
            self._parameters[key] = np.frombuffer(data, dtype, 1, offset)[0]
        return self._parameters[key]

    def address_of(self, name: str) -> Value:
        """The address of a variable in its own space."""
        variable = self.launch.program.kernel.variables.get(name)
        if variable is not None and variable.space == "shared":
            return np.uint64(SHARED_BASE + variable.offset)
        if variable is not None and variable.space == "local":
            return np.uint64(LOCAL_BASE + variable.offset)
        return np.uint64(self.launch.address_of(name))

    def is_space(self, space: str, address: Value) -> Value:
        window = address >> np.uint64(40)
        if space == "global":
            return window < np.uint64(LOCAL_WINDOW >> 40)
        return window == np.uint64((SHARED_WINDOW if space == "shared" else LOCAL_WINDOW) >> 40)

    # ---- order

    def block_barrier(self, blocks: Indices) -> None:
        """The threads of these blocks have met."""
        self.clock.barrier(blocks)
        if self.knowledge:
            self.knowledge.barrier(blocks)

    def warp_barrier(self, lanes: Lanes) -> None:
        """The warps of these lanes have synchronised."""
        self.clock.warp_barrier(lanes)
        if self.knowledge:
            self.knowledge.warp_barrier(lanes)

    def fence_proxy(self, lanes: Active) -> None:
        """``fence.proxy.async``."""
        if self.knowledge:
            self.knowledge.fence(lanes)

    # ---- memory that is not a plain load or store

    def fence(self, lanes: Active) -> None:
        if not isinstance(lanes, Empty) and self.checking:
            self.order.fence(lanes)

    def atomic(self, space: str, site: Site, address: Value, lanes: Lanes, *rest: Any) -> Value:
        if space == "generic":
            return self.generic.atomic(site, address, lanes, *rest)
        unit = self.atomics.on_shared if space == "shared" else self.atomics.on_global
        return unit(site, address, lanes, *rest)


class Generic:
    """Accesses by generic address: the lanes are sorted by the window that their address lies in."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def _split(self, address: Value, lanes: Lanes) -> list[tuple[str, Value, Lanes]]:
        machine = self.machine
        out = []
        for space, window in (("global", 0), ("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW)):
            part = intersect(lanes, machine.is_space(space, address))
            if not isinstance(part, Empty):
                out.append((space, address - np.uint64(window), part))
        return out

    def load(self, site: Site, address: Value, lanes: Active, immediate: int, element: int, count: int) -> list[Value]:
        machine = self.machine
        if isinstance(lanes, Empty):
            return machine.memory.load(site, address, lanes, immediate, element, count)
        units = {"global": machine.memory, "shared": machine.shared, "local": machine.local}
        total: list[Value] = []
        for space, where, part in self._split(address, lanes):
            values = units[space].load(site, where, part, immediate, element, count)  # type: ignore[attr-defined]
            total = [a | b for a, b in zip(total, values, strict=True)] if total else values
        return total

    def store(self, site: Site, address: Value, lanes: Active, immediate: int, element: int,
              values: tuple[Value, ...]) -> None:  # fmt: skip
        machine = self.machine
        if isinstance(lanes, Empty):
            return
        units = {"global": machine.memory, "shared": machine.shared, "local": machine.local}
        for space, where, part in self._split(address, lanes):
            units[space].store(site, where, part, immediate, element, values)  # type: ignore[attr-defined]

    def load_strong(self, site: Site, address: Value, lanes: Active, *rest: Any) -> list[Value]:
        parts = [] if isinstance(lanes, Empty) else self._split(address, lanes)
        if len(parts) == 1 and parts[0][0] == "global":
            return self.machine.memory.load_strong(site, address, lanes, *rest)
        return self.load(site, address, lanes, *rest[:-1])

    def store_strong(self, site: Site, address: Value, lanes: Active, *rest: Any) -> None:
        parts = [] if isinstance(lanes, Empty) else self._split(address, lanes)
        if len(parts) == 1 and parts[0][0] == "global":
            self.machine.memory.store_strong(site, address, lanes, *rest)
        else:
            self.store(site, address, lanes, *rest[:-1])

    def atomic(self, site: Site, address: Value, lanes: Active, *rest: Any) -> Value:
        if isinstance(lanes, Empty):
            return self.machine.atomics.on_global(site, address, lanes, *rest)
        total = None
        for space, where, part in self._split(address, lanes):
            value = self.machine.atomic(space, site, where, part, *rest)
            total = value if total is None else total | value
        return total
