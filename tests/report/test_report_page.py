"""The page of a real run: complete in itself, escaped, its numbers those of the run, and honest about what it lacks."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from page_cases import EVIL, Page, read_page

from cli_cases import Refused, train
from qmimic.cli import main
from qmimic.errors import InputError
from qmimic.report import collect
from qmimic.report.page import commands, write_report
from qmimic.run.folder import read_run

SECTIONS = ["results", "learning", "curves", "errors", "maps", "data", "files", "again"]


def test_the_page_loads_nothing_and_runs_nothing(page: Page, written: Path) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                assert value is not None
                assert value.startswith(("#", "data:image/")), value
    policy = [own["content"] for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'; img-src data:;")
    style = written.read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_from_the_data_are_text(page: Page, written: Path) -> None:
    assert EVIL not in written.read_text()
    names = {row[0] for row in page.table("Boxes by class")[1:]}
    assert names == {EVIL, "$x^{ & \"'"}
    labels = [own["aria-label"] for tag, own in page.tags if tag == "svg" and "aria-label" in own]
    assert any(EVIL in (label or "") for label in labels)


def test_every_section_is_there_and_headings_are_in_order(page: Page) -> None:
    assert [own["id"] for tag, own in page.tags if tag == "section"] == SECTIONS
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [own["id"] for _, own in page.tags if "id" in own]
    assert len(ids) == len(set(ids))
    targets = {own["href"] for tag, own in page.tags if tag == "a"}
    assert {target[1:] for target in targets if target} <= set(ids)
    # Whoever cannot see the page is told what pictures show and what tables are.
    assert all(own.get("alt") for tag, own in page.tags if tag == "img")
    assert all("aria-label" in own or "aria-hidden" in own for tag, own in page.tags if tag == "svg")
    assert all("scope" in own for tag, own in page.tags if tag == "th")
    assert next(own for tag, own in page.tags if tag == "html") == {"lang": "en"}


def test_the_table_says_what_the_run_found(page: Page, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())["stages"]
    rows = page.table("Networks of this run")[1:]
    assert [row[0] for row in rows] == ["teacher", "quantized teacher", "scratch", "student (quantization mimic)"]
    for row, own in zip(rows, results, strict=True):
        assert row[1] == own["backbone"]
        assert row[2] == f"{100 * own['map50']:.1f}"
        assert row[4:6] == [f"{100 * own['map07']:.1f}", f"{100 * own['coco_map']:.1f}"]
        assert row[8:11] == [f"{own['parameters']:,}", f"{own['macs'] / 1e6:.1f}", f"{own['bytes'] / 1000:.0f}"]
        assert float(row[11]) > 0
    assert rows[3][6] == f"{100 * results[3]['matching']:.1f}"
    assert rows[2][3] == "\N{EN DASH}"
    assert re.fullmatch(r"[+\N{MINUS SIGN}][\d.]+ \[[+\N{MINUS SIGN}][\d.]+, [+\N{MINUS SIGN}][\d.]+\]", rows[3][3])
    # A network and its twin of the same description cost the same by definition.
    assert rows[2][11] == rows[3][11]


def test_the_matching_by_level_is_that_of_the_table(page: Page, run: Path) -> None:
    student = json.loads((run / "results.json").read_text())["stages"][-1]
    assert f"{100 * student['matching']:.1f} % over all levels" in page.text["maps"]
    columns = page.table("Maps of one image")[0]
    assert columns == ["channel", "teacher", "quantized teacher", "student, r(f)", "student, Q(r(f))"]


def test_counts_of_errors_add_up(page: Page) -> None:
    boxes = int(page.table("Labels of")[2][2])
    for row in page.table("Errors at each")[1:]:
        assert int(row[2]) + int(row[3]) == boxes
    small, medium, large, crowded, free = (int(row[1]) for row in page.table("Labelled boxes not found")[1:])
    assert small + medium + large == crowded + free == boxes


def test_defects_recipe_and_commands_are_told(page: Page, run: Path) -> None:
    assert page.table("What qmimic data check finds")[1][:2] == ["box outside image", "train0"]
    assert f"qmimic train {run}/recipe.yaml" in page.text["again"]
    assert "drop_bad_boxes: true" in page.text["again"]
    assert "Nothing has been exported" in page.text["files"]
    axes = ["optimizer step", "recall, %", "precision, %", "million multiply-accumulates per image (logarithmic)"]
    axes += [
        "mAP@0.5, %",
        "percentage points",
        "pixels (logarithmic)",
        "milliseconds per picture, one thread (logarithmic)",
    ]
    whole = " ".join(page.text.values())
    assert [label for label in axes if label not in whole] == []


def test_the_commands_name_the_best_student(run: Path) -> None:
    own = read_run(run)
    best = replace(own.results[-1], name="taylor", map50=0.99)
    told = commands(replace(own, results=(*own.results[:-1], best, own.results[-1])))
    assert f"qmimic export {run}/taylor.safetensors" in told
    assert "student.safetensors" not in told


def test_a_second_report_takes_what_was_kept(run: Path, written: Path, tmp_path: Path) -> None:
    said: list[str] = []
    again = write_report(run, tmp_path / "again.html", said.append)
    assert again.read_text() == written.read_text()
    assert [text for text in said if "on val" in text or "times every" in text] == []


def test_what_was_damaged_is_computed_again(run: Path, written: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    for file in (own / "report").iterdir():
        if file.name != "latency.json":  # to measure again takes long, and is kept by the same means
            file.write_bytes(b"{" + file.read_bytes()[: file.stat().st_size // 2])
    said: list[str] = []
    read = read_page(write_report(own, say=said.append))
    assert len([text for text in said if "on val" in text]) == 4
    assert read.table("Errors at each") == read_page(written).table("Errors at each")


def test_an_older_run_without_logs_checkpoints_and_environment_has_sentences(
    run: Path, written: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(own / "stages")
    (own / "environment.json").unlink()
    text = read_page(write_report(own)).text
    assert "The training logs are gone" in text["learning"]
    assert "the adaptor is in the checkpoints" in text["maps"]
    assert "environment.json" in text["again"]


def test_a_run_whose_data_are_gone_still_has_its_table(run: Path, written: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    recipe = own / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(run.parent / "data"), str(tmp_path / "gone")))
    page = read_page(write_report(own))
    assert len(page.table("Networks of this run")) == 5
    for section in ("results", "curves", "errors", "maps", "data"):
        assert "There is no folder" in page.text[section]


def test_the_command_writes_the_page_and_says_where(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(out)
    assert out.read_text().startswith("<!doctype html>")


def test_what_is_no_run_ends_in_a_sentence(refused: Refused, run: Path, tmp_path: Path) -> None:
    assert "is not a run folder" in refused("report", tmp_path)
    assert "only run" in refused("report", run, run)
    own = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("stages", "report", "*.safetensors"))
    (own / "results.json").write_text("{")
    assert "is not a whole JSON file" in refused("report", own)
    (own / "results.json").unlink()
    assert "has not finished" in refused("report", own)
    assert "Cannot write" in refused("report", run, "--out", "/proc/no/report.html")


def test_a_run_ends_with_its_report(run: Path, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written.read_text()
    written.unlink()
    arguments = [run.parent / "recipe.yaml", run.parent / "data", run, "data.drop_bad_boxes=true", "run.report=true"]
    assert train(*arguments) == 0
    assert f"Report: {written}" in capsys.readouterr().out
    assert written.read_text().replace("report: true", "report: false") == before


def test_an_export_writes_it_anew_with_the_files(
    run: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    assert main(["export", str(own / "student.safetensors"), "--int8", "--set", "int8.max_loss=1"]) == 0
    page = read_page(own / "report.html")
    files = {row[0]: row for row in page.table("Files in")[1:]}
    assert set(files) == {"student.onnx", "student-int8.onnx"}
    assert "in float" in files["student-int8.onnx"][4]
    rows = {row[0]: row for row in page.table("Networks of this run")[1:]}
    proof = json.loads((own / "deploy" / "parity.json").read_text())["student-int8.onnx"]
    assert rows["int8, student-int8.onnx"][2] == f"{100 * proof['map50']:.1f}"
    assert float(rows["int8, student-int8.onnx"][11]) > 0
    # A file that was made from another run's network is none of this one's.
    results = own / "results.json"
    tree = json.loads(results.read_text())
    del tree["sum"]
    results.write_text(json.dumps(tree).replace(tree["stages"][-1]["key"], "0" * 12))

    def untimed(*_: object) -> None:
        raise InputError("Not timed again.")

    monkeypatch.setattr(collect, "timing", untimed)  # it takes most of a report
    text = read_page(write_report(own)).text
    assert "is not the network that" in text["results"]
    assert "belongs to this run's networks, as said at the top; export them again" in text["files"]
