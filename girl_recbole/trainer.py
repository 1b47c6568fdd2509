"""The trainer of our models: RecBole's, with Platt scaling after training, and checks before it.

Every model here has ``logits(interaction) -> (B,)`` and a buffer ``platt`` = (a, b), at first (1, 0), so that

    predict() = sigmoid(a * logit + b)

While training, (a, b) stays (1, 0). After it, when ``calibrate`` is true, the best state is loaded, the logits of all
labelled validation pairs are collected, (a, b) is fitted to them (calibration.py), and written into the checkpoint: the
validation result that ``fit`` returns and every later evaluation use it. Under DDP every rank does this on the whole
validation part, and comes to the same two numbers; rank 0 writes.

RecBole lets each of several ranks evaluate its own share of the rows (padded to equal length by repeating rows) and
averages the ranks' metrics; but a mean of AUCs of shares is not the AUC of the whole. Where labelled pairs are
evaluated, every rank here evaluates the whole part, and rank 0's numbers are everybody's: those of one process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from recbole.trainer.trainer import Trainer
from recbole.utils import EvaluatorType, InputType, ModelType

from girl_recbole.calibration import fit_platt
from girl_recbole.compat import load_checkpoint, save_checkpoint
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.plugin import MODELS

__all__ = ["GIRLTrainer", "check_splits", "drop_mismatched", "validation_logits"]

_log = logging.getLogger(__name__)


class GIRLTrainer(Trainer):
    def __init__(self, config, model):
        if not config["single_spec"] and not getattr(model, "learns", True):
            raise ConfigError(
                f"{config['model']} is fitted at once and not trained, so several processes have nothing to share; run "
                f"it with nproc: 1."
            )
        super().__init__(config, model)

    def _build_optimizer(self, **given):
        if getattr(self.model, "learns", True):
            return super()._build_optimizer(**given)
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)  # RecBole saves one with each checkpoint

    def fit(
        self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None
    ):  # fmt: skip
        """As RecBole's fit; then calibrate. Returns the best validation score and result, calibrated.

        With ``saved=False`` the best state is kept in memory, and the model has it in the end. A model that does not
        learn (scorer.py) is only calibrated; before that, its ``tune_on(validate)``, if it has one, chooses what is
        chosen on validation, by ``validate() -> float``, larger is better.
        """
        self._set_platt(1.0, 0.0)
        best = {}

        def after_validation(epoch, score):
            if not saved and self.cur_step == 0:  # the best so far
                best.update({name: value.detach().clone() for name, value in self.model.state_dict().items()})
            if callback_fn:
                callback_fn(epoch, score)

        if getattr(self.model, "learns", True):
            score, result = super().fit(train_data, valid_data, verbose, saved, show_progress, after_validation)
        else:
            score, result = self._fitted_already(train_data, valid_data, saved, show_progress)
        if best:
            self.model.load_state_dict(best)
        if not self.config["calibrate"] or not valid_data:
            return score, result
        if self.config["LABEL_FIELD"] not in valid_data._dataset.inter_feat:
            self.logger.warning("calibrate: the validation part has no labels; probabilities stay as they are.")
            return score, result
        if saved:
            checkpoint = load_checkpoint(self.saved_model_file, map_location=self.device)
            self.model.load_state_dict(checkpoint["state_dict"])
        logits, labels = validation_logits(self.model, valid_data, self.config)
        if labels.min() == labels.max():
            self.logger.warning("calibrate: the validation part has one class only; probabilities stay as they are.")
            return score, result
        self._set_platt(*fit_platt(logits, labels))
        if saved:
            checkpoint["state_dict"] = self.model.state_dict()
            if self.config["local_rank"] == 0:
                save_checkpoint(checkpoint, self.saved_model_file)
            if not self.config["single_spec"]:
                torch.distributed.barrier()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.best_valid_result = result
        a, b = self.model.platt.tolist()
        if verbose:
            self.logger.info(f"calibrated on {len(labels)} validation pairs: sigmoid({a:.4f} * logit + {b:.4f})")
        return score, result

    def _fitted_already(self, train_data, valid_data, saved, show_progress):
        self.eval_collector.data_collect(train_data)  # what RecBole's fit does first: counts for its metrics
        if valid_data and hasattr(self.model, "tune_on"):
            self.model.tune_on(lambda: self._validated(valid_data))
        if saved:
            self._save_checkpoint(-1, verbose=False)
        if not valid_data:
            return self.best_valid_score, self.best_valid_result
        self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress=show_progress)
        return self.best_valid_score, self.best_valid_result

    def _validated(self, valid_data) -> float:
        """The validation metric of the model as it is, calibrated if it will be; larger is better."""
        if self.config["calibrate"] and self.config["LABEL_FIELD"] in valid_data._dataset.inter_feat:
            logits, labels = validation_logits(self.model, valid_data, self.config)
            if labels.min() < labels.max():
                self._set_platt(*fit_platt(logits, labels))
        score, _ = self._valid_epoch(valid_data)
        self._set_platt(1.0, 0.0)
        return score if self.valid_metric_bigger else -score

    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """As RecBole's evaluate; with several ranks, labelled pairs are evaluated as a whole by each."""
        self._whole = False
        if eval_data and not self.config["single_spec"] and eval_data.neg_sample_args["distribution"] == "none":
            self._whole, eval_data = True, _WholePart(eval_data, self.config["eval_batch_size"])
        return super().evaluate(eval_data, load_best_model, model_file, show_progress)

    def _map_reduce(self, result, num_sample):
        if not self._whole:
            return super()._map_reduce(result, num_sample)
        agreed = [result]
        torch.distributed.broadcast_object_list(agreed, src=0, device=self.device)
        return agreed[0]

    def _set_platt(self, a: float, b: float) -> None:
        with torch.no_grad():
            self.model.platt.copy_(torch.tensor([a, b]))


