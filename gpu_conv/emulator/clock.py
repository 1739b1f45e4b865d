"""Logical time inside a chunk: it advances at everything that orders memory accesses."""

from __future__ import annotations

import numpy as np

from .errors import Stopped
from .lanes import Indices, Lanes

LIMIT = (1 << 21) - 3  # shared-memory shadows keep 21 bits of it, and mark other things by the last three


class Clock:
    """When threads were last ordered with the others of their block, and with those of their warp.

    Attributes:
        now: the current time; it only grows.
        block_since: per block, the time of its last barrier: accesses before it are ordered before what follows.
        warp_since: per lane, the time of its last ``bar.warp.sync`` or barrier.
    """

    def __init__(self, blocks: int, lanes: int) -> None:
        self.now = 1
        self.block_since = np.ones(blocks, np.int64)
        self.warp_since = np.ones(lanes, np.int64)
        self.lanes_per_block = lanes // blocks
        self.version = 0  # changes with block_since

    def tick(self) -> int:
        self.now += 1
        if self.now >= LIMIT:
            raise Stopped(f"more than {LIMIT} barriers in one block")
        return self.now

    def barrier(self, blocks: Indices) -> None:
        """These blocks have passed a barrier."""
        now = self.tick()
        self.block_since[blocks] = now
        self.warp_since.reshape(-1, self.lanes_per_block)[blocks] = now
        self.version += 1

    def warp_barrier(self, lanes: Lanes) -> None:
        """The warps of these lanes have synchronised."""
        now = self.tick()
        if lanes is None:
            self.warp_since[:] = now
        else:
            self.warp_since[lanes.indices] = now
