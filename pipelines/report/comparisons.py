"""Whether the models differ: each against the baselines, and against the best, with intervals (`significance`).

Compared are the trained mixtures, `dense` and the ensemble. A pair is compared once, so of two baselines only the
first listed is one of the other. One family is all these pairs; another one is the best model against each other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from bam_core.evaluate.resample import AVERAGE, OF_DOMAIN, DocumentScores
from bam_core.evaluate.significance import Comparison, compare_all, estimate
from pipelines.report import formats
from pipelines.report.findings import code, listed
from pipelines.report.forest import forest
from pipelines.report.formats import clean, file_name, is_number
from pipelines.report.inputs import ReportInputs, group
from pipelines.report.svg import Panel
from pipelines.report.tables import Column, Table

COMPARED = ("train", "distil", "dense", "ensemble")
BEST = "best"


@dataclass(frozen=True)
class Compared:
    """What the report shows of them; all of it empty without the losses of documents.

    families: baseline -> the comparisons with it. by_domain: (model, baseline) -> domain -> the comparison in that
    domain. beside_best: model -> `best`, or how it compares with it. intervals: model -> that of its own average, with
    several seeds. words: how to read them.
    """

    families: Mapping[str, Sequence[Comparison]]
    by_domain: Mapping[tuple[str, str], Mapping[str, Comparison]]
    beside_best: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]]
    words: Sequence[str]
    seeds: Sequence[int] = ()

    @property
    def all(self) -> list[Comparison]:
        return [one for family in self.families.values() for one in family]

    @property
    def table(self) -> Table:
        return _table(self)

    @property
    def panels(self) -> dict[str, Panel]:
        """File name -> a forest plot for each baseline."""
        return {f"forest-{file_name(baseline)}": forest(baseline, found) for baseline, found in self.families.items()}

    @property
    def caveats(self) -> list[Markup]:
        """Of the best model: which others are not distinguishable from it."""
        best = [model for model, word in self.beside_best.items() if word == BEST]
        tied = [model for model, word in self.beside_best.items() if word == "not distinguishable"]
        if not tied:
            return []
        text = Markup("Not distinguishable from {} by average perplexity: {}.")
        return [text.format(code(best[0]), listed([code(model) for model in tied]))]


def compare_models(inputs: ReportInputs) -> Compared:
    scores = inputs.documents
    if scores is None:
        return Compared({}, {}, {}, {}, ())
    models = [model for model in inputs.models if group(model) in COMPARED and model in scores.nll]
    pairs = _pairs(models, [baseline for baseline in inputs.baselines if baseline in scores.nll])
    domains = [domain for domain in inputs.domain_names if domain in scores.domains]
    found = compare_all(scores, pairs)
    of_domains = {domain: compare_all(scores, pairs, figure=OF_DOMAIN + domain) for domain in domains}
    return Compared(
        families={b: [one for one in found if one.baseline == b] for b in dict.fromkeys(one.baseline for one in found)},
        by_domain={pair: {domain: of_domains[domain][i] for domain in domains} for i, pair in enumerate(pairs)},
        beside_best=_beside_best(inputs, scores, models),
        intervals=_intervals(scores) if len(scores.seeds) > 1 else {},
        words=list(_words(found)),
        seeds=scores.seeds,
    )


def with_intervals(table: Table, compared: Compared) -> Table:
    """The table of perplexities: the average's interval over documents and seeds, and who is as good as the best."""
    rows = []
    for row in table.rows:
        low, high = compared.intervals.get(row["model"], (None, None))
        more = {"average_low": low, "average_high": high, "beside_best": compared.beside_best.get(row["model"])}
        rows.append({**row, **more})
    added = (
        Column("average_low", "from", formats.perplexity),
        Column("average_high", "to", formats.perplexity),
        Column("beside_best", "beside the best"),
    )
    kept = [column for column in added if any(row[column.key] is not None for row in rows)]
    place = next((i for i, column in enumerate(table.columns, 1) if column.key == AVERAGE), len(table.columns))
    return replace(table, columns=(*table.columns[:place], *kept, *table.columns[place:]), rows=tuple(rows))


