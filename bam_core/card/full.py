"""The card of a model in a store: what is in its own folder, and how it was evaluated, made and can be made again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import PurePath
from typing import Any

from bam_core.card.markdown import code, code_block, escaped, front_matter, pairs, table
from bam_core.card.numbers import MISSING, bold_best, figure
from bam_core.card.own import body, dataset_id, domain_id, front, head, model_id
from bam_core.card.subject import NO_MODELS, Subject
from bam_core.graph.key import key12
from bam_core.graph.record import InputRef, Record
from bam_core.graph.runs import Run
from bam_core.graph.stage import StageName, kind_of

UNITS = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
"""Figure of `perplexity.json` -> its name."""

FLAGS = frozenset({
    *("--json", "-v", "--verbose", "--wait", "--no-wait", "--keep-going", "--fail-fast", "--with-deps", "--dry-run"),
    *("--detach", "--again", "-f", "--follow"),
})  # fmt: skip
KEPT = frozenset({"--set", "--input"})
"""Options of `bam run` and `bam stage` that say what is made; the others say where, how, or how much of it."""
PLACES = frozenset({"--store", "--tracking-uri", "--address", "--executor"})


@dataclass(frozen=True)
class Evaluation:
    """What the evaluation `ref` found of a model that it calls `name`, and of the models that it scored beside it.

    figures: model -> its entry in `perplexity.json`, in the order in which they were scored. scoring: how documents
    were scored, {context, stride} in tokens; None of an evaluation from before, of rows.
    """

    ref: InputRef
    name: str
    figures: Mapping[str, Mapping[str, Any]]
    scoring: Mapping[str, int] | None = None

    @classmethod
    def of(cls, model: Record, evaluate: Record, perplexity: Mapping[str, Any]) -> Evaluation | None:
        """None if the evaluation scored another model, or other bytes of this one."""
        name = scored_as(model, evaluate)
        found = perplexity.get("models", {})
        if name is None or name not in found:
            return None
        order = [str(scored) for scored in evaluate.payload.get("config", {}).get("models", ())]
        names = [*(scored for scored in order if scored in found), *(scored for scored in found if scored not in order)]
        return cls(evaluate.ref, name, {scored: found[scored] for scored in names}, perplexity.get("scoring"))

    @property
    def domains(self) -> list[str]:
        return list(self.figures[self.name].get("domains", {}))


def scored_as(model: Record, evaluate: Record) -> str | None:
    """The role in which an evaluation read this very model."""
    return next((role for role, ref in evaluate.inputs.items() if ref == model.ref), None)


@dataclass(frozen=True)
class Made:
    """ancestors: what it was made from, as far as it is on record, the nearest first. run: that made it, if known."""

    record: Record
    ancestors: Sequence[Record] = ()
    run: Run | None = None


def full_card(subject: Subject, made: Made, evaluation: Evaluation | None = None) -> str:
    """The model's own card, its evaluation, and how to make it again."""
    data = front(subject)
    if evaluation is not None and (results := list(_results(subject, evaluation))):
        data["model-index"] = [{"name": model_id(made.record.ref), "results": results}]
    parts = [front_matter(data), *head(subject)]
    if evaluation is not None:
        parts += _evaluation(subject, made, evaluation)
    parts += body(subject)
    parts += [*_reproduced(made), *_provenance(made), *_lineage(made)]
    return "\n\n".join(parts) + "\n"


