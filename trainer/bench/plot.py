"""Speed-up against processes, as an SVG file that stands alone."""

from collections.abc import Sequence

from trainer.evaluation.charts import HEIGHT, WIDTH, Point, Series, element, line_chart, note

_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; fill: #444 }
.grid { stroke: #ddd } polyline { fill: none; stroke: #1d5f9e; stroke-width: 2 }
polyline.raw { stroke: #999; stroke-width: 1; stroke-dasharray: 4 4 } polyline.validation { stroke: #b2520a }
.dot { fill: #fff; stroke: #b2520a; stroke-width: 2 } .weak { fill: #1d5f9e } .strong { fill: #b2520a }
@media (prefers-color-scheme: dark) {
  svg { background: #15181c; fill: #bbb } .grid { stroke: #333 } polyline { stroke: #74b2f0 }
  polyline.validation, .dot { stroke: #f0a460 } .dot { fill: #15181c } .weak { fill: #74b2f0 } .strong { fill: #f0a460 }
}
"""


def speedup_plot(weak: Sequence[Point], strong: Sequence[Point], *, most: int) -> str:
    """Weak and strong scaling beside the ideal, a straight line to `most`."""
    series = [Series("raw", [(1, 1), (most, most)]), Series("train", weak), Series("validation", strong)]
    label = "Speed-up in tokens/s against the number of processes"
    chart = line_chart(series, label=label, x_name="processes")
    words = (("weak scaling", "weak"), ("strong scaling", "strong"), ("ideal (dashed)", "ideal"))
    legend = [note(70 + 130 * place, 14, text, "start", class_=name) for place, (text, name) in enumerate(words)]
    size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    whole = element("svg", element("style", _STYLE), chart, *legend, xmlns="http://www.w3.org/2000/svg", **size)
    return str(whole) + "\n"
