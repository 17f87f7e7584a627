"""Every metric against a slow, obvious reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, roc_curve

from starzoo.errors import NumericalError
from starzoo.metrics import (
    accuracy,
    accuracy_at_coverage,
    area_under_risk_coverage,
    auroc,
    brier_score,
    chance_p_value,
    ensemble_log_probabilities,
    entropy,
    expected_calibration_error,
    fit_temperature,
    misclassification_auroc,
    mutual_information,
    negative_log_likelihood,
    ood_detection,
    prediction_entropy,
    scale_temperature,
)


def predictions(seed: int, images: int = 200, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    return logits.log_softmax(1), torch.randint(0, classes, (images,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_nll_equal_scikit_learn(seed: int) -> None:
    predicted, labels = predictions(seed)
    probabilities = predicted.double().softmax(1).numpy()
    assert accuracy(predicted, labels) == accuracy_score(labels, probabilities.argmax(1))
    assert negative_log_likelihood(predicted, labels) == pytest.approx(log_loss(labels, probabilities), abs=1e-6)


def slow_calibration_error(predicted: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    total = 0.0
    for number in range(bins):
        inside = []
        for row, label in zip(predicted.double().exp().numpy(), labels.numpy(), strict=True):
            if number / bins < row.max() <= (number + 1) / bins:
                inside.append((row.max(), row.argmax() == label))
        if inside:
            confidence, right = np.mean([c for c, _ in inside]), np.mean([r for _, r in inside])
            total += len(inside) / len(labels) * abs(confidence - right)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop_over_bins(bins: int) -> None:
    predicted, labels = predictions(7)
    expected = slow_calibration_error(predicted, labels, bins)
    assert expected > 0.1
    assert expected_calibration_error(predicted, labels, bins=bins) == pytest.approx(expected, abs=1e-9)


def test_a_perfect_and_certain_answer_has_no_calibration_error() -> None:
    labels = torch.arange(4)
    predicted = torch.eye(4).log()
    assert expected_calibration_error(predicted, labels) == 0
    assert expected_calibration_error(predicted, labels.roll(1)) == 1


def test_ensemble_averages_probabilities_not_logits() -> None:
    members = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
    mean = ensemble_log_probabilities(members)
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.7, 0.3]]))
    assert mean[0, 0] == pytest.approx(math.log(0.7))


METRICS = [
    accuracy,
    lambda predicted, labels: accuracy_at_coverage(predicted, labels, 0.8),
    area_under_risk_coverage,
    negative_log_likelihood,
    expected_calibration_error,
    brier_score,
    misclassification_auroc,
    fit_temperature,
    area_under_risk_coverage,
    lambda predicted, labels: ood_detection(predicted[:, 1], predicted[:, 1]),
]


@pytest.mark.parametrize("metric", METRICS)
def test_t09_nan_is_an_error_not_a_figure(metric: object) -> None:
    predicted, labels = predictions(0)
    predicted[3, 1] = math.nan
    with pytest.raises(NumericalError, match=r"^the predictions are not numbers"):
        metric(predicted, labels)  # type: ignore[operator]


def test_entropy_equals_the_sum_by_the_book() -> None:
    probabilities = predictions(1)[0].exp()
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities.double().tolist()]
    torch.testing.assert_close(entropy(probabilities).double(), torch.tensor(expected).double())
    certain, blind = torch.eye(3), torch.full((1, 4), 0.25)
    assert entropy(certain).tolist() == [0, 0, 0]
    assert entropy(blind).item() == pytest.approx(math.log(4))


def test_mutual_information_is_what_members_disagree_about() -> None:
    split = torch.stack([torch.eye(2)[:1], torch.eye(2)[1:]])  # two members, each certain of another class
    assert mutual_information(split).item() == pytest.approx(math.log(2))
    unsure = torch.full((2, 1, 2), 0.5)  # all uncertainty comes from the image
    assert mutual_information(unsure).item() == 0
    members = torch.stack([predictions(seed)[0].exp() for seed in range(3)])
    mean, between = members.mean(0), mutual_information(members)
    divergence = (members * (members / mean).log()).sum(-1).mean(0)  # the mean of KL(member ‖ mean)
    torch.testing.assert_close(between, divergence, atol=1e-5, rtol=1e-4)


def test_luck_is_the_tail_of_a_binomial_distribution() -> None:
    labels, answers = torch.arange(20) % 4, torch.arange(20) % 4
    answers[8:] = answers[8:].roll(1)  # 8 of 20 right, every class answered as often as it occurs: p = 1/4
    expected = sum(math.comb(20, k) * 0.25**k * 0.75 ** (20 - k) for k in range(8, 21))
    assert chance_p_value(answers, labels) == pytest.approx(expected)


def test_luck_is_not_deceived_by_classes_of_different_size() -> None:
    labels = (torch.arange(1000) % 20 == 0).long()  # 95 % of one class
    assert chance_p_value(torch.zeros_like(labels), labels) > 0.4
    assert chance_p_value(1 - labels, labels) > 0.99
    almost = labels.clone()
    almost[:41] = 0  # misses three of fifty
    assert chance_p_value(almost, labels) < 1e-6


def test_blind_answers_are_seldom_lucky() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 10, (2, 400, 1024), generator=generator)
    lucky = sum(chance_p_value(answers, labels) < 0.01 for answers, labels in draws.unbind(1))
    assert lucky <= 12  # 4 of 400 are to be expected


@pytest.mark.parametrize("seed", range(3))
def test_brier_score_equals_a_loop(seed: int) -> None:
    predicted, labels = predictions(seed)
    rows = zip(predicted.double().exp().tolist(), labels.tolist(), strict=True)
    expected = np.mean([sum((p - (k == label)) ** 2 for k, p in enumerate(row)) for row, label in rows])
    assert brier_score(predicted, labels) == pytest.approx(expected, abs=1e-6)
    assert brier_score(torch.eye(4).log(), torch.arange(4)) == 0
    assert brier_score(torch.eye(4).log(), torch.arange(4).roll(1)) == 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_t10_auroc_of_any_scores_equals_scikit_learn_with_ties(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(300) < 0.3
    scores = 1e3 * np.round(levels * rng.normal(positive, 2.0)) / levels - 50  # far outside of [0, 1]
    ties = len(scores) - len(np.unique(scores))
    assert ties > 0
    assert auroc(torch.from_numpy(scores), torch.from_numpy(positive)) == pytest.approx(
        roc_auc_score(positive, scores), abs=1e-6
    )


def test_auroc_of_known_cases() -> None:
    positive = torch.tensor([False, False, True, True])
    assert auroc(torch.tensor([0.0, 1.0, 2.0, math.inf]), positive) == 1
    assert auroc(torch.tensor([3.0, 2.0, 1.0, -math.inf]), positive) == 0
    assert auroc(torch.ones(4), positive) == 0.5
    assert auroc(torch.ones(4), torch.ones(4, dtype=torch.bool)) is None
    assert auroc(torch.ones(4), torch.zeros(4, dtype=torch.bool)) is None


@pytest.mark.parametrize("seed", range(3))
def test_misclassification_and_ood_detection_equal_scikit_learn(seed: int) -> None:
    (predicted, labels), (outside, _) = predictions(seed), predictions(seed + 50, images=90)
    outside = scale_temperature(outside, 2.0)
    right = (predicted.argmax(1) == labels).numpy()
    assert misclassification_auroc(predicted, labels) == pytest.approx(
        roc_auc_score(right, predicted.max(1).values.numpy()), abs=1e-6
    )
    both = torch.cat([predicted, outside]).double().exp().numpy()
    other = np.arange(len(both)) >= len(predicted)
    entropies = np.array([-sum(p * math.log(p) for p in row) for row in both])
    assert np.concatenate([prediction_entropy(each) for each in (predicted, outside)]) == pytest.approx(entropies)
    for uncertainty in (-both.max(1), entropies):
        inside, beyond = (torch.from_numpy(uncertainty[chosen]) for chosen in (~other, other))
        area, fpr95 = ood_detection(inside, beyond)
        assert area == pytest.approx(roc_auc_score(other, uncertainty), abs=1e-6)
        # The images of the task are the positives of FPR95.
        rates, recalls, _ = roc_curve(~other, -uncertainty, drop_intermediate=False)
        assert fpr95 == pytest.approx(rates[np.argmax(recalls >= 0.95)], abs=1e-6)
    assert ood_detection(inside, torch.zeros(0)) == (None, None)


def test_risk_and_coverage_equal_a_loop_and_do_not_depend_on_the_order_of_images() -> None:
    predicted, labels = predictions(3)
    order = np.argsort(-predicted.max(1).values.numpy(), kind="stable")
    wrong = (predicted.argmax(1) != labels).numpy()[order]
    risks = [wrong[:count].mean() for count in range(1, len(wrong) + 1)]
    assert area_under_risk_coverage(predicted, labels) == pytest.approx(np.mean(risks), abs=1e-6)
    for coverage in (0.8, 0.9):
        kept = wrong[: round(coverage * len(wrong))]
        assert accuracy_at_coverage(predicted, labels, coverage) == pytest.approx(1 - kept.mean(), abs=1e-6)
    equal = torch.tensor([[0.7, 0.3]] * 3 + [[0.9, 0.1]]).log()
    for answers in ([0, 1, 1, 0], [1, 1, 0, 0]):  # of three that are equally confident, two are wrong
        expected = np.mean([0, 1 / 3, 4 / 9, 1 / 2])
        assert area_under_risk_coverage(equal, torch.tensor(answers)) == pytest.approx(expected)


def test_the_temperature_equals_another_optimizer_and_helps() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(500, 4, generator=generator).log_softmax(1)
    labels = torch.multinomial(truth.exp(), 1, generator=generator)[:, 0]
    predicted = (3 * truth).log_softmax(1)  # three times too sure
    found = fit_temperature(predicted, labels)
    rows = predicted.double().numpy()

    def loss(beta: np.ndarray) -> float:
        logits = beta[0] * rows
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(500), labels.numpy()]))

    assert found == pytest.approx(1 / minimize(loss, [1.0], tol=1e-12).x[0], rel=1e-4)
    assert 2.5 < found < 3.6
    cooled = scale_temperature(predicted, found)
    assert negative_log_likelihood(cooled, labels) < negative_log_likelihood(predicted, labels) - 0.1
    assert torch.equal(cooled.argmax(1), predicted.argmax(1))
    torch.testing.assert_close(scale_temperature(predicted, 1.0), predicted)
    assert fit_temperature(scale_temperature(predicted, found), labels) == pytest.approx(1, abs=1e-3)
