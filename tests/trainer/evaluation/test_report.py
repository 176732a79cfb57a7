import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from trainer.evaluation.report import Curves, Mistake, write_report

NEWS = ["World", "Sports", "Business", "Sci/Tech"]
FACTS = {"Settings": {"learning_rate": 5e-5, "test_data": None, "class_names": NEWS}, "Versions": {"torch": "2.7.1"}}
NO_CURVES: Curves = {"train": [], "validation": [], "best_epoch": 0}
HOSTILE = "\"'><script>alert(1)</script><img src=http://example.com/x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """A report as a reader meets it: its tags, the attributes of each, its text; unbalanced tags are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def metrics_of(classes: list[str], matrix: list[list[int]] | None = None) -> dict[str, Any]:
    matrix = matrix or [
        [90 if row == column else row + 1 for column in range(len(classes))] for row in range(len(classes))
    ]
    return {
        "title": "tiny on sample",
        "rows": 7600,
        "accuracy": 0.9312,
        "accuracy_interval": [0.9253, 0.9367],
        "macro_f1": 0.9308,
        "loss": 0.2071,
        "expected_calibration_error": 0.0123,
        "classes": classes,
        "per_class": {name: {"precision": 0.91, "recall": 0.92, "f1": 0.915, "rows": 1900} for name in classes},
        "confusion_matrix": matrix,
        "calibration": [
            {"from": 0.4, "to": 0.5, "rows": 100, "confidence": 0.46, "accuracy": 0.33},
            {"from": 0.9, "to": 1.0, "rows": 7500, "confidence": 0.97, "accuracy": 0.94},
        ],
        "repeats": {"exact": 0, "near": 0, "texts_of_two_classes": 0, "train_rows_left_out": 0},
        "calibrated": {
            "temperature": 1.3725,
            "validation_rows": 6000,
            "not_fitted": "",
            "loss": 0.1931,
            "expected_calibration_error": 0.0045,
            "calibration": [
                {"from": 0.3, "to": 0.4, "rows": 100, "confidence": 0.36, "accuracy": 0.33},
                {"from": 0.9, "to": 1.0, "rows": 7500, "confidence": 0.945, "accuracy": 0.94},
            ],
        },
    }


