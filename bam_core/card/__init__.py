"""Model cards, as Hugging Face's hub expects them: YAML front matter, then Markdown for people.

subject.py   what a card is of: plain values        mixed.py     how a mixture was made, in words
own.py       the card in a model's own folder       full.py      the same and what is known of it in a store
licences.py  what may be said of licences           markdown.py  text that anybody wrote, made safe
numbers.py   figures as people read them

`model_card` is a function of the model alone, so equal runs write equal bytes. `full_card` adds evaluation, run, commit
and the commands that make the model again. Pure: no I/O.
"""

from bam_core.card.full import Evaluation, Made, full_card, scored_as
from bam_core.card.mixed import Mixed
from bam_core.card.own import model_card
from bam_core.card.subject import Subject, TextSource, bases_of, each_once, parents_of, what_it_is

__all__ = [
    "Evaluation",
    "Made",
    "Mixed",
    "Subject",
    "TextSource",
    "bases_of",
    "each_once",
    "full_card",
    "model_card",
    "parents_of",
    "scored_as",
    "what_it_is",
]
