from crest_jax.schedule import Schedule


def test_the_steps_of_the_longest_run_are_not_listed():
    assert Schedule(2**31 - 1, 1, 1).reported == list(range(2**31 - 5, 2**31))
    assert Schedule(12, 5, 1).reported == [5, 10, 12]


def test_a_generation_is_evaluated_once_more_at_its_end():
    """Every 5 of 12 steps: at 5, 10 and 12."""
    schedule = Schedule(12, 5, 1)
    assert [schedule.evaluations_until(step) for step in (4, 5, 10, 11, 12)] == [0, 1, 2, 2, 3]
    assert Schedule(12, 6, 1).evaluations_until(12) == 2
