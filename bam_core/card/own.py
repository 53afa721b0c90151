"""The card in a model's own folder: all of it follows from the model, none of it from where or when it was made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bam_core.card.licences import NOT_STATED, combined
from bam_core.card.markdown import code, code_block, escaped, front_matter, pairs, table
from bam_core.card.mixed import Mixed, rules_in_words
from bam_core.card.numbers import MISSING, bold_best, count, figure, loss, power, setting
from bam_core.card.subject import Subject, TextSource
from bam_core.config import ModelConfig
from bam_core.graph.key import key12
from bam_core.graph.record import InputRef
from bam_core.nn.costs import params_active, params_total


def model_card(subject: Subject) -> str:
    """The MODEL_CARD.md of a model: Hugging Face's front matter, then Markdown."""
    return "\n\n".join([front_matter(front(subject)), *head(subject), *body(subject), *_reproduced(subject)]) + "\n"


def front(subject: Subject) -> dict[str, Any]:
    """The metadata that Hugging Face's hub reads.

    Models and texts that are not on the hub are named as bam names them, in the form of a hub's id.
    """
    is_mixture = subject.config.is_mixture or subject.mixed is not None or subject.edit is not None
    data: dict[str, Any] = {"library_name": "bam", "pipeline_tag": "text-generation"}
    data["tags"] = ["bam", *(["mixture-of-experts"] if subject.config.is_mixture else [])]
    data["tags"] += ["merge", "upcycling"] if is_mixture else []
    data |= combined([text.licence for text in subject.texts]) if subject.tells_licences else {}
    data["datasets"] = list(dict.fromkeys(dataset_id(text) for text in subject.texts))
    of_hub = [subject.imported["hub"]] if subject.imported.get("hub") else []
    data["base_model"] = list(dict.fromkeys([*of_hub, *(model_id(ref) for ref in subject.bases.values())]))
    if data["base_model"]:
        data["base_model_relation"] = "merge" if is_mixture else "finetune"
    data["metrics"] = ["perplexity"]
    if subject.tells_licences:
        data["data_licences"] = [{"domain": t.domain, "licence": t.licence or NOT_STATED} for t in subject.texts]
    return {name: value for name, value in data.items() if value}


def model_id(ref: InputRef) -> str:
    """A model's name where only letters, digits, `-`, `_` and `.` may be in one: as `bam get` names its folder."""
    return hub_id(f"{ref.stage}-{key12(ref.key)}")


def dataset_id(text: TextSource) -> str:
    return text.dataset or domain_id(text.domain)


def domain_id(domain: str) -> str:
    """With a prefix: a plain word, such as `code`, may be somebody's data set on the hub."""
    return hub_id(f"data.{domain}")


