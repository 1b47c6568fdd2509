"""The reward model (Zheng et al. 2023, arXiv:2307.02157, section IV-B, Eq. 2): how well a JD fits a CV.

U(C, J) reads the sequence head + CV + tail + JD + EOS (prompts.py) with a language model smaller than the generator; a
linear head makes a number of the last token's vector. For a job J+ that matched and a job J- that did not, both of the
same seeker with the CV C:

    Eq. (2)   L_rmt = - log sigmoid(U(C, J+) - U(C, J-))

The paper prints it without the minus; minimising that would invert the ranking. Over a batch we take the mean. How many
pairs a CV gives is not said: here all (matched, mismatched) combinations of a seeker, at most ``max_pairs_per_cv`` of
them, spread evenly over the jobs (:func:`draw_pairs`). Seekers with answers of one kind give none, and are counted.

Sampled comparisons (``reward_sampled`` > 0; ours). Recruiters answer those who applied, so their rejections are near
misses: a model that saw nothing else has no opinion of a job that nobody would apply for, and a generator that is
trained on its scores finds out; and a thousand seekers teach a small model little. So matches of
``reward_sampled_stages`` are also compared with jobs of other seekers' matches drawn at random
(:func:`sample_mismatches`). They are counted apart: normalisation and measures are of recruiters' answers alone.

Normalisation. Eq. (2) does not change when a number that depends on C alone is added to U: raw scores have no zero and
no unit that could be compared. What :meth:`RewardModel.score` returns is

    (U(C, J) - mean) / scale,     mean  = of U over the texts of the training pairs
                                  scale = sqrt(sum_C sum_J (U(C, J) - mean_C)^2 / sum_C (n_C - 1)), over the same texts

so 1 is one standard deviation between the offers of one seeker. Both are stored with the model, and so are a and b of
p = sigmoid(a score + b), the calibrated probability of a match, fitted on the held-out seekers.

What is reported, on held-out seekers (whole CV texts, chosen by hash):

    pairwise_accuracy      share of their (J+, J-) with U+ > U- (a tie counts one half): the one thing Eq. (2) optimises
    accuracy_per_cv        the same, averaged over seekers
    auc, auc_centred       AUC over the rows of seekers with answers of both kinds: of U, and of U - mean_C
    ece                    of sigmoid(U_1 - U_2) as the probability that the first job is the matched one, over their
                           (J+, J-) oriented at random, in 10 bins
    logloss, prior         of the calibrated probability on all rows, by cross-fitting over seekers; entropy of the rate

The training loop is TRL's RewardTrainer on examples that we tokenize ourselves. A seeker's pairs stay together in a
batch, where each of his sequences is read once however many pairs it is in: half the work, and his jobs are not met
again and again within an epoch (as Ouyang et al. 2022, arXiv:2203.02155, do with all comparisons of a prompt).
``reward_base: generator`` starts from
the trained generator, LoRA merged, cut to its ``reward_layers`` lower layers; or any causal LM by name or folder. Its
head starts small and random, by the seed.

Output: ``<saved_folder>/NAME/<reward_model>/``, a Hugging Face folder of a sequence classification model with one label
(with LoRA: adapter and head), ``reward.json`` (normalisation, calibration, limits), and a manifest beside it.
Checkpoints, resuming and reuse are those of sft.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from girl_recbole import llm
from girl_recbole.alignment import settings_of_start
from girl_recbole.atomic import DatasetFiles, atomic_write, read_interactions, read_table
from girl_recbole.calibration import fit_platt
from girl_recbole.errors import ConfigError, DataError, some_of
from girl_recbole.generate import check_least, claim, cv_room, generator_folder, load_generator
from girl_recbole.llm import LanguageModel
from girl_recbole.manifest import file_hash, manifest_path, read_manifest, require, text_hash, write_manifest
from girl_recbole.metrics import ece, prior_entropy
from girl_recbole.prompts import Prompt, encode_text, make_prompt
from girl_recbole.sft import hold_out, read_pairs, read_texts
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

__all__ = [
    "RewardConfig",
    "RewardModel",
    "ScoreConfig",
    "load_reward_model",
    "pairwise_loss",
    "score",
    "tokenizer_hash",
    "train",
    "untrained",
]

log = logging.getLogger(__name__)

_BINS, _FOLDS = 10, 5  # of the ECE; of the cross-fitted calibration
_FACTS = "reward.json"


@dataclass(frozen=True)
class RewardConfig:
    """Keys and meanings: properties/overall.yaml, sections "Reward model" and "Language model"."""

    seed: int
    saved_folder: str
    reward_model: str
    reward_base: str
    start_generator: str
    reward_layers: int | None
    lm_dtype: str
    prompt_language: str
    max_cv_tokens: int
    max_jd_tokens: int
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str
    gradient_checkpointing: bool
    max_pairs_per_cv: int
    reward_sampled: int
    reward_sampled_seekers: int
    reward_sampled_stages: tuple | str
    reward_epochs: float
    reward_batch_size: int
    reward_accumulation: int
    reward_learning_rate: float
    reward_warmup_ratio: float
    reward_weight_decay: float
    reward_eval_share: float
    reward_save_steps: int


@dataclass(frozen=True)
class ScoreConfig:
    """What `girl score` can be told."""

    saved_folder: str
    reward_model: str
    lm_dtype: str


def trained_with(files: DatasetFiles, config: RewardConfig | ScoreConfig) -> dict[str, Any]:
    """What an earlier stage has settled: the limits, prompt and dtype of the generator that the reward model starts
    from, or, for scoring, the dtype of the reward model; {} where unknown."""
    if isinstance(config, RewardConfig):
        return settings_of_start(files, config) if config.reward_base == "generator" else {}
    manifest = read_manifest(generator_folder(config.saved_folder, files.name, config.reward_model)) or {}
    return {key: value for key, value in manifest.get("config", {}).items() if key == "lm_dtype"}


def pairwise_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Eq. (2), the mean over pairs: U of the matched and of the mismatched jobs, (B,) each."""
    return -F.logsigmoid(chosen - rejected).mean()


