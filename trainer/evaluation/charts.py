"""Draws charts as inline SVG. Classes and the page's style sheet colour them, so that they follow its light and dark."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypeAlias

from markupsafe import Markup

Point: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 26, 44


class Series(NamedTuple):
    kind: Literal["raw", "train", "validation"]
    points: Sequence[Point]


class Cell(NamedTuple):
    """A cell of a confusion matrix; `share` is relative to the rows of its true class."""

    true: int
    predicted: int
    rows: int
    share: float

    @property
    def kind(self) -> str:
        return "right" if self.true == self.predicted else "wrong"

    @property
    def shade(self) -> float:
        return round(math.sqrt(self.share), 1)  # the root, so that a share of 1% can still be seen


class Bin(NamedTuple):
    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Formats one element with everything escaped; `class_` becomes `class`, `stroke_width` becomes `stroke-width`."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = ((key, f"{value:.6g}" if isinstance(value, float) else value) for key, value in pairs)
    inside = Markup().join(Markup(' {}="{}"').format(key, value) for key, value in written)
    return Markup("<{0}{1}>{2}</{0}>").format(name, inside, Markup().join(children))


def short(number: float, digits: int = 3) -> str:
    """Write a number in few characters: 950, 7.6k, 1.25M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.{digits}g}{unit}"
    return f"{number:.3g}"


def thin(points: Sequence[Point], limit: int = 400) -> list[Point]:
    """Take the means of at most `limit` runs of neighbours: the shape stays and the file stays small."""
    size = max(1, math.ceil(len(points) / limit))
    runs = (points[start : start + size] for start in range(0, len(points), size))
    return [(fmean(x for x, _ in run), fmean(y for _, y in run)) for run in runs]


