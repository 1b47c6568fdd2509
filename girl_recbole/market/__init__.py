"""jobrec-sim: a simulated recruiting market whose truth is known. docs/market.md says how it works."""

from girl_recbole.market.agents import Jobs, Seekers
from girl_recbole.market.decisions import match_probability
from girl_recbole.market.simulation import MarketConfig, Truth, read_truth, simulate, sizes_for
from girl_recbole.market.text import parse_job

__all__ = [
    "Jobs",
    "MarketConfig",
    "Seekers",
    "Truth",
    "match_probability",
    "parse_job",
    "read_truth",
    "simulate",
    "sizes_for",
]
