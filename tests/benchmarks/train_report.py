"""What the measurements of training say: tables."""

from statistics import median
from typing import Any

from tests.benchmarks.record import table

_LAYERS, _WIDTH_OF_MODEL = 6, 768  # of DistilBERT
_PEAKS = {"H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "H200": 989e12, "A100": 312e12}
"""Operations a second in bf16, without sparsity, of NVIDIA's data sheets."""
_TITLES = {
    "speed": "## Beside the reference\n\nThe same rows, the same threads; tokens computed are those of the batches with their padding.",
    "ways": "## What each way brings\n\nOne process of two threads, bf16; each of the first five adds one way to the line above it.",
    "ranks": "## Ranks, bf16\n\nCompared by tokens, as lengths differ; 32 rows a rank, or 32 over both ranks.",
    "ranks-fp32": "## Ranks, fp32",
}


def middle(rounds: list[dict[str, float]], fact: str) -> float:
    """Median over the rounds of rows or tokens a second."""
    return median(one[fact] / one["seconds"] for one in rounds)


def utilization(rounds: list[dict[str, float]], device: str) -> float | None:
    """Model FLOPs utilization: 6 operations a weight of a layer's matrices and 12 · length · width for attention, for each real token and layer.

    What is not computed, as most of the last layer, counts as if it were. None where the device's peak is not known here.
    Source: Chowdhery et al. 2022, PaLM, appendix B.
    """
    peak = next((peak for name, peak in _PEAKS.items() if name in device), None)
    if peak is None:
        return None
    length = median(one["tokens"] / one["rows"] for one in rounds)
    of_token = _LAYERS * (6 * 12 * _WIDTH_OF_MODEL**2 + 12 * length * _WIDTH_OF_MODEL)
    return middle(rounds, "tokens") * of_token / peak


def _lines(part: dict[str, Any]) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    several = len(part["groups"]) > 1
    base = 0.0
    for label, group in part["groups"].items():
        for name, rounds in group["rounds"].items():
            speed = middle(rounds, "tokens")
            base = base or speed
            used = utilization(rounds, group.get("device", "CPU"))
            rates = [one["rows"] / one["seconds"] for one in rounds]
            lines.append(
                {
                    "Variant": f"{label}: {name}" if several else name,
                    "Samples/s": f"{middle(rounds, 'rows'):.1f}",
                    "Lowest to highest": f"{min(rates):.1f} to {max(rates):.1f}",
                    "Tokens/s": f"{speed:,.0f}",
                    "Against the first": f"{speed / base:.2f} ×",
                    "Tokens computed for each": f"{median(one['computed'] / one['tokens'] for one in rounds):.3f}",
                    "Loss, last round": f"{rounds[-1]['loss']:.4f}",
                    **({"MFU": f"{used:.1%}"} if used is not None else {}),
                }
            )
    return lines


def report(found: dict[str, Any]) -> list[str]:
    """Parts of a Markdown file, those that were measured."""
    told = []
    for name, title in _TITLES.items():
        if name in found:
            rounds = len(next(iter(next(iter(found[name]["groups"].values()))["rounds"].values())))
            told += [
                title,
                table(_lines(found[name])),
                f"Each figure is the median of {rounds} rounds in turn. {found[name]['load']}",
            ]
    return told
