"""What a recipe imports: which checkpoints, what was found there, and the model and vocabulary that follow.

A recipe says where a checkpoint is; how large the models are, and which tokens they know, is said by the checkpoints
themselves. So they are looked at before the recipe is checked (`Look`): config, names and shapes, tokenizer, and what
identifies the content. No weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem, shown
from bam_core.upcycle.compat import config_problems
from bam_core.upcycle.vocabulary import Common, Rule, Vocabulary, common_vocabulary, vocabulary_problems
from pipelines.recipe.document import join
from pipelines.recipe.parts import ImportedExpert
from pipelines.recipe.phases import ImportedSeed

DEFAULT_SEQ_LEN = 2048
"""Tokens of a row where an imported model reads more and the recipe does not say."""


@dataclass(frozen=True)
class Asked:
    """path: of the key in the recipe."""

    path: str
    source: str
    revision: str | None


@dataclass(frozen=True)
class Checkpoint:
    """What was found where the recipe points. digest: of its content: a commit of the hub, or of the files.

    place: for `protocols.Sources`, which opens it. hub: its id, where that is a hub's. config: of an adapter, its
    base's. family: `llama`, ...; `bam` for one of ours. licence: as its README says; in no key.
    """

    digest: str
    place: Mapping[str, Any]
    family: str
    config: ModelConfig
    vocabulary: Vocabulary | None
    hub: str | None = None
    adapter: Mapping[str, Any] | None = None
    licence: str | None = None

    def identity(self) -> dict[str, Any]:
        """What enters a key."""
        said: dict[str, Any] = {"digest": self.digest, "family": self.family}
        said |= {"hub": self.hub} if self.hub else {}
        return said | ({"adapter": dict(self.adapter)} if self.adapter is not None else {})


Look = Callable[[Asked, Checkpoint | None], Checkpoint]
"""Looks at a checkpoint; given the seed's, which an adapter is merged into. Raises InvalidInput with all that is wrong,
paths relative to the key that names it."""


@dataclass(frozen=True)
class Imports:
    """Domain -> what its expert is imported from, the general one's being the seed. common: None where a checkpoint
    brings no tokenizer: then the recipe names one."""

    found: Mapping[str, Checkpoint]
    common: Common | None = None

    @property
    def seed(self) -> Checkpoint:
        return next(iter(self.found.values()))

    def dense_config(self) -> ModelConfig:
        """Of the seed and of every expert, with the common vocabulary."""
        size = self.common.size if self.common is not None else self.seed.config.vocab_size
        return replace(self.seed.config, vocab_size=size)

    def vocabularies(self) -> dict[str, Vocabulary]:
        return {name: each.vocabulary for name, each in self.found.items() if each.vocabulary is not None}


def asked(recipe: Any) -> dict[str, Asked]:
    """Domain -> what it imports, the general one's seed first. The recipe may have holes."""
    found, domains = {}, list((recipe.domains or {}).items())
    seed = recipe.phases.seed if recipe.phases else None
    if isinstance(seed, ImportedSeed) and seed.source and domains:
        found[domains[0][0]] = Asked("phases.seed.import", seed.source, seed.revision)
    for name, domain in domains[1:]:
        if domain is not None and isinstance(domain.expert, ImportedExpert) and domain.expert.source:
            here = f"{join('domains', name)}.expert.import"
            found[name] = Asked(here, domain.expert.source, domain.expert.revision)
    return found


def look_at_all(recipe: Any, look: Look) -> tuple[Imports | None, list[Problem]]:
    """Look at every checkpoint that a recipe imports. None where the seed is none, or nothing is known of it."""
    wanted, problems = asked(recipe), list[Problem]()
    found: dict[str, Checkpoint] = {}
    seed: Checkpoint | None = None
    general = next(iter(recipe.domains or {}), None)
    for name, place in wanted.items():
        try:
            made = look(place, seed)
        except InvalidInput as error:
            problems += [_at(place, problem) for problem in error.problems]
            continue
        if made.config.is_mixture:
            expected = f"must be a dense model; it is a mixture of {', '.join(made.config.experts)}"
            problems.append(Problem(place.path, place.source, expected, "extract one: bam expert extract"))
            continue
        found[name] = made
        seed = seed or found.get(general) if general is not None else None
    if seed is None:
        return None, problems
    problems += _of_other_shape(found, wanted)
    common, wrong = _common(found, recipe.vocabulary or "refuse")
    imports = Imports(found, common)
    problems += [replace(problem, path=wanted[problem.path].path) for problem in wrong]
    problems += _without_tokenizer(imports, wanted)
    return imports, problems


def _common(found: Mapping[str, Checkpoint], rule: Rule) -> tuple[Common | None, list[Problem]]:
    """The common vocabulary, if the seed brings a tokenizer, and what keeps models from it, each at the model's name.

    A recipe that is wrong has a vocabulary all the same, so that the rest of it can be checked."""
    known = {n: (c.vocabulary, c.config.vocab_size) for n, c in found.items() if c.vocabulary is not None}
    if next(iter(found)) not in known:
        return None, []
    first, *others = known
    wrong = list(vocabulary_problems(*known[first], {name: known[name] for name in others}, rule))
    wrong = [replace(problem, path=problem.path or first) for problem in wrong]
    sound = {name: known[name] for name in known if name == first or name not in {p.path for p in wrong}}
    return common_vocabulary(sound, rule if not wrong else "refuse"), wrong


def _without_tokenizer(imports: Imports, wanted: Mapping[str, Asked]) -> Iterator[Problem]:
    """Embeddings of other sizes whose rows nothing names."""
    size = imports.dense_config().vocab_size
    for name, checkpoint in imports.found.items():
        rows, is_known = checkpoint.config.vocab_size, checkpoint.vocabulary is not None
        if rows != size and not (is_known and imports.common is not None):
            expected = (
                f"has {rows} rows of tokens where the others have {size}, and no tokenizer.json says which they are"
            )
            yield Problem(wanted[name].path, wanted[name].source, expected, "put the tokenizer.json into its folder")


def _at(place: Asked, problem: Problem) -> Problem:
    """The problem at the key that names the checkpoint; its own path and value become part of the words."""
    inner = "" if problem.path in ("", "source", "folder") else f"{problem.path}: "
    value = "" if problem.value in (None, place.source) else f"{shown(problem.value)}: "
    return Problem(place.path, place.source, f"{inner}{value}{problem.expected}", problem.remedy)


def _of_other_shape(found: Mapping[str, Checkpoint], wanted: Mapping[str, Asked]) -> Iterator[Problem]:
    """Fields in which an expert differs from the seed: its vocabulary has a rule, its context is the seed's."""
    first = next(iter(found))
    seed = found[first].config
    for name, other in list(found.items())[1:]:
        alike = replace(other.config, vocab_size=seed.vocab_size, max_seq_len=seed.max_seq_len)
        for problem in config_problems({first: seed, name: alike}):
            expected = problem.expected.replace(f"as in {first}", "as in the seed")
            yield replace(problem, path=f"{wanted[name].path}", expected=f"{_field(problem, name)}{expected}")


def _field(problem: Problem, name: str) -> str:
    inner = problem.path.removeprefix(name).removeprefix(".")
    return f"{inner} " if inner else ""
