"""``tune`` on the GPU, with its real clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gpu_conv
from gpu_conv.testing import assert_conv_close

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_measured_is_followed_and_right(dtype: str, tmp_path: Path) -> None:
    cupy = pytest.importorskip("cupy")
    options = {"groups": 64, "padding": 1, "input_layout": "nhwc", "filter_layout": "hwio"}
    rng = cupy.random.default_rng(1)
    x, w = (rng.standard_normal(s, dtype=np.float32).astype(dtype) for s in ((8, 28, 28, 64), (3, 3, 1, 64)))
    (choice,) = gpu_conv.tune(x, w, path=tmp_path / "tuned.json", most=2, **options)
    assert 0 < choice.us <= choice.table_us
    assert {facts["kernel"] for facts in choice.tried} | {choice.kernel} >= {"depthwise_nhwc", "direct"}
    assert not [facts for facts in choice.tried if "error" in facts]
    with gpu_conv.tuned(tmp_path / "tuned.json"):
        assert gpu_conv.explain(x, w, **options).kernel == choice.kernel
        assert_conv_close(gpu_conv.conv(x, w, **options), x, w, **options)
