"""Locks that survive ``fork``: in the child they are free, whoever of the parent's threads held them."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_ours: WeakSet[threading.Lock] = WeakSet()
_guard = threading.Lock()


def new_lock() -> threading.Lock:
    """A lock whose holder a ``fork`` may leave behind: what it guards must be usable at any moment."""
    lock = threading.Lock()
    with _guard:
        _ours.add(lock)
    return lock


def _free_all() -> None:
    for lock in (_guard, *_ours):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as logging and concurrent.futures do


if hasattr(os, "register_at_fork"):
    # The guard is taken across the fork: the set is then never copied half changed.
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_free_all)
