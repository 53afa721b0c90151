"""The words of MLflow's pages: Markdown that links to parents, children and files, and the addresses of pages.

Text of others (paths, commands, names) is shown as code: nothing in it is read as Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from bam_core.graph.key import key12
from bam_core.graph.record import Record
from bam_core.graph.runs import Run
from infra.mlflow_runs import TAG_CHARS

_STATUS = {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "under way"}


RUNS_AND_MODELS = "workflowType=machine_learning"
"""Without it MLflow changes to its pages for language-model applications."""
_PARENTS_FIRST = 8


def run_address(experiment_id: str, run_id: str, file: str | None = None) -> str:
    """This and all other addresses: the part after the host. file: of its artifacts."""
    place = "" if file is None else f"/artifacts/{file}"
    return f"#/experiments/{experiment_id}/runs/{run_id}{place}?{RUNS_AND_MODELS}"


def model_address(experiment_id: str, model_id: str) -> str:
    return f"#/experiments/{experiment_id}/models/{model_id}?{RUNS_AND_MODELS}"


def search_address(experiment_id: str, condition: str) -> str:
    """The experiment's list of those runs for which MLflow's filter holds."""
    wanted = f"searchFilter={quote(condition, safe='')}"
    return f"#/experiments/{experiment_id}/runs?{wanted}&{RUNS_AND_MODELS}"


def describe(record: Record, artifact: str, pages: Mapping[str, str], children: str) -> str:
    """Of the run or model of an artifact: what it is, made from what, where its children and files are.

    MLflow shows the first lines of it, so they have the ways to the parents.

    pages: key of an input -> its page, for those that have one. children: the page that lists what was made from it.
    """
    name = f"{record.stage}@{key12(record.key)}"
    made_by = record.provenance.get("run")
    lines = [
        f"**{record.stage}**{_from(record, pages)}",
        "",
        f"Made in {record.seconds:,.1f} s, attempt {record.attempt}"
        + (f", by run {code(made_by)}." if made_by else "."),
        "",
        f"- artifact: {code(artifact)}",
        f"- made from it: [runs of this experiment]({children}), or `bam lineage {name} --down`",
        f"- what made it: `bam lineage {name}`",
        "",
    ]
    parents = [
        f"| {_plain(role)} | {_linked(f'{ref.stage}@{key12(ref.key)}', pages.get(ref.key))} |"
        for role, ref in sorted(record.inputs.items())
    ]
    files = [f"| {code(output.path)} | {output.size:,} |" for output in record.outputs]
    note = _with_table("\n".join(lines), "| input | artifact |\n|---|---|", parents, TAG_CHARS * 3 // 4)
    return _with_table(note, "| file | bytes |\n|---|---:|", files, TAG_CHARS)


def describe_run(run: Run, status: str, pages: Mapping[str, str], files: Mapping[str, str]) -> str:
    """Of the run of a pipeline. status: of MLflow. pages: key of an artifact -> its page, for those that were made.

    files: name -> address, of those that the run has.
    """
    argv = run.provenance.get("argv")
    took = "" if run.ended is None else f" after {run.ended - run.started:,.1f} s"
    lines = [
        f"Recipe {code(run.pipeline)}, run {code(run.name)}: {_STATUS[status]}{took}.",
        "",
        *([f"- {', '.join(f'[{name}]({address})' for name, address in files.items())}"] if files else []),
        *([f"- command: {code(' '.join(argv))}"] if isinstance(argv, list) else []),
        "- nested runs are the stages that this run made; what it found made has its link below",
        "",
    ]
    rows = [
        f"| {_linked(f'{name}@{key12(stage.key)}', pages.get(stage.key))} | {_plain(stage.action)} |"
        for name, stage in run.stages.items()
    ]
    return _with_table("\n".join(lines), "| stage | planned |\n|---|---|", rows, TAG_CHARS)


def _from(record: Record, pages: Mapping[str, str]) -> str:
    """Models first: they are what people look for."""
    refs = sorted(record.inputs.values(), key=lambda ref: (ref.stage.startswith(("data.", "tokenizer")), ref.stage))
    named = [_linked(f"{ref.stage}@{key12(ref.key)}", pages.get(ref.key)) for ref in refs]
    more = [f"{len(named) - _PARENTS_FIRST} more"] * (len(named) > _PARENTS_FIRST)
    return f", from {', '.join([*named[:_PARENTS_FIRST], *more])}" if named else ""


def started_note(pipeline: str, run: str) -> str:
    return f"Recipe {code(pipeline)}, run {code(run)}: under way. Each nested run is a stage that it makes."


def _with_table(text: str, head: str, rows: Sequence[str], most: int) -> str:
    """The table added, as far as it fits into `most` characters; how many rows it lacks, it says."""
    if not rows:
        return text
    columns = head.partition("\n")[0].count("|") - 1
    text += f"\n{head}"
    for place, row in enumerate(rows):
        rest = f"\n| and {len(rows) - place} more |" + " |" * (columns - 1)
        if len(text) + len(row) + len(rest) + 2 > most:
            return f"{text}{rest}\n"
        text += f"\n{row}"
    return f"{text}\n"


def _linked(name: str, page: str | None) -> str:
    return code(name) if page is None else f"[{code(name)}]({page})"


def code(text: object) -> str:
    """Text of others as code: nothing in it is read as Markdown or HTML."""
    return f"`{_plain(text, '`|]')}`"


def _plain(text: object, bad: Iterable[str] = "`|<>[]()*_\\") -> str:
    """On one line, and without what would end the place where it stands."""
    plain = "".join(" " if character in bad else character for character in str(text))
    return " ".join(plain.split()) or "?"
