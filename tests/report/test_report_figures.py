"""Figures are parts of a page: the page's colours, ids of their own, named axes, and labels that are text."""

import re

import numpy as np
import pytest
from defusedxml import ElementTree

from qmimic.report import figures
from qmimic.report.panels import Panel, styles
from qmimic.scores.bootstrap import Interval
from qmimic.scores.statistics import estimate

TITLES = ["teacher", "scratch", 'student <b style="color:#0072b2">']
STYLE = styles(TITLES)
CURVE = np.linspace(0, 1, 9), np.linspace(1, 0.5, 9)
LOG = [{"step": 10 * k, "loss": 2.0 / k, "map50": 0.1 * k} for k in range(1, 6)]
PANELS = {
    "gains": figures.gains({title: Interval(0.01, -0.02, 0.03) for title in TITLES}, STYLE, "scratch"),
    "seeds": figures.seed_gains({TITLES[2]: estimate([0.1, 0.2])}, STYLE, "scratch", "seeds-0"),
    "costs": figures.costs([(title, 2.0 + k, 0.5) for k, title in enumerate(TITLES)], STYLE, "ms a picture", "cost"),
    "loss": figures.learning(dict.fromkeys(TITLES, LOG), "loss", STYLE, "training loss"),
    "scores": figures.learning(dict.fromkeys(TITLES, LOG), "map50", STYLE, "mAP@0.5, %"),
    "curves": figures.precision_recall("$a_b <c> & #0072b2", 3, dict.fromkeys(TITLES, CURVE), STYLE),
    "errors": figures.error_costs({title: {"missed": 0.1, "both": 0.0} for title in TITLES}, STYLE),
    "levels": figures.levels(["0", "1", "8 and up"], [0.5, 0.3, 0.2], [0.9, 0.4, 0.1]),
    "sides": figures.box_sides({"trained on": np.array([3.0, 40.0], np.float32)}, 16),
}
AXES = {
    "gains": ["mAP@0.5 above scratch, percentage points"],
    "seeds": ["mAP@0.5 above scratch, percentage points"],
    "costs": ["ms a picture (logarithmic)", "mAP@0.5 on val, %"],
    "loss": ["optimizer step", "training loss"],
    "scores": ["optimizer step", "mAP@0.5, %"],
    "curves": ["recall, %", "precision, %"],
    "errors": ["mAP@0.5 lost to it, percentage points"],
    "levels": ["level of the teacher's entry in the dictionary", "share of entries, %"],
    "sides": ["root of a box's area, pixels (logarithmic)", "share of the split's boxes, %"],
}


@pytest.mark.parametrize("name", PANELS)
def test_a_figure_is_named_and_wears_the_colours_of_its_page(name: str) -> None:
    own = PANELS[name]
    assert isinstance(own, Panel)
    tree = ElementTree.fromstring(own.svg)  # whole, and every label escaped
    texts = ["".join(one.itertext()).strip() for one in tree.iter() if one.tag.endswith("text")]
    assert [label for label in AXES[name] if label not in texts] == []
    styles_said = " ".join(one.get("style", "") for one in tree.iter())
    # Outlines without a colour are black to a browser, which nobody sees at night.
    assert re.findall(r"#[0-9a-f]{6}", styles_said) == []
    assert "var(--" in styles_said
    assert "width" not in tree.attrib
    assert "metadata" not in own.svg


def test_ids_are_those_of_one_figure_alone() -> None:
    seen: set[str] = set()
    for own in PANELS.values():
        assert own is not None
        ids = set(re.findall(r' id="([^"]*)"', own.svg))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', own.svg))
        assert used <= ids
        assert not ids & seen
        seen |= ids


def test_a_class_may_be_named_like_mathematics_or_a_colour() -> None:
    own = PANELS["curves"]
    assert own is not None
    texts = [t.text for t in ElementTree.fromstring(own.svg).iter() if t.tag.endswith("text")]
    assert "$a_b <c> & #0072b2" in [(text or "").strip() for text in texts]


def test_a_class_may_have_any_name() -> None:
    for name in ("\ud800 lone", "tab\tnull\0 line\n", "数字", "long " * 99, ""):
        own = figures.precision_recall(name, 0, {TITLES[0]: CURVE}, STYLE)
        ElementTree.fromstring(own.svg)


def test_networks_are_told_apart_without_colour() -> None:
    names = ["teacher", "quantized teacher", "scratch", "mimic", "student (x)", "separable", "grouped", "taylor"]
    looks = [(own.dashes, own.marker) for own in styles(names).values()]
    assert len(set(looks)) == len(looks)


def test_logs_without_a_value_make_no_figure() -> None:
    assert figures.learning({"teacher": [{"step": 1}]}, "loss", STYLE, "loss") is None
