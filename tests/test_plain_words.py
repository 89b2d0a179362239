"""Faults of values are told in plain words, none of them pydantic's own."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from qmimic.config import load_recipe
from qmimic.errors import InputError
from qmimic.plain_words import in_words


class Point(BaseModel):
    x: int


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "many", "needs a whole number"),
        (int, 1.5, "needs a whole number"),
        (int, [1], "needs a whole number"),
        (float, "high", "needs a number"),
        (float, None, "needs a number"),
        (FiniteFloat, float("nan"), "needs a finite number"),
        (bool, "perhaps", "needs true or false"),
        (bool, [1], "needs true or false"),
        (str, 3, "needs text"),
        (dict[str, int], 3, "needs `name: value` pairs"),
        (Point, 3, "needs `name: value` pairs"),
        (Point, {}, "is missing"),
        (list[int], 3, "needs a list"),
        (tuple[int, ...], 3, "needs a list"),
        (Annotated[list[int], Field(min_length=1)], [], "needs 1 or more values"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "needs 1 or fewer values"),
        (Annotated[int, Field(ge=1)], 0, "needs at least 1"),
        (Annotated[int, Field(gt=1)], 1, "needs more than 1"),
        (Annotated[int, Field(le=1)], 2, "needs at most 1"),
        (Annotated[int, Field(lt=1)], 1, "needs less than 1"),
        (Annotated[str, Field(pattern=r"\S")], " ", r"does not fit the pattern \S"),
        (Literal["adamw", "sgd"], "adam", "needs adamw or sgd"),
    ],
)
def test_each_kind_of_fault(kind: Any, value: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    assert in_words(caught.value.errors()[0]) == words


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"In .*a\.yaml: student\.steps: needs a whole number \(given: 'many'\)"),
        (["student.steps=more"], r"In student\.steps=more: student\.steps: needs a whole number \(given: 'more'\)"),
        (["student.steps=1", "student.steps=2.5"], r"In student\.steps=2\.5: "),
        (["student={steps: -1}"], r"In student=\{steps: -1\}: student\.steps: needs at least 1"),
        (["seed=3"], r"In .*a\.yaml: student\.steps: "),
        (["student.steps=1", "student.stepss=1"], r"In student\.stepss=1: unknown key 'student\.stepss'; did you mean"),
    ],
)
def test_an_override_is_blamed_where_the_key_is_its_own(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("student: {steps: many}")
    with pytest.raises(InputError, match=message):
        load_recipe(path, overrides)
