"""Montages: one small 8-bit picture, each image in its own range, and nothing hidden."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_ext.data.montage import montage


def test_rows_of_unequal_images_become_one_grey_png(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[rng.uniform(0, 5, (20, 30)), rng.uniform(0, 900, (24, 16))], [np.zeros((10, 10))]]
    path = montage(rows, path=tmp_path / "deep" / "m.png")
    page = Image.open(path)
    assert (page.mode, page.size) == ("L", (30 + 2 + 16, 24 + 2 + 10))
    grey = np.asarray(page)
    assert grey[:20, :30].max() > 240
    assert grey[:24, 32:].max() > 240
    assert list(path.parent.iterdir()) == [path]


def test_titles_and_a_common_height_are_given_to_every_image(tmp_path: Path) -> None:
    image = np.ones((10, 20))
    page = Image.open(montage([[image, image[:5]]], titles=["a", "b"], path=tmp_path / "m.png", height=40))
    assert page.size == (80 + 2 + 160, 40 + 12)


def test_nan_and_infinity_are_drawn_black_and_do_not_set_the_range(tmp_path: Path) -> None:
    image = np.ones((4, 4))
    image[0, 0], image[1, 1] = np.nan, np.inf
    grey = np.asarray(Image.open(montage([[image]], path=tmp_path / "m.png")))
    assert grey[0, 0] == grey[1, 1] == 0
    assert grey[2, 2] > 240


@pytest.mark.parametrize(
    ("rows", "titles", "message"),
    [
        ([], (), "at least one row"),
        ([[np.zeros((2, 2, 2))]], (), r"2D images, .* got one of shape \(2, 2, 2\)"),
        ([[np.zeros((2, 2))]], ["a", "b"], "a row of 1 images got 2 titles: a, b"),
        ([[np.zeros((2, 2))]], [["a"], ["b"]], "one sequence a row, got 2 for 1 rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, rows: list, titles: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        montage(rows, titles=titles, path=tmp_path / "m.png")
