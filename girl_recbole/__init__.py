"""girl_recbole: GIRL, generative job recommendation with large language models, as a plugin for RecBole.

Importing this package is all that RecBole needs to know our models: it puts an import hook in place (plugin.py), which
waits for RecBole. It loads neither RecBole nor PyTorch, prints nothing, and works where RecBole is not installed.
"""

from girl_recbole import plugin

__all__ = ["__version__"]
__version__ = "0.1.0"

plugin.install()
