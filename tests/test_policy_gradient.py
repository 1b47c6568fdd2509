"""The arithmetic of the alignment stage, by hand and on policies whose every sequence can be listed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girl_recbole import policy_gradient as pg

ON = torch.ones(1, 2, dtype=torch.bool)


def logs(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


# ------------------------------------------------------------------------------------------------------------- Eq. 3


def test_kl_terms_by_hand():
    """p_actor / p_SFT is 1/2, then 2: d = -ln 2, ln 2."""
    actor, ref = logs([0.25, 0.5]), logs([0.5, 0.25])
    ln2 = math.log(2)
    expected = {"k1": [-ln2, ln2], "k3": [2 - 1 - ln2, 0.5 - 1 + ln2], "printed": [0.5 - 1 + ln2, 2 - 1 - ln2]}
    for estimator, values in expected.items():
        assert pg.kl_terms(actor, ref, estimator)[0].tolist() == pytest.approx(values, rel=1e-12)
    with pytest.raises(ValueError, match="k1, k3, printed"):
        pg.kl_terms(actor, ref, "k2")


@pytest.mark.parametrize("seed", range(5))
def test_k3_has_the_expectation_kl_and_the_printed_form_has_not(seed):
    """A policy over 50 tokens: the expectation is a sum over all of them. The printed form gives chi^2 - KL."""
    generator = torch.Generator().manual_seed(seed)
    actor, ref = (torch.log_softmax(torch.randn(50, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    p = actor.exp()
    kl = (p * (actor - ref)).sum().item()
    chi2 = (p**2 / ref.exp()).sum().item() - 1
    expectation = {name: (p * pg.kl_terms(actor, ref, name)).sum().item() for name in pg.KL_ESTIMATORS}
    assert expectation["k3"] == pytest.approx(kl, rel=1e-9)
    assert expectation["k1"] == pytest.approx(kl, rel=1e-9)
    assert expectation["printed"] == pytest.approx(chi2 - kl, rel=1e-9)
    assert abs(expectation["printed"] - kl) > 0.1 * kl


def test_only_k1_in_the_reward_has_the_gradient_of_the_kl():
    """The score-function gradient of E[k], E[grad log p . k], over a listed policy, against autograd of the KL."""
    ref = torch.log_softmax(torch.tensor([0.0, 0.5, -1.0, 0.2], dtype=torch.float64), 0)
    theta = torch.tensor([0.1, -0.6, -0.7, 0.9], dtype=torch.float64, requires_grad=True)
    actor = torch.log_softmax(theta, 0)
    (true,) = torch.autograd.grad((actor.exp() * (actor - ref)).sum(), theta, retain_graph=True)
    by_score = {}
    for name in pg.KL_ESTIMATORS:
        k = pg.kl_terms(actor, ref, name).detach()
        (by_score[name],) = torch.autograd.grad((actor.exp().detach() * k * actor).sum(), theta, retain_graph=True)
    assert torch.allclose(by_score["k1"], true)
    cosine = torch.nn.functional.cosine_similarity(by_score["k3"], true, dim=0)
    assert cosine < 0  # it pushes away


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_k3_and_printed_are_never_negative_and_mirror_each_other(a, b):
    actor, ref = torch.tensor([a], dtype=torch.float64), torch.tensor([b[: len(a)]], dtype=torch.float64)
    assert (pg.kl_terms(actor, ref, "k3") >= -1e-12).all()
    assert torch.allclose(pg.kl_terms(actor, ref, "k3"), pg.kl_terms(ref, actor, "printed"))


# ------------------------------------------------------------------------------------------------------ Eqs. 4 and 5


def test_penalised_reward_by_hand():
    kl = pg.mean_over_tokens(torch.tensor([[0.2, 0.4, 9.0]]), torch.tensor([[True, True, False]]))
    assert kl.item() == pytest.approx(0.3)
    assert pg.penalised_reward(torch.tensor([1.0]), kl, 0.5).item() == pytest.approx(0.85)


def test_token_rewards_put_the_score_on_the_last_real_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[1.0, 2.0, 7.0], [1.0, 1.0, 1.0]])
    rewards = pg.token_rewards(torch.tensor([10.0, 20.0]), kl, mask, 0.1)
    assert rewards.tolist() == [[pytest.approx(-0.1), pytest.approx(9.8), 0.0],
                                [pytest.approx(-0.1), pytest.approx(-0.1), pytest.approx(19.9)]]  # fmt: skip


def test_gae_by_hand():
    """gamma .5, lambda .5, r = (1, 2), V = (3, 4): delta_1 = 2 - 4, delta_0 = 1 + .5 * 4 - 3."""
    advantages, returns = pg.gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), ON, 0.5, 0.5)
    assert advantages.tolist() == [[0.0 + 0.25 * -2.0, -2.0]]
    assert returns.tolist() == [[3.0 - 0.5, 2.0]]


def test_gae_ends_at_each_jds_own_last_token():
    """With gamma = lambda = 1 an advantage is the sum of the rewards to come, less V; padding changes nothing."""
    rewards = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])
    values = torch.tensor([[0.5, 0.5, 99.0], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    advantages, returns = pg.gae(rewards, values, mask, 1.0, 1.0)
    assert advantages.tolist() == [[2.5, 1.5, 0.0], [5.5, 4.5, 2.5]]
    assert returns.tolist() == [[3.0, 2.0, 0.0], [6.0, 5.0, 3.0]]


def test_whiten_by_hand():
    assert pg.whiten(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1.0, 1.0])
    assert pg.whiten(torch.tensor([5.0])).tolist() == [0.0]
    mask = torch.tensor([[True, False], [True, True]])
    whitened = pg.whiten(torch.tensor([[1.0, 50.0], [2.0, 3.0]]), mask)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened[mask].std(correction=0).item() == pytest.approx(1, rel=1e-5)
    assert whitened[0, 1] == 0


# ------------------------------------------------------------------------------------------------------ Eqs. 6 to 8


def test_actor_loss_has_the_minus_that_the_paper_lacks():
    """A step against the gradient makes a JD of positive advantage likelier, one of negative less likely."""
    for advantage in (1.0, -1.0):
        current = logs([0.5, 0.5]).requires_grad_()
        pg.actor_loss(current, current.detach(), torch.tensor([advantage]), ON, 0.2).backward()
        step = -current.grad
        assert (torch.sign(step) == advantage).all()


def test_actor_loss_by_hand():
    """eps .2. a = 1: ratio 1.5 is cut to 1.2, .5 stays. a = -1: 1.5 stays, .5 is cut to .8."""
    current, old = logs([0.75, 0.25]), logs([0.5, 0.5])
    assert pg.actor_terms(current, old, torch.tensor([1.0]), 0.2)[0].tolist() == pytest.approx([1.2, 0.5])
    assert pg.actor_terms(current, old, torch.tensor([-1.0]), 0.2)[0].tolist() == pytest.approx([-1.5, -0.8])
    loss = pg.actor_loss(current, old, torch.tensor([1.0], dtype=torch.float64), ON, 0.2)
    assert loss.item() == pytest.approx(-0.85)
    assert pg.clip_fraction(current, old, ON, 0.2).item() == 1.0
    assert pg.clip_fraction(current, old, ON, 0.6).item() == 0.0


def test_a_long_jd_weighs_as_much_as_a_short_one():
    """The mean over JDs of means over tokens: (-1 * 1 + -1 * 3) / 2, whatever the lengths."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    old = torch.zeros(2, 3)
    assert pg.actor_loss(old, old, torch.tensor([1.0, 3.0]), mask, 0.2).item() == pytest.approx(-2.0)


