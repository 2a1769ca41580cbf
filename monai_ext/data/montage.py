"""Pictures in rows, for documents and for a look at what was prepared: one small 8-bit PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from monai_ext.files import whole_file

MARGIN, TITLE = 2, 12  # pixels
STEP = 4  # grey levels: noise in the last two bits would double the file


def montage(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    titles: Sequence[str] | Sequence[Sequence[str]] = (),
    path: Path,
    height: int | None = None,
    white: float | None = None,
) -> Path:
    """Write a picture of rows of images as an 8-bit PNG.

    Args:
        rows: of images, 2D with the first axis downwards, or in colour (H, W, 3) in [0, 1].
        titles: one a column, or a sequence a row with one an image.
        path: the PNG.
        height: in pixels, to which every image is resized.
        white: the grey value that is white; without it each image's 99.5th percentile. Black is 0.

    Returns:
        The path.

    Raises:
        ValueError: no image, or titles that do not fit.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a montage needs at least one row, and one image in each row")
    per_row = [titles] * len(rows) if not titles or isinstance(titles[0], str) else titles
    if len(per_row) != len(rows):
        raise ValueError(f"titles must be one a column or one sequence a row, got {len(per_row)} for {len(rows)} rows")
    mode = "RGB" if any(image.ndim == 3 for row in rows for image in row) else "L"
    strips = []
    for row, names in zip(rows, per_row, strict=True):
        if names and len(names) != len(row):
            raise ValueError(f"a row of {len(row)} images got {len(names)} titles: {', '.join(map(str, names))}")
        tiles = [_tile(image, height, white) for image in row]
        tall = max(tile.height for tile in tiles)
        band = TITLE if names else 0
        strip = Image.new(mode, (sum(t.width + MARGIN for t in tiles) - MARGIN, tall + band))
        pen = ImageDraw.Draw(strip)
        left = 0
        for index, tile in enumerate(tiles):
            strip.paste(tile, (left, band))
            if names:
                pen.text((left + 3, 0), str(names[index]), fill="#c8c8c8")
            left += tile.width + MARGIN
        strips.append(strip)
    page = Image.new(mode, (max(s.width for s in strips), sum(s.height + MARGIN for s in strips) - MARGIN))
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        page.save(partial, format="PNG", optimize=True)
    return path


def _tile(image: np.ndarray, height: int | None, white: float | None) -> Image.Image:
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"a montage shows 2D images, or (H, W, 3) in colour, got one of shape {image.shape}")
    shown = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    foreground = shown[shown > 0]
    top = 1.0 if image.ndim == 3 else white or (float(np.percentile(foreground, 99.5)) if foreground.size else 1.0)
    tile = Image.fromarray((255 * np.clip(shown / top, 0, 1)).astype(np.uint8))
    if height is not None and tile.height != height:
        tile = tile.resize((max(1, round(tile.width * height / tile.height)), height), Image.Resampling.BICUBIC)
    return tile.point([(level // STEP) * STEP for level in range(256)] * len(tile.getbands()))
