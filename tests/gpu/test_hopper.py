"""What the emulator computes for sm_90a, against the hardware: boxes, swizzles, descriptors, products, bit for bit.

Every hand-written PTX kernel of tests/emulator that the emulator finds clean runs on the GPU too, on the same arrays.
"""

import numpy as np
import pytest

from gpu_conv.emulator import Emulator
from tests.emulator import test_bulk_copy, test_hopper_bugs, test_mbarrier, test_wgmma

from .ptx import Apart, run_on_gpu

cupy = pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not cupy.cuda.is_available() or cupy.cuda.Device().compute_capability != "90", reason="needs a GPU of sm_90"
    ),
]


@pytest.fixture(scope="module")
def apart():
    process = Apart()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def compare(monkeypatch, apart):
    real = Emulator.execute
    compared = []

    def execute(self, ptx, entry, grid, block, args, shared_bytes=0, *, outputs=(), names=None):
        before = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        report = real(self, ptx, entry, grid, block, args, shared_bytes, outputs=outputs, names=names)
        if report.ok:
            keys = list(names or [f"argument {i}" for i in range(len(args))])
            result = apart(run_on_gpu, ptx, entry, grid, block, before, shared_bytes, keys)
            for key, value in zip(keys, args, strict=True):
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(result[key], np.ascontiguousarray(value).view(np.uint8), err_msg=key)
            compared.append(entry)
        return report

    monkeypatch.setattr(Emulator, "execute", execute)
    yield
    assert compared


@pytest.mark.parametrize("case", test_bulk_copy.BOXES)
def test_loads_of_boxes(case):
    test_bulk_copy.test_loads_of_boxes(case, None)


@pytest.mark.parametrize("case", test_bulk_copy.STORES)
def test_stores_of_boxes(case):
    test_bulk_copy.test_stores_of_boxes(case)


@pytest.mark.parametrize("size", [16, 48, 2048])
def test_runs_of_bytes(size):
    test_bulk_copy.test_runs_of_bytes(size)


@pytest.mark.parametrize("columns", [8, 24, 64, 256])
@pytest.mark.parametrize("kind", test_wgmma.TYPES)
def test_products(kind, columns):
    test_wgmma.test_types_and_sizes(kind, columns)


@pytest.mark.parametrize("swizzle", test_wgmma.MODES)
@pytest.mark.parametrize("kind", test_wgmma.TYPES)
def test_k_major(kind, swizzle):
    test_wgmma.test_k_major_swizzles(kind, swizzle)


@pytest.mark.parametrize("across", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("swizzle", test_wgmma.MODES)
def test_mn_major(swizzle, across):
    test_wgmma.test_mn_major_layouts("f16", swizzle, across)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("kind", test_wgmma.TYPES)
def test_a_from_registers(kind, keep):
    test_wgmma.test_a_from_registers(kind, keep)


@pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
def test_signs(signs):
    test_wgmma.test_signs("f16", signs)
    test_wgmma.test_signs("tf32", signs)


def test_phases():
    test_mbarrier.test_counts_of_arrivals_and_bytes()
    test_mbarrier.test_states_name_their_phase()


def test_a_whole_kernel():
    test_hopper_bugs.test_the_correct_kernel_is_clean(None)
