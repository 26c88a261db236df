"""Puts this project's recipes on Hydra's search path, so that `+recipe=samr1` works from any folder."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class Samr1SearchPath(SearchPathPlugin):
    """Hydra discovers and creates this class; see https://hydra.cc/docs/advanced/plugins/overview/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append our recipes, so that a recipe of the same name in a user's own `recipe/` group comes first."""
        search_path.append(provider="samr1", path="pkg://recipes")
