"""Training curves of the alignment stage as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from girl_recbole.atomic import atomic_write

__all__ = ["draw_curves"]

_PANELS = {  # title: keys of a log line
    "reward and score": ("reward", "score"),
    "true probability of a match (a simulated market only)": ("true_probability",),
    "KL to the start, nats a token": ("kl_k3", "kl_k1", "kl_printed"),
    "entropy of sampling, nats a token": ("entropy",),
    "clip fraction": ("clip_fraction",),
    "critic loss": ("critic_loss",),
    "explained variance": ("explained_variance",),
    "tokens a JD": ("jd_tokens",),
    "share cut by the limit": ("without_eos",),
    "distinct n-grams": ("distinct_1", "distinct_2"),
}


def draw_curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """A panel for each group of values that the log lines have, over iterations, into ``path``."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    known = {key for line in history for key in line}
    panels = {name: [key for key in keys if key in known] for name, keys in _PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if keys}
    columns = 2
    rows = -(-len(panels) // columns)
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=list(panels))
    for place, keys in enumerate(panels.values()):
        for key in keys:
            figure.add_trace(
                go.Scatter(x=[line["iteration"] for line in history], y=[line.get(key) for line in history], name=key),
                row=place // columns + 1, col=place % columns + 1,
            )  # fmt: skip
    figure.update_layout(title=title, height=280 * rows, template="plotly_white")
    with atomic_write(path) as file:
        file.write(figure.to_html(include_plotlyjs=True, full_html=True))
