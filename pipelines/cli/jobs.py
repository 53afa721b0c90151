"""`bam submit`, `bam jobs`, `bam logs`, `bam stop`: a run as a job of a Ray cluster."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bam_core.errors import INTERRUPTED, UsageError
from bam_core.graph.select import Selection
from pipelines.cli import completing, text
from pipelines.cli import options as shared
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from pipelines.recipe import Recipe
    from pipelines.wiring import Job, RayJobs, Submitted


def is_job(session: Session) -> bool:
    """Whether `--address` is that of a dashboard: then a command runs as a job there."""
    return (session.address or "").startswith(("http://", "https://"))


@click.command(
    cls=Command,
    examples=(
        "bam submit quickstart --address http://127.0.0.1:8265 --store s3://bucket/bam",
        "bam submit mine.yaml --detach --until train.bam --address http://127.0.0.1:8265",
    ),
)
@click.argument("recipe", shell_complete=completing.recipes)
@shared.set_
@shared.only
@shared.from_
@shared.until
@shared.force
@shared.max_parallel
@shared.wait
@shared.keep_going
@click.option("--detach", is_flag=True, help="Do not follow it; `bam logs JOB --follow` does.")
@click.option("--again", is_flag=True, help="Run it again although the same run has ended well.")
@click.option("--python", default="python", show_default=True, metavar="PROGRAM", help="The Python there.")
@with_session
def submit(
    session: Session,
    recipe: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    from_: tuple[str, ...],
    until: tuple[str, ...],
    force: tuple[str, ...],
    max_parallel: int | None,
    wait: bool,
    keep_going: bool,
    **how: Any,
) -> int:
    """`bam run RECIPE` as a job of the cluster whose dashboard is at --address http://HOST:8265.

    Follows its log to the end; the exit status is the job's. ctrl-C leaves the job running. The same submission twice
    is one job; one that has failed is continued.
    """
    from pipelines.recipe import load_recipe

    options = run_options(only, from_, until, force, max_parallel, wait, keep_going)
    selection = Selection(only, from_, until, force)
    return send(session, ("run",), recipe, load_recipe(recipe, sets, look=shared.look), sets, options, selection, **how)


def run_options(
    only: Sequence[str],
    from_: Sequence[str],
    until: Sequence[str],
    force: Sequence[str],
    max_parallel: int | None,
    wait: bool,
    keep_going: bool,
) -> dict[str, Sequence[str] | bool]:
    """The options of `bam run` that go with a job."""
    return {
        "--only": only,
        "--from": from_,
        "--until": until,
        "--force": force,
        "--max-parallel": () if max_parallel is None else (str(max_parallel),),
        "--no-wait": not wait,
        "--fail-fast": not keep_going,
    }


def send(
    session: Session,
    command: tuple[str, ...],
    name: str,
    recipe: Recipe,
    sets: Sequence[str],
    options: Mapping[str, Sequence[str] | bool],
    selection: Selection,
    *,
    detach: bool = False,
    again: bool = False,
    python: str = "python",
) -> int:
    """Submit `command` on the recipe, called `name` here, and follow it unless detached."""
    if session.executor == "local":
        raise UsageError(
            "--executor local runs in this process; a job needs --executor ray (or none, without --address)"
        )
    from pipelines import wiring

    typed = "submit" if command == ("run",) else command[0]
    to_continue = {"--set": sets, **{option: given for option, given in options.items() if option != "--force"}}
    words = shared.command(typed, [*command[1:], name], to_continue, session)
    asked = wiring.Submission(command, tuple(shared.words_of(options)), tuple(words), python)
    stream = session.progress_stream()

    def say(words: str) -> None:
        print(words, file=stream, flush=True)

    done = wiring.submit(recipe, session.settings(), selection, asked, again=again, say=say)
    say(_sent_text(done))
    if detach:
        session.answer(_value(done.job, session, done), lambda: _hints(done.job, session))
        return 0
    return follow(wiring.open_jobs(session.settings()), done.job, session, done)


def follow(jobs: RayJobs, job: Job, session: Session, sent: Submitted | None = None) -> int:
    """Its log to the end; the exit status is the job's. ctrl-C lets it run on."""
    stream = session.progress_stream()

    def write(piece: str) -> None:
        stream.write(piece)
        stream.flush()

    try:
        job = jobs.follow(job.id, write)
    except KeyboardInterrupt:
        click.echo(f"\nbam: detached; {job.id} runs on\n{_hints(job, session)}", err=True)
        return INTERRUPTED
    if job.status == "FAILED" and job.driver_exit_code in (None, 126, 127):
        click.echo(f"bam: {job.id}: {_why(job)}", err=True)
    session.answer(_value(job, session, sent), lambda: _end_text(job))
    return job.exit_status or 0


