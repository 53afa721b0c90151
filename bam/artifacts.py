"""A store and what lies in it: models, tokenizers, records, lineage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bam.words import html_table, in_words, session
from bam_core.errors import UsageError, nearest
from bam_core.graph.key import key12
from bam_core.graph.record import Record

if TYPE_CHECKING:
    import pandas as pd

    from bam.views import Difference, Lineage
    from bam_core.data.tokenize import Tokenizer
    from bam_core.evaluate.perplexity import DomainScore
    from bam_core.nn.lm import LM
    from pipelines.wiring import Settings


def open_store(
    uri: str | os.PathLike[str] | None = None, *, tracking_uri: str | None = None, verbose: bool = False
) -> Store:
    """Open a store: a folder or a URI; by default BAM_STORE, else `./bam_store`. Nothing is written."""
    with in_words():
        options = session(os.fspath(uri) if uri is not None else None, tracking_uri, None, None, verbose)
        return Store(options.settings())


class Store:
    """`store["train.bam"]` is the newest artifact of a stage, `store["train.bam@0123"]` the one of a key.

    Iterating gives every artifact that is done, the oldest first. What is there is looked up at each call.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def uri(self) -> str:
        with in_words():
            from pipelines.wiring import mask_text, open_store

            return str(mask_text(open_store(self._settings).uri))

    def __getitem__(self, ref: str) -> Artifact:
        """Raises UsageError if it names no artifact, or several."""
        with in_words():
            from bam_core.graph import refs

            return Artifact(refs.resolve(ref, self._records()), self._settings)

    def __contains__(self, ref: object) -> bool:
        try:
            return isinstance(ref, str) and self[ref] is not None
        except UsageError:
            return False

    def __iter__(self) -> Iterator[Artifact]:
        return iter([Artifact(record, self._settings) for record in self._records()])

    def __len__(self) -> int:
        return len(self._records())

    def frame(self) -> pd.DataFrame:
        """A row for each artifact, as `bam ls`: stage, key, state, age and size, and its metrics."""
        import time

        import pandas as pd

        with in_words():
            from pipelines.cli.listing import listing
            from pipelines.wiring import open_store

            rows = listing(open_store(self._settings), time.time())
        fixed = ["stage", "key", "state", "age_s", "seconds", "size_bytes"]
        return pd.DataFrame([{name: getattr(row, name) for name in fixed} | dict(row.metrics) for row in rows])

    def compare(self, left: str, right: str) -> Difference:
        """Why two artifacts differ: which field of which ancestor, as `bam diff`."""
        with in_words():
            from bam.views import Difference
            from pipelines.wiring import compare

            return Difference(compare(left, right, self._settings))

    def _records(self) -> list[Record]:
        with in_words():
            from pipelines.wiring import open_store

            return list(open_store(self._settings).records())

    def __repr__(self) -> str:
        records = self._records()
        stages = ", ".join(dict.fromkeys(record.stage for record in records))
        return f"<bam.Store {self.uri!r}: {len(records)} artifacts{': ' + stages if stages else ''}>"

    def _repr_html_(self) -> str:
        rows = [[record.stage, key12(record.key), f"{record.seconds:.1f} s"] for record in self._records()]
        return html_table(["stage", "key", "took"], rows, right=[2])


