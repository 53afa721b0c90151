"""From a configuration of mergekit-moe to a recipe that does the same: `config` reads it, `recipe` writes that.

The format is that of mergekit 0.1.5 (`mergekit/moe/config.py`, `docs/moe.md`); nothing of mergekit is imported or run.
docs/from-mergekit.md has the two side by side.
"""
