import itertools

import pytest

from crest_jax.rebalancing import REBALANCING, SELF_TRAINING, parts, problems

CLASHES = {
    frozenset(pair)
    for pair in [
        ("cb", "rs"), ("da", "darp"), ("da", "crest_plus"), ("darp", "crest_plus"),
        ("crest", "crest_plus"),
    ]
}  # fmt: skip


def test_what_a_name_is_made_of():
    assert parts("none") == ()
    assert parts("crest_plus") == ("crest_plus",)
    assert parts("crest+rs") == ("crest", "rs")
    assert SELF_TRAINING == ("crest", "crest_plus")


@pytest.mark.parametrize("name", ["none", *REBALANCING])
def test_each_is_possible_by_itself(name):
    assert problems(name, unlabeled=True) == []


def test_pairs_go_together_unless_they_rebalance_the_same_thing():
    for pair in itertools.combinations(REBALANCING, 2):
        found = problems("+".join(pair), unlabeled=True)
        assert bool(found) == (frozenset(pair) in CLASHES)
        for sentence in found:
            assert sentence.startswith(" and ".join(pair))
            assert "take at most one of" in sentence
    assert problems("rs+darp+crest", unlabeled=True) == []


@pytest.mark.parametrize("name", ["da", "darp", "crest", "crest_plus", "rs+crest"])
def test_without_unlabeled_data_only_the_labeled_term_can_be_rebalanced(name):
    (sentence,) = problems(name, unlabeled=False)
    assert "learns from unlabeled data" in sentence
    assert sentence.endswith("rebalance may be none, cb, rs")
    for possible in ("none", "cb", "rs"):
        assert problems(possible, unlabeled=False) == []


@pytest.mark.parametrize("name", ["", "crest+", "CReST", "none+rs", "crest-rs"])
def test_an_unknown_name_is_an_error_that_lists_all(name):
    (sentence,) = problems(name, unlabeled=True)
    assert f"is not one of {', '.join(REBALANCING)}" in sentence


def test_a_name_counts_once():
    (sentence,) = problems("rs+rs", unlabeled=True)
    assert sentence.startswith("rs and rs both rebalance the labeled examples")