def curves_of(steps: int) -> Curves:
    return {
        "train": [
            {"step": step, "loss": 1.4 / (1 + step / 100), "learning_rate": 1e-4} for step in range(1, steps + 1)
        ],
        "validation": [
            {"epoch": epoch, "step": steps * epoch // 3, "loss": 0.3, "accuracy": 0.9 + epoch / 100}
            for epoch in (1, 2, 3)
        ],
        "best_epoch": 2,
    }


def mistakes_of(text: str, count: int = 1, label: str = "World") -> list[Mistake]:
    return [{"text": text, "label": label, "predicted": "Sports", "confidence": 0.9987} for _ in range(count)]


def report(folder: Path, **changes: Any) -> str:  # noqa: ANN401 - any argument of write_report
    arguments = {
        "metrics": metrics_of(NEWS),
        "curves": curves_of(60),
        "mistakes": mistakes_of("A text"),
        "facts": FACTS,
    }
    write_report(folder / "report.html", **(arguments | changes))
    return (folder / "report.html").read_text(encoding="utf-8")


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize("count", [2, 12, 13, 100, 101])
def test_a_report_of_any_number_of_classes_needs_nothing_from_outside(tmp_path: Path, count: int) -> None:
    html = report(tmp_path, metrics=metrics_of(names(count)))
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not {"src", "href", "xlink:href"} & {key for _, attributes in page.tags for key in attributes}
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("count", [3, 20])
def test_hostile_texts_and_names_stay_text(tmp_path: Path, count: int) -> None:
    classes = [HOSTILE, *names(count)]
    facts = {HOSTILE: {HOSTILE: HOSTILE}}
    metrics = metrics_of(classes) | {"title": HOSTILE}
    page = Page(report(tmp_path, metrics=metrics, mistakes=mistakes_of(HOSTILE, label=HOSTILE), facts=facts))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count(HOSTILE) >= 8


def test_the_headline_has_the_accuracy_with_its_interval(tmp_path: Path) -> None:
    text = Page(report(tmp_path)).text
    for words in ("tiny on sample", "93.1%", "92.5% to 93.7%", "0.931", "1.2%", "7,600"):
        assert words in text


def test_rows_of_the_confusion_matrix_are_true_classes(tmp_path: Path) -> None:
    page = Page(
        report(tmp_path, metrics=metrics_of(NEWS, [[1880, 11, 0, 9], [1, 2, 3, 4], [0, 0, 1, 0], [0, 0, 0, 0]]))
    )
    assert ["World", "1,88098.9%", "110.6%", "0", "90.5%"] in page.rows
    assert ["Sci/Tech", "0", "0", "0", "0"] in page.rows
    assert page.rows[page.rows.index(["True class", "Predicted", "Rows", "Share"]) + 1] == [
        "World",
        "Sports",
        "11",
        "0.6%",
    ]


def test_a_picture_of_many_classes_shows_its_counts_in_tooltips(tmp_path: Path) -> None:
    matrix = [[95 if row == column else 0 for column in range(30)] for row in range(30)]
    matrix[4][7] = 5
    page = Page(report(tmp_path, metrics=metrics_of(names(30), matrix)))
    assert "class 4 → class 7: 5 (5.0%)" in page.text
    assert "class 7 → class 4" not in page.text
    assert ["class 4", "class 7", "5", "5.0%"] in page.rows


@pytest.mark.parametrize("count", [4, 30])
def test_every_picture_has_a_description_and_every_table_has_headers(tmp_path: Path, count: int) -> None:
    page = Page(report(tmp_path, metrics=metrics_of(names(count))))
    pictures = page.attributes("svg")
    assert len(pictures) == (4 if count > 12 else 3)
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    tables = [index for index, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert all("thead" in [tag for tag, _ in page.tags[index : index + 3]] for index in tables)
    assert {attributes.get("scope") for attributes in page.attributes("th")} == {"row", "col"}


def test_a_large_report_stays_under_a_megabyte(tmp_path: Path) -> None:
    classes = [f"a long name of a class, {index}: <" + "新" * 30 for index in range(100)]
    metrics = metrics_of(classes, [[row + column + 1 for column in range(100)] for row in range(100)])
    long = mistakes_of("長い文章" * 1000, 200)
    report(tmp_path, metrics=metrics, curves=curves_of(50_000), mistakes=long)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_a_thousand_classes_are_shown_by_the_weakest_and_the_most_confused_pairs(tmp_path: Path) -> None:
    count = 1000
    matrix = [[95 if row == column else 0 for column in range(count)] for row in range(count)]
    matrix[4][7] = 5
    metrics = metrics_of(names(count), matrix)
    metrics["per_class"]["class 900"] |= {"f1": 0.1}
    metrics["per_class"]["class 3"] |= {"f1": 0.0, "rows": 0}
    page = Page(report(tmp_path, metrics=metrics))
    assert ["class 4", "class 7", "5", "5.0%"] in page.rows
    assert len(page.rows) < 300
    assert page.rows[page.rows.index(["Class", "Precision", "Recall", "F1", "Rows"]) + 1][0] == "class 900"
    assert "These are 100 of 1,000 classes" in page.text
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_the_best_epoch_is_marked_in_both_charts(tmp_path: Path) -> None:
    assert Page(report(tmp_path)).text.count("best: epoch 2") == 2


def test_a_report_without_training_log_or_mistakes_notes_their_absence(tmp_path: Path) -> None:
    page = Page(report(tmp_path, curves=NO_CURVES, mistakes=[], facts={}))
    assert "no learning curves" in page.text
    assert "None to show" in page.text
    assert len(page.attributes("svg")) == 1


def test_calibration_before_and_after_the_temperature_is_shown_side_by_side(tmp_path: Path) -> None:
    page = Page(report(tmp_path))
    assert ["Calibration error", "1.23%", "0.45%"] in page.rows
    assert ["Mean loss", "0.207", "0.193"] in page.rows
    assert "a temperature of 1.373, fitted on 6,000 validation rows" in page.text
    assert len([circle for circle in page.attributes("circle") if circle["class"] == "ring"]) == 2


def test_repeated_texts_are_reported_where_there_are_some(tmp_path: Path) -> None:
    repeats = {"exact": 1200, "near": 34, "texts_of_two_classes": 5, "train_rows_left_out": 6}
    html = report(tmp_path, metrics=metrics_of(NEWS) | {"repeats": repeats})
    assert "1,234 repeat the text of another, 34 of them not exactly" in html
    assert "6 training rows with the text of a test row were left out. 5 of the repeated texts have two classes" in html
    assert "repeat the text" not in report(tmp_path)


def test_a_temperature_that_was_not_fitted_is_reported_as_1_with_the_reason(tmp_path: Path) -> None:
    metrics = metrics_of(NEWS)
    metrics["calibrated"] |= {"temperature": 1.0, "not_fitted": "9 validation rows are too few, it takes 50"}
    page = Page(report(tmp_path, metrics=metrics))
    assert "The temperature stays 1, as 9 validation rows are too few, it takes 50." in page.text
    assert "ring" not in {circle["class"] for circle in page.attributes("circle")}


def test_a_single_epoch_makes_a_chart(tmp_path: Path) -> None:
    curves: Curves = {
        "train": [],
        "validation": [{"epoch": 1, "step": 9, "loss": 0.0, "accuracy": 1.0}],
        "best_epoch": 1,
    }
    assert len(Page(report(tmp_path, curves=curves)).attributes("circle")) == 6


def test_a_diverged_loss_is_left_out(tmp_path: Path) -> None:
    curves = curves_of(60)
    curves["train"][30]["loss"] = float("nan")
    curves["validation"][2]["loss"] = float("inf")
    lines = [line["points"] or "" for line in Page(report(tmp_path, curves=curves)).attributes("polyline")]
    assert [len(line.split()) for line in lines] == [59, 59, 2, 3]
    assert not re.search("nan|inf", " ".join(lines))


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    text = Page(report(tmp_path, mistakes=mistakes_of("x" * 601) + mistakes_of("y" * 600))).text
    assert "x" * 599 + "…" in text
    assert "y" * 600 in text


def test_half_a_surrogate_pair_is_no_reason_to_have_no_report(tmp_path: Path) -> None:
    assert "a ? b" in report(tmp_path, mistakes=mistakes_of("a \ud83d b"))


def test_a_missing_metric_is_an_error_and_leaves_the_last_report(tmp_path: Path) -> None:
    before = report(tmp_path)
    metrics = metrics_of(NEWS)
    del metrics["title"]
    with pytest.raises(UndefinedError, match="title"):
        report(tmp_path, metrics=metrics)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def luminance(color: tuple[float, ...]) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_can_be_read_on_every_ground(tmp_path: Path, theme: int) -> None:
    root = re.findall(r":root \{(.+?)\}", report(tmp_path))[theme]
    colors = {name: tuple(map(float, value.split())) for name, value in re.findall(r"--(\w+): ([\d .]+);", root)}
    paper, (shade,) = colors["paper"], colors.pop("shade")
    pairs = [(colors[name], paper) for name in ("ink", "quiet", "blue", "amber")]
    for tint in ("blue", "amber"):
        darkest = tuple(a * shade + b * (1 - shade) for a, b in zip(colors[tint], paper, strict=True))
        pairs.append((colors["ink"], darkest))
    for pair in pairs:
        low, high = sorted(luminance(color) for color in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair
