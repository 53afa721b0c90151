"""What the figures say in words: which model won, by how much, and what is fair to know beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report import formats
from pipelines.report.formats import change, clean, is_number
from pipelines.report.inputs import Json, ReportInputs, expert_labels, group, is_of, soft_layers
from pipelines.report.overlap import overlap_caveats

DEAD = 0.04
"""An FFN expert that gets less than this part of an even share, of every domain's tokens, is called unused."""


@dataclass(frozen=True)
class Tile:
    """A figure set large, and what it is."""

    value: str
    what: Markup


@dataclass(frozen=True)
class Findings:
    headline: Markup
    tiles: tuple[Tile, ...]
    caveats: tuple[Markup, ...]


def find(inputs: ReportInputs, caveats: Sequence[Markup] = ()) -> Findings:
    """Rank the models by average perplexity and compare the best with its rivals. caveats: to be told first."""
    ranked = ranking(inputs)
    if not ranked:
        return Findings(Markup("No model has a finite average perplexity."), (), ())
    best, rivals = ranked[0], _rivals(ranked)
    models = inputs.models
    score = models[best]["average_perplexity"]
    tiles = [Tile(formats.perplexity(score), Markup("average perplexity of {}").format(code(best)))]
    clauses = []
    for rival in rivals:
        reference = models[rival]["average_perplexity"]
        tiles.append(Tile(change(score, reference), Markup("against {}").format(code(rival))))
        clauses.append(Markup("{} ({})").format(code(rival), formats.perplexity(reference)))
    text = Markup("{} has the lowest average perplexity: {}").format(code(best), formats.perplexity(score))
    if clauses:
        text += Markup(", against ") + listed(clauses)
    told = (
        *caveats,
        *(ensemble_words(inputs) if "ensemble" in (best, *rivals) else ()),
        *_size_caveats(inputs, best, rivals),
        *_domain_caveats(inputs, best),
        *overlap_caveats(inputs),
        *_seed_caveat(models[best], has_intervals=inputs.documents is not None),
    )
    return Findings(text + Markup("."), tuple(tiles), told)


def ranking(inputs: ReportInputs) -> list[str]:
    """Models with a finite average perplexity (above 0), the lowest first."""
    scores = {name: model.get("average_perplexity") for name, model in inputs.models.items()}
    finite = {name: score for name, score in scores.items() if is_number(score) and score > 0}
    return sorted(finite, key=finite.__getitem__)


def ensemble_words(inputs: ReportInputs) -> list[Markup]:
    """What the ensemble is, where there is one: no stage made it."""
    if "ensemble" not in inputs.models:
        return []
    experts = [code(expert) for expert in inputs.models["ensemble"].get("experts", ())]
    text = Markup(
        "{} is the branch-train-merge ensemble{}: every token runs through all its models, each weighted by how well"
        " it predicted the document so far; nothing was trained for it."
    )
    return [text.format(code("ensemble"), Markup(" of ") + listed(experts) if experts else "")]


def routing_findings(inputs: ReportInputs) -> list[Markup]:
    """Per trained mixture: its unused FFN experts, or that there are none."""
    found = []
    for name, model in (inputs.routing or {}).get("models", {}).items():
        if group(name) not in ("train", "distil"):
            continue
        idle = list(_idle_experts(model))
        if idle:
            places = listed([Markup("{} in layer {}").format(code(e), layer) for layer, e in idle[:6]])
            more = f" (and {len(idle) - 6} more)" if len(idle) > 6 else ""
            found.append(Markup("{}: nearly unused FFN experts: {}{}.").format(code(name), places, more))
        elif any(domain.get("ffn") for domain in model.get("domains", {}).values()):
            found.append(Markup("{}: every FFN expert is used in every layer.").format(code(name)))
    return found


def code(name: str) -> Markup:
    return Markup("<code>{}</code>").format(clean(name))


def listed(parts: Sequence[Markup]) -> Markup:
    """`a`, `a and b`, `a, b and c`."""
    if len(parts) == 1:
        return parts[0]
    return Markup(", ").join(parts[:-1]) + Markup(" and ") + parts[-1]


def _rivals(ranked: Sequence[str]) -> list[str]:
    """Whom the best is compared with: the next trained mixture, the baselines and the seed."""
    others = ranked[1:]
    mixtures = [name for name in others if group(name) in ("train", "distil")]
    return [*mixtures[:1], *(name for name in ("dense", "ensemble", "seed") if name in others)]


