"""Hand-written PTX on the GPU, in a process of its own: a kernel that kills its context takes nothing else along."""

import multiprocessing
import re

import numpy as np

from gpu_conv.cuda.tensor_maps import encoded
from gpu_conv.launch import TensorMap

SECONDS = 40  # the first answer takes 5: it imports CuPy and makes a context


class Apart:
    """A process that calls functions of this module, one after the other; after a failure it is a new one."""

    def __init__(self):
        self._process = self._pipe = None

    def __call__(self, function, *args):
        """What the function returns; AssertionError if it raises, dies, or does not end."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._pipe.send((function, args))
        try:
            result, error = self._pipe.recv() if self._pipe.poll(SECONDS) else (None, f"no answer in {SECONDS} s")
        except EOFError:
            result, error = None, "the process died"
        if error:
            self.close()
            raise AssertionError(f"on the GPU: {error}")
        return result

    def close(self):
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            self._process = None


def _serve(pipe):
    """Answers: the result, or the error as text, as CuPy's exceptions need not travel between processes."""
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((function(*args), None))
        except (RuntimeError, MemoryError) as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))


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
