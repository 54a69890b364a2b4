"""The report of a study: what the page says and draws, what lies beside it, hostile text, bad folders, a real browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_study import DENSE, ERROR, HOSTILE, LONG, RTL, SEEDS, interval, make_study
from secateur.cli.main import main
from secateur.errors import UsageError
from secateur.reports import study_scores
from secateur.reports.drawing import Table
from secateur.reports.study_answer_figures import Line, _intervals
from secateur.reports.study_answers import groups_table, scale_of
from secateur.reports.study_answers import interval as interval_said
from secateur.reports.study_facts import Answer, Axis
from secateur.reports.study_folder import read_study
from secateur.reports.study_page import report
from secateur.reports.study_scores import compared_axis, control, number, score_table, scores, shown, summary
from secateur.reports.study_tables import csv_text, latex_text, markdown_table

PLAIN = ["self", "training files"]


class Page(HTMLParser):
    """Tags, ids, whatever would be fetched, and what a screen reader goes by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ids, self.fetched, self.headings = Counter(), [], [], []
        self.attributes, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.fetched.append(value)
            if key == "id":
                self.ids.append(value)
            if key.startswith("on"):
                self.attributes.append((tag, key))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A hostile study and its report."""
    folder = make_study(tmp_path_factory.mktemp("made") / "study")
    report([folder])
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A small one without its report."""
    return small(tmp_path / "study")


def small(place, **options):
    return make_study(
        place, sources=PLAIN, sparsities=["0.5", "0.6"], methods=["wanda"], metrics=["perplexity"], **options
    )


def files(folder):
    """Of the report, by name: the same folder makes the same bytes."""
    return {path.name: path.read_bytes() for path in [folder / "report.html", *(folder / "figures").iterdir()]}


def run(capsys, *arguments):
    code = main(["report", *map(str, arguments)])
    return code, *capsys.readouterr()


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


# The page


def test_the_page_is_one_file_that_needs_nothing_else(page):
    found = Page(page)
    assert all(value.startswith("#") for value in found.fetched)
    assert {value[1:] for value in found.fetched} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    allowed = re.findall(r"script-src 'sha256-([^']+)'", page)
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()]


def test_hostile_text_is_only_text(page):
    found = Page(page)
    assert not {"img", "iframe", "object", "link", "b", "i"} & found.tags.keys()
    assert found.tags["script"] == 1
    assert found.attributes == []
    words = "".join(found.words)
    for text in (HOSTILE, LONG, RTL, ERROR):
        assert text in words


def test_headings_go_down_one_by_one_and_tables_have_headers(page):
    found = Page(page)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(found.headings))
    assert page.count("<table") == page.count("<caption>") == page.count("<thead>")
    svgs = re.findall(r"<svg[^>]*>", page)
    assert len(svgs) == 11
    assert all('role="img"' in svg and re.search(r'aria-label="[^"]{30,}"', svg) for svg in svgs)
    assert '<html lang="en">' in page


def test_answers_come_first_the_primary_one_first_of_all(page):
    verdicts = re.findall(r'<section class="answer ([^"]*)"', page)
    assert verdicts == ["supported primary", "undecided", "not-supported"]
    assert (
        page.index('id="study-1-answers"') < page.index('id="study-1-scores"') < page.index('id="study-1-provenance"')
    )
    words = "".join(Page(page).words)
    assert "not supported that more of it is better" in words
    assert "Multiple comparisons: Holm over 6 tests." in words


def test_holes_are_told_with_their_sentences_and_never_counted(page, made):
    study = read_study(made)
    (failed,) = [cell for cell in study.cells if cell.status == "failed"]
    assert set(failed.values.values()) == {None}
    words = "".join(Page(page).words)
    assert "Of 154 cells, 1 failed; they are left out, never counted as 0" in words
    found = scores(study, "perplexity", failed.where)
    assert failed.seed not in found.values
    assert (len(found.values), found.asked) == (4, 5)
    assert "(4 of 5)" in words


def test_provenance_and_cost_are_on_the_page(page, made):
    words = "".join(Page(page).words)
    manifest = json.loads((made / "manifest.json").read_text())
    for text in (*manifest["files"].values(), "secateur study study.yaml --out out", "5" * 64, "2.8 hours", "1.25 GiB"):
        assert text in words
    assert (made / "study.yaml").read_text() in words


