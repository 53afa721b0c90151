"""Which files are changed on purpose, and the tests that must notice: where a wrong number would look like a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Area:
    """files, tests: paths from the root of the project, or patterns of them."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = (
    Area(
        "routing",
        ("bam_core/nn/routing.py", "bam_core/nn/losses.py", "bam_core/upcycle/router_init.py"),
        (
            "tests/core/test_nn_routing*.py",
            "tests/core/test_nn_losses.py",
            "tests/core/test_nn_moe.py",
            "tests/core/test_plugins.py",
            "tests/core/test_router_init.py",
            "tests/oracles/test_router_losses.py",
        ),
    ),
    Area(
        "upcycling",
        ("bam_core/upcycle/merge.py", "bam_core/upcycle/rules.py", "bam_core/upcycle/apply.py"),
        ("tests/core/test_upcycle*.py", "tests/core/test_shared_upcycle.py", "tests/core/test_plugins.py"),
    ),
    Area(
        "planning",
        (
            "bam_core/graph/key.py",
            "bam_core/graph/plan.py",
            "bam_core/graph/schedule.py",
            "bam_core/graph/select.py",
        ),
        ("tests/core/test_graph_*.py",),
    ),
)