# --------------------------------------------------------------------------------------------------------- the model


@dataclass
class RewardModel:
    """U(C, J) with its normalisation. ``model``: a transformers model for sequence classification with one label.

    ``slope``, ``intercept``: a and b of the calibrated probability. ``fingerprint``: hash of all that decides scores.
    """

    model: Any
    tokenizer: Any
    prompt: Prompt
    mean: float
    scale: float
    max_cv_tokens: int
    max_jd_tokens: int
    fingerprint: str
    name: str
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def encode(self, cv: str, jd: str, ended: bool = True) -> list[int]:
        """Token ids of head, CV, tail, JD, and of EOS where the JD ``ended`` by itself."""
        return self._encode(cv, jd, ended)[0]

    def score(
        self, cvs: Sequence[str], jds: Sequence[str], ended: Sequence[bool] | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """(U - mean) / scale of each CV with its JD, float64 (N,). Batches hold sequences of like length.

        ``ended``: False for a JD that was cut before its EOS. A model whose weights are not finite gives NaN.
        """
        ended = [True] * len(cvs) if ended is None else ended
        sequences = [self.encode(cv, jd, bool(end)) for cv, jd, end in zip(cvs, jds, ended, strict=True)]
        return (self.raw(sequences, batch_size) - self.mean) / self.scale

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """The calibrated probability of a match of normalised ``scores``."""
        return expit(self.slope * np.asarray(scores, np.float64) + self.intercept)

    @torch.inference_mode()
    def raw(self, sequences: Sequence[Sequence[int]], batch_size: int = 64) -> np.ndarray:
        """U of encoded sequences, float64 (N,)."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = np.empty(len(sequences), np.float64)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(sequences[i]) for i in batch)
            ids = torch.tensor([[*sequences[i], *[pad] * (width - len(sequences[i]))] for i in batch])
            mask = torch.tensor([[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in batch])
            out = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            scores[batch] = out.logits.squeeze(-1).double().cpu().numpy()
        return scores

    def _encode(self, cv: str, jd: str, ended: bool) -> tuple[list[int], bool, bool]:
        """Ids, and whether CV or JD were cut: a JD at ``max_jd_tokens`` (EOS counts, and is not there after a cut), a
        CV at ``max_cv_tokens`` and at what is left of the context."""
        output = [*encode_text(self.tokenizer, jd.strip()), *[self.tokenizer.eos_token_id] * ended]
        jd_cut = len(output) > self.max_jd_tokens
        output = output[: self.max_jd_tokens]
        room = self.context - self.prompt.overhead(self.tokenizer) - len(output)
        before, cut = self.prompt.encode(self.tokenizer, cv, min(self.max_cv_tokens, room))
        return before + output, cut > 0, jd_cut


def load_reward_model(files: DatasetFiles, config: Any, merge: bool = False) -> RewardModel:
    """The reward model ``reward_model`` of a dataset; with ``merge`` a LoRA adapter is added into its base's weights.

    ``config`` has saved_folder, reward_model and lm_dtype. Raises ``DataError`` for one that is not there, is
    unfinished, or was trained on another ``NAME.reward.inter``.
    """
    folder = generator_folder(config.saved_folder, files.name, config.reward_model)
    rebuild = f"girl reward {files.name} --reward_model={config.reward_model}"
    if not folder.exists():
        raise DataError(f"{folder}: no such reward model. Run `{rebuild}`.")
    recorded = require(folder, rebuild, kind="reward_model")
    stage = files.stage("reward")
    if stage.exists() and recorded["inputs"].get(stage.name) != file_hash(stage):
        raise DataError(
            f"{folder}: trained on another {stage.name} than {stage}. Run `{rebuild}`, or put the old file back."
        )
    model = _load(folder, config.lm_dtype, merge)
    tokenizer = tokenizer_hash(model.tokenizer)
    require(folder, rebuild, prompt=model.prompt.id, tokenizer=tokenizer, fingerprint=model.fingerprint)
    return model


def untrained(lm: LanguageModel, prompt: Prompt, config: Any) -> RewardModel:
    """A reward model that nothing taught yet: the body of ``lm`` (changed in place), a new head by ``config.seed``."""
    return RewardModel(
        _scorer(lm, None, config.seed), lm.tokenizer, prompt, 0.0, 1.0, config.max_cv_tokens, config.max_jd_tokens,
        lm.fingerprint, f"{lm.name} with a new head",
    )  # fmt: skip


def tokenizer_hash(tokenizer: Any) -> str:
    """Hex hash of a tokenizer's vocabulary, special tokens and way to encode (on a probe of several scripts)."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    probe = encode_text(
        tokenizer, "C++ developer,  5 years;\n\tnaïve Größe 3.14 %\n\n求职者 구직자 соискатель 😀 McDonald's"
    )
    return text_hash(json.dumps([vocabulary, special, probe], ensure_ascii=True))[:16]


