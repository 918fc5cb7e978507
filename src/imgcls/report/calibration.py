"""Calibration of confidences (Guo et al. 2017): the ranges of its error, and a temperature that lowers it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """Returns the temperature, in four digits, that `logits (N, K)` have the lowest cross-entropy with (Guo
    et al. 2017, arXiv:1706.04599); 1 where there is none: with every target right the best would be 0."""
    from scipy.optimize import minimize_scalar  # half a second, at the end of a run alone

    logits = logits.double()
    if bool((logits.argmax(1) == targets).all()) or not bool(logits.isfinite().all()):
        return 1.0

    def loss(log_temperature: float) -> float:  # it has one minimum: the loss is convex in 1 / temperature
        return float(F.cross_entropy(logits * math.exp(-log_temperature), targets))

    found = minimize_scalar(loss, bounds=(math.log(WITHIN[0]), math.log(WITHIN[1])), method="bounded")
    return float(f"{math.exp(found.x):.4g}")
