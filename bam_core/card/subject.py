"""What a card is of: a model, what it was made from, and the text behind it. Plain values: workers get them too.

All of it follows from the model's key, but for the licence and hub name of each text: a recipe states them, and no key
holds them. So two runs whose recipes state other licences make cards, and thus artifacts, of other bytes under one key.
Not so a seed: experts of other stores are matched by its digest, so its card leaves them out (`without_statements`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bam_core.card.mixed import Mixed
from bam_core.config import ModelConfig
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import StageName, kind_of

NO_MODELS = ("data", "tokenizer", "tune")
"""Kinds of stages that a model is made from and that are no models."""


@dataclass(frozen=True)
class TextSource:
    """A domain's text. digest: of its content. dataset: its id on the hub. licence: None where none is stated."""

    domain: str
    kind: str
    digest: str
    licence: str | None = None
    dataset: str | None = None

    @classmethod
    def of(cls, record: Record) -> TextSource:
        """The text of a `data.*` record."""
        config = record.payload.get("config", {})
        source = config.get("source", {})
        return cls(
            domain=str(config.get("domain", StageName.parse(record.stage).name or "")),
            kind=str(source.get("kind", "?")),
            digest=str(source.get("digest", "?")),
            licence=_text(record.provenance.get("licence")),
            dataset=_text(record.provenance.get("dataset")),
        )

    @classmethod
    def read(cls, found: Any) -> Iterable[TextSource]:
        """What `to_json` wrote of several, from a file that anybody may have made: what is none is left out, since
        no card must keep a model from being made."""
        for item in found if isinstance(found, list) else ():
            if isinstance(item, Mapping) and all(isinstance(item.get(name), str) for name in ("domain", "kind")):
                yield cls(
                    item["domain"],
                    item["kind"],
                    str(item.get("digest", "?")),
                    _text(item.get("licence")),
                    _text(item.get("dataset")),
                )

    def to_json(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def each_once(texts: Iterable[TextSource]) -> tuple[TextSource, ...]:
    """The same text of the same domain once, by domain; a statement of its licence wins over none."""
    found: dict[tuple[str, str], TextSource] = {}
    for text in texts:
        known = found.setdefault((text.domain, text.digest), text)
        if known.licence is None and text.licence is not None:
            found[text.domain, text.digest] = text
    return tuple(found[name] for name in sorted(found))


@dataclass(frozen=True)
class Subject:
    """key: None for a model that is no artifact. parents: role -> what it was made from, texts aside. bases: role ->
    the models that it was trained further from or mixed of. texts: all behind it. phase, figures: of a training. mixed:
    of a mixture, how it was made. edit: an `edit.json`. facts: more rows of the first table, as text.
    tells_licences: False leaves out what recipes say of the texts. imported: what the model was imported from, if it
    was: `digest`, `family`, and of the hub `hub`; of an adapter `adapter`."""

    stage: str
    key: str | None
    what: str
    config: ModelConfig
    parents: Mapping[str, InputRef] = field(default_factory=dict)
    bases: Mapping[str, InputRef] = field(default_factory=dict)
    texts: tuple[TextSource, ...] = ()
    phase: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    mixed: Mixed | None = None
    edit: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    tells_licences: bool = True
    imported: Mapping[str, Any] = field(default_factory=dict)

    def without_statements(self) -> Subject:
        """Only what follows from the key."""
        texts = tuple(replace(text, licence=None, dataset=None) for text in self.texts)
        return replace(self, texts=texts, tells_licences=False)

    @property
    def kind(self) -> str:
        return kind_of(self.stage)

    @property
    def is_untrained(self) -> bool:
        return self.kind == "mix"


def parents_of(inputs: Mapping[str, InputRef]) -> dict[str, InputRef]:
    """Role -> what a model was made from, its texts aside."""
    return {role: ref for role, ref in _in_order(inputs) if kind_of(ref.stage) != "data"}


def bases_of(inputs: Mapping[str, InputRef], mixture: Record | None = None) -> dict[str, InputRef]:
    """Role -> the models that a model is derived from. mixture: that it starts from, if it does: then those of that."""
    is_mixed = mixture is not None and kind_of(mixture.stage) == "mix"
    inputs = mixture.inputs if mixture is not None and is_mixed else inputs
    return {role: ref for role, ref in _in_order(inputs) if kind_of(ref.stage) not in NO_MODELS}


def _in_order(inputs: Mapping[str, InputRef]) -> list[tuple[str, InputRef]]:
    """The seed first, then by role: a record does not keep the order in which a stage names its inputs."""
    return sorted(inputs.items(), key=lambda item: (kind_of(item[1].stage) != "seed", item[0]))


def imported_words(config: Mapping[str, Any]) -> str:
    """config: of the payload of a stage that imports."""
    said = config["import"]
    where = f"a checkpoint with digest {said['digest']}"
    if said.get("hub"):
        where = f"{said['hub']} at commit {said['digest']}"
    made = f", a LoRA adapter of rank {said['adapter']['rank']} merged into the seed's," if "adapter" in said else ""
    return f"imported from {where}{made} ({said['family']})"


def _of_import(kind: str, name: str, config: Mapping[str, Any]) -> str:
    """One sentence of a model that is imported, or trained on from one that is."""
    after = "trained on from a model that was imported" if "import" not in config else imported_words(config)
    domain = config.get("domain")
    match kind:
        case "seed":
            return f"The dense seed model, {after}; every expert branches from it."
        case "expert":
            return f"The dense expert of domain {domain or name}, {after}."
        case "import":
            whose = f"the dense expert of domain {domain}" if domain else "the dense seed model"
            return f"The model from which {whose} is trained on, {after}."
        case _:
            return f"The model {name}, {after}."


def what_it_is(stage: str, config: Mapping[str, Any]) -> str:
    """One sentence. config: of the stage's payload."""
    named = StageName.parse(stage)
    rest = named.name or ""
    if "import" in config or "from" in config:
        return _of_import(named.kind, rest, config)
    match named.kind:
        case "seed":
            return "The dense seed model, trained from random weights; every expert branches from it."
        case "expert":
            return f"The dense expert of domain {config.get('domain', rest)}, branched from the seed."
        case "dense":
            return "The dense baseline: the seed, trained on the mixture's data."
        case "mix":
            variant = config.get("variant", {})
            name = variant.get("name", rest) if isinstance(variant, Mapping) else rest
            return f"The mixture {name} as initialised from its experts, untrained."
        case "train":
            return f"The mixture {config.get('variant', rest)}, trained on all domains."
        case "distil":
            variant = config.get("variant", "?")
            return f"The mixture {variant} with cheaper attention, which learned from {variant} as it was trained."
        case "edit" if config.get("operation") == "add":
            name = config.get("name", "?")
            return f"A mixture that was given the expert {name}, which is not heard until training takes its bias to 0."
        case "edit":
            return f"A mixture without its expert {config.get('name', '?')}."
        case "adopted":
            return f"The expert {config.get('name', rest)}, trained elsewhere and adopted from another store."
        case _:
            return f"A model that the stage {stage} made."