def test_gradient_of_the_actor_loss_is_that_of_the_written_formula():
    """A policy over three tokens: at ratio 1 the gradient is -a (one-hot - p), beyond the clip it is 0."""
    theta = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    old = torch.log_softmax(theta.detach(), 0)[1].reshape(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    pg.actor_loss(torch.log_softmax(theta, 0)[1].reshape(1, 1), old, torch.tensor([2.0]), mask, 0.2).backward()
    p = torch.softmax(theta.detach(), 0)
    assert torch.allclose(theta.grad, -2.0 * (torch.tensor([0.0, 1.0, 0.0]) - p))
    theta.grad = None
    pg.actor_loss(torch.log_softmax(theta, 0)[1].reshape(1, 1), old - 0.5, torch.tensor([2.0]), mask, 0.2).backward()
    assert (theta.grad == 0).all()


def test_printed_ratio_differs_once_the_actor_has_moved():
    """Eq. 6 as printed divides by the SFT model: after it moved past eps nothing is learned any more."""
    sft, old = logs([0.2]), logs([0.5])
    mask = torch.ones(1, 1, dtype=torch.bool)
    grads = {}
    for name, denominator in (("ours", old), ("printed", sft)):
        current = logs([0.5]).requires_grad_()
        pg.actor_loss(current, denominator, torch.tensor([1.0]), mask, 0.2).backward()
        grads[name] = current.grad.item()
    assert grads == {"ours": pytest.approx(-1.0), "printed": 0.0}


def test_critic_loss_by_hand():
    assert pg.critic_loss(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])).item() == pytest.approx(2.5)


# --------------------------------------------------------------------------------------------------------- controls


def test_explained_variance_knows_the_perfect_the_constant_and_the_wrong_critic():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert pg.explained_variance(returns, returns) == 1.0
    assert pg.explained_variance(torch.full((3,), 9.0), returns) == pytest.approx(0.0)
    assert pg.explained_variance(-returns, returns) < 0
    assert math.isnan(pg.explained_variance(returns, torch.ones(3)))


def test_adapted_coefficient_follows_the_kl_by_at_most_two_percent():
    assert pg.adapted_coefficient(1.0, kl=0.2, target=0.2) == 1.0
    assert pg.adapted_coefficient(1.0, kl=9.0, target=0.2) == pytest.approx(1.02)
    assert pg.adapted_coefficient(1.0, kl=0.0, target=0.2) == pytest.approx(0.98)
