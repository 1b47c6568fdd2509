"""girl_recbole: GIRL, generative job recommendation with large language models, as a plugin for RecBole."""

__version__ = "0.1.0"
