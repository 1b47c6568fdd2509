"""Rivals of PPO on the same seekers and rewards, through TRL: GRPO, RLOO and DPO. None of them has a critic.

C a CV, J a JD of tokens v_1 ... v_l (the stop token is the last, unless the length limit cut J), p the generator that
learns, p_old the one that sampled, p_ref the frozen start; R(C, J) the reward (rewards.py) less ``no_eos_penalty``
where J was cut; G JDs J_1 ... J_G are sampled for a CV; rho = p / p_old, clip to [1 - eps, 1 + eps].

GRPO (Shao et al. 2024, arXiv:2402.03300): the group's mean is the baseline, one ratio a token, KL in the loss
    A_i = (R_i - mean_G R) / (sd_G R + 1e-4)        k3_t = r_t - 1 - log r_t,  r_t = p_ref(v_t) / p(v_t)
    L   = - mean_i mean_t [ min(rho_t A_i, clip(rho_t) A_i) - grpo_kl_coef k3_t ]

RLOO (Ahmadian et al. 2024, arXiv:2402.14740): the others' mean is the baseline, one ratio a JD, KL in the reward
    R'_i = R_i - rloo_kl_coef sum_t log(p_old(v_t) / p_ref(v_t))        A_i = R'_i - mean_{j != i} R'_j
    L    = - mean_i min(rho_i A_i, clip(rho_i) A_i),  rho_i = p(J_i) / p_old(J_i)

DPO (Rafailov et al. 2023, arXiv:2305.18290), on pairs of a better and a worse JD of one CV, without rollouts
    L = - log sigmoid( dpo_beta [ log p(J+)/p_ref(J+) - log p(J-)/p_ref(J-) ] )
    dpo_pairs: stage        J+ matched, J- mismatched: the pairs that the reward model learns from (reward.py)
    dpo_pairs: best_of_n    ``dpo_best_of`` JDs sampled by the start for each of ``dpo_cvs`` CVs: the best and the worst
                            by R; a CV whose JDs all have one reward gives no pair

A KL coefficient means something else in each. RLOO's weighs the KL of a whole JD, the sum over its tokens. So does
GRPO's, though a mean is printed: reward and KL are both divided by l there, and the reward by its deviation. PPO's
``ppo_kl_coef`` weighs the mean over tokens against the reward of the whole JD: as much as ``ppo_kl_coef`` / l here.

Every prompt is the token ids of prompts.py, every JD the ids that were sampled (or, in a pair of the stage, encode_text
and EOS): nothing is tokenized again, and a CV that quotes control tokens stays data. JDs are sampled by llm.sample from
the whole vocabulary at ``rl_temperature``; their random numbers depend on (seed, CV, iteration, place in it) alone.
Log-probabilities are those of logits / ``rl_temperature`` (DPO: of the logits). Dropout is off, or p would differ from
p_old before anything is learned. Seekers come in the order that a generator of (seed, turn) draws.

p_ref is the start's weights: with LoRA (``lora_rank`` > 0) the model without its adapter, else a second copy.

Output: ``<saved_folder>/NAME/<generator>/`` as from `girl ppo`. Checkpoints are those of transformers' Trainer, at the
end of an iteration, so that a run that was killed ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from girl_recbole import llm
from girl_recbole.alignment import (
    SeekerCV,
    evaluation_seekers,
    load_start,
    read_seekers,
    save_aligned,
    settings_of_start,
    trained_already,
    true_match_watch,
)
from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.generate import check_language_model, check_least, claim, cv_room, generator_folder
from girl_recbole.llm import IGNORED, LanguageModel, Sampled
from girl_recbole.manifest import file_hash, text_hash
from girl_recbole.prompts import Prompt, encode_text
from girl_recbole.reward import draw_pairs, read_answers
from girl_recbole.rewards import Rewards, make_rewards
from girl_recbole.sft import hold_out
from girl_recbole.trainers import (
    LengthSampler,
    adapter,
    check_training,
    fit,
    guarded,
    last_checkpoint,
    this_process,
    training_arguments,
    write_lines,
)

__all__ = ["DPOConfig", "GRPOConfig", "RLOOConfig", "dpo", "grpo", "rloo", "trained_with"]

log = logging.getLogger(__name__)

PAIRS = ("stage", "best_of_n")
Watch = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
_REPORTED = (
    "iterations", "seekers", "pairs", "held_out_pairs", "reward_first", "reward_last", "kl_last", "eval_loss",
    "eval_accuracy", "samples",
)  # fmt: skip


@dataclass(frozen=True)
class _Config:
    """What the three share. Keys and meanings: properties/overall.yaml, "Reinforcement learning", "Rivals of PPO"."""

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


@dataclass(frozen=True)
class GRPOConfig(_Config):
    grpo_iterations: int
    grpo_cvs: int
    grpo_group: int
    grpo_minibatch: int
    grpo_micro_batch: int
    grpo_epochs: int
    grpo_learning_rate: float
    grpo_warmup: int
    grpo_clip: float
    grpo_kl_coef: float
    grpo_save_iterations: int
    grpo_sample_jds: int


@dataclass(frozen=True)
class RLOOConfig(_Config):
    rloo_iterations: int
    rloo_cvs: int
    rloo_group: int
    rloo_minibatch: int
    rloo_micro_batch: int
    rloo_epochs: int
    rloo_learning_rate: float
    rloo_warmup: int
    rloo_clip: float
    rloo_kl_coef: float
    rloo_save_iterations: int
    rloo_sample_jds: int


@dataclass(frozen=True)
class DPOConfig(_Config):
    max_pairs_per_cv: int
    dpo_pairs: str
    dpo_best_of: int
    dpo_cvs: int | None
    dpo_epochs: float
    dpo_batch_size: int
    dpo_accumulation: int
    dpo_learning_rate: float
    dpo_warmup_ratio: float
    dpo_weight_decay: float
    dpo_beta: float
    dpo_eval_share: float
    dpo_save_steps: int
    dpo_sample_jds: int


def trained_with(files: DatasetFiles, config: _Config) -> dict[str, Any]:
    """What stands where the user says nothing: the limits of the start generator, and the method as the name."""
    return settings_of_start(files, config) | {"generator": _method(config)}


def _method(config: _Config) -> str:
    return {GRPOConfig: "grpo", RLOOConfig: "rloo", DPOConfig: "dpo"}[type(config)]


def grpo(files: DatasetFiles, config: GRPOConfig) -> dict[str, Any]:
    """Align ``start_generator`` by GRPO and save it as ``generator``; returns a report.

    Raises ``DataError`` for seekers of rl in valid or test, for too few of them, and for a reward that is no number;
    ``ConfigError`` for settings that cannot work, or under which the loss becomes NaN. The last checkpoint stays.
    """
    return _align(files, config)


def rloo(files: DatasetFiles, config: RLOOConfig) -> dict[str, Any]:
    """As :func:`grpo`, by RLOO."""
    return _align(files, config)


def dpo(files: DatasetFiles, config: DPOConfig) -> dict[str, Any]:
    """As :func:`grpo`, by DPO on pairs of the reward stage or on the start's own best and worst JDs."""
    return _align(files, config)


