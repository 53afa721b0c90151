"""The stages of what a recipe imports: checkpoints that somebody else made become models of ours.

Where a checkpoint lies enters no key: its content does, by a commit of the hub or the hashes of its files. `bam` joins
these with the stages that train.
"""

from __future__ import annotations

import hashlib
from typing import Any

from bam_core.graph.stage import Stage
from bam_core.upcycle.vocabulary import common_definition
from pipelines.recipe import Recipe
from pipelines.recipe.imports import Imports
from pipelines.stages import KINDS, new_stage


def own_trainings(recipe: Recipe) -> list[str]:
    """The stages that train the seed and the experts."""
    return [*(["seed"] if recipe.trains_seed else []), *(f"expert.{domain}" for domain in recipe.specialists)]


def import_stage(recipe: Recipe, domain: str) -> str:
    """The stage that brings a domain's model in: under the model's own name, if no training follows."""
    if domain not in recipe.taken:
        return f"import.{domain}"
    return "seed" if domain == recipe.general else f"expert.{domain}"


def imported(recipe: Recipe, domain: str) -> Stage:
    found = recipe.imports
    assert found is not None, "a recipe that imports is looked at before it is built"
    checkpoint = found.found[domain]
    config: dict[str, Any] = {"import": checkpoint.identity(), "model": found.dense_config().identity()}
    config |= {} if domain == recipe.general else {"domain": domain}
    places = {domain: checkpoint.place}
    if checkpoint.adapter is not None:
        config["base"] = found.seed.digest
        places |= {recipe.general: found.seed.place}
    if read := _others(found, domain):
        config["vocabulary"] = {
            "rule": recipe.vocabulary,
            "models": [[name, found.found[name].digest] for name in found.vocabularies()],  # a list: the order counts
        }
        places |= {name: found.found[name].place for name in read}
    stage, kind = import_stage(recipe, domain), KINDS["import"]
    shown = checkpoint.place.get("path") or f"{checkpoint.hub}@{checkpoint.digest}"
    runtime = {"of": domain, "base": recipe.general, "places": places, "imported_from": shown}
    runtime |= {"licence": checkpoint.licence} if checkpoint.licence else {}
    return Stage(stage, "import", kind.version, config, {"tokenizer": "tokenizer"}, runtime)


def _others(found: Imports, domain: str) -> list[str]:
    """The models whose tokenizers say which rows this one gets; none, if its rows stay as they are."""
    if found.common is None or domain not in found.common.rows or found.common.rows[domain].as_they_are:
        return []
    return list(found.vocabularies())


def tokenizer(recipe: Recipe) -> Stage:
    """The seed's tokenizer, with what `vocabulary: union` adds."""
    found = recipe.imports
    assert found is not None, "a recipe that imports is looked at before it is built"
    assert found.common is not None, "a seed without a tokenizer is refused before"
    definition = common_definition(found.vocabularies(), found.common)
    config = {
        "kind": "import",
        "vocab_size": found.common.size,
        "digest": hashlib.sha256(definition.encode()).hexdigest(),
    }
    places = {name: found.found[name].place for name in found.vocabularies()}
    first = next(iter(places))
    runtime = {"rule": recipe.vocabulary, "places": places if found.common.added else {first: places[first]}}
    return new_stage("tokenizer", config, {}, runtime)
