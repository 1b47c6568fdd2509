"""The RecBole dataset of our models: labelled pairs as they are, and texts or vectors aligned to RecBole's ids.

Pairs      NAME.inter or the benchmark files, read by atomic.py: labels are 0 (mismatched) or 1 (matched), ids are text
           (RecBole itself would read the id ``NA`` as missing and the seeker as padding). No pair is sampled. In a
           ranking evaluation (mode full, uni100, ...) RecBole takes every pair of a part for a relevant one, so there
           a mismatched pair of valid or test is not one of the pairs to be found; its job stays among the candidates.
           Until RecBole has numbered them, ids are categories: a text an id and four bytes a pair.
           ``train_share`` keeps a share of the training pairs, drawn by ``seed``, a smaller share within a larger one.
           ``train_stages: [sft, reward]`` adds the pairs of these stages to the training part: what a generator learnt
           from, for models that read no generated JD. A stage that has matches only (sft) gets
           ``train_stages_sampled`` mismatches a match: the same seeker with the job of another seeker's match.
Vectors    ``vectors("cv")`` is (user_num, D), row = RecBole's internal id, row 0 = padding = zeros; float16 as on disk,
           float32 where it is a mean of several JDs. Models gather rows by id, so memory grows with seekers and jobs
           and not with pairs. The dataset keeps none of them: a saved dataset or data loader holds no vectors, and a
           reloaded one reads them from their files again.
Texts      ``texts("cv")``: a list of texts an id, for models that read words.

An id that has no text is an error that names it. Vectors that are missing or stale are made first (``auto_embed``), by
whichever process comes first; the others wait.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import csv
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from girl_recbole.atomic import SPLITS, DatasetFiles, check_lines, read_header, read_interactions
from girl_recbole.config import make_config
from girl_recbole.embed import EmbedConfig, StaleVectors, embed, load_vectors, read_texts
from girl_recbole.errors import ConfigError, DataError, some_of

__all__ = ["GIRLDataset"]

_log = logging.getLogger(__name__)
_BLOCK = 1 << 24  # bytes of a file of pairs that are parsed at once


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
        """(user_num or item_num, D) of ``cv``, ``jd`` or ``gen.<generator>``: row = internal id, row 0 zeros.

        float16, which is what the files hold; of generated JDs the mean of the first ``n_samples`` of each seeker,
        float32 where these are several.
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
        table = np.empty((len(ids) + 1, rows.shape[1]), np.float16 if n_samples == 1 else np.float32)
        table[0], table[1:] = 0, rows
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
        """RecBole's split; then the share of train that is asked for, and, in parts that are ranked, matches alone."""
        parts = super().build()
        share = self.config["train_share"]
        if share < 1:
            count = len(parts[0].inter_feat)
            order = np.random.default_rng([self.config["seed"], 1]).permutation(count)
            kept = np.sort(order[: max(1, round(share * count))])
            parts[0].inter_feat = _take(parts[0].inter_feat, torch.from_numpy(kept))
        modes = self.config["eval_args"]["mode"]
        for name, part in zip(("train", "valid", "test"), parts, strict=True):
            if name == "train" or modes[name] == "labeled":
                continue
            matched = part.inter_feat[self.label_field] > 0.5
            if not matched.all():
                _log.info("%s: %d mismatched pairs of %s are not relevant.", self.dataset_name, (~matched).sum(), name)
                part.inter_feat = _take(part.inter_feat, matched)
        return parts

    def __getitem__(self, index, join=True):
        """As RecBole's, which makes a list of Python numbers of an index array, once a column."""
        if not isinstance(index, np.ndarray):
            return super().__getitem__(index, join)
        pairs = _take(self.inter_feat, torch.from_numpy(index))
        return self.join(pairs) if join else pairs

    def _ids(self, kind: str) -> list[str]:
        field = self.iid_field if kind == "jd" else self.uid_field
        return self.field2id_token[field][1:].tolist()

    def _load_inter_feat(self, token, dataset_path):
        """As RecBole's, with one set of categories for the ids of all parts."""
        share, stages = self.config["train_share"], self.config["train_stages"]
        if not 0 < share <= 1:
            raise ConfigError(f"train_share: {share}; a share above 0 and at most 1 is required.")
        if self.benchmark_filename_list is None:
            if stages:
                raise ConfigError(f"train_stages: {stages} needs the parts that `girl split {token}` writes.")
            super()._load_inter_feat(token, dataset_path)
            return
        parts = []
        for name in self.benchmark_filename_list:
            path = self.files.path(f"{name}.inter")
            if not path.exists():
                raise DataError(f"{path}: no such file.{_split_command(token, name)}")
            parts.append(self._load_feat(path, FeatureSource.INTERACTION))
        if stages:
            observed = {stage: self._stage(stage) for stage in stages}
            for stage in stages:
                others = [frame for name, frame in observed.items() if name != stage]
                parts[0] = pd.concat(
                    [parts[0], self._joining(stage, observed[stage], parts, others)], ignore_index=True
                )
            for field in (self.uid_field, self.iid_field):
                parts[0][field] = parts[0][field].astype("category")
        for field in (self.uid_field, self.iid_field):
            ids = pd.api.types.union_categoricals([part[field] for part in parts])
            for part in parts:
                part[field] = part[field].cat.set_categories(ids.categories)
        self.inter_feat = pd.concat(parts, ignore_index=True)
        self.file_size_list = [len(part) for part in parts]

    def _stage(self, stage: str) -> pd.DataFrame:
        """The pairs of ``sft`` or ``reward``."""
        if stage not in ("sft", "reward"):
            raise ConfigError(f"train_stages: {stage!r} is no stage that has pairs; known: sft, reward.")
        path = self.files.stage(stage)
        if not path.exists():
            raise DataError(f"{path}: no such file; train_stages: [{stage}] needs the pairs of that stage.")
        frame = self._load_feat(path, FeatureSource.INTERACTION)
        return frame.astype({self.uid_field: str, self.iid_field: str})

    def _joining(
        self, stage: str, frame: pd.DataFrame, parts: list[pd.DataFrame], others: list[pd.DataFrame]
    ) -> pd.DataFrame:
        """The pairs of a stage that are in no part, with drawn mismatches, of which none is a pair of ``others``, where
        the stage has none. A pair of several stages joins with the first."""
        pair, drawn = [self.uid_field, self.iid_field], 0
        if frame[self.label_field].min() > 0.5:
            other = _mismatches(frame, self.config["train_stages_sampled"], *pair, self.config["seed"])
            for observed in others:
                other = other[~_in(other[pair], observed[pair])]
            drawn = len(other)
            frame = pd.concat([frame, other.assign(**{self.label_field: 0.0})], ignore_index=True)
        repeated = _in(frame[pair], pd.concat([part[pair].astype(str) for part in parts], ignore_index=True))
        _log.info("%s: %d pairs of %s join train (%d drawn mismatches among them; %d are in a part already, left out)",
                  self.dataset_name, (~repeated).sum(), stage, drawn, repeated.sum())  # fmt: skip
        return frame[~repeated][[name for name in parts[0] if name in frame]]

    def _load_feat(self, filepath, source):
        """Pairs are read here, side features by RecBole."""
        if source is not FeatureSource.INTERACTION:
            return super()._load_feat(filepath, source)
        frame = _read_pairs(Path(filepath))
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

    def _concat_remaped_tokens(self, remap_list):
        """RecBole numbers what this returns in the order of appearance; categories are numbered by their codes."""
        columns = [feat[field].array for feat, field, _ in remap_list]
        if len(columns) == 1 and isinstance(columns[0], pd.Categorical):
            return columns[0], []
        return super()._concat_remaped_tokens(remap_list)


