"""What each of two runs left, and what of it can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bam_core.evaluate.resample import DocumentScores
from bam_core.graph.key import Change, payload_changes
from bam_core.graph.stage import StageName
from pipelines.report.formats import is_number
from pipelines.report.inputs import Json, in_order

AVERAGE = "average_perplexity"


@dataclass(frozen=True)
class Made:
    """An artifact of a run. seconds: what making it took, in whichever run that was."""

    key: str
    seconds: float | None = None
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class RunLeft:
    """What a run left.

    status: done, failed, interrupted, or running (also of one whose process was killed). started: seconds since the
    epoch. seconds: its own time, None while it has not ended. planned: the stages that it asked for. made: those that
    are there, in its order. perplexity: `perplexity.json` of its evaluation, over seeds their mean; documents: the loss
    of each document. training: stage -> history. tokenizer: what tells it from others. held_out: domain -> what tells
    its held-out text from other text. made_by: commits, versions of packages and devices, in words.
    """

    name: str
    pipeline: str
    status: str
    started: float
    seconds: float | None
    recipe: Json
    planned: Sequence[str] = ()
    made: Mapping[str, Made] = field(default_factory=dict)
    perplexity: Json | None = None
    documents: DocumentScores | None = None
    training: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    tokenizer: str | None = None
    held_out: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def evaluated(self) -> Mapping[str, Json]:
        """Model -> its figures."""
        found: Mapping[str, Json] = (self.perplexity or {}).get("models", {})
        return found

    @property
    def models(self) -> list[str]:
        """That were evaluated or trained; those of several seeds once."""
        trained = (StageName.parse(stage).plain for stage in self.training)
        return in_order(dict.fromkeys((*self.evaluated, *trained)), self.domains)

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.recipe.get("seeds", ())]

    def artifacts_of(self, model: str) -> dict[str, str]:
        """Stage -> key, for each seed; of an ensemble, of its experts."""
        members = self.evaluated.get(model, {}).get("experts") or [model]
        return {stage: made.key for stage, made in self.made.items() if StageName.parse(stage).plain in members}

    @property
    def domains(self) -> list[str]:
        """In the recipe's order."""
        found = dict.fromkeys(name for model in self.evaluated.values() for name in model.get("domains", {}))
        listed = [str(name) for name in self.recipe.get("domains", ()) if name in found]
        return listed + [name for name in found if name not in listed]

    @property
    def missing(self) -> list[str]:
        """Stages that it asked for and that are not there."""
        return [stage for stage in self.planned if stage not in self.made]


@dataclass(frozen=True)
class Pair:
    a: RunLeft
    b: RunLeft

    @cached_property
    def models(self) -> list[str]:
        """Of both."""
        return [model for model in self.a.models if model in self.b.models]

    def only(self, side: RunLeft) -> list[str]:
        """Models that the other run has not."""
        return [model for model in side.models if model not in self.models]

    @cached_property
    def evaluated(self) -> list[str]:
        """Models that both evaluated."""
        return [model for model in in_order(self.a.evaluated, self.domains) if model in self.b.evaluated]

    @cached_property
    def domains(self) -> list[str]:
        """That both evaluated on."""
        return [domain for domain in self.a.domains if domain in self.b.domains]

    @cached_property
    def trained(self) -> list[str]:
        """Trainings of both that are not one and the same."""
        both = [name for name in in_order(self.a.training, self.domains) if name in self.b.training]
        return [name for name in both if not self.is_same(name)]

    @property
    def is_all_the_same(self) -> bool:
        """Whether both runs have the very same artifacts."""
        return {s: made.key for s, made in self.a.made.items()} == {s: made.key for s, made in self.b.made.items()}

    def is_one_model(self, model: str) -> bool:
        """Whether it is the same artifact in both, under every seed."""
        mine, theirs = self.a.artifacts_of(model), self.b.artifacts_of(model)
        return bool(mine) and mine == theirs

    def is_same(self, stage: str) -> bool:
        mine, theirs = self.a.made.get(stage), self.b.made.get(stage)
        return mine is not None and theirs is not None and mine.key == theirs.key

    @cached_property
    def changes(self) -> list[Change]:
        """What differs in the recipes, by its path."""
        return sorted(payload_changes(self.a.recipe, self.b.recipe), key=lambda change: change.path)

    @property
    def has_one_tokenizer(self) -> bool:
        return self.a.tokenizer == self.b.tokenizer

    @cached_property
    def other_text(self) -> list[str]:
        """Domains whose held-out text is known not to be the same, though the tokenizer is."""
        if not self.has_one_tokenizer:
            return []
        return [domain for domain in self.domains if self.a.held_out.get(domain) != self.b.held_out.get(domain)]

    @property
    def is_of_one_text(self) -> bool:
        """Whether perplexities can be compared: of the same tokens of the same documents."""
        return self.has_one_tokenizer and not self.other_text

    def average(self, side: RunLeft, model: str) -> Any:
        """Over the domains of both: what the evaluation says, where it is over just these."""
        found = side.evaluated[model]
        if set(found.get("domains", {})) == set(self.domains):
            return found.get(AVERAGE)
        scores = [self.score(side, model, domain) for domain in self.domains]
        return sum(scores) / len(scores) if scores and all(map(is_number, scores)) else None

    def score(self, side: RunLeft, model: str, domain: str, figure: str = "perplexity") -> Any:
        return side.evaluated[model].get("domains", {}).get(domain, {}).get(figure)


def difference(of_a: Any, of_b: Any) -> float | None:
    """B over A, less 1."""
    return of_b / of_a - 1 if is_number(of_a) and is_number(of_b) and of_a > 0 else None
