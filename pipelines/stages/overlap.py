"""`overlap`: how much of each domain's held-out text, and of each task's items, occurs in training text of any domain.

The text is that of the packed rows, so exactly what is trained and evaluated on; documents have the numbers that
`evaluate` gives them, and an item is its prompt with the right answer. More than the recipe allows is an error: what is
evaluated on text that was trained on says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bam_core.data.shards import ShardedRows
from bam_core.data.tokenize import Tokenizer
from bam_core.errors import InvalidInput, Problem
from bam_core.evaluate.documents import Documents
from bam_core.evaluate.overlap import RUN, HeldOut, Overlap
from bam_core.evaluate.task_files import Task
from bam_core.protocols import StageContext
from pipelines.stages.planned_task import planned_task

OVERLAP_FILE = "overlap.json"
TOKENS_AT_ONCE = 2**18
SHARED_TOKENS = 1024
"""Of two parts of a long document: more than any run of 13 words has."""
N_EXAMPLES = 5
DOMAIN, TASK = "domains", "tasks"
WHAT = {DOMAIN: "held-out documents", TASK: "items"}
REMEDY = "drop them on one side, or say evaluate.allow_overlap: true and report it"

Batch = tuple[Sequence[str], bool]


def run(context: StageContext) -> Mapping[str, Any]:
    config = context.config
    tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer.json")
    folders = {domain: context.inputs[f"data.{domain}"] for domain in config["domains"]}
    tasks = {(TASK, task.name): _items(task) for task in _tasks(context)}
    texts = {(DOMAIN, domain): _whole(tokenizer, folder / "valid") for domain, folder in folders.items()}
    held_out = HeldOut({"/".join(name): its for name, its in (texts | tasks).items()})
    for number, (domain, folder) in enumerate(folders.items()):
        for batch, whole in _batches(tokenizer, folder / "train"):
            held_out.compare(domain, batch, whole=whole)
        context.log(number + 1, {"total_steps": len(folders)})
    limits = {name: config[name] for name in ("max_overlap", "max_contaminated")}
    figures: dict[str, dict[str, Any]] = {DOMAIN: {}, TASK: {}}
    for kind, name in (*texts, *tasks):
        figures[kind][name] = _figures(held_out.found(f"{kind}/{name}"), limits["max_overlap"])
    result = {"run_words": RUN, "limits": limits, "allowed": config["allow_overlap"], **figures}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (context.out / OVERLAP_FILE).write_text(text + "\n", "utf-8")
    problems = [problem for kind, its in figures.items() for problem in _problems(kind, its, limits)]
    if problems and not config["allow_overlap"]:
        raise InvalidInput("held-out text that is in training text", problems)
    return {
        f"{name}.{domain}": its[name]
        for domain, its in figures[DOMAIN].items()
        for name in ("mean_share", "contaminated", "duplicates")
    }


def _figures(found: Overlap, max_overlap: float) -> dict[str, Any]:
    """contaminated: documents that are duplicates or have more than the share that is allowed."""
    above = found.above(max_overlap)
    return {
        "documents": len(found),
        "duplicates": sum(copied is not None for copied in found.duplicate),
        "contaminated": len(above),
        "mean_share": found.mean_share,
        "by_training": dict(found.by_training),
        "examples": [_example(found, number) for number in found.above(0.0)[:N_EXAMPLES]],
    }


def _example(found: Overlap, number: int) -> dict[str, Any]:
    return {
        "document": number,
        "share": float(found.share[number]),
        "duplicate_of": found.duplicate[number],
        "start": found.start[number],
    }


def _problems(kind: str, figures: Mapping[str, Any], limits: Mapping[str, float]) -> Iterator[Problem]:
    for name, its in figures.items():
        if its["contaminated"] > limits["max_contaminated"] * its["documents"]:
            examples = its["examples"][: min(3, its["contaminated"])]
            shown = "; ".join(f"document {e['document']} ({e['share']:.0%}): {e['start'][:40]!r}" for e in examples)
            expected = (
                f"have more than {limits['max_overlap']:.0%} of their runs of {RUN} words in training text, or are in "
                f"it as a whole ({its['duplicates']}); at most {limits['max_contaminated']:.0%} of them may. {shown}"
            )
            value = f"{its['contaminated']} of {its['documents']} {WHAT[kind]}"
            yield Problem(f"{kind}.{name}", value, expected, REMEDY)


def _tasks(context: StageContext) -> list[Task]:
    return [planned_task(context, entry["digest"]).first(entry["limit"]) for entry in context.config.get("tasks", ())]


def _items(task: Task) -> list[str]:
    return [f"{item.prompt}\n{item.solution or item.answer}" for item in task.items]


def _whole(tokenizer: Tokenizer, folder: Path) -> Iterator[str]:
    """The documents of some rows, by number."""
    documents = Documents.of(ShardedRows(folder), tokenizer.token_bytes)
    for number, length in enumerate(documents.tokens.tolist()):
        yield tokenizer.decode(documents.ids(number, 1, length + 1).tolist())


def _batches(tokenizer: Tokenizer, folder: Path) -> Iterator[Batch]:
    """The same by several whole documents, or by parts of one that is long: (texts, whether they are whole)."""
    documents = Documents.of(ShardedRows(folder), tokenizer.token_bytes)
    waiting: list[list[int]] = []
    for number, length in enumerate(documents.tokens.tolist()):
        if length > TOKENS_AT_ONCE:
            for start in range(1, length + 1, TOKENS_AT_ONCE):
                stop = min(start + TOKENS_AT_ONCE + SHARED_TOKENS, length + 1)
                yield [tokenizer.decode(documents.ids(number, start, stop).tolist())], False
            continue
        waiting.append(documents.ids(number, 1, length + 1).tolist())
        if sum(map(len, waiting)) > TOKENS_AT_ONCE:
            yield tokenizer.decode_batch(waiting), True
            waiting = []
    yield tokenizer.decode_batch(waiting), True
