"""The recipe as a whole, and what its keys mean to the core: model and training configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from bam_core.config import ModelConfig, TrainConfig
from bam_core.seeds import child_seed
from pipelines.recipe.base import Named, Part
from pipelines.recipe.mixtures import Variant
from pipelines.recipe.parts import LICENCES, Domain, Evaluate, Model, Phase, Phases, Runtime, Tokenizer, Tune
from pipelines.recipe.promotion import Promote
from pipelines.recipe.values import Count, Text


class Recipe(Part):
    """All that defines a result. The first domain is the general one: its expert is the seed model itself."""

    name: Text
    seed: Count = 0
    domains: Named[Domain]
    tokenizer: Tokenizer
    model: Model
    phases: Phases
    variants: Named[Variant]
    tune: Named[Tune] = Field({})
    dense: bool = True
    ensemble: bool = True
    evaluate: Evaluate = Evaluate()
    promote: Promote | None = None
    runtime: Runtime = Runtime()

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
        return tuple(domain for domain in tuple(self.domains)[1:] if domain not in self.adopted)

    def source(self, domain: str) -> dict[str, Any]:
        """The source of a domain as the plain mapping that `protocols.Sources` takes: what says which text it is."""
        spec = self.domains[domain].source.to_dict()
        del spec["licence"]
        if spec["kind"] == "text":
            del spec["column"]
        return {key: value for key, value in spec.items() if value is not None}

    def licence(self, domain: str) -> str | None:
        """Of the domain's text: as the recipe states it, else as it is known of a kind whose text is ours."""
        source = self.domains[domain].source
        return source.licence or LICENCES.get(source.kind)

    def dense_config(self) -> ModelConfig:
        """The seed model and every dense expert."""
        values = self.model.to_dict()
        if values["n_kv_heads"] is None:
            values["n_kv_heads"] = values["n_heads"]
        return ModelConfig(vocab_size=self.tokenizer.vocab_size, **values)

    def seed_training(self) -> TrainConfig:
        return self._training("seed", self.phases.seed, self._shares(self.phases.seed.data))

    def expert_training(self, domain: str) -> TrainConfig:
        """`phases.expert` with the domain's overrides; `own` becomes `domain`."""
        phase = self.phases.expert
        own = self.domains[domain].expert
        assert not isinstance(own, str), f"the expert of {domain} is adopted, not trained"
        override = {key: value for key, value in own.to_dict().items() if value is not None}
        shares: dict[str, float] = {}
        for name, share in phase.data.items():
            name = domain if name == "own" else name
            shares[name] = shares.get(name, 0.0) + share
        return self._training(f"expert.{domain}", phase.model_copy(update=override), shares)

    def mixture_training(self) -> TrainConfig:
        """The training of every variant: one seed for all, so they see the same batches."""
        return self._training("mixture", self.phases.mixture, self._shares(self.phases.mixture.data))

    def _shares(self, data: str | Mapping[str, float]) -> dict[str, float]:
        if isinstance(data, str):
            return {name: 1 / len(self.domains) for name in self.domains}
        return dict(data)

    def _training(self, name: str, phase: Phase, shares: Mapping[str, float]) -> TrainConfig:
        values = {"load_balancing_coef": 0.0, "z_loss_coef": 0.0} | phase.to_dict()
        values = {key: value for key, value in values.items() if key not in {"data", "match"}}
        return TrainConfig(**values, shares=shares, seq_len=self.model.max_seq_len, seed=child_seed(self.seed, name))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bam recipe",
    }
