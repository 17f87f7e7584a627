"""Scores of predicted probabilities: accuracy, proper scores, calibration, and the AUROC of uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom, rankdata
from torch import Tensor

from starzoo.errors import NumericalError

__all__ = [
    "accuracy",
    "accuracy_at_coverage",
    "area_under_risk_coverage",
    "auroc",
    "brier_score",
    "chance_p_value",
    "deep_ensemble_equivalent",
    "ensemble_log_probabilities",
    "entropy",
    "expected_calibration_error",
    "fit_temperature",
    "misclassification_auroc",
    "mutual_information",
    "negative_log_likelihood",
    "ood_detection",
    "prediction_entropy",
    "scale_temperature",
    "tempered_losses",
]

Array = NDArray[np.float64]
_PART = 2048  # images
_TEMPERATURE_BOUNDS = (1 / 20, 20.0)  # far wider than those of real models


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The share of right answers.

    Args:
        log_probabilities: Shape (images, classes); logits serve as well.
        labels: Class indices, shape (images,).

    Returns:
        A share from 0 to 1.
    """
    _check_no_nan(log_probabilities)
    return float((log_probabilities.argmax(dim=1) == labels).double().mean())


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood of the labels.

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        Nats per image.
    """
    _check_no_nan(log_probabilities)
    return float(-log_probabilities.gather(1, labels[:, None]).double().mean())


def expected_calibration_error(log_probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017): Σ over bins of share · |accuracy − confidence|.

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).
        bins: Number of bins of equal width over the confidence of the answer.

    Returns:
        A share from 0 to 1.
    """
    _check_no_nan(log_probabilities)
    confidence, answer = _in_parts(lambda part: torch.stack([*part.double().exp().max(dim=1)]), log_probabilities)
    correct = (answer == labels).double()
    # Bins are (low, high], as in the paper; the epsilon-free ceiling puts a confidence of exactly 1 into the last.
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct - confidence)
    return float(gap.abs().sum() / len(labels))


def brier_score(log_probabilities: Tensor, labels: Tensor) -> float:
    """The Brier score (1950): the mean over images of Σ over classes of (p − [class is the label])².

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        From 0 (certain and right) to 2 (certain and wrong).
    """
    _check_no_nan(log_probabilities)
    classes = log_probabilities.shape[1]

    def distance(part: Tensor, labels: Tensor) -> Tensor:
        return (part.double().exp() - torch.nn.functional.one_hot(labels, classes)).square().sum(1)

    return float(_in_parts(distance, log_probabilities, labels).mean())


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """The area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

    It depends on ranks alone (Mann and Whitney 1947), so that scores may be any numbers and no threshold is chosen.

    Args:
        scores: Shape (images,); infinities are allowed.
        positive: Whether each is a positive, boolean of shape (images,).

    Returns:
        A share from 0 to 1; None where there are only positives or only negatives.
    """
    _check_no_nan(scores)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))  # ties share their mean rank
    above = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def misclassification_auroc(log_probabilities: Tensor, labels: Tensor) -> float | None:
    """The AUROC of misclassification detection by confidence (Hendrycks and Gimpel 2017).

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        The AUROC, right answers being the positives; None where all answers are right, or all wrong.
    """
    confidence, answers = log_probabilities.max(dim=1)
    return auroc(confidence, answers == labels)


