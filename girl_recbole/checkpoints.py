"""A trained recommender from its checkpoint, on the dataset as it is now: what index, evaluate and case start from.

The checkpoint is read by torch's safe loader (compat.py), so nothing in it runs as code. The data are prepared and the
model is made with the seed of its training, which decides what is drawn there (splits by RecBole, a shuffled control).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import ConfigError, DataError

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """A model of ours or of RecBole, its settings, its dataset, and RecBole's loaders of train, valid and test."""

    config: Any
    model: Any
    dataset: Any
    train: Any
    valid: Any
    test: Any


def load_trained(
    checkpoint: str | os.PathLike, files: DatasetFiles, prepare: Callable[[Any], None] = lambda config: None
) -> Trained:
    """The model in ``checkpoint``; ``prepare(config)`` may check or change its settings before anything is read.

    Raises ``DataError`` for a file that is none, ``ConfigError`` for a model of another dataset.
    """
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    from girl_recbole.compat import load_checkpoint

    if not Path(checkpoint).is_file():
        raise DataError(f"{checkpoint}: no such checkpoint. Train one with `run_recbole --dataset={files.name}`.")
    try:
        state = load_checkpoint(checkpoint, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        said = str(error).partition("\n")[0][:200]
        raise DataError(f"{checkpoint}: cannot be read as a checkpoint of run_recbole ({said}).") from None
    config = state.get("config") if isinstance(state, dict) else None
    if config is None or "state_dict" not in state:
        raise DataError(f"{checkpoint}: no checkpoint of run_recbole.")
    if config["dataset"] != files.name:
        raise ConfigError(f"{checkpoint}: trained on {config['dataset']}, not on {files.name}.")
    config["data_path"] = str(files.folder)
    prepare(config)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))
    return Trained(config, model.eval(), dataset, train, valid, test)
