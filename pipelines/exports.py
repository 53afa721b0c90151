"""The stages that write models for transformers, `export.<variant>`; what can be said of them before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, UsageError
from bam_core.graph.stage import Stage
from pipelines.imports import import_stage
from pipelines.recipe import Recipe
from pipelines.recipe.document import join
from pipelines.stages import new_stage
from pipelines.stages.inputs import SEED_FILES

NEEDS_NO_CLASS = ("auto", "bam")


def exports(recipe: Recipe, models: Mapping[str, ModelConfig]) -> Iterator[Stage]:
    """models: stage -> its model. Raises InvalidInput for a class that is another model than the variant."""
    for name, asked in recipe.export.items():
        model = f"distil.{name}" if name in recipe.distil else recipe.model_of(name)
        _require_class(join("export", name), asked.to, models[model])
        config: dict[str, Any] = {"variant": name, "to": asked.to}
        config |= {"dtype": asked.dtype} if asked.dtype is not None else {}
        inputs = {"model": model}
        if recipe.general in recipe.imported:
            inputs[SEED_FILES] = import_stage(recipe, recipe.general)
        yield new_stage(f"export.{name}", config, inputs, {})


def _require_class(path: str, to: str, model: ModelConfig) -> None:
    """After hours of training is too late to say it. Loads torch, so only where a class is named."""
    if to in NEEDS_NO_CLASS:
        return
    from bam_core.hf.targets import require_fitting

    try:
        require_fitting(model, to)
    except InvalidInput as error:
        raise InvalidInput("recipe", [problem.under(path) for problem in error.problems]) from error
    except UsageError as error:
        raise UsageError(f"{path}.to: {error}") from error
