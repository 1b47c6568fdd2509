"""Scores of many seekers for many jobs by one trained model: what full ranking reads.

Our models (scorer.py) encode each side once and give logits: a probability of a float32 sigmoid is 1 from a logit of 17
on, and such jobs would be ties. A model of RecBole's gives what its ``full_sort_predict`` or, without one, its
``predict`` gives. Only the order of these scores means anything.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from girl_recbole.errors import ConfigError
from girl_recbole.models.scorer import Scorer

__all__ = ["check_scores", "score_matrix"]

_SCORES = 1 << 23  # scores that a model gives at once
_ENCODED = 512  # seekers or jobs that are encoded at once


def check_scores(config) -> None:
    """Raise ``ConfigError`` for a model that scores something else than a seeker and a job."""
    if config["MODEL_TYPE"] in (ModelType.SEQUENTIAL, ModelType.DECISIONTREE):
        raise ConfigError(
            f"{config['model']} does not score a seeker and a job by their ids alone, so it cannot rank all of them "
            f"here; set rank_seekers: 0, rank_jobs: 0 and fairness_swaps: [] (RecBole's eval_args, mode: full, ranks)."
        )


@torch.no_grad()
def score_matrix(model, config, dataset, users: np.ndarray, items: np.ndarray | None = None) -> np.ndarray:
    """(len(users), len(items)) float32 scores of internal ids; ``items`` None: all jobs, 1 to ``item_num`` - 1."""
    check_scores(config)
    model.eval()
    users, device = torch.as_tensor(np.asarray(users, np.int64)), config["device"]
    wanted = torch.arange(1, dataset.item_num) if items is None else torch.as_tensor(np.asarray(items, np.int64))
    out = np.empty((len(users), len(wanted)), np.float32)
    if isinstance(model, Scorer):
        if items is None:
            encoded = model.encoded_items()
        else:
            encoded = torch.cat([model.encode_items(part.to(device)) for part in wanted.split(_ENCODED)])
        step = max(1, min(_ENCODED, _SCORES // len(encoded)))
        for start in range(0, len(users), step):
            logits = model.score_all(model.encode_users(users[start : start + step].to(device)), encoded)
            out[start : start + step] = (logits if items is not None else logits[:, 1:]).float().cpu().numpy()
        return out
    step = max(1, _SCORES // max(dataset.item_num, len(wanted)))
    for start in range(0, len(users), step):
        block = users[start : start + step]
        out[start : start + step] = _of_recbole(model, config, dataset, block, wanted)
    return out


def _of_recbole(model, config, dataset, users: torch.Tensor, items: torch.Tensor) -> np.ndarray:
    user, item, device = dataset.uid_field, dataset.iid_field, config["device"]
    try:
        scores = model.full_sort_predict(dataset.join(Interaction({user: users})).to(device))
        return scores.view(len(users), -1).cpu().numpy()[:, items.numpy()]
    except NotImplementedError:
        pass
    pairs = Interaction({user: users.repeat_interleave(len(items)), item: items.repeat(len(users))})
    parts = []
    for start in range(0, len(pairs), config["eval_batch_size"]):
        batch = dataset.join(pairs[start : start + config["eval_batch_size"]]).to(device)
        parts.append(model.predict(batch).reshape(-1).float().cpu())
    return torch.cat(parts).view(len(users), -1).numpy()
