"""Models of one table for the tests: what GIRLTrainer asks of a model, and nothing more."""

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn


class TinyLogits(GeneralRecommender):
    """One free logit per (user, item), times ``scale``: over-confident when scale is large."""

    input_type = InputType.POINTWISE
    scale = 5.0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.user = nn.Embedding(self.n_users, 2)
        self.item = nn.Embedding(self.n_items, 2)
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))

    def logits(self, interaction):
        user, item = self.user(interaction[self.USER_ID]), self.item(interaction[self.ITEM_ID])
        return self.scale * (user * item).sum(-1)

    def calculate_loss(self, interaction):
        return nn.functional.binary_cross_entropy_with_logits(self.logits(interaction), interaction["label"])

    def predict(self, interaction):
        return torch.sigmoid(self.platt[0] * self.logits(interaction) + self.platt[1])


class TinyDDP(TinyLogits):
    """Trained by GIRLTrainer in any process that imports this module."""


def _use_our_trainer() -> None:
    import recbole.trainer

    from girl_recbole.trainer import GIRLTrainer

    recbole.trainer.TinyDDPTrainer = GIRLTrainer


_use_our_trainer()
