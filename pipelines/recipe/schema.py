"""The recipe as a whole, and what its keys mean to the core: model and training configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from bam_core.config import ModelConfig, TrainConfig
from bam_core.seeds import child_seed
from pipelines.recipe.base import Named, Part
from pipelines.recipe.data import training_fields
from pipelines.recipe.distil import Distil
from pipelines.recipe.mixtures import Variant
from pipelines.recipe.overrides import MATCHING, DenseTrain, Match, VariantTrain
from pipelines.recipe.parts import (
    LICENCES,
    ClusterText,
    Discover,
    Domain,
    Evaluate,
    Model,
    Phase,
    Phases,
    Runtime,
    Tokenizer,
    Tune,
)
from pipelines.recipe.promotion import Promote
from pipelines.recipe.study import StudyTable
from pipelines.recipe.values import Count, Text

Dense = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[DenseTrain, Tag("train")],
    Discriminator(lambda value: "train" if isinstance(value, Mapping | DenseTrain) else "switch"),
]
"""Whether the baseline is trained, or how its training differs from `phases.mixture`."""


def _plain(source: Part) -> dict[str, Any]:
    """What says which text it is, as `protocols.Sources` takes it."""
    spec = source.to_dict()
    del spec["licence"]
    if spec["kind"] == "text":
        del spec["column"]
    return {key: value for key, value in spec.items() if value is not None}


class Recipe(Part):
    """All that defines a result. The first domain is the general one: its expert is the seed model itself."""

    name: Text
    seed: Count = 0
    seeds: list[Count] | None = None
    discover: Named[Discover] = Field({})
    domains: Named[Domain]
    tokenizer: Tokenizer
    model: Model
    phases: Phases
    variants: Named[Variant]
    distil: Named[Distil] = Field({})
    tune: Named[Tune] = Field({})
    dense: Dense = True
    ensemble: bool = True
    evaluate: Evaluate = Evaluate()
    promote: Promote | None = None
    study: Named[StudyTable] = Field({})
    runtime: Runtime = Runtime()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds with each of which the whole is made."""
        return tuple(self.seeds) if self.seeds else (self.seed,)

    def of_seed(self, seed: int) -> Recipe:
        """The same with one seed."""
        return self.model_copy(update={"seed": seed, "seeds": None})

    def to_json(self) -> dict[str, Any]:
        """As it was read, whole: every default in it, nothing left to look up, and fit to be read again."""
        found = self.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in found.items() if name != "seed" or self.seeds is None}

    @property
    def general(self) -> str:
        return next(iter(self.domains))

    @property
    def adopted(self) -> dict[str, str]:
        """Domain -> the adopted expert that stands in the place of one of ours. The recipe may have holes."""
        experts = {name: domain.expert for name, domain in (self.domains or {}).items() if domain is not None}
        return {domain: expert for domain, expert in experts.items() if isinstance(expert, str)}

    @property
    def specialists(self) -> tuple[str, ...]:
        """The domains whose experts are trained: all but the general one and those with an adopted one."""
        adopted = self.adopted
        return tuple(domain for domain in tuple(self.domains)[1:] if domain not in adopted)

    def source(self, domain: str) -> dict[str, Any]:
        """The source of a domain as the plain mapping that `protocols.Sources` takes: what says which text it is."""
        return _plain(self._text(domain))

    def valid_source(self, domain: str) -> dict[str, Any] | None:
        """The same of its held-out text, where that has a source of its own."""
        valid = self.domains[domain].valid
        return _plain(valid) if valid is not None else None

    def text_name(self, domain: str) -> str:
        """The domain, if its text is its own, or the `discover.NAME` that it is a cluster of."""
        source = self.domains[domain].source
        return f"discover.{source.of}" if isinstance(source, ClusterText) else domain

    @property
    def texts(self) -> dict[str, dict[str, Any]]:
        """Every text that is read: its `text_name` -> its source. No domain has a point in its name."""
        apart = {f"{domain}.valid": self.valid_source(domain) for domain in self.domains}
        read = {self.text_name(domain): self.source(domain) for domain in self.domains}
        return read | {name: source for name, source in apart.items() if source is not None}

    def _text(self, domain: str) -> Any:
        source = self.domains[domain].source
        return self.discover[source.of].source if isinstance(source, ClusterText) else source

    def licence(self, domain: str) -> str | None:
        """Of the domain's text: as the recipe states it, else as it is known of a kind whose text is ours."""
        source = self._text(domain)
        return source.licence or LICENCES.get(source.kind)

    def dense_config(self) -> ModelConfig:
        """The seed model and every dense expert."""
        values = self.model.to_dict()
        if values["n_kv_heads"] is None:
            values["n_kv_heads"] = values["n_heads"]
        return ModelConfig(vocab_size=self.tokenizer.vocab_size, **values)

    def seed_training(self) -> TrainConfig:
        return self._training("seed", self.phases.seed, training_fields(self.phases.seed.data, self.domains))

    def expert_training(self, domain: str) -> TrainConfig:
        """`phases.expert` with the domain's overrides; `own` becomes `domain`."""
        phase = self.phases.expert
        own = self.domains[domain].expert
        assert not isinstance(own, str), f"the expert of {domain} is adopted, not trained"
        override = {key: value for key, value in own.to_dict().items() if value is not None}
        data = training_fields(phase.data, self.domains, own=domain)
        return self._training(f"expert.{domain}", phase.model_copy(update=override), data)

    def mixture_training(self, own: DenseTrain | None = None) -> TrainConfig:
        """The training of every variant, but for its own keys: one seed for all, so they see the same batches."""
        phase = self.phases.mixture.model_copy(update=own.changes() if own else {})
        return self._training("mixture", phase, training_fields(phase.data, self.domains))

    def distil_training(self, name: str) -> TrainConfig:
        """`phases.mixture` with the distillation's keys. What is for the start of a mixture is off: the model has
        been trained."""
        off: dict[str, Any] = {"router_freeze_frac": 0.0, "expert_freeze_frac": 0.0, "shared_freeze_frac": 0.0}
        phase = self.phases.mixture.model_copy(update=off | self.distil[name].changes())
        return self._training("distil", phase, training_fields(phase.data, self.domains))

    @property
    def mixture_trainings(self) -> dict[str, DenseTrain]:
        """Stage -> its own keys, of every variant's training and the dense baseline's. The recipe may have holes."""
        variants = {name: variant for name, variant in (self.variants or {}).items() if variant is not None}
        found: dict[str, DenseTrain] = {f"train.{name}": v.train or VariantTrain() for name, v in variants.items()}
        if self.dense:
            found["dense"] = self.dense if isinstance(self.dense, DenseTrain) else DenseTrain()
        return found

    def match_of(self, stage: str) -> tuple[Match, str | None]:
        """In what a mixture's training, or the baseline's, is made equal, and to which stage; None: the cheapest."""
        own, phase = self.mixture_trainings[stage], self.phases.mixture
        other = own.match_to or phase.match_to
        return own.match or phase.match, None if other is None else self.trained_stage(other)

    def trained_stage(self, name: str) -> str | None:
        """The stage that trains a variant, or the baseline where `dense` means it; None for neither."""
        return next((stage for stage in (f"train.{name}", name) if stage in self.mixture_trainings), None)

    def model_name(self, stage: str) -> str:
        """The variant that the stage trains, or `dense`."""
        return stage.removeprefix("train.")

    def mix_of(self, name: str) -> str:
        """The first variant that is mixed in the same way: it has the mixture that both are trained from."""
        spec = self.variants[name].spec()
        return next(other for other, variant in self.variants.items() if variant and variant.spec() == spec)

    def _training(self, name: str, phase: Phase, data: Mapping[str, Any]) -> TrainConfig:
        """data: the fields that say which text, `training_fields`."""
        values = {"load_balancing_coef": 0.0, "z_loss_coef": 0.0} | phase.to_dict()
        values = {key: value for key, value in values.items() if key not in {"data", *MATCHING}}
        return TrainConfig(**values, **data, seq_len=self.model.max_seq_len, seed=child_seed(self.seed, name))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors. One that extends another may leave out what that one has."""
    whole = Recipe.model_json_schema()
    parts, properties = whole.pop("$defs"), whole["properties"]
    variant = parts["Variant"]
    variant["properties"]["like"] = {"title": "Like", "type": "string", "minLength": 1}
    variant["anyOf"] = [{"required": ["like"]}, {"required": variant.pop("required")}]
    text = {"type": "string", "minLength": 1}
    texts = {"type": "array", "items": text}
    several = {"anyOf": [text, texts | {"minItems": 1}]}
    base = {"type": "object", "properties": {"recipe": several, "replace": texts}, "required": ["recipe"]}
    parts["Extends"] = {"anyOf": [*several["anyOf"], base | {"additionalProperties": False}]}
    return {
        "$defs": parts | {"Recipe": whole},
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bam recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"properties": dict.fromkeys(properties, True) | {"extends": {"$ref": "#/$defs/Extends"}}}
        | {"additionalProperties": False},
        "else": {"$ref": "#/$defs/Recipe"},
    }
