"""Which stages use which plug-ins: their configuration, and so their key, names each with its distribution and version.

A stage that uses none is as if there were no plug-ins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bam_core import plugins
from bam_core.graph.stage import Stage, StageName
from pipelines.recipe import Recipe
from pipelines.recipe.document import join

PLUGINS = "plugins"
"""The key of a stage's configuration: as `bam_core.plugins.Used`."""

Name = tuple[str, str]
"""Group and name."""


def with_plugins(recipe: Recipe, stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages, those that use plug-ins with them in their configuration. Raises UsageError."""
    names = set(used(recipe).values())
    for stage in stages:
        own = sorted(set(_of_stage(recipe, stage))) if names else []
        said = {PLUGINS: plugins.identity(plugins.find(*name) for name in own)} if own else {}
        yield replace(stage, config={**stage.config, **said}) if said else stage


def used(recipe: Recipe) -> dict[str, Name]:
    """Key path -> the plug-in that the recipe names there."""
    found: dict[str, tuple[str, str | None]] = {}
    for name, text in recipe.texts.items():
        path = name if name.startswith("discover.") else join("domains", name.removesuffix(".valid"))
        path = f"{path}.{'valid' if name.endswith('.valid') else 'source'}"
        for place, one in _each(path, text):
            found[f"{place}.kind"] = (plugins.SOURCES, one["kind"])
    for name, variant in recipe.variants.items():
        here, parts = join("variants", name), {"attention": variant.attention, "ffn": variant.ffn}
        gates = {f"{here}.{part}.gate": spec.gate for part, spec in parts.items() if not isinstance(spec, str)}
        found |= {path: (plugins.ROUTING_RULES, gate) for path, gate in gates.items()}
        merge = variant.merge
        method, path = (merge, "merge") if isinstance(merge, str) else (merge.method, "merge.method")
        found[f"{here}.{path}"] = (plugins.MERGE_RULES, method)
        found[f"{here}.like"] = (plugins.VARIANTS, variant.like)
    for name, distil in recipe.distil.items():
        found[f"{join('distil', name)}.attention.gate"] = (plugins.ROUTING_RULES, distil.attention.gate)
    for number, metric in enumerate(recipe.evaluate.metrics):
        found[f"evaluate.metrics.{number}"] = (plugins.METRICS, metric)
    return {path: (group, name) for path, (group, name) in found.items() if name and plugins.is_plugin_name(name)}


def _each(path: str, text: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A source, or each of several."""
    if "sources" in text:
        yield from ((f"{path}.{number}", one) for number, one in enumerate(text["sources"]))
    else:
        yield path, text


def _of_stage(recipe: Recipe, stage: Stage) -> Iterator[Name]:
    kind, name, places = stage.function, StageName.parse(stage.name).name, used(recipe)
    if kind == "tune":
        trained = StageName.parse(recipe.tune[str(name)].stage)
        kind, name = trained.kind, trained.name
    here = [join("variants", str(name))]
    if kind == "mix":
        yield from _under(here, places)
    elif kind == "train":
        yield from _gates(here, places)
    elif kind == "distil":
        yield from _gates([join("distil", str(name)), join("variants", recipe.distil[str(name)].source)], places)
    elif kind in ("evaluate", "routing"):
        yield from _gates(["variants", "distil"], places)
        yield from _under(["evaluate"] if kind == "evaluate" else [], places)
    elif kind == "discover":
        yield from _under([f"discover.{name}"], places)
    elif kind in ("tokenizer", "data"):
        asked = [str(name)] if kind == "data" else getattr(recipe.tokenizer, "domains", None) or list(recipe.domains)
        yield from _under([join("domains", domain) for domain in asked], places)
        texts = [recipe.text_name(domain) for domain in asked]  # of clusters: that of the text that was divided
        yield from _under([text for text in texts if text.startswith("discover.")], places)


def _under(paths: Iterable[str], places: dict[str, Name]) -> Iterator[Name]:
    return (name for path in paths for place, name in places.items() if place.startswith(f"{path}."))


def _gates(paths: Iterable[str], places: dict[str, Name]) -> Iterator[Name]:
    """Their routing rules: what a mixture that was made needs to run."""
    return (found for found in _under(paths, places) if found[0] == plugins.ROUTING_RULES)