def test_figures_and_their_numbers_lie_beside_the_page(made):
    figures = made / "figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert names == {path.stem for path in figures.glob("*.csv")}
    assert {
        "answer-1",
        "facts-3",
        "paired-1",
        "scores-1-perplexity",
        "scores-2-cloze-acc",
        "curve-1-sparsity",
        "masks",
        "error",
    } <= names
    for path in figures.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        assert "#010203" not in path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO((figures / "scores-1-perplexity.csv").read_text(encoding="utf-8"))))
    cells = read_study(made).cells
    assert len(rows) == len(cells)
    for row, cell in zip(rows, cells, strict=True):
        value = cell.values["perplexity"]
        assert row["perplexity"] == ("" if value is None else repr(value))
        assert row["source"] == cell.where.get("source", "")
    pairs = list(csv.DictReader(io.StringIO((figures / "paired-1.csv").read_text(encoding="utf-8"))))
    assert len(pairs) == 6 * len(SEEDS) - 1


def test_a_correlation_shows_every_set_and_what_it_measured(made):
    answer = read_study(made).answers[2]
    rows = list(csv.DictReader(io.StringIO((made / "figures" / "facts-3.csv").read_text(encoding="utf-8"))))
    assert [(row["label"], row["seed"], float(row["jaccard"]), float(row["cloze/acc"])) for row in rows] == [
        (point["label"], str(point["seed"]), point["fact"], point["value"]) for point in answer.groups[0].points
    ]
    svg = (made / "figures" / "facts-3.svg").read_text(encoding="utf-8")
    assert svg.count("<use ") >= len(rows)


def test_every_repeat_is_drawn(made):
    svg = (made / "figures" / "scores-1-perplexity.svg").read_text(encoding="utf-8")
    cells = [cell for cell in read_study(made).cells if cell.control in ("", "random tokens") and cell.status == "done"]
    marks = re.findall(r'<g id="PathCollection_\d+">.*?</g>\s*</g>', svg, flags=re.DOTALL)
    assert sum(len(re.findall(r"<use ", mark)) for mark in marks) == len(cells)


# The numbers


def test_the_compared_axis_is_the_one_the_answer_leaves_free(made):
    study = read_study(made)
    across = compared_axis(study)
    assert across is not None
    assert across.name == "source"
    assert [tuple(one) for one in study_scores.settings(study, across)] == [("sparsity", "method")] * 6
    assert len(study_scores.settings(study)) == 24


def test_a_control_that_the_compared_axis_changes_is_shown_as_a_span(made):
    study = read_study(made)
    along = next(axis for axis in study.facts.axes if axis.name == "sparsity")
    for where in ({"source": "self", "method": "wanda"}, {"source": "self", "method": "sparsegpt"}):
        found = control(study, "magnitude", "perplexity", where)
        means = [control(study, "magnitude", "perplexity", where | {"sparsity": one}).mean for one in along.labels]
        assert len(set(means)) == len(means)
        assert (found.mean, found.span) == (None, (min(means), max(means)))
    table = score_table(study, "perplexity", along)
    assert table.caption.endswith("a span: over the labels of sparsity")
    column = table.columns.index("magnitude")
    assert all(re.fullmatch(r"[\d.]+ to [\d.]+", row[column]) for row in table.rows)


def test_controls_apply_where_their_labels_do(made):
    study = read_study(made)
    where = {"source": "self", "sparsity": "0.6", "method": "wanda"}
    assert control(study, "dense", "perplexity", where).mean == DENSE["perplexity"]
    magnitude = {
        one: control(study, "magnitude", "perplexity", where | {"sparsity": one}).mean for one in ("0.5", "0.6")
    }
    assert None not in magnitude.values()
    assert magnitude["0.5"] != magnitude["0.6"]
    assert len(control(study, "random tokens", "perplexity", where).values) == len(SEEDS)
    assert control(study, "magnitude", "perplexity", where | {"sparsity": "0.9"}).mean is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9, unique=True))
def test_the_interval_of_a_mean_is_students(values):
    found = summary({str(number): value for number, value in enumerate(values)}, len(values))
    assert (found.mean, found.low, found.high) == pytest.approx(interval(values), rel=1e-6, abs=1e-6)


def test_one_repeat_has_no_spread_and_none_is_a_dash():
    assert shown(summary({"0": 6.0512}, 1), 2) == "6.05"
    assert shown(summary({}, 5), 2) == "- (0 of 5)"
    assert shown(summary({}, 0), 2) == "-"
    assert shown(summary({"0": 1.0, "1": 2.0}, 3), 2) == "1.50 ± 0.71 (2 of 3)"