def smooth(points: Sequence[Point], width: int) -> list[Point]:
    """Take each point's mean with up to `width` neighbours on either side."""
    windows = (points[max(0, index - width) : index + width + 1] for index in range(len(points)))
    return [(x, fmean(y for _, y in window)) for (x, _), window in zip(points, windows, strict=True)]


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Find about five round numbers, 1, 2 or 5 times a power of ten apart, that enclose low to high."""
    if low == high:
        low, high = (low - abs(low) / 10, high) if high else (0, 1)
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(times * power for times in (1, 2, 5, 10) if times * power * 5.001 >= high - low)
    step = max(1, step) if whole else step
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float, step: float, *, percent: bool = False) -> str:
    value, step = (value * 100, step * 100) if percent else (value, step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}%" if percent else short(value) if step >= 1 else f"{value:.{decimals}f}"


def scale(domain: tuple[float, float], to: tuple[float, float]) -> Callable[[float], float]:
    factor = (to[1] - to[0]) / (domain[1] - domain[0])
    return lambda value: to[0] + (value - domain[0]) * factor


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(box: tuple[float, float, float, float], class_: str, tip: str) -> Markup:
    x, y, width, height = box
    return element("rect", element("title", tip), x=x, y=y, width=width, height=height, class_=class_)


def note(x: float, y: float, text: str, anchor: str = "middle", **attributes: object) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def picture(width: float, height: float, label: str, class_: str, parts: Sequence[str]) -> Markup:
    size = {"viewBox": f"0 0 {width:.6g} {height:.6g}", "width": width, "height": height}
    return element("svg", *parts, **size, role="img", aria_label=label, class_=class_)


def y_axis(y: Callable[[float], float], at: Sequence[float], *, percent: bool) -> Iterator[Markup]:
    for tick in at:
        yield line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
        yield note(LEFT - 8, y(tick) + 4, tick_text(tick, at[1] - at[0], percent=percent), "end")


def line_chart(
    series: Sequence[Series], *, label: str, x_name: str, percent: bool = False, best: tuple[float, str] | None = None
) -> Markup:
    """Draw lines over whole numbers (steps, epochs); `best` is the place and the label of a mark."""
    xs, ys = zip(*(point for one in series for point in one.points), strict=True)
    low, high = (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] - 1, xs[0] + 1)
    at_x, at_y = ticks(low, high, whole=True), ticks(min(ys) if percent else min(0, *ys), max(ys))
    x = scale((low, high), (LEFT, WIDTH - RIGHT))
    y = scale((at_y[0], at_y[-1]), (HEIGHT - BOTTOM, TOP))
    parts = [*y_axis(y, at_y, percent=percent)]
    inside = [tick for tick in at_x if min(xs) <= tick <= max(xs)]
    parts += [note(x(tick), HEIGHT - BOTTOM + 18, tick_text(tick, at_x[1] - at_x[0])) for tick in inside]
    parts.append(note((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name))
    if best:
        side = "start" if x(best[0]) < WIDTH / 3 else "end" if x(best[0]) > WIDTH * 2 / 3 else "middle"
        parts += [line(x(best[0]), TOP - 8, x(best[0]), HEIGHT - BOTTOM, "best"), note(x(best[0]), 12, best[1], side)]
    for one in series:
        places = [(x(a), y(b)) for a, b in one.points]
        parts.append(element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_=one.kind))
        if one.kind == "validation":
            parts += [element("circle", cx=a, cy=b, r=3.5, class_="dot") for a, b in places]
    return picture(WIDTH, HEIGHT, label, "chart", parts)


def reliability_chart(bins: Sequence[Bin], *, before: Sequence[Bin] = (), label: str) -> Markup:
    """Draw accuracy against confidence, each bin's distance from the diagonal, and below them its rows.

    `before` are the bins of the same rows without the temperature, as rings.
    """
    x, y = scale((0, 1), (LEFT, WIDTH - RIGHT)), scale((0, 1), (HEIGHT - BOTTOM + 18, TOP))
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [*y_axis(y, quarters, percent=True)]
    parts += [note(x(tick), y(0) + 18, tick_text(tick, 0.25, percent=True)) for tick in quarters]
    parts += [note(x(0.5), y(0) + 38, "confidence"), line(x(0), y(0), x(1), y(1), "best")]
    base = y(0) + 130
    rows = scale((0, max((one.rows for one in bins), default=1)), (base, base - 60))
    for one in bins:
        tip = f"{one.low:.0%} to {one.high:.0%}: accuracy {one.accuracy:.1%} of {one.rows:,} rows"
        left, width, middle = x(one.low) + 1, x(one.high) - x(one.low) - 2, x(one.confidence)
        parts.append(rect((left, y(one.accuracy), width, y(0) - y(one.accuracy)), "bar-fill", tip))
        parts.append(rect((left, rows(one.rows), width, base - rows(one.rows)), "rows", tip))
        parts.append(line(middle, y(one.confidence), middle, y(one.accuracy), "gap"))
        parts.append(element("circle", cx=middle, cy=y(one.accuracy), r=4, class_="point"))
        if width >= 30:  # else the numbers would run into each other
            parts.append(note(left + width / 2, rows(one.rows) - 4, short(one.rows, 2)))
    parts += [element("circle", cx=x(one.confidence), cy=y(one.accuracy), r=4, class_="ring") for one in before]
    parts += [line(LEFT, base, WIDTH - RIGHT, base, "grid"), note(LEFT - 8, base, "rows", "end")]
    return picture(WIDTH, base + 6, label, "chart", parts)


def squares(cells: Sequence[Cell], size: int) -> Iterator[Markup]:
    """Draw all cells of one colour and shade as one path: ten thousand cells stay small."""
    paths: dict[tuple[str, float], list[str]] = defaultdict(list)
    for cell in cells:
        corner = f"M{cell.predicted * size + 0.5:g} {cell.true * size + 0.5:g}"
        paths[cell.kind, max(0.1, cell.shade)].append(f"{corner}h{size - 1}v{size - 1}h-{size - 1}z")
    for (kind, shade), path in paths.items():
        yield element("path", d="".join(path), class_=kind, fill_opacity=shade)


def matrix_chart(classes: Sequence[str], cells: Sequence[Cell], *, label: str, tips: int = 1000) -> Markup:
    """Draw a confusion matrix without numbers; the fullest cells, `tips` of them, show theirs in a tooltip."""
    size = max(12, min(22, 700 // len(classes)))
    names = [name if len(name) <= 20 else name[:19] + "…" for name in classes]
    edge = 10 + max(sum(6.2 if letter.isascii() else 11 for letter in name) for name in names)
    side = size * len(classes)
    grid = "".join(f"M{at} 0V{side}M0 {at}H{side}" for at in (*range(0, side, 5 * size), side))
    parts = [element("path", d=grid, class_="grid"), *squares(cells, size)]
    for index, name in enumerate(names):
        middle = (index + 0.5) * size + 3.5
        parts.append(note(-6, middle, name, "end"))
        parts.append(note(0, 0, name, "start", transform=f"translate({middle:g} -6) rotate(-90)"))
    for cell in sorted(cells, key=lambda cell: -cell.rows)[:tips]:
        tip = f"{names[cell.true]} → {names[cell.predicted]}: {cell.rows:,} ({cell.share:.1%})"
        parts.append(rect((cell.predicted * size, cell.true * size, size, size), "tip", tip))
    moved = element("g", *parts, transform=f"translate({edge:g} {edge:g})")
    return picture(edge + side + 1, edge + side + 1, label, "heat", [moved])
