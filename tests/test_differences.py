from crest_jax.differences import differences


def test_differences_include_fields_that_only_one_has():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}) == [
        "a: 1 -> None",
        "b.c: 2 -> None",
        "b.d: None -> 3",
    ]
