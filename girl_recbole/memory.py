"""How much memory a training will take, estimated before it starts, and a refusal where that cannot fit.

All from a model's config: parameters are counted on the meta device, where they have shapes and no storage. P trained
parameters, n = sequences * tokens of one backward pass on one device, e = bytes of ``lm_dtype`` (fp32 4, bf16 and fp16
2). H width, Q and K widths of all queries and of all keys, I inner width of the MLP, V vocabulary, r LoRA rank.

    weights             e each where LoRA freezes them, 4 where they are all trained, adapters 4; in full training in
                        half precision also a copy of e, which autocast keeps until the backward pass
    gradients           4 P
    optimiser states    8 P (AdamW: two moments)
    activations         what a layer keeps for its backward pass, n times:
                        in full   16 H + e (2 H + 4 Q + 4 I), in half precision with 5 H: each linear layer casts
                        LoRA       8 H + e (4 Q + 3 I) + e x the inputs of all adapted layers; and, but in PPO, of
                                   their dropout 4 x these inputs, on a GPU 1 x
                        times the layers; with gradient checkpointing 4 H a layer, and one layer in whole
    logits              4 V, ``_LOGITS`` times a projected token: themselves, their softmax, and the gradients of both
    keys and values     2 e K a layer for each token of each sequence that is written at the same time
    fragmentation       on a CPU, half of the activations, logits, keys and values: what malloc cannot give back

A frozen copy costs its weights. PPO's phases follow each other, so that the dearest alone counts: the actor's update,
the critic's, the rollout, a pass of the reward model. With LoRA actor and reference are one set of weights, and so are
reward model and critic; in full each has its own.

The kept tensors are counted exactly for Llama and Qwen (a test compares with autograd's own), and are about right for
other decoders (a GPT-2 keeps 1.6 times as much). Left out: the interpreter with its libraries (0.5 GB) and the data.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import psutil
import torch
import transformers
from accelerate.utils import parse_flag_from_env

from girl_recbole import llm
from girl_recbole.errors import ConfigError

__all__ = ["Estimate", "check", "model_config", "ppo_estimate", "reward_estimate", "sft_estimate", "sharing"]

log = logging.getLogger(__name__)

GIB = 2**30
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_LOGITS = 4  # copies of the logits, float32, when the loss is differentiated
_SHARED = ("gradients", "optimiser states")  # what FSDP and DeepSpeed divide among devices
_DRAWING = 48  # bytes a logit while tokens are drawn: float64 logits, probabilities, sorted ones, their sums and ranks
_MARGIN = 1.2  # estimates are about that good: in between it warns


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device by part."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        """``3.2 GiB (weights 2.1, activations 0.8, gradients 0.3)``: the three largest parts."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{name} {_gib(size)}" for name, size in largest if size)
        return f"{_gib(self.total)} GiB ({named})"


@dataclass(frozen=True)
class Network:
    """What counts of a transformer. ``adapted``: (inputs, outputs) of each layer that LoRA adapts."""

    parameters: int
    layers: int
    width: int
    queries: int
    keys: int
    heads: int
    inner: int
    vocabulary: int
    adapted: tuple[tuple[int, int], ...] = ()
    rank: int = 0

    @property
    def adapter(self) -> int:
        """Parameters of the LoRA adapter."""
        return sum(self.rank * (inputs + outputs) for inputs, outputs in self.adapted)

    @property
    def trained(self) -> int:
        return self.adapter if self.rank else self.parameters


# -------------------------------------------------------------------------------------------------------- the estimates


def sft_estimate(
    config: Any, *, dtype: str, batch_size: int, tokens: int, projected: int | None = None, lora_rank: int = 0,
    lora_targets: str = "all-linear", gradient_checkpointing: bool = False, on_gpu: bool = False, shards: int = 1,
) -> Estimate:  # fmt: skip
    """Supervised fine-tuning of the causal LM of ``config`` on batches of ``batch_size`` sequences of ``tokens``.

    ``projected``: tokens of a sequence whose logits are computed, None = all; on a GPU TRL never holds them.
    ``shards``: devices that share gradients and optimiser states (FSDP, DeepSpeed); all load the weights whole.
    """
    network = count(config, lora_rank, lora_targets)
    projected = tokens if projected is None else projected
    update = _update(network, dtype, batch_size, tokens, 0 if on_gpu else projected, gradient_checkpointing, on_gpu)
    return _together({"weights": _weights(network, dtype)}, [update], on_gpu, shards)


def reward_estimate(
    config: Any, *, dtype: str, batch_size: int, tokens: int, layers: int | None = None, lora_rank: int = 0,
    lora_targets: str = "all-linear", gradient_checkpointing: bool = False, on_gpu: bool = False, shards: int = 1,
) -> Estimate:  # fmt: skip
    """Training of a reward model on batches of ``batch_size`` pairs, so twice as many sequences.

    ``config``: of the model that it starts from; ``layers``: how many of its lower layers are kept, null = all.
    """
    network = count(config, lora_rank, lora_targets, scalar=True, layers=layers)
    update = _update(network, dtype, 2 * batch_size, tokens, 0, gradient_checkpointing, on_gpu)
    return _together({"weights": _weights(network, dtype)}, [update], on_gpu, shards)