def area_under_risk_coverage(log_probabilities: Tensor, labels: Tensor) -> float:
    """The area under the risk-coverage curve, AURC (Geifman and El-Yaniv 2017).

    It is the mean, over all numbers of most confident images, of the share of wrong answers among them. Images of equal
    confidence are in random order, of which this is the expectation.

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        From 0 to 1; less is better.
    """
    errors = _errors_by_confidence(log_probabilities, labels)
    return float((np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean())


def accuracy_at_coverage(log_probabilities: Tensor, labels: Tensor, coverage: float) -> float:
    """The share of right answers among the most confident images; equal ones are in random order, as for AURC.

    Args:
        log_probabilities: Normalized, shape (images, classes).
        labels: Class indices, shape (images,).
        coverage: The share of images that are answered, above 0.

    Returns:
        A share.
    """
    errors = _errors_by_confidence(log_probabilities, labels)
    return 1 - float(errors[: max(1, round(coverage * len(errors)))].mean())


def ood_detection(uncertainty: Tensor, ood_uncertainty: Tensor) -> tuple[float | None, float | None]:
    """How well an uncertainty tells images of other data sets from those of the task.

    Args:
        uncertainty: Of the task's images, shape (images,).
        ood_uncertainty: Of the other images, shape (other images,).

    Returns:
        The AUROC, the other images being the positives, and FPR95: the share of the other images that pass for the
        task's where a threshold lets 95 % of these pass (Hendrycks and Gimpel 2017; Liang et al. 2018). None where
        there is no image on one side.
    """
    both = torch.cat([uncertainty, ood_uncertainty])
    area = auroc(both, torch.arange(len(both)) >= len(uncertainty))
    if area is None:
        return None, None
    threshold = np.quantile(uncertainty.double().numpy(), 0.95, method="inverted_cdf")
    return area, float((ood_uncertainty.double().numpy() <= threshold).mean())


def _errors_by_confidence(log_probabilities: Tensor, labels: Tensor) -> Array:
    """Return the errors of images, the most confident first; equally confident ones share their mean."""
    _check_no_nan(log_probabilities)
    confidence, answers = log_probabilities.max(dim=1)
    _, group = np.unique(-confidence.double().numpy(), return_inverse=True)
    wrong = (answers != labels).double().numpy()
    means = np.bincount(group, wrong) / np.bincount(group)
    return np.asarray(means[np.sort(group)])


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature that gives the least negative log-likelihood (Guo et al. 2017).

    Args:
        log_probabilities: On validation images that no model was fitted on, shape (images, classes).
        labels: Class indices, shape (images,).

    Returns:
        The temperature T for `scale_temperature`, from 0.05 to 20: above 1 where the model is overconfident.
    """
    _check_no_nan(log_probabilities)
    predicted = log_probabilities.double()

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scale_temperature(predicted, math.exp(log_temperature)), labels)

    low, high = map(math.log, _TEMPERATURE_BOUNDS)  # the loss is convex in 1/T, so that it has one minimum
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)


def scale_temperature(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Apply temperature scaling: softmax(log p / T). The order of the classes stays.

    Args:
        log_probabilities: Shape (images, classes).
        temperature: T; more than 1 makes predictions less certain.

    Returns:
        Log-probabilities of the same shape.
    """
    scaled = torch.empty_like(log_probabilities)
    for part, result in zip(torch.split(log_probabilities, _PART), torch.split(scaled, _PART), strict=True):
        result.copy_((part / temperature).log_softmax(dim=1))
    return scaled


def tempered_losses(log_probabilities: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """The negative log-likelihood of each image's label after temperature scaling.

    Args:
        log_probabilities: Shape (images, classes).
        labels: Class indices, shape (images,).
        temperature: T.

    Returns:
        Nats, shape (images,), float32.
    """
    scaled = log_probabilities if temperature == 1 else scale_temperature(log_probabilities, temperature)
    return -scaled.gather(1, labels[:, None]).squeeze(1).float()


def deep_ensemble_equivalent(nll: Array, curve: Array) -> Array:
    """The number of models whose ensemble has a given negative log-likelihood (Ashukha et al. 2020).

    It is interpolated linearly between sizes. Below 1 the line through the first two sizes continues, down to 0.

    Args:
        nll: Of some predictors, shape (predictors,), in nats, at the best temperature of each.
        curve: Of ensembles of 1, 2 … models, shape (sizes,), at least two sizes.

    Returns:
        Sizes from 0 to the greatest, shape (predictors,): below 1 a predictor is worse than one model, and at the
        greatest size it is as good as that ensemble or better.
    """
    falling = np.minimum.accumulate(curve)
    nodes = np.concatenate([[falling[0] + max(falling[0] - falling[1], 1e-9)], falling])
    return np.interp(-nll, -nodes, np.arange(len(nodes)))


def chance_p_value(answers: Tensor, labels: Tensor) -> float:
    """The p-value of an accuracy under answers that are independent of the images.

    These are right with probability p = Σ over classes of (share of answers) · (share of labels): the chance agreement
    of Cohen's kappa (1960), which allows for imbalanced classes. The result is P(X ≥ right) for X ~ Bin(images, p).

    Args:
        answers: The predicted classes, shape (images,).
        labels: The true classes, shape (images,).

    Returns:
        A probability: near 0 where the answers are better than chance.
    """
    images = len(labels)
    classes = int(torch.maximum(answers, labels).max()) + 1
    shares = [torch.bincount(indices, minlength=classes).double() / images for indices in (answers, labels)]
    agreement = min(1.0, float(torch.stack(shares).prod(dim=0).sum()))
    return float(binom.sf(int((answers == labels).sum()) - 1, images, agreement))


def ensemble_log_probabilities(members: Tensor) -> Tensor:
    """The log of the mean probability of a deep ensemble (Lakshminarayanan et al. 2017).

    Args:
        members: Log-probabilities, shape (members, images, classes).

    Returns:
        Shape (images, classes).
    """
    return torch.logsumexp(members, dim=0) - torch.log(torch.tensor(float(len(members))))


def prediction_entropy(log_probabilities: Tensor) -> Tensor:
    """The entropy of log-probabilities of shape (images, classes), in float64; nats, shape (images,)."""
    return _in_parts(lambda part: entropy(part.double().exp()), log_probabilities)


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of predictions: H(p) = −Σ p·ln p, from 0 (certain) to ln(classes).

    Args:
        probabilities: Shape (..., classes).

    Returns:
        Nats, shape (...).
    """
    return torch.sum(torch.special.entr(probabilities), dim=-1)


def mutual_information(members: Tensor) -> Tensor:
    """The mutual information: the entropy of the mean less the mean of the entropies (Houlsby et al. 2011).

    It is the part of the uncertainty that comes from the weights; the rest comes from the images.

    Args:
        members: Probabilities, shape (members, images, classes).

    Returns:
        Nats, shape (images,): 0 where all members agree.
    """
    return (entropy(members.mean(dim=0)) - entropy(members).mean(dim=0)).clamp_min(0)


def _in_parts(score: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Score the images of one part after the other, so that float64 takes little memory; they are the last axis."""
    return torch.cat(
        [score(*part) for part in zip(*(torch.split(each, _PART) for each in images), strict=True)], dim=-1
    )


def _check_no_nan(values: Tensor) -> None:
    if torch.isnan(values).any():
        raise NumericalError(
            "", "the predictions are not numbers", hint="use another model, or evaluate.precision=fp32"
        )