def _scorer(lm: LanguageModel, layers: int | None, seed: int) -> Any:
    """A sequence classification model with one label on the ``layers`` lower layers of ``lm``, and a small new head."""
    config = lm.model.config
    if layers is not None:
        _cut(lm, layers)
    config.num_labels = 1
    try:
        kind = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise ConfigError(
            f"reward_base: transformers has no sequence classification model for {type(config).__name__} ({lm.name})."
        ) from None
    with torch.device("meta"):
        model = kind(config)
    if getattr(model, "base_model_prefix", "") != lm.model.base_model_prefix or not hasattr(model, "score"):
        raise ConfigError(
            f"reward_base: {kind.__name__} has no linear head `score` on the backbone of {type(lm.model).__name__} "
            f"({lm.name}); give a causal LM such as a Llama, Qwen or GPT-2."
        )
    setattr(model, model.base_model_prefix, lm.model.base_model)
    width = model.score.in_features
    head = torch.nn.Linear(width, 1, bias=False, dtype=lm.model.dtype)
    noise = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    head.weight = torch.nn.Parameter((noise / (width + 1)).to(lm.model.dtype))
    model.score = head
    return model.to(lm.device).eval()


def _cut(lm: LanguageModel, layers: int) -> None:
    """Keep the ``layers`` lower layers of a decoder stack."""
    config, backbone = lm.model.config.get_text_config(), lm.model.base_model
    depth = config.num_hidden_layers
    stacks = [
        (name, module)
        for name, module in backbone.named_children()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise ConfigError(
            f"reward_layers: no single stack of {depth} layers in {type(backbone).__name__} ({lm.name}); only such a "
            f"model can be cut. Set reward_layers to null, or name a smaller reward_base."
        )
    if not 1 <= layers <= depth:
        raise ConfigError(f"reward_layers: {layers}; {lm.name} has {depth} layers, 1 to {depth} is required.")
    ((name, stack),) = stacks
    setattr(backbone, name, stack[:layers])
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _load(folder: Path, dtype: str, merge: bool = False) -> RewardModel:
    """The model of a folder, with the normalisation of its ``reward.json`` (mean 0 and scale 1 while that has none)."""
    if dtype not in llm.DTYPES:
        raise ConfigError(f"lm_dtype: {dtype!r} is unknown; known: {', '.join(llm.DTYPES)}.")
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not list(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: no *.safetensors; weights in other formats are not loaded.")
    base_fingerprint = ""
    if (folder / "adapter_config.json").exists():
        import peft

        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if (folder / base).is_dir():
            base = str(folder / base)
        lm = llm.load(base, dtype, merge=True)
        base_fingerprint = lm.fingerprint
        model = peft.PeftModel.from_pretrained(_scorer(lm, facts["layers"], facts["seed"]), folder)
        model = model.merge_and_unload() if merge else model
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=llm.DTYPES[dtype], use_safetensors=True, trust_remote_code=False
        )  # fmt: skip
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu", llm.DTYPES[dtype]).eval()
    return RewardModel(
        model, tokenizer, make_prompt(facts["prompt_language"], tokenizer), facts["mean"], facts["scale"],
        facts["max_cv_tokens"], facts["max_jd_tokens"], _fingerprint(folder, tokenizer, base_fingerprint), str(folder),
        facts["slope"], facts["intercept"],
    )  # fmt: skip


def _fingerprint(folder: Path, tokenizer: Any, base_fingerprint: str) -> str:
    """Hash of all that decides the scores: weights, those of an adapter's base, tokenizer, prompt, normalisation."""
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    prompt = make_prompt(facts["prompt_language"], tokenizer)
    weights = map(file_hash, sorted(folder.glob("*.safetensors")))
    decisive = (base_fingerprint, json.dumps(facts, sort_keys=True), prompt.id, tokenizer_hash(tokenizer), *weights)
    return text_hash(*decisive)[:32]


def _write_facts(folder: Path, config: RewardConfig, mean: float, scale: float, slope: float, intercept: float) -> None:
    facts = {
        "mean": mean, "scale": scale, "slope": slope, "intercept": intercept, "layers": config.reward_layers,
        "seed": config.seed, "prompt_language": config.prompt_language, "max_cv_tokens": config.max_cv_tokens,
        "max_jd_tokens": config.max_jd_tokens,
    }  # fmt: skip
    with atomic_write(folder / _FACTS) as file:
        json.dump(facts, file, indent=1)


# ------------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Answer:
    """What a recruiter said of one seeker and one job."""

    user: str
    item: str
    cv: str
    jd: str
    matched: bool


def read_answers(files: DatasetFiles) -> list[Answer]:
    """The rows of ``NAME.reward.inter`` with their texts.

    Raises ``DataError`` where texts are missing, and where a pair is in a valid or test part of a split too.
    """
    path = files.stage("reward")
    table = read_interactions(path)
    if table.empty:
        raise DataError(f"{path}: no row; the reward model learns from matched and mismatched pairs.")
    _check_judges(files, path, set(zip(table["user_id"], table["item_id"], strict=True)))
    cvs, jds = read_texts(files, path, table)
    rows = zip(table["user_id"], table["item_id"], table["label"], strict=True)
    return [Answer(user, item, cvs[user], jds[item], label == 1) for user, item, label in rows]


def _check_judges(files: DatasetFiles, path: Path, pairs: set[tuple[str, str]], warn: bool = True) -> None:
    """No pair that recommenders are tested on may teach the reward model; that a seeker is among them is said."""
    users, known, shared = {user for user, _ in pairs}, {}, {}
    for part in ("valid", "test"):
        for judge in sorted(files.folder.glob(f"{files.name}.*.{part}.inter")):
            rows = read_table(judge, required=("user_id", "item_id"))
            for pair in zip(rows["user_id"], rows["item_id"], strict=True):
                if pair in pairs:
                    known.setdefault(pair, judge.name)
                if pair[0] in users:
                    shared.setdefault(pair[0], judge.name)
    if known:
        (user, item), where = next(iter(known.items()))
        raise DataError(
            f"{path}: {len(known)} of {len(pairs)} pairs are in valid or test too, first {user} {item} in {where}; a "
            f"generator that learns from them knows the answers that it is tested with. Take them out of {path.name}, "
            f"or out of {files.inter.name} and run `girl split {files.name}` again."
        )
    if shared and warn:
        log.warning(
            "%s: %d of %d seekers are in valid or test too (first %s in %s), with other jobs: what recruiters thought "
            "of them is known to the reward model", path, len(shared), len(users), *next(iter(shared.items())),
        )  # fmt: skip


def by_seeker(answers: Sequence[Answer]) -> dict[str, tuple[list[int], list[int]]]:
    """Seeker -> (positions of matched, of mismatched answers), in file order."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for position, answer in enumerate(answers):
        found.setdefault(answer.user, ([], []))[0 if answer.matched else 1].append(position)
    return found


def combinations(
    answers: Sequence[Answer], matched: Sequence[int], mismatched: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """All (matched, mismatched) positions of a seeker, each once, going through both lists evenly; but none whose JDs
    are the same text, which says nothing."""
    m, k = len(matched), len(mismatched)
    for t in range(m * k):
        a, b = matched[t % m], mismatched[(t + t // math.lcm(m, k)) % k]
        if answers[a].jd.strip() != answers[b].jd.strip():
            yield a, b


def draw_pairs(answers: Sequence[Answer], most: int, seed: int) -> list[tuple[int, int]]:
    """(matched, mismatched) positions in ``answers``: at most ``most`` of each seeker.

    A seeker's draw depends on the seed and the id alone. Of p pairs with m matched jobs each of these has p / m,
    rounded up or down, and the mismatched ones likewise, but for pairs of equal texts, which are left out.
    """
    pairs: list[tuple[int, int]] = []
    for user, (matched, mismatched) in by_seeker(answers).items():
        if matched and mismatched:
            random = np.random.default_rng([seed, int(text_hash(user)[:12], 16)])
            shuffled = random.permutation(matched).tolist(), random.permutation(mismatched).tolist()
            pairs += [pair for _, pair in zip(range(most), combinations(answers, *shuffled), strict=False)]
    return pairs


def sample_mismatches(stage: Sequence[Answer], jobs: int, seekers: int, seed: int) -> list[Answer]:
    """The matches of at most ``seekers`` seekers of ``stage``, and for each of these seekers ``jobs`` mismatches: the
    jobs of other matches of the stage, drawn at random, but none that the seeker has an answer for.

    Matches and mismatches are thus jobs of the same kinds, equally often: what tells them apart is the CV. What is
    drawn for a seeker depends on the seed, the id and the stage's matches.
    """
    matches = [answer for answer in stage if answer.matched]
    of_user: dict[str, list[Answer]] = {}
    for answer in matches:
        of_user.setdefault(answer.user, []).append(answer)
    known = {(answer.user, answer.item) for answer in stage}
    answers: list[Answer] = []
    for user in sorted(of_user, key=lambda user: text_hash(str(seed), user))[:seekers]:
        random = np.random.default_rng([seed, int(text_hash(user)[:12], 16)])
        drawn = {matches[i].item: matches[i].jd for i in random.integers(len(matches), size=jobs)}
        answers += of_user[user]
        cv = of_user[user][0].cv
        answers += [Answer(user, item, cv, jd, False) for item, jd in drawn.items() if (user, item) not in known]
    return answers


def _stages(config: RewardConfig) -> list[str]:
    chosen = config.reward_sampled_stages
    return [chosen] if isinstance(chosen, str) else list(chosen)


def _matches(files: DatasetFiles, held: Sequence[Answer]) -> list[Answer]:
    """The matches of the sft stage, but those of held-out CVs."""
    pairs, judged = read_pairs(files)[0], {answer.cv for answer in held}
    _check_judges(files, files.stage("sft"), {(pair.user, pair.item) for pair in pairs}, warn=False)
    return [Answer(pair.user, pair.item, pair.cv, pair.jd, True) for pair in pairs if pair.cv not in judged]


# ----------------------------------------------------------------------------------------------------------- the stage


def train(files: DatasetFiles, config: RewardConfig) -> dict[str, Any]:
    """Train on the answers of ``NAME.reward.inter`` and save the reward model. Returns a report.

    Raises ``DataError`` for missing texts, where no seeker has answers of both kinds, for pairs that recommenders are
    tested on, and when checkpoints of a run with other data or settings are in the way.
    """
    start = time.monotonic()
    _check(config)
    folder = generator_folder(config.saved_folder, files.name, config.reward_model)
    work = folder.with_name(folder.name + ".checkpoints")
    stages = {"reward", *(_stages(config) if config.reward_sampled else ())}
    inputs = [*(files.stage(stage) for stage in sorted(stages)), files.udoc, files.idoc]
    hashes = {path.name: file_hash(path) for path in inputs if path.exists()}
    settings = dataclasses.asdict(config)
    recorded = (read_manifest(folder) if folder.exists() else None) or {}
    if recorded.get("kind", "reward_model") != "reward_model":
        raise ConfigError(f"reward_model: {folder} holds a {recorded['kind']}; give the reward model another name.")
    same = recorded.get("config") == json.loads(json.dumps(settings)) and recorded.get("inputs") == hashes
    if same and recorded["base_fingerprint"] == _fingerprint_now(files, config, recorded):
        said = "all: trained already with these settings on these files; delete the folder to train again"
        return {"folder": str(folder), **recorded["report"], "reused": said}
    process = this_process()
    answers = read_answers(files)
    training, held = hold_out(answers, config.reward_eval_share, config.seed, "reward_eval_share")
    pairs, held_pairs = (draw_pairs(part, config.max_pairs_per_cv, config.seed) for part in (training, held))
    _check_pairs(inputs[0], answers, training, pairs)
    observed = len(pairs)
    for stage in _stages(config) if config.reward_sampled else ():
        rows = training[: len(answers) - len(held)] if stage == "reward" else _matches(files, held)
        more = sample_mismatches(rows, config.reward_sampled, config.reward_sampled_seekers, config.seed)
        sampled = draw_pairs(more, config.max_pairs_per_cv, config.seed)
        pairs += [(a + len(training), b + len(training)) for a, b in sampled]
        training = training + more
    if held and not held_pairs:
        log.warning("no held-out seeker has jobs of both kinds, so no accuracy is known; raise reward_eval_share")
    lm = _base(files, config)
    if process.is_main_process:
        done = 1 if last_checkpoint(work) else 0
        claim(work, settings | hashes | {"base": lm.fingerprint}, done, "checkpoints", "girl reward")
    process.wait_for_everyone()
    prompt = make_prompt(config.prompt_language, lm.tokenizer)
    cv_room(lm, prompt, config.max_jd_tokens)
    before = RewardModel(
        _scorer(lm, config.reward_layers, config.seed), lm.tokenizer, prompt, 0.0, 1.0, config.max_cv_tokens,
        config.max_jd_tokens, "", lm.name,
    )  # fmt: skip
    sequences, cut = _encode(before, training)
    held_sequences, _ = _encode(before, held)
    if any(cut.values()):
        log.warning("%(cvs_cut)d CVs and %(jds_cut)d JDs of training rows were cut at their ends", cut)
    users_of = {tuple(ids): answer.user for ids, answer in zip(sequences, training, strict=True)}
    examples, held_examples = _examples(sequences, pairs), _examples(held_sequences, held_pairs)
    trainer = _fit(before, users_of, examples, held_examples, config, work)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    partial = folder.with_name(f".{folder.name}.partial")
    trainer.save_model(str(partial))
    process.wait_for_everyone()
    if not process.is_main_process:
        return {"folder": str(folder)}
    for left_over in ("training_args.bin", "README.md"):  # a pickle, and a model card that knows nothing of the data
        (partial / left_over).unlink(missing_ok=True)
    if config.lora_rank:
        _name_base(partial / "adapter_config.json", lm.name)
    _write_facts(partial, config, 0.0, 1.0, 1.0, 0.0)
    model = _load(partial, config.lm_dtype)  # what follows judges what was saved
    size = 2 * config.reward_batch_size
    used = sorted({position for pair in pairs[:observed] for position in pair})
    raw = np.full(len(training), np.nan)
    raw[used] = model.raw([sequences[i] for i in used], size)
    mean, scale = normalisation(raw[used], [training[i].user for i in used])
    held_raw = model.raw(held_sequences, size)
    on_held = len({answer.matched for answer in held}) == 2
    known, labelled = (held_raw, held) if on_held else (raw[used], [training[i] for i in used])
    slope, intercept = fit_platt((known - mean) / scale, [answer.matched for answer in labelled])
    _write_facts(partial, config, mean, scale, slope, intercept)
    users = by_seeker(answers)
    report = {
        "seekers": len(users),
        "seekers_of_one_kind": sum(not (matched and mismatched) for matched, mismatched in users.values()),
        "training_seekers": len({training[a].user for a, _ in pairs[:observed]}),
        "sampled_pairs": len(pairs) - observed,
        **cut,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "trained_parameters": trained,
        "training": _judge_pairs(raw, pairs[:observed]),
        "held_out": judge(held_raw, held, config.seed) if held else None,
        "calibrated_on": "held-out seekers" if on_held else "training seekers",
        "mean": mean,
        "scale": scale,
    }
    write_lines(partial / "log.jsonl", trainer.state.log_history)
    manifest_path(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    seconds = round(time.monotonic() - start, 1)
    write_manifest(
        folder, "reward_model", config=settings, inputs=inputs, seed=config.seed, wall_time_s=seconds,
        prompt=prompt.id, tokenizer=tokenizer_hash(model.tokenizer),
        fingerprint=_fingerprint(folder, model.tokenizer, lm.fingerprint if config.lora_rank else ""),
        base_fingerprint=lm.fingerprint, report=report,
    )  # fmt: skip
    shutil.rmtree(work)
    return {"folder": str(folder), **report, "wall_time_s": seconds}


def _check(config: RewardConfig) -> None:
    check_training(config, "reward")
    check_least(
        config, max_cv_tokens=1, max_jd_tokens=1, max_pairs_per_cv=1, reward_sampled=0, reward_sampled_seekers=1
    )
    unknown = [stage for stage in _stages(config) if stage not in ("reward", "sft")]
    if unknown or not _stages(config):
        raise ConfigError(f"reward_sampled_stages: {', '.join(unknown) or 'none'}; known: reward, sft.")
    if config.lm_dtype not in llm.DTYPES:
        raise ConfigError(f"lm_dtype: {config.lm_dtype!r} is unknown; known: {', '.join(llm.DTYPES)}.")
    make_prompt(config.prompt_language)
    if config.reward_model == config.start_generator and config.reward_base == "generator":
        raise ConfigError(
            f"reward_model: {config.reward_model!r} is the generator to start from; give the reward model another name."
        )


def _check_pairs(path: Path, answers: list[Answer], training: list[Answer], pairs: list[tuple[int, int]]) -> None:
    users = by_seeker(answers)
    matched = sum(bool(m) and not k for m, k in users.values())
    mismatched = sum(bool(k) and not m for m, k in users.values())
    both = len(users) - matched - mismatched
    if not both:
        raise DataError(
            f"{path}: none of {len(users)} seekers has both a matched and a mismatched job ({matched} have matched "
            f"ones only, {mismatched} mismatched ones only); Eq. 2 compares two jobs of one seeker. Add answers, or "
            f"sample mismatches with `girl prepare` (its key: negatives)."
        )
    if not pairs:
        raise DataError(
            f"{path}: no pair to train on: of {both} seekers with jobs of both kinds, "
            f"{len({a.user for a in training} & {u for u, (m, k) in users.items() if m and k})} are not held out, and "
            f"their matched and mismatched JDs are equal texts. Lower reward_eval_share, or correct the texts."
        )


def _fingerprint_now(files: DatasetFiles, config: RewardConfig, recorded: dict[str, Any]) -> str | None:
    """That of the generator to start from; of another base, which is not loaded for this, the recorded one."""
    if config.reward_base != "generator":
        return recorded["base_fingerprint"]
    generator = generator_folder(config.saved_folder, files.name, config.start_generator)
    return (read_manifest(generator) or {}).get("fingerprint")


def _base(files: DatasetFiles, config: RewardConfig) -> LanguageModel:
    """The language model that the reward model starts from; LoRA keeps it in lm_dtype, full training in float32."""
    dtype = config.lm_dtype if config.lora_rank else "fp32"
    if config.reward_base == "generator":
        return load_generator(
            files, config.start_generator, config.saved_folder, dtype, config.prompt_language, merge=True
        )[0]  # fmt: skip
    return llm.load(config.reward_base, dtype, merge=True)


def _name_base(path: Path, base: str) -> None:
    """Write the base into an adapter's config: a folder beside it relative to it, so that both can move together."""
    adapter_config = json.loads(path.read_text(encoding="utf-8"))
    if Path(base).is_dir():
        beside = Path(base).resolve().parent == path.resolve().parent.parent
        base = os.path.relpath(base, path.parent) if beside else str(Path(base).resolve())
    adapter_config["base_model_name_or_path"] = base
    with atomic_write(path) as file:
        json.dump(adapter_config, file, indent=2)


def _encode(model: RewardModel, answers: list[Answer]) -> tuple[list[list[int]], dict[str, int]]:
    encoded = [model._encode(answer.cv, answer.jd, True) for answer in answers]
    counts = {"cvs_cut": sum(cut for _, cut, _ in encoded), "jds_cut": sum(cut for _, _, cut in encoded)}
    return [ids for ids, _, _ in encoded], counts


def _examples(sequences: list[list[int]], pairs: list[tuple[int, int]]) -> list[dict[str, list[int]]]:
    return [{"chosen_ids": sequences[a], "rejected_ids": sequences[b]} for a, b in pairs]


def _fit(
    before: RewardModel, users_of: dict[tuple, str], examples: list[dict], held: list[dict], config: RewardConfig,
    folder: Path,
) -> Any:  # fmt: skip
    """Train ``before.model`` with TRL's RewardTrainer, from the last whole checkpoint in ``folder``. ``users_of``: the
    seekers of the sequences, for messages."""
    import datasets
    import trl

    def whose(inputs: dict[str, Any]) -> str:
        rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True)
        seekers = dict.fromkeys(users_of.get(tuple(ids[:size]), "?") for ids, size in rows)
        return f"a batch of the seekers {some_of(seekers)}"

    class Trainer(guarded(trl.RewardTrainer, "reward_learning_rate", whose)):
        """Pairs of a seeker share batches, and a sequence that several pairs of a batch have is read once."""

        def _get_train_sampler(self, train_dataset=None):
            lengths = [max(len(example["chosen_ids"]), len(example["rejected_ids"])) for example in examples]
            return LengthSampler(
                lengths, config.reward_batch_size, config.seed,
                groups=[users_of[tuple(example["chosen_ids"])] for example in examples],
            )  # fmt: skip

        def compute_loss(self, model, inputs, *args, **kwargs):
            first, which = _distinct(inputs["input_ids"])

            def read_once(input_ids, attention_mask, **more):
                out = model(input_ids=input_ids[first], attention_mask=attention_mask[first], **more)
                out.logits = out.logits[which]
                return out

            return super().compute_loss(read_once, inputs, *args, **kwargs)

    arguments = trl.RewardConfig(
        **training_arguments(config, "reward", folder, bool(held)),
        max_length=None,  # lengths are settled by RewardModel.encode
        disable_dropout=False,  # lora_dropout is meant
    )
    trainer = Trainer(
        model=before.model, args=arguments, train_dataset=datasets.Dataset.from_list(examples),
        eval_dataset=datasets.Dataset.from_list(held) if held else None,
        processing_class=before.tokenizer, peft_config=adapter(config, head="score"),
    )  # fmt: skip
    fit(trainer, folder)
    return trainer


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(U,) where each distinct row of (B, T) comes first, and (B,) which of them each row is."""
    distinct, which = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    first = torch.full((len(distinct),), len(rows), device=rows.device).scatter_reduce(0, which, places, "amin")
    return first, which


# ------------------------------------------------------------------------------------------------------------- judging


def normalisation(raw: np.ndarray, users: Sequence[str]) -> tuple[float, float]:
    """(mean, scale) of raw scores (N,) of the seekers ``users``: the overall mean, and the standard deviation within a
    seeker, pooled over seekers."""
    _, group = np.unique(np.asarray(users), return_inverse=True)
    within = _centred(raw, group)
    scale = math.sqrt((within**2).sum() / max(len(raw) - group.max() - 1, 1))
    if not math.isfinite(scale) or scale <= 1e-9 * max(1.0, float(np.abs(raw).max())):
        raise DataError(
            f"the reward model gives all jobs of a seeker the same score (spread {scale:.3g} over {len(raw)} texts): "
            f"nothing was learned; train longer, or with another reward_learning_rate or reward_base."
        )
    return float(raw.mean()), scale


def judge(raw: np.ndarray, answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    """Measures of raw scores (N,) of ``answers`` (N,), as the module's docstring lists them; None where undefined."""
    users = by_seeker(answers)
    labels = np.array([answer.matched for answer in answers])
    _, group = np.unique([answer.user for answer in answers], return_inverse=True)
    of_seeker = [list(combinations(answers, m, k)) for m, k in users.values() if m and k]
    pairs = np.array([pair for part in of_seeker for pair in part], dtype=np.int64).reshape(-1, 2)
    report: dict[str, Any] = {"rows": len(answers), "seekers": len(users), "seekers_of_both_kinds": len(of_seeker)}
    if len(pairs):
        report |= _judge_pairs(raw, pairs)
        wins = [_wins(raw, np.array(part)).mean() for part in of_seeker if part]
        report["accuracy_per_cv"] = float(np.mean(wins))
        both = np.isin(np.arange(len(answers)), pairs)
        report["auc"] = float(roc_auc_score(labels[both], raw[both]))
        report["auc_centred"] = float(roc_auc_score(labels[both], _centred(raw[both], group[both])))
        flipped = np.random.default_rng(seed).random(len(pairs)) < 0.5
        margin = raw[pairs[:, 0]] - raw[pairs[:, 1]]
        report["ece"] = ece(expit(np.where(flipped, -margin, margin)), (~flipped).astype(float), _BINS)
    report["logloss"] = _cross_fitted(raw, labels, group)
    report["prior"] = prior_entropy(labels.astype(float))
    return report


