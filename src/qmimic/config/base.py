"""What sections of a recipe are made of: strict models, names that a table knows, ranges; and their fingerprint."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from qmimic.errors import InputError
from qmimic.plain_words import in_words
from qmimic.tables import BACKBONES, Table, parse_backbone, unknown

T = TypeVar("T")

NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"  # of runs and studies, which name folders
ADVANCED = "advanced"
Advanced = Annotated[T, ADVANCED]  # a setting that hardly anybody needs


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        # To Python, and so to pydantic, True is the number 1; in YAML it is the word yes, on or true.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("needs a value other than yes or no")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("contains a NUL character; remove it")
        return value


def check_own(settings: Mapping[str, Any], model: type[Section], key: str, owner: str) -> None:
    """Check the own settings of what a recipe names.

    Args:
        settings: as given.
        model: says which there are.
        key: where they stand.
        owner: whose they are, as a recipe says it: `mimic.distiller=channel_wise`.

    Raises:
        ValueError: one is unknown or has a bad value; a sentence without its stop.
    """
    try:
        model.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = in_words(first)
        if first["type"] == "extra_forbidden":
            known = list(model.model_fields)
            message = unknown("setting", name, known).removesuffix(".") if known else f"{owner} has none; leave it out"
        raise ValueError(f"{key}.{name}: {message}") from error


@dataclass(frozen=True, eq=False)
class InTable:
    """Of a name: it is one of a table's, when the recipe is read."""

    table: Table[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.table)}

    def _known(self, name: str) -> str:
        if name not in self.table:
            raise _refusal(unknown(self.table.key, name, self.table), self.table)
        return name


def _refusal(sentence: str, table: Table[Any]) -> PydanticCustomError:
    """What `explain` gives back as it is, after the key where the sentence does not have it."""
    return PydanticCustomError("sentence", "{said}", {"said": sentence, "names": table.key})


def _backbone(name: str) -> str:
    try:
        parse_backbone(name)
    except InputError as error:
        raise _refusal(str(error), BACKBONES) from error
    return name


def _folder_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError("may hold letters, digits, '.', '_' and '-', and begins with a letter or a digit")
    return name


def _input_size(size: tuple[int, int]) -> tuple[int, int]:
    if any(side % 16 or not 32 <= side <= 4096 for side in size):
        raise ValueError("needs two multiples of 16 from 32 to 4096, height and width")
    return size


def _levels(strides: tuple[int, ...]) -> tuple[int, ...]:
    if not strides or set(strides) - {8, 16, 32} or list(strides) != sorted(set(strides)):
        raise ValueError("needs one to three of the strides 8, 16 and 32, each once, in growing order")
    return strides


Levels = Annotated[tuple[int, ...], AfterValidator(_levels)]
InputSize = Annotated[tuple[int, int], AfterValidator(_input_size)]
FolderName = Annotated[str, AfterValidator(_folder_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})]
BackboneName = Annotated[str, AfterValidator(_backbone)]
Side = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def fingerprint(*parts: object) -> str:
    """Twelve hexadecimal digits that name a combination of settings; equal settings, equal name."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
