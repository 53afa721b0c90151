"""The stages that train a model or search for how to: what each starts from, what it reads, and where it runs.

`bam` says which there are, and joins them with those that make text ready and those that judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bam_core.config import TrainConfig
from bam_core.graph.adopted import adopted_name
from bam_core.graph.stage import Resources, Stage
from bam_core.seeds import child_seed
from pipelines.imports import import_stage
from pipelines.recipe import Recipe
from pipelines.recipe.data_search import read_domains, searched_domains
from pipelines.recipe.parts import Group
from pipelines.recipe.tuning import tuned_fields, without
from pipelines.stages import new_stage
from pipelines.stages.inputs import IMPORT, REFERENCE, TEACHER

Tuned = Mapping[str, Mapping[str, str]]
"""Search -> {key of the recipe: field of the phase}."""
Phases = Mapping[str, TrainConfig]
"""Of `trainings`: worked out once for all stages of a seed."""


def experts(recipe: Recipe) -> dict[str, str]:
    """Expert name -> the stage whose model it is, in stacking order (BAM, section 5.1: the seed is expert 1)."""
    stages = {domain: f"expert.{domain}" for domain in recipe.domains}
    stages |= {} if recipe.trains_general else {recipe.general: "seed"}
    return stages | {domain: adopted_name(expert) for domain, expert in recipe.adopted.items()}


def training(recipe: Recipe, name: str, phases: Phases) -> Stage:
    tuned = tuned_fields(recipe, name)
    phase = _phase(recipe, name, tuned, phases)
    config = {"phase": phase, **({"tuned": _roles(tuned)} if tuned else {})}
    inputs = _start_inputs(recipe, name) | _data_inputs(phase, tuned) | {role: role for role in _roles(tuned)}
    inputs |= _reference_inputs(recipe, phases[name])
    stage = new_stage(name, {**_start(recipe, name), **config}, inputs, {"pace": pace_of(recipe, name)})
    return replace(stage, resources=_worker_group(_group(recipe, name)), checks=("overlap",))


def tune(recipe: Recipe, name: str, phases: Phases) -> Stage:
    """Trains as the stage that it searches for, on what that reads, once for each trial."""
    search, stage = recipe.tune[name], recipe.tune[name].stage
    fields = tuned_fields(recipe, stage)[name]
    tuned = tuned_fields(recipe, stage, before=name)
    phase = _phase(recipe, stage, tuned | {name: fields}, phases)
    phase |= {"tokens": search.tokens} if search.tokens else {}
    kind, _, domain = stage.partition(".")
    judges = search.domains or ([domain] if kind == "expert" else list(recipe.domains))
    config = {
        "of": stage,
        "phase": phase,
        "space": {key: search.search[key].to_json() for key in fields},
        "fields": fields,
        "trials": search.trials,
        "rungs": search.rungs,
        "reduction": search.reduction,
        "domains": judges,
        "eval_tokens": search.eval_tokens,
        "seed": child_seed(recipe.seed, f"tune.{name}"),
        **({"tuned": _roles(tuned)} if tuned else {}),
        **{key: value for key, value in _start(recipe, stage).items() if key in ("init_seed", "model", "from")},
    }
    inputs = (
        _start_inputs(recipe, stage)
        | _data_inputs(phase, tuned | {name: fields})
        | {role: role for role in _roles(tuned)}
    )
    inputs |= {f"data.{domain}": f"data.{domain}" for domain in judges} | _reference_inputs(recipe, phases[stage])
    runtime = {"pace": pace_of(recipe, stage), "max_trials": recipe.runtime.max_trials}
    made = new_stage(f"tune.{name}", config, inputs, runtime)
    return replace(made, resources=_worker_group(_group(recipe, stage)), checks=("overlap",))


def _start(recipe: Recipe, name: str) -> dict[str, Any]:
    """What else than its phase says what a training is."""
    kind, _, rest = name.partition(".")
    if kind == "seed" and recipe.general in recipe.imported:
        return {"from": IMPORT}
    if kind == "seed":
        return {"init_seed": child_seed(recipe.seed, "init"), "model": recipe.dense_config().identity()}
    if kind == "distil":
        distil = recipe.distil[rest]
        attention = distil.sparser().to_json()
        return {"variant": distil.source, "attention": attention, "distil": distil.loss().identity()}
    if kind == "expert" and rest in recipe.imported and rest != recipe.general:
        return {"domain": rest, "from": IMPORT}
    return {"expert": {"domain": rest}, "train": {"variant": rest}, "dense": {}}[kind]


def _start_inputs(recipe: Recipe, name: str) -> dict[str, str]:
    kind, _, rest = name.partition(".")
    if kind == "train":
        return {"mix": f"mix.{recipe.mix_of(rest)}"}
    if kind == "distil":
        return {TEACHER: f"train.{recipe.distil[rest].source}"}
    imported_from = recipe.general if kind == "seed" else rest if kind == "expert" else None
    is_branched = kind == "expert" and rest == recipe.general
    if imported_from in recipe.imported and not is_branched:
        return {IMPORT: import_stage(recipe, imported_from)}
    return {"tokenizer": "tokenizer"} if kind == "seed" else {"seed": "seed"}


def _phase(recipe: Recipe, name: str, tuned: Tuned, phases: Phases) -> dict[str, Any]:
    """The phase's identity without the fields that searches set."""
    fields = {key: field for found in tuned.values() for key, field in found.items()}
    return without(recipe, phases[name].identity(), name, fields)


def _roles(tuned: Tuned) -> dict[str, Mapping[str, str]]:
    return {f"tune.{name}": fields for name, fields in tuned.items()}


def _data_inputs(phase: Mapping[str, Any], tuned: Tuned) -> dict[str, str]:
    """The text of every domain that has a share, or could be given one."""
    searched = searched_domains(field for found in tuned.values() for field in found.values())
    return {f"data.{domain}": f"data.{domain}" for domain in dict.fromkeys([*read_domains(phase), *sorted(searched)])}


def _reference_inputs(recipe: Recipe, phase: TrainConfig) -> dict[str, str]:
    """Where shares follow the losses: the dense models that these are compared with."""
    if phase.adaptive is None or not phase.adaptive.compares:
        return {}
    is_own, own = phase.adaptive.reference == "specialists", experts(recipe)
    return {f"{REFERENCE}{domain}": own[domain] if is_own else "seed" for domain in phase.domains}


def _group(recipe: Recipe, name: str) -> Group:
    group: Group = getattr(recipe.runtime, name.partition(".")[0] if name.startswith(("seed", "expert")) else "train")
    return group


def pace_of(recipe: Recipe, name: str) -> dict[str, Any]:
    """How a stage's training is executed: arguments of `bam_core.train.loop.Pace`."""
    pace: dict[str, Any] = {"checkpoint_steps": recipe.runtime.checkpoint_steps}
    if recipe.runtime.micro_batch_rows:
        pace["micro_batch_rows"] = recipe.runtime.micro_batch_rows
    pace |= {name: True for name in ("activation_checkpointing", "compile") if getattr(recipe.runtime, name)}
    strategy = _group(recipe, name).strategy
    return pace if strategy == "ddp" else pace | {"strategy": strategy}


def _worker_group(group: Group) -> Resources:
    fewest, most = group.workers
    elastic = most if most > fewest else None
    return Resources(fewest, group.cpus, group.gpus, trains=True, max_workers=elastic, placement=group.placement)
