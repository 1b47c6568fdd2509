"""The critic U_c of the alignment stage: a reward model that learns on (Zheng et al. 2023, arXiv:2307.02157, IV-C).

It starts as the reward model U, in U's normalised scale. In mode ``girl`` its value of a seeker is U_c(C, empty), what
it says of the prompt with an empty JD, that is, of head, CV, tail and EOS (Eq. 5): U was always read at an EOS. In
mode ``token`` its value of a state is what its head says at the state's last token.

With LoRA it is an adapter and a copy of the head on U's own weights: switched off, it is U again
(:meth:`Critic.frozen`). Without, it is a copy of U, and U stays as it is.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn

from girl_recbole import llm
from girl_recbole.errors import ConfigError
from girl_recbole.reward import RewardModel

__all__ = ["Critic", "make_critic"]


class Critic(nn.Module):
    """``network``: a transformers model with one label; ``mean``, ``scale``: the reward model's normalisation."""

    def __init__(self, network: nn.Module, mean: float, scale: float, is_adapter: bool) -> None:
        super().__init__()
        self.network, self.mean, self.scale, self.is_adapter = network, mean, scale, is_adapter

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, every_token: bool = False) -> torch.Tensor:
        """Values in the normalised scale: (B,) of the whole right-padded sequences, or (B, T) after each token."""
        if every_token:
            inner = self.network.get_base_model() if self.is_adapter else self.network
            backbone, head = getattr(inner, inner.base_model_prefix), getattr(inner, "score", None)
            if head is None:
                raise ConfigError(
                    f"ppo_mode: token needs a reward model with a linear head over each token; {type(inner).__name__} "
                    f"has none. Use ppo_mode: girl."
                )
            hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
            raw = head(hidden).squeeze(-1)
        else:
            raw = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.squeeze(-1)
        return (raw.float() - self.mean) / self.scale

    def frozen(self) -> contextlib.AbstractContextManager[Any]:
        """While it lasts, the shared weights are those of the reward model."""
        return self.network.disable_adapter() if self.is_adapter else contextlib.nullcontext()


def make_critic(reward_model: RewardModel, lora: tuple[int, int, float, str] | None, seed: int = 0) -> Critic:
    """A critic that starts as ``reward_model``; ``lora``: (rank, alpha, dropout, targets) of an adapter on it, whose
    first weights depend on ``seed``."""
    if lora is None:
        network = copy.deepcopy(reward_model.model)
        network.requires_grad_(True)
        return Critic(network, reward_model.mean, reward_model.scale, is_adapter=False)
    import peft

    heads = [name for name in ("score", "classifier") if hasattr(reward_model.model, name)]
    config = llm.lora_config(*lora)
    config.task_type, config.modules_to_save = "SEQ_CLS", heads
    torch.manual_seed(seed)
    network = peft.get_peft_model(reward_model.model, config)
    for parameter in network.parameters():
        if parameter.requires_grad:  # the head too: small steps are lost in bfloat16
            parameter.data = parameter.data.float()
    reward_model.model = network  # to be used inside frozen()
    return Critic(network, reward_model.mean, reward_model.scale, is_adapter=True)
