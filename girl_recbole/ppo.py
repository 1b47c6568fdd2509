"""PPO for a generator of JDs: GIRL's third stage (Zheng et al. 2023, arXiv:2307.02157, section IV-C, Algorithm 1).

One iteration, over ``ppo_batch_size`` seekers whose CVs C are all that is read of them:

    sample     J ~ actor(. | C, T) at temperature ``rl_temperature`` from the whole vocabulary, until EOS or
               ``max_jd_tokens``; log p_old of each token is kept as it is drawn: no sequence is read again for it
    score      U(C, J) and whatever else ``rewards`` weighs (rewards.py), cut to +-``ppo_reward_clip``, less
               ``no_eos_penalty`` where the limit cut the JD
    reference  log p_SFT of each token, KL (Eq. 3)          reward  r (Eq. 4)
    critic     v = U_c(C, empty); advantage a = r - v (Eq. 5), whitened over the batch
    learn      ``ppo_epochs`` times over the batch in minibatches: actor by Eq. (6), critic by Eq. (8), each with an
               optimiser of its own

The equations, how we read them and what is printed are in policy_gradient.py; ``ppo_mode`` chooses between our reading
(``girl``), token-level PPO (``token``) and the printed Eqs. (3) and (6) (``strict_paper``, with the minus that descent
needs). Algorithm 1's "discounted rewards" have no discount in the equations, and its K is not used anywhere: here it
is ``ppo_iterations``. Tokens are those that were sampled, the stop token included. A first token that would end the JD
is drawn again (llm.py), the one place where a sample is not the policy's own.

Which weights there are. In full: the actor, a frozen copy (the reference), the reward model, the critic that began as
its copy. With LoRA (``lora_rank`` > 0): one base, whose adapter is the actor and which without it is the reference;
and one reward model, whose adapter and head are the critic.

Everything random is a function of (seed, iteration): the sampled tokens (Philox, llm.py), the order of the seekers,
the minibatches. There is no dropout: all log-probabilities of a token are those of one network. So a checkpoint holds
weights, optimisers, schedulers, lambda and the log, and a run that was killed ends with the same bits as one that was
not (on a CPU). With `accelerate launch` each process samples its share of the seekers; rewards, advantages and
minibatches are those of one process.

Output: ``<saved_folder>/NAME/<generator>/`` as from `girl sft`, with log.jsonl (a line an iteration), curves.html and
samples.jsonl.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import accelerate.utils
import numpy as np
import torch
import transformers
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm

from girl_recbole import llm, memory
from girl_recbole import policy_gradient as pg
from girl_recbole.alignment import (
    SeekerCV,
    load_start,
    read_seekers,
    save_aligned,
    settings_of_start,
    trained_already,
    true_match_watch,
)
from girl_recbole.atomic import DatasetFiles
from girl_recbole.critic import Critic, make_critic
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.generate import check_language_model, check_least, claim, cv_room, generator_folder
from girl_recbole.llm import LanguageModel
from girl_recbole.manifest import file_hash, text_hash
from girl_recbole.prompts import Prompt
from girl_recbole.reward import RewardModel, load_reward_model, tokenizer_hash, untrained
from girl_recbole.rewards import Rewards, make_rewards
from girl_recbole.trainers import this_process, write_lines

__all__ = ["PPO", "PPOConfig", "train", "trained_with"]

Watch = Callable[[Sequence[str], Sequence[str]], dict[str, float]]

log = logging.getLogger(__name__)

MODES = ("girl", "token", "strict_paper")
_REPORTED = ("iterations", "seekers", "cvs_cut", "reward_first", "reward_last", "kl_last", "samples")


@dataclass(frozen=True)
class PPOConfig:
    """Keys and meanings: properties/overall.yaml, sections "Reinforcement learning" and "PPO"."""

    seed: int
    generator: str
    start_generator: str
    reward_model: str
    saved_folder: str
    lm_dtype: str
    prompt_language: str
    max_cv_tokens: int
    max_jd_tokens: int
    temperature: float
    top_p: float
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str
    gradient_checkpointing: bool
    gen_batch_size: int
    rl_stages: tuple | str
    rl_temperature: float
    no_eos_penalty: float
    rewards: dict
    retrieval_search: str
    length_words: list
    faithfulness_terms: str | None
    reward_batch: int
    encoder: str
    max_text_tokens: int | None
    text_windows: int
    encoder_batch_tokens: int | None
    encoder_precision: str
    ppo_mode: str
    ppo_iterations: int
    ppo_batch_size: int
    ppo_minibatch: int
    ppo_micro_batch: int
    ppo_epochs: int
    ppo_learning_rate: float
    ppo_critic_learning_rate: float
    ppo_warmup: int
    ppo_critic_warmup: int
    ppo_clip: float
    ppo_kl_estimator: str
    ppo_kl_coef: float
    ppo_kl_target: float | None
    ppo_max_kl: float
    ppo_step_kl: float | None
    ppo_reward_clip: float | None
    ppo_whiten: bool
    ppo_gamma: float
    ppo_lambda: float
    ppo_max_grad_norm: float
    ppo_save_iterations: int
    ppo_sample_jds: int


def trained_with(files: DatasetFiles, config: PPOConfig) -> dict[str, Any]:
    """What stands where the user says nothing: the limits of the start generator, and ``ppo`` as the name."""
    return settings_of_start(files, config) | {"generator": "ppo"}


# ---------------------------------------------------------------------------------------------------------- rollouts


@dataclass
class Rollout:
    """One JD that the actor sampled, and what is known of it. Token lists have one entry a token, EOS included."""

    user: str
    prompt: list[int]
    tokens: list[int]
    ended: bool
    text: str
    old: list[float]
    ref: list[float]
    parts: dict[str, float]
    score: float
    values: list[float]  # one (girl), or one a token (token)


class _Clock:
    """Seconds spent in each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin


