"""The quality of predicted probabilities: accuracy, negative log-likelihood and calibration."""

from __future__ import annotations

import torch
from scipy.stats import binom
from torch import Tensor

from starzoo.errors import NumericalError

__all__ = [
    "accuracy",
    "ensemble_log_probabilities",
    "entropy",
    "expected_calibration_error",
    "luck",
    "mutual_information",
    "negative_log_likelihood",
]


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The share of right answers.

    Args:
        log_probabilities: Shape (images, classes); logits serve as well.
        labels: Class indices, shape (images,).

    Returns:
        A share from 0 to 1.
    """
    return float((log_probabilities.argmax(dim=1) == labels).double().mean())


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood of the labels.

    Args:
        log_probabilities: Normalised, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        Nats per image.

    Raises:
        NumericalError: A prediction is not a number.
    """
    if torch.isnan(log_probabilities).any():
        raise NumericalError("the predictions are not numbers", hint="check its weights with `starzoo inspect`")
    return float(-log_probabilities.double().gather(1, labels[:, None]).mean())


def expected_calibration_error(log_probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017): Σ over bins of share · |accuracy − confidence|.

    Args:
        log_probabilities: Normalised, shape (images, classes).
        labels: Class indices, shape (images,).
        bins: Number of bins of equal width over the confidence of the answer.

    Returns:
        A share from 0 to 1.

    Raises:
        NumericalError: A prediction is not a number.
    """
    if torch.isnan(log_probabilities).any():
        raise NumericalError("the predictions are not numbers", hint="check its weights with `starzoo inspect`")
    confidence, answer = log_probabilities.double().exp().max(dim=1)
    right = (answer == labels).double()
    # Bins are (low, high], as in the paper; the epsilon-free ceiling puts a confidence of exactly 1 into the last.
    number = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, number, right - confidence)
    return float(gap.abs().sum() / len(labels))


def luck(answers: Tensor, labels: Tensor) -> float:
    """How likely as many right answers are for a model whose answers have nothing to do with the images.

    Such a model is right with probability p = Σ over classes of (share of answers) · (share of labels), the chance
    agreement of Cohen's kappa (1960), which no imbalance of the classes deceives; P(X ≥ right) for X ~ Bin(images, p).

    Args:
        answers: The predicted classes, shape (images,).
        labels: The right ones, shape (images,).

    Returns:
        A probability: near 0 where the answers are better than chance.
    """
    images = len(labels)
    classes = int(torch.maximum(answers, labels).max()) + 1
    shares = torch.stack([torch.bincount(each, minlength=classes).double() / images for each in (answers, labels)])
    return float(binom.sf(int((answers == labels).sum()) - 1, images, min(1.0, float(shares.prod(dim=0).sum()))))


def ensemble_log_probabilities(members: Tensor) -> Tensor:
    """The log of the mean probability of a deep ensemble (Lakshminarayanan et al. 2017).

    Args:
        members: Log-probabilities, shape (members, images, classes).

    Returns:
        Shape (images, classes).
    """
    return torch.logsumexp(members, dim=0) - torch.log(torch.tensor(float(len(members))))


def entropy(probabilities: Tensor) -> Tensor:
    """How uncertain predictions are: H(p) = −Σ p·ln p, from 0 (certain) to ln(classes).

    Args:
        probabilities: Shape (..., classes).

    Returns:
        Nats, shape (...).
    """
    return torch.sum(torch.special.entr(probabilities), dim=-1)


def mutual_information(members: Tensor) -> Tensor:
    """How far members disagree: the entropy of their mean less the mean of their entropies (Houlsby et al. 2011).

    This part of the uncertainty comes from not knowing the weights; the rest, from the images themselves.

    Args:
        members: Probabilities, shape (members, images, classes).

    Returns:
        Nats, shape (images,): 0 where all members say the same.
    """
    return (entropy(members.mean(dim=0)) - entropy(members).mean(dim=0)).clamp_min(0)
