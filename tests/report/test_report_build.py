"""The files of a report: which there are, that only the inputs decide them, that no input breaks them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64encode
from copy import deepcopy
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from bam_core.errors import ArtifactDamaged
from pipelines.report import ReportInputs, build_report
from pipelines.report.findings import find
from pipelines.report.pages import FEW_DRAWINGS, _environment
from pipelines.report.svg import TEMPLATES
from tests.report.fakes import DOMAINS, fake_run

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e{{7*7}}../../x"


class Page(HTMLParser):
    """The page's elements, attributes and the text of its tables by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def built(inputs: ReportInputs, out: Path) -> tuple[dict[str, bytes], Page]:
    build_report(inputs, out)
    made = files(out)
    return made, Page(made["report.html"].decode())


def test_writes_the_page_the_tables_and_the_figures(tmp_path: Path):
    made, _ = built(fake_run(), tmp_path)
    tables = ("bits_per_byte", "costs", "evaluation", "lineage", "mixes", "perplexity", "routing", "training")
    tables += ("step0", "step0_perplexity", "step0_summary")
    steps = ("step0-mix.bam", "step0-mix.btx")
    routing = (
        "mix.bam-attention",
        "mix.bam-ffn",
        "mix.btx-ffn",
        "train.bam-attention",
        "train.bam-ffn",
        "train.btx-ffn",
    )
    figures = (
        "lineage",
        "step0-mix.bam",
        "step0-mix.btx",
        "training-balance",
        "training-branches",
        "training-mixtures",
    )
    assert set(made) == {
        "report.html",
        *(f"tables/{name}.csv" for name in tables),
        *(f"figures/{name}.svg" for name in (*figures, *steps)),
        *(f"figures/routing-{name}.svg" for name in routing),
    }


def test_page_shows_the_perplexities_and_marks_the_best(tmp_path: Path):
    _, page = built(fake_run(), tmp_path)
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 11}
    assert rows["seed"][:5] == ["31.98", "14.62", "12.92", "9.12", "17.16"]
    assert rows["train.bam"][:5] == ["26.02 (best)", "9.45", "7.04", "3.81", "11.58 (best)"]
    assert rows["expert.math"][3] == "3.67 (best)"


def test_caveats_stand_on_the_page(tmp_path: Path):
    html = built(fake_run(), tmp_path)[0]["report.html"].decode()
    lines = find(fake_run()).caveats
    assert lines
    assert all(f"<li>{line}</li>" in html for line in lines)


@pytest.mark.parametrize(
    ("n", "title", "folds"), [(FEW_DRAWINGS, "All", False), (FEW_DRAWINGS + 1, "All", True), (99, None, False)]
)
def test_many_notes_with_a_title_are_folded(n: int, title: str | None, folds: bool):
    html = _environment().get_template("macros.html.j2").module.notes(["a <b>"] * n, title)
    assert html.count("<li>a &lt;b&gt;</li>") == n
    assert (f"<details><summary>All ({n})</summary>" in html) == ("</details>" in html) == folds


def test_no_notes_are_nothing():
    assert _environment().get_template("macros.html.j2").module.notes([]).strip() == ""


def test_returns_figures_of_the_inputs(tmp_path: Path):
    metrics = build_report(fake_run(), tmp_path)
    assert metrics == {"n_models": 10.0, "n_domains": 4.0, "best_average_perplexity": 11.58}


def test_equal_inputs_give_equal_bytes_in_any_process(tmp_path: Path):
    build_report(fake_run(), tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from pipelines.report import build_report;"
        "from tests.report.fakes import fake_run; build_report(fake_run(), Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo", "LC_ALL": "C"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, cwd=ROOT, env=env)
        assert files(tmp_path / seed) == files(tmp_path / "here")


def test_order_of_models_in_the_files_does_not_matter(tmp_path: Path):
    inputs = fake_run()
    models = inputs.perplexity["models"]
    shuffled = {"models": dict(sorted(models.items(), reverse=True))}
    first = [name for name in models if name.startswith(("mix", "train"))]
    shuffled["models"] |= {name: shuffled["models"].pop(name) for name in first}
    assert list(shuffled["models"]) != list(models)
    assert built(fake_run(perplexity=shuffled), tmp_path / "a")[0] == built(inputs, tmp_path / "b")[0]


