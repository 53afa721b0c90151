"""What the tests share: one Ray for the whole session, one thread each, no deadline for hypothesis, and an environment
that each test leaves as it found it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&`: what the tests start would never hear ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("bam", deadline=None)  # a loaded machine is not a wrong answer
settings.load_profile("bam")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What commands set for their own process ends with the test: it outlived them, and a Ray started by a later test
    asked for a token that its driver, which had read the environment before, did not show."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """An embedded Ray with two CPUs, quiet."""
    from infra import ray_env

    ray_env.prepare(verbose=False, embedded=True)
    import ray

    from infra.ray_executor import start_ray

    # The tests' own task functions are imported by name in Ray's processes, which inherit this environment.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "infra")
    start_ray(None, n_cpus=2, verbose=False)
    yield
    ray.shutdown()
