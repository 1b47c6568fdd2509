"""FT-LLM: a language model reads a CV and a JD and answers yes or no. TALLRec (Bao et al. 2023, arXiv:2305.00447) for
jobs: the CV stands for the user's history, the JD for the target item.

For a CV C, a JD J and the prompt x(C, J) of prompts.py (in the tokenizer's chat template if it has one), with the
logits l_v (V,) of the model at the one position where the answer begins:

    s = log sum_{v in yes} exp l_v - log sum_{v in no} exp l_v      p = sigmoid(s), then Platt scaling (scorer.py)

yes, no: the ids of all single tokens that spell the word, in any case, with or without a space, in the language of the
prompt. They are found in the tokenizer when the model is made, and a tokenizer without one is an error. p is the
softmax over the vocabulary, cut to these tokens and divided by their mass: one forward pass, one softmax.

Training: L = - log softmax(l)_a, a = the id of the right answer's word; nothing but the answer is in the loss (TALLRec
trains "Yes." with EOS; the answer's one token is all that is ever read). Adapters (``lora_rank`` > 0, peft) or all
weights. The labelled pairs of the training part are the examples, once each.

Who drives the training. RecBole counts the epochs, validates by AUC, stops early (TALLRec: patience 10 on AUC), keeps
the best checkpoint and calibrates; TRL's SFTTrainer runs each epoch, with its mixed precision, accumulation,
checkpointing of activations and clipping, on RecBole's optimiser. So early stopping, curves, seeds and results are
those of every other model here. The learning rate rises linearly over ``warmup_ratio`` of all steps and falls with a
cosine to 0 at the last of ``epochs``. One process only: several ranks are an error.

Shared beginnings. The CV comes before the JD, so head, CV and middle are read once a seeker, and their keys and values
serve all of his jobs in a batch: in training, where a seeker's pairs stay together (as in reward.py) and gradients flow
back through the keys and values, as in scoring and full ranking, where pairs are read in the order of their lengths,
``ftllm_batch_tokens`` padded tokens at once, which bounds the memory. Loss, gradient and scores are those of whole
prompts, to rounding. Prompts are read whole with ``gradient_checkpointing``, and by models that keep other things than
the keys and values of all tokens (sliding windows, recurrent states).

The base (``ftllm_base``):

    generator     the weights of saved/NAME/<start_generator>/, fine-tuned on the matched pairs of the sft stage
    NAME, folder  any causal language model of Hugging Face
    tiny          the embedded model (tiny_lm.py) with random weights: it has to learn everything from the answers

The embedded tokenizer knows no single "yes". Where the base is the embedded model (its tokenizer holds the generator's
prompt as one token), head, middle and tail of this prompt and the answers that are missing are added as tokens, whose
vectors start as the mean of their pieces'. (To start the first three at the vectors of the generator's head, its tail
and EOS was no better after two epochs on validation, AUC .569 against .574.) No text can contain an added token: data
are encoded apart (prompts.py), and a "yes" in a CV becomes other tokens.

Checkpoints hold all weights, or the adapters alone; the base is read again, and another one is refused.

Defects of TALLRec's code that are not repeated: token ids of one tokenizer written into the code; softmax taken of
probabilities, so that all scores lie in (.27, .73); answers looked up by counting every third Yes or No in the text,
which a title with such a word breaks; 128 tokens generated to read one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
import trl
from tokenizers import AddedToken
from torch.nn import functional

from girl_recbole import llm, memory, tiny_lm
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.generate import generator_folder, load_generator
from girl_recbole.llm import LanguageModel
from girl_recbole.manifest import read_manifest, text_hash
from girl_recbole.models.scorer import Scorer
from girl_recbole.prompts import ANSWERS, MatchPrompt, answer_ids, make_match_prompt, make_prompt
from girl_recbole.reward import tokenizer_hash
from girl_recbole.trainer import GIRLTrainer
from girl_recbole.trainers import LengthSampler

__all__ = ["FTLLM", "FTLLMTrainer", "answer_loss", "yes_no_logit"]

_log = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


def yes_no_logit(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> torch.Tensor:
    """s of the module's docstring: logits (B, V) at the answer -> (B,) float32."""
    logits = logits.float()
    return logits[:, list(yes)].logsumexp(-1) - logits[:, list(no)].logsumexp(-1)