def hub_id(name: str) -> str:
    """The name with all that the hub allows in no id replaced by `-`."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", name))
    return plain[:96].strip("-.") or "unnamed"


def head(subject: Subject) -> Iterator[str]:
    yield f"# {escaped(subject.stage)}"
    yield escaped(subject.what)
    rows = {escaped(name): escaped(value) for name, value in subject.facts.items()}
    rows |= {"key": code(subject.key)} if subject.key else {}
    yield pairs(_sizes(subject.config) | rows)


def _sizes(config: ModelConfig) -> dict[str, str]:
    attention, ffn = config.attention, config.ffn
    sizes = {
        "parameters": f"{params_total(config):,}, of which a token uses {params_active(config):,}",
        "layers": f"{config.n_layers}, {config.residual} residual, width {config.d_model:,}",
        "attention": f"{config.n_heads} heads, {config.n_kv_heads} of keys and values",
        "FFN": f"{_ffn(config)} of width {config.d_ff:,}",
        "vocabulary, context": f"{config.vocab_size:,}, {config.max_seq_len:,} tokens",
    }
    if attention:
        sizes["attention experts"] = f"{_experts(config, 'attention')}; {_KEYS_VALUES[attention.kv]}"
    if ffn:
        sizes["FFN experts"] = _experts(config, "ffn")
    if config.shared:
        parts = {"embed": "input embeddings", "norms": "norm scales", "head": "output heads"}
        routed = [words for part, words in parts.items() if getattr(config.shared, part) != "merged"]
        sizes["of every dense model"] = f"{', '.join(routed)}; {', '.join(map(escaped, config.experts))}"
    return sizes


def _ffn(config: ModelConfig) -> str:
    if config.gated and config.activation == "silu":
        return "SwiGLU"
    return f"{config.activation.replace('_', ' ')}{', gated,' if config.gated else ''}"


_KEYS_VALUES = {
    "expert": "expert keys and values",
    "shared": "shared keys and values",
    "value_only": "expert values, shared queries and keys",
}


def _experts(config: ModelConfig, branch: Literal["attention", "ffn"]) -> str:
    experts = config.attention if branch == "attention" else config.ffn
    assert experts is not None, f"no {branch} experts"
    names = ", ".join(map(escaped, config.expert_labels(branch)))
    only = "" if experts.layers is None else f"; in layers {', '.join(map(str, experts.layers))}"
    return f"{names}; top {experts.top_k} of {experts.n_experts}, {experts.gate}{only}"


def body(subject: Subject) -> Iterator[str]:
    yield from _made_from(subject.parents, subject.imported)
    if subject.mixed is not None:
        yield from _mixing(subject.mixed)
        yield from _step0(subject.mixed)
    if subject.edit is not None:
        yield from _edit(subject.edit)
    if subject.phase:
        yield from _training(subject)
    if subject.texts:
        yield from _data(subject)
    yield from _limits(subject)


def _made_from(parents: Mapping[str, InputRef], imported: Mapping[str, Any]) -> Iterator[str]:
    yield "## Made from"
    if imported:
        said = {"checkpoint": escaped(imported["hub"])} if imported.get("hub") else {}
        said |= {"commit" if said else "digest": code(imported["digest"]), "family": escaped(imported["family"])}
        if adapter := imported.get("adapter"):
            said["adapter"] = f"LoRA of rank {adapter['rank']}, merged into {adapter['modules']} modules of the seed's"
        yield pairs(said)
    if not parents:
        yield "Nothing: it started from random weights."
        return
    rows = [[escaped(role), code(ref.stage), code(ref.key), code(ref.digest)] for role, ref in parents.items()]
    yield table(["as", "stage", "key", "digest of its files"], rows)


def _mixing(mixed: Mixed) -> Iterator[str]:
    yield "## How it was mixed"
    yield "\n".join(f"- **{part}**: {escaped(words)}." for part, words in rules_in_words(mixed.variant).items())
    if mixed.operations:
        yield table(
            ["tensors", "made by", "from"],
            [
                [
                    ", ".join(map(code, together(made.names)))
                    + (f" (layers {_numbers(made.layers)})" if made.layers else ""),
                    escaped(made.in_words()),
                    escaped(", ".join(made.models)) or MISSING,
                ]
                for made in mixed.operations
            ],
        )


def together(names: Sequence[str]) -> list[str]:
    """Names that differ in their last part only, as one: `blocks.*.attn.{w_q, w_k}`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, dot, last = name.rpartition(".")
        groups.setdefault(stem + dot, []).append(last)
    return [stem + (last[0] if len(last) == 1 else f"{{{', '.join(last)}}}") for stem, last in groups.items()]


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _step0(mixed: Mixed) -> Iterator[str]:
    """What held of the mixture as written, and how well it did before any training."""
    yield "## At step 0"
    yield f"Of {code(mixed.stage)} as it was written, before any training."
    yield "\n".join(_held(mixed))
    perplexity: Mapping[str, Mapping[str, Any]] = mixed.step0.get("perplexity", {})
    if perplexity:
        tokens = mixed.step0.get("tokens_per_domain", {})
        on = f", on {min(tokens.values()):,} tokens of each" if tokens else ""
        yield f"Perplexity on training text of each domain{on}:"
        yield _perplexities(perplexity, str(mixed.step0.get("seed", "")))
    warnings = mixed.step0.get("warnings") or ()
    if warnings:
        yield "\n".join(f"- Warning: {escaped(warning)}" for warning in warnings)


def _held(mixed: Mixed) -> Iterator[str]:
    if mixed.largest_difference is not None:
        difference, value = mixed.largest_difference
        within = f"to within {difference:.1e} (of outputs up to {value:.3g})" if difference else "to the last bit"
        yield (
            "- Every expert is in it, whole and in its place: sent to one expert alone, each branch gave what the "
            f"dense model's gave, {within}."
        )
    if (accuracy := mixed.step0.get("shared", {}).get("accuracy")) is not None:
        yield (
            f"- The router of what experts share gave {accuracy:.0%} of held-out tokens most to the model of their own "
            "domain."
        )
    if mixed.random:
        branches = escaped(" and ".join(mixed.random))
        yield f"- The {branches} experts are freshly initialised: there was nothing to compare."
    parts = "what is shared was merged, and its routers" if not mixed.variant.get("shared") else "its routers"
    yield f"- It computes what none of the dense models does: {parts} are new."


