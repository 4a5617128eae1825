"""CReST: which pseudo-labels join the labeled set of the next generation (paper section 3.3).

Pure NumPy on one label and one score per unlabeled example.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def sampling_rates(
    labeled_counts: Int[np.ndarray, " classes"], alpha: float
) -> Float[np.ndarray, " classes"]:
    """Rate at which the examples predicted as each class are selected, in (0, 1].

    `mu_l = (N_{L+1-l} / N_1)^alpha`, where l is a class' rank by size, largest first (Eq. 1):
    the smallest class keeps all its pseudo-labels. Classes may come in any order; among classes
    of one size, the one with the lower index ranks first.

    Args:
      labeled_counts: size of each class in the original labeled set, each at least 1.
      alpha: 0 selects everything; the larger, the more the largest classes give up.

    Raises:
      ValueError: a class is empty, or alpha is negative.
    """
    if labeled_counts.min() < 1:
        raise ValueError(f"class {labeled_counts.argmin()} has no labeled example")
    if alpha < 0:
        raise ValueError(f"alpha={alpha} must be at least 0")
    by_rank = np.argsort(-labeled_counts, kind="stable")
    sizes = labeled_counts[by_rank]
    rates = np.empty(len(sizes))
    rates[by_rank] = (sizes[::-1] / sizes[0]) ** alpha
    return rates


def select(
    pseudo_labels: Int[np.ndarray, " unlabeled"],
    confidence: Float[np.ndarray, " unlabeled"],
    rates: Float[np.ndarray, " classes"],
) -> Bool[np.ndarray, " unlabeled"]:
    """Selects, among the examples predicted as class l, the `int(count * mu_l)` most confident.

    Of equally confident examples the earlier ones are taken.

    Args:
      pseudo_labels: predicted class of each unlabeled example.
      confidence: largest softmax probability of each, in [0, 1].
      rates: mu, from `sampling_rates`.
    """
    selected = np.zeros(len(pseudo_labels), bool)
    for label, rate in enumerate(rates):
        predicted = np.flatnonzero(pseudo_labels == label)
        most_confident_first = predicted[np.argsort(-confidence[predicted], kind="stable")]
        selected[most_confident_first[: int(len(predicted) * rate)]] = True
    return selected
