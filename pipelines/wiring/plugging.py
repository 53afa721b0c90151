"""The plug-ins of a recipe, looked at before anything runs: what is broken shows here, not after a day of training."""

from __future__ import annotations

from typing import Any

from bam_core import plugins
from bam_core.errors import InvalidInput, Problem, UsageError
from infra.plugged_text import plugged_source
from pipelines.plugging import used
from pipelines.recipe import Recipe


def require_plugins(recipe: Recipe) -> list[plugins.Plugin]:
    """Import and check each one that the recipe names. Raises InvalidInput with all that is wrong at once."""
    found, problems = dict[tuple[str, str], plugins.Plugin](), []
    for path, (group, name) in used(recipe).items():
        try:
            _load(group, name)
            found[group, name] = plugins.find(group, name)
        except UsageError as error:
            problems.append(Problem(path, name, f"cannot be used: {error}"))
    if problems:
        raise InvalidInput(f"recipe {recipe.name}", problems)
    return [found[name] for name in sorted(found)]


def _load(group: str, name: str) -> Any:
    """By the table that it is a row of: only what is used is imported."""
    if group == plugins.ROUTING_RULES:
        from bam_core.nn.routing import gate

        return gate(name)
    if group == plugins.MERGE_RULES:
        from bam_core.upcycle.merge import merge_rule

        return merge_rule(name)
    if group == plugins.METRICS:
        from bam_core.evaluate.metric import metric

        return metric(name)
    if group == plugins.SOURCES:
        return plugged_source(name)
    from bam_core.upcycle.presets import variant_keys

    return variant_keys(name)
