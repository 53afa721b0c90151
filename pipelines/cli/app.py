"""The entry point: common options, errors in words, exit statuses.

Exit status: 0 done, 1 a stage failed, 2 bad usage or recipe, 3 lease held elsewhere, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from bam_core.errors import INTERRUPTED, BamError, UsageError
from pipelines.cli.commands import Commands
from pipelines.cli.sections import SECTIONS

if TYPE_CHECKING:
    from pipelines.wiring import Settings


@dataclass(frozen=True)
class Session:
    """The common options of one command, and where its output goes."""

    store: str = "./bam_store"
    tracking_uri: str | None = None
    address: str | None = None
    executor: str = "ray"
    json: bool = False
    verbose: bool = False
    typed: Mapping[str, str] | None = None
    """The options as they were typed (not taken from the environment), for the command that continues."""

    def settings(self) -> Settings:
        from pipelines.wiring import Settings

        return Settings(self.store, self.tracking_uri, self.address, self.executor, self.verbose)

    def answer(self, value: Any, text: Callable[[], str]) -> None:
        """The result: `value` as JSON with --json, else `text()` for people."""
        click.echo(
            json.dumps(value, indent=2, allow_nan=False, default=str) if self.json else text(),
            file=_answers(),
        )

    def progress_stream(self) -> TextIO:
        """Where a display writes: standard output belongs to the result when that is JSON."""
        return sys.stderr if self.json else _answers()


_stdout: TextIO | None = None


def _answers() -> TextIO:
    return _stdout or sys.stdout


@contextmanager
def _only_answers_on_stdout(wanted: bool) -> Iterator[None]:
    """With --json, what a library prints goes to standard error."""
    global _stdout
    if not wanted:
        yield
        return
    _stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout = None


_COMMON = (
    click.option("--store", metavar="URI", help="Where artifacts live. [BAM_STORE; default ./bam_store]"),
    click.option("--tracking-uri", metavar="URI", help="MLflow. [MLFLOW_TRACKING_URI; default SQLite in the store]"),
    click.option(
        "--address",
        metavar="ADDRESS",
        help="A Ray cluster: http://HOST:8265 runs a job there; a node of it may give HOST:PORT or auto. [RAY_ADDRESS]",
    ),
    click.option("--executor", type=click.Choice(["ray", "local"]), help="Where stages run. [BAM_EXECUTOR; ray]"),
    click.option("--json", "as_json", is_flag=True, help="One JSON value on standard output."),
    click.option("-v", "--verbose", is_flag=True, help="Everything that Ray and others have to say."),
)
_ENVIRONMENT = {
    "store": "BAM_STORE",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "address": "RAY_ADDRESS",
    "executor": "BAM_EXECUTOR",
}


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_COMMON):
        command = option(command)
    return command


def with_session(command: Callable[..., int | None]) -> Callable[..., Any]:
    """Gives a command its `Session`; common options may stand before its name or after it."""

    @common_options
    @click.pass_context
    @functools.wraps(command)
    def run(context: click.Context, /, **values: Any) -> int | None:
        here = {name: values.pop(name) for name in (*_ENVIRONMENT, "as_json", "verbose")}
        before = context.obj or {}
        given = {name: before.get(name) if value in (None, False) else value for name, value in here.items()}
        session = session_from(given)
        with _only_answers_on_stdout(session.json):
            return command(session, **values)

    return run


def session_from(given: Mapping[str, Any]) -> Session:
    """The common options as given, else from the environment. Raises UsageError."""
    typed = {name: given[name] for name in _ENVIRONMENT if given[name] is not None}
    for name, value in typed.items():
        if not value:  # of a variable of the shell that is not set, likely: the default would be another place
            raise UsageError(f"--{name.replace('_', '-')}: is empty; give a value, or leave it out")
    values = {name: os.environ[variable] for name, variable in _ENVIRONMENT.items() if os.environ.get(variable)} | typed
    if values.get("executor", "ray") not in ("ray", "local"):
        raise UsageError(f"BAM_EXECUTOR={values['executor']!r}: must be ray or local")
    return Session(**values, json=bool(given["as_json"]), verbose=bool(given["verbose"]), typed=typed)


@click.group(
    cls=Commands,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=("bam run quickstart", "bam generate train.bam 'The court held that'", "bam ui"),
)
@click.version_option(package_name="bam", prog_name="bam")
@common_options
@click.pass_context
def bam(context: click.Context, /, **given: Any) -> None:
    """Branch-Attend-Mix: turn one dense language model into a mixture of experts, with lineage.

    RECIPE is a path or the name of a shipped recipe. REF is `stage`, `stage@keyprefix`, `stage@latest` or an
    MLflow model id. Exit status: 0 done, 1 a stage failed, 2 bad usage or recipe, 3 lease held elsewhere,
    130 interrupted.
    """
    context.obj = given
    if os.environ.get("NO_COLOR"):
        context.color = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit status; every error is words on standard error."""
    from pipelines.cli import (
        artifacts,
        card,
        chatting,
        comparing,
        completing,
        doctor,
        exchange,
        experts,
        exporting,
        fit,
        house,
        importing,
        init,
        jobs,
        listing,
        moving,
        pace,
        promoting,
        reporting,
        results,
        runs,
        scoring,
        serving,
        verifying,
        views,
        weighing,
    )

    modules = (
        init,
        runs,
        jobs,
        listing,
        moving,
        artifacts,
        card,
        chatting,
        comparing,
        reporting,
        experts,
        exchange,
        importing,
        exporting,
        fit,
        promoting,
        verifying,
        house,
        views,
        doctor,
        scoring,
        serving,
        weighing,
        pace,
        results,
        completing,
    )
    for module in modules:
        for command in module.COMMANDS:
            bam.add_command(command)
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = bam.main(args=args, prog_name="bam", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except BamError as error:
        click.echo(f"bam: {_masked(error)}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("bam: interrupted; the same command continues", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _unexpected(error, verbose="-v" in args or "--verbose" in args)
        return 1


def _masked(error: Exception) -> str:
    """Without what a person has put into a URL, or a library into its message, and should not be seen."""
    from pipelines.wiring import mask_text

    return mask_text(str(error))


def _unexpected(error: Exception, verbose: bool) -> None:
    """A bug: one line, and where the traceback is."""
    if verbose:
        traceback.print_exception(error)
        return
    with tempfile.NamedTemporaryFile("w", prefix="bam-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    reason = _masked(error).splitlines()[0] if str(error) else ""
    click.echo(f"bam: unexpected {type(error).__name__}: {reason} (traceback: {Path(log.name)}, or -v)", err=True)
