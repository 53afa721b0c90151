"""What a recipe's mixtures and its dense baseline cost in seconds here, for `match: seconds`: no store, no text."""

from __future__ import annotations

from collections.abc import Callable

from pipelines import bam
from pipelines.recipe import Recipe
from pipelines.training_stages import pace_of


def measure_paces(
    recipe: Recipe, *, n_steps: int, rounds: int, say: Callable[[str, float], None] = lambda name, seconds: None
) -> dict[str, float]:
    """Variant, or `dense` -> seconds per token of one worker that trains it as the recipe says. Figures that the
    recipe has already are not looked at."""
    import torch

    from bam_core.train.loop import Pace
    from bam_core.train.pacing import Paced, seconds_per_token

    configs, models = bam.model_configs(recipe), {}
    group = recipe.runtime.train
    for stage, own in recipe.mixture_trainings.items():
        models[recipe.model_name(stage)] = Paced(
            model=configs[stage],
            phase=recipe.mixture_training(own),
            pace=Pace(**pace_of(recipe, stage)),
            device="cuda" if group.gpus and torch.cuda.is_available() else "cpu",
            threads=group.cpus,
        )
    return seconds_per_token(models, n_steps, rounds, say)
