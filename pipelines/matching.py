"""How long each mixture trains, and the dense baseline: with tokens of its own, or made equal to another.

`match: data` is the paper's DM: the tokens that the recipe says. `compute` (its CM) gives the training FLOPs of another
one, `seconds` the time that it takes at paces which a person has measured (`bam pace`); both are rounded down to whole
batches. All of it is arithmetic on the recipe: no clock is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from bam_core.config import ModelConfig, TrainConfig
from bam_core.nn.costs import training_flops
from pipelines.recipe import Recipe

StepCost = Callable[[str], Fraction]
"""What one step of a stage's training costs."""


def mixture_phases(recipe: Recipe, models: Mapping[str, ModelConfig]) -> dict[str, TrainConfig]:
    """Stage name -> its phase, of every `train.<variant>` and of `dense`. models: stage name -> what is trained."""
    phases = {stage: recipe.mixture_training(own) for stage, own in recipe.mixture_trainings.items()}

    def flops(stage: str) -> Fraction:
        return Fraction(training_flops(models[stage], phases[stage].batch_tokens, phases[stage].seq_len))

    def seconds(stage: str) -> Fraction:
        pace = recipe.mixture_phase.seconds_per_token[recipe.model_name(stage)]
        return Fraction(repr(pace)) * phases[stage].batch_tokens

    costs: dict[str, StepCost] = {"compute": flops, "seconds": seconds}

    def matched(stage: str) -> TrainConfig:
        kind, other = recipe.match_of(stage)
        if kind == "data" or other == stage:
            return phases[stage]
        cost = costs[kind]
        if other is None:  # the cheapest, on the tokens that the recipe says for all
            cheapest = min(cost(name) for name in phases if name != "dense")
            budget = recipe.mixture_training().n_steps * cheapest
        else:
            budget = matched(other).n_steps * cost(other)
        n_steps = max(1, budget // cost(stage))
        return replace(phases[stage], tokens=n_steps * phases[stage].batch_tokens)

    return {stage: matched(stage) for stage in phases}