def test_numbers_keep_their_sign_and_lose_decimals_when_large():
    assert [number(value, 3) for value in (1.23456, -0.5, 123.456, 12345.6, None)] == [
        "1.235", "\N{MINUS SIGN}0.500", "123.5", "12,346", "-"]  # fmt: skip
    assert number(-0.0001, 2, "+") == "0.00"


def test_differences_of_logarithms_are_shown_as_per_cent():
    answer = Answer(kind="difference", metric="perplexity", unit="log perplexity", estimate=-0.1, low=-0.2, high=0.0)
    assert scale_of(answer).shown(-0.1) == pytest.approx(-9.516, abs=1e-3)
    assert (
        interval_said(answer)
        == "\N{MINUS SIGN}9.5 % (95 % interval \N{MINUS SIGN}18.1 % to 0.0 %), change of perplexity"
    )
    plain = answer.model_copy(update={"unit": "top1", "metric": "top1"})
    assert interval_said(plain).startswith("\N{MINUS SIGN}0.100 (95 % interval \N{MINUS SIGN}0.200 to 0.000)")
    assert interval_said(Answer()) == ""


def test_the_table_of_groups_has_every_setting_with_its_tests(made):
    table = groups_table(read_study(made).answers[0])
    assert len(table.rows) == 6
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert {row[table.columns.index("n")] for row in table.rows} == {"4", "5"}
    assert {row[-1] for row in table.rows} <= {"supported", "undecided"}


def test_labels_that_lost_their_writing_are_found_again():
    axis = Axis(name="sparsity", labels=["0.50", "0.6"], values=[0.5, 0.6])
    assert [axis.label(value) for value in ("0.50", 0.5, 0.6, None, "", "other")] == [
        "0.50",
        "0.50",
        "0.6",
        "",
        "",
        "other",
    ]


# Tables for elsewhere


def test_the_main_table_as_markdown(folder):
    study = read_study(folder)
    lines = markdown_table(score_table(study, "perplexity", compared_axis(study))).splitlines()
    assert lines[0] == "| sparsity | method | self | training files | dense | magnitude | random tokens |"
    assert lines[1] == "| --- | --- |" + " ---: |" * 5
    assert len(lines) == 4
    assert re.fullmatch(r"\| 0\.5 \| wanda \|( [\d.]+ ± [\d.]+ \|){2} 6\.05 \| [\d.]+ \| [\d.]+ ± [\d.]+ \|", lines[2])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_no_cell_breaks_a_table(text):
    table = Table("x", ["a", "b"], [[text, text]])
    lines = markdown_table(table).split("\n")
    assert len(lines) == 4
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3
    assert "<" not in lines[2].replace("\\<", "")
    assert next(csv.reader([csv_text(["a"], [["x"]]).splitlines()[1]])) == ["x"]


def test_latex_is_escaped():
    assert latex_text("50% of a_b & {c} #1 $x$ ~ ^ \\") == (
        r"50\% of a\_b \& \{c\} \#1 \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert latex_text("[x]*\n<a>") == r"{[}x{]}{*}?\textless{}a\textgreater{}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_takes_the_table(made, tmp_path):
    table = (made / "figures" / "main.tex").read_text(encoding="utf-8").replace(latex_text(RTL), "rtl")
    (tmp_path / "t.tex").write_text("\\documentclass{article}\\begin{document}\n" + table + "\\end{document}\n")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


# The command


def test_report_prints_the_answers_and_the_place_of_the_page(folder, capsys):
    code, printed, errors = run(capsys, folder)
    assert (code, errors) == (0, "")
    assert "supported: perplexity against 'training files': 'self'" in printed
    assert str(folder / "report.html") in printed
    first = files(folder)
    code, printed, _ = run(capsys, folder, "--json")
    assert code == 0
    (study,) = json.loads(printed)["studies"]
    assert study["finished"] is True
    assert study["answers"] == json.loads((folder / "answers.json").read_text())
    assert files(folder) == first


def test_several_studies_are_one_page_with_a_table_of_contents(folder, tmp_path, capsys):
    other = small(tmp_path / "other", finished=False)
    code, _, errors = run(capsys, folder, other)
    assert code == 2
    assert "--out FILE" in errors
    out = tmp_path / "new" / "both.html"
    code, printed, _ = run(capsys, folder, other, "--out", out)
    assert code == 0
    assert "not finished" in printed
    text = out.read_text()
    found = Page(text)
    assert len(found.ids) == len(set(found.ids))
    assert {"#study-1", "#study-2"} <= set(found.fetched)
    assert found.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(found.headings))
    assert "(not finished)" in text
    assert (tmp_path / "new" / "both-figures" / "study-2" / "main.tex").exists()
    assert not (folder / "report.html").exists()


