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

_STATUS = {"done": "done", "failed": "failed", "interrupted": "interrupted", "running": "under way"}


def experiment_address(experiment_id: str) -> str:
    """This and all other addresses: the part after the host."""
    return f"#/experiments/{experiment_id}/runs"


def run_address(experiment_id: str, run_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def model_address(experiment_id: str, model_id: str) -> str:
    return f"#/experiments/{experiment_id}/models/{model_id}"


def search_address(experiment_id: str, condition: str) -> str:
    """The experiment's list of those runs for which MLflow's filter holds."""
    return f"{experiment_address(experiment_id)}?searchFilter={quote(condition, safe='')}"


def describe(record: Record, artifact: str, pages: Mapping[str, str], children: str) -> str:
    """Of the run or model of an artifact: what it is, made from what, where its children and files are.

    pages: key of an input -> its page, for those that have one. children: the page that lists what was made from it.
    """
    name = f"{record.stage}@{key12(record.key)}"
    made_by = record.provenance.get("run")
    lines = [
        f"**{record.stage}**, made in {record.seconds:,.1f} s, attempt {record.attempt}"
        + (f", by run {_code(made_by)}." if made_by else "."),
        "",
        f"- artifact: {_code(artifact)}",
        f"- made from it: [runs of this experiment]({children}), or `bam lineage {name} --down`",
        f"- what made it: `bam lineage {name}`",
        "",
    ]
    parents = [
        f"| {_plain(role)} | {_linked(f'{ref.stage}@{key12(ref.key)}', pages.get(ref.key))} |"
        for role, ref in sorted(record.inputs.items())
    ]
    files = [f"| {_code(output.path)} | {output.size:,} |" for output in record.outputs]
    note = _with_table("\n".join(lines), "| input | artifact |\n|---|---|", parents, TAG_CHARS * 3 // 4)
    return _with_table(note, "| file | bytes |\n|---|---:|", files, TAG_CHARS)


def describe_run(run: Run, pages: Mapping[str, str], has_report: bool) -> str:
    """Of the run of a pipeline. pages: key of an artifact -> its page, for those that were made."""
    argv = run.provenance.get("argv")
    took = "" if run.ended is None else f" after {run.ended - run.started:,.1f} s"
    lines = [
        f"Recipe {_code(run.pipeline)}, run {_code(run.name)}: {_STATUS[run.status]}{took}.",
        "",
        *([f"- command: {_code(' '.join(argv))}"] if isinstance(argv, list) else []),
        f"- recipe: `recipe.yaml`{', report: `report.html`' if has_report else ''}, graph: `lineage.html`,"
        " under Artifacts",
        "- nested runs are the stages that this run made; what it found made has its link below",
        "",
    ]
    rows = [
        f"| {_linked(f'{name}@{key12(stage.key)}', pages.get(stage.key))} | {_plain(stage.action)} |"
        for name, stage in run.stages.items()
    ]
    return _with_table("\n".join(lines), "| stage | planned |\n|---|---|", rows, TAG_CHARS)


def started_note(pipeline: str, run: str) -> str:
    return f"Recipe {_code(pipeline)}, run {_code(run)}: under way. Each nested run is a stage that it makes."


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
    return _code(name) if page is None else f"[{_code(name)}]({page})"


def _code(text: object) -> str:
    return f"`{_plain(text, '`|]')}`"


def _plain(text: object, bad: Iterable[str] = "`|<>[]()*_\\") -> str:
    """On one line, and without what would end the place where it stands."""
    plain = "".join(" " if character in bad else character for character in str(text))
    return " ".join(plain.split()) or "?"