def test_svg_files_are_well_formed_and_carry_their_own_colours(tmp_path: Path):
    made, _ = built(fake_run(), tmp_path)
    for name, data in made.items():
        if name.endswith(".svg"):
            root = ET.fromstring(data)
            assert root.tag == f"{SVG}svg"
            assert root.find(f"{SVG}title").text
            assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path):
    made, page = built(fake_run(), tmp_path)
    html = made["report.html"].decode()
    assert re.findall(r"https?://[^\s\"<]*", html.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"url\(|@import|@font-face", html)
    assert all(attrs["href"].startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert {tag for tag, _ in page.tags} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
    } == set()
    policy = next(attrs for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert "default-src 'none'" in policy["content"]


def test_the_only_script_is_ours_and_the_policy_names_it(tmp_path: Path):
    made, page = built(fake_run(), tmp_path)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    _, _, after = made["report.html"].decode().partition("<script>")
    script = after.partition("</script>")[0]
    assert script == (TEMPLATES / "sort.js").read_text()
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)["content"]
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_every_drawing_has_words(tmp_path: Path):
    _, page = built(fake_run(), tmp_path)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 3 + 6 * len(DOMAINS) + 2 + 1
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def hostile_run() -> ReportInputs:
    """The run with every name that comes from outside replaced by one that tries to get out."""

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            names = {"law": HOSTILE, "expert.law": f"expert.{HOSTILE}", "train.btx": f"train.{HOSTILE}"}
            return {names.get(key, key): spoiled(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [spoiled(item) for item in value]
        return value.replace("law", HOSTILE).replace("btx", HOSTILE) if isinstance(value, str) else value

    parts = {name: spoiled(deepcopy(value)) for name, value in vars(fake_run()).items()}
    parts["lineage"]["nodes"][5] |= {"git_commit": HOSTILE, "packages": {HOSTILE: HOSTILE}, "digest": HOSTILE}
    parts["mixes"]["mix.bam"]["tensors"]["norm.weight"]["op"] = HOSTILE
    return ReportInputs(**parts | {"name": f"'; rm -rf / #{HOSTILE}"})


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path):
    made, page = built(hostile_run(), tmp_path / "out")
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}], "ours, and no other"
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    for name, data in made.items():
        assert not set("\x00\u202e") & set(data.decode()), name
        if name.endswith(".svg"):
            assert f"{SVG}script" not in {found.tag for found in ET.fromstring(data).iter()}
    assert {Path(name).parts[0] for name in made} == {"report.html", "tables", "figures"}
    assert files(tmp_path).keys() == {f"out/{name}" for name in made}
    commands = page.text[page.text.index("bam run") :]
    assert commands.startswith("bam run ''\"'\"'; rm -rf / #<script>")


def test_names_that_fall_together_keep_their_own_figures(tmp_path: Path):
    inputs = fake_run()
    shown = inputs.routing["models"]["train.btx"]
    made, _ = built(fake_run(routing={"models": {"train.a/b": shown, "train.a:b": shown}}), tmp_path)
    routing = [name for name in made if "routing-" in name]
    assert routing == ["figures/routing-train.a_b-ffn-2.svg", "figures/routing-train.a_b-ffn.svg"]


OPTIONAL = {"routing": None, "training": {}, "mixes": {}, "costs": (), "lineage": None, "domains": ()}


@pytest.mark.parametrize("left_out", [*OPTIONAL, "all"])
def test_works_without_an_optional_part(left_out: str, tmp_path: Path):
    changes = OPTIONAL if left_out == "all" else {left_out: OPTIONAL[left_out]}
    made, page = built(fake_run(**changes), tmp_path)
    assert "train.bam has the lowest average perplexity: 11.58" in page.text
    section = {"routing": "routing", "training": "training", "costs": "cost", "lineage": "lineage", "mixes": "step0"}
    sections = {attrs.get("id") for tag, attrs in page.tags if tag == "section"}
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links <= sections
    for part, name in section.items():
        if part in changes and not (part == "lineage" and "mixes" not in changes):
            assert name not in sections
    if left_out == "all":
        assert set(made) == {
            "report.html",
            *(f"tables/{n}.csv" for n in ("bits_per_byte", "evaluation", "perplexity")),
        }


