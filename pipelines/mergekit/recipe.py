"""A configuration of mergekit-moe as the text of a recipe, and the files of prompts that this recipe reads.

What mergekit makes: attention, norms, embeddings and head of the base model; the experts' FFNs; a router of its own in
every layer, made from prompts or at random. So the seed is the base model, every expert is imported, nothing is
trained, and one variant has FFN experts and takes all else from the seed. Where we have no equal, a comment says so at
that place, with the nearest that there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path

from pipelines.mergekit.config import PROMPTED, Expert, MoeConfig, problems_of
from pipelines.recipe.checks import RESERVED_DOMAINS
from pipelines.recipe_text import comment, plain_name, scalar, value

LONGEST_ROW = 512
"""Tokens of a row of prompts at most; a row is what a router is fitted on at a time."""
STAND_IN_ROW = 64
"""The same where there are no prompts."""
VARIANT = "moe"


@dataclass(frozen=True)
class Converted:
    """text: the recipe. files: path of each file of prompts, as the recipe names it -> its prompts.

    notes: what is otherwise than with mergekit, in the order of the recipe; each is also a comment there.
    """

    text: str
    files: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def convert(config: MoeConfig, name: str, folder: str, where: str) -> Converted:
    """name: of the recipe. folder: for the prompts, as the recipe names it. where: the configuration, for people."""
    writer = _Writer(config, name, folder)
    lines = list(writer.lines(where))
    return Converted("\n".join(lines) + "\n", writer.files, tuple(writer.notes))


class _Writer:
    def __init__(self, config: MoeConfig, name: str, folder: str) -> None:
        self.config, self.name, self.folder = config, name, folder
        self.notes: list[str] = []
        self.files: dict[str, tuple[str, ...]] = {}
        self.is_prompted = config.gate_mode in PROMPTED
        self.slots, self.domains = self._named()

    def _named(self) -> tuple[list[str], dict[str, Expert | None]]:
        """The domain of each expert, in mergekit's order; and each domain's expert, of the general one None.

        An expert that is the base model needs no import. With prompts every expert is a domain of its own, since the
        prompts differ; at random, copies of one checkpoint are slots of one domain.
        """
        base = self.config.base
        general = plain_name(base.path)
        slots, domains = list[str](), dict[str, Expert | None]({general: None})
        of_source, is_taken = {str(base): general}, False
        for expert in self.config.experts:
            known = of_source.get(str(expert.source))
            if known == general and not is_taken:
                is_taken, here = True, general
            elif known is not None and not self.is_prompted:
                here = known
            else:
                here = self._new(plain_name(expert.source.lora or expert.source.path), domains)
                domains[here] = expert
                of_source.setdefault(str(expert.source), here)
            slots.append(here)
        if len(domains) == 1:
            domains[self._new(general, domains)] = Expert(base)
        return slots, domains

    @staticmethod
    def _new(name: str, taken: Mapping[str, Expert | None]) -> str:
        names = (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3)))
        return next(found for found in names if found not in taken and found not in RESERVED_DOMAINS)

    def note(self, text: str, indent: str = "  ") -> Iterator[str]:
        """A comment, which is also told to the person who asked for the recipe."""
        self.notes.append(text)
        yield from comment(text, indent)

    def lines(self, where: str) -> Iterator[str]:
        words = (
            f"What {where} says, as a recipe. `bam run` this file --until mix.{VARIANT} makes the mixture; without "
            "--until it is evaluated too. docs/from-mergekit.md has the two side by side."
        )
        yield from comment(words, "")
        for warning in problems_of(self.config):
            yield from self.note(warning, "")
        yield f"name: {self.name}"
        yield "domains:"
        for domain, expert in self.domains.items():
            yield from self._domain(domain, expert)
        yield from self._phases()
        yield from self._variant()
        yield "dense: false     # mergekit has no such baseline: the seed trained on as long as the mixture"
        yield "ensemble: false  # nor this one: the experts' probabilities put together"
        if self.is_prompted:
            yield "evaluate: {allow_overlap: true}  # held out is what the routers saw, until there is other text"

    def _domain(self, domain: str, expert: Expert | None) -> Iterator[str]:
        yield f"  {domain}:"
        own = expert or next((e for e, slot in self._experts() if slot == domain), None)
        yield from self._text(domain, own)
        if expert is not None:
            source = expert.source
            yield f"    expert: {value(_imported(source.lora or source.path, self._revision(expert)))}"
        if own is not None:
            yield from self._scales(own)

    def _experts(self) -> Iterator[tuple[Expert, str]]:
        yield from zip(self.config.experts, self.slots, strict=True)

    @staticmethod
    def _revision(expert: Expert) -> str | None:
        return expert.source.lora_revision if expert.source.lora else expert.source.revision

    def _text(self, domain: str, expert: Expert | None) -> Iterator[str]:
        """Where the domain's text comes from: its prompts; of a base that is no expert, those of all."""
        if not self.is_prompted:
            if domain == next(iter(self.domains)):
                words = "A gate made at random needs no text, but a recipe measures on some: these stand in for yours."
                yield from self.note(words, "    ")
            yield f"    source: {{kind: generated-math, documents: 400, seed: {list(self.domains).index(domain)}}}"
            return
        prompts = expert.positive if expert is not None else tuple(p for e in self.config.experts for p in e.positive)
        file = f"{self.folder}/{domain}.jsonl"
        self.files[file] = prompts
        yield f"    source: {{kind: jsonl, path: {scalar(file)}}}  # {len(prompts)} prompts; better: text of this kind"
        yield f"    valid: {{kind: jsonl, path: {scalar(file)}}}   # leave out with more text: a part is held out"
        if expert is not None and expert.negative:
            yield from self.note(
                "negative_prompts have no equal: each row of the router is told apart from the text of all other "
                "domains. What is negative here may be text of a domain of its own.",
                "    ",
            )
            yield from (f"    #   {scalar(prompt)}" for prompt in expert.negative)

    def _scales(self, expert: Expert) -> Iterator[str]:
        if expert.noise_scale is not None:
            yield from self.note(
                f"noise_scale: {expert.noise_scale:g} has no equal: experts are what was imported, to the bit. Copies "
                "of one expert are told apart by router_init: random.",
                "    ",
            )
        if expert.residual_scale is not None:
            yield from self.note(
                f"residual_scale: {expert.residual_scale:g} has no equal: this expert counts in full. The nearest is "
                "to train the mixture for a while, which finds how much each expert should say.",
                "    ",
            )

    def _phases(self) -> Iterator[str]:
        base = self.config.base
        yield "phases:"
        yield f"  seed: {value(_imported(base.path, base.revision))}"
        yield "  mixture: {tokens: 0}  # as mixed, like mergekit's; with tokens, batch_tokens and lr it is trained"
        yield f"  seq_len: {self._row()}  # tokens of a row, for so little text; leave it out with more"
        if self.config.dtype is not None:
            yield from self.note(f"dtype: {self.config.dtype} {_dtype_words(self.config.dtype)}.")

    def _row(self) -> int:
        """Tokens of a row: each domain has two rows of its prompts, if they are long enough, since every word is a
        token at least."""
        if not self.files:
            return STAND_IN_ROW
        fewest = min(len(" ".join(prompts).split()) for prompts in self.files.values())
        return max(2, min(LONGEST_ROW, fewest // 2 if fewest >= 8 else fewest))

    def _variant(self) -> Iterator[str]:
        config = self.config
        yield "variants:"
        yield f"  {VARIANT}:"
        yield "    attention: merged  # and what is no expert comes from the seed"
        yield "    merge: seed"
        yield "    ffn:"
        yield f"      experts: [{', '.join(self.slots)}]"
        yield f"      top_k: {config.top_k}"
        yield "      gate: topk_softmax  # the weights of the chosen sum to 1, as in Mixtral"
        if config.shared is not None:
            yield from self._shared(config.shared)
        yield from self._router()
        if (n := len(config.experts)) > 1 and log2(n) % 1:
            words = f"{n} experts: mergekit warns that llama.cpp wants a power of two; nothing here does."
            yield from comment(words, "    ")
        yield from comment("What mergekit-moe cannot make, experts in attention too:", "  ")
        yield "  # bam:"
        yield f"  #   attention: {{experts: [{', '.join(self.slots)}], routing: soft, kv: expert}}"
        yield f"  #   ffn: {{experts: [{', '.join(self.slots)}], top_k: {config.top_k}, gate: topk_softmax}}"

    def _shared(self, shared: Expert) -> Iterator[str]:
        if str(shared.source) == str(self.config.base):
            yield "      shared_expert: true"
        else:
            yield from self.note(
                f"shared_experts: {shared.source} has no equal: an expert for every token is the seed's FFN, so that "
                f"of {self.config.base}.",
                "      ",
            )
            yield "      shared_expert: true"
        yield from self.note(
            "The shared expert adds the seed's FFN in full, without a gate of its own (Qwen MoE has one); with "
            "scale: none the routed ones add theirs, so the branch starts at twice the dense scale.",
            "      ",
        )
        yield "      scale: none"
        yield from self._scales(shared)
        if shared.positive or shared.negative:
            yield from self.note("The prompts of shared_experts are not used: every token goes there.", "      ")

    def _router(self) -> Iterator[str]:
        mode = self.config.gate_mode
        if self.is_prompted:
            yield from self.note(
                f"gate_mode: {mode} takes {_TAKES[mode]}. Here each row is fitted on what the router will read, in "
                "every layer, on all tokens of the text above: after attention and norm.",
                "    ",
            )
            yield "    router_init: centroid"
            return
        why = (
            "draws entries of standard deviation 1, which saturates the gate (logits of sqrt(d_model)); here it is 0.02"
            if mode == "random"
            else "draws entries within 1/sqrt(d_model), of standard deviation 0.58/sqrt(d_model): 0.013 at d_model "
            "2048; set router_std to that for a model of another width"
        )
        yield from self.note(f"gate_mode: {mode} {why}.", "    ")
        yield "    router_init: random"
        yield f"    router_std: {0.02 if mode == 'random' else 0.013}"


def _dtype_words(dtype: str) -> str:
    ours = {"bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}.get(dtype)
    export = f"bam export mix.{VARIANT} DIR --dtype {ours or 'bf16'}"
    if ours is None:
        return f"has no equal, since its range is too narrow for some models' activations; the nearest is {export}"
    return f"is said when the mixture leaves the store, where it is as it was mixed: {export}"


_TAKES = {
    "hidden": "the base model's residual stream at each layer's start, at the last token of each prompt",
    "hidden_last": "the base model's residual stream at each layer's start, at the last token of each prompt",
    "hidden_avg": "the base model's residual stream at each layer's start, its mean over a prompt, padding too",
    "cheap_embed": "the prompts' embeddings, the same in every layer",
}


def _imported(path: str, revision: str | None) -> dict[str, str]:
    return {"import": path} | ({"revision": revision} if revision else {})


def write_files(files: Mapping[str, Sequence[str]]) -> None:
    """Each a file of JSON lines, a document for each prompt."""
    for path, prompts in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": prompt}, ensure_ascii=False) for prompt in prompts)
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