def _pairs(models: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """(model, baseline), each two models once."""
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for baseline in baselines:
        for model in models:
            if model != baseline:
                pairs.setdefault(frozenset((model, baseline)), (model, baseline))
    return list(pairs.values())


def _beside_best(inputs: ReportInputs, scores: DocumentScores, models: Sequence[str]) -> dict[str, str]:
    averages = {model: inputs.models[model].get(AVERAGE) for model in models}
    finite = {model: value for model, value in averages.items() if is_number(value)}
    if len(finite) < 2:
        return {}
    best = min(finite, key=lambda model: finite[model])
    found = compare_all(scores, [(model, best) for model in models if model != best])
    return {best: BEST} | {one.model: one.word for one in found}


def _intervals(scores: DocumentScores) -> dict[str, tuple[float, float]]:
    found = {model: estimate(scores, model) for model in scores.nll}
    return {model: (one.low, one.high) for model, one in found.items()}


def _words(found: Sequence[Comparison]) -> Iterator[str]:
    """How to read the comparisons: over what the intervals are, how they are corrected, what they cannot know."""
    if not found:
        return
    first, n = found[0], len(found)
    n_seeds, percent = len(first.seeds), f"{100 * first.level:g}%"
    over = f"documents and {n_seeds} seeds" if n_seeds > 1 else "documents only"
    yield (
        f"From, to: the interval over {over}, at {percent}, and wider where Holm's procedure asks for it, as there"
        f" {'are' if n > 1 else 'is'} {n} comparison{'s' if n > 1 else ''}. It is clear of zero exactly where p, so"
        f" corrected, is below {1 - first.level:.2g}, and only then is a model called better or worse."
    )
    notes = dict.fromkeys(note for one in found for note in one.notes)
    yield from (f"{clean(note)[:1].upper()}{clean(note)[1:]}." for note in notes)


def _table(compared: Compared) -> Table:
    domains = list(next(iter(compared.by_domain.values()), {}))
    figures = [
        Column("difference", "difference", formats.gain),
        Column("corrected_low", "from", formats.gain),
        Column("corrected_high", "to", formats.gain),
        Column("corrected_p", "p", _p),
        Column("word", "so it is"),
        Column("seeds", "seeds", formats.count),
        Column("documents", "documents", formats.count),
        *(Column(f"difference.{domain}", domain, formats.gain) for domain in domains),
    ]
    exact = ["low", "high", "p", "n_comparisons", "level", "documents_se", "seeds_se"]
    exact += [f"{end}.{domain}" for domain in domains for end in ("low", "high")]
    columns = [Column("model", "model"), Column("baseline", "against"), *figures]
    columns += [Column(key, key, csv_only=True) for key in (*exact, "notes")]
    return Table("comparisons", tuple(columns), tuple(_row(one, compared) for one in compared.all))


def _row(one: Comparison, compared: Compared) -> dict[str, Any]:
    keys = ("model", "baseline", "difference", "low", "high", "p", "corrected_low", "corrected_high", "corrected_p")
    row = {key: getattr(one, key) for key in (*keys, "n_comparisons", "level", "documents_se", "seeds_se", "word")}
    row |= {"seeds": len(one.seeds), "documents": one.n_documents, "notes": "; ".join(one.notes) or None}
    for domain, of_domain in compared.by_domain[one.model, one.baseline].items():
        row[f"difference.{domain}"] = of_domain.difference
        row |= {f"low.{domain}": of_domain.low, f"high.{domain}": of_domain.high}
    return row


def _p(value: Any) -> str:
    return formats.number(value, lambda x: "<0.001" if x < 0.001 else f"{x:.3f}")
