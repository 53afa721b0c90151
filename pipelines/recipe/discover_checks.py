"""What must hold of `discover`, and of domains that are its clusters.

A value may be None where the schema has found something wrong: such holes are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

from bam_core.errors import Problem, nearest
from pipelines.recipe.document import join
from pipelines.recipe.schema import Recipe
from pipelines.recipe.sources import ClusterText

LEAST = {"n": 2, "features": 1, "dims": 1, "seed": 0}


def discover_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong but in the texts themselves, which are checked with those of domains."""
    discoveries, domains = recipe.discover or {}, recipe.domains or {}
    for name, found in discoveries.items():
        for key, least in LEAST.items():
            value = getattr(found, key, None)
            if value is not None and value < least:
                yield Problem(f"{join('discover', name)}.{key}", value, f"must be at least {least}")
    clusters = {
        name: domain.source
        for name, domain in domains.items()
        if domain is not None and isinstance(domain.source, ClusterText)
    }
    yield from _clusters(recipe, clusters)
    unused = discoveries.keys() - {source.of for source in clusters.values()}
    for name in sorted(unused) if all(domain and domain.source for domain in domains.values()) else ():
        remedy = f"give one of them a source: {{kind: cluster, of: {name}, index: 0}}"
        yield Problem(join("discover", name), name, "no domain is one of its clusters", remedy)


def unused_clusters(recipe: Recipe) -> dict[str, list[int]]:
    """Name under `discover` -> its clusters that no domain is. The recipe must have been checked."""
    sources = [domain.source for domain in recipe.domains.values() if isinstance(domain.source, ClusterText)]
    taken = {(source.of, source.index) for source in sources}
    return {
        name: [index for index in range(found.n) if (name, index) not in taken]
        for name, found in recipe.discover.items()
    }


def _clusters(recipe: Recipe, clusters: dict[str, ClusterText]) -> Iterator[Problem]:
    discoveries = recipe.discover or {}
    taken: dict[tuple[str, int], str] = {}
    for name, source in clusters.items():
        here = f"{join('domains', name)}.source"
        if source.of is not None and source.of not in discoveries:
            yield Problem(f"{here}.of", source.of, "is not under discover", nearest(source.of, discoveries))
        n = getattr(discoveries.get(source.of), "n", None)
        if source.index is None or n is None:
            continue
        first = taken.setdefault((source.of, source.index), name)
        if not 0 <= source.index < n:
            yield Problem(f"{here}.index", source.index, f"must be from 0 to {n - 1}: discover.{source.of} has {n}")
        elif first != name:
            yield Problem(f"{here}.index", source.index, f"is the text of {first} already", "one cluster is one domain")