class PPO:
    """The state of a run: actor, reference, critic, optimisers, lambda, log. :meth:`iterate` is one iteration.

    ``seekers``: the CVs to learn from, with their prompts as token ids. ``rewards``: called with ids, CVs, JDs and
    whether each ended by itself; while it is, the weights that it may share with ``critic`` are the reward model's.
    ``watch``: more values for the log, which nothing learns from.
    """

    def __init__(
        self,
        lm: LanguageModel,
        critic: Critic,
        rewards: Rewards,
        seekers: Sequence[SeekerCV],
        prompts: Sequence[list[int]],
        config: PPOConfig,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
        self.lm, self.rewards, self.seekers, self.prompts, self.config = lm, rewards, seekers, prompts, config
        mixed = "bf16" if config.lm_dtype == "bf16" else "no"
        self.accelerator = accelerate.Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed)
        self.is_lora = config.lora_rank > 0
        if self.is_lora:
            import peft

            torch.manual_seed(config.seed)
            lora = llm.lora_config(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
            lm.model = peft.get_peft_model(lm.model, lora)
            self.reference = lm.model
        else:
            self.reference = copy.deepcopy(lm.model).eval().requires_grad_(False)
            lm.model.requires_grad_(True)
        for model in (lm.model, critic):
            _without_dropout(model)
        if config.gradient_checkpointing:
            for model in (lm.model, critic.network):
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
        critic.to(lm.device)
        optimisers = [
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, betas=(0.9, 0.95),
                              weight_decay=0.0)
            for model, rate in ((lm.model, config.ppo_learning_rate), (critic, config.ppo_critic_learning_rate))
        ]  # fmt: skip
        self.actor, self.critic, *self.optimisers = self.accelerator.prepare(lm.model, critic, *optimisers)
        steps = math.ceil(config.ppo_batch_size / config.ppo_minibatch) * config.ppo_epochs * config.ppo_warmup
        self.schedulers = [
            transformers.get_constant_schedule_with_warmup(optimiser.optimizer, steps) for optimiser in self.optimisers
        ]
        self.kl_coef, self.iteration, self.history = config.ppo_kl_coef, 0, []

    # ------------------------------------------------------------------------------------------------ one iteration

    def iterate(self) -> dict[str, Any]:
        """Sample, score, learn; returns the iteration's line of the log and appends it to ``history``."""
        begin = time.perf_counter()
        clock = _Clock()
        torch.manual_seed(int(np.random.SeedSequence((self.config.seed, self.iteration)).generate_state(1)[0]))
        batch = self._rollouts(self._chosen(), clock)
        self._check_rollouts(batch)
        reward, advantages, returns = self._targets(batch)
        described = _describe(batch, reward, returns)
        if described["kl_k3"] > self.config.ppo_max_kl:
            raise DataError(
                f"iteration {self.iteration}: the mean KL to {self.config.start_generator} is "
                f"{described['kl_k3']:.2f} nats a token, more than ppo_max_kl {self.config.ppo_max_kl}: the generator "
                f"has left the language it was taught. Raise ppo_kl_coef or lower ppo_learning_rate; to save what was "
                f"learned before, run the same command with ppo_iterations at most {self.iteration}."
            )
        with clock("update"):
            learned = self._learn(batch, advantages, returns, clock)
        line = {
            "iteration": self.iteration,
            **described,
            **(self.watch([r.user for r in batch], [r.text for r in batch]) if self.watch else {}),
            "kl_coef": self.kl_coef,
            **learned,
            "samples": [{"user_id": r.user, "jd": r.text, "score": r.score} for r in batch[:2]],
            "time_iteration_s": time.perf_counter() - begin,
            **{f"time_{phase}_s": seconds for phase, seconds in clock.seconds.items()},
        }
        line["time_update_s"] -= line.get("time_critic_update_s", 0.0)
        if self.config.ppo_kl_target:
            self.kl_coef = pg.adapted_coefficient(self.kl_coef, line["kl_k3"], self.config.ppo_kl_target)
        self.iteration += 1
        self.history.append(line)
        return line

    def _chosen(self) -> list[int]:
        """The seekers (rows) of this iteration: a new random order each time all have had their turn."""
        size, count = self.config.ppo_batch_size, len(self.seekers)
        rows: list[int] = []
        place = self.iteration * size
        while len(rows) < size:
            turn, start = divmod(place + len(rows), count)
            order = np.random.default_rng((self.config.seed, turn)).permutation(count)
            rows += order[start : start + size - len(rows)].tolist()
        return rows

    def _rollouts(self, rows: list[int], clock: _Clock) -> list[Rollout]:
        """The JDs of the seekers ``rows``, sampled and scored by all processes together, in the order of ``rows``."""
        world = self.accelerator.num_processes
        mine = list(range(self.accelerator.process_index, len(rows), world))
        seekers = [self.seekers[rows[i]] for i in mine]
        prompts = [self.prompts[rows[i]] for i in mine]
        with clock("rollout"):
            numbers = [self.iteration * self.config.ppo_batch_size + i for i in mine]
            sampled = self._sample(seekers, prompts, numbers)
        tokens = [s.ids + [s.stop] * s.ended for s in sampled]
        texts = [self.lm.tokenizer.decode(s.ids, skip_special_tokens=True).strip() for s in sampled]
        ended = [s.ended for s in sampled]
        critic = self.accelerator.unwrap_model(self.critic).eval()
        with clock("reward"), critic.frozen():
            scored = self.rewards([s.user for s in seekers], [s.cv for s in seekers], texts, ended)
        with clock("reference"):
            ref = self._reference(prompts, tokens)
        with clock("critic"):
            values = self._values(critic, prompts, tokens)
        own = [
            (
                i,
                Rollout(
                    seekers[k].user, prompts[k], tokens[k], ended[k], texts[k], sampled[k].log_probs, ref[k],
                    {name: float(part[k]) for name, part in scored.parts.items()}, float(scored.total[k]), values[k],
                ),
            )
            for k, i in enumerate(mine)
        ]  # fmt: skip
        everyone = accelerate.utils.gather_object(own) if world > 1 else own
        return [rollout for _, rollout in sorted(everyone, key=lambda pair: pair[0])]

    def _sample(self, seekers: list[SeekerCV], prompts: list[list[int]], numbers: list[int]) -> list[llm.Sampled]:
        """A JD each; ``numbers`` counts the run's samples, so that no two of a seeker are drawn alike."""
        config = self.config
        self.lm.model.eval()
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        done: dict[int, llm.Sampled] = {}
        for start in range(0, len(order), config.gen_batch_size):
            part = order[start : start + config.gen_batch_size]
            keys = [[llm.sample_key(config.seed, seekers[i].cv, numbers[i])] for i in part]
            sampled = llm.sample(
                self.lm, [prompts[i] for i in part], keys, max_new_tokens=config.max_jd_tokens,
                temperature=config.rl_temperature, top_p=1.0, log_probs=True,
            )  # fmt: skip
            done.update({i: row[0] for i, row in zip(part, sampled, strict=True)})
        return [done[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _reference(self, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        """log p_SFT of every sampled token."""
        done: dict[int, list[float]] = {}
        adapter_off = self.reference.disable_adapter() if self.is_lora else contextlib.nullcontext()
        with adapter_off, self.accelerator.autocast():  # computed as the actor's are
            for part in _by_length(prompts, tokens, self.config.ppo_micro_batch):
                logp, mask = llm.continuation_log_probs(
                    self.reference, [prompts[i] for i in part], [tokens[i] for i in part],
                    self.lm.tokenizer.pad_token_id, self.config.rl_temperature,
                )  # fmt: skip
                for i, row, real in zip(part, logp, mask, strict=True):
                    done[i] = row[real].tolist()
        return [done[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _values(self, critic: Critic, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        done: dict[int, list[float]] = {}
        for part in _by_length(prompts, tokens, self.config.ppo_micro_batch):
            values = self._criticise(critic, [prompts[i] for i in part], [tokens[i] for i in part])
            for i, row in zip(part, values, strict=True):
                done[i] = row[: len(tokens[i])].tolist() if row.dim() else [row.item()]
        return [done[i] for i in range(len(prompts))]

    def _criticise(self, critic: Any, prompts: Sequence[list[int]], tokens: Sequence[list[int]]) -> torch.Tensor:
        """Eq. (5)'s U_c(C, empty), (B,); in mode ``token`` the value before each token, (B, T)."""
        pad, device = self.lm.tokenizer.pad_token_id, self.lm.device
        each = self.config.ppo_mode == "token"
        empty = [self.lm.tokenizer.eos_token_id]
        rows = [[*p, *t[:-1]] if each else [*p, *empty] for p, t in zip(prompts, tokens, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        values = critic(ids, mask, every_token=each)
        if not each:
            return values
        length = max(map(len, tokens))
        places = torch.tensor([len(p) - 1 for p in prompts], device=device)[:, None] + torch.arange(
            length, device=device
        )
        return values.gather(1, places.clamp(max=width - 1))

    def _check_rollouts(self, batch: list[Rollout]) -> None:
        """Errors that must stop a run before it learns from them."""
        where = f"iteration {self.iteration}"
        if not any(r.ended for r in batch):
            raise DataError(
                f"{where}: none of {len(batch)} JDs ended by EOS within max_jd_tokens {self.config.max_jd_tokens} "
                f"({some_of([r.user for r in batch])}). Was the generator trained with EOS (`girl sft`)? Else raise "
                f"max_jd_tokens or no_eos_penalty."
            )
        broken = [r.user for r in batch if not math.isfinite(r.score) or not all(map(math.isfinite, r.old + r.ref))]
        if broken:
            raise DataError(
                f"{where}: {len(broken)} of {len(batch)} JDs have a reward or log-probabilities that are no numbers "
                f"({some_of(broken)}). Lower ppo_learning_rate, or look into the reward model."
            )

    # ----------------------------------------------------------------------------------------------------- learning

    def _targets(self, batch: list[Rollout]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The reward of each JD (N,); advantages and returns: (N,) each, or (N, T) in mode ``token``."""
        config = self.config
        score = torch.tensor([r.score for r in batch], dtype=torch.float32)
        if config.ppo_reward_clip is not None:
            score = score.clamp(-config.ppo_reward_clip, config.ppo_reward_clip)
        score = score - config.no_eos_penalty * torch.tensor([not r.ended for r in batch])
        old, mask = _padded([r.old for r in batch])
        ref, _ = _padded([r.ref for r in batch])
        estimator = "printed" if config.ppo_mode == "strict_paper" else config.ppo_kl_estimator
        terms = pg.kl_terms(old, ref, estimator)
        if config.ppo_mode == "token":
            rewards = pg.token_rewards(score, terms, mask, self.kl_coef)
            values, _ = _padded([r.values for r in batch])
            advantages, returns = pg.gae(rewards, values, mask, config.ppo_gamma, config.ppo_lambda)
            return rewards.sum(1), pg.whiten(advantages, mask) if config.ppo_whiten else advantages, returns
        reward = pg.penalised_reward(score, pg.mean_over_tokens(terms, mask), self.kl_coef)  # Eq. (4)
        advantages = reward - torch.tensor([r.values[0] for r in batch])  # Eq. (5)
        return reward, pg.whiten(advantages) if config.ppo_whiten else advantages, reward

    def _learn(
        self, batch: list[Rollout], advantages: torch.Tensor, returns: torch.Tensor, clock: _Clock
    ) -> dict[str, float]:
        """The inner epochs; returns the means of what they report."""
        config = self.config
        random = np.random.default_rng((config.seed, self.iteration, 1))
        reports: list[dict[str, float]] = []
        steps = 0
        for epoch in range(config.ppo_epochs):
            order = random.permutation(len(batch))
            for start in range(0, len(order), config.ppo_minibatch):
                rows = order[start : start + config.ppo_minibatch].tolist()
                report = self._step(batch, rows, advantages, returns, clock)
                reports.append(report)
                steps += 1
                bad = [key for key, value in report.items() if not math.isfinite(value)]
                if bad:
                    raise DataError(
                        f"iteration {self.iteration}, epoch {epoch}: {', '.join(bad)} is no number; seekers of the "
                        f"step: {some_of([batch[i].user for i in rows])}. Lower ppo_learning_rate."
                    )
                if config.ppo_step_kl and report["step_kl"] > config.ppo_step_kl:
                    break
            else:
                continue
            break
        first = {"ratio_first_step": reports[0]["ratio"]}
        means = {key: float(np.mean([report[key] for report in reports])) for key in reports[0] if key != "ratio"}
        return means | first | {"optimiser_steps": steps, "learning_rate": self.schedulers[0].get_last_lr()[0]}

    def _step(
        self, batch: list[Rollout], rows: list[int], advantages: torch.Tensor, returns: torch.Tensor, clock: _Clock
    ) -> dict[str, float]:
        """One step of both optimisers on the JDs ``rows``, which the processes share, in micro-batches."""
        config, device, world = self.config, self.lm.device, self.accelerator.num_processes
        self.actor.train()
        self.critic.train()
        mine = rows[self.accelerator.process_index :: world]
        lists = [batch[i].prompt for i in mine], [batch[i].tokens for i in mine]
        parts = [[mine[i] for i in part] for part in _by_length(*lists, config.ppo_micro_batch)]
        warming_up = self.iteration < config.ppo_critic_warmup
        tokens = sum(len(batch[i].tokens) for i in rows)
        sums = torch.zeros(6, device=device)  # actor loss, critic loss, clipped, ratio, step KL, tokens
        rounds = math.ceil(math.ceil(len(rows) / world) / config.ppo_micro_batch)
        for number in range(rounds):
            part = parts[number] if number < len(parts) else []
            with contextlib.ExitStack() as stack:
                if number + 1 < rounds:
                    stack.enter_context(self.accelerator.no_sync(self.actor))
                    stack.enter_context(self.accelerator.no_sync(self.critic))
                weight = 1.0 if part else 0.0  # a process without a share still takes part in the exchange of gradients
                chosen = part or [rows[0]]
                prompts, texts = [batch[i].prompt for i in chosen], [batch[i].tokens for i in chosen]
                if not warming_up:
                    logp, mask = llm.continuation_log_probs(
                        self.actor, prompts, texts, self.lm.tokenizer.pad_token_id, config.rl_temperature
                    )
                    old, ref = (_padded([getattr(batch[i], n) for i in chosen])[0].to(device) for n in ("old", "ref"))
                    a = advantages[chosen].to(device)
                    a = a[:, : logp.shape[1]] if a.dim() == 2 else a
                    denominator = ref if config.ppo_mode == "strict_paper" else old
                    terms = pg.actor_terms(logp, denominator, a, config.ppo_clip)
                    if config.ppo_mode == "token":
                        loss = -(terms * mask).sum() / tokens
                    else:
                        loss = -pg.mean_over_tokens(terms, mask).sum() / len(rows)  # Eq. (6), this process's share
                    self.accelerator.backward(weight * world * loss)
                    with torch.no_grad():
                        sums[0] += weight * loss
                        sums[2] += weight * pg.clip_fraction(logp, denominator, mask, config.ppo_clip) * mask.sum()
                        sums[3] += weight * (torch.exp(logp - old) * mask).sum()
                        sums[4] += weight * (pg.kl_terms(old, logp, "k3") * mask).sum()
                        sums[5] += weight * mask.sum()
                with clock("critic_update"):
                    values = self._criticise(self.critic, prompts, texts)
                    target = returns[chosen].to(device)
                    if config.ppo_mode == "token":
                        target = target[:, : values.shape[1]]
                        real = _padded([batch[i].old for i in chosen])[1].to(device)
                        loss = ((target - values).square() * real).sum() / tokens
                    else:
                        loss = (target - values).square().sum() / len(rows)  # Eq. (8), this process's share
                    self.accelerator.backward(weight * world * loss)
                    sums[1] += weight * loss.detach()
        norms = []
        for model, optimiser, schedule in zip((self.actor, self.critic), self.optimisers, self.schedulers, strict=True):
            trained = [p for p in model.parameters() if p.grad is not None]
            norms.append(0.0)
            if trained:
                norms[-1] = float(self.accelerator.clip_grad_norm_(trained, config.ppo_max_grad_norm))
                if math.isfinite(norms[-1]):
                    optimiser.step()
                    schedule.step()
            optimiser.zero_grad()
        sums = self.accelerator.reduce(sums, "sum").tolist()
        count = sums[5] or float("nan")
        report = {"critic_loss": sums[1], "critic_grad_norm": norms[1]}
        if warming_up:
            return report | {"actor_loss": 0.0, "clip_fraction": 0.0, "ratio": 1.0, "step_kl": 0.0, "grad_norm": 0.0}
        return report | {
            "actor_loss": sums[0], "clip_fraction": sums[2] / count, "ratio": sums[3] / count,
            "step_kl": sums[4] / count, "grad_norm": norms[0],
        }  # fmt: skip

    # -------------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on and the settings do not give."""
        actor, critic = self.accelerator.unwrap_model(self.actor), self.accelerator.unwrap_model(self.critic)
        return {
            "actor": {name: p.detach() for name, p in actor.named_parameters() if p.requires_grad},
            "critic": {name: p.detach() for name, p in critic.named_parameters() if p.requires_grad},
            "optimisers": [optimiser.optimizer.state_dict() for optimiser in self.optimisers],
            "schedulers": [schedule.state_dict() for schedule in self.schedulers],
            "kl_coef": self.kl_coef,
            "iteration": self.iteration,
        }

    def restore(self, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        for model, name in ((self.actor, "actor"), (self.critic, "critic")):
            own = dict(self.accelerator.unwrap_model(model).named_parameters())
            with torch.no_grad():
                for key, tensor in state[name].items():
                    own[key].copy_(tensor)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedulers, state["schedulers"], strict=True):
            schedule.load_state_dict(saved)
        self.kl_coef, self.iteration, self.history = state["kl_coef"], state["iteration"], history


def _without_dropout(model: torch.nn.Module) -> None:
    """All log-probabilities of a token are those of one network: the ratio is 1 at the first step, on each device."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _padded(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T) float32 with zeros after each row's end, and the mask of what is real."""
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])
    return values, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def _by_length(prompts: Sequence[list[int]], tokens: Sequence[list[int]], size: int) -> list[list[int]]:
    """Batches of positions, of like lengths, the longest first, so that memory is tried at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(tokens[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _describe(batch: list[Rollout], reward: torch.Tensor, returns: torch.Tensor) -> dict[str, Any]:
    """What an iteration's JDs are like, before anything is learned from them."""
    old, mask = _padded([r.old for r in batch])
    ref, _ = _padded([r.ref for r in batch])
    values, _ = _padded([r.values for r in batch])
    values, returns = (values[mask], returns[mask]) if returns.dim() == 2 else (values[:, 0], returns)
    explained = pg.explained_variance(values, returns)
    kinds = {
        f"kl_{name}": pg.mean_over_tokens(pg.kl_terms(old, ref, name), mask).mean().item() for name in pg.KL_ESTIMATORS
    }
    return {
        "jds": len(batch),
        "reward": reward.mean().item(),
        "score": float(np.mean([r.score for r in batch])),
        "score_sd": float(np.std([r.score for r in batch])),
        **{f"reward_{name}": float(np.mean([r.parts[name] for r in batch])) for name in batch[0].parts},
        **kinds,
        "kl_sequence": ((old - ref) * mask).sum(1).mean().item(),
        "entropy": -pg.mean_over_tokens(old, mask).mean().item(),  # of the sampling distribution, by its own samples
        "explained_variance": explained if math.isfinite(explained) else None,
        "jd_tokens": float(np.mean([len(r.tokens) for r in batch])),
        "without_eos": float(np.mean([not r.ended for r in batch])),
        "distinct_1": distinct([r.tokens for r in batch], 1),
        "distinct_2": distinct([r.tokens for r in batch], 2),
        "distinct_jds": len({r.text for r in batch}) / len(batch),
    }


def distinct(token_lists: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of the texts (Li et al. 2016): near 0 where all texts are alike."""
    grams = [tuple(row[i : i + n]) for row in token_lists for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


# ----------------------------------------------------------------------------------------------------------- the stage


def train(files: DatasetFiles, config: PPOConfig) -> dict[str, Any]:
    """Align ``start_generator`` with the rewards and save it as ``generator``; returns a report.

    Raises ``DataError`` for seekers of rl in valid or test, for a reward model with another tokenizer or prompt, for a
    run that left its language or met numbers that are none (the last good checkpoint stays).
    """
    begin = time.monotonic()
    _check(config)
    if any(parse_flag_from_env(f"ACCELERATE_USE_{kind}") for kind in ("FSDP", "DEEPSPEED")):
        raise ConfigError(
            "girl ppo samples with whole weights on each device: it runs data-parallel "
            "(properties/accelerate/ddp.yaml), not with FSDP or DeepSpeed. Train an adapter (lora_rank) where the "
            "weights do not fit twice."
        )
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    work = folder.with_name(folder.name + ".checkpoints")
    settings = dataclasses.asdict(config)
    inputs = [path for path in (files.stage("rl"), files.stage("sft"), files.udoc) if path.exists()]
    this_process()  # each process has its own device from here on
    seekers, left_out = read_seekers(files, config.rl_stages)
    # full training holds float32 weights and computes in lm_dtype
    held = config if config.lora_rank else dataclasses.replace(config, lm_dtype="fp32")
    lm, prompt = load_start(files, held)
    if "model" in config.rewards:
        reward_model = load_reward_model(files, held, merge=True)
        _check_same_language(reward_model, lm, prompt, config)
    else:  # the critic has no judge to start from: the start's own body, and a new head
        reward_model = untrained(load_start(files, held)[0], prompt, config)
    rewards = make_rewards(files, config, reward_model)  # one set of weights for reward and critic
    rewards.check(seeker.user for seeker in seekers)
    made_from = {
        "start": lm.fingerprint, "rewards": rewards.fingerprint, "critic": reward_model.fingerprint,
        "inputs": {path.name: file_hash(path) for path in inputs},
        "seekers": text_hash(*(text for seeker in seekers for text in (seeker.user, seeker.cv))),
    }  # fmt: skip
    if done := trained_already(folder, work, config, made_from, _REPORTED):
        return done
    room = min(lm.context, reward_model.context) - lm.context  # the critic reads the actor's tokens
    limit = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens) + room)
    encoded = [prompt.encode(lm.tokenizer, seeker.cv, limit) for seeker in seekers]
    _check_memory(config, lm, reward_model, [ids for ids, _ in encoded])
    lora = (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets) if config.lora_rank else None
    ppo = PPO(
        lm,
        make_critic(reward_model, lora, config.seed),
        rewards,
        seekers,
        [ids for ids, _ in encoded],
        config,
        true_match_watch(files),
    )
    if ppo.accelerator.is_main_process:
        free = ("ppo_iterations", "ppo_save_iterations", "ppo_sample_jds", "gen_batch_size", "reward_batch")
        fixed = {key: value for key, value in settings.items() if key not in free} | made_from
        claim(work, fixed, len(_checkpoints(work)), "checkpoints", "girl ppo")
    ppo.accelerator.wait_for_everyone()
    _resume(ppo, work, config.ppo_iterations)
    _loop(ppo, work, config)
    if not ppo.accelerator.is_main_process:
        return {"folder": str(folder)}
    actor = ppo.accelerator.unwrap_model(ppo.actor)
    report = {
        "iterations": ppo.iteration,
        "seekers": len(seekers),
        "seekers_in_valid_or_test_left_out": left_out,
        "cvs_cut": sum(cut > 0 for _, cut in encoded),
        "reward_first": ppo.history[0]["reward"],
        "reward_last": ppo.history[-1]["reward"],
        "kl_last": ppo.history[-1]["kl_k3"],
    }
    return save_aligned(
        folder, work, actor, lm, prompt, files=files, config=config, method="ppo", seekers=seekers, began=begin,
        history=ppo.history, report=report, inputs=inputs, made_from=made_from,
    )  # fmt: skip


def _loop(ppo: PPO, work: Path, config: PPOConfig) -> None:
    """Iterate to the end, with a checkpoint every ``ppo_save_iterations``."""
    hidden = not ppo.accelerator.is_main_process
    with tqdm(
        total=config.ppo_iterations, initial=ppo.iteration, desc=config.generator, unit="it", disable=hidden
    ) as bar:
        while ppo.iteration < config.ppo_iterations:
            try:
                line = ppo.iterate()
            except DataError as error:
                raise DataError(
                    f"{error} Checkpoints are in {work}; delete it to begin anew with other settings."
                ) from None
            bar.update()
            bar.set_postfix(reward=f"{line['reward']:.3f}", kl=f"{line['kl_k3']:.3f}", cut=f"{line['without_eos']:.2f}")
            if ppo.iteration % config.ppo_save_iterations == 0 or ppo.iteration == config.ppo_iterations:
                _save_checkpoint(ppo, work)


def _checkpoints(work: Path) -> list[Path]:
    """Whole checkpoints, oldest first: a folder has its name only once it is whole."""
    return sorted(work.glob("iteration-??????"))


def _save_checkpoint(ppo: PPO, work: Path) -> None:
    if ppo.accelerator.is_main_process:
        whole = work / f"iteration-{ppo.iteration:06d}"
        partial = whole.with_name(whole.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(ppo.state(), partial / "state.pt")
        write_lines(partial / "log.jsonl", ppo.history)
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(partial, whole)
        for path in _checkpoints(work):  # the last two up to here; later ones are of a longer run
            if not ppo.iteration - 2 * ppo.config.ppo_save_iterations < int(path.name.split("-")[1]) <= ppo.iteration:
                shutil.rmtree(path)
    ppo.accelerator.wait_for_everyone()


def _resume(ppo: PPO, work: Path, iterations: int) -> None:
    """Go on from the newest checkpoint that is not past the last iteration wanted."""
    whole = _checkpoints(work)
    usable = [path for path in whole if int(path.name.split("-")[1]) <= iterations]
    if not usable:
        if whole:
            log.warning("%s: its checkpoints are past iteration %d; beginning anew", work, iterations)
        return
    log.info("going on from %s", usable[-1])
    state = torch.load(usable[-1] / "state.pt", map_location="cpu", weights_only=True)
    lines = (usable[-1] / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ppo.restore(state, [json.loads(line) for line in lines])


def _check(config: PPOConfig) -> None:
    check_language_model(config)
    check_least(
        config, ppo_iterations=1, ppo_batch_size=2, ppo_minibatch=1, ppo_micro_batch=1, ppo_epochs=1, ppo_warmup=0,
        ppo_critic_warmup=0, ppo_kl_coef=0, ppo_gamma=0, ppo_lambda=0, ppo_save_iterations=1, ppo_sample_jds=0,
        gen_batch_size=1, lora_rank=0, no_eos_penalty=0,
    )  # fmt: skip
    for key in (
        "rl_temperature", "ppo_learning_rate", "ppo_critic_learning_rate", "ppo_max_kl", "ppo_max_grad_norm",
        "ppo_clip", "ppo_kl_target", "ppo_step_kl", "ppo_reward_clip",
    ):  # fmt: skip
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"{key}: {value}; more than 0 is required.")
    if config.lora_rank:
        check_least(config, lora_alpha=1)
    for key in ("ppo_gamma", "ppo_lambda"):
        if getattr(config, key) > 1:
            raise ConfigError(f"{key}: {getattr(config, key)}; at most 1 is required.")
    if config.ppo_kl_target and not config.ppo_kl_coef:
        raise ConfigError("ppo_kl_target: a ppo_kl_coef of 0 can never be adapted; give it a value above 0.")
    if config.generator == config.reward_model:
        raise ConfigError(f"generator: {config.generator!r} is the reward model's name; give it another.")
    if config.ppo_mode not in MODES:
        raise ConfigError(f"ppo_mode: {config.ppo_mode!r} is unknown; known: {', '.join(MODES)}.")
    if config.ppo_kl_estimator not in pg.KL_ESTIMATORS:
        known = ", ".join(pg.KL_ESTIMATORS)
        raise ConfigError(f"ppo_kl_estimator: {config.ppo_kl_estimator!r} is unknown; known: {known}.")
    if not config.ppo_clip < 1:
        raise ConfigError(f"ppo_clip: {config.ppo_clip}; less than 1 is required.")
    if config.ppo_critic_warmup >= config.ppo_iterations:
        raise ConfigError(
            f"ppo_critic_warmup: {config.ppo_critic_warmup} of {config.ppo_iterations} iterations leave none in which "
            f"the generator learns; lower it."
        )
    if config.lm_dtype == "fp16":
        raise ConfigError("lm_dtype: fp16 would need scaled losses; PPO runs in fp32 or bf16.")


def _check_memory(config: PPOConfig, lm: LanguageModel, reward_model: RewardModel, prompts: list[list[int]]) -> None:
    """Raise ``ConfigError`` where the run cannot fit into the memory."""
    process = this_process()
    estimate = memory.ppo_estimate(
        lm.model.config, reward_model.model.config, dtype=config.lm_dtype, micro_batch=config.ppo_micro_batch,
        gen_batch=min(config.gen_batch_size, config.ppo_batch_size),
        reward_batch=min(config.reward_batch, config.ppo_batch_size), prompt_tokens=max(map(len, prompts)),
        jd_tokens=config.max_jd_tokens, lora_rank=config.lora_rank, lora_targets=config.lora_targets,
        gradient_checkpointing=config.gradient_checkpointing, critic_reads_jds=config.ppo_mode == "token",
        **memory.sharing(process),
    )  # fmt: skip
    lower = f"ppo_micro_batch ({config.ppo_micro_batch}), gen_batch_size or max_jd_tokens"
    lower += "" if config.gradient_checkpointing else ", or set gradient_checkpointing"
    lower += "" if config.lora_rank else ", or train an adapter (lora_rank)"
    memory.check(
        estimate, process.device, lower, loaded=[lm.model, reward_model.model], processes=process.num_processes
    )


def _check_same_language(reward_model: RewardModel, lm: LanguageModel, prompt: Prompt, config: PPOConfig) -> None:
    """The critic is the reward model and reads the actor's tokens: both need one tokenizer and one prompt."""
    again = f"Run `girl reward` with start_generator: {config.start_generator}."
    if reward_model.prompt.id != prompt.id:
        raise DataError(
            f"{reward_model.name}: trained with prompt {reward_model.prompt.id}, {lm.name} with {prompt.id}. {again}"
        )
    if tokenizer_hash(lm.tokenizer) != tokenizer_hash(reward_model.tokenizer):
        raise DataError(
            f"{reward_model.name}: its tokenizer is not that of {lm.name} ({len(reward_model.tokenizer)} and "
            f"{len(lm.tokenizer)} tokens), but the critic reads the actor's tokens. {again}"
        )
