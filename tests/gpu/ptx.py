"""Hand-written PTX on the GPU, in a process of its own: a kernel that kills its context takes nothing else along."""

import multiprocessing
import re

import numpy as np

from gpu_conv.cuda.tensor_maps import encoded
from gpu_conv.launch import TensorMap

SECONDS = 120  # the first answer takes 5: it imports CuPy and makes a context


class Apart:
    """A process that calls functions of this module, one after the other; after a failure it is a new one."""

    def __init__(self):
        self._pool = None

    def __call__(self, function, *args):
        """What the function returns; AssertionError if it raises, or does not end."""
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
        try:
            result, error = self._pool.apply_async(_caught, (function, *args)).get(SECONDS)
        except multiprocessing.TimeoutError:
            result, error = None, f"no answer in {SECONDS} s"
        if error:
            self.close()
            raise AssertionError(f"on the GPU: {error}")
        return result

    def close(self):
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


def _caught(function, *args):
    """The result, or the error as text: CuPy's exceptions need not travel between processes."""
    try:
        return function(*args), None
    except (RuntimeError, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}"


def run_on_gpu(ptx, entry, grid, block, args, shared, names):
    """The arrays after the kernel, as bytes."""
    import cupy

    ptx = re.sub(r"%tid(?!\.)", "%thread", ptx.replace(".target sm_90\n", ".target sm_90a\n"))  # ptxas owns %tid
    arrays = {
        n: cupy.asarray(np.ascontiguousarray(a).view(np.uint8))
        for n, a in zip(names, args, strict=True)
        if isinstance(a, np.ndarray)
    }
    values = []
    for name, value in zip(names, args, strict=True):
        if isinstance(value, TensorMap):
            values.append(encoded(value, arrays[value.operand].data.ptr))
        elif name in arrays:
            values.append(arrays[name].data)
        else:
            values.append(np.int32(value) if isinstance(value, int) else value)
    module = cupy.cuda.function.Module()
    module.load(ptx.encode() + b"\0")
    three = [(*((s,) if isinstance(s, int) else tuple(s)), 1, 1)[:3] for s in (grid, block)]
    module.get_function(entry)(*three, tuple(values), shared)
    cupy.cuda.Device().synchronize()
    return {name: cupy.asnumpy(array) for name, array in arrays.items()}