def test_a_report_loads_no_torch(folder):
    code = (
        "import sys; from secateur.cli.main import main; "
        f"assert main(['report', {str(folder)!r}]) == 0; "
        "assert not {'torch', 'transformers', 'secateur.studies'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unfinished_study_says_so_and_what_is_not_there_is_left_out(tmp_path, capsys):
    folder = small(tmp_path / "half", finished=False)
    for name in ("linears.parquet", "masks.json", "samples.json", "answers.json", "study.yaml"):
        (folder / name).unlink()
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    rows[0]["value"] = float("inf")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "results.parquet")
    code, printed, _ = run(capsys, folder)
    assert code == 0
    assert "This study is not finished: 32 of 33 cells are done" in printed
    words = "".join(Page((folder / "report.html").read_text()).words)
    for text in (
        "No comparison has an answer yet.",
        "No overlap of masks",
        "No error of linears",
        "No samples",
        "no finite value of perplexity",
    ):
        assert text in words


def test_a_study_of_nothing_but_failures_still_has_a_page(folder, capsys):
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    rows = [row | {"value": None, "status": "failed", "error": "No memory."} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "results.parquet")
    code, printed, errors = run(capsys, folder)
    assert code == 0, errors
    assert "Of 33 cells, 33 failed" in printed
    assert "Changed or lost since the study finished, by manifest.json: results.parquet." in printed


def test_an_axis_may_be_called_as_a_column_of_the_results(folder):
    table = pyarrow.parquet.read_table(folder / "results.parquet")
    share = pyarrow.array([0.5] * table.num_rows)
    pyarrow.parquet.write_table(table.append_column("sparsity", share), folder / "results.parquet")
    assert read_study(folder).cells[-2].where == {"sparsity": "0.6"}


def test_a_study_of_one_axis_and_one_repeat(folder):
    change(folder / "study.json", axes=[{"name": "source", "labels": PLAIN, "values": None}], repeats=[0])
    rows = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    kept = [
        row
        for row in rows
        if row["control"] == "dense"
        or (not row["control"] and row["seed"] == 0 and row["sparsity"] == "0.6" and row["method"] == "wanda")
    ]
    kept = [{key: value for key, value in row.items() if key not in ("sparsity", "method")} for row in kept]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kept), folder / "results.parquet")
    (folder / "answers.json").write_text("[]")
    report([folder])
    assert (
        markdown_table(score_table(read_study(folder), "perplexity", compared_axis(read_study(folder)))).count("\n")
        == 3
    )


def damage(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without_column(folder, name, column):
    table = pyarrow.parquet.read_table(folder / name)
    pyarrow.parquet.write_table(table.drop_columns([column]), folder / name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), ["is not a study's folder: there is no such folder"]),
        (lambda folder: (folder / "study.json").unlink(), ["its manifest says 'study'"]),
        (lambda folder: [path.unlink() for path in folder.iterdir()], ["it has no study.json", "`secateur study`"]),
        (lambda folder: (folder / "results.parquet").unlink(), ["has no results.parquet", "run the study again"]),
        (lambda folder: damage(folder, "results.parquet", b"PAR1 no"), ["results.parquet is damaged", "again"]),
        (lambda folder: damage(folder, "linears.parquet", b""), ["linears.parquet is damaged"]),
        (lambda folder: damage(folder, "study.json", '{"question"'), ["study.json is damaged"]),
        (lambda folder: damage(folder, "study.json", b"\xff\xfe\x00"), ["study.json is damaged"]),
        (lambda folder: damage(folder, "answers.json", '[{"groups": [{"n": "x"}]}]'), ["answers.json: 0.groups.0.n", "found 'x'"]),
        (lambda folder: change(folder / "study.json", axes="x"), ["study.json: axes:", "found 'x'"]),
        (lambda folder: without_column(folder, "results.parquet", "status"), ["no column 'status'", "it has cell, source"]),
        (lambda folder: without_column(folder, "results.parquet", "method"), ["no column 'method'"]),
        (lambda folder: (change(folder / "manifest.json", secateur="9.9"), without_column(folder, "results.parquet", "seed")),
         ["no column 'seed'", "was written by 9.9, this is"]),
        (lambda folder: damage(folder, "report.html", "<p>mine</p>"), ["report.html exists", "not overwritten"]),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_said(folder, capsys, spoil, words):
    spoil(folder)
    code, printed, errors = run(capsys, folder)
    assert (code, printed) == (2, "")
    assert errors.count("\n") == 1
    for text in words:
        assert text in errors
    assert not (folder / "figures").exists()


