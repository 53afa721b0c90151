"""The same in memory and in one call: dense models in, a mixture out; and an expert of it back.

    made = upcycle_models({"general": seed, "law": law, "code": code}, "bam")
    made.model                     # an LM
    made.receipt()["experts"]      # what holds before any training

Made by the steps of the stage `mix`: of the same models, text and seed, the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bam_core.checkpoint import TensorSource, read_config, write_model
from bam_core.config import ModelConfig
from bam_core.data.rows import TextRows
from bam_core.errors import InvalidInput, Problem
from bam_core.nn.lm import LM
from bam_core.nn.shapes import Shape
from bam_core.upcycle.apply import upcycle
from bam_core.upcycle.calibrate import calibrate
from bam_core.upcycle.extract import extracted
from bam_core.upcycle.presets import named_variant
from bam_core.upcycle.receipt import receipt_of
from bam_core.upcycle.variants import Variant, common_config, mixture_config, rules_for, variant_sources, with_gains
from bam_core.upcycle.walk import ReopenedTensors


class ModelTensors:
    """A model in memory as a `TensorSource`: its parameters themselves, on the CPU, without gradients."""

    def __init__(self, model: LM) -> None:
        self._tensors: dict[str, Tensor] = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


@dataclass(frozen=True)
class Upcycled:
    """A mixture before any training. sources: the dense models' tensors, the seed's first.

    tensors: what each tensor was made from (`upcycle`'s provenance). step0: what was measured on text, as
    `bam_core.upcycle.calibrate` reports it; None without text.
    """

    model: LM
    variant: Variant
    sources: Mapping[str, TensorSource] = field(repr=False)
    tensors: Mapping[str, Any] = field(repr=False)
    step0: Mapping[str, Any] | None = field(default=None, repr=False)

    def receipt(self, seed: int = 0) -> dict[str, Any]:
        """Whether each expert is in the mixture, whole and in its place: see `bam_core.upcycle.receipt`."""
        return receipt_of(self.model.config, ModelTensors(self.model), self.sources, seed, self.tensors)

    def save(self, folder: str | Path, tokenizer: str | Path | None = None) -> None:
        """Write a model folder, which `load_model` reads."""
        file = Path(tokenizer) if tokenizer is not None else None
        write_model(Path(folder), self.model.config, self.model.state_dict().items(), tokenizer=file, card=None)


def upcycle_models(
    models: Mapping[str, LM | str | Path],
    variant: str | Variant = "bam",
    *,
    rows: Mapping[str, TextRows | Tensor] | None = None,
    seed: int = 0,
) -> Upcycled:
    """Mix dense models of one architecture, in memory or model folders, the common seed first.

    variant: a row of VARIANTS, a plug-in's name, or your own. rows: name of a model -> text of its domain, as rows of
    one token more than are predicted, all of one length: routers that are fitted on text read them, as do scales that
    are measured, and `step0` tells what they say. seed: of new routers.

    Raises InvalidInput with all that does not fit, UsageError for a variant that is none.
    """
    spec = named_variant(variant) if isinstance(variant, str) else variant
    if not models:
        raise InvalidInput("models to mix", [Problem("models", {}, "must name at least one dense model")])
    names = variant_sources(spec, tuple(models))
    configs, sources = dict[str, ModelConfig](), dict[str, TensorSource]()
    for name in names:
        configs[name], sources[name] = _opened(models[name])
    target = mixture_config(common_config(configs), tuple(models), spec)
    rules, found = rules_for(spec, target), None
    if rows:
        found = calibrate(target, rules, sources, spec, {name: _tokens(part) for name, part in rows.items()}, seed)
        target = with_gains(target, found.gains) if found.gains else target
    tensors: dict[str, Any] = {}
    made = dict(upcycle(target, rules, sources, seed, tensors, found.fitted if found is not None else None))
    return Upcycled(_model(target, made), spec, sources, tensors, found.report if found is not None else None)


def extract_model(mixture: LM | str | Path, label: str) -> LM:
    """The dense model of one expert, with the mixture's own norms and embedding where it keeps one for all.

    label: of `ModelConfig.expert_labels`; `law#2` is the second `law`. Raises InvalidInput for one that is none.
    """
    config, source = _opened(mixture)
    tensors = {name: tensor.clone() for name, tensor in extracted(config, source, label, shared="mixture")}
    return _model(config.dense(), tensors)


def _tokens(rows: TextRows | Tensor) -> Tensor:
    return torch.from_numpy(rows.tokens_BT) if isinstance(rows, TextRows) else rows.long()


def _opened(model: LM | str | Path) -> tuple[ModelConfig, TensorSource]:
    if isinstance(model, LM):
        return model.config, ModelTensors(model)
    folder = Path(model)
    return read_config(folder), ReopenedTensors(folder)


def _model(config: ModelConfig, tensors: Mapping[str, Tensor]) -> LM:
    with torch.device("meta"):
        model = LM(config)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()
