"""Tables and arms: every name stands for something, and a name that no table has is refused with the near one."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmimic import arms, tables
from qmimic.arms import ARMS
from qmimic.config import Recipe, settings
from qmimic.errors import InputError
from qmimic.tables import Table, UnknownNameError, look_up, near, unknown

TABLES = [one for module in (tables, arms) for one in vars(module).values() if isinstance(one, Table)]
NAMES = ["align", "pool", "uniform", "power_of_two", "tensorboard"]


def test_there_are_tables() -> None:
    assert len(TABLES) >= 5


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.key)
def test_every_name_stands_for_something(table: Table[object]) -> None:
    keys = {one.key for one in settings()}
    assert table.key in keys | {key.rpartition(".")[2] for key in keys}  # of one key, or of all that end so
    assert len(table) == len(list(table)) > 1
    for name in table:
        assert table[name] is table[name]
        assert not isinstance(table[name], str)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.key)
def test_what_a_table_lacks_is_refused_with_the_near_name(table: Table[object]) -> None:
    for name in table:
        wrong = name[:-1] + "#"
        with pytest.raises(UnknownNameError) as caught:
            table[wrong]
        assert str(caught.value).startswith(f"Unknown {table.key} {wrong!r}; did you mean {near(wrong, table)}?")
        assert isinstance(caught.value, InputError)
        assert table.get(wrong) is None
        assert wrong not in table


@given(st.sampled_from(NAMES), st.integers(0, 20), st.characters(categories=["Lu"]))
def test_one_wrong_letter_leads_to_the_name(name: str, place: int, letter: str) -> None:
    place %= len(name)
    assert near(name[:place] + letter + name[place + 1 :], NAMES) == name


@given(st.text())
def test_any_text_is_answered_in_one_short_sentence(text: str) -> None:
    said = unknown("backbone", text, NAMES)
    assert "\n" not in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sqared", "Unknown mimic.distance 'sqared'; did you mean squared? Known: squared, cell."),
        ("xyz", "Unknown mimic.distance 'xyz'; Known: squared, cell."),
    ],
)
def test_a_plain_mapping_is_looked_up_alike(name: str, said: str) -> None:
    table = {"squared": 1, "cell": 2}
    assert look_up(table, "cell", "mimic.distance") == 2
    with pytest.raises(InputError) as caught:
        look_up(table, name, "mimic.distance")
    assert str(caught.value) == said


def test_an_entry_can_be_added_and_is_imported_when_it_is_asked_for() -> None:
    table: Table[Callable[[str], str]] = Table("run.dir", {"dumps": "json:dumps", "wrong": "no_such_module:thing"})
    assert set(table) == {"dumps", "wrong"}  # nothing was imported
    assert table["dumps"]("a") == '"a"'
    table["mine"] = str.upper
    assert table["mine"]("a") == "A"
    del table["mine"]
    assert "mine" not in table


def test_arms_change_what_they_say_and_nothing_else() -> None:
    recipe = Recipe(data={"unlabelled": "frames"})
    for name, arm in ARMS.items():
        own = recipe.changed(arm.settings)
        plain, before = own.model_dump(), recipe.model_dump()
        moved = {
            f"{section}.{key}"
            for section in ("data", "mimic", "pruning", "student")
            for key in plain[section]
            if plain[section][key] != before[section][key]
        }
        assert moved <= set(arm.settings), name
        others = plain.keys() - {"data", "mimic", "pruning", "student"}
        assert {key: plain[key] for key in others} == {key: before[key] for key in others}
        assert (own.data.unlabelled is not None) == (arm.taught or arm.pruned), name
        if name != "labelled":  # all else of it is the recipe's
            assert own.needs_teachers == (arm.taught or arm.pruned or own.student.quantize_map), name
        assert Recipe.model_validate(own.model_dump()) == own  # it is a recipe that could be written


def test_stages_have_an_order_and_teachers_are_known() -> None:
    assert arms.order() == (
        "teacher", "quantized_teacher", "scratch", "quantized", "mimic", "labelled", "separable", "grouped", "taylor",
        "lasso", "student",
    )  # fmt: skip
    assert [name for name in (*arms.order(), "pruned_taylor", "pruned_lasso", "x") if arms.is_teacher(name)] == [
        "teacher", "quantized_teacher", "pruned_taylor", "pruned_lasso",
    ]  # fmt: skip


def test_a_name_of_timm_is_looked_up_where_timm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(tables, "imported", lambda place: seen.append)
    for there in (True, False):
        monkeypatch.setattr(tables, "find_spec", lambda _, there=there: there or None)
        assert tables.parse_backbone("timm:tf_efficientnet_lite0.in1k") == ("timm:tf_efficientnet_lite0.in1k", 1.0)
        with pytest.raises(InputError, match=r"timm has no network '\.\./x'"):
            tables.parse_backbone("timm:../x")
    assert seen == ["tf_efficientnet_lite0.in1k"]
