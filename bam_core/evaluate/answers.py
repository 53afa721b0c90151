"""When a generated text is the right answer, and where it ends.

Where the reference is a number (`1,200`, `$3.50`, `12%`), the last number of the text counts, by its value: worked
steps may come before it. Otherwise both texts must be equal but for case, white space and a full stop at the end. A
text ends before the first of the stops of its kind; a number's may be several lines long, another answer has one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

NUMBER_STOPS = ("\n\n", "\nQuestion:")
TEXT_STOPS = ("\n",)
CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function's body ends. Source: Chen et al. 2021 (HumanEval), section 3.2."""
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d{1,300})(?:\.\d{1,300})?")
_WHOLE_NUMBER = re.compile(rf"-?\$?(?:{_NUMBER.pattern})\s*%?\.?")


def is_number(answer: str) -> bool:
    return _WHOLE_NUMBER.fullmatch(answer.strip()) is not None


def last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def is_right(text: str, answer: str) -> bool:
    """Whether a generated text, cut at its stops, gives the reference answer."""
    if is_number(answer):
        return last_number(text) == last_number(answer)
    return normalised(text) == normalised(answer)


def normalised(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def stops_of(answer: str) -> tuple[str, ...]:
    return NUMBER_STOPS if is_number(answer) else TEXT_STOPS


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]
