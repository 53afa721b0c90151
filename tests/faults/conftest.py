from collections.abc import Iterator

import pytest

from tests.e2e.fixtures import done, empty, finished, up_to
from tests.faults.processes import end_all

__all__ = ["done", "empty", "finished", "up_to"]


@pytest.fixture(autouse=True)
def _leave_no_process() -> Iterator[None]:
    yield
    end_all()
