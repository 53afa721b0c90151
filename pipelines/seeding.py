"""Several seeds in one pipeline: the whole method once for each, with what depends on no seed only once.

The first seed's stages have plain names, so they are those of a recipe with that `seed`. A stage of seed 1 that another
would make is `<name>.s1`, and its inputs with it; its roles stay plain, so that no stage knows of seeds. What is equal
for all (texts, tokenizer) is found by comparison, not by a list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from bam_core.graph.stage import Stage, StageName

TOGETHER = "report"
"""The one stage that sees all seeds."""
JUDGES = "evaluate"


def together(pipelines: Mapping[int, Sequence[Stage]], only_first: Collection[str] = ()) -> tuple[Stage, ...]:
    """One order of stages of the pipelines of several seeds: those of the first, of the second, ..., the report.

    pipelines: seed -> its stages, each after what it reads. only_first: stages that the first seed makes for all.
    """
    first = {stage.name: stage for stage in next(iter(pipelines.values()))}
    made, judged = [stage for name, stage in first.items() if name != TOGETHER], dict[str, str]()
    for seed, stages in list(pipelines.items())[1:]:
        names = _names(seed, stages, first, only_first)
        for stage in stages:
            if names[stage.name] != stage.name and stage.name != TOGETHER:
                inputs = {role: names[parent] for role, parent in stage.inputs.items()}
                checks = tuple(names[check] for check in stage.checks)
                made.append(replace(stage, name=names[stage.name], inputs=inputs, checks=checks))
        judged |= {names[JUDGES]: names[JUDGES]} if JUDGES in names else {}
    if TOGETHER in first:
        report = first[TOGETHER]
        config = {**report.config, **({"seeds": list(pipelines)} if len(pipelines) > 1 else {})}
        made.append(replace(report, config=config, inputs={**report.inputs, **judged}))
    return tuple(made)


def _names(
    seed: int, stages: Sequence[Stage], first: Mapping[str, Stage], only_first: Collection[str]
) -> dict[str, str]:
    """What each stage of a seed is called among those of all: its plain name if it is the first seed's as well."""
    names: dict[str, str] = {}
    for stage in stages:
        reads_shared = all(names[parent] == parent for parent in stage.inputs.values())
        is_shared = stage.name in only_first or (reads_shared and stage == first.get(stage.name))
        names[stage.name] = stage.name if is_shared else str(StageName.parse(stage.name).of_seed(seed))
    return names