# ----------------------------------------------------------------------------------------------------------- sampling


def sample_jds(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], keys: Sequence[Sequence[int]], config: _Config
) -> list[list[Sampled]]:
    """A JD for each key of each prompt, from the whole vocabulary, with log p of each token. ``gen_batch_size`` at a
    time, prompts of like length together; every prompt has the same number of keys."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = max(1, config.gen_batch_size // len(keys[0]))
    done: dict[int, list[Sampled]] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        sampled = llm.sample(
            lm, [prompts[i] for i in part], [keys[i] for i in part], max_new_tokens=config.max_jd_tokens,
            temperature=config.rl_temperature, top_p=1.0, log_probs=True,
        )  # fmt: skip
        done.update(zip(part, sampled, strict=True))
    return [done[i] for i in range(len(prompts))]


def _tokens(sampled: Sampled) -> list[int]:
    return sampled.ids + [sampled.stop] * sampled.ended


def _text(lm: LanguageModel, ids: Sequence[int]) -> str:
    return lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


class _Rollouts:
    """What GRPO and RLOO ask between their steps: JDs for seekers (:meth:`sample`) and their rewards (:meth:`score`).

    TRL's "prompt" of an example is the seeker's id here; CV and token ids are looked up by it.
    """

    def __init__(
        self, lm: LanguageModel, seekers: Sequence[SeekerCV], prompts: Sequence[list[int]], rewards: Rewards,
        config: _Config, group: int, steps: int, watch: Watch | None,
    ) -> None:  # fmt: skip
        self.lm, self.rewards, self.config, self.group, self.steps = lm, rewards, config, group, steps
        self.watch = watch or (lambda users, jds: {})
        self.cvs = {seeker.user: seeker.cv for seeker in seekers}
        self.prompts = {seeker.user: ids for seeker, ids in zip(seekers, prompts, strict=True)}
        self.iteration = 0

    def sample(self, users: list[str], trainer: Any) -> dict[str, list]:
        """One JD for each of ``users``, this process's part of the iteration (each comes as often as a group has JDs):
        token ids of prompts and JDs, and log p of each sampled token."""
        self.iteration = trainer.state.global_step // self.steps
        process = trainer.accelerator
        size = len(users) * process.num_processes
        place = self.iteration * size + process.process_index * len(users)
        keys = [llm.sample_key(self.config.seed, self.cvs[user], place + i) for i, user in enumerate(users)]
        n = self.group if len(users) % self.group == 0 else 1  # a group may be shared by two processes
        model = process.unwrap_model(trainer.model)
        model.eval()
        rows = sample_jds(
            dataclasses.replace(self.lm, model=model), [self.prompts[user] for user in users[::n]],
            [keys[i : i + n] for i in range(0, len(keys), n)], self.config,
        )  # fmt: skip
        model.train()
        sampled = [jd for row in rows for jd in row]
        return {
            "prompt_ids": [self.prompts[user] for user in users],
            "completion_ids": [_tokens(jd) for jd in sampled],
            "logprobs": [jd.log_probs for jd in sampled],
        }

    def score(self, prompts: list[str], completion_ids: list[list[int]], log_metric: Any, **unused: Any) -> list[float]:
        """R of each JD; its parts go into the log."""
        stops = self.lm.stop_ids
        ended = [ids[-1] in stops for ids in completion_ids]
        texts = [_text(self.lm, ids) for ids in completion_ids]
        cvs = [self.cvs[user] for user in prompts]
        total, scored, parts = penalised(
            self.rewards, prompts, cvs, texts, ended, self.config.no_eos_penalty, f"iteration {self.iteration}"
        )
        means = {name: float(values.mean()) for name, values in {"score": scored, **parts}.items()}
        means["without_eos"] = 1 - float(np.mean(ended))  # TRL takes a pad token that was sampled for an end
        means["distinct_jds"] = len(set(texts)) / len(texts)
        for name, value in (means | self.watch(prompts, texts)).items():
            log_metric(name, value)
        return total.tolist()


def penalised(
    rewards: Rewards, users: Sequence[str], cvs: Sequence[str], jds: Sequence[str], ended: Sequence[bool],
    penalty: float, where: str,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """R of each JD, the weighted sum before the penalty, and its parts as ``reward_<name>``; (n,) float64 each.

    Raises ``DataError`` for one that is no finite number; ``where`` in the work it happened.
    """
    try:
        scored = rewards(users, cvs, jds, ended)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    total = scored.total - penalty * ~np.array(ended, bool)
    bad = np.flatnonzero(~np.isfinite(total))
    if len(bad):
        seekers = list(dict.fromkeys(users[i] for i in bad))
        raise DataError(
            f"{where}: the reward of {len(bad)} of {len(jds)} JDs is no finite number, those of {some_of(seekers)}; "
            f"each needs one. Earlier checkpoints are kept. Train the reward model again (`girl reward`), or set "
            f"lm_dtype to fp32."
        )
    return total, scored.total, {f"reward_{name}": values for name, values in scored.parts.items()}


def seekers_in_turn(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` rows of ``count``: all in random order, then all again in another, and so on."""
    turns = -(-wanted // count)
    rows = [row for turn in range(turns) for row in np.random.default_rng((seed, turn)).permutation(count).tolist()]
    return rows[:wanted]


# ------------------------------------------------------------------------------------------------------ GRPO and RLOO


@dataclass(frozen=True)
class _Budget:
    """The settings of GRPO or RLOO without their prefix."""

    iterations: int
    cvs: int
    group: int
    minibatch: int
    micro_batch: int
    epochs: int
    learning_rate: float
    warmup: int
    clip: float
    kl_coef: float
    save_iterations: int
    sample_jds: int

    @classmethod
    def of(cls, config: GRPOConfig | RLOOConfig) -> _Budget:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(config, f"{_method(config)}_{name}") for name in names})

    @property
    def jds(self) -> int:
        return self.cvs * self.group

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an iteration."""
        return self.epochs * self.jds // self.minibatch


def _fit_online(
    lm: LanguageModel, seekers: Sequence[SeekerCV], prompts: Sequence[list[int]], rewards: Rewards,
    config: GRPOConfig | RLOOConfig, folder: Path, watch: Watch | None = None,
) -> Any:  # fmt: skip
    """Train ``lm.model`` by TRL's GRPOTrainer or RLOOTrainer, from the last whole checkpoint in ``folder``.

    ``watch(seekers, JDs)`` gives numbers for the log, from which nothing learns.
    """
    import datasets
    import trl

    method, budget = _method(config), _Budget.of(config)
    processes = this_process().num_processes
    on_device = min(budget.micro_batch, budget.minibatch // processes)
    rollouts = _Rollouts(lm, seekers, prompts, rewards, config, budget.group, budget.steps, watch)
    rows = seekers_in_turn(len(seekers), budget.iterations * budget.cvs, config.seed)
    shared = {
        "output_dir": str(folder),
        "max_steps": budget.iterations * budget.steps,
        "generation_batch_size": budget.jds,
        "num_generations": budget.group,
        "num_iterations": budget.epochs,
        "per_device_train_batch_size": on_device,
        "gradient_accumulation_steps": budget.minibatch // (on_device * processes),
        "max_completion_length": config.max_jd_tokens,
        "shuffle_dataset": False,  # in order already
        "temperature": config.rl_temperature,
        "beta": budget.kl_coef,
        "epsilon": budget.clip,
        "disable_dropout": True,
        "learning_rate": budget.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": budget.warmup * budget.steps,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": config.lm_dtype == "bf16",
        "fp16": config.lm_dtype == "fp16",
        "activation_checkpointing": config.gradient_checkpointing,
        "logging_steps": budget.steps,  # a line an iteration
        "save_strategy": "steps",
        "save_steps": budget.save_iterations * budget.steps,
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    rate = f"{method}_learning_rate"
    parts = {
        "model": lm.model, "reward_funcs": rollouts.score, "processing_class": lm.tokenizer,
        "peft_config": adapter(config),
        "train_dataset": datasets.Dataset.from_dict({"prompt": [seekers[row].user for row in rows]}),
    }  # fmt: skip
    if method == "grpo":
        arguments = trl.GRPOConfig(**shared, loss_type="grpo", scale_rewards="group")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # experimental, and tested
            trainer = guarded(trl.GRPOTrainer, rate, _users)(args=arguments, rollout_func=rollouts.sample, **parts)
    else:

        class Trainer(trl.RLOOTrainer):
            """RLOOTrainer has no rollout_func; these two are what its _generate asks."""

            def _tokenize_prompts(self, prompts):
                self._sampled = rollouts.sample(prompts, self)
                return self._sampled["prompt_ids"], None, {}

            def _generate_single_turn(self, prompt_ids, images, multimodal_fields):
                return self._sampled["completion_ids"]

        trainer = guarded(Trainer, rate, _users)(args=trl.RLOOConfig(**shared), **parts)
    _score_jds_alone(lm.model, config.rl_temperature)
    if trainer.ref_model is not None:
        _score_jds_alone(trainer.ref_model, config.rl_temperature)
    fit(trainer, folder)
    return trainer


def _users(inputs: list[dict[str, str]]) -> str:
    return f"seekers {some_of(list(dict.fromkeys(row['prompt'] for row in inputs)))}"


def _score_jds_alone(model: Any, temperature: float) -> None:
    """Change what ``model`` does where TRL asks it for log-probabilities (``fused_lm_head``).

    Positions are counted from the first token; TRL pads prompts on the left and leaves it to the model, which counts
    the padding too. And on a CPU, where TRL projects every position onto the vocabulary, prompts too, only those of the
    JDs are: half the time of a step.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    forward = model.forward

    @functools.wraps(forward)
    def scored(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return forward(*args, **kwargs)
        mask = kwargs["attention_mask"]
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if mask.device.type != "cpu":
            return forward(**kwargs)
        labels = kwargs.pop("labels")
        first = int((labels != IGNORED).any(0).nonzero()[0])  # the leftmost column with a token of a JD
        kwargs |= {"fused_lm_head": False, "use_cache": False, "logits_to_keep": labels.shape[1] - first + 1}
        logits = forward(**kwargs).logits[:, :-1].float() / temperature
        labels = labels[:, first:]
        logp = torch.log_softmax(logits, -1)

        def whole(values: torch.Tensor) -> torch.Tensor:
            return F.pad(values.masked_fill(labels == IGNORED, 0), (first - 1, 0))

        chosen = whole(logp.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1))
        if model.training and not torch.is_grad_enabled():
            return FusedCausalLMOutput(log_probs=chosen)
        with torch.no_grad():  # for the log
            return FusedCausalLMOutput(
                log_probs=chosen, entropy=whole(-(logp.exp() * logp).sum(-1)), mean_logits=whole(logits.mean(-1)),
                is_top1=whole(logits.argmax(-1) == labels),
            )  # fmt: skip

    model.forward = scored


