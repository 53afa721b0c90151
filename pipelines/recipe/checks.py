"""What must hold between the keys of a recipe; `variants` and `tune` have files of their own.

A value may be None where the schema has found something wrong: such holes are stepped over. Constraints
on a model and on a training phase come from `bam_core.config`, under the recipe's own key paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bam_core.config import ModelConfig, TrainConfig
from bam_core.errors import Problem, nearest
from bam_core.graph.adopted import NAME, NAME_RULE
from pipelines.recipe.base import Part, maybe
from pipelines.recipe.baselines import baseline_problems
from pipelines.recipe.data import data_problems
from pipelines.recipe.discover_checks import discover_problems
from pipelines.recipe.distil_checks import distil_problems
from pipelines.recipe.document import join
from pipelines.recipe.import_checks import import_problems
from pipelines.recipe.matching_checks import matching_problems
from pipelines.recipe.overrides import MATCHING
from pipelines.recipe.parts import BpeTokenizer, Domain, ExpertOverride, TaskFile
from pipelines.recipe.phases import FROM, ExpertPhase, ImportedSeed, MixtureKeys, NoMixturePhase, Phase
from pipelines.recipe.promotion_checks import promotion_problems, scored_models
from pipelines.recipe.routing import routing_problems
from pipelines.recipe.schema import Recipe
from pipelines.recipe.sources import source_problems
from pipelines.recipe.study import study_problems
from pipelines.recipe.tune_checks import tune_problems
from pipelines.recipe.tuning import own_place
from pipelines.recipe.variant_checks import variant_problems

MIN_BPE_VOCAB = 257
"""256 bytes and `<|endoftext|>`."""

RESERVED_DOMAINS = {"own", "uniform"}
SEED_IS_EXPERT = "the first domain's expert is the seed model itself"
_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Everything wrong across the keys of a recipe, which may have holes (None) where a type was wrong."""
    yield from unknown_keys(recipe, "")
    yield from _names("name", [recipe.name])
    yield from _seeds(recipe)
    yield from _names("discover", recipe.discover or ())
    for name, found in (recipe.discover or {}).items():
        source = found.source if found is not None else None
        yield from source_problems(f"{join('discover', name)}.source", source, shared=False)
    yield from discover_problems(recipe)
    yield from _domains(recipe)
    yield from _tokenizer(recipe)
    yield from _model(recipe)
    yield from import_problems(recipe)
    yield from _phases(recipe)
    yield from _names("variants", recipe.variants or ())
    yield from variant_problems(recipe)
    yield from matching_problems(recipe)
    yield from _names("distil", recipe.distil or ())
    yield from distil_problems(recipe)
    yield from _exports(recipe)
    yield from _names("tune", recipe.tune or ())
    yield from tune_problems(recipe)
    yield from _evaluate(recipe)
    yield from promotion_problems(recipe)
    if recipe.study and recipe.variants is not None and recipe.domains is not None:
        yield from study_problems(recipe, scored_models(recipe))
    yield from _runtime(recipe)


def _exports(recipe: Recipe) -> Iterator[Problem]:
    """Whether the class that is asked for is the same model is said where the model is known (`pipelines.bam`)."""
    known = {**(recipe.variants or {}), **(recipe.distil or {})}
    for name in recipe.export or ():
        if known and name not in known:
            yield Problem(join("export", name), name, "is neither a variant nor distilled", nearest(name, known))


def _seeds(recipe: Recipe) -> Iterator[Problem]:
    yield from _at_least("seed", recipe.seed, 0)
    if recipe.seeds is None:
        return
    if "seed" in recipe.model_fields_set and recipe.seed is not None:
        both = f"and seeds, {recipe.seeds}, exclude each other"
        yield Problem("seed", recipe.seed, both, "keep one: seeds makes everything once for each")
    if not recipe.seeds:
        yield Problem("seeds", [], "must name at least one seed", "for example [0, 1, 2]")
    for seed in dict.fromkeys(recipe.seeds):
        if seed < 0:
            yield Problem("seeds", seed, "must be at least 0")
        if recipe.seeds.count(seed) > 1:
            yield Problem("seeds", seed, "is given twice", "keep one: equal seeds give equal results")
    has_one = recipe.phases is not None and recipe.domains is not None and not recipe.trains_seed
    for domain, expert in recipe.adopted.items() if len(recipe.seeds) > 1 and not has_one else ():
        expected = "branched from one seed model, and every other of seeds has its own"
        yield Problem(join("domains", domain) + ".expert", expert, expected, "train the expert, or give one seed")


