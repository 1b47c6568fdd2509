"""Platt scaling: scores to probabilities, ``p = sigmoid(a s + b)``, fitted on validation.

(a, b) minimise  sum_i -y_i log p_i - (1 - y_i) log(1 - p_i)  by Newton's method on standardised scores (the problem is
convex with two unknowns), with Platt's targets y+ = (N+ + 1) / (N+ + 2), y- = 1 / (N- + 2), which keep a finite when
the classes are separable (Platt 1999; N+, N- = matched and mismatched pairs).

a > 0 always, so that no ranking and no AUC changes: where the best a is not positive (the scores rank the wrong way
round on validation, or not at all) a becomes the smallest slope we give, 1e-6 per standard deviation of the scores, and
b fits the base rate.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

from girl_recbole.errors import DataError

__all__ = ["fit_platt"]

_SMALLEST_SLOPE = 1e-6  # per standard deviation of the scores
_STEPS = 100


def fit_platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """``(a, b)`` of ``sigmoid(a * logits + b)``, a > 0. ``labels`` are 0 or 1, and both must be there."""
    scores, labels = np.asarray(logits, np.float64).ravel(), np.asarray(labels, np.float64).ravel()
    if len(scores) != len(labels):
        raise DataError(f"Platt scaling: {len(scores)} scores and {len(labels)} labels; one label a score is required.")
    if not np.isfinite(scores).all():
        raise DataError(f"Platt scaling: {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite.")
    matched = int((labels == 1).sum())
    mismatched = int((labels == 0).sum())
    if matched + mismatched != len(labels):
        raise DataError(f"Platt scaling: {len(labels) - matched - mismatched} labels are neither 0 nor 1.")
    if not matched or not mismatched:
        raise DataError(
            f"Platt scaling needs matched and mismatched pairs; validation has {matched} matched and {mismatched} "
            f"mismatched. Split again with a larger validation part, or set calibrate: False."
        )
    center, spread = scores.mean(), scores.std()
    if spread <= 1e-12 * max(1.0, abs(center)):
        spread = 1.0  # constant scores: the slope means nothing
    z = (scores - center) / spread
    target = np.where(labels == 1, (matched + 1) / (matched + 2), 1 / (mismatched + 2))
    slope, bias = _newton(z, target)
    if slope < _SMALLEST_SLOPE:
        slope, bias = _SMALLEST_SLOPE, float(logit(target.mean()))
    return float(slope / spread), float(bias - slope * center / spread)


def _newton(z: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Minimise the cross-entropy of sigmoid(slope z + bias); halve a step that does not go down."""
    at = np.array([0.0, logit(target.mean())])
    design = np.stack([z, np.ones_like(z)], axis=1)
    loss = _cross_entropy(design @ at, target)
    for _ in range(_STEPS):
        p = expit(design @ at)
        gradient = design.T @ (p - target)
        if np.abs(gradient).max() < 1e-10 * len(z):
            break
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2) * len(z)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-10 and _cross_entropy(design @ (at - size * step), target) > loss:
            size /= 2
        at = at - size * step
        loss = _cross_entropy(design @ at, target)
    return float(at[0]), float(at[1])


def _cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0.0, logits) - target * logits).sum())