_NAMES = {  # in TRL's log: in ours, which are those of girl ppo's
    "reward": "reward", "score": "score", "reward_std": "reward_sd", "entropy": "entropy", "loss": "loss",
    "completions/mean_length": "jd_tokens", "without_eos": "without_eos", "distinct_jds": "distinct_jds",
    "true_probability": "true_probability", "readable": "readable",
    "clip_ratio/region_mean": "clip_fraction", "grad_norm": "grad_norm", "learning_rate": "learning_rate",
}  # fmt: skip


def _history(log_history: list[dict[str, Any]], method: str, steps: int) -> list[dict[str, Any]]:
    """A line an iteration. ``kl_k3`` is GRPO's, over the steps of the iteration; ``kl_k1`` RLOO's, of its samples."""
    names = _NAMES | {"kl": "kl_k3" if method == "grpo" else "kl_k1"}
    lines = []
    for line in log_history:
        if "reward" in line:
            known = {ours: line[theirs] for theirs, ours in names.items() if theirs in line}
            parts = {key: value for key, value in line.items() if key.startswith("reward_") and key != "reward_std"}
            lines.append({"iteration": line["step"] // steps - 1, **known, **parts})
    return lines


# ---------------------------------------------------------------------------------------------------------------- DPO


@dataclass(frozen=True)
class Preference:
    """Token ids of a seeker's prompt, of the better JD and of the worse one, each with its stop token if it has one."""

    user: str
    cv: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def best_and_worst(rewards: np.ndarray) -> list[tuple[int, int] | None]:
    """For each row of (CVs, JDs): the columns of the first best and the first worst; None where all are equal."""
    return [
        (int(row.argmax()), int(row.argmin())) if row.max() > row.min() else None for row in np.asarray(rewards)
    ]  # fmt: skip


def sampled_pairs(
    lm: LanguageModel, seekers: Sequence[SeekerCV], prompts: Sequence[list[int]], rewards: Rewards, config: DPOConfig
) -> list[Preference]:
    """The best and the worst of ``dpo_best_of`` JDs of each seeker, by R."""
    keys = [[llm.sample_key(config.seed, seeker.cv, i) for i in range(config.dpo_best_of)] for seeker in seekers]
    rows = sample_jds(lm, prompts, keys, config)
    flat = [(seeker, jd) for seeker, row in zip(seekers, rows, strict=True) for jd in row]
    total, _, _ = penalised(
        rewards, [seeker.user for seeker, _ in flat], [seeker.cv for seeker, _ in flat],
        [_text(lm, jd.ids) for _, jd in flat], [jd.ended for _, jd in flat], config.no_eos_penalty, "best_of_n",
    )  # fmt: skip
    chosen = best_and_worst(total.reshape(len(seekers), config.dpo_best_of))
    return [
        Preference(seeker.user, seeker.cv, ids, _tokens(row[pair[0]]), _tokens(row[pair[1]]))
        for seeker, ids, row, pair in zip(seekers, prompts, rows, chosen, strict=True)
        if pair
    ]


def _fit_dpo(
    lm: LanguageModel, training: Sequence[Preference], held: Sequence[Preference], config: DPOConfig, folder: Path
) -> Any:
    """Train ``lm.model`` by TRL's DPOTrainer, from the last whole checkpoint in ``folder``."""
    import datasets
    import trl
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Trainer(trl.DPOTrainer):
        """For pairs that are token ids already."""

        def _prepare_dataset(self, dataset, *unused):
            return dataset

        def _get_train_sampler(self, train_dataset=None):
            lengths = [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in training]
            return LengthSampler(lengths, config.dpo_batch_size, config.seed)

        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "row"}, *args, **kwargs)

        def prediction_step(self, model, inputs, *args, **kwargs):
            return super().prediction_step(model, {k: v for k, v in inputs.items() if k != "row"}, *args, **kwargs)

    class Collator(DataCollatorForPreference):
        def torch_call(self, examples):
            return super().torch_call(examples) | {"row": torch.tensor([example["row"] for example in examples])}

    def table(pairs):
        names = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
        columns = {theirs: [getattr(pair, ours) for pair in pairs] for ours, theirs in names.items()}
        return datasets.Dataset.from_dict(columns | {"row": range(len(pairs))})

    def users(inputs):
        return f"seekers {some_of([training[row].user for row in inputs['row'].tolist()])}"

    arguments = trl.DPOConfig(
        **training_arguments(config, "dpo", folder, bool(held)),
        beta=config.dpo_beta,
        max_length=None,  # lengths are settled before
        disable_dropout=True,
        remove_unused_columns=False,
    )
    trainer = guarded(Trainer, "dpo_learning_rate", users)(
        model=lm.model, ref_model=None if config.lora_rank else copy.deepcopy(lm.model), args=arguments,
        data_collator=Collator(pad_token_id=lm.tokenizer.pad_token_id), train_dataset=table(training),
        eval_dataset=table(held) if held else None, processing_class=lm.tokenizer, peft_config=adapter(config),
    )  # fmt: skip
    _score_jds_alone(lm.model, 1.0)
    if trainer.ref_model is not None:
        _score_jds_alone(trainer.ref_model, 1.0)
    fit(trainer, folder)
    return trainer


