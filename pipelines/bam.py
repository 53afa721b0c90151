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
from bam_core.graph.adopted import adopted_name, adopted_stage
from bam_core.graph.stage import Pipeline, Resources, Stage, StageName
from bam_core.nn.costs import training_flops
from bam_core.seeds import child_seed
from bam_core.upcycle.variants import Variant, mixture_config, variant_sources
from pipelines import texts
from pipelines.exports import exports
from pipelines.imports import import_stage, imported, own_trainings
from pipelines.matching import mixture_phases
from pipelines.plugging import with_plugins
from pipelines.recipe import Recipe
from pipelines.recipe.baselines import baselines
from pipelines.recipe.data import in_words
from pipelines.recipe.data_search import read_domains, searched_domains
from pipelines.recipe.discover_checks import unused_clusters
from pipelines.recipe.parts import Group
from pipelines.recipe.routing import routing_asked
from pipelines.recipe.tuning import data_of, trained_stages, tuned_fields, without
from pipelines.seeding import together
from pipelines.stages import KINDS, new_stage
from pipelines.stages.inputs import IMPORT, REFERENCE, TEACHER

Adopted = Mapping[str, Mapping[str, Any]]
"""Name of an adopted expert -> the configuration of its stage (`bam_core.graph.adopted`)."""
Tuned = Mapping[str, Mapping[str, str]]
"""Search -> {key of the recipe: field of the phase}."""
Phases = Mapping[str, TrainConfig]
"""Of `trainings`: worked out once for all stages of a seed."""
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
        yield _tune(recipe, name, phases)
    yield from (imported(recipe, domain) for domain in recipe.imported)
    yield from (_training(recipe, name, phases) for name in own_trainings(recipe))
    for expert in recipe.adopted.values():
        yield adopted_stage({"name": expert} | adopted[expert], KINDS["adopt"].version)
    for name in recipe.variants:
        if recipe.mix_of(name) == name:
            yield _mix(recipe, name)
        if recipe.is_trained(name):
            yield _training(recipe, f"train.{name}", phases)
    for name in recipe.distil:
        yield _training(recipe, f"distil.{name}", phases)
    if recipe.has_dense:
        yield _training(recipe, "dense", phases)

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


def experts(recipe: Recipe) -> dict[str, str]:
    """Expert name -> the stage whose model it is, in stacking order (BAM, section 5.1: the seed is expert 1)."""
    stages = {domain: f"expert.{domain}" for domain in recipe.domains}
    stages |= {} if recipe.trains_general else {recipe.general: "seed"}
    return stages | {domain: adopted_name(expert) for domain, expert in recipe.adopted.items()}


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
    found, models, phases = {}, model_configs(recipe), trainings(recipe)
    for name, search in recipe.tune.items():
        phase = phases[search.stage]
        phase = replace(phase, tokens=search.tokens or phase.tokens)
        tokens = search.trials * phase.n_steps * phase.batch_tokens
        flops = training_flops(models[search.stage], tokens, phase.seq_len)
        cost = {"trials": search.trials, "train_tokens": tokens, "train_flops": flops}
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


def _training(recipe: Recipe, name: str, phases: Phases) -> Stage:
    tuned = tuned_fields(recipe, name)
    phase = _phase(recipe, name, tuned, phases)
    config = {"phase": phase, **({"tuned": _roles(tuned)} if tuned else {})}
    inputs = _start_inputs(recipe, name) | _data_inputs(phase, tuned) | {role: role for role in _roles(tuned)}
    inputs |= _reference_inputs(recipe, phases[name])
    stage = new_stage(name, {**_start(recipe, name), **config}, inputs, {"pace": pace_of(recipe, name)})
    return replace(stage, resources=_worker_group(_group(recipe, name)), checks=("overlap",))


def _tune(recipe: Recipe, name: str, phases: Phases) -> Stage:
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
