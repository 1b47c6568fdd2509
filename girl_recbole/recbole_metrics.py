"""Metrics of labelled pairs for RecBole's evaluator: ``metrics: [AUC, LogLoss, LabeledGAUC, ECE, PriorEntropy]``.

ECE           expected calibration error of predict()'s probabilities (`ece_bins` bins); smaller is better
PriorEntropy  LogLoss (nats) of always predicting the base rate of the evaluated labels: the line that LogLoss must
              beat. It depends on the labels alone, so it cannot be valid_metric
LabeledGAUC   AUC within each user's labelled candidates, averaged over the users that have both classes, weighted by
              their pairs; NaN where no user has both. RecBole's own GAUC ranks all items and cannot stand beside AUC
              and LogLoss: another name

All three are value metrics, as RecBole's AUC and LogLoss. The functions themselves are in metrics.py. RecBole's
collector keeps scores and labels only; ours keeps the user ids too, where a metric needs them.
"""

from __future__ import annotations

import logging

import numpy as np
import recbole.evaluator.collector as stock
import recbole.evaluator.register as tables
from recbole.evaluator.base_metric import LossMetric

from girl_recbole.metrics import ece, gauc, prior_entropy

__all__ = ["ECE", "Collector", "LabeledGAUC", "PriorEntropy"]

_USERS = "data.user"
_log = logging.getLogger(__name__)


class ECE(LossMetric):
    smaller = True

    def __init__(self, config):
        super().__init__(config)
        self._bins = config["ece_bins"]

    def calculate_metric(self, dataobject):
        return self.output_metric("ece", dataobject)

    def metric_info(self, preds, trues):
        return ece(np.asarray(preds, np.float64), np.asarray(trues, np.float64), self._bins)


class PriorEntropy(LossMetric):
    metric_need = ["data.label"]  # noqa: RUF012 - RecBole's own way of saying it

    def calculate_metric(self, dataobject):
        labels = dataobject.get("data.label").numpy().astype(np.float64)
        return {"priorentropy": round(prior_entropy(labels), self.decimal_place)}


class LabeledGAUC(LossMetric):
    metric_need = ["rec.score", "data.label", _USERS]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self._chooses = config["valid_metric"].partition("@")[0].lower() == "labeledgauc"
        self._warned = False

    def calculate_metric(self, dataobject):
        scores, labels = (np.asarray(values, np.float64) for values in self.used_info(dataobject))
        users = dataobject.get(_USERS).numpy()
        _, who = np.unique(users, return_inverse=True)
        rate = np.bincount(who, weights=labels) / np.bincount(who)
        if not self._chooses and not ((rate > 0) & (rate < 1)).any():
            if not self._warned:
                _log.warning("LabeledGAUC: no seeker has a matched and a mismatched pair, so it is not defined (NaN).")
            self._warned = True
            return {"labeledgauc": float("nan")}
        return {"labeledgauc": round(gauc(scores, labels, users), self.decimal_place)}


class Collector(stock.Collector):
    """RecBole's collector; where a metric needs them, the user ids of the evaluated rows as well."""

    def eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i):
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.register.need(_USERS):
            self.data_struct.update_tensor(_USERS, interaction[self.config["USER_ID_FIELD"]])

    def get_data_struct(self):
        struct = super().get_data_struct()
        if _USERS in self.data_struct:
            del self.data_struct[_USERS]
        return struct


for _metric in (ECE, PriorEntropy, LabeledGAUC):
    _name = _metric.__name__.lower()
    tables.metrics_dict[_name] = _metric
    tables.metric_information[_name] = _metric.metric_need
    tables.metric_types[_name] = _metric.metric_type
    if _metric.smaller:
        tables.smaller_metrics.append(_name)