def unknown_keys(part: Any, path: str) -> Iterator[Problem]:
    """Every key that the schema does not know, with the nearest one that it does."""
    if isinstance(part, Part):
        for key, value in (part.model_extra or {}).items():
            yield Problem(join(path, key), value, "is not a known key", nearest(key, _known_keys(part)))
        part = part.to_dict()
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from unknown_keys(value, join(path, key))
    if isinstance(part, list):
        for number, value in enumerate(part):
            yield from unknown_keys(value, f"{path}.{number}")


def _known_keys(part: Part) -> list[str]:
    return [field.alias or name for name, field in type(part).model_fields.items()]


def _at_least(path: str, value: int | None, least: int) -> Iterator[Problem]:
    if value is not None and value < least:
        yield Problem(path, value, f"must be at least {least}")


def _names(path: str, names: Iterable[str | None]) -> Iterator[Problem]:
    """Names become folders and parts of a reference, so they are plain."""
    for name in names:
        if name is not None and not _NAME.fullmatch(name):
            here = path if path == "name" else join(path, name)
            yield Problem(here, name, "a name has 1 to 64 of a-z, 0-9, _ and -, and does not start with -")


def _domains(recipe: Recipe) -> Iterator[Problem]:
    if maybe(recipe.domains) is None:
        return
    yield from _names("domains", recipe.domains)
    for name in RESERVED_DOMAINS & recipe.domains.keys():
        yield Problem(f"domains.{name}", name, "means something else in a phase's data", "choose another name")
    if len(recipe.domains) < 2:
        wanted = "a mixture needs at least two: the general domain first, then one for each expert"
        yield Problem("domains", list(recipe.domains), wanted)
    for index, (name, said) in enumerate(recipe.domains.items()):
        here = join("domains", name)
        if (domain := maybe(said)) is None:
            continue
        yield from _at_least(f"{here}.max_bytes", domain.max_bytes, 1)
        if domain.valid_frac is not None and not 0 < domain.valid_frac < 1:
            yield Problem(f"{here}.valid_frac", domain.valid_frac, "must be above 0 and below 1")
        yield from source_problems(f"{here}.source", domain.source)
        yield from source_problems(f"{here}.valid", domain.valid, shared=False)
        if domain.dedup_threshold is not None and not 0 < domain.dedup_threshold <= 1:
            yield Problem(f"{here}.dedup_threshold", domain.dedup_threshold, "must be above 0 and at most 1")
        if domain.valid is not None and domain.valid_frac not in (None, Domain.model_fields["valid_frac"].default):
            expected = "is the part of `source` that is held out, and `valid` takes its place"
            yield Problem(f"{here}.valid_frac", domain.valid_frac, expected, "keep one of them")
        if isinstance(domain.expert, str):
            yield from _adopted(recipe, name)
        elif domain.expert is not None:
            yield from _own_expert(f"{here}.expert", domain.expert, is_first=index == 0)


def _own_expert(here: str, expert: ExpertOverride, *, is_first: bool) -> Iterator[Problem]:
    if not is_first and expert.train is not None:
        expected = "is for the first domain, whose expert may be the seed; the others' are trained"
        yield Problem(f"{here}.train", expert.train, expected, "leave it out")
    elif is_first and not expert.train:
        given = {key: value for key, value in expert.to_dict().items() if value not in (None, False)}
        if given:
            yield Problem(here, given, SEED_IS_EXPERT, "set phases.seed, or train: true for an expert beside the seed")