def ppo_estimate(
    actor: Any, reward: Any, *, dtype: str, micro_batch: int, gen_batch: int, reward_batch: int, prompt_tokens: int,
    jd_tokens: int, reward_layers: int | None = None, lora_rank: int = 0, lora_targets: str = "all-linear",
    gradient_checkpointing: bool = False, critic_reads_jds: bool = False, on_gpu: bool = False, shards: int = 1,
) -> Estimate:  # fmt: skip
    """PPO of the causal LM ``actor`` with a reward model on ``reward`` (configs both), which the critic starts as.

    ``micro_batch`` JDs are learned from, ``gen_batch`` written and ``reward_batch`` judged at a time, on one device.
    ``critic_reads_jds``: mode ``token``, where the critic reads prompt and JD; otherwise it reads the prompt alone.
    """
    policy = count(actor, lora_rank, lora_targets)
    critic = count(reward, lora_rank, lora_targets, scalar=True, layers=reward_layers)
    tokens, held = prompt_tokens + jd_tokens, _BYTES[dtype]
    if lora_rank:
        steady = {
            "weights of actor and reference": _weights(policy, dtype),
            "weights of reward model and critic": _weights(critic, dtype),
        }
    else:
        steady = {
            "weights of the actor": _weights(policy, dtype),
            "weights of the reference": 4 * policy.parameters,
            "weights of the reward model": 4 * critic.parameters,
            "weights of the critic": _weights(critic, dtype),
        }
    steady["optimiser states"] = 8 * (policy.trained + critic.trained)
    gradients = {"gradients": 4 * (policy.trained + critic.trained)}
    critic_tokens = tokens if critic_reads_jds else prompt_tokens + 1
    learning = {
        "dtype": dtype, "sequences": micro_batch, "checkpointing": gradient_checkpointing, "on_gpu": on_gpu,
        "dropout": False,
    }  # fmt: skip
    phases = [
        {
            "activations of the actor": activations(policy, tokens=tokens, **learning),
            "logits of the actor": _logits(policy, micro_batch * (jd_tokens + 1)),
            **gradients,
        },
        {"activations of the critic": activations(critic, tokens=critic_tokens, **learning), **gradients},
        {
            "keys and values of the rollout": 2 * held * policy.layers * policy.keys * gen_batch * tokens,
            "drawing of the rollout": _DRAWING * policy.vocabulary * gen_batch,
            "reading of the prompts": gen_batch * prompt_tokens * _passing(policy, dtype),
        },
        {"reading of the reward model": reward_batch * tokens * _passing(critic, dtype)},
    ]
    return _together(steady, phases, on_gpu, shards)