def _judge_pairs(raw: np.ndarray, pairs: Any) -> dict[str, Any]:
    pairs = np.asarray(pairs)
    loss = pairwise_loss(torch.from_numpy(raw[pairs[:, 0]]), torch.from_numpy(raw[pairs[:, 1]])).item()
    return {"pairs": len(pairs), "loss": loss, "pairwise_accuracy": float(_wins(raw, pairs).mean())}


def _wins(raw: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    margin = raw[pairs[:, 0]] - raw[pairs[:, 1]]
    return (margin > 0) + 0.5 * (margin == 0)


def _centred(raw: np.ndarray, group: np.ndarray) -> np.ndarray:
    return raw - (np.bincount(group, weights=raw) / np.maximum(np.bincount(group), 1))[group]


def _cross_fitted(raw: np.ndarray, labels: np.ndarray, group: np.ndarray) -> float | None:
    """LogLoss of Platt-scaled scores, each seeker's by a fit on the seekers of the other folds."""
    probabilities = np.empty(len(raw))
    for fold in range(_FOLDS):
        here = group % _FOLDS == fold
        if len(set(labels[~here])) < 2:
            return None
        if here.any():
            slope, intercept = fit_platt(raw[~here], labels[~here])
            probabilities[here] = expit(slope * raw[here] + intercept)
    return float(log_loss(labels, probabilities, labels=[0, 1]))


# ------------------------------------------------------------------------------------------------------------- scoring


def score(files: DatasetFiles, config: ScoreConfig, cv: str, jds: Sequence[str]) -> dict[str, Any]:
    """How well the JDs fit the CV, by the reward model: normalised score and calibrated probability of a match of each.

    ``cv`` and ``jds`` are paths of text files, or ``-`` for standard input. The report names files, and quotes nothing.
    """
    if [cv, *jds].count("-") > 1:
        raise ConfigError("'-' stands for standard input, which can be read once; give files for the other texts.")
    texts = [_read_text(name) for name in (cv, *jds)]
    model = load_reward_model(files, config)
    encoded = [model._encode(texts[0], jd, True) for jd in texts[1:]]
    scores = (model.raw([ids for ids, _, _ in encoded]) - model.mean) / model.scale
    bad = [name for name, value in zip(jds, scores, strict=True) if not math.isfinite(value)]
    if bad:
        raise DataError(f"{model.name}: the score of {some_of(bad)} is not a number; train the reward model again.")
    if encoded[0][1]:
        log.warning(
            "%s is longer than the %d tokens that the model reads of a CV, and was cut", cv, model.max_cv_tokens
        )
    rows = [
        {"jd": name, "score": round(float(value), 4), "probability": round(float(chance), 4), "cut": cut}
        for name, value, chance, (_, _, cut) in zip(jds, scores, model.probability(scores), encoded, strict=True)
    ]
    return {"reward_model": model.name, "cv": cv, "scores": rows}


def _read_text(name: str) -> str:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8.") from None
    if not text.strip():
        raise DataError(f"{name}: an empty text cannot be scored.")
    return text
