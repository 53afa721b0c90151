"""The stages that make text ready, and what names a text: up to the rows of every domain, and the look for overlap.

Where a text lies enters no key: its content's digest does. `bam` joins these with the stages that train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bam_core.graph.stage import Stage
from pipelines import imports
from pipelines.recipe import Recipe
from pipelines.recipe.parts import FileTokenizer, SentencePieceTokenizer
from pipelines.recipe.sources import ClusterText, Licensed, each_source, without_place
from pipelines.stages import new_stage


def tokenizer(recipe: Recipe, digests: Mapping[str, str]) -> Stage:
    spec = recipe.tokenizer
    if spec is None or spec.kind == "import":
        return imports.tokenizer(recipe)
    if isinstance(spec, FileTokenizer | SentencePieceTokenizer):
        config: dict[str, Any] = {
            "kind": spec.kind,
            "vocab_size": spec.vocab_size,
            "digest": digests["tokenizer"],
        }
        return new_stage("tokenizer", config, {}, {"path": spec.path})
    domains = spec.domains or list(recipe.domains)
    config = {
        "kind": "bpe",
        "vocab_size": spec.vocab_size,
        "domains": {domain: _text_identity(recipe, domain, digests) for domain in domains},
    }
    sources = {domain: recipe.source(domain) for domain in domains}
    return new_stage("tokenizer", config, _clusters(recipe, domains), {"sources": sources})


def discover(recipe: Recipe, name: str, digests: Mapping[str, str]) -> Stage:
    """Clusters of a text. `domains` in the config, as in that of the tokenizer: the texts that the stage reads."""
    spec, text = recipe.discover[name].to_dict(), f"discover.{name}"
    source, options = recipe.texts[text], {key: value for key, value in spec.items() if key != "source"}
    config = {"domains": {name: {"source": without_place(source) | {"digest": digests[text]}}}, **options}
    return new_stage(text, config, {}, {"source": source})


def _clusters(recipe: Recipe, domains: Iterable[str]) -> dict[str, str]:
    """The stages that say which documents are those of these domains."""
    names = (recipe.text_name(domain) for domain in domains)
    return {name: name for name in names if name.startswith("discover.")}


def data(recipe: Recipe, domain: str, digests: Mapping[str, str]) -> Stage:
    config = {"domain": domain, "seq_len": recipe.row_len} | _text_identity(recipe, domain, digests)
    runtime = {"source": recipe.source(domain), **_said_of_text(recipe, domain)}
    if (valid := recipe.valid_source(domain)) is not None:
        config["valid"] = without_place(valid) | {"digest": digests[f"{domain}.valid"]}
        runtime["valid"] = valid
    return new_stage(f"data.{domain}", config, {"tokenizer": "tokenizer"} | _clusters(recipe, [domain]), runtime)


def overlap(recipe: Recipe, digests: Mapping[str, str]) -> Stage:
    limits = {name: getattr(recipe.evaluate, name) for name in ("max_overlap", "max_contaminated", "allow_overlap")}
    config: dict[str, Any] = {"domains": list(recipe.domains), **limits}
    tasks, files = asked_tasks(recipe, digests)
    config |= {"tasks": [{name: task[name] for name in ("digest", "limit")} for task in tasks]} if tasks else {}
    inputs = {"tokenizer": "tokenizer"} | all_data(recipe)
    return new_stage("overlap", config, inputs, {"tasks": files} if files else {})


def _said_of_text(recipe: Recipe, domain: str) -> dict[str, str]:
    """For people: under which licence a domain's text is, and its name on the hub. A key has its content instead."""
    licence, source = recipe.licence(domain), recipe.source(domain)
    said = {"licence": licence} if licence else {}
    is_on_hub = source["kind"] == "hf" and not source["path"].startswith((".", "/", "~"))
    return said | ({"dataset": source["path"]} if is_on_hub else {})


def _text_identity(recipe: Recipe, domain: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """What defines a domain's text. Where it lies does not: `path` stays out, its content's digest is in."""
    spec, digest = recipe.domains[domain], digests[recipe.text_name(domain)]
    source, cluster = spec.source, None
    if isinstance(source, ClusterText):
        cluster = {"of": source.of, "index": source.index}
    said = [one.share for one in each_source(source) if isinstance(one, Licensed)]
    shares = [share for share in said if share is not None]
    copies = {"minhash": {"minhash": spec.dedup_threshold}, "none": "none"}.get(spec.dedup)
    return {
        "source": without_place(recipe.source(domain)) | {"digest": digest},
        "valid_frac": spec.valid_frac if spec.valid is None else None,
        "max_bytes": spec.max_bytes,
        **({"cluster": cluster} if cluster else {}),
        **({"shares": shares} if shares else {}),
        **({"dedup": copies} if copies else {}),
    }


def asked_tasks(recipe: Recipe, digests: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """What defines the tasks, in an order that follows from that alone; and digest -> where the file is."""
    found = {digests[task_digest(number)]: file for number, file in enumerate(recipe.evaluate.tasks)}
    asked = [
        {"digest": digest, "limit": file.limit, "execute": file.execute, "new_tokens": file.new_tokens}
        for digest, file in sorted(found.items())
    ]
    return asked, {digest: {"path": file.path} for digest, file in found.items()}


def task_digest(number: int) -> str:
    """The name of a task file's digest among those of the texts. No domain has a point in its name."""
    return f"evaluate.tasks.{number}"


def all_data(recipe: Recipe) -> dict[str, str]:
    return {f"data.{domain}": f"data.{domain}" for domain in recipe.domains}
