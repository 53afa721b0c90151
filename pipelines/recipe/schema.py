"""The recipe as a whole, and what its keys mean to the core: model and training configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from bam_core.config import ModelConfig, TrainConfig
from bam_core.seeds import child_seed
from pipelines.recipe.base import Named, Part
from pipelines.recipe.data import training_fields
from pipelines.recipe.distil import Distil
from pipelines.recipe.imports import DEFAULT_SEQ_LEN, Imports
from pipelines.recipe.mixtures import Variant
from pipelines.recipe.overrides import MATCHING, Dense, DenseTrain, Match, VariantTrain
from pipelines.recipe.parts import (
    Discover,
    Domain,
    Evaluate,
    ExpertOverride,
    Export,
    ImportedExpert,
    Model,
    Runtime,
    Tokenizer,
    Tune,
)
from pipelines.recipe.phases import FROM, ImportedSeed, MixtureKeys, Phase, Phases
from pipelines.recipe.promotion import Promote
from pipelines.recipe.sources import LICENCES, AnyText, ClusterText, each_source, plain
from pipelines.recipe.study import StudyTable
from pipelines.recipe.values import Count, Text


class Recipe(Part):
    """All that defines a result. The first domain is the general one: its expert is the seed model itself.

    tokenizer, model: needed but where the seed is imported, which has both. vocabulary: what models with other tokens
    get in common: nothing (`refuse`), the tokens of all (`union`), or those of the seed (`seed`).
    """

    name: Text
    seed: Count = 0
    seeds: list[Count] | None = None
    discover: Named[Discover] = Field(default={})
    domains: Named[Domain]
    vocabulary: Literal["refuse", "union", "seed"] = "refuse"
    tokenizer: Tokenizer | None = None
    model: Model | None = None
    phases: Phases
    variants: Named[Variant]
    distil: Named[Distil] = Field(default={})
    export: Named[Export] = Field(default={})
    tune: Named[Tune] = Field(default={})
    dense: Dense = True
    ensemble: bool = True
    evaluate: Evaluate = Evaluate()
    promote: Promote | None = None
    study: Named[StudyTable] = Field(default={})
    runtime: Runtime = Runtime()
    _imports: Imports | None = PrivateAttr(default=None)

    @property
    def imports(self) -> Imports | None:
        """What was found where the recipe imports from; None before it was looked at, and where nothing is."""
        return self._imports

    def knowing(self, imports: Imports | None) -> Recipe:
        """The same, with what was found."""
        found = self.model_copy()
        found._imports = imports
        return found

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
        """The domains whose experts are trained: not the general one, nor those whose expert is there already.

        The recipe may have holes."""
        there = {*self.adopted, *self.taken}
        others = (domain for domain in tuple(self.domains or ())[1:] if domain not in there)
        return (self.general, *others) if self.trains_general else tuple(others)

    @property
    def trains_general(self) -> bool:
        """Whether the general domain has an expert of its own beside the seed. The recipe may have holes."""
        first = next(iter((self.domains or {}).values()), None)
        return first is not None and isinstance(first.expert, ExpertOverride) and first.expert.train is True

    @property
    def imported(self) -> tuple[str, ...]:
        """The domains whose experts are imported, the general one if the seed is. The recipe may have holes."""
        seed = [self.general] if isinstance(getattr(self.phases, "seed", None), ImportedSeed) and self.domains else []
        domains = list((self.domains or {}).items())[1:]
        return (*seed, *(name for name, part in domains if part and isinstance(part.expert, ImportedExpert)))

    @property
    def taken(self) -> tuple[str, ...]:
        """Those of them that are taken as they are: no training follows. The recipe may have holes."""
        return tuple(name for name in self.imported if not self.imported_part(name).tokens)

    def imported_part(self, domain: str) -> ImportedSeed | ImportedExpert:
        """What is said of an import, one of `imported`. The recipe may have holes."""
        part = self.phases.seed if domain == self.general else self.domains[domain].expert
        assert isinstance(part, ImportedSeed | ImportedExpert), f"{domain} imports nothing: {part!r}"
        return part

    @property
    def trains_seed(self) -> bool:
        """The recipe may have holes."""
        return not self.domains or self.general not in self.taken

    def source(self, domain: str) -> dict[str, Any]:
        """The source of a domain as the plain mapping that `protocols.Sources` takes: what says which text it is."""
        return plain(self._text(domain))

    def valid_source(self, domain: str) -> dict[str, Any] | None:
        """The same of its held-out text, where that has a source of its own."""
        valid = self.domains[domain].valid
        return plain(valid) if valid is not None else None

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

    def _text(self, domain: str) -> AnyText | list[AnyText]:
        source = self.domains[domain].source
        return self.discover[source.of].source if isinstance(source, ClusterText) else source

    def licence(self, domain: str) -> str | None:
        """Of the domain's text: as the recipe states it, else as it is known of a kind whose text is ours."""
        stated = [getattr(one, "licence", None) or LICENCES.get(one.kind) for one in each_source(self._text(domain))]
        return "; ".join(dict.fromkeys(filter(None, stated))) or None

    @property
    def context(self) -> int | None:
        """Tokens that the models read at most. The recipe may have holes."""
        if self.imports is not None:
            return self.imports.seed.config.max_seq_len
        return self.model.max_seq_len if self.model is not None else None

    @property
    def row_len(self) -> int | None:
        """Tokens of a row of text. The recipe may have holes."""
        said = self.phases.seq_len if self.phases is not None else None
        if said is not None or self.imports is None:
            return said if said is not None else self.context
        return min(self.imports.seed.config.max_seq_len, DEFAULT_SEQ_LEN)

    def dense_config(self) -> ModelConfig:
        """The seed model and every dense expert."""
        if self.imports is not None:
            return self.imports.dense_config()
        vocab_size = getattr(self.tokenizer, "vocab_size", None)
        assert self.model is not None, "neither a model nor an imported seed, which brings one"
        assert vocab_size is not None, "the vocabulary of a file was not counted as the recipe was read"
        values = self.model.to_dict()
        if values["n_kv_heads"] is None:
            values["n_kv_heads"] = values["n_heads"]
        return ModelConfig(vocab_size=vocab_size, **values)

    def seed_training(self) -> TrainConfig:
        return self._training("seed", self.phases.seed, training_fields(self.phases.seed.data, self.domains))

    def expert_training(self, domain: str) -> TrainConfig:
        """`phases.expert` with the domain's overrides; `own` becomes `domain`."""
        phase, own = self.phases.expert, self.domains[domain].expert
        assert phase is not None, f"no phases.expert, which {domain} is trained by"
        assert not isinstance(own, str), f"the expert of {domain} is adopted, not trained"
        data = training_fields(phase.data, self.domains, own=domain)
        return self._training(f"expert.{domain}", phase.model_copy(update=own.changes()), data)

    @property
    def mixture_phase(self) -> MixtureKeys:
        """`phases.mixture`, which a recipe has where anything is trained by it."""
        assert self.phases.mixture is not None, "no phases.mixture, which a mixture is trained by"
        return self.phases.mixture

    def mixture_training(self, own: DenseTrain | None = None) -> TrainConfig:
        """The training of every variant, but for its own keys: one seed for all, so they see the same batches."""
        phase = self.mixture_phase.model_copy(update=own.changes() if own else {})
        return self._training("mixture", phase, training_fields(phase.data, self.domains))

    def distil_training(self, name: str) -> TrainConfig:
        """`phases.mixture` with the distillation's keys. What is for the start of a mixture is off: the model has
        been trained."""
        off: dict[str, Any] = {"router_freeze_frac": 0.0, "expert_freeze_frac": 0.0, "shared_freeze_frac": 0.0}
        phase = self.mixture_phase.model_copy(update=off | self.distil[name].changes())
        return self._training("distil", phase, training_fields(phase.data, self.domains))

    @property
    def mixture_trainings(self) -> dict[str, DenseTrain]:
        """Stage -> its own keys, of every variant's training and the dense baseline's. The recipe may have holes."""
        variants = {name: variant for name, variant in (self.variants or {}).items() if variant is not None}
        said: dict[str, Any] = {f"train.{name}": variant.train for name, variant in variants.items()}
        said |= {"dense": self.dense} if self.dense else {}
        found: dict[str, DenseTrain] = {}
        for stage, own in said.items():
            if own is not False:
                default = DenseTrain() if stage == "dense" else VariantTrain()
                found[stage] = own if isinstance(own, DenseTrain) else default
        phase = self.phases.mixture if self.phases is not None else None
        trains = phase is None or phase.tokens != 0
        return {stage: own for stage, own in found.items() if trains or own.tokens}

    @property
    def has_dense(self) -> bool:
        """Whether the baseline is trained. The recipe may have holes."""
        return "dense" in self.mixture_trainings

    def is_trained(self, variant: str) -> bool:
        return f"train.{variant}" in self.mixture_trainings

    def model_of(self, variant: str) -> str:
        """The stage whose model a variant is: what was trained, or the mixture as it was mixed."""
        return f"train.{variant}" if self.is_trained(variant) else f"mix.{self.mix_of(variant)}"

    def match_of(self, stage: str) -> tuple[Match, str | None]:
        """In what a mixture's training, or the baseline's, is made equal, and to which stage; None: the cheapest."""
        own, phase = self.mixture_trainings[stage], self.mixture_phase
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
        assert self.row_len is not None, "a model, or an imported seed, says how long a row is"
        values = {"load_balancing_coef": 0.0, "z_loss_coef": 0.0} | phase.to_dict()
        values = {key: value for key, value in values.items() if key not in {"data", *MATCHING, *FROM}}
        return TrainConfig(**values, **data, seq_len=self.row_len, seed=child_seed(self.seed, name))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors. One that extends another may leave out what that one has."""
    whole = Recipe.model_json_schema()
    parts, properties = whole.pop("$defs"), whole["properties"]
    variant = parts["Variant"]
    variant["properties"]["like"] = {"title": "Like", "type": "string", "minLength": 1}
    variant["anyOf"] = [{"required": ["like"]}, {"required": variant.pop("required")}]
    # `tokens: 0` with all keys is both a phase and none.
    mixture = parts["Phases"]["properties"]["mixture"]["anyOf"][0]
    mixture["anyOf"] = mixture.pop("oneOf")
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
