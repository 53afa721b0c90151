"""What the tests share: one Ray for the whole session, one thread each, no deadline for hypothesis, an environment that
each test leaves as it found it, and draws that do not depend on which tests ran before.

pytest-randomly shuffles the files and the tests of each; its seed is printed first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&`: what the tests start would never hear ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("bam", deadline=None)  # a loaded machine is not a wrong answer
settings.load_profile("bam")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whoever asks for Ray is marked `ray`: `tests.run` keeps such tests apart."""
    if "ray_cluster" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.ray)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folder after folder, the files of each as they were shuffled: what a folder's tests share is started once, and
    ends before those of the next begin."""
    items.sort(key=lambda item: item.path.parent)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """torch's own generator, from which modules of other libraries draw: each test has its seed, in any order."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(crc32(item.nodeid.encode()))


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