def _together(steady: Mapping[str, int], phases: Sequence[Mapping[str, int]], on_gpu: bool, shards: int) -> Estimate:
    """What is always there, the dearest of what follows each other, and what the allocator loses."""
    dearest = max(phases, key=lambda phase: sum(phase.values()))
    parts = {**steady, **dearest}
    if not on_gpu:
        parts["fragmentation"] = sum(size for name, size in dearest.items() if name not in _SHARED) // 2
    return Estimate({name: size // shards if name in _SHARED else size for name, size in parts.items()})


def _weights(network: Network, dtype: str) -> int:
    if network.rank:
        return _BYTES[dtype] * network.parameters + 4 * network.adapter
    return (4 if dtype == "fp32" else 4 + _BYTES[dtype]) * network.parameters


def _update(
    network: Network, dtype: str, sequences: int, tokens: int, projected: int, checkpointing: bool, on_gpu: bool
) -> dict[str, int]:
    """What is there besides the weights when a batch is learned from."""
    return {
        "gradients": 4 * network.trained,
        "optimiser states": 8 * network.trained,
        "activations": activations(network, dtype, sequences, tokens, checkpointing, on_gpu),
        "logits": _logits(network, sequences * projected),
    }


def _logits(network: Network, tokens: int) -> int:
    return 4 * _LOGITS * network.vocabulary * tokens


def activations(
    network: Network, dtype: str, sequences: int, tokens: int, checkpointing: bool = False, on_gpu: bool = False,
    dropout: bool = True,
) -> int:  # fmt: skip
    """Bytes that a forward pass keeps for the backward pass, logits excepted."""
    layer = _kept_by_a_layer(network, dtype, on_gpu, dropout)
    layers = 4 * network.width * network.layers + layer if checkpointing else layer * network.layers
    return sequences * tokens * (layers + 3 * 4 * network.width)


def _kept_by_a_layer(network: Network, dtype: str, on_gpu: bool, dropout: bool) -> int:
    """Bytes a token: the equations of the module's docstring. The norms compute in float32 in any case."""
    e, attention = _BYTES[dtype], 4 * network.queries  # a padded batch repeats keys and values for all queries
    if not network.rank:
        inputs = (2 if dtype == "fp32" else 5) * network.width  # autocast makes a copy for each linear layer
        return 16 * network.width + e * (inputs + attention + 4 * network.inner)
    masks = (1 if on_gpu else 4) * dropout  # what LoRA's dropout multiplied its inputs by
    inputs = sum(inputs for inputs, _ in network.adapted) // network.layers
    return 8 * network.width + e * (attention + 3 * network.inner) + (masks + e) * inputs


def _passing(network: Network, dtype: str) -> int:
    """Bytes a token of the widest place of a layer in a forward pass that keeps nothing."""
    return _BYTES[dtype] * (3 * network.width + 3 * network.inner)


# ----------------------------------------------------------------------------------------------------------- counting


def model_config(name: str) -> Any:
    """The config of a causal LM by hub name or folder, of its base where the folder holds an adapter. Reads no weights.

    Raises ``ConfigError`` and ``DataError`` as :func:`girl_recbole.llm.load` does.
    """
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        beside = Path(name) / base
        return model_config(str(beside) if not Path(base).is_absolute() and beside.is_dir() else base)
    return llm._from_hub(transformers.AutoConfig, name)


def count(
    config: Any, lora_rank: int = 0, lora_targets: str = "all-linear", scalar: bool = False, layers: int | None = None
) -> Network:
    """Sizes of the causal LM of ``config``, or with ``scalar`` of a sequence classifier with one label on it."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = min(layers, text.num_hidden_layers)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
    config.num_labels = 1
    kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    adapted: tuple[tuple[int, int], ...] = ()
    with torch.device("meta"):
        model = kind.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        if lora_rank:
            import peft
            from peft.tuners.tuners_utils import BaseTunerLayer

            lora = llm.lora_config(lora_rank, 1, 0.0, lora_targets)
            lora.task_type = "SEQ_CLS" if scalar else "CAUSAL_LM"
            model = peft.get_peft_model(model, lora)
            adapted = tuple((m.in_features, m.out_features) for m in model.modules() if isinstance(m, BaseTunerLayer))
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    return Network(
        parameters=parameters, layers=text.num_hidden_layers, width=text.hidden_size, queries=heads * head,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head, heads=heads, inner=inner,
        vocabulary=1 if scalar else text.vocab_size, adapted=adapted, rank=lora_rank,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- checking


def check(
    estimate: Estimate,
    device: torch.device | str,
    what_to_lower: str,
    *,
    loaded: Iterable[torch.nn.Module] = (),
    processes: int = 1,
) -> None:
    """Raise ``ConfigError`` where ``estimate`` does not fit into what is free on ``device``; warn where it may not.

    ``what_to_lower``: which settings, for the message. ``loaded``: models of the estimate that are on the device
    already. ``processes``: how many share the memory of a CPU.
    """
    device = torch.device(device)
    free = available(device) // (processes if device.type == "cpu" else 1)
    weights = {id(p): p.numel() * p.element_size() for model in loaded for p in model.parameters()}
    needed = estimate.total - sum(weights.values())
    if needed <= free / _MARGIN:
        return
    where = f"on {device}" + (f" for each of {processes} processes" if device.type == "cpu" and processes > 1 else "")
    said = f"training takes about {estimate}"
    if weights:
        said += f", {_gib(needed)} GiB more than is loaded already"
    if needed > free * _MARGIN:
        raise ConfigError(f"memory: {said}, but {_gib(free)} GiB are free {where}. Lower {what_to_lower}.")
    log.warning("%s; %s GiB are free %s, so it may not fit. If not, lower %s", said, _gib(free), where, what_to_lower)


def sharing(process: accelerate.PartialState) -> dict[str, Any]:
    """``on_gpu`` and ``shards`` of the estimates, for the process that `accelerate launch` started."""
    on_gpu = process.device.type == "cuda"
    sharded = on_gpu and any(parse_flag_from_env(f"ACCELERATE_USE_{kind}") for kind in ("FSDP", "DEEPSPEED"))
    return {"on_gpu": on_gpu, "shards": process.num_processes if sharded else 1}


def available(device: torch.device) -> int:
    """Bytes that this process can still take: on a GPU, or of the machine's memory and its control group's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *_control_groups()])


def _control_groups(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the limits of this process's control groups (containers, batch systems) leave, each in bytes."""
    if not own.exists():
        return []
    left = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        limit, used, idle = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        inner = top / path.strip("/")
        for group in (inner, *[parent for parent in inner.parents if parent.is_relative_to(top)]):
            files = group / limit, group / used, group / "memory.stat"
            if not all(file.exists() for file in files):
                continue
            most, now, stat = (file.read_text(encoding="utf-8").strip() for file in files)
            if most != "max":
                cache = dict(entry.split() for entry in stat.splitlines()).get(idle, "0")
                left.append(int(most) - int(now) + int(cache))
    return left


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.0f}"
