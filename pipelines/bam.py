"""The whole method as a DAG on one screen: what is built from what.

    tokenizer -> data.<domain> -> seed -> expert.<domain> -> mix.<variant> -> train.<variant> -> evaluate -> report

A search, `tune.<name>`, comes before the stages that use its best values. `overlap` looks for held-out text in training
text, and nothing is trained before it has. `discover.<name>` makes domains of text that has none. `distil.<name>` makes
the attention of a trained mixture cheaper. `seeding` repeats the whole for more seeds.

Branch-Attend-Mix (BAM, section 4): branch the seed into one dense expert per domain, then initialise attention and FFN
experts of a mixture from them. The general domain's expert is the seed itself: no training, no copy. An expert that
another team trained, `adopted.<name>`, may stand in the place of `expert.<domain>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bam_core.config import ModelConfig, TrainConfig
from bam_core.graph.adopted import adopted_stage
from bam_core.graph.stage import Pipeline, Resources, Stage, StageName
from bam_core.nn.costs import training_flops
from bam_core.seeds import child_seed
from bam_core.upcycle.variants import Variant, mixture_config, variant_sources
from pipelines import texts
from pipelines.exports import exports
from pipelines.imports import imported, own_trainings
from pipelines.matching import mixture_phases
from pipelines.plugging import with_plugins
from pipelines.recipe import Recipe
from pipelines.recipe.baselines import baselines
from pipelines.recipe.data import in_words
from pipelines.recipe.discover_checks import unused_clusters
from pipelines.recipe.parts import Group
from pipelines.recipe.routing import routing_asked
from pipelines.recipe.tuning import data_of, trained_stages
from pipelines.seeding import together
from pipelines.stages import KINDS, new_stage
from pipelines.training_stages import experts, training, tune

Adopted = Mapping[str, Mapping[str, Any]]
"""Name of an adopted expert -> the configuration of its stage (`bam_core.graph.adopted`)."""
CALIBRATION_TOKENS = 4096
"""Of each domain's text, to fit a mixture's routers and to measure its start."""


def build(recipe: Recipe, digests: Mapping[str, str], adopted: Adopted | None = None) -> Pipeline:
    """The recipe's stages in an order in which they can run. digests: content identity of each text and task file.

    adopted: what each adopted expert that the recipe names is.
    """
    seeded = {seed: recipe.of_seed(seed) for seed in recipe.all_seeds}
    stages = {seed: with_plugins(one, _stages(one, digests, adopted or {})) for seed, one in seeded.items()}
    made = {seed: _in_order(list(found)) for seed, found in stages.items()}
    searched_once = {f"tune.{name}" for name, search in recipe.tune.items() if search.seeds == "first"}
    return Pipeline(recipe.name, together(made, searched_once))


def _stages(recipe: Recipe, digests: Mapping[str, str], adopted: Adopted) -> Iterator[Stage]:
    for name in recipe.discover:
        yield texts.discover(recipe, name, digests)
    yield texts.tokenizer(recipe, digests)
    for domain in recipe.domains:
        yield texts.data(recipe, domain, digests)
    yield texts.overlap(recipe, digests)

    phases = trainings(recipe)
    for name in recipe.tune:
        yield tune(recipe, name, phases)
    yield from (imported(recipe, domain) for domain in recipe.imported)
    yield from (training(recipe, name, phases) for name in own_trainings(recipe))
    for expert in recipe.adopted.values():
        yield adopted_stage({"name": expert, **adopted[expert]}, KINDS["adopt"].version)
    for name in recipe.variants:
        if recipe.mix_of(name) == name:
            yield _mix(recipe, name)
        if recipe.is_trained(name):
            yield training(recipe, f"train.{name}", phases)
    for name in recipe.distil:
        yield training(recipe, f"distil.{name}", phases)
    if recipe.has_dense:
        yield training(recipe, "dense", phases)

    yield from exports(recipe, model_configs(recipe) if recipe.export else {})
    yield _evaluate(recipe, digests)
    if _routed(recipe):
        yield _routing(recipe)
    yield _report(recipe)


def _in_order(stages: list[Stage]) -> tuple[Stage, ...]:
    """The same order, but that no stage comes before what it reads."""
    named, placed = {stage.name: stage for stage in stages}, dict[str, Stage]()

    def place(stage: Stage) -> None:
        for parent in (*stage.inputs.values(), *stage.checks):
            if parent not in placed:
                place(named[parent])
        placed.setdefault(stage.name, stage)

    for stage in stages:
        if stage.function != "tune":  # one comes right before the first that reads it
            place(stage)
    return tuple(placed.values())


def model_configs(recipe: Recipe) -> dict[str, ModelConfig]:
    """Stage name -> the model that it makes."""
    dense = recipe.dense_config()
    models = dict.fromkeys(("seed", *experts(recipe).values()), dense)
    if recipe.has_dense:
        models["dense"] = dense
    for name in recipe.variants:
        mixture = mixture_config(dense, list(experts(recipe)), variant(recipe, name))
        models |= {f"mix.{recipe.mix_of(name)}": mixture, recipe.model_of(name): mixture}
    for name, distil in recipe.distil.items():
        models[f"distil.{name}"] = distil.sparser().config(models[f"train.{distil.source}"])
    return models


def trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """Stage name -> its phase, as the recipe says it: a search may set some of its fields."""
    phases = {"seed": recipe.seed_training()} if recipe.trains_seed else {}
    phases |= {f"expert.{domain}": recipe.expert_training(domain) for domain in recipe.specialists}
    phases |= {f"distil.{name}": recipe.distil_training(name) for name in recipe.distil}
    return phases | mixture_phases(recipe, model_configs(recipe))


def search_costs(recipe: Recipe) -> dict[str, dict[str, float]]:
    """Stage name of each search, of every seed that has its own -> what it costs if no trial is stopped."""
    found: dict[str, dict[str, float]] = {}
    models, phases = model_configs(recipe), trainings(recipe)
    for name, search in recipe.tune.items():
        phase = phases[search.stage]
        phase = replace(phase, tokens=search.tokens or phase.tokens)
        tokens = search.trials * phase.n_steps * phase.batch_tokens
        flops = training_flops(models[search.stage], tokens, phase.seq_len)
        cost: dict[str, float] = {"trials": search.trials, "train_tokens": tokens, "train_flops": flops}
        others = recipe.all_seeds[1:] if search.seeds == "each" else ()
        found |= {str(StageName("tune", name, seed)): cost for seed in (None, *others)}
    return found


def changing_data(recipe: Recipe) -> dict[str, str]:
    """Stage name -> how the shares of its training data change, in words; those whose shares stay are left out."""
    stages = [*trained_stages(recipe), *(f"distil.{name}" for name in recipe.distil)]
    found = {stage: in_words(data_of(recipe, stage)) for stage in stages}
    return {stage: words for stage, words in found.items() if words is not None}


def variant(recipe: Recipe, name: str) -> Variant:
    return Variant.from_json({"name": name} | recipe.variants[name].spec())


def warnings(recipe: Recipe) -> list[str]:
    """What the recipe may ask for and likely does not mean, each with its key path."""
    models, variants = list(experts(recipe)), {name: variant(recipe, name) for name in recipe.variants}
    whose: dict[str, list[str]] = {}
    for name, spec in variants.items():
        for warning in spec.warnings(models):
            whose.setdefault(warning, []).append(name)
    return [f"variants.{', '.join(names)}: {warning}" for warning, names in whose.items()] + [
        f"discover.{name}: no domain is cluster {', '.join(map(str, left))}: that text is left out"
        for name, left in unused_clusters(recipe).items()
        if left
    ]


def _mix(recipe: Recipe, name: str) -> Stage:
    """Reads the dense models that the variant is made from, and text of every domain to measure the start on."""
    spec, stages = variant(recipe, name), experts(recipe)
    sources = [[expert, stages[expert]] for expert in variant_sources(spec, list(stages))]
    config = {
        "variant": spec.identity(),
        "experts": sources,  # a list: the order counts
        "seed": child_seed(recipe.seed, "mix"),
        "domains": list(recipe.domains),
        "calibration_tokens": CALIBRATION_TOKENS,
    }
    return new_stage(f"mix.{name}", config, {stage: stage for _, stage in sources} | texts.all_data(recipe), {})


def _evaluate(recipe: Recipe, digests: Mapping[str, str]) -> Stage:
    models = list(model_configs(recipe))
    config = {
        "models": models,
        "domains": list(recipe.domains),
        "tokens": recipe.evaluate.tokens,
        "stride": recipe.evaluate.stride or max(1, (recipe.context or 1) // 2),
        "dtype": recipe.evaluate.dtype,
        "seeds": [recipe.seed],
    }
    if recipe.evaluate.part:
        config["part"] = list(recipe.evaluate.part)
    if recipe.ensemble:
        config["ensemble"] = list(experts(recipe).values())
    if recipe.evaluate.metrics:
        config["metrics"] = sorted(set(recipe.evaluate.metrics))
    tasks, files = texts.asked_tasks(recipe, digests)
    config |= {"tasks": tasks} if tasks else {}
    inputs = {name: name for name in models} | texts.all_data(recipe) | {"tokenizer": "tokenizer", "overlap": "overlap"}
    stage = new_stage("evaluate", config, inputs, {"tasks": files} if files else {})
    return replace(stage, resources=_judging(recipe.runtime.seed, recipe.runtime.expert, recipe.runtime.train))


def _judging(*groups: Group) -> Resources:
    """What stages that score models have: the cores of the largest group, and a GPU where one of them trains on one."""
    return Resources(cpus=max(group.cpus for group in groups), gpus=min(1, max(group.gpus for group in groups)))


def _routed(recipe: Recipe) -> list[str]:
    """The trained mixtures whose routers are looked at: those that have some, if the recipe asks for it."""
    models = model_configs(recipe).items() if routing_asked(recipe.evaluate.routing) else ()
    asked = {*map(recipe.model_of, recipe.variants), *(f"distil.{name}" for name in recipe.distil)}
    return [name for name, model in models if name in asked and (model.attention or model.ffn)]


def _routing(recipe: Recipe) -> Stage:
    asked, models = routing_asked(recipe.evaluate.routing), _routed(recipe)
    assert asked is not None, "the recipe leaves routing out"
    config = {"models": models, "domains": list(recipe.domains), "dtype": recipe.evaluate.dtype, **asked.to_dict()}
    stage = new_stage("routing", config, {name: name for name in models} | texts.all_data(recipe), {})
    return replace(stage, resources=_judging(recipe.runtime.train))


def _report(recipe: Recipe) -> Stage:
    models = list(model_configs(recipe))
    config = {
        "recipe": recipe.name,
        "models": models,
        "domains": list(recipe.domains),
        "baselines": baselines(recipe),
    }
    tunes = [f"tune.{name}" for name in recipe.tune]
    judges = ["evaluate", "overlap", *(["routing"] if _routed(recipe) else [])]
    return new_stage("report", config, {name: name for name in [*judges, *models, *tunes]}, {})
