"""The RecBole dataset of our models: labelled pairs as they are, and texts or vectors aligned to RecBole's ids.

Pairs      NAME.inter or the benchmark files, read by atomic.py: labels are 0 (mismatched) or 1 (matched), ids are text
           (RecBole itself would read the id ``NA`` as missing and the seeker as padding). No pair is sampled. In a
           ranking evaluation (mode full, uni100, ...) RecBole takes every pair of a part for a relevant one, so there
           a mismatched pair of valid or test is not one of the pairs to be found; its job stays among the candidates.
Vectors    ``vectors("cv")`` is (user_num, D) float32: row = RecBole's internal id, row 0 = padding = zeros. Models
           gather rows by id, so memory grows with seekers and jobs and not with pairs. The dataset keeps none of them:
           a saved dataset or data loader holds no vectors, and a reloaded one reads them from their files again.
Texts      ``texts("cv")``: a list of texts an id, for models that read words.

An id that has no text is an error that names it. Vectors that are missing or stale are made first (``auto_embed``), by
whichever process comes first; the others wait.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from girl_recbole.atomic import SPLITS, DatasetFiles, read_interactions
from girl_recbole.config import make_config
from girl_recbole.embed import EmbedConfig, StaleVectors, embed, load_vectors, read_texts
from girl_recbole.errors import ConfigError, DataError, some_of

__all__ = ["GIRLDataset"]

_log = logging.getLogger(__name__)


class GIRLDataset(Dataset):
    def __init__(self, config):
        sampling = config["train_neg_sample_args"]["distribution"]
        if sampling != "none":
            raise ConfigError(
                f"train_neg_sample_args: distribution {sampling!r}; {config['model']} learns from the labels in the "
                f"data, and sampling beside them would take mismatched pairs for matched ones. Set "
                f"train_neg_sample_args: null (to sample mismatches, do it when the data are prepared)."
            )
        super().__init__(config)

    @property
    def files(self) -> DatasetFiles:
        return DatasetFiles(Path(self.dataset_path), self.dataset_name)

    @property
    def embed_config(self) -> EmbedConfig:
        """The encoder's settings of this run."""
        names = [field.name for field in dataclasses.fields(EmbedConfig)]
        return make_config(EmbedConfig, overrides={name: self.config[name] for name in names if name in self.config})

    def vectors(self, kind: str, n_samples: int = 1) -> np.ndarray:
        """(user_num or item_num, D) float32 of ``cv``, ``jd`` or ``gen.<generator>``: row = internal id, row 0 zeros.

        Of generated JDs, the mean of the first ``n_samples`` of each seeker.
        """
        ids, config = self._ids(kind), self.embed_config
        try:
            rows = load_vectors(self.files, config, kind, ids, n_samples)
        except StaleVectors as stale:
            if not self.config["auto_embed"]:
                raise
            _log.warning("%s Doing it now (auto_embed).", stale)
            embed(self.files, dataclasses.replace(config, n_generated=n_samples), kinds=[kind])
            rows = load_vectors(self.files, config, kind, ids, n_samples)
        table = np.zeros((len(ids) + 1, rows.shape[1]), np.float32)
        table[1:] = rows
        return table

    def texts(self, kind: str, n_samples: int = 1) -> list[list[str]]:
        """``texts(kind)[internal id]``: n_samples texts (one for cv and jd); [] for the padding id."""
        ids = self._ids(kind)
        found = read_texts(self.files, kind, ids, n_samples)
        short = [key for key in ids if len(found.get(key, ())) < n_samples]
        if short:
            raise DataError(
                f"{self.dataset_name}: {len(short)} of {len(ids)} ids have fewer than {n_samples} {kind} texts "
                f"(first: {some_of(short)}); {n_samples} each are required."
            )
        return [[], *(found[key][:n_samples] for key in ids)]

    def build(self):
        """RecBole's split; then, in parts that are ranked, only matched pairs are to be found."""
        parts = super().build()
        modes = self.config["eval_args"]["mode"]
        for name, part in zip(("train", "valid", "test"), parts, strict=True):
            if name == "train" or modes[name] == "labeled":
                continue
            matched = (part.inter_feat[self.label_field] > 0.5).numpy()
            if not matched.all():
                _log.info("%s: %d mismatched pairs of %s are not relevant.", self.dataset_name, (~matched).sum(), name)
                part.inter_feat = part.inter_feat[np.flatnonzero(matched)]
        return parts

    def _ids(self, kind: str) -> list[str]:
        field = self.iid_field if kind == "jd" else self.uid_field
        return self.field2id_token[field][1:].tolist()

    def _load_inter_feat(self, token, dataset_path):
        for name in self.benchmark_filename_list or ():
            path = self.files.path(f"{name}.inter")
            if not path.exists():
                raise DataError(f"{path}: no such file.{_split_command(token, name)}")
        super()._load_inter_feat(token, dataset_path)

    def _load_feat(self, filepath, source):
        """Pairs are read by atomic.py, side features by RecBole."""
        if source is not FeatureSource.INTERACTION:
            return super()._load_feat(filepath, source)
        frame = read_interactions(Path(filepath))
        names = {
            "user_id": self.uid_field,
            "item_id": self.iid_field,
            "label": self.label_field,
            "timestamp": self.time_field,
        }
        frame = frame[[name for name in names if name in frame]].rename(columns=names)
        for name in frame:
            token = name in (self.uid_field, self.iid_field)
            self.field2source[name] = source
            self.field2type[name] = FeatureType.TOKEN if token else FeatureType.FLOAT
            self.field2seqlen[name] = 1
            if not token:
                self.field2bucketnum[name] = 2
        return frame


def _split_command(dataset: str, name: str) -> str:
    """What makes the part ``cold.train`` or ``cold-s1.train``; nothing for files that `girl split` does not make."""
    rule, _, suffix = name.partition(".")[0].partition("-")
    if rule not in SPLITS:
        return ""
    return f" Run `girl split {dataset} --split={rule}" + (f" --split_suffix={suffix}`." if suffix else "`.")