# ----------------------------------------------------------------------------------------------------------- the stage


def _align(files: DatasetFiles, config: GRPOConfig | RLOOConfig | DPOConfig) -> dict[str, Any]:
    begin = time.monotonic()
    method = _method(config)
    _check(config)
    folder = generator_folder(config.saved_folder, files.name, config.generator)
    start = generator_folder(config.saved_folder, files.name, config.start_generator)
    work = folder.with_name(folder.name + ".checkpoints")
    settings = dataclasses.asdict(config)
    from_stage = method == "dpo" and config.dpo_pairs == "stage"
    process = this_process()  # each process has its own device from here on
    # full training holds float32 weights and computes in lm_dtype
    lm, prompt = load_start(files, config if config.lora_rank else dataclasses.replace(config, lm_dtype="fp32"))
    lm.model.requires_grad_(True)  # that of a merged adapter is off
    limit = min(config.max_cv_tokens, cv_room(lm, prompt, config.max_jd_tokens))
    rewards = None if from_stage else make_rewards(files, config)
    stages = ["reward"] if from_stage else [config.rl_stages] if isinstance(config.rl_stages, str) else config.rl_stages
    inputs = [*(files.stage(stage) for stage in stages), files.udoc, *([files.idoc] if from_stage else [])]
    made_from = {
        "start": lm.fingerprint, "rewards": rewards and rewards.fingerprint,
        "inputs": {path.name: file_hash(path) for path in inputs if path.exists()},
    }  # fmt: skip
    if not from_stage:  # which of them are in valid or test depends on the split
        seekers = read_seekers(files, config.rl_stages)[0]
        made_from["seekers"] = text_hash(*(text for seeker in seekers for text in (seeker.user, seeker.cv)))
    if done := trained_already(folder, work, config, made_from, _REPORTED):
        return done
    if process.is_main_process:
        finished = last_checkpoint(work) is not None or (work / "pairs.jsonl").exists()
        claim(work, settings | made_from, int(finished), "checkpoints", f"girl {method}")
    process.wait_for_everyone()
    if method == "dpo":
        if from_stage:
            preferences, counts = _stage_pairs(files, config, lm, prompt, limit)
        else:
            preferences, counts = _best_of_n_pairs(files, config, lm, prompt, limit, rewards, work)
        seekers = [SeekerCV(user, cv) for user, cv in dict.fromkeys((p.user, p.cv) for p in preferences)]
        trainer, history, report = _dpo(lm, preferences, config, work)
    else:
        seekers, left_out = read_seekers(files, config.rl_stages)
        encoded = [prompt.encode(lm.tokenizer, seeker.cv, limit) for seeker in seekers]
        counts = {"seekers_in_valid_or_test_left_out": left_out, "cvs_cut": sum(cut > 0 for _, cut in encoded)}
        _own_reference(lm, start, config, work)
        prompts, watch = [ids for ids, _ in encoded], true_match_watch(files)
        trainer, history, report = _online(lm, seekers, prompts, rewards, config, work, watch)
    if not process.is_main_process:
        return {"folder": str(folder)}
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report = {"seekers": len(seekers), **counts, **report, "trained_parameters": trained}
    return save_aligned(
        folder, work, model, lm, prompt, files=files, config=config, method=method, seekers=seekers, began=begin,
        history=history, report=report, inputs=inputs, made_from=made_from,
    )  # fmt: skip


