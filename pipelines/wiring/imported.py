"""Looks at the checkpoints that a recipe imports: what they are, not their weights."""

from __future__ import annotations

from bam_core.errors import InvalidInput, Problem
from infra import model_sources
from infra.hub_models import licence_of
from pipelines.recipe import Recipe, recipe_with_imports
from pipelines.recipe.imports import Asked, Checkpoint


def with_imports(recipe: Recipe) -> Recipe:
    """The recipe with what it imports looked at, if it was not yet. Raises InvalidInput."""
    return recipe_with_imports(recipe, look) if recipe.imported and recipe.imports is None else recipe


def look(asked: Asked, seed: Checkpoint | None) -> Checkpoint:
    """Names, shapes and tokenizer of a checkpoint, and its identity. seed: what an adapter is merged into.

    Raises InvalidInput with all that is wrong.
    """
    from bam_core.data.tokenize import Tokenizer
    from bam_core.upcycle.adapter import is_adapter
    from bam_core.upcycle.opening import TOKENIZER, open_checkpoint

    place, folder = model_sources.place_of(asked.source, asked.revision)
    base = None
    if is_adapter(folder):
        if seed is None or seed.adapter is not None:
            remedy = "import as phases.seed the model that it was trained on, or merge it into that first"
            expected = "is a LoRA adapter, to be merged into the imported seed, and there is none that can be read"
            raise InvalidInput(asked.path, [Problem("", asked.source, expected, remedy)])
        base = open_checkpoint(model_sources.folder(seed.place))
    opened = open_checkpoint(folder, base)
    if seed is None and opened.vocabulary is not None:  # which cuts all text
        Tokenizer(opened.vocabulary.text, TOKENIZER)
    imported, adapter = opened.imported, opened.adapter
    return Checkpoint(
        digest=model_sources.digest(place),
        place=place,
        family=imported.family,
        config=imported.config,
        vocabulary=opened.vocabulary,
        hub=place.get("id"),
        licence=licence_of(folder),
        adapter={"rank": adapter.rank, "modules": len(adapter.deltas)} if adapter is not None else None,
    )
