from tests.e2e.fixtures import done, empty, finished, up_to

__all__ = ["done", "empty", "finished", "up_to"]