class _WholePart:
    """All labelled pairs of the part that ``loader`` reads, in the form and the order of one process's loader."""

    def __init__(self, loader, step: int) -> None:
        self._loader, self._dataset, self._step = loader, loader._dataset, step

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._step)

    def __iter__(self):
        for batch in _batches(self._loader, self._step):
            yield batch, None, None, None


def _batches(loader, step: int) -> Iterator:
    """The pairs of the part that ``loader`` reads, ``step`` at a time."""
    dataset = loader._dataset
    for start in range(0, len(dataset), step):
        yield loader.transform(dataset, dataset.join(dataset.inter_feat[start : start + step]))


@torch.no_grad()
def validation_logits(model, data, config) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels, float64 (N,), of all labelled pairs of the part that the loader ``data`` reads."""
    model.eval()
    batches = _batches(data, config["eval_batch_size"])
    logits = [model.logits(batch.to(config["device"])).reshape(-1).double().cpu() for batch in batches]
    return torch.cat(logits).numpy(), data._dataset.inter_feat[config["LABEL_FIELD"]].double().numpy()


def drop_mismatched(config, parts: Sequence) -> None:
    """Take mismatched pairs (label 0) out of the parts in which a model of RecBole's would count them as matches.

    Those are a valid or test part that is ranked, and train for every model that does not learn from labels (it samples
    its negatives, or takes each pair for a match). Our models' data set has its own rule (dataset.py).
    Such a part keeps all its pairs as ``labelled_feat``, for what must not depend on the model (evaluation.py).
    """
    label, dropped = config["LABEL_FIELD"], []
    if config["model"] in MODELS:
        return
    from_labels = (
        config["train_neg_sample_args"]["distribution"] == "none"
        and getattr(config.model_class, "input_type", None) == InputType.POINTWISE
        and config["MODEL_TYPE"] != ModelType.TRADITIONAL
    )
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        keeps = from_labels if name == "train" else config["eval_args"]["mode"][name] == "labeled"
        if keeps or label not in part.inter_feat:
            continue
        matched = (part.inter_feat[label] > 0.5).numpy()
        if not matched.all():
            dropped.append(f"{(~matched).sum()} of {len(matched)} in {name}")
            part.labelled_feat = part.inter_feat
            part.inter_feat = part.inter_feat[np.flatnonzero(matched)]
    if dropped:
        _log.info("%s: mismatched pairs are no matches for %s, left out: %s.", config["dataset"], config["model"],
                  ", ".join(dropped))  # fmt: skip


def check_splits(config, parts: Sequence) -> None:
    """Raise ``DataError`` for parts (train, valid, test) on which training or its metrics would crash or mean nothing.

    An empty training part is an error for every model. Where labelled pairs are evaluated, an empty validation or test
    part is one, and so is a part with one class only: AUC is undefined there.
    """
    names = config["benchmark_filename"] or [f"{part} part of" for part in ("train", "valid", "test")]
    labeled = config["eval_type"] == EvaluatorType.VALUE
    label = config["LABEL_FIELD"]
    for part, name, dataset in zip(("train", "valid", "test"), names, parts, strict=True):
        if config["benchmark_filename"]:
            where = f"{config['dataset']}.{name}.inter"
        else:
            where = f"the {part} part of {config['dataset']}.inter"
        count = len(dataset)
        evaluated = part != "train" and labeled
        if count == 0 and (part == "train" or evaluated):
            raise DataError(f"{where}: 0 pairs are left for {part}; change eval_args, or run `girl split` anew.")
        own_negatives = part == "train" and config["train_neg_sample_args"]["distribution"] == "none"
        needs_both = (evaluated and config["eval_args"]["mode"][part] == "labeled") or (
            own_negatives and config["model"] in MODELS
        )
        if not needs_both:
            continue
        if label not in dataset.inter_feat:
            raise DataError(f"{where}: no column {label}, which says who matched; the metrics need it (LABEL_FIELD).")
        matched = int((dataset.inter_feat[label] > 0.5).sum())
        if matched in (0, count):
            raise DataError(
                f"{where}: {matched} matched and {count - matched} mismatched of {count} pairs; "
                f"at least one of each is required for {part}."
            )
