"""The kernels of tiny.cu as text and as launches."""

from pathlib import Path

import numpy as np

from gpu_conv.cuda import source
from gpu_conv.launch import Launch, pack, struct

ROOT = Path(__file__).parent
TEXT = source.load("tiny.cu", ROOT)
PARAMS = struct("TinyParams", [("count", "int64"), ("scale", "float32"), ("offsets", "int32", 3)])


def launch(kernel="tiny", template=("float", 3), grid=(2, 1, 1), block=(128, 1, 1), count=200, **more) -> Launch:
    params = pack(PARAMS, count=count, scale=0.5, offsets=np.array([1, 2, 7]))
    return Launch("tiny.cu", kernel, template, grid, block, params, **more)
