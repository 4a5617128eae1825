import pytest

from crest_jax.report import text

NAMES = ("aeroplane", "cat", "ox")


@pytest.fixture
def result():
    return {
        "generation": 2,
        "accuracy": 61.26,
        "accuracy_logit_adjusted": 64.04,
        "steps": 600,
        "seconds": 83.7,
        "images_per_second": 917.6,
        "temperature": 0.8333,
        "labeled_per_class": [1200, 34, 5],
        "per_class_recall": [98.76, 85.02, 0.0],
        "per_class_precision": [71.31, 66.67, None],
        "pseudo_labels": {
            "examples": [2200, 800, 30],
            "predicted": [2345, 678, 0],
            "precision": [81.55, 44.49, None],
            "selected": [456, 339, 0],
            "selected_precision": [99.12, 52.21, None],
        },
    }


def fields(line):
    """Return the words of a line, without the brackets around some."""
    return line.replace("(", " ").replace(")", " ").split()


def line_of(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"{name} ")]
    return line


def test_each_class_has_its_figures_in_its_line(result):
    table = text.generation_table(result, NAMES)
    assert fields(line_of(table, "aeroplane")) == [
        "aeroplane", "1200", "98.8", "71.3", "2345", "81.5", "456", "99.1",
    ]  # fmt: skip
    assert fields(line_of(table, "cat")) == [
        "cat", "34", "85.0", "66.7", "678", "44.5", "339", "52.2",
    ]  # fmt: skip


def test_a_class_that_is_never_predicted_shows_a_dash_and_not_a_zero(result):
    table = text.generation_table(result, NAMES)
    # Recall is 0: it has examples. Precision is of nothing.
    assert fields(line_of(table, "ox")) == ["ox", "5", "0.0", "-", "0", "-", "0", "-"]


def test_where_the_truth_is_not_known_nothing_is_said_of_it(result):
    unknown = dict.fromkeys(("examples", "precision", "selected_precision"), [None] * 3)
    table = text.generation_table(
        result | {"pseudo_labels": {**result["pseudo_labels"], **unknown}}, NAMES
    )
    assert line_of(table, "cat").split() == ["cat", "34", "85.0", "66.7", "678", "339"]
    assert "right" not in table
    assert len({len(line) for line in table.splitlines()[2:]}) == 1, "columns are aligned"


def test_the_splits_are_one_line_and_what_was_held_out_another():
    sizes = {
        "labeled": {"images": 41, "per_class": [30, 10, 1]},
        "unlabeled": {"images": 900, "per_class": None},
        "test": {"images": 10, "per_class": [7, 3, 0], "held_out": False},
        "validation": {"images": 0, "per_class": [0, 0, 0]},
    }
    line = "images: 41 labeled, 900 unlabeled (of classes that are not known), 10 test"
    assert text.splits_line(sizes, NAMES) == line
    sizes["test"]["held_out"] = True
    assert text.splits_line(sizes, NAMES).splitlines() == [
        line,
        "test images are held out of those given as labeled; by class, aeroplane: 7, cat: 3, ox: 0",
    ]


def test_the_headline_counts_generations_from_one_and_has_the_summary(result):
    headline = text.generation_table(result, NAMES).splitlines()[0]
    assert headline.startswith("generation 3: accuracy 61.3 % (64.0 % logit-adjusted)")
    for part in ("600 steps", "84 s", "918 images/s", "t = 0.83"):
        assert part in headline


def test_results_have_a_column_per_generation_and_a_row_per_class(result):
    first = result | {
        "generation": 0,
        "accuracy": 55.5,
        "accuracy_logit_adjusted": 57.75,
        "per_class_recall": [99.9, 66.6, None],
    }
    last = result | {"generation": 11, "accuracy": 100.0}
    table = text.results_table([first, result, last], NAMES)
    head, accuracy, adjusted, *_ = table.splitlines()
    assert head.split() == ["%", "gen", "1", "gen", "3", "gen", "12"]
    assert accuracy.split() == ["accuracy", "55.5", "61.3", "100.0"]
    assert adjusted.split() == ["logit-adjusted", "57.8", "64.0", "64.0"]
    assert line_of(table, "aeroplane").split() == ["aeroplane", "99.9", "98.8", "98.8"]
    assert line_of(table, "cat").split() == ["cat", "66.6", "85.0", "85.0"]
    assert line_of(table, "ox").split() == ["ox", "-", "0.0", "0.0"]
    widths = {len(line) for line in table.splitlines() if not line.startswith("recall")}
    assert len(widths) == 1, "columns line up"