def _size_caveats(inputs: ReportInputs, best: str, rivals: Sequence[str]) -> Iterator[Markup]:
    """Where the best model is larger, costs more per token or saw more tokens than a rival."""
    mine = inputs.models[best]
    smaller: dict[Markup, list[str]] = {}
    for rival in rivals:
        if costs := _larger_by(mine, inputs.models[rival]):
            smaller.setdefault(listed(costs), []).append(rival)
    for larger, names in smaller.items():
        text = Markup("{} uses {} of {}, so part of the gap is size, not method.").format(
            code(best), larger, listed([code(name) for name in names])
        )
        is_btx = any(_is_btx(inputs, name) for name in names)
        if is_btx and _has_router(inputs, best, "attention"):
            text += Markup(
                " In the paper a BTX with as many active parameters (top-3 of 6 experts)"
                " narrows the gap from 9.5% to about 3% (BAM, Tables 1 and 5)."
            )
        yield text
    peer = next((name for name in rivals if group(name) in ("train", "distil", "dense")), None)
    if peer and is_number(mine.get("train_tokens")) and is_number(inputs.models[peer].get("train_tokens")):
        tokens, others = mine["train_tokens"], inputs.models[peer]["train_tokens"]
        if tokens != others:
            yield Markup("Training differs: {} tokens for {}, {} for {}.").format(
                formats.count(tokens), code(best), formats.count(others), code(peer)
            )


def _domain_caveats(inputs: ReportInputs, best: str) -> Iterator[Markup]:
    """Domains in which another model is better than the best on average."""
    better = []
    for domain in inputs.domain_names:
        scores = {
            name: model.get("domains", {}).get(domain, {}).get("perplexity") for name, model in inputs.models.items()
        }
        finite = {name: score for name, score in scores.items() if is_number(score) and score > 0}
        leader = min(finite, key=lambda name: finite[name], default=best)
        if best in finite and finite[leader] < finite[best]:
            gap = f"{100 * (finite[best] / finite[leader] - 1):.1f}%"
            better.append(Markup("{} behind {} on {}").format(gap, code(leader), clean(domain)))
    if better:
        yield Markup("Not the best everywhere: {} is {}.").format(code(best), listed(better))


def _seed_caveat(model: Json, has_intervals: bool) -> Iterator[Markup]:
    seeds = model.get("seeds")
    if isinstance(seeds, list) and len(seeds) == 1 and has_intervals:
        yield Markup("One random seed: what another would change is in no interval. Small differences may be chance.")
    elif isinstance(seeds, list) and len(seeds) == 1:
        yield Markup("One random seed: these differences have no interval. Small ones may be chance.")


def _larger_by(mine: Json, theirs: Json) -> list[Markup]:
    """`1.31 times the active parameters` and the like, for what is larger."""
    figures = (("params_active", "active parameters"), ("flops_per_token", "FLOPs per token"))
    larger = [(key, words) for key, words in figures if _exceeds(mine.get(key), theirs.get(key))]
    return [Markup("{} times the {}").format(f"{mine[key] / theirs[key]:.2f}", words) for key, words in larger]


def _exceeds(mine: object, theirs: object) -> bool:
    """By more than a percent."""
    return is_number(mine) and is_number(theirs) and theirs > 0 and mine > 1.01 * theirs


def _has_router(inputs: ReportInputs, model: str, router: str, only: bool = False) -> bool:
    """Whether the model routes in this branch (only: and in no other)."""
    domains = (inputs.routing or {}).get("models", {}).get(model, {}).get("domains", {}).values()
    routers = {name for domain in domains for name, shown in domain.items() if shown}
    return routers == {router} if only else router in routers


def _is_btx(inputs: ReportInputs, model: str) -> bool:
    """Whether its FFN experts, and only these, came from different models (of sparse upcycling: copies of one)."""
    if not _has_router(inputs, model, "ffn", only=True):
        return False
    routing = (inputs.routing or {})["models"][model]
    labels = expert_labels(routing, "ffn")
    return sum(any(is_of(label, expert) for label in labels) for expert in routing["experts"]) > 1


def _is_below(value: object, limit: float) -> bool:
    return is_number(value) and value < limit


def _idle_experts(model: Json) -> Iterator[tuple[int, str]]:
    """(layer, expert) of the FFN experts that are unused, soft layers left out."""
    experts = expert_labels(model, "ffn")
    shares = [domain["ffn"]["fraction"] for domain in model.get("domains", {}).values() if domain.get("ffn")]
    routed = [layer for layer in range(len(shares[0]) if shares else 0) if layer not in soft_layers(model, "ffn")]
    for layer in routed:
        for place, expert in enumerate(experts):
            limit = DEAD / len(experts)
            if all(share_LE[layer] and _is_below(share_LE[layer][place], limit) for share_LE in shares):
                yield layer, expert
