import csv

from crest_jax.paper import table
from crest_jax.paper.comparison import ComparedCell
from crest_jax.paper.published import Value

COMPARED = [
    ComparedCell("FixMatch", "γ=50", Value(80.0, 0.5), (78.0, 80.0), 2),
    ComparedCell("FixMatch", "γ=100", Value(70.0, 1.25), (71.26,), 2),
    ComparedCell("CReST", "γ=50", Value(84.0), (), 2),
]


def test_markdown_has_ours_the_papers_and_the_difference():
    lines = table.markdown("Table 9. Things", COMPARED, note="Small").splitlines()
    assert lines[0] == "**Table 9. Things**"
    assert lines[2] == "**Small**"
    assert lines[-4:] == [
        "| | γ=50 | γ=100 |",
        "|---|---|---|",
        "| FixMatch | 79.0 ± 1.00 (2 of 2) / 80.0 ± 0.50 / -1.0 "
        "| 71.3 (1 of 2) / 70.0 ± 1.25 / +1.3 |",
        "| CReST | - (0 of 2) / 84.0 / - |  |",
    ]


def test_comma_separated_values_have_a_line_per_cell():
    text = table.comma_separated("Table 9", COMPARED, note="Small")
    first, second, third = csv.DictReader(text.splitlines())
    assert first == {
        "table": "Table 9", "note": "Small", "row": "FixMatch", "column": "γ=50", "mean": "79.00",
        "deviation": "1.00", "folds": "2", "missing_folds": "0", "paper_mean": "80.00",
        "paper_deviation": "0.50", "difference": "-1.00",
    }  # fmt: skip
    assert (second["deviation"], second["missing_folds"]) == ("", "1")
    assert (third["mean"], third["paper_deviation"], third["difference"]) == ("", "", "")