def answer_loss(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """L of the module's docstring, the mean over pairs: logits (B, V) at the answer, the right answers' ids (B,)."""
    return functional.cross_entropy(logits.float(), answers)


class FTLLM(Scorer):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        _check(config)
        device = config["device"]
        language = _language(config, dataset)
        base = _load_base(config, dataset, language)
        lm = LanguageModel(base.model.to(device), base.tokenizer, base.name, base.fingerprint)
        self.prompt = make_match_prompt(language, lm.tokenizer)
        if make_prompt(language).head in lm.tokenizer.get_added_vocab():
            if config["lora_rank"]:
                raise ConfigError(
                    f"lora_rank: {config['lora_rank']}; the embedded model gets new tokens for this prompt, whose "
                    f"vectors an adapter cannot learn. Set lora_rank: 0."
                )
            _add_tokens(lm, self.prompt)
        self.yes, self.no = answer_ids(lm.tokenizer, language)
        self.tokenizer = lm.tokenizer
        identity = text_hash(lm.fingerprint, tokenizer_hash(lm.tokenizer), self.prompt.id)
        self.register_buffer("base_sha256", torch.frombuffer(bytearray.fromhex(identity), dtype=torch.uint8).clone())
        self.register_load_state_dict_pre_hook(_check_base)
        self._encode(dataset, config, lm)
        self._pad = lm.tokenizer.pad_token_id
        self._shares = _keeps_keys_and_values(lm.model.config) and not config["gradient_checkpointing"]
        self.lm = _trainable(lm.model, config)
        self._tokens = config["ftllm_batch_tokens"] or _BATCH_TOKENS[torch.device(device).type]
        self._frozen: frozenset[str] = frozenset()
        if config["lora_rank"]:
            every = self.lm.named_parameters(prefix="lm", remove_duplicate=False)  # tied weights have two names
            self._frozen = frozenset(name for name, weight in every if not weight.requires_grad)
            self.register_state_dict_post_hook(_leave_out_frozen)
            self.register_load_state_dict_pre_hook(_fill_in_frozen)

    # ---------------------------------------------------------------------------------------------- the score of pairs

    def logits(self, interaction) -> torch.Tensor:
        return self._score(interaction[self.USER_ID], interaction[self.ITEM_ID])

    def encode_users(self, ids):
        return ids  # what is read of them lives for one block of pairs only

    def encode_items(self, ids):
        return ids

    def score_all(self, users, items):
        pairs = self._score(users.repeat_interleave(len(items)), items.repeat(len(users)))
        return pairs.view(len(users), len(items))

    def answer_logits(self, pairs: Sequence[tuple[int, int]], begun: _Begun | None = None) -> torch.Tensor:
        """Logits (B, V) at the answer to pairs (seeker, job), read in one batch; ``begun``: their beginnings."""
        if not self._shares:
            ids, real = _padded([self._cvs[user] + self._jds[item] for user, item in pairs], self._pad, left=True)
            return self._read(ids, real, (real.cumsum(1) - 1).clamp(min=0))[0]
        begun = begun or self._begin(pairs)
        rows = torch.tensor([begun.row[user] for user, _ in pairs])
        cache, on_device = transformers.DynamicCache(), rows.to(self.device)
        for number, (keys, values) in enumerate(begun.layers):
            cache.update(keys[on_device], values[on_device], number)
        ids, real = _padded([self._jds[item] for _, item in pairs], self._pad, left=True)
        before = begun.real[rows]
        places = (before.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0)
        return self._read(ids, torch.cat([before, real], 1), places, cache)[0]

    def _begin(self, pairs: Sequence[tuple[int, int]]) -> _Begun:
        """Head, CV and middle of each seeker of ``pairs``, read once."""
        seekers = list(dict.fromkeys(user for user, _ in pairs))
        ids, real = _padded([self._cvs[user] for user in seekers], self._pad, left=False)
        _, cache = self._read(ids, real, torch.arange(ids.shape[1]).expand_as(ids), transformers.DynamicCache())
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return _Begun({user: row for row, user in enumerate(seekers)}, real, layers)

    def _read(self, ids, real, places, cache=None) -> tuple[torch.Tensor, Any]:
        """Logits (B, V) of what follows the last column, and the cache."""
        out = self.lm(
            input_ids=ids.to(self.device), attention_mask=real.long().to(self.device),
            position_ids=places.to(self.device), past_key_values=cache, use_cache=cache is not None, logits_to_keep=1,
        )  # fmt: skip
        return out.logits[:, -1], out.past_key_values

    def _score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """s of the pairs, (B,) float32, read in blocks of like length."""
        pairs = list(zip(users.tolist(), items.tolist(), strict=True))
        order = sorted(
            range(len(pairs)),
            key=lambda k: (len(self._cvs[pairs[k][0]]), pairs[k][0], len(self._jds[pairs[k][1]])),
        )
        scores, begun = [], None
        for block in self._blocks([pairs[k] for k in order]):
            if self._shares and (begun is None or not begun.row.keys() >= {user for user, _ in block}):
                begun = self._begin(block)
            scores.append(yes_no_logit(self.answer_logits(block, begun), self.yes, self.no))
        out = torch.empty(len(pairs), device=users.device)
        out[torch.tensor(order, device=users.device)] = torch.cat(scores)
        return out

    def _blocks(self, pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Consecutive pairs whose rectangle of padded tokens has at most ``ftllm_batch_tokens``; one pair at least."""
        block: list[tuple[int, int]] = []
        wide, high = 0, 0
        for user, item in pairs:
            wide_with, high_with = max(wide, len(self._cvs[user])), max(high, len(self._jds[item]))
            if block and (len(block) + 1) * (wide_with + high_with) > self._tokens:
                yield block
                block, wide_with, high_with = [], len(self._cvs[user]), len(self._jds[item])
            block.append((user, item))
            wide, high = wide_with, high_with
        yield block

    # ------------------------------------------------------------------------------------------------------- the texts

    def length(self, user: int, item: int) -> int:
        """Tokens of the prompt of a pair."""
        return len(self._cvs[user]) + len(self._jds[item])

    def _encode(self, dataset, config, lm: LanguageModel) -> None:
        """``_cvs[id]``: ids of head, CV, middle; ``_jds[id]``: of JD, tail. A CV gets what the longest JD leaves."""
        texts = {kind: [(one or [""])[0] for one in dataset.texts(kind)] for kind in ("cv", "jd")}
        jds = [self.prompt.encode_jd(lm.tokenizer, text, config["max_jd_tokens"]) for text in texts["jd"]]
        tail = len(jds[0][0])
        longest = max(len(ids) for ids, _ in jds) - tail
        room = lm.context - self.prompt.overhead(lm.tokenizer) - longest - 1  # the answer
        if room < 1:
            raise ConfigError(
                f"max_jd_tokens: a JD of {longest} tokens and {self.prompt.overhead(lm.tokenizer)} of instruction "
                f"leave no room for a CV in the {lm.context} tokens that {lm.name} reads; lower max_jd_tokens."
            )
        limit = min(room, config["max_cv_tokens"])
        cvs = [self.prompt.encode_cv(lm.tokenizer, text, limit) for text in texts["cv"]]
        for kind, rows, most in (("CVs", cvs, limit), ("JDs", jds, config["max_jd_tokens"])):
            cut = sum(left_out > 0 for _, left_out in rows)
            if cut:
                _log.warning(
                    "FTLLM: %d of %d %s are longer than %d tokens and were cut", cut, len(rows) - 1, kind, most
                )
        self._cvs, self._jds = [ids for ids, _ in cvs], [ids for ids, _ in jds]


@dataclass(frozen=True)
class _Begun:
    """Beginnings that were read: ``row`` of each seeker, which tokens are ``real`` (S, P), keys and values a layer."""

    row: dict[int, int]
    real: torch.Tensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]


def _padded(rows: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) int64, padded on the left or on the right, and which of them are real, (B, T) bool."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(len(row))
        ids[at, where] = torch.tensor(row)
        real[at, where] = True
    return ids, real


# ------------------------------------------------------------------------------------------------------- the base model


def _check(config) -> None:
    if config["lm_dtype"] not in llm.DTYPES:
        raise ConfigError(f"lm_dtype: {config['lm_dtype']!r} is unknown; known: {', '.join(llm.DTYPES)}.")
    if config["lm_dtype"] == "fp16" and torch.device(config["device"]).type != "cuda":
        raise ConfigError("lm_dtype: fp16 trains on a GPU only; set lm_dtype to fp32 or bf16.")
    for key in ("max_cv_tokens", "max_jd_tokens", "accumulation"):
        if config[key] < 1:
            raise ConfigError(f"{key}: {config[key]}; at least 1 is required.")
    for key in ("warmup_ratio", "lora_dropout"):
        if not 0 <= config[key] < 1:
            raise ConfigError(f"{key}: {config[key]} is not in [0, 1).")
    if config["lora_rank"] < 0 or (config["lora_rank"] and config["lora_alpha"] < 1):
        raise ConfigError(
            f"lora_rank: {config['lora_rank']}, lora_alpha: {config['lora_alpha']}; a rank of at least 0 and, above "
            f"0, an alpha of at least 1 are required."
        )
    if config["ftllm_batch_tokens"] is not None and config["ftllm_batch_tokens"] < 1:
        raise ConfigError(f"ftllm_batch_tokens: {config['ftllm_batch_tokens']}; at least 1, or null, is required.")


def _language(config, dataset) -> str:
    """``prompt_language``, or where that is null the generator's, or English."""
    if config["prompt_language"] is not None:
        return config["prompt_language"]
    if config["ftllm_base"] != "generator":
        return "en"
    folder = generator_folder(config["saved_folder"], dataset.files.name, config["start_generator"])
    return (read_manifest(folder) or {}).get("config", {}).get("prompt_language", "en")


def _load_base(config, dataset, language: str) -> LanguageModel:
    """The language model before this training. LoRA holds it in ``lm_dtype``; full training holds float32."""
    name, files = config["ftllm_base"], dataset.files
    dtype = config["lm_dtype"] if config["lora_rank"] else "fp32"
    if name == "tiny":
        used = [dataset.inter_feat[field].unique().tolist() for field in (dataset.uid_field, dataset.iid_field)]
        kept = zip(used, (dataset.texts("cv"), dataset.texts("jd")), strict=True)
        texts = (rows[i][0].strip() for ids, rows in kept for i in sorted(ids))
        return tiny_lm.build(
            texts, make_prompt(language), vocab_size=config["tiny_vocab_size"], width=config["tiny_width"],
            layers=config["tiny_layers"], heads=config["tiny_heads"], kv_heads=config["tiny_kv_heads"],
            context=config["max_sequence_tokens"], seed=config["seed"],
        )  # fmt: skip
    if name == "generator":
        folder = generator_folder(config["saved_folder"], files.name, config["start_generator"])
        if not folder.exists():
            raise DataError(
                f"{folder}: no such generator, and FTLLM starts from its weights (ftllm_base: generator). Run `girl "
                f"sft {files.name} --generator={config['start_generator']} --saved_folder={config['saved_folder']}`, "
                f"or name a pretrained model with ftllm_base."
            )
        lm, _ = load_generator(files, config["start_generator"], config["saved_folder"], dtype, language, merge=True)
        return lm
    _check_memory(config, name)
    return llm.load(name, dtype, str(config["device"]), merge=True)


def _check_memory(config, name: str) -> None:
    estimate = memory.sft_estimate(
        memory.model_config(name), dtype=config["lm_dtype"], batch_size=config["train_batch_size"],
        tokens=config["max_cv_tokens"] + config["max_jd_tokens"] + 64, projected=2, lora_rank=config["lora_rank"],
        lora_targets=config["lora_targets"], gradient_checkpointing=config["gradient_checkpointing"],
        on_gpu=torch.device(config["device"]).type == "cuda", shards=1,
    )  # fmt: skip
    lower = f"train_batch_size ({config['train_batch_size']}) and raise accumulation, or set gradient_checkpointing"
    memory.check(
        estimate, config["device"], lower + ("" if config["lora_rank"] else ", or train an adapter (lora_rank)")
    )


def _keeps_keys_and_values(config: Any) -> bool:
    """Whether all layers of the model's cache keep the keys and values of every token, and nothing else."""
    layers = transformers.DynamicCache(config=config).layers
    return all(type(layer) is transformers.cache_utils.DynamicLayer for layer in layers)


def _trainable(model: Any, config) -> Any:
    if not config["lora_rank"]:
        return model.requires_grad_(True)
    import peft

    adapter = llm.lora_config(config["lora_rank"], config["lora_alpha"], config["lora_dropout"], config["lora_targets"])
    return peft.get_peft_model(model, adapter)


@torch.no_grad()
def _add_tokens(lm: LanguageModel, prompt: MatchPrompt) -> None:
    """Parts of the prompt and missing answers become tokens of the embedded model: means of their pieces' vectors."""
    tokenizer = lm.tokenizer
    words = [prompt.head, prompt.middle, prompt.tail, *(word for word, *_ in ANSWERS[prompt.language])]
    pieces = {word: ids for word in words if len(ids := tokenizer.encode(word)) > 1}
    old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in pieces])
    with torch.random.fork_rng(devices=[]):
        lm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = lm.model.get_input_embeddings().weight  # the output's too: they are tied
    for number, ids in enumerate(pieces.values(), start=old):
        table[number] = table[ids].mean(0)


