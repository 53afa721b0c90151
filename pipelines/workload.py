"""What each stage of a recipe does, counted for the planner: no text is read here, no clock and no store.

Not counted, and said so (`Work.unknown`): the tasks of `evaluate`, the division of text by `discover`, what workers on
several nodes send each other, an adopted expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from bam_core.config import ModelConfig
from bam_core.graph.stage import Pipeline, Stage, StageName, kind_of
from bam_core.nn.costs import MIXING_OVERHEAD_BYTES, mixing_bytes, params_total
from bam_core.planner.estimate import Pass, Work
from bam_core.planner.work import Training, layer_bytes
from bam_core.train.search import rung_steps
from pipelines import bam
from pipelines.recipe import Recipe
from pipelines.recipe.routing import routing_asked
from pipelines.recipe.sources import ClusterText
from pipelines.stages.inputs import TEACHER


@dataclass(frozen=True)
class TextFacts:
    """Of one text: bytes of each document, seconds that reading it took, and whether that was all of it."""

    documents: Sequence[int]
    read_s: float = 0.0
    whole: bool = True

    def up_to(self, max_bytes: int | None) -> float:
        return float(min(sum(self.documents), max_bytes if max_bytes is not None else sum(self.documents)))


def works(
    recipe: Recipe, pipeline: Pipeline, texts: Mapping[str, TextFacts], bytes_per_token: float
) -> dict[str, Work]:
    """Stage name -> what it does. texts: of `Recipe.texts`; bytes_per_token: of text, about."""
    counting = _Counting(recipe, texts, bytes_per_token)
    return {stage.name: replace(counting.work(stage), gpu=stage.resources.gpus > 0) for stage in pipeline}


class _Counting:
    def __init__(self, recipe: Recipe, texts: Mapping[str, TextFacts], bytes_per_token: float) -> None:
        self._recipe, self._texts, self._bytes_per_token = recipe, texts, bytes_per_token
        self._models, self._phases = bam.model_configs(recipe), bam.trainings(recipe)
        self._context = recipe.context or 1

    def work(self, stage: Stage) -> Work:
        name, threads = StageName.parse(stage.name).plain, stage.resources.cpus
        kind = kind_of(name)
        if name in self._phases:
            return self._training(stage, name, kind)
        counted = {
            "tune": self._tune,
            "tokenizer": self._tokenizer,
            "data": self._data,
            "overlap": self._overlap,
            "mix": self._mix,
            "evaluate": self._evaluate,
            "routing": self._routing,
        }
        if kind in counted:
            return counted[kind](stage, name)
        unknown = {"discover": "how long dividing the text takes", "adopted": "the adopted expert: it is there"}
        unknown |= {"import": "how long the checkpoint takes to read", "export": "how long the export takes to write"}
        kind = "import" if stage.function == "import" else kind
        return Work(kind, threads, unknown=(unknown[kind],) if kind in unknown else ())

    def _training(self, stage: Stage, name: str, kind: str) -> Work:
        phase, training = self._phases[name], self._worker(stage, name)
        each = stage.runtime["pace"]["checkpoint_steps"]
        sent = ("what its workers send each other",) if stage.resources.workers > 1 else ()
        return Work(
            kind,
            stage.resources.cpus,
            training,
            phase.n_steps,
            checkpoints=(phase.n_steps - 1) // each,
            written=params_total(training.model),
            unknown=sent,
            loads_torch=True,
        )

    def _worker(self, stage: Stage, name: str) -> Training:
        """What one worker of the stage trains; name: of the training that it is, or searches for."""
        pace, group = stage.runtime["pace"], stage.resources
        teacher = stage.inputs.get(TEACHER)
        return Training.of(
            self._models[name],
            self._phases[name],
            workers=group.workers,
            micro_batch_rows=pace.get("micro_batch_rows", 8),
            recompute=pace.get("activation_checkpointing", False),
            sharded=pace.get("strategy") == "fsdp",
            gpu=group.gpus > 0,
            teacher=self._models[StageName.parse(teacher).plain] if teacher is not None else None,
        )

    def _tune(self, stage: Stage, name: str) -> Work:
        """If no trial is stopped, and all run one after another."""
        search = self._recipe.tune[name.removeprefix("tune.")]
        phase = self._phases[search.stage]
        steps = ceil((search.tokens or phase.tokens) / phase.batch_tokens)
        n_judged = len(rung_steps(steps, search.rungs, search.reduction)) * len(stage.config["domains"])
        training = self._worker(stage, search.stage)
        scored = Pass(training.model, search.trials * n_judged * search.eval_tokens, self._context)
        unknown = ("trials that stop early, or run side by side",)
        return Work(
            "tune",
            stage.resources.cpus,
            training,
            search.trials * steps,
            passes=(scored,),
            unknown=unknown,
            loads_torch=True,
        )

    def _tokenizer(self, stage: Stage, name: str) -> Work:
        spec = self._recipe.tokenizer
        if spec is None or spec.kind != "bpe":
            return Work("tokenizer")
        domains = spec.domains or list(self._recipe.domains)
        return Work(
            "tokenizer",
            text_bytes=sum(map(self._bytes, domains)),
            read_s=sum(self._text(domain).read_s for domain in domains),
            unknown=tuple(words for domain in domains for words in self._unread(domain)),
        )

    def _data(self, stage: Stage, name: str) -> Work:
        domain = name.removeprefix("data.")
        read_s = self._text(domain).read_s
        return Work("data", text_bytes=self._bytes(domain), read_s=read_s, unknown=self._unread(domain))

    def _overlap(self, stage: Stage, name: str) -> Work:
        return Work("overlap", text_bytes=sum(map(self._bytes, self._recipe.domains)))

    def _mix(self, stage: Stage, name: str) -> Work:
        """All dense models and the mixture on the text on which it is calibrated; then it is written."""
        model, dense = self._models[name], self._recipe.dense_config()
        tokens = len(stage.config["domains"]) * stage.config["calibration_tokens"]
        passes = (
            Pass(model, tokens, self._context),
            *[Pass(dense, tokens, self._context)] * len(stage.config["experts"]),
        )
        held = mixing_bytes(model) - MIXING_OVERHEAD_BYTES
        return self._scoring("mix", stage, passes, held, written=params_total(model))

    def _evaluate(self, stage: Stage, name: str) -> Work:
        tokens = sum(
            self._windows(domain, stage.config["tokens"], stage.config["stride"]) for domain in stage.config["domains"]
        )
        passes = tuple(Pass(self._models[model], tokens, self._context) for model in stage.config["models"])
        unknown = ("its tasks",) if stage.config.get("tasks") else ()
        return self._scoring("evaluate", stage, passes, self._scored_bytes(passes), unknown=unknown)

    def _routing(self, stage: Stage, name: str) -> Work:
        asked = routing_asked(self._recipe.evaluate.routing)
        assert asked is not None, "the recipe leaves routing out"
        n_domains, passes = len(stage.config["domains"]), []
        for model in (self._models[name] for name in stage.config["models"]):
            looks = 1 + n_masks(model) if asked.knock_out_tokens else 0
            passes.append(Pass(model, n_domains * (asked.tokens + looks * asked.knock_out_tokens), self._context))
        return self._scoring("routing", stage, tuple(passes), self._scored_bytes(passes))

    def _scoring(
        self,
        kind: str,
        stage: Stage,
        passes: tuple[Pass, ...],
        held: float,
        *,
        written: int = 0,
        unknown: tuple[str, ...] = (),
    ) -> Work:
        threads = stage.resources.cpus
        return Work(kind, threads, passes=passes, held_bytes=held, written=written, unknown=unknown, loads_torch=True)

    def _scored_bytes(self, passes: Sequence[Pass]) -> float:
        """The largest model in float32, as it is in the file and in memory, and one layer at work."""
        return max((8 * params_total(found.model) + layer_bytes(found.model, 4096) for found in passes), default=0.0)

    def _text(self, domain: str) -> TextFacts:
        return self._texts[self._recipe.text_name(domain)]

    def _unread(self, domain: str) -> tuple[str, ...]:
        return () if self._text(domain).whole else (f"text of {domain} beyond what was looked at",)

    def _bytes(self, domain: str) -> float:
        """Of the domain's text; of a cluster, an equal part of the text that it is a part of."""
        spec = self._recipe.domains[domain]
        parts = self._recipe.discover[spec.source.of].n if isinstance(spec.source, ClusterText) else 1
        whole = self._text(domain).up_to(None) / parts
        return min(whole, spec.max_bytes) if spec.max_bytes is not None else whole

    def _windows(self, domain: str, tokens: int, stride: int) -> float:
        """Tokens that windows with this stride go through, to score so many of the domain's held-out documents'."""
        held_out = self._bytes(domain) * self._recipe.domains[domain].valid_frac / self._bytes_per_token
        lengths = [ceil(size / self._bytes_per_token) for size in self._text(domain).documents if size]
        if not lengths:
            return 0.0
        context = self._context
        gone = sum(min(n, context) + ceil(max(n - context, 0) / stride) * context for n in lengths)
        return min(tokens, held_out) * gone / sum(lengths)


def n_masks(model: ModelConfig) -> int:
    """How often `routing` scores a mixture with something masked."""
    branches = [len(model.expert_labels("attention")), len(model.expert_labels("ffn"))]
    each = sum(n for n in branches if n > 1)
    return each + (len(model.experts) if all(branches) else 0)