@click.command(
    cls=Command,
    examples=("bam jobs --address http://127.0.0.1:8265",),
)
@with_session
def jobs(session: Session) -> None:
    """The jobs of the cluster at --address, the newest first."""
    from pipelines import wiring

    found = wiring.open_jobs(session.settings()).jobs()
    session.answer([_value(job, session) for job in found], lambda: _jobs_text(found))


@click.command(
    cls=Command,
    examples=("bam logs bam-quickstart-0123456789ab --follow --address http://127.0.0.1:8265",),
)
@click.argument("job")
@click.option("-f", "--follow", "follows", is_flag=True, help="To its end; the exit status is the job's.")
@with_session
def logs(session: Session, job: str, follows: bool) -> int:
    """What JOB has printed."""
    from pipelines import wiring

    cluster = wiring.open_jobs(session.settings())
    found = cluster.job(job)
    if follows:
        return follow(cluster, found, session)
    log = cluster.logs(job)
    session.answer({**_value(found, session), "log": log}, lambda: log.rstrip("\n"))
    return 0


@click.command(
    cls=Command,
    examples=("bam stop bam-quickstart-0123456789ab --address http://127.0.0.1:8265",),
)
@click.argument("job")
@with_session
def stop(session: Session, job: str) -> int:
    """End JOB in order. What is done is kept, and the same submission continues it."""
    from pipelines import wiring

    cluster = wiring.open_jobs(session.settings())
    before, after = cluster.job(job), cluster.stop(job)
    if not after.is_ended:
        raise UsageError(f"{job}: asked to stop, and still {after.status}; `bam jobs` tells when it has ended")
    was = "has ended before" if before.is_ended else "what is done is kept, and the same submission continues"
    session.answer(_value(after, session), lambda: f"{job}: {_styled(after)}; {was}")
    return 0


COMMANDS = (submit, jobs, logs, stop)


def _sent_text(done: Submitted) -> str:
    job = done.job
    if done.is_new:
        return f"submitted {job.id} ({text.size(done.package_bytes or 0)} sent)"
    if job.status == "SUCCEEDED":
        return f"{job.id} has run already and ended well; --again runs it again. Its log:"
    return f"{job.id} was submitted before and is {job.status}: not submitted again"


def _hints(job: Job, session: Session) -> str:
    address = shlex.quote(session.address or "")
    return f"  bam logs {job.id} --follow --address {address}\n  bam stop {job.id} --address {address}"


def _end_text(job: Job) -> str:
    took = f" in {text.duration(job.ended - job.started)}" if job.started and job.ended else ""
    return f"{job.id}: {_styled(job)}{took}"


def _why(job: Job) -> str:
    """Why a job failed that has not come as far as to say so in its log."""
    if job.driver_exit_code in (126, 127):
        return f"the cluster cannot run {job.entrypoint.split()[0]!r}; give --python PROGRAM, a path there"
    return job.message.strip()[:2000] or "failed without a word"


def _styled(job: Job) -> str:
    state = {"SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "interrupted", "RUNNING": "running"}
    return click.style(job.status, fg=text.COLOURS.get(state.get(job.status, "")))


def _jobs_text(found: Sequence[Job]) -> str:
    rows = []
    for job in found:
        end = job.ended or time.time()
        took = text.duration(end - job.started) if job.started else ""
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)) if job.started else ""
        rows.append([job.id, _styled(job), started, took, job.metadata.get("command", job.entrypoint)])
    return text.table(["job", "status", "started", "took", "command"], rows) if rows else "no jobs"


def _value(job: Job, session: Session, sent: Submitted | None = None) -> dict[str, Any]:
    value = {
        "job": job.id,
        "status": job.status,
        "exit_status": job.exit_status,
        "address": session.address,
        "started": job.started,
        "ended": job.ended,
        "entrypoint": job.entrypoint,
        **{name: job.metadata.get(name) for name in ("recipe", "command", "commit")},
    }
    if sent is not None:
        value |= {"is_new": sent.is_new, "package_bytes": sent.package_bytes}
    return value