def _check_base(module: FTLLM, state: dict, prefix: str, *_) -> None:
    saved = state.get(f"{prefix}base_sha256")
    if saved is not None and not torch.equal(saved.cpu(), module.base_sha256.cpu()):
        raise DataError(
            "this checkpoint was trained from another base model, tokenizer or prompt than ftllm_base gives now. Use "
            "the base it was trained from, or train again."
        )


def _leave_out_frozen(module: FTLLM, state: dict, prefix: str, _) -> None:
    for name in module._frozen:
        state.pop(prefix + name, None)


def _fill_in_frozen(module: FTLLM, state: dict, prefix: str, *_) -> None:
    for name, value in module.named_parameters(remove_duplicate=False):
        if name in module._frozen:
            state.setdefault(prefix + name, value.detach())


# ------------------------------------------------------------------------------------------------------------- training


class FTLLMTrainer(GIRLTrainer):
    """RecBole's loop over epochs, each of which TRL's SFTTrainer runs on the same optimiser."""

    def __init__(self, config, model):
        if not config["single_spec"]:
            raise ConfigError("nproc: FTLLM trains in one process; set nproc to 1 (other models can use several).")
        super().__init__(config, model)
        self._sft = None

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """The sum of the batches' losses, as RecBole reports it."""
        if self._sft is None:
            self._sft = self._make(train_data._dataset, show_progress)
        self._sft.epoch_to_run = epoch_idx
        mean = self._sft.train().training_loss
        if not math.isfinite(mean):
            raise ConfigError(
                f"learning_rate: with {self.learning_rate} the loss of epoch {epoch_idx} is {mean}; lower it."
            )
        return mean * len(train_data)

    def _make(self, dataset, show_progress: bool) -> trl.SFTTrainer:
        scorer, config = self.model, self.config
        fields = (dataset.uid_field, dataset.iid_field, dataset.label_field)
        users, items, labels = (dataset.inter_feat[field].tolist() for field in fields)
        lengths = [scorer.length(user, item) for user, item in zip(users, items, strict=True)]
        answers = [(scorer.yes if label > 0.5 else scorer.no)[0] for label in labels]
        examples = datasets.Dataset.from_dict({"user": users, "item": items, "answer": answers})

        class Trainer(trl.SFTTrainer):
            epoch_to_run = 0

            def _get_train_sampler(self, train_dataset=None):
                sampler = LengthSampler(lengths, config["train_batch_size"], config["seed"], groups=users)
                sampler.set_epoch(self.epoch_to_run)
                sampler.set_epoch = lambda _: None  # each of TRL's trainings begins with its own epoch 0
                return sampler

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return answer_loss(scorer.answer_logits(inputs["pairs"].tolist()), inputs["answers"])

        def collate(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
            return {
                "pairs": torch.tensor([(row["user"], row["item"]) for row in rows]),
                "answers": torch.tensor([row["answer"] for row in rows]),
            }

        arguments = trl.SFTConfig(
            output_dir=str(config["checkpoint_dir"]),
            num_train_epochs=1,
            per_device_train_batch_size=config["train_batch_size"],
            gradient_accumulation_steps=config["accumulation"],
            use_cpu=self.device.type == "cpu",
            bf16=config["lm_dtype"] == "bf16",
            fp16=config["lm_dtype"] == "fp16",
            activation_checkpointing=config["gradient_checkpointing"],
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            seed=config["seed"],
            report_to="none",
            disable_tqdm=not show_progress,
            dataloader_pin_memory=self.device.type == "cuda",
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )
        steps = self.epochs * math.ceil(math.ceil(len(lengths) / config["train_batch_size"]) / config["accumulation"])
        warm_up = math.ceil(config["warmup_ratio"] * steps)
        schedule = transformers.get_cosine_schedule_with_warmup(self.optimizer, warm_up, steps)
        scorer.lm.warnings_issued = {"estimate_tokens": True}  # the batches hold ids of texts, not of tokens
        trainer = Trainer(
            model=scorer.lm, args=arguments, train_dataset=examples, data_collator=collate,
            processing_class=scorer.tokenizer, optimizers=(self.optimizer, schedule),
        )  # fmt: skip
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)  # RecBole reports the epochs
        return trainer
