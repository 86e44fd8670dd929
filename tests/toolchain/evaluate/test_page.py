"""The HTML report: well formed, by itself, and drawing what the report says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import OutputError
from qtool.evaluate import plots
from qtool.evaluate.divergence import Distribution
from qtool.evaluate.page import check_page, page, write_page
from qtool.evaluate.report import ArtifactReport, Histogram, Report
from qtool.evaluate.weight_error import WeightError
from qtool.nano.accuracy import Score

VOID = {"meta", "br", "hr", "img", "input", "link"}


def artifact(name: str, kl: float, size: int, error: float) -> ArtifactReport:
    divergences = kl * np.random.default_rng(0).lognormal(size=500)
    return ArtifactReport(
        artifact=f"/models/{name}",
        name=name,
        target="x64-int4",
        size=size,
        provider="cpu",
        kernels="onnxruntime",
        kl=Distribution.of(divergences),
        histogram=Histogram.of(divergences),
        top1_agreement=0.8251,
        perplexity=29.321,
        weight_errors=(
            WeightError("embedding", None, error),
            *(WeightError(kind, layer, error) for layer in range(24) for kind in ("attention", "mlp")),
        ),
        accuracy=None,
    )


REPORT = Report(
    reference="model",
    reference_perplexity=27.959,
    reference_accuracy=None,
    text="text.txt",
    text_sha256="0" * 64,
    tokens=500,
    window=512,
    onnxruntime="1.31.1",
    peak_memory=4_324_000_000,
    artifacts=(
        artifact("small", 0.0857, 325_000_000, 0.08),
        artifact("large", 0.00076, 564_000_000, 0.005),
        artifact("same", 0.0, 2_000_000_000, 0.0),
    ),
)


class Tags(HTMLParser):
    """Checks that every element is closed, and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def drawings(text: str) -> list[ElementTree.Element]:
    """The plots, parsed as the XML that they are; keys of legends are left out."""
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return [svg for svg in found if svg.get("class") != "key"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_is_well_formed_and_refers_to_nothing_outside(count: int) -> None:
    text = page(replace(REPORT, artifacts=REPORT.artifacts[:count]))
    tags = parsed(text)
    names = {name for _, name, _ in tags.attributes}
    assert not names & {"src", "href", "srcset", "xlink:href", "action", "data", "style"}
    assert not [name for name in names if name.startswith("on")]
    used = {tag for tag, _, _ in tags.attributes}
    assert not used & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for outside in ("http:", "https:", "url(", "@import", "<script"):
        assert outside not in text
    assert len(text) < 60_000


def test_every_figure_of_the_table_is_there() -> None:
    text = " ".join(" ".join(parsed(page(REPORT)).text).split())
    for figure in ("325.0 MB", "82.5%", "29.32", "27.96", "500 tokens", "4,324 MB", "onnxruntime 1.31.1"):
        assert figure in text
    assert "tasks solved" not in text
    score = Score(117, 120)
    solved = replace(
        REPORT,
        reference_accuracy=Score(118, 120),
        artifacts=tuple(replace(each, accuracy=score) for each in REPORT.artifacts),
    )
    text = page(solved)
    assert text.count("117 of 120") == 3
    assert text.count("118 of 120") == 1


def test_everything_is_drawn_inside_the_drawing() -> None:
    for svg in drawings(page(REPORT)):
        for line in svg.iter("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
            assert len(points) > 1
            assert all(plots.LEFT <= x <= plots.WIDTH - plots.RIGHT for x, _ in points)
            assert all(plots.TOP <= y <= plots.HEIGHT - plots.BOTTOM for _, y in points)
        for circle in svg.iter("circle"):
            assert plots.LEFT <= float(circle.attrib["cx"]) <= plots.WIDTH - plots.RIGHT
            assert plots.TOP <= float(circle.attrib["cy"]) <= plots.HEIGHT - plots.BOTTOM


def test_plots_show_what_they_say() -> None:
    distribution, size, layers = drawings(page(REPORT))
    lines = [line.attrib["points"].split() for line in distribution.iter("polyline")]
    ends = [float(line[-1].split(",")[1]) for line in lines]
    assert ends == [plots.TOP] * 3  # all tokens have at most the largest divergence
    assert {point.split(",")[1] for point in lines[2]} == {str(plots.TOP)}  # and in float32 at most the least
    circles = [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in size.iter("circle")]
    assert circles[0][0] < circles[1][0] < circles[2][0]  # larger is farther right
    assert circles[0][1] < circles[1][1] < circles[2][1]  # closer to the source is lower
    assert len(list(layers.iter("polyline"))) == 6
    first = next(layers.iter("polyline"))
    assert len(first.attrib["points"].split()) == 24


def test_one_artifact_has_no_plot_of_sizes() -> None:
    assert len(drawings(page(replace(REPORT, artifacts=REPORT.artifacts[:1])))) == 2


def test_names_are_text_and_not_markup() -> None:
    hostile = replace(REPORT.artifacts[0], name="<script>alert(1)</script>&")
    text = page(replace(REPORT, reference='"><b>', artifacts=(hostile, REPORT.artifacts[1])))
    parsed(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


def test_equal_names_are_told_apart() -> None:
    one, two = (replace(REPORT.artifacts[0], artifact=f"/models/{place}/x") for place in "ab")
    text = page(replace(REPORT, artifacts=(one, two)))
    assert "/models/a/x" in text
    assert "/models/b/x" in text


def test_a_page_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    check_page(tmp_path / "page.html")
    for path in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_page(path)
    write_page(REPORT, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == page(REPORT)
    check_page(tmp_path / "page.html")  # a page may be replaced
    (tmp_path / "letters.txt").write_text("Dear Sir")
    with pytest.raises(OutputError, match="would replace a file that is no HTML page"):
        check_page(tmp_path / "letters.txt")
    with pytest.raises(OutputError, match="cannot be written"):
        write_page(REPORT, tmp_path)


def test_a_report_is_plain_data() -> None:
    document = json.loads(json.dumps(REPORT.to_dict()))
    assert document["artifacts"][0]["histogram"]["edges"][0] == 1e-8
    assert document["peak_memory"] == 4_324_000_000


@given(st.floats(1e-9, 1e9), st.floats(1.01, 1e6))
def test_linear_axes_have_a_few_round_marks(low: float, factor: float) -> None:
    axis = plots.horizontal(low, low * factor)
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 9
    assert all(plots.LEFT <= tick.place <= plots.WIDTH - plots.RIGHT for tick in ticks)
    assert sorted({tick.place for tick in ticks}) == [tick.place for tick in ticks]


@given(st.floats(1e-8, 1e3), st.floats(1, 1e6))
def test_logarithmic_axes_have_powers_of_ten(low: float, factor: float) -> None:
    first, last = plots.decades(low, low * factor)
    assert first <= low * (1 + 1e-6)
    assert last >= low * factor * (1 - 1e-6)
    axis = plots.vertical(first, last, logarithmic=True)
    assert len(axis.ticks) >= 2
    assert axis.place(first) == plots.HEIGHT - plots.BOTTOM
    assert axis.place(last) == plots.TOP
    assert axis.place(0) == axis.place(first)


def test_marks_are_written_for_people() -> None:
    assert [tick.label for tick in plots.vertical(1e-6, 1e3, logarithmic=True).ticks] == [
        "10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1", "10", "100", "1,000",
    ]  # fmt: skip
    assert [tick.label for tick in plots.horizontal(0, 3, whole=True).ticks] == ["0", "1", "2", "3"]
    assert [tick.label for tick in plots.horizontal(0, 620).ticks] == [
        "0", "100", "200", "300", "400", "500", "600",
    ]  # fmt: skip