def _online(
    lm: LanguageModel, seekers: list[SeekerCV], prompts: list[list[int]], rewards: Rewards,
    config: GRPOConfig | RLOOConfig, work: Path, watch: Watch | None,
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """The trainer after training, its log and what to report of it."""
    method, budget = _method(config), _Budget.of(config)
    if len(seekers) < budget.cvs:
        raise DataError(
            f"{method}_cvs: {budget.cvs} CVs an iteration, but there are {len(seekers)} different CVs of seekers in "
            f"{config.rl_stages}; lower {method}_cvs, or read more stages (rl_stages)."
        )
    rewards.check(seeker.user for seeker in seekers)
    trainer = _fit_online(lm, seekers, prompts, rewards, config, work, watch)
    history = _history(trainer.state.log_history, method, budget.steps)
    report = {"iterations": len(history), "jds": len(history) * budget.jds}
    report |= {"reward_first": history[0]["reward"], "reward_last": history[-1]["reward"]}
    report["kl_last"] = next((history[-1][key] for key in ("kl_k3", "kl_k1") if key in history[-1]), None)
    return trainer, history, report


def _own_reference(lm: LanguageModel, start: Path, config: _Config, work: Path) -> None:
    """TRL loads the reference of full training from where the model's config says that it came from. That is not the
    start if the start is an adapter that was merged: its weights are then written to ``work`` for TRL to find."""
    if config.lora_rank or not (start / "adapter_config.json").exists():
        return
    place, process = work / "reference", this_process()
    if process.is_main_process:
        lm.model.save_pretrained(place, safe_serialization=True)
    process.wait_for_everyone()
    lm.model.config._name_or_path = str(place)


def _stage_pairs(
    files: DatasetFiles, config: DPOConfig, lm: LanguageModel, prompt: Prompt, limit: int
) -> tuple[list[Preference], dict[str, int]]:
    """(matched, mismatched) pairs of the reward stage, drawn as those of the reward model (reward.py), and counts."""
    answers = read_answers(files)
    judged = evaluation_seekers(files)
    left_out = len({answer.user for answer in answers if answer.user in judged})
    answers = [answer for answer in answers if answer.user not in judged]
    drawn = draw_pairs(answers, config.max_pairs_per_cv, config.seed)
    stop = [lm.tokenizer.eos_token_id]
    pairs, cut, too_long = [], set(), 0
    for better, worse in drawn:
        user, cv = answers[better].user, answers[better].cv
        ids, lost = prompt.encode(lm.tokenizer, cv, limit)
        chosen, rejected = (encode_text(lm.tokenizer, answers[i].jd.strip()) + stop for i in (better, worse))
        if len(ids) + max(len(chosen), len(rejected)) > lm.context:
            too_long += 1
            continue
        cut |= {user} if lost else set()
        pairs.append(Preference(user, cv, ids, chosen, rejected))
    if not pairs:
        raise DataError(
            f"{files.stage('reward')}: no pair to learn from: {len(answers)} answers of seekers outside valid and test "
            f"({left_out} seekers left out) give {len(drawn)} pairs of a matched and a mismatched job of one seeker, "
            f"{too_long} of them longer than the {lm.context} tokens of {lm.name}. Set dpo_pairs to best_of_n, or add "
            f"answers."
        )
    return pairs, {
        "seekers_in_valid_or_test_left_out": left_out, "cvs_cut": len(cut), "pairs_too_long": too_long,
    }  # fmt: skip


def _best_of_n_pairs(
    files: DatasetFiles, config: DPOConfig, lm: LanguageModel, prompt: Prompt, limit: int, rewards: Rewards, work: Path
) -> tuple[list[Preference], dict[str, int]]:
    """Pairs of JDs that ``lm`` writes, kept in ``work`` for a run that goes on, and counts."""
    seekers, left_out = read_seekers(files, config.rl_stages)
    wanted = len(seekers) if config.dpo_cvs is None else min(config.dpo_cvs, len(seekers))
    seekers = [seekers[row] for row in seekers_in_turn(len(seekers), wanted, config.seed)]
    rewards.check(seeker.user for seeker in seekers)
    encoded = [prompt.encode(lm.tokenizer, seeker.cv, limit) for seeker in seekers]
    prompts = [ids for ids, _ in encoded]
    path, process = work / "pairs.jsonl", this_process()
    if process.is_main_process and not path.exists():
        pairs = sampled_pairs(lm, seekers, prompts, rewards, config)
        write_lines(path, [{"user": p.user, "chosen": p.chosen, "rejected": p.rejected} for p in pairs])
    process.wait_for_everyone()
    known = {seeker.user: (seeker.cv, ids) for seeker, ids in zip(seekers, prompts, strict=True)}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [Preference(line["user"], *known[line["user"]], line["chosen"], line["rejected"]) for line in lines]
    if not pairs:
        raise DataError(
            f"dpo_pairs: best_of_n: the {config.dpo_best_of} JDs of each of {len(seekers)} seekers have one reward; a "
            f"pair needs two. Raise dpo_best_of or rl_temperature, or choose other rewards."
        )
    return pairs, {
        "seekers_in_valid_or_test_left_out": left_out, "jds": len(seekers) * config.dpo_best_of,
        "seekers_without_a_pair": len(seekers) - len(pairs), "cvs_cut": sum(cut > 0 for _, cut in encoded),
    }  # fmt: skip


def _dpo(
    lm: LanguageModel, preferences: list[Preference], config: DPOConfig, work: Path
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The trainer after training, its log and what to report of it."""
    training, held = hold_out(preferences, config.dpo_eval_share, config.seed, "dpo_eval_share")
    trainer = _fit_dpo(lm, training, held, config, work)
    history = trainer.state.log_history
    last = {key: value for line in history for key, value in line.items()}
    return trainer, history, {
        "pairs": len(training), "held_out_pairs": len(held), "train_loss": last.get("loss"),
        "eval_loss": last.get("eval_loss"), "eval_accuracy": last.get("eval_rewards/accuracies"),
    }  # fmt: skip


def _check(config: GRPOConfig | RLOOConfig | DPOConfig) -> None:
    check_language_model(config)
    check_least(config, gen_batch_size=1, no_eos_penalty=0, lora_rank=0)
    if not config.rl_temperature > 0:
        raise ConfigError(f"rl_temperature: {config.rl_temperature}; more than 0 is required.")
    method = _method(config)
    if method == "dpo":
        check_training(config, "dpo")
        check_least(config, dpo_best_of=2, dpo_sample_jds=0, max_pairs_per_cv=1)
        if config.dpo_pairs not in PAIRS:
            raise ConfigError(f"dpo_pairs: {config.dpo_pairs!r} is unknown; known: {', '.join(PAIRS)}.")
        if not config.dpo_beta > 0:
            raise ConfigError(f"dpo_beta: {config.dpo_beta}; more than 0 is required.")
        if config.dpo_cvs is not None:
            check_least(config, dpo_cvs=1)
        return
    least = {
        "iterations": 1, "cvs": 1, "group": 2, "minibatch": 1, "micro_batch": 1, "epochs": 1, "warmup": 0, "kl_coef": 0,
        "save_iterations": 1, "sample_jds": 0,
    }  # fmt: skip
    check_least(config, **{f"{method}_{name}": low for name, low in least.items()})
    budget = _Budget.of(config)
    if not budget.learning_rate > 0:
        raise ConfigError(f"{method}_learning_rate: {budget.learning_rate}; more than 0 is required.")
    if not 0 < budget.clip < 1:
        raise ConfigError(f"{method}_clip: {budget.clip} is not in (0, 1).")
    if config.lm_dtype == "fp16" and not torch.cuda.is_available():
        raise ConfigError("lm_dtype: fp16 trains on a GPU only; set lm_dtype to fp32 or bf16.")
    processes = this_process().num_processes
    on_device = min(budget.micro_batch, budget.minibatch // processes)
    if budget.jds % budget.minibatch or on_device < 1 or budget.minibatch % (on_device * processes):
        raise ConfigError(
            f"{method}_minibatch: {budget.minibatch} must divide {method}_cvs x {method}_group = {budget.jds}, and be "
            f"a multiple of {method}_micro_batch {budget.micro_batch} on each of {processes} processes."
        )
