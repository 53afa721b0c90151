"""`bam init`: a recipe from flags or from answers, which loads and can be planned; and what is wrong, in words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from pipelines.recipe import Recipe, load_recipe
from tests.export_kit import write_random
from tests.task_kit import DENSE, TOKENIZER

GENERAL, LAW, CHAT = "general=texts/general", "law=texts/law.jsonl", "chat=texts/chat.jsonl:body"
TWO = ("--domain", GENERAL, "--domain", LAW)


@pytest.fixture
def texts(here: Path) -> Path:
    """A folder of text files, JSON lines with one column of text, and with several."""
    (here / "texts" / "general").mkdir(parents=True)
    for name in ("a", "b"):
        (here / "texts" / "general" / f"{name}.txt").write_text(f"{name}: all that there is to know. " * 3000)
    laws = ({"body": f"Section {n}: the court held that {n} is a number. " * 5, "n": n} for n in range(200))
    (here / "texts" / "law.jsonl").write_text("".join(json.dumps(law) + "\n" for law in laws))
    talks = ({"title": f"talk {n}", "body": f"So {n} it is, they said, and went. " * 9} for n in range(200))
    (here / "texts" / "chat.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return here


def paths(recipe: Recipe) -> dict[str, object]:
    return {name: domain.source.path for name, domain in recipe.domains.items()}


def test_flags_make_a_recipe_that_can_be_planned(bam, texts):
    done = bam("init", "mine.yaml", "--domain", LAW, "--domain", CHAT, *TWO[:2])
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("wrote mine.yaml. Next:\n  bam plan mine.yaml\n  bam run mine.yaml\n")
    recipe = load_recipe("mine.yaml")
    assert recipe.name == "mine"
    assert list(recipe.domains) == ["general", "law", "chat"]
    assert paths(recipe) == {"general": "texts/general/*.txt", "law": "texts/law.jsonl", "chat": "texts/chat.jsonl"}
    assert [recipe.domains[name].source.column for name in ("law", "chat")] == ["body", "body"]
    planned = bam("plan", "mine.yaml", "--json")
    assert planned.status == 0
    stages = {stage["stage"] for stage in json.loads(planned.out)["stages"]}
    assert {"expert.law", "expert.chat", "train.bam", "train.btx", "dense", "report"} <= stages
    assert not (texts / "bam_store").exists()


def test_as_json(bam, texts):
    answer = json.loads(bam("init", "mine.yaml", *TWO, "--json", "--general", "law", "--tokens", "9M").out)
    assert list(answer["domains"]) == ["law", "general"]
    assert answer["domains"]["law"]["sources"] == [{"kind": "jsonl", "path": "texts/law.jsonl", "column": "body"}]
    assert answer["domains"]["general"]["text_bytes"] == sum(f.stat().st_size for f in texts.glob("texts/general/*"))
    assert (answer["size"], answer["tokens"]["seed"]) == ("tiny", 9_000_000)
    assert answer["next"] == ["bam plan mine.yaml", "bam run mine.yaml"]


def test_two_texts_of_one_domain_are_one_list(bam, texts):
    assert bam("init", "a b.yml", *TWO, "--domain", "law=texts/chat.jsonl:title", "--name", "x").status == 0
    recipe = load_recipe("a b.yml")
    assert recipe.name == "x"
    assert [source.column for source in recipe.domains["law"].source] == ["body", "title"]


def test_without_a_terminal_what_is_missing_is_said(bam, texts):
    done = bam("init")
    assert (done.status, done.out) == (2, "")
    assert "missing: FILE, such as mine.yaml; --domain NAME=PATH" in done.err
    done = bam("init", "mine.yaml", "--domain", GENERAL)
    assert done.status == 2
    assert "at least 2 domains (1 given)" in done.err
    assert not (texts / "mine.yaml").exists()


def test_nobodys_file_is_written_over(bam, texts):
    (texts / "mine.yaml").write_text("name: precious")
    done = bam("init", "mine.yaml", *TWO)
    assert (done.status, done.out) == (2, "")
    assert "mine.yaml: there already; --force writes over it" in done.err
    assert (texts / "mine.yaml").read_text() == "name: precious"
    assert bam("init", "mine.yaml", *TWO, "--force").status == 0
    assert load_recipe("mine.yaml").name == "mine"
    assert sorted(path.name for path in texts.iterdir()) == ["mine.yaml", "texts"]


LONG = "which column is the text, PATH:COLUMN: title, body"
WRONG = {
    "no recipe": (["mine.txt", *TWO], "FILE: 'mine.txt': must end in .yaml (mine.yaml)"),
    "long": (["m" * 300 + ".yaml", *TWO], "cannot be a file: "),
    "no UTF-8": (["\udcff.yaml", *TWO], "cannot be a file: "),
    "no folder": (["no/mine.yaml", *TWO], "its folder is not there (mkdir -p no)"),
    "a folder": (["folder.yaml", *TWO], "is a folder"),
    "no path": (["m.yaml", "--domain", "law"], "must be NAME=PATH"),
    "misspelt": (["m.yaml", "--domain", "law=texts/laws.jsonl"], "no such file or folder (did you mean 'texts/law."),
    "nothing like it": (["m.yaml", "--domain", "law=texts/zzzzzzzz.pdf"], "hf:ORG/NAME is one of the hub"),
    "glob": (["m.yaml", "--domain", "law=texts/*.md"], "matches no file"),
    "empty folder": (["m.yaml", "--domain", "law=folder.yaml"], "is a folder without files"),
    "no such column": (["m.yaml", "--domain", "law=texts/law.jsonl:bdy"], "column 'bdy'; did you mean 'body'"),
    "numbers": (["m.yaml", "--domain", "law=texts/law.jsonl:n"], "no text in a column 'n'; those with text: body"),
    "which column": (["m.yaml", "--domain", "c=texts/chat.jsonl"], LONG),
    "column of text": (["m.yaml", "--domain", "g=texts/general:text"], "has no columns"),
    "binary": (["m.yaml", "--domain", "g=bytes.txt"], "must be UTF-8"),
    "too little": (["m.yaml", *TWO, "--domain", "few=few.txt"], "domains.few: 9: bytes of text"),
    "name": (["m.yaml", "--domain", "A b=texts/law.jsonl"], "domains.'A b': 'A b': a name has 1 to 64"),
    "reserved": (["m.yaml", "--domain", "own=texts/law.jsonl"], "domains.own: 'own': means something else"),
    "pipeline": (["m.yaml", *TWO, "--name", "Mine"], "name: 'Mine': a name has"),
    "general": (["m.yaml", *TWO, "--general", "laws"], "--general: 'laws': is none of the domains (did"),
    "twice": (["m.yaml", *TWO, "--domain", "law2=texts/*.jsonl:body"], "which is text of law"),
    "tokens": (["m.yaml", *TWO, "--tokens", "2 million"], "--tokens: '2 million': must be a whole number"),
    "no tokens": (["m.yaml", *TWO, "--tokens", "-1"], "--tokens: '-1': must be at least one batch"),
    "few tokens": (["m.yaml", *TWO, "--tokens", "10"], "--tokens: '10': must be at least one batch, 4096"),
    "seed": (["m.yaml", *TWO, "--seed-model", "./none"], "--seed-model: './none': is no folder here"),
    "seed and size": (["m.yaml", *TWO, "--seed-model", "./none", "--size", "tiny"], "--size: 'tiny': is of"),
    "size": (["m.yaml", *TWO, "--size", "huge"], "'huge' is not one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(bam, texts, case):
    (texts / "folder.yaml").mkdir()
    (texts / "bytes.txt").write_bytes(b"\xff\xfe\x00" * 3000)
    (texts / "few.txt").write_text("few words")
    argv, says = WRONG[case]
    done = bam("init", *argv)
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert "Traceback" not in done.err
    assert not (texts / "m.yaml").exists()


def test_a_name_that_may_be_of_the_hub(bam, texts, monkeypatch):
    from bam_core.errors import InvalidInput, Problem
    from infra import hub_looking
    from infra.text_looking import LookedAt

    asked = []

    def look(path, name=None):
        asked.append((path, name))
        if path == "org/none":
            raise InvalidInput("source", [Problem("path", path, "cannot be resolved")])
        return LookedAt("hf", columns={"text": None}), "test"

    monkeypatch.setattr(hub_looking, "look_at_hub", look)
    argv = ("--domain", "a=org/name", "--domain", "b=hf:org/name/sub:text")
    assert bam("init", "mine.yaml", *argv).status == 0
    assert asked == [("org/name", None), ("org/name", "sub")]
    domains = load_recipe("mine.yaml").domains
    assert [(d.source.path, d.source.name, d.source.split) for d in domains.values()] == [
        ("org/name", None, "test"),
        ("org/name", "sub", "test"),
    ]
    err = bam("init", "other.yaml", "--domain", "a=org/none").err
    assert "'org/none': is no file or folder here, and as a data set of the hub: cannot be resolved" in err


def test_all_that_is_wrong_is_said_at_once(bam, texts):
    err = bam("init", "m.txt", "--domain", "law=no.txt", "--domain", "a=texts/law.jsonl:x", "--tokens", "some").err
    assert err.startswith("bam: command line: 4 problems\n")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="nowhere where nobody may write")
def test_a_file_that_cannot_be_written(bam, texts):
    done = bam("init", "/proc/self/mine.yaml", *TWO)
    assert done.status == 2
    assert "/proc/self/mine.yaml: cannot be written: " in done.err


def test_a_model_to_start_from(bam, texts):
    folder = write_random(texts / "base", DENSE)
    (folder / "tokenizer.json").write_text(TOKENIZER)
    done = bam("init", "mine.yaml", *TWO, "--seed-model", "./base", "--json")
    assert done.status == 0, done.err
    assert "seed" not in json.loads(done.out)["tokens"]
    text = (texts / "mine.yaml").read_text()
    assert "tokenizer:" not in text
    assert "\nmodel:" not in text
    assert "  seed: {import: ./base}  # bam, " in text
    planned = bam("plan", "mine.yaml", "--json")
    assert planned.status == 0, planned.err
    assert {"expert.law", "train.bam"} <= {stage["stage"] for stage in json.loads(planned.out)["stages"]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):
    def type_in(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal("".join(line + "\n" for line in lines)))

    return type_in


def test_in_a_terminal_it_asks_and_asks_again(bam, texts, answers):
    (texts / "old.yaml").write_text("name: precious")
    (texts / "few.txt").write_text("few words")
    answers(
        *("old.yaml", "mine.md", ""),  # there already; no recipe; mine.yaml
        *("", "texts/generl", "texts/general"),  # general; misspelt
        *("Law", "general", "law", "texts/law.jsonl:x", "few.txt", "texts/general/a.txt", "texts/law.jsonl"),
        *("talks", "texts/chat.jsonl", "n", "body", ""),  # which column; no more domains
        *("./nowhere", "", "huge", "small"),  # no such model; train one
        *("many", "100", "3M"),
    )
    done = bam("init")
    assert done.status == 0, done.err
    assert load_recipe("mine.yaml").phases.seed.tokens == 3_000_000
    assert load_recipe("mine.yaml").model.d_model == 384
    assert "'100': must be at least one batch" in done.err
    for said in ("there already", "must end in .yaml", "did you mean 'texts/general'", "a name has 1 to 64"):
        assert said in done.err
    for said in (
        "bytes of text, about: too little",
        "'general' is there already",
        "column 'x'; those with text: body",
        "which is text of general",
    ):
        assert said in done.err
    for said in ("2 files of text, about ", "'n' is not one of", "is no folder here", "'huge' is not one of"):
        assert said in done.err
    assert "'many': must be a whole number" in done.err


def test_what_was_answered_is_in_the_recipe(bam, texts, answers):
    answers("mine.yaml", "base", "texts/general", "law", "texts/law.jsonl", "", "", "", "")
    done = bam("init")
    assert done.status == 0, done.err
    recipe = load_recipe("mine.yaml")
    assert paths(recipe) == {"base": "texts/general/*.txt", "law": "texts/law.jsonl"}
    assert recipe.model.d_model == 128


def test_only_what_no_flag_says_is_asked(bam, texts, answers):
    answers("3M")
    done = bam("init", "mine.yaml", *TWO, "--size", "small")
    assert done.status == 0, done.err
    assert load_recipe("mine.yaml").phases.seed.tokens == 3_000_000
    answers()
    assert bam("init", "other.yaml", *TWO, "--yes").status == 0
    assert bam("init", "mine.yaml", *TWO).status == 2  # before it asks


def test_who_ends_the_questions_ends_it_all(bam, texts, answers):
    answers("mine.yaml", "base")
    assert bam("init").status == 130
    assert not (texts / "mine.yaml").exists()
