"""What must hold of a recipe that imports its seed or experts, and what one that does not must say."""

from __future__ import annotations

from collections.abc import Iterator

from bam_core.errors import Problem
from pipelines.recipe.document import join
from pipelines.recipe.parts import ImportedExpert
from pipelines.recipe.phases import ImportedSeed, NoMixturePhase, Phase
from pipelines.recipe.schema import Recipe

ALONE = "an imported seed brings its own"


def import_problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong with the imports of a recipe that may have holes, but for what the checkpoints are."""
    seed = recipe.phases.seed if recipe.phases is not None else None
    if seed is None or not recipe.domains:
        return
    if not isinstance(seed, ImportedSeed):
        yield from _without_imported_seed(recipe)
    else:
        yield from _with_imported_seed(recipe, seed)
    yield from _phases_needed(recipe)
    for domain in recipe.imported:
        yield from _training(recipe, domain)
    yield from _row_len(recipe)


def _without_imported_seed(recipe: Recipe) -> Iterator[Problem]:
    for key in ("tokenizer", "model"):
        if getattr(recipe, key) is None:
            yield Problem(key, None, "is missing")
    if recipe.tokenizer is not None and recipe.tokenizer.kind == "import":
        yield Problem("tokenizer.kind", "import", "is that of an imported seed", "say phases.seed.import")
    for name in recipe.imported:
        expected = "needs a seed that is imported too: the model that this one was trained from"
        here = f"{join('domains', name)}.expert.import"
        yield Problem(here, recipe.imported_part(name).source, expected, "say phases.seed.import")
    if recipe.vocabulary not in (None, "refuse"):
        yield Problem("vocabulary", recipe.vocabulary, "is for models that are imported", "leave it out")


def _with_imported_seed(recipe: Recipe, seed: ImportedSeed) -> Iterator[Problem]:
    first = recipe.domains[recipe.general]
    if first is not None and isinstance(first.expert, ImportedExpert) and first.expert.train:
        here = f"{join('domains', recipe.general)}.expert.import"
        expected = "is not for the first domain, whose expert is the seed or is trained from it"
        yield Problem(here, first.expert.source, expected, "say phases.seed.import")
    if recipe.model is not None:
        yield Problem("model", recipe.model.to_dict(), ALONE, "leave it out")
    kind = recipe.tokenizer.kind if recipe.tokenizer is not None else "import"
    has_own = recipe.imports is None or recipe.imports.common is not None
    if kind == "bpe" or (kind != "import" and has_own and recipe.imports is not None):
        yield Problem("tokenizer.kind", kind, f"{ALONE}: ids of another mean other text", "leave `tokenizer` out")
    if kind == "import" and not has_own:
        expected = "has no tokenizer.json"
        remedy = "put it into its folder, or name one: tokenizer: {kind: file, path: ...}"
        yield Problem("phases.seed.import", seed.source, expected, remedy)


def _phases_needed(recipe: Recipe) -> Iterator[Problem]:
    """A phase that some stage is trained by must be there."""
    if recipe.specialists and recipe.phases.expert is None:
        yield Problem("phases.expert", None, "is missing")
    if (recipe.mixture_trainings or recipe.distil) and recipe.phases.mixture is None:
        yield Problem("phases.mixture", None, "is missing", "tokens: 0 leaves every mixture as it is mixed")
    phase = recipe.phases.mixture
    if isinstance(phase, NoMixturePhase) and (trained := [*recipe.mixture_trainings, *(recipe.distil or ())]):
        for key in ("batch_tokens", "lr"):
            if getattr(phase, key) is None:
                yield Problem(f"phases.mixture.{key}", None, f"is missing: {trained[0]} is trained")
    for name, part in (recipe.distil or {}).items():
        source = part.source if part is not None else None
        if source in (recipe.variants or ()) and not recipe.is_trained(source):
            yield Problem(f"{join('distil', name)}.from", source, "is not trained", "name a variant that is")


def _training(recipe: Recipe, domain: str) -> Iterator[Problem]:
    """Keys of a training that has no `tokens`, and what a seed that is trained on lacks."""
    is_seed = domain == recipe.general
    part = recipe.imported_part(domain)
    here = "phases.seed" if is_seed else f"{join('domains', domain)}.expert"
    keys = set(Phase.model_fields) | {"data"} if is_seed else {"lr"}
    if not part.tokens:
        fields = type(part).model_fields
        for key in sorted(key for key in keys - {"tokens"} if getattr(part, key) not in (None, fields[key].default)):
            expected = "has no effect: without tokens nothing is trained"
            yield Problem(f"{here}.{key}", getattr(part, key), expected, "say tokens, or leave it out")
    elif is_seed:
        for key in ("batch_tokens", "lr"):
            if getattr(part, key) is None:
                yield Problem(f"{here}.{key}", None, "is missing: with tokens, the seed is trained on")


def _row_len(recipe: Recipe) -> Iterator[Problem]:
    said, context = recipe.phases.seq_len, recipe.context
    if said is not None and said < 1:
        yield Problem("phases.seq_len", said, "must be at least 1")
    elif said is not None and context is not None and context >= 1 and said > context:
        yield Problem("phases.seq_len", said, f"must be at most what the model reads, {context}")
