"""Where an image shows something."""

import torch

from monai_ext.data.canvas import DARK, filled_box


def test_the_box_holds_what_is_not_dark_and_nothing_more():
    images = torch.zeros(2, 3, 20, 30)
    images[0, 1, 4:9, 7] = 1
    images[1, 2, 6, 11:20] = 1
    images[0, 0] += DARK / 2  # noise
    assert filled_box(images) == (slice(4, 9), slice(7, 20))


def test_margin_and_multiple_are_had_where_there_is_room():
    image = torch.zeros(20, 30)
    image[2:9, 10:21] = 1
    rows, columns = filled_box(image, margin=3, multiple=8)
    assert (rows, columns) == (slice(0, 16), slice(4, 28))


def test_sides_that_are_no_multiple_are_taken_whole():
    assert filled_box(torch.ones(13, 10), margin=2, multiple=8) == (slice(0, 13), slice(0, 10))


def test_of_an_empty_image_it_is_all():
    assert filled_box(torch.zeros(1, 5, 6)) == (slice(0, 5), slice(0, 6))
