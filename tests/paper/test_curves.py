from crest_jax.paper import cells, curves
from crest_jax.paper.figures import FIGURES


def test_figures_share_runs_with_tables_but_for_what_they_vary(cells_of, settings):
    one_fold = settings(folds=1)
    table = set(cells.named_runs(cells_of(5)))
    drawn_from = {name: run for name, (run,) in curves.of_figure(FIGURES[4], one_fold).items()}
    assert [name for name, run in drawn_from.items() if run in table] == ["α=1/3"]
    assert "--config.crest.alpha=0.25" in drawn_from["α=1/4"].command
    assert len({run.workdir for run in drawn_from.values()}) == 5
    assert {run for (run,) in curves.of_figure(FIGURES[1], one_fold).values()} <= table


def test_what_is_missing_is_said_with_how_far_it_has_come(settings, finish):
    generation = {"accuracy": 70.0}
    several = curves.of_figure(FIGURES[1], settings("smoke"))
    finish(several["CReST"][0], generation, generation)
    finish(several["CReST"][1], generation)  # of two generations
    so_far = curves.collect(several)
    assert {name: len(folds) for name, folds in so_far.folds.items()} == {"CReST": 1}
    assert so_far.remarks == ["Not finished: CReST (1 of 2 folds are), CReST+"]
    finish(several["CReST"][1], generation, generation)
    assert curves.collect(several).remarks == [
        "Mean and standard deviation of 2 folds",
        "Not finished: CReST+",
    ]
    one = curves.of_figure(FIGURES[1], settings("smoke", folds=1))
    finish(one["CReST+"][0], generation)
    assert curves.collect(one).remarks == ["Not finished: CReST+ (1 of 2 generations)"]
