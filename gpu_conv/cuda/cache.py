"""Compiled kernels on disk. A cubin is code that the GPU runs, so only files that nobody else could write are read.

One file per kernel: a magic line, the digest of the rest, a line of JSON, cubin, PTX. Every failure (missing,
truncated, foreign, read-only, full) is a miss or a skipped write: without a cache the library is slower, never broken.
What keeps kernels from being stored is logged as one warning.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import stat
import tempfile
import time
from contextlib import suppress
from functools import cache as once
from pathlib import Path

from gpu_conv.cachedir import cache_dir

MAX_BYTES = 512 << 20  # about 4,000 kernels; the least recently used go first
SWEEP_EVERY = 16  # writes of a process: looking at 3,000 files takes 10 ms, compiling a kernel 100 to 300
_MAGIC = b"gpu_conv kernel 1\n"
_ABANDONED_SECONDS = 3600  # a temporary file this old belongs to a process that died
_LOGGER = logging.getLogger(__name__)
_writes = itertools.count()


def key(*parts: str) -> str:
    """One digest for everything that decides the binary. Lengths are hashed too: no two lists of parts collide."""
    digest = hashlib.sha256(_MAGIC)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def read(key: str) -> tuple[dict[str, object], bytes, bytes] | None:
    """Facts, cubin and PTX stored under ``key``, or None."""
    try:
        directory = _directory()
        if directory is None:
            return None
        path = directory / key
        data = _read_own_file(path)
    except OSError:
        return None
    if data is None:
        return None
    entry = _decode(key, data)
    if entry is not None:
        with suppress(OSError):
            os.utime(path)  # the order in which entries are evicted
    return entry


def write(key: str, facts: dict[str, object], cubin: bytes, ptx: bytes) -> None:
    """Store one kernel if that is possible: readers see the whole file or none."""
    data = _encode(key, facts, cubin, ptx)
    try:
        directory = _directory(create=True)
        if directory is None:
            return
        _write_atomically(directory / key, data)
        if next(_writes) % SWEEP_EVERY == 0:
            _evict(directory)
    except OSError as error:
        _refuse(error.strerror or str(error))


def status() -> tuple[int, int, bool]:
    """Number of kernels, their bytes, and whether this user can add to them: the folder is made, a file is written."""
    path = cache_dir("kernels")
    try:
        directory = _directory(create=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(1 << 16))
        works = directory is not None
    except OSError:
        works = False
    entries = path.iterdir() if path.is_dir() else ()
    sizes = [item.stat().st_size for item in entries if not item.name.endswith(".tmp")]
    return len(sizes), sum(sizes), works


def _encode(key: str, facts: dict[str, object], cubin: bytes, ptx: bytes) -> bytes:
    header = json.dumps({"key": key, "cubin_bytes": len(cubin), "facts": facts}).encode()
    body = header + b"\n" + cubin + ptx
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(key: str, data: bytes) -> tuple[dict[str, object], bytes, bytes] | None:
    start = len(_MAGIC) + 32
    if not data.startswith(_MAGIC) or hashlib.sha256(memoryview(data)[start:]).digest() != data[len(_MAGIC) : start]:
        return None
    end = data.index(b"\n", start) + 1
    entry = json.loads(data[start:end])
    if entry["key"] != key:  # an intact entry under another's name
        return None
    split = end + entry["cubin_bytes"]
    return entry["facts"], data[end:split], data[split:]


def _directory(create: bool = False) -> Path | None:
    """The cache directory if it exists and only this user (or root, who could do anything) can write into it."""
    path = cache_dir("kernels")
    if create:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(path)
    folder, private = stat.S_ISDIR(found.st_mode), _is_private(found)
    if not (folder and private):
        _refuse("another user's, or others may write into it" if folder else "a file or a link, no folder")
        return None
    return path


def _read_own_file(path: Path) -> bytes | None:
    """Content of a regular file that only this user or root can have written."""
    # Owner and mode are asked of the open file: the name may point elsewhere a moment later.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(found.st_mode) and _is_private(found) else None


def _is_private(found: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):  # Windows: the profile folder's access list takes care of it
        return True
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _evict(directory: Path) -> None:
    """Remove abandoned temporary files, then the least recently used entries above :data:`MAX_BYTES`."""
    entries: list[tuple[float, int, str]] = []
    for item in os.scandir(directory):
        with suppress(FileNotFoundError):  # another process evicts too
            found = item.stat(follow_symlinks=False)
            if not item.name.endswith(".tmp"):
                entries.append((found.st_mtime, found.st_size, item.path))
            elif found.st_mtime < time.time() - _ABANDONED_SECONDS:
                os.unlink(item.path)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= MAX_BYTES:
            return
        with suppress(FileNotFoundError):
            os.unlink(path)
        total -= size


@once
def _refuse(reason: str) -> None:
    _LOGGER.warning("%s: %s; kernels are compiled anew in every process", cache_dir("kernels"), reason)