@pytest.mark.parametrize(
    "kept",
    [
        ("seed", "expert.code", "expert.law", "expert.math", "train.bam"),  # no dense, one variant
        ("seed",),
        ("seed", "dense"),  # no mixture
        (),
    ],
)
def test_works_with_fewer_models(kept: tuple[str, ...], tmp_path: Path):
    inputs = fake_run()
    changes = {
        "perplexity": {"models": {name: inputs.perplexity["models"][name] for name in kept}},
        "training": {name: inputs.training[name] for name in kept},
        "routing": {"models": {name: inputs.routing["models"][name] for name in kept if "." in name and "bam" in name}},
        "mixes": {},
    }
    _, page = built(fake_run(**changes), tmp_path)
    shown = {row[0] for row in page.rows}
    assert set(kept) <= shown
    assert ("No model was evaluated." in page.text) == (not kept)


def test_works_for_one_domain_with_figures_missing(tmp_path: Path):
    models = {"seed": {"domains": {"general": {"perplexity": 3.5}}}, "train.x": {}}
    made, page = built(ReportInputs("r", {"models": models}), tmp_path)
    assert "No model has a finite average perplexity." in page.text
    assert b"3.5" in made["tables/perplexity.csv"]


def test_not_finite_figures_are_named_and_never_win(tmp_path: Path):
    inputs = fake_run()
    spoiled = json.loads(
        json.dumps({name: vars(inputs)[name] for name in ("perplexity", "routing", "training", "costs")})
    )
    model = spoiled["perplexity"]["models"]["train.bam"]
    model |= {"average_perplexity": nan, "params_total": inf, "flops_per_token": None}
    model["domains"]["law"] = {"perplexity": inf, "nll": nan, "tokens": 10, "bits_per_byte": -inf}
    spoiled["routing"]["models"]["train.bam"]["domains"]["law"]["ffn"] |= {
        "fraction": [[nan, 0.5, None, inf]] * 4,
        "entropy": [nan, None, 0.5, 0.5],
    }
    for row in spoiled["training"]["seed"][10:20]:
        row["loss"] = nan
    spoiled["training"]["dense"] = [
        {"step": 1, "tokens": 10, "loss": inf},
        {"step": 2, "tokens": nan, "loss": 1.0},
    ]
    spoiled["costs"][5] |= {"seconds": nan, "train_flops": inf}
    made, page = built(fake_run(**spoiled), tmp_path)
    assert "train.btx has the lowest average perplexity" in page.text
    rows = {row[0]: row for row in page.rows if len(row) == 11}
    assert rows["train.bam"][3] == "∞"
    assert rows["train.bam"][5] == "NaN"
    for name, data in made.items():
        if name.endswith(".svg"):
            drawn = [v for e in ET.fromstring(data).iter() for k, v in e.attrib.items() if k not in ("aria-label",)]
            assert not any(re.search(r"\b(nan|inf)\b", value) for value in drawn), name


def test_reads_what_the_stages_wrote(tmp_path: Path):
    inputs = fake_run()
    evaluate = tmp_path / "evaluate"
    evaluate.mkdir()
    (evaluate / "perplexity.json").write_text(json.dumps(inputs.perplexity))
    (evaluate / "routing.json").write_text(json.dumps(inputs.routing))
    models = {name: tmp_path / name for name in inputs.perplexity["models"]}
    for name, folder in models.items():
        folder.mkdir()
        if name in inputs.training:
            (folder / "training.json").write_text(json.dumps({"history": inputs.training[name]}))
        if name in inputs.mixes:
            (folder / "mix.json").write_text(json.dumps(inputs.mixes[name]))
    read = ReportInputs.read(
        inputs.name,
        evaluate=evaluate,
        models=models,
        costs=inputs.costs,
        lineage=inputs.lineage,
        domains=DOMAINS,
    )
    assert vars(read) == vars(inputs)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"models": 3}', b"\xff\xfe"])
def test_a_damaged_file_is_named(text: str | bytes | None, tmp_path: Path):
    path = tmp_path / "perplexity.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactDamaged, match=re.escape(str(path))):
        ReportInputs.read("r", evaluate=tmp_path, models={})


def test_reproduces_by_key_and_says_what_code_it_was(tmp_path: Path):
    inputs = fake_run()
    lineage = deepcopy(inputs.lineage)
    lineage["nodes"][6] |= {"git_commit": "feed", "dirty": True}
    _, page = built(fake_run(lineage=lineage), tmp_path)
    key = next(node["key"] for node in lineage["nodes"] if node["stage"] == "train.bam")
    assert f"bam run quickstart\nbam lineage train.bam@{key[:12]}\nbam verify train.bam@{key[:12]}\n" in page.text
    assert re.search(
        r"8c1f0de2f4bd53a9, feed with uncommitted changes\.\s+Packages: ray 2.60.0, torch 2.13.0", page.text
    )