def test_it_is_said_whether_self_training_helped_and_whom():
    first = {"accuracy": 80.0, "per_class_recall": [99.0, 85.0, 10.0, 50.0, None]}
    last = {"accuracy": 84.2, "per_class_recall": [97.5, 85.5, 40.25, 51.0, 3.0]}
    names = [*NAMES, "bee\x1b", "elk"]
    assert text.self_training_lines([first, {}, last], names).splitlines() == [
        "Self-training helped: accuracy was 80.0 % after generation 1, and is 84.2 % after "
        "generation 3 (+4.2 points).",
        "Recall rose most for class ox (10.0 to 40.2 %), bee\\x1b (50.0 to 51.0 %).",
        "Recall fell most for class aeroplane (99.0 to 97.5 %).",
    ]
    worse, rising, _ = text.self_training_lines([last, first], names).splitlines()
    assert worse.startswith("Self-training did not help: accuracy was 84.2 %")
    assert "(-4.2 points)" in worse
    assert rising == "Recall rose most for class aeroplane (97.5 to 99.0 %)."
    (line,) = text.self_training_lines([first, first], (*NAMES, "bee", "elk")).splitlines()
    assert line.startswith("Self-training made little difference: ")


def test_long_class_names_widen_the_table(result):
    names = ("a name much longer than any heading", "cat", "ox")
    for table in (text.generation_table(result, names), text.results_table([result], names)):
        lines = [line for line in table.splitlines() if line.startswith(names)]
        assert len(lines) == 3
        assert len({len(line) for line in lines}) == 1


def test_logit_adjustment_has_a_column_per_tau_and_a_line_per_class():
    adjusted = [
        {"tau": 0.0, "accuracy": 61.26, "per_class_recall": [98.76, 85.02, 0.0]},
        {"tau": 1.5, "accuracy": 64.04, "per_class_recall": [90.0, 80.5, None]},
    ]
    table = text.adjustment_table({"generation": 2, "adjusted": adjusted}, NAMES)
    header, accuracy, *_ = table.splitlines()
    assert header.split() == ["generation", "3", "tau", "0", "tau", "1.5"]
    assert accuracy.split() == ["accuracy", "61.3", "64.0"]
    assert line_of(table, "cat").split() == ["cat", "85.0", "80.5"]
    assert line_of(table, "ox").split() == ["ox", "0.0", "-"]
    # Figures end where their column's title ends.
    assert header.index("tau 1.5") + 9 >= accuracy.rindex("64.0") + 4


UNLABELED = {
    "estimate": [0.5, 0.2, 0.3],
    "low": [0.456, 0.15, 0.2],
    "high": [0.55, 0.25, 0.42],
    "level": 0.9,
    "labeled": [0.969, 0.2, 0.004],
    "known_from": "validation",
    "p_value": 0.002,
    "differs": [0, 2],
}


def test_the_unlabeled_set_has_columns_of_its_own(result):
    table = text.generation_table(result | {"unlabeled_distribution": UNLABELED}, NAMES)
    assert fields(line_of(table, "aeroplane"))[-4:] == ["50.0", "45.6", "to", "55.0"]
    assert fields(line_of(table, "ox"))[-4:] == ["30.0", "20.0", "to", "42.0"]
    assert len({len(line) for line in table.splitlines()[3:6]}) == 1


@pytest.mark.parametrize("known_from", ["validation", "labeled"])
def test_another_unlabeled_set_is_warned_of_with_the_farthest_class_first(result, known_from):
    unlabeled = UNLABELED | {"known_from": known_from}
    table = text.generation_table(result | {"unlabeled_distribution": unlabeled}, NAMES)
    warning, first, second, *rest = table.splitlines()[6:]
    assert warning == "warning: the unlabeled set does not look like the labeled one:"
    assert first == "  aeroplane: 45.6 to 55.0 % of it, 96.9 % of the labeled set"
    assert second.split()[0] == "ox:"
    # From images that the model was fitted to, it says less.
    assert ("validation_fraction" in " ".join(rest)) == (known_from == "labeled")
    assert rest[-1] == "See docs/unlabeled_distribution.md."


def test_one_that_looks_alike_is_not_warned_of(result):
    unlabeled = UNLABELED | {"differs": []}
    table = text.generation_table(result | {"unlabeled_distribution": unlabeled}, NAMES)
    assert "warning" not in table
    assert len(table.splitlines()) == 6


def test_many_classes_are_not_all_named():
    many = {
        name: [value] * 9 if isinstance(value, float) else value
        for name, value in {**UNLABELED, "estimate": 0.1, "low": 0.1, "high": 0.1}.items()
    } | {"labeled": [place / 10 for place in range(9)], "level": 0.9, "differs": list(range(9))}
    lines = text.unlabeled_warning(many, list("abcdefghi"))
    assert [line.split(":")[0].strip() for line in lines[1:6]] == list("ihgfe")
    assert lines[6].strip() == "and 4 more classes"


def test_class_names_move_no_cursor(result):
    names = ("\x1b[2J\x1b]0;title\x07", "two\nlines", "ox")
    for table in (
        text.generation_table(result, names),
        text.results_table([result], names),
    ):
        assert "\x1b" not in table
        assert "\x07" not in table
        assert any(line.startswith("two\\nlines ") for line in table.splitlines())
