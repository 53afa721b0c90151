"""`documents.parquet` of one evaluation for each seed, as arrays for `bam_core.evaluate.significance`.

What is compared must have been scored on the same text: the same documents with as many tokens each, of every model and
under every seed. Otherwise the error names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bam_core.errors import ArtifactDamaged
from bam_core.evaluate.resample import DocumentScores

COLUMNS = {
    "model": pa.string(),
    "domain": pa.string(),
    "document": pa.int64(),
    "nll": pa.float64(),
    "tokens": pa.int64(),
}
MOST_NAMED = 5
"""Documents that an error names."""


@dataclass(frozen=True)
class _Scored:
    """One model on one domain, by document number. Where: the file and both names, for an error."""

    where: str
    numbers: np.ndarray[Any, np.dtype[np.int64]]
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    nll: np.ndarray[Any, np.dtype[np.float64]]


def read_documents(files: Mapping[int, Path]) -> DocumentScores:
    """seed -> its file. Raises ArtifactDamaged for one that cannot be read, or that was scored on other documents."""
    read = {seed: _read(path) for seed, path in files.items()}
    first = next(iter(read.values()))
    models, domains = list(first), list(next(iter(first.values())))
    for seed, found in read.items():
        _check_names(files[seed], "models", list(found), models)
        for model, scored in found.items():
            _check_names(files[seed], f"domains of {model}", list(scored), domains)
            for domain in domains:
                _check_documents(scored[domain], first[models[0]][domain])
    of_first = first[models[0]]
    return DocumentScores(
        tuple(files),
        {domain: of_first[domain].numbers for domain in domains},
        {domain: of_first[domain].tokens for domain in domains},
        {m: {d: np.stack([found[m][d].nll for found in read.values()]) for d in domains} for m in models},
    )


def _read(path: Path) -> dict[str, dict[str, _Scored]]:
    """Model -> domain -> its documents, in the file's order of models and domains."""
    try:
        table = pq.read_table(path, schema=pa.schema(list(COLUMNS.items())))
    except (OSError, pa.ArrowException) as error:
        raise ArtifactDamaged(f"{path}: cannot be read as documents with {', '.join(COLUMNS)} ({error})") from error
    empty = [name for name in COLUMNS if table[name].null_count]
    if empty or not table.num_rows:
        raise ArtifactDamaged(f"{path}: has {'no value in some rows of ' + ', '.join(empty) if empty else 'no rows'}")
    names = {key: table[key].combine_chunks().dictionary_encode() for key in ("model", "domain")}
    codes = {key: encoded.indices.to_numpy() for key, encoded in names.items()}
    numbers, tokens, nll = (table[key].to_numpy() for key in ("document", "tokens", "nll"))
    found: dict[str, dict[str, _Scored]] = {}
    for i, model in enumerate(names["model"].dictionary.to_pylist()):
        for j, domain in enumerate(names["domain"].dictionary.to_pylist()):
            rows = np.flatnonzero((codes["model"] == i) & (codes["domain"] == j))
            rows = rows[np.argsort(numbers[rows], kind="stable")]
            if len(rows):
                scored = _Scored(f"{path}: {model} on {domain}", numbers[rows], tokens[rows], nll[rows])
                twice = scored.numbers[1:][np.diff(scored.numbers) == 0]
                if len(twice):
                    raise ArtifactDamaged(f"{scored.where}: has {_documents(twice)} twice")
                found.setdefault(model, {})[domain] = scored
    return found


def _check_names(path: Path, what: str, found: list[str], expected: list[str]) -> None:
    missing, more = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or more:
        parts = [f"{words} {', '.join(names)}" for words, names in (("lacks", missing), ("has also", more)) if names]
        raise ArtifactDamaged(f"{path}: of the {what} that were scored, {' and '.join(parts)}: not to be compared")


def _check_documents(scored: _Scored, reference: _Scored) -> None:
    for words, numbers in (
        ("lacks", np.setdiff1d(reference.numbers, scored.numbers)),
        ("has also", np.setdiff1d(scored.numbers, reference.numbers)),
    ):
        if len(numbers):
            raise ArtifactDamaged(f"{scored.where}: {words} {_documents(numbers)} beside {reference.where}")
    differ = scored.numbers[scored.tokens != reference.tokens]
    if len(differ):
        raise ArtifactDamaged(f"{scored.where}: has other tokens in {_documents(differ)} than {reference.where}")


def _documents(numbers: Any) -> str:
    """`document 3`, `documents 3, 17 and 12 more`."""
    shown = ", ".join(str(number) for number in numbers[:MOST_NAMED])
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"document{'s' if len(numbers) > 1 else ''} {shown}{more}"
