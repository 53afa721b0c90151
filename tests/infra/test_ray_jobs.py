"""`RayJobs` before a stand-in for Ray's client: streams that end early, heads that are not ready, other clusters."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from bam_core.errors import UsageError
from infra import ray_jobs
from infra.ray_jobs import RayJobs, checked_address

ADDRESS = "http://head:8265"
LOG = "first\nsecond\nthe error that matters\n"


@dataclass
class FakeClient:
    """streams: what each opening of the log gives; an exception breaks it. Ends after them. answers: to submit_job."""

    streams: list[list[Any]] = field(default_factory=list)
    statuses: list[str] = field(default_factory=lambda: ["SUCCEEDED"])
    answers: list[Any] = field(default_factory=list)
    version: str = ray.__version__
    exit_code: int | None = None
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def ray_version(self) -> str:
        return self.version

    def submit_job(self, **request: Any) -> str:
        self.submitted.append(request)
        if self.answers and isinstance(answer := self.answers.pop(0), Exception):
            raise answer
        return str(request["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.streams.pop(0) if self.streams else []:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_info(self, job_id: str) -> JobDetails:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "gone":
            raise RuntimeError("Request failed with status code 404: Job gone does not exist.")
        return JobDetails(
            type=JobType.SUBMISSION,
            submission_id=job_id,
            status=JobStatus(status),
            entrypoint="python start.py",
            driver_exit_code=self.exit_code,
        )

    def get_job_logs(self, job_id: str) -> str:
        return LOG

    def list_jobs(self) -> list[JobDetails]:
        return [self.get_job_info("bam-tiny-1")] if self.statuses != ["gone"] else []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(ray_jobs, "_client", lambda address, verbose: client)
    monkeypatch.setattr(ray_jobs, "POLL_S", 0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return client


@pytest.mark.parametrize(
    "streams",
    [
        [["first\n", "second\n", "the error that matters\n"]],
        [["first\n"]],
        [],
        [["first\n", "sec", RuntimeError("closed")], [OSError("reset")], ["first\nsecond\nth", "e error"]],
    ],
    ids=["whole", "lost its tail", "nothing came", "broke twice"],
)
def test_a_followed_log_is_whole_and_printed_once(fake: FakeClient, streams: list[list[Any]]) -> None:
    fake.streams, fake.statuses = streams, ["RUNNING", "RUNNING", "RUNNING", "FAILED"]
    fake.exit_code = 3
    written: list[str] = []
    job = RayJobs(ADDRESS).follow("bam-tiny-1", written.append)
    assert "".join(written) == LOG
    assert (job.status, job.exit_status) == ("FAILED", 3)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 3, 3),
        ("FAILED", 127, 2),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_exit_status_of_a_job(fake: FakeClient, status: str, code: int | None, expected: int | None) -> None:
    fake.statuses, fake.exit_code = [status], code
    assert RayJobs(ADDRESS).job("x").exit_status == expected


NOT_READY = "Request failed with status code 500: Traceback\nNo available agent to submit job, please try again later."
TAKEN = "Request failed with status code 500: ValueError: Job with submission_id bam-tiny-1 already exists."


def send(jobs: RayJobs, tmp_path: Any) -> bool:
    return jobs.submit("bam-tiny-1", "python start.py", tmp_path / "package.zip", {"A": "b"}, {"recipe": "tiny"})


def test_a_head_without_an_agent_yet_is_asked_again(fake: FakeClient, tmp_path: Any) -> None:
    fake.answers = [RuntimeError(NOT_READY), RuntimeError(NOT_READY)]
    assert send(RayJobs(ADDRESS), tmp_path)
    assert len(fake.submitted) == 3


def test_a_job_that_another_submitter_has_made_is_no_error(fake: FakeClient, tmp_path: Any) -> None:
    fake.answers = [RuntimeError(TAKEN)]
    assert not send(RayJobs(ADDRESS), tmp_path)


def test_another_refusal_is_told_by_its_last_line(fake: FakeClient, tmp_path: Any) -> None:
    fake.answers = [RuntimeError("Request failed with status code 500: Traceback\nValueError: no such thing")]
    with pytest.raises(UsageError, match=r"http://head:8265: cannot submit: ValueError: no such thing"):
        send(RayJobs(ADDRESS), tmp_path)


def test_another_version_of_ray_is_refused(fake: FakeClient) -> None:
    fake.version = "2.9.3"
    with pytest.raises(UsageError, match=rf"has Ray 2\.9\.3, here is {ray.__version__}; install the same"):
        RayJobs(ADDRESS)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Failed to connect"), "no Ray cluster answers"),
        (AuthenticationError("Authentication failed: Forbidden"), "refuses this token"),
        (AuthenticationError("Authentication required: Unauthorized"), "wants a token; put it in"),
        (KeyError("ray_version"), "not as the dashboard of a Ray cluster"),
    ],
)
def test_a_cluster_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, fake: FakeClient
) -> None:
    def refuse(address: str, verbose: bool) -> None:
        raise error

    monkeypatch.setattr(ray_jobs, "_client", refuse)
    with pytest.raises(UsageError, match=words) as raised:
        RayJobs(ADDRESS)
    assert raised.value.exit_code == 2


def test_an_unknown_job_is_told_the_nearest(fake: FakeClient) -> None:
    fake.statuses = ["gone", "SUCCEEDED"]
    with pytest.raises(UsageError, match=r"no job 'bam-tiny-2': did you mean 'bam-tiny-1'\?"):
        RayJobs(ADDRESS).job("bam-tiny-2")


@pytest.mark.parametrize(
    "address", ["head:8265", "http://", "http://head:port", "ray://head:10001", "http://me:secret@head:8265"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError) as raised:
        checked_address(address)
    assert "http://HOST:8265" in str(raised.value) or "must hold no password" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_last_slash_is_no_part_of_an_address() -> None:
    assert checked_address("https://head/ray/") == "https://head/ray"


def test_the_environment_does_not_decide_which_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client prefers both variables to the address that it is given."""
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:2")
    monkeypatch.setattr(JobSubmissionClient, "_check_connection_and_version", lambda *a, **o: None)
    client = ray_jobs._client("http://here:3", verbose=False)
    assert client.get_address() == "http://here:3"
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://elsewhere:2"
