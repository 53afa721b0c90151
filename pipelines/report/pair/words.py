"""What the two runs say in words: which is ahead, and what is not fair to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup

from pipelines.report import formats
from pipelines.report.findings import Tile, code, listed
from pipelines.report.formats import change, clean, is_number
from pipelines.report.pair.chances import Chances
from pipelines.report.pair.runs import Pair, RunLeft, difference

NAMED = 8
"""Names that a sentence lists; tables have all."""
STATUS = {"running": "running, or its process was killed"}


def status(run: RunLeft) -> str:
    return STATUS.get(run.status, run.status)


def headline(pair: Pair) -> Markup:
    if pair.is_all_the_same and not pair.a.missing:
        return Markup("Both runs have the very same artifacts: B differs from A in nothing that was made.")
    differences = _differences(pair)
    if not differences:
        rest = "trainings, recipes and times" if pair.trained else "no training of both differs; recipes and times"
        joint = ":" if pair.trained else ", and"
        return Markup("No model was evaluated in both runs{} {} can still be compared.").format(joint, rest)
    lower, higher = sum(one < 0 for one in differences), sum(one > 0 for one in differences)
    text = Markup("Of {} that both runs evaluated, {} a lower average perplexity in B and {} a higher one").format(
        _count(len(differences), "model"), _have(lower), _have(higher)
    )
    ends = [Markup("the best of {} is {} ({})").format(*end) for end in _bests(pair)]
    return text + Markup("; ") + listed(ends) + Markup(".") if ends else text + Markup(".")


def tiles(pair: Pair) -> tuple[Tile, ...]:
    """Each run's best model, and one against the other."""
    bests = {side: (model, score) for side, model, score in _best_scores(pair)}
    made = [
        Tile(
            formats.perplexity(score), Markup("average perplexity of {}, the best of\u00a0{}").format(code(model), side)
        )
        for side, (model, score) in bests.items()
    ]
    if len(bests) == 2:
        made.append(Tile(change(bests["B"][1], bests["A"][1]), Markup("the best of\u00a0B against the best of\u00a0A")))
    return tuple(made)


def caveats(pair: Pair, chance: Chances) -> list[Markup]:
    return [
        *_unfinished(pair),
        *_other_text(pair),
        *_alone(pair),
        *_same(pair),
        *_chance(pair, chance),
        *_made_otherwise(pair),
    ]


def names(found: Iterable[str]) -> Markup:
    """`a`, `b` and 3 more."""
    found = list(found)
    shown = [code(name) for name in found[:NAMED]]
    return listed([*shown, Markup(f"{len(found) - NAMED} more")] if len(found) > NAMED else shown)


def _unfinished(pair: Pair) -> Iterator[Markup]:
    for side, run in _sides(pair):
        if run.missing:
            why = "are gone from the store" if run.status == "done" else "are not made"
            text = Markup("{} {} ({}): {} of its {} stages {}. What is there is compared.")
            state = "has ended" if run.status == "done" else "is not finished"
            yield text.format(side, state, status(run), len(run.missing), len(run.planned), why)
        if not run.evaluated:
            yield Markup("{} has no evaluation, so perplexities cannot be compared.").format(side)


def _other_text(pair: Pair) -> Iterator[Markup]:
    if not pair.evaluated:
        return
    for side, other, mine in (("A", pair.b, pair.a), ("B", pair.a, pair.b)):
        if extra := [domain for domain in mine.domains if domain not in other.domains]:
            yield Markup("Only {} was evaluated on {}: averages are over the domains of both.").format(
                side, listed([Markup("{}").format(clean(domain)) for domain in extra])
            )
    if not pair.has_one_tokenizer:
        yield Markup(
            "The runs have different tokenizers, so their perplexities, which are per token, cannot be compared; bits"
            " per byte can, where the held-out text is the same."
        )
    if pair.other_text:
        yield Markup(
            "The held-out text of {} is not the same in both: differences there are also differences of text."
        ).format(listed([Markup("{}").format(clean(domain)) for domain in pair.other_text]))


def _alone(pair: Pair) -> Iterator[Markup]:
    for side, run in _sides(pair):
        if only := pair.only(run):
            yield Markup("Only {} has {}.").format(side, names(only))
    if pair.a.seeds != pair.b.seeds and pair.a.seeds and pair.b.seeds:
        yield Markup("A was made under the seed{} {}, B under {}.").format(
            "s" if len(pair.a.seeds) > 1 else "", _numbers(pair.a.seeds), _numbers(pair.b.seeds)
        )


def _same(pair: Pair) -> Iterator[Markup]:
    same = [model for model in pair.models if pair.is_one_model(model)]
    if same and not pair.is_all_the_same:
        one = "is one and the same artifact" if len(same) == 1 else "are the same artifacts"
        yield Markup("{} {} in both runs.").format(names(same), one)


def _chance(pair: Pair, chance: Chances) -> Iterator[Markup]:
    if chance.why_not:
        yield Markup("Whether the differences are more than chance is not known: {}.").format(chance.why_not)
    if not chance.found:
        return
    clear = [model for model, one in chance.found.items() if one.is_distinguishable]
    yield Markup("{} of {} differences of average perplexity {} more than chance{}.").format(
        len(clear), len(chance.found), "is" if len(clear) == 1 else "are", Markup(": ") + names(clear) if clear else ""
    )
    notes = dict.fromkeys(note for one in chance.found.values() for note in one.notes)
    yield from (Markup("{}{}.").format(clean(note)[:1].upper(), clean(note)[1:]) for note in notes)


def _made_otherwise(pair: Pair) -> Iterator[Markup]:
    """What was not the same where they were made, so that times or rounding may differ."""
    words = {"device": "on other devices, so times cannot be compared", "commit": "by other code"}
    for what, told in words.items():
        mine, theirs = pair.a.made_by.get(what), pair.b.made_by.get(what)
        if mine and theirs and mine != theirs and not pair.is_all_the_same:
            yield Markup("The runs were made {}.").format(told)


def _bests(pair: Pair) -> list[tuple[str, Markup, str]]:
    return [(side, code(model), formats.perplexity(score)) for side, model, score in _best_scores(pair)]


def _best_scores(pair: Pair) -> list[tuple[str, str, float]]:
    """(run, model, its average), the best of all that each has evaluated."""
    found = []
    for side, run in _sides(pair):
        scores = {model: pair.average(run, model) for model in run.evaluated}
        finite = {model: score for model, score in scores.items() if is_number(score) and score > 0}
        if finite and pair.evaluated:
            best = min(finite, key=lambda model: finite[model])
            found.append((side, best, finite[best]))
    return found


def _differences(pair: Pair) -> list[float]:
    found = [difference(pair.average(pair.a, m), pair.average(pair.b, m)) for m in pair.evaluated]
    return [one for one in found if one is not None]


def _sides(pair: Pair) -> tuple[tuple[str, RunLeft], ...]:
    return (("A", pair.a), ("B", pair.b))


def _have(number: int) -> str:
    return {0: "none has", 1: "1 has"}.get(number, f"{number} have")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _numbers(found: Sequence[int]) -> str:
    return ", ".join(map(str, found))
