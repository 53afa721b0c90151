from __future__ import annotations

import click
import pytest

from pipelines.cli import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (41234.0, "41.2k"),
        (999_999, "1M"),
        (1.5e12, "1.5T"),
        (0.5, "0.5"),
    ],
)
def test_counts(value: float, shown: str) -> None:
    assert text.count(value) == shown


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (150 * 1024, "150 KiB"),
        (1024**3 * 2, "2.0 GiB"),
    ],
)
def test_sizes(n_bytes: int, shown: str) -> None:
    assert text.size(n_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (75.2, "1m 15s"),
        (3600, "1h 00m"),
        (3 * 86400 + 7200, "3d 02h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_metrics_show_numbers_only() -> None:
    values = {"loss": 3.14159, "note": "x", "tokens": 2_000_000, "bad": float("nan"), "more": 1}
    assert text.metrics(values) == "loss 3.142  tokens 2M  bad nan"


def test_tables_line_up_whatever_the_colour() -> None:
    rows = [["a", "1"], [click.style("long", fg="red"), "10"]]
    assert click.unstyle(text.table(["name", "n"], rows, right=(1,))) == "name   n\na      1\nlong  10"
