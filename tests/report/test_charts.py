from xml.etree import ElementTree

import numpy as np
import pytest

from crest_jax.report import html
from crest_jax.report.charts import LOOKS, Series, line_chart


def drawn(chart):
    """Return the chart as a template draws it, parsed as XML, which is stricter than HTML."""
    macros = html.TEMPLATES.get_template("charts.html.j2").module
    return ElementTree.fromstring(macros.line_chart(chart))


def points_of(polyline):
    return [tuple(map(float, pair.split(","))) for pair in polyline.get("points").split(" ")]


def test_a_chart_puts_values_where_they_belong():
    chart = line_chart("Things", [Series("a", [0.0, None, 10.0], 0)], ["x", "y", "z"], "place")
    (line,) = chart.lines
    # The middle place has no value, and nothing is drawn across it.
    ((first,), (last,)) = (stretch.points for stretch in line.stretches)
    assert first.x < last.x
    assert first.y > last.y  # upwards
    # The ends are those of the axis.
    assert (first.y, last.y) == (chart.frame.bottom, chart.frame.top)
    assert (first.x, last.x) == (chart.frame.left, chart.frame.right)
    heights = [tick.y for tick in chart.ticks]
    assert (heights[0], heights[-1]) == (first.y, last.y)
    assert last.tip == "a, z: 10.0"


def test_counts_go_by_tens():
    values = [Series("a", [0, 9, 99, 999], 0)]
    chart = line_chart("Things", values, list("wxyz"), "class", counts=True)
    (stretch,) = chart.lines[0].stretches
    # log(1 + 0), log(10), log(100), log(1000)
    steps = np.diff([point.y for point in stretch.points])
    assert steps[0] < 0  # upwards
    np.testing.assert_allclose(steps, steps[0], atol=0.11)
    assert [tick.text for tick in chart.ticks] == ["0", "1", "10", "100", "1,000"]


def test_long_names_are_slanted_and_have_room():
    names = ["aeroplane", *"bcdefghi", "automobile"]
    values = [Series("a", [10.0] * 10, 0)]
    slanted = line_chart("Things", values, names, "class")
    level = line_chart("Things", values, list("abcdefghij"), "class")
    assert (slanted.slanted, level.slanted) == (True, False)
    assert slanted.frame.bottom < level.frame.bottom
    for chart in (slanted, level):
        labels = [text for text in drawn(chart).iter("text") if text.text in names]
        turned = ["rotate(" in text.get("transform", "") for text in labels]
        assert labels
        assert set(turned) == {chart.slanted}


def test_an_axis_goes_as_far_as_asked():
    chart = line_chart("Things", [Series("a", [10.0], 0)], ["x"], "class", within=(0, 100))
    assert [chart.ticks[0].text, chart.ticks[-1].text] == ["0", "100"]


def test_of_many_labels_some_are_shown_and_only_lone_values_are_marked():
    values = [None if place == 1 else 1.0 for place in range(40)]
    chart = line_chart("Things", [Series("a", values, 0)], [str(n) for n in range(40)], "class")
    assert [label.text for label in chart.labels] == [str(n) for n in range(0, 40, 4)]
    assert [stretch.marked for stretch in chart.lines[0].stretches] == [True, False]
    figure = drawn(chart)
    assert [title.text for title in figure.iter("title")] == ["a, 0: 1.0"]


def test_it_is_drawn_as_computed():
    series = [Series("a", [0.0, None, 10.0, 4.0], 0), Series("b", [3.0, 2.5], 4, faint=True)]
    chart = line_chart("Things", series, list("wxyz"), "place")
    figure = drawn(chart)
    plot, *legend = figure.iter("svg")
    assert figure.findtext("figcaption") == plot.get("aria-label") == "Things"
    assert plot.get("viewBox") == f"0 0 {chart.frame.width} {chart.frame.height}"
    grid = [line for line in plot.iter("line") if line.get("class") == "grid"]
    assert [float(line.get("y1")) for line in grid] == [tick.y for tick in chart.ticks]
    texts = [text.text for text in plot.iter("text")]
    assert texts == [*(tick.text for tick in chart.ticks), *"wxyz", "place"]
    stretches = [stretch for line in chart.lines for stretch in line.stretches]
    assert [points_of(polyline) for polyline in plot.iter("polyline")] == [
        [(point.x, point.y) for point in stretch.points] for stretch in stretches
    ]
    marks = [(mark.get("transform"), mark.findtext("title")) for mark in plot.iter("g")]
    assert marks == [
        (f"translate({point.x} {point.y})", point.tip)
        for stretch in stretches
        for point in stretch.points
    ]
    assert [entry.find("svg").tail for entry in figure.iter("li")] == ["a", "b"]
    looks = [[part.get("class") for part in svg.iter() if part.get("class")] for svg in legend]
    assert looks == [["line s0", "mark s0"], ["line s4 faint", "mark s4 faint"]]


def test_each_look_has_its_own_marker_and_further_series_repeat_them():
    series = [Series(str(look), [1.0], look) for look in range(LOOKS + 1)]
    figure = drawn(line_chart("Things", series, ["x"], "place"))
    markers = [
        (mark.get("class"), ElementTree.tostring(mark[1], encoding="unicode").strip())
        for mark in figure.find("svg").iter("g")
    ]
    assert markers[LOOKS] == markers[0]
    assert len({shape for _, shape in markers}) == LOOKS


@pytest.mark.parametrize("name", ["</svg><script>", '"><b>', "&lt;"])
def test_names_are_text(name):
    figure = drawn(line_chart(name, [Series(name, [1.0], 0)], [name], name))
    assert not {element.tag for element in figure.iter()} & {"script", "b"}
    assert figure.find("svg").get("aria-label") == figure.findtext("figcaption") == name
    assert figure.find("ul/li/svg").tail == name
