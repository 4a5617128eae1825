"""The schedule of a generation: its number of steps, its evaluations and its checkpoints."""

from typing import NamedTuple

# The reported figure is the mean of this many last evaluations (paper section 4.1).
LAST_EVALUATIONS = 5
# The latest checkpoints that are kept, besides those of the reported evaluations: the one before
# the last stays until the last is whole, and beyond.
KEEP = 2


class Schedule(NamedTuple):
    """The steps of a generation, counted from 1."""

    steps: int
    eval_every: int
    checkpoint_every: int

    @property
    def reported(self) -> list[int]:
        """The steps of the last evaluations, whose mean is reported; their checkpoints are kept."""
        steps, every = self.steps, self.eval_every
        return [*range(every, steps, every)[-LAST_EVALUATIONS:], steps][-LAST_EVALUATIONS:]

    @property
    def kept(self) -> list[int]:
        """The steps whose checkpoints are there once the generation is finished."""
        saved = {
            *range(self.checkpoint_every, self.steps, self.checkpoint_every),
            *self.reported,
        }
        return sorted({*sorted(saved)[-KEEP:], *self.reported})

    def evaluations_until(self, step: int) -> int:
        """Return how many evaluations the generation has made after its first `step` steps."""
        at_the_end = step == self.steps and step % self.eval_every != 0
        return step // self.eval_every + at_the_end
