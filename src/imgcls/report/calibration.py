"""Calibration of confidences (Guo et al. 2017): the ranges of its error, and a temperature that lowers it.
Thresholds of several labels: those with the best F1."""

import logging
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.processes import rank

log = logging.getLogger(__name__)
BINS = 15
WITHIN = (0.01, 100.0)  # temperatures


def confidence_bins(confidences: Tensor) -> Tensor:
    """Returns the number of the range that each confidence lies in, of BINS; the last one includes 1."""
    return (confidences * BINS).long().clamp_(0, BINS - 1)


def calibration_error(confidences: Tensor, right: Tensor) -> Tensor:
    """Returns how far `confidences (N,)` are from the share of `right (N,) bool`: the mean over ranges."""
    distances = torch.zeros(BINS, dtype=torch.float64)
    distances.index_add_(0, confidence_bins(confidences), right.double() - confidences.double())
    return distances.abs().sum() / len(confidences)


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the temperature, in four digits, that `logits (N, K)` of validation have the lowest
    cross-entropy with (Guo et al. 2017, arXiv:1706.04599), and says it; 1 where there is none: with every
    target right the best would be 0."""
    from scipy.optimize import minimize_scalar  # at the end of a run alone

    logits = logits.double()
    if bool((logits.argmax(1) == targets).all()) or not bool(logits.isfinite().all()):
        if rank() == 0:
            reason = "validation has no mistakes to fit it on, or numbers that are not finite"
            log.warning("temperature: left at 1, as %s", reason)
        return 1.0

    def loss(log_temperature: float) -> float:  # it has one minimum: the loss is convex in 1 / temperature
        return float(F.cross_entropy(logits * math.exp(-log_temperature), targets))

    found = minimize_scalar(loss, bounds=(math.log(WITHIN[0]), math.log(WITHIN[1])), method="bounded")
    temperature = float(f"{math.exp(found.x):.4g}")
    if rank() == 0:
        log.info("temperature: %g, fitted on %d validation images", temperature, len(targets))
    return temperature


def best_thresholds(scores: Tensor, targets: Tensor) -> list[float]:
    """Returns for each label the threshold between two of its `scores (N, K) float32` above which its F1 on
    `targets (N, K)` is best; 0.5 for a label that no sample has, or with scores that are no numbers."""
    there = targets.sum(0, dtype=torch.int64)
    upper, order = scores.sort(0, descending=True)
    right = targets.gather(0, order).cumsum(0, dtype=torch.int64)
    lower = torch.cat([upper[1:], torch.zeros_like(upper[:1])])
    f1 = 2 * right / (torch.arange(1, len(scores) + 1)[:, None] + there)
    best, place = f1.where(upper > lower, 0).max(0)  # no threshold parts equal scores
    upper, lower = (values.gather(0, place[None])[0] for values in (upper, lower))
    middle = (upper + lower) / 2
    middle = middle.where(middle < upper, lower)  # where no number lies between the two
    middle = middle.clamp(torch.finfo(torch.float32).tiny, 1 - 2**-24)
    return middle.where((best > 0) & scores.isfinite().all(0), 0.5).tolist()
