"""`agree`, and the table of oracles at the end of a run: name, largest absolute difference, tolerance.

A row has the comparison that used most of its tolerance. A run of other tests too ends with the closest row alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agreement import Agreement, Row, worst

ROWS = pytest.StashKey[dict[str, Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "oracle(name, each=True): a row, or one per case, in the table of oracles")
    config.stash[ROWS] = {}


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Iterator[Agreement]:
    """Compare two tensors and remember how far apart they were."""
    agreement = Agreement()
    yield agreement
    if not agreement.row.n_comparisons:
        return
    marker = request.node.get_closest_marker("oracle")
    name = marker.args[0] if marker else request.node.originalname
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and (marker is None or marker.kwargs.get("each", True)):
        name = f"{name} [{callspec.id}]"
    rows = request.config.stash[ROWS]
    rows[name] = worst(rows.get(name, Row()), agreement.row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section(f"{len(rows)} oracles: largest absolute difference")
    if _others_ran(terminalreporter):
        name, row = max(rows.items(), key=lambda item: item[1].used)
        closest = f"{name}, {row.difference:.1e} of {row.allowed:.1e}"
        terminalreporter.write_line(f"all of them: pytest tests/oracles; closest to its tolerance: {closest}")
        return
    width = max(map(len, rows))
    terminalreporter.write_line(f"{'oracle':<{width}}  compared  difference  tolerance")
    for name, row in sorted(rows.items()):
        figures = f"{row.n_comparisons:>8}  {row.difference:>10.1e}  {row.allowed:>9.1e}"
        terminalreporter.write_line(f"{name:<{width}}  {figures}")


def _others_ran(terminalreporter: pytest.TerminalReporter) -> bool:
    reports = [report for found in terminalreporter.stats.values() for report in found]
    return any("oracles/" not in report.nodeid for report in reports if isinstance(report, pytest.TestReport))
