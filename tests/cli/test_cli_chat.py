"""`bam chat`: from a pipe, at a terminal (of the prompts of Python's input), with a template and without."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bam_core.checkpoint import load_model, write_model
from bam_core.errors import InvalidInput, UsageError
from bam_core.graph.record import Record, artifact_digest
from bam_core.nn.generate import generate
from bam_core.seeds import child_seed
from infra.store import ArtifactStore
from pipelines import wiring
from pipelines.wiring.chat_format import ChatFormat
from tests.task_kit import TOKENIZER, tiny_model

KEY = "b" * 64
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def store(here: Path) -> ArtifactStore:
    """Holds `seed`, a model."""
    (here / "tokenizer.json").write_text(TOKENIZER)
    store = ArtifactStore(str(here / "bam_store"))
    made(store, here, "seed", KEY)
    return store


def made(store: ArtifactStore, here: Path, stage: str, key: str, parents=(), files=()) -> Record:
    """Commit a model. files: beside it, (name, text)."""
    model = tiny_model()
    with store.scratch(stage, key) as out:
        tensors = ((name, tensor.float()) for name, tensor in model.state_dict().items())
        write_model(out, model.config, tensors, tokenizer=here / "tokenizer.json", card="")
        for name, text in files:
            (out / name).write_text(text)
        outputs = store.hash_outputs(out)
        inputs = {parent.stage: parent.ref for parent in parents}
        record = Record(stage, key, {}, inputs, outputs, artifact_digest(outputs), {}, {}, 1.0, 2.0, 1)
        store.commit(out, record)
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """What a person types; an exception is a key that raises it. Then ctrl-D."""
    coming = iter([*lines, EOFError])

    def typing(prompt: str) -> str:
        line = next(coming)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing)


def expected(store: ArtifactStore, text: str, turn: int, n: int = 8) -> str:
    """What the model says after `text`, by `generate`."""
    folder = store.localize(store.records("seed")[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|endoftext|>")
    ids = [eos, *tokenizer.encode(text, add_special_tokens=False).ids]
    seed = child_seed(0, str(turn))
    settings = {"temperature": 0.7, "top_p": 0.95, "seed": seed, "eos_id": eos}
    return tokenizer.decode(generate(load_model(folder), torch.tensor(ids), n, **settings))


def test_each_line_of_a_pipe_is_answered_in_one_conversation(bam, store, monkeypatch):
    piped(monkeypatch, "the court\n\nheld that\n")
    ended = bam("chat", "seed", "--max-new-tokens", "8", "--json")
    value = json.loads(ended.out)
    assert (ended.status, value["model"], value["chat_template"]) == (0, f"seed@{KEY[:12]}", False)
    first, second = value["turns"]
    assert [turn["prompt"] for turn in value["turns"]] == ["the court", "held that"]
    assert first["text"] == expected(store, "the court", 1)
    assert second["text"] == expected(store, f"the court\n{first['text']}\nheld that", 2)
    piped(monkeypatch, "the court\nheld that")
    assert bam("chat", "seed", "--max-new-tokens", "8").out == f"{first['text']}\n{second['text']}\n"


def test_at_a_terminal_answers_stream_and_ctrl_c_stops_one(bam, store, monkeypatch):
    typed(monkeypatch, "the court", KeyboardInterrupt, "/new", "the court")
    ended = bam("chat", "seed", "--max-new-tokens", "8", "--temperature", "0")
    assert ended.status == 0
    assert "ctrl-D leaves" in ended.out
    answers = ended.out.split("\n", 1)[1]
    assert answers.count(" ...") == 2  # two answers, each cut at its length

    talk = wiring.open_chat("seed", wiring.Settings(store.uri), wiring.Sampling(8, 0.0))
    pieces = talk.answer("the court")
    first = next(pieces)
    pieces.close()  # as ctrl-C does
    assert talk.ended == "interrupted"
    assert talk.messages == [{"role": "user", "content": "the court"}, {"role": "assistant", "content": first}]
    talk.restart()
    assert talk.messages == []


def test_what_a_model_says_does_not_steer_the_terminal(bam, store, monkeypatch):
    escape = Tokenizer.from_str(TOKENIZER).encode("\x1b[2J").ids
    coming = iter([*escape, *Tokenizer.from_str(TOKENIZER).encode("ok\n").ids])
    monkeypatch.setattr("bam_core.nn.stream.pick_token", lambda *of: next(coming, 0))  # then the end of text
    typed(monkeypatch, "the court")
    ended = bam("chat", "seed", "--max-new-tokens", "20")
    assert "\N{REPLACEMENT CHARACTER}[2Jok\n" in ended.out


def test_ctrl_c_while_a_token_is_made_keeps_the_conversation(bam, store, monkeypatch):
    made = []

    def interrupted(*args, **kwargs):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return 65

    monkeypatch.setattr("bam_core.nn.stream.pick_token", interrupted)
    typed(monkeypatch, "the court", "again")
    ended = bam("chat", "seed", "--max-new-tokens", "8")
    assert ended.status == 0
    assert "(stopped)" in ended.out
    assert len(made) == 3 + 8


def test_what_no_longer_fits_is_left_out_from_the_start(store):
    talk = wiring.open_chat("seed", wiring.Settings(store.uri), wiring.Sampling(500, 0.0))
    assert talk._n_new == 32  # half of what the model reads
    prompt = ""
    for turn in range(3):
        said = "".join(talk.answer(f"a sum of {turn} and 7"))
        prompt += f"a sum of {turn} and 7\n{said}\n"
    ids = talk._prompt()
    assert len(ids) == 32
    assert talk.forgotten > 0
    assert ids[0] == talk.form.start_ids[0]
    assert ids[1:] == talk.form.prompt(talk.messages)[-31:]


def test_with_a_template_whole_turns_are_left_out_and_the_system_message_stays(here: Path, store: ArtifactStore):
    made(store, here, "seed", "e" * 64, files=[("chat_template.jinja", TEMPLATE)])
    settings = wiring.Settings(store.uri)
    talk = wiring.open_chat("seed@eeee", settings, wiring.Sampling(4, 0.0), system="sum")
    for turn in range(4):
        "".join(talk.answer(f"{turn} and 7 is a sum"))
    kept = [talk.messages[0], *talk.messages[1 + talk.forgotten : -1]]
    assert talk.forgotten in (2, 4, 6)
    assert kept[1]["role"] == "user"
    last = talk.messages.pop()  # the last answer was made of what was there before it
    assert talk._prompt() == talk.form.prompt(kept)
    assert len(talk._prompt()) <= 60
    talk.messages.append(last)
    with pytest.raises(UsageError, match="this model reads 64"):
        talk.answer("a sum of 12 and 7 " * 20)
    assert talk.messages[-1] == last


def test_a_chat_template_is_used(folder: Path):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": TEMPLATE}], "eos_token": {"content": "</s>"}})
    )
    form = ChatFormat(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    messages = [{"role": "system", "content": "sum"}, {"role": "user", "content": "12 and <|endoftext|>"}]
    text = "system: sum</s>\nuser: 12 and <|endoftext|></s>\nassistant: "
    assert form.prompt(messages) == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_to_id("<|endoftext|>") in form.prompt(messages)
    assert ChatFormat(folder, plain=True).template is None
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")  # this one wins
    assert ChatFormat(folder).prompt(messages) == tokenizer.encode("sum", add_special_tokens=False).ids


def test_a_mixture_is_asked_by_the_template_that_its_seed_came_with(here: Path, store: ArtifactStore):
    files = [("chat_template.jinja", TEMPLATE), ("tokenizer_config.json", '{"eos_token": "court"}')]
    seed = made(store, here, "seed", "d" * 64, files=files)
    made(store, here, "train.bam", KEY, parents=[made(store, here, "mix.bam", KEY, parents=[seed])])
    form = wiring.open_chat("train.bam", wiring.Settings(store.uri), wiring.Sampling()).form
    assert form.template == TEMPLATE
    assert form._special["eos_token"] == "court"
    assert wiring.open_chat(f"seed@{KEY[:8]}", wiring.Settings(store.uri), wiring.Sampling()).form.template is None


def test_transformers_renders_the_template_alike(folder: Path):
    template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [{"role": "user", "content": "a <b> 'é'\n"}, {"role": "assistant", "content": "12"}]
    template = TEMPLATE + "{{ messages | tojson }}\n  {%- set n = 3 %}\n{{ n }}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    form = ChatFormat(folder)
    theirs, _ = template_utils.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True, eos_token="</s>"
    )
    assert form._compiled.render(messages=messages, add_generation_prompt=True, eos_token="</s>") == theirs[0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"chat_template.jinja": "{% if %}"}, "no template of jinja2"),
        ({"tokenizer_config.json": "[]"}, "must be a JSON object"),
        ({"generation_config.json": "{"}, "must be JSON"),
        ({"tokenizer.json": "{}"}, "must be a tokenizer.json"),
    ],
)
def test_damaged_files_are_named(folder: Path, files: dict[str, str], words: str):
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(InvalidInput, match=words):
        ChatFormat(folder)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_reach_out(folder: Path, template: str):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UsageError, match="refuses these messages"):
        ChatFormat(folder).prompt([{"role": "user", "content": "x"}])


def test_what_is_wrong_is_said(bam, store, monkeypatch):
    piped(monkeypatch, "the court\n")
    for argv, words in (
        (["nowhere"], "nowhere"),
        (["seed", "--temperature", "nan"], "temperature"),
        (["seed", "--top-p", "0"], "top-p"),
        (["seed", "--max-new-tokens", "0"], "max-new-tokens"),
    ):
        ended = bam("chat", *argv)
        assert (ended.status, ended.out) == (2, "")
        assert words in ended.err
