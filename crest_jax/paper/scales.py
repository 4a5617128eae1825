"""Scales at which runs are smaller than the paper's, for fewer or weaker devices."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from crest_jax.algorithms import ALGORITHMS
from crest_jax.rebalancing import self_trains

# Experiments in which methods without self-training train for as many steps as one generation of
# self-training, instead of as many as all its generations together.
_ONE_GENERATION = ("imagenet127",)


class Scale(NamedTuple):
    """A scale of runs: how much smaller they are than the paper's."""

    note: str  # remark in every output; empty for the paper's own scale
    fields: Mapping[str, str] = {}  # config fields to set
    steps: int = 0  # steps per generation; 0 keeps the experiment's
    generations: int = 0  # generations of self-training; 0 keeps the experiment's
    experiment: str | None = None  # the experiment that runs instead of the paper's
    stands_for: Collection[str] | None = None  # the experiments that it replaces; None for all
    gamma: float = 1  # divisor of imbalance ratios
    beta: float = 1  # divisor of labeled fractions
    arguments: Mapping[str, Mapping[str, str]] = {}  # additional arguments, by experiment

    def includes(self, experiment: str) -> bool:
        """Return whether an experiment of the paper is run at this scale."""
        return self.stands_for is None or experiment in self.stands_for

    def arguments_of(self, experiment: str, arguments: Mapping[str, str]) -> dict[str, str]:
        """Return the arguments that take the place of the paper's `arguments` of an experiment."""
        smaller = {**arguments, **self.arguments.get(experiment, {})}
        for name, divisor in (("gamma", self.gamma), ("beta", self.beta)):
            if name in smaller and divisor != 1:
                smaller[name] = f"{float(smaller[name]) / divisor:g}"
        return smaller

    def fields_of(self, experiment: str, *, method: str, rebalance: str) -> dict[str, str]:
        """Return the config fields that make the paper's run of an experiment smaller.

        They give methods with and without self-training the same total number of steps, except in
        `_ONE_GENERATION`.
        """
        algorithm = ALGORITHMS[method]
        fields = dict(self.fields)
        if not algorithm.unlabeled:
            fields.pop("unlabeled_ratio", None)
        if "ramp_up_steps" not in algorithm.hyper_parameters:
            fields.pop("ramp_up_steps", None)
        in_one = experiment in _ONE_GENERATION or self_trains(rebalance)
        if self.steps:
            fields["steps"] = str(self.steps * (1 if in_one else self.generations))
        if self.generations and self_trains(rebalance):
            fields["generations"] = str(self.generations)
        return fields


SCALES = {
    "full": Scale(""),
    "small": Scale(
        "WRN-10-1, 3 generations of 4000 steps of 16 + 2 x 32 images (ImageNet127: 32 pixels)",
        fields={
            "model.depth": "10",
            "model.width": "1",
            "model.batch_norm_momentum": "0.99",
            "batch_size": "16",
            "unlabeled_ratio": "2",
            "eval_every": "400",
            "checkpoint_every": "1000",
            "ema_decay": "0.99",
            "optimizer.learning_rate": "0.1",
            "ramp_up_steps": "500",
        },
        steps=4000,
        generations=3,
        arguments={"imagenet127": {"resolution": "32"}},
    ),
    "mnist": Scale(
        "MNIST-LT, 14 x 14 pixels, a fifth of β, WRN-10-1, 3 generations of 2000 steps",
        generations=3,
        experiment="mnist_lt",
        stands_for=("cifar10_lt",),
        beta=5,
    ),
    "smoke": Scale(
        "handwritten digits with γ / 10, 2 generations of 20 steps",
        fields={
            "batch_size": "8",
            "unlabeled_ratio": "2",
            "eval_every": "4",
            "checkpoint_every": "20",
            "model.batch_norm_momentum": "0.8",
            "ema_decay": "0.8",
            "ramp_up_steps": "2",
        },
        steps=20,
        generations=2,
        experiment="digits_lt",
        gamma=10,
    ),
}
