"""A step that can be followed by hand: its model is linear, and what passes through it is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.algorithms import StepInputs

LABELED, UNLABELED, CLASSES = 4, 12, 5
PIXELS = 4


class Step:
    """Random images, labels, weights of a linear student and of another linear teacher."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (LABELED + UNLABELED, 2, 2, 1), dtype=np.uint8)
        self.labels = rng.integers(CLASSES, size=LABELED)
        self.student = rng.normal(size=(PIXELS, CLASSES)) * 3
        self.teacher = rng.normal(size=(PIXELS, CLASSES)) * 3
        self.start()

    def start(self):
        """Forgets what has passed."""
        # Of every call, in order: augmented images that came out, images that went in.
        self.weak: list[np.ndarray] = []
        self.strong: list[np.ndarray] = []
        self.forward: list[np.ndarray] = []
        self.taught: list[np.ndarray] = []
        # Added to the logits of the first, the second, ... forward pass, and to the teacher's.
        self.offsets = [jnp.zeros(())] * 2
        self.teacher_offset = jnp.zeros(())

    def inputs(self, **changes) -> StepInputs:
        """The step's inputs, with fields replaced."""

        def view(calls, mark):
            def augmented(images, keys, weak_keys=None):
                noise = jax.vmap(lambda key: jax.random.uniform(key, (2, 2, 1)))(keys)
                calls.append(images / 255 + mark * noise)
                return calls[-1]

            return augmented

        def forward(images):
            offset = self.offsets[len(self.forward)]
            self.forward.append(images)
            statistics = {"first_pixel": images[0, 0, 0, 0]}
            return self.logits(images, self.student) + offset, statistics

        def teacher(images):
            self.taught.append(images)
            return jax.lax.stop_gradient(self.logits(images, self.teacher) + self.teacher_offset)

        keys = jax.random.split(jax.random.key(0), LABELED + UNLABELED)
        inputs = StepInputs(
            labeled=self.images[:LABELED],
            labels=self.labels,
            unlabeled=self.images[LABELED:],
            labeled_keys=keys[:LABELED],
            unlabeled_keys=keys[LABELED:],
            step=jnp.int32(5),
            progress=jnp.float32(0.5),
            class_weights=jnp.ones(CLASSES),
            weak=view(self.weak, 1),
            strong=view(self.strong, -1),
            forward=forward,
            teacher=teacher,
            align=lambda probs: probs,
            refine=lambda guesses: guesses,
            shuffle=roll,
        )
        return inputs._replace(**changes)

    def logits(self, images, weights):
        """Return the logits of the linear model."""
        return images.reshape(len(images), PIXELS) @ jnp.asarray(weights, jnp.float32)

    def student_logits(self, images):
        """Return the student's logits, in NumPy and float64."""
        return np.asarray(images, np.float64).reshape(len(images), PIXELS) @ self.student

    def teacher_logits(self, images):
        """Return the teacher's logits, in NumPy and float64."""
        return np.asarray(images, np.float64).reshape(len(images), PIXELS) @ self.teacher

    def scaled(self, ratio):
        """Multiply probabilities by a ratio per class and normalise them, as alignment does."""

        def align(probs):
            scaled = probs * ratio
            return scaled / scaled.sum(axis=-1, keepdims=True)

        return align

    def gradient(self, loss, *, forward_pass=0):
        """Return the gradient of the loss with respect to the logits of a forward pass."""

        def total(offset):
            self.start()
            self.offsets[forward_pass] = offset
            return loss(self.inputs()).total

        loss(self.inputs())
        rows = len(self.forward[forward_pass])
        gradient = np.asarray(jax.grad(total)(jnp.zeros((rows, CLASSES))))
        self.start()
        return gradient


def roll(parts):
    """A permutation that is known: every example gives way to the one before it."""
    joined = jax.tree.map(lambda *leaves: jnp.roll(jnp.concatenate(leaves), 1, axis=0), *parts)
    ends = np.cumsum([len(jax.tree.leaves(part)[0]) for part in parts])[:-1]
    split = [jnp.split(leaf, ends) for leaf in jax.tree.leaves(joined)]
    structure = jax.tree.structure(joined)
    return [jax.tree.unflatten(structure, leaves) for leaves in zip(*split, strict=True)]


@pytest.fixture
def step():
    """A step of 4 labeled and 12 unlabeled images of 5 classes."""
    return Step()
