import pytest

from crest_jax.field import Field, in_words, is_within

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("[0, 1]", [0, 0.5, 1], [-1e-9, 1.1, INF, NAN], "between 0 and 1"),
        ("[0, 1)", [0, 0.999], [1, -0.1, NAN], "in [0, 1)"),
        ("(0, 1]", [1e-9, 1], [0, 1.1, NAN], "in (0, 1]"),
        ("(0, 1)", [0.5], [0, 1], "in (0, 1)"),
        ("[1, inf)", [1, 10**9], [0, INF, NAN], "at least 1"),
        ("(0, inf)", [1e-30], [0, -1, INF], "above 0"),
    ],
)
def test_intervals_are_those_of_mathematics(interval, inside, outside, words):
    assert all(is_within(value, interval) for value in inside)
    assert not any(is_within(value, interval) for value in outside)
    assert in_words(interval) == words


def test_a_field_says_what_a_value_must_be():
    assert Field(1.0, within="[0, 1]").expected(2.0) == "between 0 and 1"
    assert Field(1.0, within="[0, 1]").expected(0.3) == ""
    assert Field("a", choices=("a", "b")).expected("c") == "one of a, b"
    assert Field("a", choices=("a", "b")).expected("b") == ""
    some = Field(("a",), choices=("a", "b"))
    assert some.expected(("b", "a")) == ""
    assert some.expected(("c",)) == some.expected(()) == "a non-empty selection of a, b"
    assert Field("").expected("anything") == ""


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Field(True), "True or False"),
        (Field(1), "a whole number"),
        (Field(1.0), "a number"),
        (Field(""), "text"),
        (Field(()), "numbers"),
        (Field("a", choices=("a", "b")), "one of a, b"),
        (Field(("a",), choices=("a", "b")), "some of a, b"),
        (Field(1, within="[1, inf)"), "at least 1"),
    ],
)
def test_valid_values_are_described(field, words):
    assert field.valid == words
