"""Opens the models that `bam check` is asked about: folders, ids of the hub, adapters, references of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bam_core.checkpoint import TensorSource
from bam_core.data.tokenize import Tokenizer
from bam_core.errors import InvalidInput, Problem, UsageError
from bam_core.nn.shapes import tensor_shapes
from bam_core.upcycle.distance import Distance, distances
from bam_core.upcycle.fit import Fit, Model, fit
from bam_core.upcycle.opening import TOKENIZER, Opened, open_checkpoint
from bam_core.upcycle.vocabulary import Rule, common_vocabulary
from bam_core.upcycle.vocabulary_rows import CommonRows
from infra import hub_models
from infra.model_sources import place_of
from pipelines.wiring.origins import model_record, whole_folder
from pipelines.wiring.settings import Settings, open_store


@dataclass(frozen=True)
class _Looked:
    model: Model
    opened: Opened | None


def check_fit(sources: Sequence[str], rule: Rule, settings: Settings, *, weights: bool = True) -> Fit:
    """Whether these can be mixed; the first is the seed. weights: read them, for their distance from the seed's.

    Raises UsageError for fewer than two, and for one that is neither a folder, a hub's id nor a reference.
    """
    if len(sources) < 2:
        raise UsageError("give the seed, and at least one model to mix with it: bam check SEED EXPERT ...")
    folders = [_folder(source, settings) for source in sources]
    names = _names(sources)
    seed = _look(names[0], folders[0], None)
    looked = [seed, *(_look(name, folder, seed.opened) for name, folder in zip(names[1:], folders[1:], strict=True))]
    found = {one.model.name: _distances(seed, one) for one in looked[1:]} if weights else {}
    return fit([one.model for one in looked], rule, {name: each for name, each in found.items() if each})


def _names(sources: Sequence[str]) -> list[str]:
    """What each is called in tables: the last part of its path, with a number where that is not its own."""
    short = [Path(source).name or source for source in sources]
    found: list[str] = []
    for number, name in enumerate(short):
        is_own = short.count(name) == 1
        found.append(name if is_own else f"{name}#{short[: number + 1].count(name)}")
    return found


def _folder(source: str, settings: Settings) -> Path:
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    store = open_store(settings)
    known = {(record.stage, record.key): record for record in store.records()}
    try:
        return whole_folder(store, model_record(source, known))
    except UsageError as error:
        if not hub_models.is_hub_id(source) or "/" not in source:
            words = f"is no folder here, no ORG/NAME of the hub, and no artifact of {store.storage.shown}"
            raise UsageError(f"{source}: {words} ({error})") from error
    return place_of(source, None)[1]


def _look(name: str, folder: Path, seed: Opened | None) -> _Looked:
    try:
        opened = open_checkpoint(folder, seed)
    except InvalidInput as error:
        return _Looked(Model(name, problems=tuple(error.problems)), None)
    imported, adapter = opened.imported, opened.adapter
    problems: list[Problem] = []
    if seed is None and opened.vocabulary is not None:
        try:
            Tokenizer(opened.vocabulary.text, TOKENIZER)
        except InvalidInput as error:
            problems += error.problems
    model = Model(
        name,
        imported.family,
        imported.config,
        opened.vocabulary,
        str(imported.dtype).removeprefix("torch."),
        adapter.rank if adapter is not None else None,
        problems=tuple(problems),
        notes=imported.notes,
    )
    return _Looked(model, opened)


def _distances(seed: _Looked, other: _Looked) -> Mapping[str, Distance]:
    """Empty for models whose tensors have other names or shapes; rows are compared token by token."""
    if seed.opened is None or other.opened is None:
        return {}
    ours, theirs = seed.opened.imported, other.opened.imported
    rows = theirs.config.vocab_size
    if tensor_shapes(replace(ours.config, vocab_size=rows)) != tensor_shapes(theirs.config):
        return {}
    tensors = _by_token(seed.opened, other.opened)
    return distances(ours.tensors, tensors) if tensors is not None else {}


def _by_token(seed: Opened, other: Opened) -> TensorSource | None:
    """The other's tensors with rows for the seed's tokens, in their order."""
    ours, theirs = seed.imported, other.imported
    if seed.vocabulary is None or other.vocabulary is None:
        return theirs.tensors if ours.config.vocab_size == theirs.config.vocab_size else None
    known = {"": (seed.vocabulary, ours.config.vocab_size), "other": (other.vocabulary, theirs.config.vocab_size)}
    rows = common_vocabulary(known, "seed").rows["other"]
    return CommonRows("other", rows, {"": ours.tensors, "other": theirs.tensors})