def test_places_that_cannot_be_used_are_said(folder, tmp_path, capsys):
    assert "there is a file, not a folder" in run(capsys, folder / "study.json")[2]
    assert "Studies inside it: study" in run(capsys, tmp_path)[2]
    code, _, errors = run(capsys, folder, "--out", tmp_path)
    assert code == 2
    assert "is a folder; give a file" in errors
    assert run(capsys, folder, "--out", tmp_path / "page")[0] == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    folder.rename(tmp_path / ".study.abc.partial")
    code, _, errors = run(capsys, folder)
    assert code == 2
    assert ".study.abc.partial instead" in errors
    with pytest.raises(UsageError, match="No study was given"):
        report([])


@pytest.mark.parametrize(
    ("ends", "marks"),
    [
        ([(-0.2, 0.1), (-0.4, 0.3), (-9.0, 180.0)], ["0", "1", "10", "100", "\N{MINUS SIGN}1"]),
        ([(-90.0, 2.0), (0.1, 0.2), (0.1, 0.3)], ["0", "1", "\N{MINUS SIGN}1", "\N{MINUS SIGN}10"]),
        ([(1e-5, 2e-5), (1e-5, 3e-5), (0.01, 0.02)], ["0", "0.0001", "0.001", "0.01"]),
    ],
)
def test_a_scale_squeezed_by_one_wide_line_has_few_marks(ends, marks):
    """matplotlib's own marks on such a scale ran into each other."""
    lines = [Line("line", sum(pair) / 2, pair) for pair in ends]
    drawn = ElementTree.fromstring(_intervals(lines, "change"))
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(texts) == sorted([*marks, "change (asinh scale)", *3 * ["line"]])


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=quiet)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, made):
    """Open the page at a width; returns it with what it asked for and what the console said."""
    contexts = []

    def open_at(width, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        opened, asked, said = context.new_page(), [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        opened.goto((made / "report.html").as_uri())
        return opened, asked, said

    yield open_at
    for context in contexts:
        context.close()


WIDER = """() => [...document.querySelectorAll("body *")].filter(
  one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, pre, svg")).map(one => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_fetched_or_wider_than_a_phone(visit, made, scheme):
    opened, asked, said = visit(360, color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.evaluate(WIDER) == []
    assert asked == [(made / "report.html").as_uri()]
    assert said == []
    page_colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(255, 255, 255)") == (scheme == "light")
    ink = opened.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == opened.evaluate("getComputedStyle(document.body).color")


@pytest.mark.parametrize(("button", "name"), [("Markdown", "main.md"), ("LaTeX", "main.tex")])
def test_the_copy_buttons_copy_the_table(visit, made, button, name):
    opened, _, said = visit(1280, permissions=["clipboard-read", "clipboard-write"])
    opened.get_by_role("button", name=f"Copy as {button}").click()
    opened.get_by_text("copied").wait_for()
    copied = opened.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n")
    assert copied == (made / "figures" / name).read_text(encoding="utf-8")
    assert said == []


def test_without_scripts_the_page_is_whole_and_has_no_dead_buttons(visit):
    opened, _, said = visit(1280, java_script_enabled=False)
    assert opened.locator("button:visible").count() == 0
    assert opened.locator("svg:visible").count() >= 7
    opened.get_by_text("The table as Markdown").click()
    assert opened.locator("#study-1-markdown").is_visible()
    assert said == []


def test_on_paper_nothing_scrolls_or_is_left_out(visit):
    opened, _, _ = visit(794)
    opened.emulate_media(media="print")
    assert opened.locator("nav:visible").count() == 0
    assert opened.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert opened.locator("svg:visible").count() >= 7