def _mismatches(matches: pd.DataFrame, count: int, user: str, item: str, seed: int) -> pd.DataFrame:
    """``count`` rows for each of ``matches``: the same seeker with the job of another's match, no pair twice."""
    if type(count) is not int or count < 0:
        raise ConfigError(f"train_stages_sampled: {count!r} mismatches a match; an int of at least 0 is required.")
    rng = np.random.default_rng([seed, 2])
    rows = matches.loc[matches.index.repeat(count)].reset_index(drop=True)
    rows[item] = matches[item].to_numpy()[rng.integers(0, len(matches), len(rows))]
    pair = [user, item]
    return rows[~_in(rows[pair], matches[pair])].drop_duplicates(pair)


def _in(rows: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """(len(rows),) bool: which rows are among ``others``, all columns alike."""
    return pd.MultiIndex.from_frame(rows).isin(pd.MultiIndex.from_frame(others))


def _take(pairs: Interaction, index: torch.Tensor) -> Interaction:
    return Interaction({name: values[index] for name, values in pairs.interaction.items()})


def _read_pairs(path: Path) -> pd.DataFrame:
    """What :func:`read_interactions` gives, the ids as categories; a file that is not plain is read by that function,
    which also says what is wrong with one."""
    names, _ = read_header(path)
    rows, plain = check_lines(path, len(names))
    wanted = [name for name in ("user_id", "item_id", "label", "timestamp") if name in names]
    if rows and plain and {"user_id", "item_id", "label"} <= {*wanted}:
        frame = _parse(path, names, wanted)
        if frame is not None:
            return frame
    frame = read_interactions(path)
    return frame.astype({"user_id": "category", "item_id": "category"})


def _parse(path: Path, names: list[str], wanted: list[str]) -> pd.DataFrame | None:
    """The columns ``wanted`` of a file of printable ASCII; None where a value is not what it must be."""
    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=1),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: text if name.endswith("_id") else pa.float64() for name in wanted},
                null_values=["", "nan", "NaN"],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    frame = table.unify_dictionaries().to_pandas()  # a copy: Arrow's own memory cannot be written to
    ids_are_whole = all("" not in frame[name].cat.categories for name in ("user_id", "item_id"))
    return frame if ids_are_whole and frame["label"].isin((0.0, 1.0)).all() else None


def _split_command(dataset: str, name: str) -> str:
    """What makes the part ``cold.train`` or ``cold-s1.train``; nothing for files that `girl split` does not make."""
    rule, _, suffix = name.partition(".")[0].partition("-")
    if rule not in SPLITS:
        return ""
    return f" Run `girl split {dataset} --split={rule}" + (f" --split_suffix={suffix}`." if suffix else "`.")