def _adopted(recipe: Recipe, domain: str) -> Iterator[Problem]:
    """Whether there is such an expert is for the plan to say, which reads the store."""
    here, name = join("domains", domain) + ".expert", recipe.adopted[domain]
    if domain == recipe.general:
        yield Problem(here, name, SEED_IS_EXPERT, "an adopted expert stands for one of the other domains")
    if not NAME.fullmatch(name):
        yield Problem(here, name, NAME_RULE, "as in `bam adopt NAME URI`")
    first = next(other for other, expert in recipe.adopted.items() if expert == name)
    if first != domain:
        yield Problem(here, name, f"is the expert of {first} already", "one expert stands for one domain")


def _tokenizer(recipe: Recipe) -> Iterator[Problem]:
    spec = recipe.tokenizer
    if spec is None or spec.kind == "import":
        return
    yield from _at_least("tokenizer.vocab_size", spec.vocab_size, MIN_BPE_VOCAB if spec.kind == "bpe" else 1)
    if isinstance(spec, BpeTokenizer) and spec.domains is not None and recipe.domains is not None:
        if not spec.domains:
            yield Problem("tokenizer.domains", [], "must name at least one domain")
        for name in spec.domains:
            if name not in recipe.domains:
                yield Problem("tokenizer.domains", name, "is not a domain", nearest(name, recipe.domains))