def _results(subject: Subject, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The hub's model-index: one result per domain."""
    sets = {text.domain: dataset_id(text) for text in subject.texts}
    for domain, found in evaluation.figures[evaluation.name].get("domains", {}).items():
        metrics = [
            {"type": unit, "value": round(float(found[unit]), 4), "name": name}
            for unit, name in UNITS.items()
            if isinstance(found.get(unit), int | float) and isfinite(found[unit])
        ]
        if metrics:
            dataset = {
                "type": sets.get(domain, domain_id(domain)),
                "name": domain,
                "config": domain,
                "split": "held-out",
            }
            yield {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _evaluation(subject: Subject, made: Made, evaluation: Evaluation) -> Iterator[str]:
    domains, names = evaluation.domains, list(_compared(made, evaluation))
    yield "## Evaluation"
    tokens = [found.get("tokens") for found in evaluation.figures[evaluation.name].get("domains", {}).values()]
    counted = [count for count in tokens if isinstance(count, int)]
    on = f" ({min(counted):,} to {max(counted):,} tokens of each domain)" if counted else ""
    how = evaluation.scoring
    text = f"documents, by a window of {how['context']} tokens with stride {how['stride']}" if how else "text"
    judge = code(f"{evaluation.ref.stage}@{key12(evaluation.ref.key)}")
    yield f"On held-out {text}{on}; lower is better. Scored by {judge}."
    for (unit, title), decimals in zip(UNITS.items(), (2, 3), strict=True):
        rows = []
        for name in names:
            found = evaluation.figures[name]
            scores = found.get("domains", {})
            cells = [figure(scores.get(domain, {}).get(unit), decimals) for domain in domains]
            average = [figure(found.get("average_perplexity"))] if unit == "perplexity" else []
            rows.append([_called(name, evaluation), *cells, *average])
        headers = [title, *map(escaped, domains), *(["average"] if unit == "perplexity" else [])]
        if any(cell != MISSING for row in rows for cell in row[1:]):
            yield table(headers, bold_best(rows), right=range(1, len(headers)))


def _compared(made: Made, evaluation: Evaluation) -> Iterator[str]:
    """This model, what it was made from, the baselines and the other trained mixtures; no other untrained mixture."""
    before = {StageName.parse(record.stage).plain for record in made.ancestors}
    yield evaluation.name
    for name in evaluation.figures:
        if name != evaluation.name and (kind_of(name) != "mix" or name in before):
            yield name


def _called(name: str, evaluation: Evaluation) -> str:
    if name == evaluation.name:
        return f"**this model** ({escaped(name)})"
    return "the experts as an ensemble" if name == "ensemble" else escaped(name)


def _reproduced(made: Made) -> Iterator[str]:
    record = made.record
    yield "## Reproduce"
    yield code_block(commands(record, made.run), "sh")
    notes = [
        "The same recipe and texts give the same key; the same machine and worker count give the same bytes, others "
        "the same model to rounding."
    ]
    if record.provenance.get("dirty"):
        diff = str(record.provenance.get("dirty_diff_sha256", "?"))
        notes.insert(
            0,
            "**The tree had changes that were not committed**, so the commit alone is not what ran; their diff has "
            f"sha256 {code(diff)}.",
        )
    if record.provenance.get("git_commit") is None:
        notes.insert(0, "No commit is on record: it did not run from a checkout.")
    yield "\n".join(f"- {note}" for note in notes)


def commands(record: Record, run: Run | None = None) -> list[str]:
    """What a person types to make the artifact again, from the command that made it."""
    argv = record.provenance.get("argv") or (run.provenance.get("argv") if run is not None else None) or ()
    commit = record.provenance.get("git_commit")
    name = record.provenance.get("pipeline") or (run.pipeline if run is not None else None)
    words = _again([str(word) for word in argv], record.stage)
    if not words:
        words = ["bam", "run", f"{name}.yaml" if name else "RECIPE", "--until", record.stage]
    return [*([f"git checkout {shlex.quote(str(commit))}"] if commit else []), shlex.join(words)]


def _again(argv: Sequence[str], stage: str) -> list[str]:
    """The command without where it ran, and no more of its pipeline than this stage; [] if it was none of bam's."""
    if not argv or PurePath(argv[0]).name not in ("bam", "bam.exe"):
        return []
    plain, options, words = list[str](), list[str](), iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            plain.append(word)
            continue
        name, has_value, value = word.partition("=")
        if name in FLAGS:
            continue
        value = value if has_value else next(words, "")
        if name in KEPT or (plain[:1] == ["expert"] and name not in PLACES):
            options += [name, value]
    match plain:
        case ["run" | "submit", recipe, *_]:
            return ["bam", "run", recipe, *options, "--until", stage]
        case ["stage", name, recipe, *_]:
            return ["bam", "stage", name, recipe, *options, "--with-deps"]
        case ["expert" | "adopt", *_]:
            return ["bam", *plain, *options]
        case _:
            return []


def _provenance(made: Made) -> Iterator[str]:
    record, found = made.record, made.record.provenance
    started = datetime.fromtimestamp(record.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows = {"made": f"{started}, in {record.seconds:,.0f} s"}
    recipe = found.get("pipeline") or (made.run.pipeline if made.run is not None else None)
    name = found.get("run") or (made.run.name if made.run is not None else None)
    rows |= {"recipe": escaped(recipe)} if recipe else {}
    rows |= {"run": code(name)} if name else {}
    rows |= {"commit": _commit(record)}
    packages = found.get("packages")
    if isinstance(packages, Mapping):
        rows["packages"] = escaped(", ".join(f"{package} {version}" for package, version in packages.items()))
    rows |= {"Python": escaped(found["python"])} if found.get("python") else {}
    rows["digest of its files"] = code(record.digest)
    yield "## Provenance"
    yield pairs(rows)


def _commit(record: Record) -> str:
    commit = record.provenance.get("git_commit")
    if not commit:
        return "not on record"
    return code(commit) + (", and changes that were not committed" if record.provenance.get("dirty") else "")


def _lineage(made: Made) -> Iterator[str]:
    known = {(record.stage, record.key) for record in (made.record, *made.ancestors)}
    gone = {
        (ref.stage, ref.key): ref
        for record in (made.record, *made.ancestors)
        for ref in record.inputs.values()
        if (ref.stage, ref.key) not in known
    }
    rows = [_ancestor(record) for record in (made.record, *made.ancestors)]
    rows += [[_name(ref), "gone from the store", MISSING, MISSING, MISSING] for ref in gone.values()]
    yield "## Lineage"
    yield table(["artifact", "made from", "tokens trained", "FLOPs", "commit"], rows, right=(2, 3))


def _ancestor(record: Record) -> list[str]:
    tokens, flops = record.metrics.get("train_tokens"), record.metrics.get("train_flops")
    is_training = kind_of(record.stage) not in NO_MODELS and isinstance(tokens, int | float)
    parents = dict.fromkeys(_name(ref) for ref in record.inputs.values())
    commit = record.provenance.get("git_commit")
    return [
        _name(record.ref),
        ", ".join(parents) or MISSING,
        f"{tokens:,.0f}" if is_training else MISSING,
        f"{flops:.2e}" if is_training and isinstance(flops, int | float) else MISSING,
        code(str(commit)[:12]) + ("+" if record.provenance.get("dirty") else "") if commit else MISSING,
    ]


def _name(ref: InputRef) -> str:
    return code(f"{ref.stage}@{key12(ref.key)}")
