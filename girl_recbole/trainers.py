"""What the stages share that train with TRL's trainers: settings, batches of like length, checkpoints, a guard.

A stage's settings are named by its prefix (``sft_epochs``, ``reward_epochs``, ...). While training runs, checkpoints
lie in ``<folder>.checkpoints/``; a run that was killed goes on from the last whole one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from girl_recbole import llm
from girl_recbole.atomic import atomic_write
from girl_recbole.errors import ConfigError
from girl_recbole.generate import check_least

__all__ = [
    "LengthSampler",
    "adapter",
    "check_training",
    "fit",
    "guarded",
    "last_checkpoint",
    "this_process",
    "training_arguments",
    "write_lines",
]

log = logging.getLogger(__name__)


def this_process() -> accelerate.PartialState:
    """Which of the processes of `accelerate launch` this is. Without a GPU they talk by gloo, if accelerate is told."""
    return accelerate.PartialState(cpu=not torch.cuda.is_available())


def check_training(config: Any, stage: str) -> None:
    """Raise ``ConfigError`` where the settings of a training loop, of LoRA or of the dtype cannot work."""
    check_least(
        config, lora_rank=0,
        **{f"{stage}_batch_size": 1, f"{stage}_accumulation": 1, f"{stage}_save_steps": 1, f"{stage}_weight_decay": 0},
    )  # fmt: skip
    for key in (f"{stage}_epochs", f"{stage}_learning_rate"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"{key}: {getattr(config, key)}; more than 0 is required.")
    for key in (f"{stage}_warmup_ratio", f"{stage}_eval_share", "lora_dropout"):
        if not 0 <= getattr(config, key) < 1:
            raise ConfigError(f"{key}: {getattr(config, key)} is not in [0, 1).")
    if config.lora_rank:
        check_least(config, lora_alpha=1)
    if config.lm_dtype == "fp16" and not torch.cuda.is_available():
        raise ConfigError("lm_dtype: fp16 trains on a GPU only; set lm_dtype to fp32 or bf16.")


def training_arguments(config: Any, stage: str, folder: Path, evaluate: bool) -> dict[str, Any]:
    """The arguments of transformers' trainers that all stages share. ``evaluate``: on held-out data, each epoch."""

    def setting(name: str) -> Any:
        return getattr(config, f"{stage}_{name}")

    return {
        "output_dir": str(folder),
        "num_train_epochs": setting("epochs"),
        "per_device_train_batch_size": setting("batch_size"),
        "per_device_eval_batch_size": setting("batch_size"),
        "gradient_accumulation_steps": setting("accumulation"),
        "use_cpu": not torch.cuda.is_available(),
        "learning_rate": setting("learning_rate"),
        "lr_scheduler_type": "cosine",
        "warmup_steps": setting("warmup_ratio"),
        "weight_decay": setting("weight_decay"),
        "adam_beta2": 0.95,
        "bf16": config.lm_dtype == "bf16",
        "fp16": config.lm_dtype == "fp16",
        "activation_checkpointing": config.gradient_checkpointing,
        "logging_steps": 10,
        "eval_strategy": "epoch" if evaluate else "no",
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": setting("save_steps"),
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def adapter(config: Any, head: str | None = None) -> Any:
    """The LoRA adapter that the settings ask for, or None. ``head``: a scalar head that is trained beside it."""
    if not config.lora_rank:
        return None
    lora = llm.lora_config(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    if head:
        lora.task_type, lora.modules_to_save = "SEQ_CLS", [head]
    return lora


def fit(trainer: transformers.Trainer, folder: Path) -> None:
    """Train from the last whole checkpoint in ``folder``, or from the start."""
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.add_callback(_Progress)
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        log.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last); unfinished ones go."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / "trainer_state.json").exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def guarded(trainer: type, rate: str, ids: Callable[[dict[str, Any]], str]) -> type:
    """A subclass of ``trainer`` that stops at the first loss or weight that is not finite, before anything is saved.

    ``rate`` names the setting of the learning rate, ``ids(inputs)`` says whose examples a batch holds.
    """

    class Guarded(trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if not torch.isfinite(loss):
                self._stop(f"the loss is {loss.item()} at step {self.state.global_step + 1} ({ids(inputs)})")
            return loss

        def _save_checkpoint(self, model, trial):
            bad = sum(not torch.isfinite(parameter).all() for parameter in model.parameters())
            if bad:
                self._stop(f"{bad} weight tensors are not finite after step {self.state.global_step}")
            super()._save_checkpoint(model, trial)

        def _stop(self, what):
            kept = last_checkpoint(Path(self.args.output_dir))
            kept = f"{kept} is the last good checkpoint" if kept else "no checkpoint was saved before"
            raise ConfigError(
                f"{rate} {self.args.learning_rate}: {what} of {self.state.max_steps}; training stopped, {kept}. Lower "
                f"{rate}, delete {self.args.output_dir} and run the command again."
            )

    Guarded.__name__ = trainer.__name__
    return Guarded


class LengthSampler(torch.utils.data.Sampler):
    """Batches of like lengths in random order, the same for a seed and an epoch, whether a run was resumed or not.

    All indices are shuffled, sorted by length within windows of 50 batches, and the batches are shuffled. ``groups``:
    one name an index; indices of one name stay side by side, so that most of them share a batch.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, groups: Sequence[Any] | None = None
    ) -> None:  # fmt: skip
        self.size, self.batch_size, self.seed, self.epoch = len(lengths), batch_size, seed, 0
        together: dict[Any, list[int]] = {}
        for index, group in enumerate(range(len(lengths)) if groups is None else groups):
            together.setdefault(group, []).append(index)
        self.groups = list(together.values())
        self.lengths = np.array([max(lengths[i] for i in group) for group in self.groups])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.groups))
        window = max(1, 50 * self.batch_size * len(self.groups) // max(self.size, 1))
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            shuffled[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        order = np.array([index for group in shuffled for index in self.groups[group]], dtype=np.int64)
        whole = len(order) // self.batch_size * self.batch_size  # a smaller last batch stays last
        batches = random.permutation(order[:whole].reshape(-1, self.batch_size))
        yield from batches.ravel().tolist()
        yield from order[whole:].tolist()


class _Progress(transformers.trainer_callback.ProgressCallback):
    """The trainer's progress bar with the loss beside it, and no lines between."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=logs["loss"])


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with atomic_write(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
