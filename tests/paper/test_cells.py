from crest_jax.paper import cells


def test_tables_share_the_runs_that_they_have_in_common(cells_of):
    first, second, fifth = (cells.named_runs(cells_of(number)).keys() for number in (1, 2, 5))
    # CReST and CReST+ on CIFAR10-LT with beta = 10 %: three imbalance ratios, two folds.
    assert len(first & second) == 12
    assert len(first & fifth) == 4
    assert fifth <= second
