"""Jobs of a Ray cluster, over the HTTP address of its dashboard: submit, follow to the true end, list, stop.

The stream of a job's log may end early or lose its tail, so an end of the stream is never taken for the end of the
job: its status is asked for, and what the stream has lost is printed from the whole log. Every way in which the
cluster can refuse is a UsageError in words.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bam_core.errors import UsageError, nearest
from infra import ray_env
from infra.provenance import mask_text

T = TypeVar("T")

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_STATUS = 130
NOT_STARTED = (126, 127)
"""What a shell says of a program that it does not find or may not run."""
POLL_S = 1.0
IDLE_S = 60.0
"""A stream that is silent for as long is opened again: it may hang where a network drops packets."""
PATIENCE_S = 60.0
"""For a dashboard that was there and is away for a moment, or that has no agent for jobs yet."""
TIMEOUTS_S = (10, 120)
"""To connect, and to answer (a package is uploaded within one request)."""
STOP_WAIT_S = 20
"""What a stopped job gets to end in order (to give up its leases), before Ray kills it."""


@dataclass(frozen=True)
class Job:
    """status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. started, ended: seconds since 1970."""

    id: str
    status: str
    entrypoint: str
    started: float | None
    ended: float | None
    message: str
    driver_exit_code: int | None
    metadata: Mapping[str, str]

    @property
    def is_ended(self) -> bool:
        return self.status in ENDED

    @property
    def exit_status(self) -> int | None:
        """Of the command that ran, as a shell has it; None while the job is going."""
        if not self.is_ended:
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED_STATUS
        code = self.driver_exit_code
        if code in NOT_STARTED:
            return 2
        return code if code is not None and 0 < code < 126 else 1


class RayJobs:
    """Raises UsageError, at once, if no cluster of this Ray's version answers at `address`."""

    def __init__(self, address: str, verbose: bool = False) -> None:
        self.address = checked_address(address)
        self.shown = mask_text(self.address)
        ray_env.use_token()
        with self._explained():
            self._client = _client(self.address, verbose)
            self.ray_version: str = self._client.ray_version()
        self._require_version()

    def _require_version(self) -> None:
        import ray

        if self.ray_version != ray.__version__:
            raise UsageError(
                f"{self.shown}: the cluster has Ray {self.ray_version}, here is {ray.__version__}; "
                f"install the same on both (constraints.txt pins {ray.__version__})"
            )

    def submit(
        self, job_id: str, entrypoint: str, package: Path, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> bool:
        """Send the package and start the job. False if a job of this id is there already."""
        wait = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        request = {
            "entrypoint": entrypoint,
            "submission_id": job_id,
            "runtime_env": {"working_dir": str(package), "env_vars": {**env, **wait}},
            "metadata": dict(metadata),
        }
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._explained():
                    self._client.submit_job(**request)
                return True
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if not _is_passing(error) or time.monotonic() > until:
                    raise UsageError(f"{self.shown}: cannot submit: {_reason(error)}") from error
                time.sleep(POLL_S)

    def jobs(self) -> list[Job]:
        """All that were submitted, the newest first."""
        found = [_job(details) for details in self._ask(lambda: self._client.list_jobs()) if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def job(self, job_id: str) -> Job:
        """Raises UsageError if there is none of this id."""
        return _job(self._ask(lambda: self._client.get_job_info(job_id), job_id))

    def logs(self, job_id: str) -> str:
        log: str = self._ask(lambda: self._client.get_job_logs(job_id), job_id)
        return log

    def stop(self, job_id: str) -> Job:
        """Stop it and wait until it has ended; one that has ended is left as it is."""
        job = self.job(job_id)
        if not job.is_ended:
            self._ask(lambda: self._client.stop_job(job_id), job_id)
        until = time.monotonic() + STOP_WAIT_S + PATIENCE_S
        while not job.is_ended and time.monotonic() < until:
            time.sleep(POLL_S)
            job = self.job(job_id)
        return job

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Write the whole log as it grows, until the job has ended."""
        return asyncio.run(self._follow(job_id, write))

    async def _follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        n_written = 0
        while True:
            n_seen = 0  # the stream begins with the log's first line each time
            async for chunk in self._stream(job_id):
                if new := chunk[max(0, n_written - n_seen) :]:
                    write(new)
                    n_written += len(new)
                n_seen += len(chunk)
            job = self.job(job_id)
            if job.is_ended:
                break
            await asyncio.sleep(POLL_S)
        write(self.logs(job_id)[n_written:])
        return job

    async def _stream(self, job_id: str) -> AsyncIterator[str]:
        """The log in pieces, until the stream ends, breaks or is silent; it never raises."""
        pieces = self._client.tail_job_logs(job_id)
        try:
            while True:
                yield await asyncio.wait_for(anext(pieces), IDLE_S)
        except (StopAsyncIteration, TimeoutError):
            return
        except (RuntimeError, OSError, _http_error()):
            return
        finally:
            with suppress(Exception):
                await pieces.aclose()

    def _ask(self, call: Callable[[], T], job_id: str | None = None) -> T:
        """The answer, with patience for a dashboard that is away for a moment."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._explained():
                    return call()
            except UsageError as error:
                if not isinstance(error, _Away) or time.monotonic() > until:
                    raise
            except RuntimeError as error:
                if job_id is not None and "status code 404" in str(error):
                    raise UsageError(f"{self.shown} has no job {job_id!r}: {self._nearest(job_id)}") from None
                if not _is_passing(error) or time.monotonic() > until:
                    raise UsageError(f"{self.shown}: {_reason(error)}") from error
            time.sleep(POLL_S)

    def _nearest(self, job_id: str) -> str:
        known = [job.id for job in self.jobs()]
        return nearest(job_id, known) if known else "it has none; `bam jobs` lists them"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the client and the network raise, as words. RuntimeErrors (the server's answers) pass."""
        from ray.exceptions import AuthenticationError
        from requests import JSONDecodeError, RequestException

        try:
            yield
        except AuthenticationError as error:
            raise UsageError(f"{self.shown}: {_token_words(str(error))}") from error
        except (JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{self.shown} answers, but not as the dashboard of a Ray cluster does") from error
        except (RequestException, ConnectionError) as error:
            raise _Away(
                f"{self.shown}: no Ray cluster answers; is it up, and its dashboard's port forwarded "
                "(`ray dashboard CLUSTER.yaml`)?"
            ) from error


class _Away(UsageError):
    pass


def checked_address(address: str) -> str:
    """Without a last slash. Raises UsageError if it is no http(s) address of a host."""
    shown = mask_text(address)
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_good = False
    if not is_good:
        raise UsageError(f"--address {shown}: must read http://HOST:8265, the address of a cluster's dashboard")
    if "@" in parts.netloc or parts.query:
        raise UsageError(
            f"--address {shown}: must hold no password or query; give the token in RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH"
        )
    return address.rstrip("/")


def _client(address: str, verbose: bool) -> Any:
    """Ray's client for this address (the environment would win over its argument), which waits no longer than a bound.

    Imported here: Ray takes a second, and a command that is wrong is told before.
    """
    from ray.job_submission import JobSubmissionClient

    if not verbose:
        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUTS_S, **options})

        def ray_version(self) -> str:
            return str(self._do_request("GET", "/api/version").json()["ray_version"])

    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return Client(address)
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _http_error() -> type[Exception]:
    from aiohttp import ClientError

    return ClientError


def _job(details: Any) -> Job:
    """From Ray's JobDetails."""
    return Job(
        details.submission_id,
        str(details.status),
        details.entrypoint,
        None if details.start_time is None else details.start_time / 1000,
        None if details.end_time is None else details.end_time / 1000,
        details.message or "",
        details.driver_exit_code,
        details.metadata or {},
    )


def _is_passing(error: RuntimeError) -> bool:
    """A cluster that has just started, or a head that is replaced, has no agent for jobs for a few seconds."""
    words = str(error)
    return any(part in words for part in ("No available agent", "Failed to get head node agent", "status code 503"))


def _token_words(answer: str) -> str:
    if answer.startswith("Authentication failed"):
        return (
            "the cluster refuses this token; RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token must hold its own"
        )
    if answer.startswith("RAY_AUTH_TOKEN_PATH"):
        return answer.partition(". ")[0]
    return "the cluster wants a token; put it in ~/.ray/auth_token, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def _reason(error: Exception) -> str:
    """The last line: the server answers with its traceback."""
    return mask_text(str(error)).strip().rpartition("\n")[2][:500]