def _perplexities(perplexity: Mapping[str, Mapping[str, Any]], seed: str) -> str:
    """Models by domains; the best of each column is bold."""
    columns = list(dict.fromkeys(column for found in perplexity.values() for column in found))
    rows = []
    for name, found in perplexity.items():
        shown = {"mixture": "this mixture", seed: f"{name} (seed)"}.get(name, name)
        rows.append([escaped(shown), *(figure(found.get(column)) for column in columns)])
    return table(["", *map(escaped, columns)], bold_best(rows), right=range(1, len(columns) + 1))


def _edit(edit: Mapping[str, Any]) -> Iterator[str]:
    perplexity = edit.get("perplexity", {})
    if not any(perplexity.values()):
        return
    yield "## Before and after"
    yield f"Perplexity on held-out text; the largest change of a logit is {edit.get('logit_difference', 0.0):.3g}."
    domains = list(perplexity.get("before", {}))
    rows = [[when, *(figure(found.get(domain)) for domain in domains)] for when, found in perplexity.items()]
    yield table(["", *map(escaped, domains)], rows, right=range(1, len(domains) + 1))


def _training(subject: Subject) -> Iterator[str]:
    figures, phase = subject.figures, subject.phase
    rows = {
        "tokens trained in this stage": count(figures.get("train_tokens")),
        "tokens behind it in all": count(figures.get("lineage_tokens")),
        "FLOPs of this stage": power(figures.get("train_flops")),
        "FLOPs behind it in all": power(figures.get("lineage_flops")),
        "final training loss": loss(figures.get("loss")),
        "peak learning rate": setting(phase.get("lr")),
        "batch": f"{count(phase.get('batch_tokens'))} tokens, rows of {count(phase.get('seq_len'))}",
        "precision of products": escaped(phase.get("dtype", "bf16")),
        "data": _shares(phase),
    }
    yield "## Training"
    yield pairs(rows)


def _shares(phase: Mapping[str, Any]) -> str:
    """From the first step on; and how they change, if they do."""

    def words(shares: Mapping[str, float]) -> str:
        return ", ".join(f"{escaped(domain)} {share:.0%}" for domain, share in shares.items() if share > 0)

    said = words(phase.get("shares", {}))
    if anneal := phase.get("anneal"):
        return f"at first {said}; by a plan at the end {words(anneal['end'])}"
    return f"at first {said}; then by the loss on each domain" if "adaptive" in phase else said


def _data(subject: Subject) -> Iterator[str]:
    if not subject.tells_licences:
        yield "## Data"
        rows = [[escaped(text.domain), escaped(text.kind), code(text.digest)] for text in subject.texts]
        yield table(["domain", "source", "digest of the text"], rows)
        yield (
            "Licences are told by `bam card`, not here: experts of other stores are matched by this model's bytes, so "
            "they hold only what its key does."
        )
        return
    rows = [
        [
            escaped(text.domain),
            f"{escaped(text.kind)}: {code(text.dataset)}" if text.dataset else escaped(text.kind),
            escaped(text.licence or NOT_STATED),
            code(text.digest),
        ]
        for text in subject.texts
    ]
    yield "## Data and licences"
    yield table(["domain", "source", "licence", "digest of the text"], rows)
    yield (
        "Licences are what the recipe states of each text, for this model and for all that it was made from. bam does "
        "not judge what they mean for the weights: whoever passes these on does."
    )


def _limits(subject: Subject) -> Iterator[str]:
    yield "## Intended use and limits"
    lines = [
        "A base language model, for research: it continues text. It was not tuned to follow instructions, and nothing "
        "was done to keep it from saying what is false or harmful.",
        f"It reads {subject.config.max_seq_len:,} tokens at most"
        + (f", and knows the domains above only: {_domains(subject)}." if subject.texts else "."),
        "Perplexity says how well it predicts text like that which it was trained on. No other ability was measured.",
    ]
    if subject.is_untrained:
        lines.insert(0, "**It has not been trained since it was mixed**: it is where a training starts, not its end.")
    yield "\n".join(f"- {line}" for line in lines)


def _domains(subject: Subject) -> str:
    return ", ".join(map(escaped, dict.fromkeys(text.domain for text in subject.texts)))


def _reproduced(subject: Subject) -> Iterator[str]:
    if subject.key is None:
        return
    ref = f"{subject.stage}@{key12(subject.key)}"
    yield "## Use and reproduce"
    yield code_block([f'bam generate {ref} "Once"', f"bam card {ref}", f"bam lineage {ref}"], "sh")
    yield (
        "The key is a hash of all that defines this model: its recipe, texts and the version of each stage. The same "
        "recipe and texts give the same key. `bam card` adds the commit, the commands and the evaluation."
    )
