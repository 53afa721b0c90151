"""A conversation with a model of the store, its answers piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bam_core.errors import UsageError
from bam_core.seeds import child_seed
from pipelines.wiring.exporting import tokenizer_settings
from pipelines.wiring.looking import require_tokenizer
from pipelines.wiring.origins import known_records, model_record, name_of, whole_folder
from pipelines.wiring.settings import Settings, open_store

if TYPE_CHECKING:
    from bam_core.nn.stream import Stream
    from pipelines.wiring.chat_format import ChatFormat, Message


@dataclass(frozen=True)
class Sampling:
    """max_new_tokens: of an answer; never more than half of what the model reads."""

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0


class Chat:
    """model: the artifact, `stage@key12`. messages: all that was said. ended: how the last answer did.

    forgotten: how many of the oldest messages (a system message aside) the last answer was made without, because the
    model does not read so much; without a template it is the text's beginning that goes, and this counts tokens.
    """

    def __init__(self, model: str, stream: Stream, form: ChatFormat, sampling: Sampling, system: str | None) -> None:
        self.model, self.form = model, form
        self._stream, self._sampling, self._system = stream, sampling, system
        self._n_new = min(sampling.max_new_tokens, stream.model.config.max_seq_len // 2)
        self.messages: list[Message] = []
        self.forgotten = 0
        self.ended: Literal["stop", "length", "interrupted"] = "stop"
        self.restart()

    def restart(self) -> None:
        """Forget all that was said but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def answer(self, text: str) -> Generator[str, None, None]:
        """What the model says to `text`, in pieces. Whoever stops reading stops the answer; what was read of it stays
        in the conversation. Raises UsageError for a text that is too long for the model, which is then not kept."""
        import torch

        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
        except UsageError:
            self.messages.pop()
            raise
        sampling, turn = self._sampling, sum(message["role"] == "user" for message in self.messages)
        ids = self._stream(
            torch.tensor(prompt),
            self._n_new,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=child_seed(sampling.seed, str(turn)),
            stop_ids=self.form.stop_ids,
        )
        return self._pieces(ids)

    def _pieces(self, ids: Iterator[int]) -> Generator[str, None, None]:
        pieces, said, n = self.form.pieces(), "", 0
        self.ended = "interrupted"
        try:
            for n, token in enumerate(ids, 1):  # noqa: B007 - how many there were
                said += (piece := pieces(token))
                yield piece
            self.ended = "length" if n == self._n_new else "stop"
            said += (piece := pieces.rest())
            yield piece
        finally:
            self.messages.append({"role": "assistant", "content": said})

    def _prompt(self) -> list[int]:
        """The conversation's ids, as much of its end as the model reads beside an answer."""
        room = self._stream.model.config.max_seq_len - self._n_new
        ids = self.form.prompt(self.messages)
        self.forgotten = 0
        if self.form.template is None:
            start = self.form.start_ids
            self.forgotten = max(0, len(ids) - room)
            return [*start, *ids[len(start) + self.forgotten :]]
        fixed = 1 if self._system else 0
        while len(ids) > room:
            self.forgotten += 2  # a question and its answer: templates want turns
            kept = self.messages[fixed + self.forgotten :]
            if not kept:
                raise UsageError(
                    f"{len(ids)} tokens, and an answer of {self._n_new}: this model reads {room + self._n_new}"
                )
            ids = self.form.prompt([*self.messages[:fixed], *kept])
        return ids


def open_chat(
    ref: str,
    settings: Settings,
    sampling: Sampling,
    *,
    system: str | None = None,
    plain: bool = False,
    dtype: str | None = None,
) -> Chat:
    """plain: without the chat template. dtype: fp32, bf16 or fp64; by default as stored, and fp32 at least.

    Raises UsageError if `ref` is no model, or for impossible settings.
    """
    store = open_store(settings)
    known = known_records(store)
    record = model_record(ref, known)
    folder = whole_folder(store, record)
    require_tokenizer(name_of(record.ref), folder)
    from bam_core.checkpoint import load_model
    from bam_core.nn.generate import check_sampling
    from bam_core.nn.stream import Stream
    from bam_core.train.loop import DTYPES
    from pipelines.wiring.chat_format import ChatFormat

    form = ChatFormat(folder, tokenizer_settings(store, record, known), plain=plain)
    check_sampling(sampling.temperature, sampling.top_p)
    model = load_model(folder, dtype=DTYPES[dtype] if dtype is not None else None)
    return Chat(name_of(record.ref), Stream(model), form, sampling, system)
