"""An image larger than the memory it may use: blurred and sharpened tile by tile, from lazy chunks into a .npy file.

    python examples/dask_huge_image.py --gigabytes 2.1 --output sharp.npy

Every chunk of the image is made (or read from ``--input``, a ``.npy`` file) when its tile is due and written when it is
done, so the memory in use depends on the chunks and the threads, not on the image. Prints a progress bar, the time, the
peak of the process's memory, and how windows of the file compare with the same convolution of whole windows.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.diagnostics import ProgressBar

import gpu_conv
import gpu_conv.dask

Array = np.ndarray[Any, Any]

REACH = 3  # of the 7x7 filter to each side
LEAST = 304  # rows and columns: windows of 256 are compared, which begin at least 300 before the end


def sharpen() -> Array:
    """``[1, 1, 7, 7]``: twice the image minus its Gaussian blur. The sum is one."""
    line = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / 1.5) ** 2)
    blur = np.outer(line, line) / line.sum() ** 2
    blur[:] *= -1
    blur[REACH, REACH] += 2
    result: Array = blur.astype(np.float32)[np.newaxis, np.newaxis]
    return result


def scene(rows: Array, columns: Array) -> Array:
    """A part of an endless picture: rings, stripes and a grain that depends on the place alone."""
    r, c = rows[:, np.newaxis], columns[np.newaxis]
    rings = np.sin(np.hypot(np.float32(r - 9000), np.float32(c - 7000)) / 40)
    grain = np.float32(((r * 73856093) ^ (c * 19349663)) >> 7 & 1023) / 4096
    result: Array = rings + np.cos(np.float32(c) / 90) + grain
    return result


def lazy(shape: tuple[int, int], chunk: int) -> da.Array:
    """The scene as a dask array ``[1, 1, h, w]``; nothing of it exists yet."""

    def make(block_info: Any = None) -> Array:
        (top, bottom), (left, right) = block_info[None]["array-location"][2:]
        return scene(np.arange(top, bottom, dtype=np.int32), np.arange(left, right, dtype=np.int32))[
            np.newaxis, np.newaxis
        ]

    chunks = da.core.normalize_chunks((1, 1, chunk, chunk), (1, 1, *shape))
    return da.map_blocks(make, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32))


def image(path: Path | None, gigabytes: float, chunk: int) -> da.Array:
    """The file, or the scene in that size, as a dask array ``[1, 1, h, w]``.

    Raises:
        OSError: the file cannot be read.
        ValueError, OverflowError: it is not such an image, or the image is too small; the size is no number.
    """
    mapped = np.lib.format.open_memmap(path, mode="r") if path else None
    width = 1 << 14
    shape = (int(gigabytes * 1e9 / 4 / width), width) if mapped is None else mapped.shape
    if mapped is not None and (mapped.ndim != 2 or mapped.dtype != np.float32):
        raise ValueError(f"expected [h, w] of float32, got {list(shape)} of {mapped.dtype}")
    if min(shape) < LEAST:
        raise ValueError(f"{shape[0]} x {shape[1]} is too small: at least {LEAST} x {LEAST}")
    return lazy(shape, chunk) if mapped is None else da.from_array(mapped, chunks=chunk)[np.newaxis, np.newaxis]


class NpyFile:
    """A ``.npy`` file to write to in parts; it is mapped only for as long as a part takes."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path = path
        np.lib.format.open_memmap(path, "w+", dtype, shape)

    def __setitem__(self, place: Any, part: Any) -> None:
        mapped = np.lib.format.open_memmap(self.path, "r+")
        mapped[place] = part.get() if hasattr(part, "get") else part
        mapped.flush()


def worst_difference(path: Path, x: da.Array, w: Array, windows: int) -> float:
    """Of random windows, most of them across chunk borders, from the convolution of the windows by themselves."""
    y, worst = np.load(path, mmap_mode="r"), 0.0
    rng = np.random.default_rng(0)
    for _ in range(windows):
        top, left = (int(rng.integers(REACH, n - 300)) for n in x.shape[2:])
        part = x[:, :, top - REACH : top + 256 + REACH, left - REACH : left + 256 + REACH].compute()
        want = gpu_conv.conv2d(part, w)
        worst = max(worst, float(np.abs(y[:, :, top : top + 256, left : left + 256] - want).max()))
    return worst


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.1, help="size of the generated image, float32 (2.1)")
    parser.add_argument("--input", type=Path, help="a .npy file [h, w] of float32 instead")
    parser.add_argument("--output", type=Path, default=Path("sharp.npy"))
    parser.add_argument("--chunk", type=positive, default=1024, help="rows and columns of a tile (1024)")
    parser.add_argument("--threads", type=positive, default=2)
    given = parser.parse_args()

    try:
        x = image(given.input, given.gigabytes, given.chunk)
    except (OSError, ValueError, OverflowError) as error:
        parser.error(f"--input {given.input}: {error}" if given.input else f"--gigabytes {given.gigabytes:g}: {error}")
    w = sharpen()
    y = gpu_conv.dask.conv2d(x, w, padding=REACH)
    try:
        if given.input and given.output.exists() and given.output.samefile(given.input):
            raise FileExistsError("it is the input")
        file = NpyFile(given.output, y.shape, y.dtype)
    except OSError as error:
        parser.error(f"--output {given.output}: {error}")
    print(f"{x.shape[2]} x {x.shape[3]}: {x.nbytes / 1e9:.2f} GB in {x.npartitions} chunks, {given.threads} threads")

    start = time.perf_counter()
    with ProgressBar(), dask.config.set(num_workers=given.threads):
        da.store(y, file, lock=False, scheduler="threads")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{y.nbytes / 1e9:.2f} GB written to {given.output}, peak memory {peak:.2f} GB, {seconds:.0f} s")
    print(f"largest difference in 20 windows: {worst_difference(given.output, x, w, 20):.2g}")


if __name__ == "__main__":
    main()
