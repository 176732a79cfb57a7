"""Latency against requests a second, drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.serving.running import Measured, at_share
from trainer.evaluation.charts import element, note, short

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 64, 150, 24, 52
_STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff; fill: #222 }
.grid { stroke: #ddd } .p50, .p99 { fill: none; stroke-width: 2 } .p99 { stroke-dasharray: 6 4 }
.ours { stroke: #0b6bcb } .reference { stroke: #b3541e } text.ours { stroke: none; fill: #0b6bcb } text.reference { stroke: none; fill: #b3541e }
@media (prefers-color-scheme: dark) {
  svg { background: #15181c; fill: #ddd } .grid { stroke: #333 }
  .ours { stroke: #62a8f0 } .reference { stroke: #e8935f } text.ours { fill: #62a8f0 } text.reference { fill: #e8935f }
}
"""


def curve(measured: dict[str, Measured], shares: Sequence[float]) -> str:
    """Latency (p50 and p99) against requests a second, both on logarithmic axes, as an SVG file."""
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, percent): [(median(one.rates[share]), one.milliseconds(at_share(share), percent)) for share in shares]
        for name, one in measured.items()
        for percent in (50, 99)
    }
    lines = {
        key: [point for point in line if math.isfinite(point[1])] for key, line in lines.items()
    }  # some was answered
    points = [point for line in lines.values() for point in line]
    x = _logarithmic([at for at, _ in points], _LEFT, _WIDTH - _RIGHT)
    y = _logarithmic([at for _, at in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [element("style", _STYLE)]
    for tick in x.ticks:
        parts += [element("line", x1=x.at(tick), x2=x.at(tick), y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid")]
        parts += [note(x.at(tick), _HEIGHT - _BOTTOM + 20, short(tick))]
    for tick in y.ticks:
        parts += [element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y.at(tick), y2=y.at(tick), class_="grid")]
        parts += [note(_LEFT - 8, y.at(tick) + 4, short(tick), "end")]
    parts.append(
        note((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "requests a second, 20% to 120% of each server's capacity")
    )
    parts.append(note(_LEFT - 8, 14, "ms", "end"))
    for (name, percent), line in ((key, line) for key, line in lines.items() if line):
        places = [(x.at(a), y.at(b)) for a, b in line]
        parts.append(
            element("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_=f"{name} p{percent}")
        )
        parts.append(
            note(
                places[-1][0] + 8,
                places[-1][1] + (-4 if percent == 99 else 14),
                f"{name}, p{percent}",
                "start",
                class_=name,
            )
        )
    label = "Latency against requests a second, of our server and the reference"
    size = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "width": _WIDTH,
        "height": _HEIGHT,
    }
    return str(element("svg", *parts, **size, role="img", aria_label=label)) + "\n"


@dataclass(frozen=True)
class _Axis:
    ticks: list[float]
    start: float
    end: float

    def at(self, value: float) -> float:
        whole = math.log(self.ticks[-1] / self.ticks[0])
        return self.start + (self.end - self.start) * math.log(value / self.ticks[0]) / whole


def _logarithmic(values: Sequence[float], start: float, end: float) -> _Axis:
    """An axis with ticks at 1, 2 and 5 times powers of ten, from the last below all values to the first above."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [times * 10.0**power for power in powers for times in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ticks) if tick <= min(values))
    last = min(place for place, tick in enumerate(ticks) if tick >= max(values))
    return _Axis(ticks[first : max(last, first + 1) + 1], start, end)
