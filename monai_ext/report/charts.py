"""Charts as inline SVG: text that can be read aloud and searched, colours that follow the page's theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from monai_ext.report.statistics import Interval

COLOURS = 8  # in the style sheet; more methods share them and differ by their marker's fill
FEWEST_FOR_A_BOX = 10
MOST_LINKED = 30  # subjects whose values are joined from method to method
WIDTH, GUTTER, ROW, AXIS = 360, 112, 44, 44
LETTERS = 17  # of a method's name that fit in the gutter


@dataclass(frozen=True)
class Line:
    """One method's curve; `method` is its number among the methods."""

    name: str
    method: int
    levels: Sequence[float]
    means: Sequence[Interval]


def marker(method: int, x: float, y: float, size: float = 3.6, extra: str = "") -> str:
    """A shape a method, so that nobody depends on its colour."""
    s = size
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}"',
        f'<rect x="{x - s * 0.9:.1f}" y="{y - s * 0.9:.1f}" width="{1.8 * s:.1f}" height="{1.8 * s:.1f}"',
        f'<path d="M{x:.1f} {y - 1.2 * s:.1f}l{1.2 * s:.1f} {2.1 * s:.1f}h{-2.4 * s:.1f}z"',
        f'<path d="M{x:.1f} {y - 1.35 * s:.1f}l{1.35 * s:.1f} {1.35 * s:.1f}l{-1.35 * s:.1f} {1.35 * s:.1f}'
        f'l{-1.35 * s:.1f} {-1.35 * s:.1f}z"',
    )
    hollow = " hollow" if method >= COLOURS else ""
    return f'{shapes[method % len(shapes)]} class="mark m{method % COLOURS}{hollow}"{extra}/>'


def key_mark(method: int) -> str:
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{marker(method, 7, 7, 4.4)}</svg>'


def subject_chart(
    groups: Sequence[tuple[str, NDArray[np.float64]]], subjects: Sequence[str], *, title: str, digits: int
) -> str:
    """A row a method with a dot a subject, boxed where they are many, and a line for the mean."""
    every = np.concatenate([values[~np.isnan(values)] for _, values in groups])
    if not every.size:
        return ""
    ticks = nice_ticks(float(every.min()), float(every.max()))
    left, right = GUTTER, WIDTH - 14
    height = ROW * len(groups) + AXIS

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = [_across(x(tick), 24, height - AXIS + 24, label(tick, ticks)) for tick in ticks]
    rows = [24 + ROW * (row + 0.5) for row in range(len(groups))]
    boxed = len(subjects) >= FEWEST_FOR_A_BOX
    # dots lie apart by the golden ratio, which fills a row evenly and is the same in every run
    apart = [(((i + 1) * 0.618034) % 1 - 0.5) * 22 for i in range(len(subjects))] if boxed else [0.0] * len(subjects)
    if len(subjects) <= MOST_LINKED:
        for (upper, (_, above)), (lower, (_, below)) in pairwise(zip(rows, groups, strict=True)):
            parts += [
                f'<path class="link" d="M{x(a):.1f} {upper + dy:.1f}L{x(b):.1f} {lower + dy:.1f}"/>'
                for a, b, dy in zip(above, below, apart, strict=True)
                if not math.isnan(a + b)
            ]
    texts = []
    for method, (y, (name, values)) in enumerate(zip(rows, groups, strict=True)):
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 4:.1f}">{_fitted(name)}</text>')
        finite = values[~np.isnan(values)]
        if not finite.size:
            continue
        if boxed:
            parts.append(_box(finite, x, y, method))
        parts += [
            marker(method, x(value), y + dy, 2.4 if boxed else 3.6).replace(
                "/>", f"><title>{escape(subject)}: {value:.{digits}f}</title></{_tag(method)}>"
            )
            for subject, value, dy in zip(subjects, values, apart, strict=True)
            if not math.isnan(value)
        ]
        middle = x(float(finite.mean()))
        parts.append(f'<path class="mean m{method % COLOURS}" d="M{middle:.1f} {y - 15:.1f}v30"/>')
        texts.append(f"{name}: mean {finite.mean():.{digits}f}, {finite.min():.{digits}f} to {finite.max():.{digits}f}")
    return _svg(title, "; ".join(texts), height, parts)


