"""refine/views.py against np.pad, and what is drawn."""

import itertools

import numpy as np

from resnet8_quant.quantizer.refine.views import PLAIN, averaged, draw, look

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


def test_a_view_is_a_crop_of_the_padded_image():
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    for down in range(-2, 3):
        for right in range(-2, 3):
            crop = padded[:, 2 - down : 7 - down, 2 - right : 6 - right]
            np.testing.assert_array_equal(look(IMAGES, (0, down, right)), crop)
            np.testing.assert_array_equal(look(IMAGES, (1, down, right)), crop[:, :, ::-1])
    np.testing.assert_array_equal(look(IMAGES, PLAIN), IMAGES)


def test_each_image_has_its_own_view():
    views = draw(np.random.default_rng(1), 6, mirror=True, shift=2)
    for i, view in enumerate(views):
        np.testing.assert_array_equal(look(IMAGES, views)[i], look(IMAGES[i : i + 1], tuple(view))[0])


def test_what_is_drawn_and_what_is_averaged():
    drawn = draw(np.random.default_rng(0), 1000, mirror=True, shift=1)
    assert {tuple(view) for view in drawn.tolist()} == set(itertools.product((0, 1), (-1, 0, 1), (-1, 0, 1)))
    assert not draw(np.random.default_rng(0), 9, mirror=False, shift=0).any()
    assert averaged(mirror=False, shift=0) == [PLAIN]
    assert averaged(mirror=True, shift=0) == [PLAIN, (1, 0, 0)]
    assert len(set(averaged(mirror=True, shift=3))) == 10
