"""What must hold of a stage's inputs. Within one recipe the keys see to it; `--input ROLE=REF` can bring anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bam_core.errors import InvalidInput, Problem
from bam_core.graph.record import Record, artifact_digest
from bam_core.graph.stage import Stage, kind_of
from pipelines.stages import KINDS

TOKENIZER = "tokenizer.json"
REFERENCE = "reference."
"""With a domain's name after it: the role of the model that a training compares its loss on this domain with."""
IMPORT = "import"
"""The role of the imported model that a training goes on from."""
TEACHER = "teacher"
"""The role of the trained mixture that a distillation starts from and learns from."""
SEED_FILES = "settings"
"""The role of the imported seed whose settings of tokenizer and chat an export carries."""
EXPORTED = "model"
"""The folder inside an `export.*` artifact: a config.json at the top would be that of a model of ours."""


def require_fitting(stage: Stage, records: Mapping[str, Record]) -> None:
    """records: of the roles whose artifacts are known. Raises InvalidInput with all that does not fit."""
    problems = [*_of_wrong_kind(stage, records), *_of_other_tokenizer(records), *_of_other_seed(stage, records)]
    if problems:
        raise InvalidInput(f"inputs of {stage.name}", problems)


def _of_wrong_kind(stage: Stage, records: Mapping[str, Record]) -> Iterator[Problem]:
    for role, record in records.items():
        wanted, found = _kind(stage.inputs[role]), _kind(record.stage)
        if found != wanted:
            yield Problem(role, _name(record), f"is of kind {found!r}, must be {wanted!r}")


def _of_other_tokenizer(records: Mapping[str, Record]) -> Iterator[Problem]:
    """Equal ids must mean equal text, or experts are averaged and data is read as noise."""
    made_with = {role: digest for role, record in records.items() if (digest := _tokenizer(record)) is not None}
    for role, digest in made_with.items():
        first = next(iter(made_with))
        if digest != made_with[first]:
            expected = f"was made with another tokenizer than {_name(records[first])}"
            yield Problem(role, _name(records[role]), expected, "make both from one tokenizer")


def _of_other_seed(stage: Stage, records: Mapping[str, Record]) -> Iterator[Problem]:
    """Experts of one mixture branch from one seed: averages of unrelated weights are noise. (One that branched from
    another expert has its seed from there.)"""
    if stage.function != "mix":
        return
    starts = {role: record.inputs["seed"] for role, record in records.items() if "seed" in record.inputs}
    branched = {role: start.digest for role, start in starts.items() if kind_of(start.stage) == "seed"}
    seed = records.get("seed")
    wanted = seed.digest if seed is not None else next(iter(branched.values()), None)
    for role, digest in branched.items():
        if digest != wanted:
            other = _name(seed) if seed is not None else _name(records[next(iter(branched))])
            expected = f"was branched from another seed than {'' if seed is not None else 'that of '}{other}"
            yield Problem(role, _name(records[role]), expected, "train both from one seed")


def _tokenizer(record: Record) -> str | None:
    """Digest of the tokenizer artifact that the input holds a copy of, or was made with."""
    copies = [output for output in record.outputs if output.path == TOKENIZER]
    if copies:
        return artifact_digest(copies)
    return record.inputs["tokenizer"].digest if "tokenizer" in record.inputs else None


def _kind(stage: str) -> str:
    function = kind_of(stage)
    is_made = function in ("mix", "edit", "adopted", "import", "imported")
    is_model = is_made or (function in KINDS and KINDS[function].trains)
    return "model" if is_model else function


def _name(record: Record) -> str:
    return f"{record.stage}@{record.key[:12]}"