class Artifact:
    """What one stage has made. record: of how it was made and of what it holds."""

    def __init__(self, record: Record, settings: Settings) -> None:
        self.record = record
        self._settings = settings

    @property
    def ref(self) -> str:
        """`stage@key12`, as the command line takes it."""
        return f"{self.record.stage}@{key12(self.record.key)}"

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.record.metrics

    @property
    def config(self) -> Mapping[str, Any]:
        """What the stage was asked for."""
        found: Mapping[str, Any] = self.record.payload.get("config", {})
        return found

    @property
    def files(self) -> list[str]:
        return [output.path for output in self.record.outputs]

    @cached_property
    def folder(self) -> Path:
        """A local folder with its files, to read only."""
        with in_words():
            from pipelines.wiring import open_store

            return Path(open_store(self._settings).localize(self.record))

    def path(self, name: str) -> Path:
        """One of its files. Raises UsageError."""
        with in_words():
            if name not in self.files:
                raise UsageError(f"{self.ref} has no output {name!r}: {nearest(name, self.files)}")
            return self.folder / name

    def read(self, name: str) -> Any:
        """One of its files: JSON as values, Parquet and CSV as a pandas frame, anything else as text."""
        path = self.path(name)
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if path.suffix in (".parquet", ".csv"):
            import pandas as pd

            return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        return path.read_text(encoding="utf-8")

    def model(self, dtype: str | None = None, device: str = "cpu") -> LM:
        """Its model, in evaluation mode. dtype: bf16, fp32 or fp64; by default as stored, and fp32 at least.

        Raises UsageError if it is none.
        """
        with in_words():
            from bam_core.checkpoint import load_model
            from bam_core.train.loop import DTYPES

            if dtype is not None and dtype not in DTYPES:
                raise UsageError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
            return load_model(self._model_folder(), DTYPES[dtype] if dtype is not None else None, device)

    def tokenizer(self) -> Tokenizer:
        """Of a model, or of the stage that made it."""
        with in_words():
            from bam_core.data.tokenize import Tokenizer

            return Tokenizer.load(self.path("tokenizer.json"))

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continue a prompt, as `bam generate`. temperature 0 takes the likeliest."""
        with in_words():
            from pipelines.wiring import generate

            how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
            return str(generate(self._whole_ref, prompt, self._settings, max_new_tokens=max_new_tokens, **how))

    def score(self, texts: Iterable[str], max_tokens: int = 100_000) -> DomainScore:
        """Perplexity and bits per byte of texts, packed into rows of the model's context: a quick look.

        What the report says is of whole documents, and a little lower.
        """
        with in_words():
            from bam_core.data.rows import TextRows
            from bam_core.evaluate.perplexity import score

            model = self.model()
            found, _ = score(model, TextRows(texts, self.tokenizer(), model.config.max_seq_len), max_tokens)
            return found

    def extract(self, label: str) -> LM:
        """The dense model of one expert of this mixture, with the mixture's own shared tensors.

        `bam expert extract` writes it as a folder, and gives back the dense parent's where they are asked for.
        """
        with in_words():
            from bam_core.upcycle.models import extract_model

            return extract_model(self._model_folder(), label)

    def training(self) -> pd.DataFrame:
        """What was logged as it was trained: a row for each entry of `training.json`."""
        import pandas as pd

        return pd.DataFrame(self.read("training.json")["history"])

    def lineage(self, direction: Literal["up", "down", "both"] = "up") -> Lineage:
        """What exactly made it (`up`), or what was made from it (`down`)."""
        with in_words():
            from bam.views import Lineage
            from pipelines.wiring import lineage

            return Lineage(lineage(self._whole_ref, self._settings, direction))

    def card(self) -> str:
        """A model's card, in Markdown."""
        return str(self.read("MODEL_CARD.md"))

    @property
    def _whole_ref(self) -> str:
        return f"{self.record.stage}@{self.record.key}"

    def _model_folder(self) -> Path:
        from pipelines.wiring.looking import model_folder

        return Path(model_folder(self._whole_ref, self._settings)[1])

    def __repr__(self) -> str:
        return f"<bam.Artifact {self.ref}: {', '.join(self.files[:4])}{', ...' if len(self.files) > 4 else ''}>"

    def _repr_html_(self) -> str:
        rows = [["artifact", self.ref], ["digest", self.record.digest[:12]], ["took", f"{self.record.seconds:.1f} s"]]
        inputs = [[role, f"{ref.stage}@{key12(ref.key)}"] for role, ref in self.record.inputs.items()]
        metrics = [[name, value] for name, value in self.metrics.items()]
        return html_table(["", self.stage], [*rows, *inputs, *metrics])
