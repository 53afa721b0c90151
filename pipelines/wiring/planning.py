"""A recipe and what is there, to what happens: texts and records are read, nothing is written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.graph import refs
from bam_core.graph.key import pipeline_keys
from bam_core.graph.plan import Decision, Facts, plan
from bam_core.graph.record import Record
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline
from bam_core.nn import costs, paper
from bam_core.plugins import Plugin
from bam_core.train.adapt import judging_flops
from infra.provenance import mask_values
from infra.sources import TextSources, absolute_path
from infra.store import ArtifactStore
from pipelines import bam
from pipelines.recipe import Recipe
from pipelines.stages.inputs import require_fitting
from pipelines.wiring.exchanging import adopted_configs, require_adopted
from pipelines.wiring.imported import with_imports
from pipelines.wiring.plugging import require_plugins
from pipelines.wiring.settings import Settings, open_store
from pipelines.wiring.task_texts import task_digests

N_TOGETHER = 8
"""Stages looked up at once: on a remote store each look is mostly waiting."""


@dataclass(frozen=True)
class Plan:
    """models: name -> sizes and costs, for the plan's table. given: (stage, role) -> record of an `--input`.

    seen: stage -> when the record that was there at plan time was written. warnings: about the recipe, in words.
    searches: `tune.<name>` -> what it costs at most. data: stage -> how its shares change, in words. recipe: whole, as
    it is meant, secrets hidden. plugins: those that the recipe uses.
    """

    pipeline: Pipeline
    keys: Mapping[str, str]
    decisions: list[Decision]
    models: Mapping[str, Mapping[str, Any]]
    given: Mapping[tuple[str, str], Record]
    seen: Mapping[str, float]
    warnings: list[str]
    searches: Mapping[str, Mapping[str, float]]
    data: Mapping[str, str]
    recipe: Mapping[str, Any]
    plugins: Sequence[Plugin] = ()


def make_plan(
    recipe: Recipe,
    settings: Settings,
    selection: Selection,
    inputs: Mapping[tuple[str, str], str] | None = None,
) -> Plan:
    """Decide what every stage does. Reads the texts (for their digests) and the store; writes nothing."""
    recipe = with_imports(recipe)
    store = open_store(settings)
    used = require_plugins(recipe)
    pipeline = _absolute(bam.build(recipe, text_digests(recipe), adopted_configs(recipe, store)))
    selection.stages(pipeline)
    given = {place: refs.resolve(ref, store.records()) for place, ref in (inputs or {}).items()}
    keys = pipeline_keys(pipeline, {place: record.key for place, record in given.items()})
    with ThreadPoolExecutor(N_TOGETHER) as pool:
        names = [stage.name for stage in pipeline]
        facts = dict(zip(names, pool.map(lambda name: _facts(store, name, keys[name]), names), strict=True))
    for stage in {stage for stage, _ in given}:
        known = {role: given.get((stage, role), facts[made].record) for role, made in pipeline[stage].inputs.items()}
        require_fitting(pipeline[stage], {role: record for role, record in known.items() if record is not None})
    decisions = plan(pipeline, keys, facts, selection, now=time.time(), given=given, recipe=recipe.name)
    require_adopted(recipe, keys, decisions, facts, store)
    seen = {stage: fact.record.ended for stage, fact in facts.items() if fact.record is not None}
    return Plan(
        pipeline=pipeline,
        keys=keys,
        decisions=decisions,
        models=_models(recipe),
        given=given,
        seen=seen,
        warnings=bam.warnings(recipe),
        searches=bam.search_costs(recipe),
        data=bam.changing_data(recipe),
        recipe=mask_values(recipe.to_json()),
        plugins=used,
    )


def text_digests(recipe: Recipe) -> dict[str, str]:
    """Content identity of each domain's text and each task file. Raises InvalidInput with all that is wrong at once."""
    sources, digests, problems = TextSources(), {}, []
    for name, source in recipe.texts.items():
        try:
            digests[name] = sources.digest(source)
        except InvalidInput as error:
            path = name if name.startswith("discover.") else f"domains.{name}"
            path = path if path.endswith(".valid") else f"{path}.source"
            problems += [problem.under(path) for problem in error.problems]
    if recipe.tokenizer is not None and recipe.tokenizer.kind in ("file", "sentencepiece"):
        try:
            digests["tokenizer"] = hashlib.sha256(Path(recipe.tokenizer.path).expanduser().read_bytes()).hexdigest()
        except OSError as error:
            problems.append(Problem("tokenizer.path", recipe.tokenizer.path, f"cannot be read: {error.strerror}"))
    tasks, wrong_tasks = task_digests(recipe, sources)
    if problems := [*problems, *wrong_tasks]:
        raise InvalidInput(f"recipe {recipe.name}", problems)
    return digests | tasks


def _facts(store: ArtifactStore, stage: str, key: str) -> Facts:
    record, damaged = None, None
    try:
        record = store.record(stage, key)
    except ArtifactDamaged as error:
        damaged = str(error)
    previous = None if record else store.newest(stage, but=key)
    return Facts(record, damaged, store.lease_info(stage, key), previous)


def _models(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Sizes and costs by arithmetic: no weight is made. train_flops: of the model's own stage.

    params, flops_per_operation: what the totals are made of. paper: beside the paper's own figures (`nn/paper.py`),
    for a model of the shape that it prints them for.
    """
    models, phases, configs = {}, bam.trainings(recipe), bam.model_configs(recipe)
    teachers = {f"distil.{name}": configs[f"train.{distil.source}"] for name, distil in recipe.distil.items()}
    for name, config in configs.items():
        phase, teacher = phases.get(name), teachers.get(name)
        tokens = phase.n_steps * phase.batch_tokens if phase else 0
        models[name] = {
            "params_total": costs.params_total(config),
            "params_active": costs.params_active(config),
            "params": costs.params_by_component(config),
            "flops_per_token": costs.flops_per_token(config, config.max_seq_len),
            "flops_per_operation": costs.flops_by_operation(config, config.max_seq_len),
            "train_tokens": tokens,
            "train_flops": costs.training_flops(config, tokens, config.max_seq_len)
            + (judging_flops(config, recipe.dense_config(), phase) if phase else 0)
            + (costs.forward_flops(teacher, tokens, config.max_seq_len) if teacher else 0),
            "training_bytes": costs.training_bytes(config) if phase else None,
            "mixing_bytes": costs.mixing_bytes(config) if name.startswith("mix.") else None,
            "cache_bytes_per_token": costs.cache_bytes_per_token(config),
        }
        if printed := paper.comparison(config):
            models[name]["paper"] = printed
    return models


def _absolute(pipeline: Pipeline) -> Pipeline:
    """Stages run in other folders than the command: relative paths of files become absolute (a hub's name is none)."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(part) for part in value]
        if not isinstance(value, Mapping):
            return value
        made = {name: absolute(part) for name, part in value.items()}
        return made | ({"path": absolute_path(made)} if "path" in made else {})

    return Pipeline(pipeline.name, tuple(replace(stage, runtime=absolute(stage.runtime)) for stage in pipeline))
