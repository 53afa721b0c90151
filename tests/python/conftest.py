from tests.e2e.fixtures import finished

__all__ = ["finished"]