def _box(values: NDArray[np.float64], x, y: float, method: int) -> str:  # type: ignore[no-untyped-def]  # x scales
    """Quartiles, median, and whiskers to the last values within 1.5 interquartile ranges (Tukey)."""
    low, median, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    first, last = values[values >= low - reach].min(), values[values <= high + reach].max()
    return (
        f'<g class="box m{method % COLOURS}"><path d="M{x(first):.1f} {y:.1f}H{x(low):.1f}M{x(high):.1f} {y:.1f}'
        f'H{x(last):.1f}"/><rect x="{x(low):.1f}" y="{y - 11:.1f}" width="{x(high) - x(low):.1f}" height="22"/>'
        f'<path d="M{x(median):.1f} {y - 11:.1f}v22"/></g>'
    )


def curve_chart(lines: Sequence[Line], *, title: str, across: str, digits: int) -> str:
    """A figure against the level of a perturbation: a line a method, its confidence interval as a band."""
    finite = [value for line in lines for mean in line.means for value in mean[:3] if not math.isnan(value)]
    if not finite:
        return ""
    ticks = nice_ticks(min(finite), max(finite))
    levels = sorted({level for line in lines for level in line.levels})
    left, right, top, bottom = 48, WIDTH - 14, 28, 208
    span = (levels[-1] - levels[0]) or 1.0

    def at(level: float, value: float) -> str:
        x = left + (level - levels[0]) / span * (right - left)
        return f"{x:.1f} {bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top):.1f}"

    parts = []
    for tick in ticks:
        y = float(at(levels[0], tick).split()[1])
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 4:.1f}">{label(tick, ticks)}</text>')
    for level in _thinned(levels, left, right):
        x = float(at(level, ticks[0]).split()[0])
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 17}">{level:g}</text>')
    parts.append(f'<text class="across" x="{(left + right) / 2}" y="{bottom + 36}">{escape(across)}</text>')
    texts = []
    for line in lines:
        pairs = [(level, m) for level, m in zip(line.levels, line.means, strict=True) if not math.isnan(m.mean)]
        banded = [(level, m) for level, m in pairs if not math.isnan(m.low)]
        colour = f"m{line.method % COLOURS}"
        if len(banded) > 1:
            edge = [at(level, m.high) for level, m in banded] + [at(level, m.low) for level, m in reversed(banded)]
            parts.append(f'<path class="band {colour}" d="M{"L".join(edge)}Z"/>')
        parts.append(f'<path class="curve {colour}" d="M{"L".join(at(level, m.mean) for level, m in pairs)}"/>')
        for level, m in pairs:
            x, y = map(float, at(level, m.mean).split())
            parts.append(marker(line.method, x, y))
        texts.append(f"{line.name}: " + ", ".join(f"{m.mean:.{digits}f} at {level:g}" for level, m in pairs))
    return _svg(title, "; ".join(texts), bottom + 46, parts)


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if high - low < 1e-9:
        pad = max(abs(high), 1e-3) * 0.05
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def label(tick: float, ticks: Sequence[float]) -> str:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return f"{tick:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _thinned(levels: Sequence[float], left: float, right: float) -> list[float]:
    """Those whose labels have room."""
    span, shown = (levels[-1] - levels[0]) or 1.0, list(levels[:1])
    for level in levels[1:]:
        if (level - shown[-1]) / span * (right - left) >= 26:
            shown.append(level)
    return shown


def _across(x: float, top: float, bottom: float, text: str) -> str:
    grid = f'<path class="grid" d="M{x:.1f} {top}V{bottom:.1f}"/>'
    return f'{grid}<text class="tick mid" x="{x:.1f}" y="{bottom + 15:.1f}">{text}</text>'


def _tag(method: int) -> str:
    return ("circle", "rect", "path", "path")[method % 4]


def _fitted(name: str) -> str:
    if len(name) <= LETTERS:
        return escape(name)
    return f"<title>{escape(name)}</title>{escape(name[: LETTERS - 1])}…"


def _svg(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    heading = f'<text class="title" x="0" y="13">{escape(title)}</text>'
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0f}"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{heading}{''.join(parts)}</svg>"
    )
