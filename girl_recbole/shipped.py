"""Where a dataset lies, and how one that ships with the package gets there.

``locate("jobrec-sim", "dataset")`` is ``dataset/jobrec-sim``. When that folder does not exist and the package ships a
dataset of this name (in a wheel: inside the package; in a checkout: beside it), the shipped folder is copied there
first, so that vectors and splits are never written into the installed package.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from girl_recbole.atomic import DatasetFiles
from girl_recbole.errors import DataError

__all__ = ["locate", "shipped_folder"]

_log = logging.getLogger(__name__)


def shipped_folder(name: str) -> Path | None:
    """The folder of the dataset ``name`` inside or beside the package, or None when no such dataset ships."""
    package = Path(__file__).resolve().parent
    for folder in (package / "dataset" / name, package.parent / "dataset" / name):
        if (folder / f"{name}.inter").exists():
            return folder
    return None


def locate(name: str, data_path: Path | str = "dataset") -> DatasetFiles:
    """The files of the dataset ``name`` below ``data_path``; a shipped dataset is copied there when it is absent.

    Raises ``DataError`` when there is neither a folder nor a shipped dataset of this name.
    """
    files = DatasetFiles(Path(data_path) / name, name)
    if files.folder.exists():
        return files
    source = shipped_folder(name)
    if source is None:
        raise DataError(
            f"{files.folder}: no such dataset. Make one with `girl simulate {name}` or `girl prepare SOURCE {name}`, "
            f"or name its folder with --data-path."
        )
    files.folder.parent.mkdir(parents=True, exist_ok=True)
    beside = files.folder.with_name(f".{name}.{os.getpid()}.partial")
    shutil.copytree(source, beside, ignore=shutil.ignore_patterns("vectors"))
    try:
        os.rename(beside, files.folder)
    except OSError:  # another process was faster
        shutil.rmtree(beside)
        if not files.folder.exists():
            raise
    else:
        _log.info("copied the shipped dataset %s to %s", name, files.folder)
    return files
