"""Vectors of ids for models (Eqs 9 and 12): rows read from files (frozen), or made by an encoder that is in training.

``rows(kind, ids)`` -> (len(ids), D) float32, for kind ``cv``, ``jd`` or ``gen`` (generated JDs, the mean of n samples
an id); the padding id 0 is a zero row.

FrozenRows    a table a kind, gathered by id. The tables are buffers that no checkpoint holds and no DDP step sends.
TunedRows     the encoder itself. Texts are cut into tokens once; the distinct ids of a batch are encoded once, with
              gradients while training; outside training vectors are kept until a weight changes. ``full`` trains all
              weights and checkpoints them; ``lora`` trains LoRA adapters (peft) and checkpoints those alone.

Both remember the encoder's SHA-256, and refuse a checkpoint that was trained on another encoder's vectors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from girl_recbole.embed import EmbedConfig
from girl_recbole.encoder import Encoder, Windows, encoder_folder, encoder_hash
from girl_recbole.errors import ConfigError, DataError

__all__ = ["FrozenRows", "TunedRows", "weights_key"]


def weights_key(module: nn.Module) -> tuple:
    """Changes whenever a parameter or buffer of ``module`` is written to or moved: the key of a cache."""
    return tuple((t.data_ptr(), t._version) for t in (*module.parameters(), *module.buffers()))


class _Rows(nn.Module):
    def __init__(self, encoder: str) -> None:
        super().__init__()
        sha256 = bytearray.fromhex(encoder_hash(encoder_folder(encoder)))
        self._encoder_name = encoder
        self.register_buffer("encoder_sha256", torch.frombuffer(sha256, dtype=torch.uint8).clone())
        self.register_load_state_dict_pre_hook(_check_encoder)


def _check_encoder(module: _Rows, state: dict, prefix: str, *_) -> None:
    saved = state.get(f"{prefix}encoder_sha256")
    if saved is not None and not torch.equal(saved.cpu(), module.encoder_sha256.cpu()):
        raise DataError(
            f"this checkpoint was trained on another encoder's vectors (SHA-256 {bytes(saved.cpu())[:6].hex()}..., "
            f"encoder {module._encoder_name!r} now is {bytes(module.encoder_sha256.cpu())[:6].hex()}...). Use the "
            f"encoder it was trained with, or train again."
        )


class FrozenRows(_Rows):
    """``tables[kind]``: (ids, D) float16 or float32, row = id, row 0 zeros. They stay as they are; rows are float32."""

    def __init__(self, encoder: str, tables: dict[str, np.ndarray]) -> None:
        super().__init__(encoder)
        for kind, table in tables.items():
            self.register_buffer(kind, torch.from_numpy(table), persistent=False)
        self.buffers_of_rows = tuple(tables)
        self.dimension = next(iter(tables.values())).shape[1]

    def forward(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        return getattr(self, kind)[ids].float()

    def __deepcopy__(self, memo) -> FrozenRows:
        """A copy (RecBole makes one to count operations) shares the tables, which nobody writes to."""
        copied = FrozenRows.__new__(FrozenRows)
        nn.Module.__init__(copied)
        copied.__dict__.update(
            {k: v for k, v in self.__dict__.items() if k in ("_encoder_name", "dimension", "training")}
        )
        for name, value in self.named_buffers():
            copied.register_buffer(name, value, persistent=name not in self.buffers_of_rows)
        copied.buffers_of_rows = self.buffers_of_rows
        copied.register_load_state_dict_pre_hook(_check_encoder)
        return copied


class TunedRows(_Rows):
    """``texts[kind][id]``: the n texts of an id, [] for the padding id; n is the same for all ids of a kind."""

    buffers_of_rows = ()

    def __init__(
        self,
        config: EmbedConfig,
        texts: dict[str, list[list[str]]],
        *,
        mode: str,
        lora_rank: int,
        lora_alpha: int,
        lora_dropout: float,
        device: torch.device,
    ) -> None:
        super().__init__(config.encoder)
        if config.text_windows != 1:
            raise ConfigError(
                f"text_windows: {config.text_windows} with tune_encoder: {mode}; an encoder in training reads one "
                f"window a text. Set text_windows: 1 (and max_text_tokens as high as memory allows)."
            )
        self._reader = [Encoder(config.encoder, max_tokens=config.max_text_tokens, device=device)]  # its module: below
        encoder = self._reader[0]
        if mode == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            lora = LoraConfig(
                r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules="all-linear"
            )
            inject_adapter_in_model(lora, encoder.model[0].auto_model)
        else:
            encoder.model.requires_grad_(True)
        self.encoder = encoder.model
        self.dimension = encoder.dimension
        self._batch_tokens = config.encoder_batch_tokens
        self._windows: dict[str, Windows] = {}
        self._samples: dict[str, int] = {}
        for kind, several in texts.items():
            self._samples[kind] = len(several[1]) if len(several) > 1 else 1
            self._windows[kind] = encoder.tokenize([text for one in several[1:] for text in one])
        self._cache: dict[str, tuple[tuple, torch.Tensor, torch.Tensor]] = {}
        if mode == "lora":
            self._frozen = {f"encoder.{n}" for n, p in self.encoder.named_parameters() if not p.requires_grad}
            self.register_state_dict_post_hook(_leave_out_frozen)
            self.register_load_state_dict_pre_hook(_fill_in_frozen)

    def forward(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        distinct, place = torch.unique(ids, return_inverse=True)
        if self.training or torch.is_grad_enabled():
            return self._encode(kind, distinct)[place]
        key = weights_key(self.encoder)
        kept = self._cache.get(kind)
        if kept is None or kept[0] != key:
            count = len(self._windows[kind].truncated) // self._samples[kind] + 1
            table = torch.zeros(count, self.dimension, device=ids.device)
            kept = self._cache[kind] = (key, table, torch.zeros(count, dtype=torch.bool, device=ids.device))
        _, table, known = kept
        new = distinct[~known[distinct]]
        if len(new):
            table[new] = self._encode(kind, new)
            known[new] = True
        return table[ids]

    def _encode(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), D) vectors of distinct ids: the mean over each id's samples; zeros for the id 0."""
        windows, n = self._windows[kind], self._samples[kind]
        real = ids[ids > 0].cpu().numpy()
        which = ((real[:, None] - 1) * n + np.arange(n)).ravel()  # one window a text
        batches = self._reader[0].batches(windows, which, self._batch_tokens)
        out = torch.zeros(len(ids), self.dimension, device=ids.device)
        if not batches:
            return out
        parts = torch.cat([self._reader[0].forward(windows, batch) for batch in batches])
        back = torch.from_numpy(np.argsort(np.concatenate(batches))).to(ids.device)  # which is ascending
        vectors = parts[back].view(len(real), n, -1).mean(dim=1)
        return out.index_copy(0, torch.nonzero(ids > 0)[:, 0], vectors)


def _leave_out_frozen(module: TunedRows, state: dict, prefix: str, _) -> None:
    for name in module._frozen:
        state.pop(prefix + name, None)


def _fill_in_frozen(module: TunedRows, state: dict, prefix: str, *_) -> None:
    own: Iterable[tuple[str, torch.Tensor]] = module.named_parameters()
    for name, value in own:
        if name in module._frozen:
            state.setdefault(prefix + name, value.detach())
