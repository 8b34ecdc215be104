"""Files of the package's own."""

from __future__ import annotations

import numpy as np

from resnet8_quant.files import forget_pages


def test_forgotten_pages_are_read_again(tmp_path):
    expected = np.arange(5000, dtype=np.uint8)
    np.save(tmp_path / "a.npy", expected)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r").view(np.ndarray)[10:]
    forget_pages(mapped)
    np.testing.assert_array_equal(mapped, expected[10:])
    forget_pages(expected)  # not mapped: nothing happens
    np.testing.assert_array_equal(mapped, expected[10:])
