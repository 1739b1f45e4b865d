"""Tensor maps: the rules of cuTensorMapEncodeTiled, what the driver is asked, and what a kernel gets."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from gpu_conv.cuda import LaunchFailed, device, tensor_maps
from gpu_conv.launch import POINTERS, TensorMap
from tests.cuda import tiny
from tests.cuda.fake_cupy import Array, FakeCupy, Pointer

pytest.importorskip("cuda.bindings.nvrtc")

# 14 x 14 pixels of 64 channels, two images: every second column of a box of 8 x 16 pixels.
MAP = TensorMap("x", "float16", 8, (64, 14, 14, 2), (64, 896, 12544), (64, 16, 16, 1), (1, 2, 1, 1), 128)
FLAT = TensorMap("w", "bfloat16", 0, (24,), (), (8,), (1,), 0)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"operand": "z"}, "operand is one of x, w, bias"),
        ({"operand": "workspace"}, "operand is one of x, w, bias"),
        ({"dtype": "int64"}, "dtype one of uint8"),
        ({"shape": (), "strides": (), "box": (), "element_strides": ()}, "1 to 5 axes"),
        ({"shape": (64,) * 6, "strides": (64,) * 5, "box": (1,) * 6, "element_strides": (1,) * 6}, "1 to 5 axes"),
        ({"strides": (64, 896)}, "4 axes have 3 strides"),
        ({"box": (64, 16, 16)}, "4 sizes of a box"),
        ({"element_strides": (1, 2, 1)}, "4 steps"),
        ({"offset": 4}, "first element lies a multiple of 16 bytes"),
        ({"offset": -8}, "first element"),
        ({"shape": (64, 0, 14, 2)}, r"1 to 2\*\*32 elements"),
        ({"shape": (64, 2**32 + 1, 14, 2)}, r"1 to 2\*\*32 elements"),
        ({"strides": (64, 900, 12544)}, "multiples of 16 bytes"),
        ({"strides": (0, 896, 12544)}, "more than 0"),
        ({"strides": (-64, 896, 12544)}, "more than 0"),
        ({"strides": (64, 896, 2**39)}, r"less than 2\*\*40"),
        ({"box": (64, 257, 16, 1)}, "1 to 256 elements"),
        ({"box": (64, 0, 16, 1)}, "1 to 256 elements"),
        ({"box": (60, 16, 16, 1)}, "multiple of 16 bytes of the innermost"),
        ({"element_strides": (2, 1, 1, 1)}, "every element of the innermost"),
        ({"element_strides": (1, 9, 1, 1)}, "one of 1 to 8"),
        ({"element_strides": (1, 0, 1, 1)}, "one of 1 to 8"),
        ({"swizzle": 16}, "32, 64 or 128 bytes"),
        ({"swizzle": 64}, "innermost side of a box fits"),
    ],
)
def test_a_map_that_the_driver_would_refuse_names_the_rule(change, rule):
    with pytest.raises(ValueError, match=rule):
        replace(MAP, **change)


def test_a_box_counts_what_it_fetches():
    assert MAP.fetched == (64, 8, 16, 1)
    assert MAP.box_bytes == 64 * 8 * 16 * 2
    assert replace(MAP, box=(64, 15, 16, 1)).fetched == (64, 8, 16, 1)
    assert replace(MAP, swizzle=0, dtype="float32", box=(64, 17, 16, 1)).box_bytes == 64 * 9 * 16 * 4


class Driver:
    """In the place of the driver's function: keeps its arguments, writes what it was called, 128 times."""

    def __init__(self):
        self.calls, self.status = [], 0

    def __call__(self, record, dtype, rank, address, shape, strides, box, steps, *flags):
        self.calls.append((dtype, rank, address, *map(list, (shape, strides, box, steps)), flags))
        assert record % 64 == 0, "the driver wants 64-byte alignment"
        ctypes.memset(record, len(self.calls), 128)
        return self.status


@pytest.fixture
def driver(monkeypatch):
    fake = Driver()
    monkeypatch.setattr(tensor_maps, "_driver_function", lambda: fake)
    tensor_maps.encoded.cache_clear()
    yield fake
    tensor_maps.encoded.cache_clear()


def test_the_driver_gets_bytes_and_its_own_codes(driver):
    tensor_maps.encoded(MAP, 0x1000)
    tensor_maps.encoded(FLAT, 0x2000)
    first, second = driver.calls
    assert first == (6, 4, 0x1010, [64, 14, 14, 2], [128, 1792, 25088, 0], [64, 16, 16, 1], [1, 2, 1, 1], (0, 3, 3, 0))
    assert second[:3] == (9, 1, 0x2000)
    assert second[3:] == ([24], [0], [8], [1], (0, 0, 3, 0))


def test_the_codes_are_those_of_the_driver():
    enums = pytest.importorskip("cuda.bindings.driver")
    for dtype, code in tensor_maps._TYPES.items():
        name = dtype.upper().replace("INT8", "UINT8").replace("UUINT8", "UINT8")
        assert int(getattr(enums.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{name}")) == code
    for size, code in tensor_maps._SWIZZLES.items():
        name = f"{size}B" if size else "NONE"
        assert int(getattr(enums.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{name}")) == code
    promotion = enums.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    outside = enums.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
    interleave = enums.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE
    assert (int(promotion), int(outside), int(interleave)) == (
        tensor_maps._PROMOTE_256,
        tensor_maps._ZEROS_OUTSIDE,
        tensor_maps._NO_INTERLEAVE,
    )


def test_a_refusal_names_map_and_address(driver):
    driver.status = 1
    with pytest.raises(LaunchFailed, match=r"CUresult 1\) at address 0x1008 the TensorMap\(operand='x'"):
        tensor_maps.encoded(MAP, 0x1008)


@pytest.mark.parametrize("library", [None, "libcuda.so.of.no.driver"])
def test_a_driver_without_tensor_maps(monkeypatch, library):
    """An old one, of which this process itself plays the part, or none."""
    found = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found(library))
    tensor_maps._driver_function.cache_clear()
    with pytest.raises(LaunchFailed, match=r"no tensor maps, which came with CUDA 12\.0"):
        tensor_maps.encoded(MAP, 0x1000)


def test_a_kernel_gets_its_maps_after_the_struct(stand_in, driver):
    cupy = stand_in(FakeCupy())
    launch = tiny.launch(tensor_maps=(MAP, FLAT))
    operands = {"x": Array(Pointer(0x1000)), "w": Array(Pointer(0x2000)), "y": Array(Pointer(0x3000))}
    device.run(launch, operands)
    device.run(launch, operands)  # encoded once
    device.run(launch, operands | {"x": Array(Pointer(0x4000))})
    bound = device.ready(launch, 0).bind(operands)
    bound()
    assert [call[2] for call in driver.calls] == [0x1010, 0x2000, 0x4010]
    for call, numbers in zip(cupy.log, ((1, 2), (1, 2), (3, 2), (1, 2)), strict=True):
        assert len(call.args) == len(POINTERS) + 1 + 2
        assert all(isinstance(one, np.void) for one in call.args[-3:])
        assert call.args[-3].tobytes() == launch.params
        assert [one.tobytes() for one in call.args[-2:]] == [bytes([n]) * 128 for n in numbers]
