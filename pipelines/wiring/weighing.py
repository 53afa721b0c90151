"""What a trained mixture's attention costs and what it is worth, in several forms: a model of the store, as it lies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_core.errors import UsageError
from bam_core.graph import refs
from bam_core.graph.record import Record
from bam_core.graph.stage import StageName, kind_of
from infra.store import ArtifactStore
from pipelines.wiring.looking import reading_folder
from pipelines.wiring.origins import name_of
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    import torch

    from bam_core.evaluate.documents import Chosen
    from bam_core.evaluate.pareto import Form, Row
    from bam_core.nn.lm import LM

MOST_PROMPT, MOST_NEW = 64, 64
"""Tokens of the text by which speed is measured, as far as the model's context allows."""


@dataclass(frozen=True)
class Weighed:
    """rows: the first model's forms, then the others. optimal: of each row. text: the artifacts that hold it."""

    rows: Sequence[Row]
    optimal: Sequence[bool]
    models: Sequence[str]
    text: Mapping[str, str]
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() | {"optimal": best} for row, best in zip(self.rows, self.optimal, strict=True)]
        return {"models": list(self.models), "text": dict(self.text), **self.settings, "rows": rows}


def weigh(
    names: Sequence[str],
    settings: Settings,
    *,
    tokens: int,
    thresholds: Sequence[float] | None = None,
    rounds: int = 5,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Weighed:
    """The forms that the first model's attention can take without training, and each other model as it is.

    tokens: held-out ones of each domain at most, in whole documents. rounds: of measuring speed, 0 for none. dtype: as
    for `bam_core.checkpoint.load_model`, fp32 at least by default. Raises UsageError for what is no mixture with
    attention experts, has another tokenizer than the first, or whose held-out text is gone.
    """
    import torch

    from bam_core.data.shards import ShardedRows
    from bam_core.data.tokenize import Tokenizer
    from bam_core.evaluate.decoding import decode_rates
    from bam_core.evaluate.documents import Documents, choose
    from bam_core.evaluate.pareto import optimal
    from bam_core.train.loop import DTYPES

    store = open_store(settings)
    opened = dict(reading_folder(name, settings) for name in names)
    text = _held_out(refs.resolve(names[0], store.records()), store)
    tokenizer = _same_tokenizer(opened)
    token_bytes = Tokenizer.load(tokenizer).token_bytes
    chosen = {
        domain: choose(Documents.of(ShardedRows(store.localize(record) / "valid"), token_bytes), tokens)
        for domain, record in text.items()
    }
    models = _models(opened, DTYPES[dtype] if dtype is not None else None, thresholds)
    rows = [_scored(name, model, chosen, say) for name, model in models.items()]
    if rounds:
        say(f"speed, {rounds} rounds")
        prompt_T, n_new = _prompt(next(iter(chosen.values())), next(iter(models.values())))
        rates = decode_rates(models, prompt_T, n_new, rounds)
        rows = [replace(row, rates=rates[row.name]) for row in rows]
    how = {"tokens": tokens, "dtype": dtype, "rounds": rounds, "threads": torch.get_num_threads()}
    where = {domain: name_of(record.ref) for domain, record in text.items()}
    return Weighed(rows, optimal(rows), list(opened), where, how)


def _models(opened: Mapping[str, Path], dtype: torch.dtype | None, thresholds: Sequence[float] | None) -> dict[str, LM]:
    """Row -> model: the forms of the first, then the others."""
    from bam_core.checkpoint import load_model

    (first, folder), *others = opened.items()
    forms = _forms(first, folder, dtype, thresholds)
    models = {f"{_short(first, opened)}: {form}": made for form, made in forms.items()}
    return models | {_short(name, opened): load_model(other, dtype) for name, other in others}


def _short(name: str, opened: Collection[str]) -> str:
    """The stage, where only one of its artifacts is asked for."""
    stage = name.partition("@")[0]
    return stage if [other.partition("@")[0] for other in opened].count(stage) == 1 else name


def _held_out(record: Record, store: ArtifactStore) -> dict[str, Record]:
    """Domain -> the `data.*` that the model, or what it was made from, was trained on; the nearest of each domain.

    In the recipe's order where a mixture says it.
    """
    known = {(found.stage, found.key): found for found in store.records()}
    order: list[str] = []
    found: dict[str, Record] = {}
    for here in _behind(record, known):
        if kind_of(here.stage) == "data":
            found.setdefault(str(StageName.parse(here.stage).name), here)
        domains = here.payload.get("config", {}).get("domains")
        order += domains if isinstance(domains, list) and not order else []
    if not found:
        raise UsageError(f"{name_of(record.ref)}: the held-out text of its domains is gone from the store")
    return {domain: found[domain] for domain in [*order, *sorted(found)] if domain in found}


def _behind(record: Record, known: Mapping[tuple[str, str], Record]) -> Iterator[Record]:
    """The artifact and its ancestors that are still there, the nearest first, each once."""
    queue, seen = [record], {(record.stage, record.key)}
    while queue:
        here = queue.pop(0)
        yield here
        for ref in here.inputs.values():
            parent = known.get((ref.stage, ref.key))
            if parent is not None and (ref.stage, ref.key) not in seen:
                seen.add((ref.stage, ref.key))
                queue.append(parent)


def _same_tokenizer(opened: Mapping[str, Path]) -> Path:
    """Perplexities per token of different tokenizers cannot be compared."""
    (first, folder), *others = opened.items()
    for name, other in others:
        if (other / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes():
            raise UsageError(f"{name}: has another tokenizer than {first}, so their perplexities cannot be compared")
    return folder / "tokenizer.json"


def _forms(name: str, folder: Path, dtype: torch.dtype | None, thresholds: Sequence[float] | None) -> dict[str, LM]:
    """Form -> the model in it; those with the same tensors share them."""
    from bam_core.checkpoint import load_model
    from bam_core.evaluate.pareto import THRESHOLDS, attention_forms

    model = load_model(folder, dtype)
    attention = model.config.attention
    if attention is None:
        raise UsageError(f"{name}: has no attention experts, so there is nothing to leave out; try train.bam")
    if thresholds is not None and max(thresholds) * attention.n_experts > 1:
        most = f"at most {1 / attention.n_experts:.3g}, one in {attention.n_experts} experts"
        raise UsageError(f"threshold {max(thresholds):g}: must be {most}, or a token could be left without any")
    forms = attention_forms(attention, THRESHOLDS if thresholds is None else thresholds)
    return {form: _in_form(model, folder, how, dtype) for form, how in forms.items()}


def _in_form(model: LM, folder: Path, form: Form, dtype: torch.dtype | None) -> LM:
    import torch

    from bam_core.nn.lm import LM
    from bam_core.upcycle.sparser import load_sparser

    if form.sparser is not None and form.sparser.kv is not None:
        return load_sparser(folder, form.sparser, dtype)
    config = form.sparser.config(model.config) if form.sparser is not None else model.config
    assert config.attention is not None, "no attention experts"
    config = replace(config, attention=replace(config.attention, threshold=form.threshold))
    with torch.device("meta"):
        made = LM(config)
    made.load_state_dict(model.state_dict(), assign=True)
    return made.eval()


def _scored(name: str, model: LM, chosen: Mapping[str, Chosen], say: Callable[[str], None]) -> Row:
    from bam_core.evaluate.pareto import row, used_experts
    from bam_core.evaluate.strided import score_documents

    stride = max(1, model.config.max_seq_len // 2)
    scored = {domain: score_documents(model, documents, stride) for domain, documents in chosen.items()}
    sums = [found.routing for found in scored.values() if found.routing is not None]
    used_L = used_experts(sums, model.config.n_layers)
    made = row(name, model.config, {domain: found.total for domain, found in scored.items()}, used_L)
    say(f"{name}: perplexity {made.average:.2f}")
    return made


def _prompt(chosen: Chosen, model: LM) -> tuple[torch.Tensor, int]:
    """The start of a held-out document, and how many tokens are to follow."""
    import torch

    context = model.config.max_seq_len
    longest = int(chosen.tokens.argmax())
    n_prompt = max(1, min(MOST_PROMPT, context // 4, int(chosen.tokens[longest])))
    ids = chosen.documents.ids(int(chosen.numbers[longest]), 0, n_prompt)
    return torch.from_numpy(ids), min(MOST_NEW, context - n_prompt)
