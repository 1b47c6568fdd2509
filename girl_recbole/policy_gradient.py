"""The arithmetic of the alignment stage: KL, rewards, advantages, losses. Pure functions of tensors, no state.

Zheng et al. 2023 (arXiv:2307.02157, section IV-C, Eqs. 3-8). A JD J = (v_1 ... v_l) was sampled for a CV C; three
log-probabilities of its tokens are kept apart: ``current`` (the actor being trained), ``old`` (the actor that sampled
it), ``ref`` (the frozen SFT generator). Shapes: (B, T) over the tokens of B JDs, with ``mask`` True on real tokens.

    Eq. (3)  KL      with d = log p_actor - log p_SFT of the sampled tokens:
                     k3       mean_t (e^-d - 1 + d), whose expectation is KL(actor | SFT)
                     k1       mean_t d, unbiased too; may be negative
                     printed  mean_t (e^d - 1 - d), the paper's CE - 1 - log CE with CE = p_actor / p_SFT and tokens
                              from the actor; its expectation is chi^2(actor | SFT) - KL(actor | SFT), not KL
                     As an estimate k3 is the best of the three, and it is what the log gives. As part of the reward, as
                     Eq. (4) has it, only k1 will do: the gradient of E_actor[k] by score function alone is
                     E[grad log p_actor . k], and that is grad KL for k1 (E[grad k1] = 0). For k3 it is about zero near
                     the start, and it punishes tokens for having become rarer, which makes them rarer still.
    Eq. (4)  reward  r = U(C, J) - lambda KL                    one number a JD
    Eq. (5)  advantage  a = r - U_c(C, empty)                   one number a JD
    Eq. (6)  actor   L = - mean_t min(rho_t a, clip(rho_t, 1 - eps, 1 + eps) a),  rho = p_current / p_old
                     printed without the minus, which gradient descent needs, and with rho = p_current / p_SFT, which
                     ties the actor to within eps of SFT for ever and weighs wrongly from the second iteration on
    Eq. (7)  clip    on the closed interval
    Eq. (8)  critic  (r - U_c(C, empty))^2

Mode ``token`` (Schulman et al. 2017, as in InstructGPT) instead gives every token its own KL penalty, the score at the
last token, and advantages by GAE (Schulman et al. 2016).
"""

from __future__ import annotations

import torch

__all__ = [
    "KL_ESTIMATORS",
    "actor_loss",
    "actor_terms",
    "adapted_coefficient",
    "clip_fraction",
    "critic_loss",
    "explained_variance",
    "gae",
    "kl_terms",
    "mean_over_tokens",
    "penalised_reward",
    "token_rewards",
    "whiten",
]

KL_ESTIMATORS = ("k1", "k3", "printed")


def mean_over_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,) mean of ``values`` (B, T) over each JD's own tokens; 0 for a JD without any."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def kl_terms(actor: torch.Tensor, ref: torch.Tensor, estimator: str) -> torch.Tensor:
    """The summands of Eq. (3), (B, T), for tokens that the actor sampled; ``estimator`` is one of KL_ESTIMATORS."""
    d = actor - ref
    if estimator == "k1":
        return d
    if estimator == "k3":
        return torch.expm1(-d) + d
    if estimator == "printed":
        return torch.expm1(d) - d
    raise ValueError(f"estimator must be one of {', '.join(KL_ESTIMATORS)}, not {estimator!r}")


def penalised_reward(score: torch.Tensor, kl: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Eq. (4): (B,) score - coefficient * KL, where ``kl`` (B,) is the mean of its terms over the JD's tokens."""
    return score - coefficient * kl


def token_rewards(score: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Mode ``token``: (B, T) -coefficient * KL term at every token, and the score (B,) added at each JD's last one."""
    rewards = -coefficient * kl * mask
    last = mask.sum(-1) - 1
    rewards[torch.arange(len(rewards), device=rewards.device), last] += score
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, (B, T) each: A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t.

    ``values[:, t]`` is V of the state before token t. After a JD's last token the value is 0: the episode is over.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    values = values * mask
    for t in range(rewards.shape[1] - 1, -1, -1):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * after - values[:, t]
        running = (delta + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def whiten(advantages: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the whole batch (over real tokens if ``mask``); one alone becomes 0."""
    chosen = advantages if mask is None else advantages[mask]
    if chosen.numel() < 2:
        return torch.zeros_like(advantages)
    scaled = (advantages - chosen.mean()) / (chosen.std(correction=0) + 1e-8)
    return scaled if mask is None else scaled * mask


def actor_terms(
    current: torch.Tensor, denominator: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """min(rho a, clip(rho) a) of Eq. (6), (B, T). ``denominator`` is the old log-probability (the printed equation has
    that of SFT); ``advantages`` (B,), the same for all tokens of a JD, or (B, T)."""
    a = advantages if advantages.dim() == 2 else advantages[:, None]
    ratio = torch.exp(current - denominator)
    return torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)  # Eq. (7) is the clamp


def actor_loss(
    current: torch.Tensor, denominator: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Eq. (6) with its minus: the mean over JDs of the mean over their tokens."""
    return -mean_over_tokens(actor_terms(current, denominator, advantages, clip), mask).mean()


def critic_loss(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Eq. (8): the mean of (r - U_c)^2; both (B,), or the chosen tokens of a batch."""
    return (returns - values).square().mean()


def clip_fraction(current: torch.Tensor, denominator: torch.Tensor, mask: torch.Tensor, clip: float) -> torch.Tensor:
    """The share of tokens whose ratio lies outside [1 - clip, 1 + clip]."""
    outside = (torch.exp(current - denominator) - 1).abs() > clip
    return (outside & mask).sum() / mask.sum()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 for a perfect critic, 0 for a constant one, below 0 for worse."""
    variance = returns.var(correction=0)
    return float("nan") if variance == 0 else float(1 - (returns - values).var(correction=0) / variance)


def adapted_coefficient(coefficient: float, kl: float, target: float) -> float:
    """lambda after an iteration whose mean KL was ``kl``: at most 2 % up or down (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + 0.1 * error)
