"""Who touched each piece of an allocation last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .lanes import Indices

Entries = npt.NDArray[np.uint64]

THREAD = np.uint64(32)  # bits of the time below the thread


class GlobalShadow:
    """Who touched each granule of an allocation: entries are (thread + 1) << 32 | time, 0 for nobody."""

    def __init__(self, count: int) -> None:
        self.writer = np.zeros(count, np.uint64)
        self.reader = np.zeros(count, np.uint64)
        self.other_reader = np.zeros(count, np.uint64)  # the last one of another block than `reader`
        self.was_read = False

    def before_write(self) -> list[tuple[Entries, str]]:
        """What a write must be ordered after, and what a finding calls the pair."""
        readers = [(self.reader, "writes {}, read"), (self.other_reader, "writes {}, read")] if self.was_read else []
        return [(self.writer, "writes {}, written"), *readers]

    def read(self, granule: Indices, key: Entries, width: int) -> None:
        """Note readers; ``width`` lanes are a block."""
        self.was_read = True
        self._displace(granule, self.reader.take(granule), key, width)
        self.reader[granule] = key
        self._displace(granule, key, self.reader.take(granule), width)  # several readers at once: one was kept

    def _displace(self, granule: Indices, old: Entries, new: Entries, width: int) -> None:
        blocks = [((keys >> THREAD) - np.uint64(1)) // np.uint64(width) for keys in (old, new)]
        which = np.flatnonzero((old != 0) & (blocks[0] != blocks[1]))
        self.other_reader[granule[which]] = old[which]