def _model(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model is None:
        return
    values = recipe.model.to_dict()
    if values["n_kv_heads"] is None:
        values["n_kv_heads"] = values["n_heads"]
    for problem in ModelConfig(vocab_size=MIN_BPE_VOCAB, **values).problems():
        if not (problem.path == "n_kv_heads" and recipe.model.n_kv_heads is None):
            yield problem.under("model")


def _phases(recipe: Recipe) -> Iterator[Problem]:
    for name, phase in (recipe.phases.to_dict() if recipe.phases else {}).items():
        if not isinstance(phase, Phase):
            continue
        here = f"phases.{name}"
        yield from _training(phase, recipe, here)
        is_expert, adapts = isinstance(phase, ExpertPhase), isinstance(phase, MixtureKeys)
        row = recipe.row_len or 1
        yield from data_problems(phase.data, recipe.domains, f"{here}.data", has_own=is_expert, adapts=adapts, row=row)
        if isinstance(phase, ExpertPhase):
            yield from _overrides(phase, recipe, _of_experts(recipe))
        if isinstance(phase, MixtureKeys):
            trainings = recipe.mixture_trainings
            yield from _overrides(phase, recipe, {own_place(stage): own.changes() for stage, own in trainings.items()})
            for stage, own in trainings.items():
                yield from data_problems(own.data, recipe.domains, f"{own_place(stage)}.data", row=row)
            distilled = {join("distil", name): part for name, part in (recipe.distil or {}).items() if part}
            yield from _overrides(phase, recipe, {here: part.changes() for here, part in distilled.items()})
            for here, part in distilled.items():
                yield from data_problems(part.data, recipe.domains, f"{here}.data", row=row)


def _training(phase: Phase, recipe: Recipe, here: str) -> Iterator[Problem]:
    """The problems of the phase as a `TrainConfig`, but for those of its data."""
    fields = {name: value for name, value in phase.to_dict().items() if name not in {"data", *MATCHING, *FROM}}
    if isinstance(phase, NoMixturePhase | ImportedSeed):  # what is not trained need not say how
        row = recipe.row_len or 1
        fields |= {name: fields[name] or row for name in ("tokens", "batch_tokens")}
    for name, field in type(phase).model_fields.items():
        if name in fields and fields[name] is None and name not in {"tokens", "batch_tokens"}:
            fields[name] = 1.0 if name == "lr" else field.default  # a hole: stand in for it
    config = TrainConfig(**fields, shares={"all": 1.0}, seq_len=recipe.row_len or 0)
    for problem in config.problems():
        if problem.path != "seq_len":
            yield problem.under(here)
    if phase.tokens and phase.batch_tokens and 0 < phase.tokens < phase.batch_tokens:
        yield Problem(f"{here}.tokens", phase.tokens, f"must be at least one batch, {phase.batch_tokens} tokens")


def _of_experts(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Where a domain says what its expert does differently -> what that is."""
    found = {}
    for name, domain in (recipe.domains or {}).items():
        if domain is not None and isinstance(domain.expert, ExpertOverride):
            found[join("domains", name) + ".expert"] = domain.expert.changes()
    return found


def _overrides(phase: Phase, recipe: Recipe, places: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """places: key path -> what is said there in place of the phase's values."""
    for here, changes in places.items():
        for problem in _training(phase.model_copy(update=dict(changes)), recipe, here):
            if problem.path.rpartition(".")[2] in changes:
                yield problem


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    spec = maybe(recipe.evaluate)
    if spec is None:
        return
    row = recipe.row_len
    if spec.tokens is not None and spec.tokens < (row or 1):
        yield Problem("evaluate.tokens", spec.tokens, f"must be at least one row, {row or 1} tokens")
    row = recipe.context
    if spec.stride is not None and not 1 <= spec.stride <= (row or spec.stride):
        expected = f"must be at least 1 and at most a window, {row} tokens" if row else "must be at least 1"
        yield Problem("evaluate.stride", spec.stride, expected, "leave it out for half a window")
    if spec.part is not None and not 1 <= spec.part[0] <= spec.part[1]:
        yield Problem("evaluate.part", list(spec.part), "must be [i, n] with i from 1 to n")
    for name in ("max_overlap", "max_contaminated"):
        value = getattr(spec, name)
        if value is not None and not 0 <= value <= 1:
            yield Problem(f"evaluate.{name}", value, "must be from 0 to 1")
    yield from routing_problems(spec.routing)
    yield from baseline_problems(recipe)
    for number, file in enumerate(spec.tasks or ()):
        yield from _task_file(f"evaluate.tasks.{number}", file)


def _task_file(here: str, file: TaskFile) -> Iterator[Problem]:
    """What the file holds is for the plan to say, which reads it."""
    yield from _at_least(f"{here}.limit", file.limit, 1)
    yield from _at_least(f"{here}.new_tokens", file.new_tokens, 0)
    if file.execute and file.new_tokens == 0:
        yield Problem(f"{here}.execute", True, "runs what a model writes, and new_tokens 0 lets it write nothing")


def _runtime(recipe: Recipe) -> Iterator[Problem]:
    runtime = maybe(recipe.runtime)
    if runtime is None:
        return
    for name in ("max_parallel", "max_trials", "checkpoint_steps", "micro_batch_rows"):
        yield from _at_least(f"runtime.{name}", getattr(runtime, name), 1)
    for name, phase_name in (("seed", "seed"), ("expert", "expert"), ("train", "mixture")):
        group, here = getattr(runtime, name), f"runtime.{name}"
        if group is None:
            continue
        yield from _workers(f"{here}.workers", group.workers, _rows_per_batch(recipe, phase_name), phase_name)
        yield from _at_least(f"{here}.cpus", group.cpus, 1)
        yield from _at_least(f"{here}.gpus", group.gpus, 0)


def _workers(here: str, workers: tuple[int, int] | None, rows: int | None, phase_name: str) -> Iterator[Problem]:
    """An elastic group splits a batch as evenly as it can; a fixed one must split it evenly."""
    if workers is None:
        return
    fewest, most = workers
    value = fewest if fewest == most else list(workers)
    if fewest < 1:
        yield Problem(here, value, "must be at least 1")
    elif most < fewest:
        yield Problem(here, value, "must read [fewest, most], and the most is below the fewest")
    elif rows and fewest == most and rows % fewest:
        yield Problem(here, value, f"must divide the {rows} rows of a batch of phases.{phase_name}")
    elif rows and most > rows:
        yield Problem(here, value, f"there are only {rows} rows in a batch of phases.{phase_name}")


def _rows_per_batch(recipe: Recipe, phase_name: str) -> int | None:
    """Rows of one global batch, or None where a size is itself wrong."""
    phase = getattr(recipe.phases, phase_name, None) if recipe.phases else None
    batch, row = phase and phase.batch_tokens, recipe.row_len
    return batch // row if batch and row and batch > 0 and row > 0 and batch % row == 0 else None
