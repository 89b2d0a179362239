"""Recipes: what is refused and how it is said, overrides, files, names of settings."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmimic.cli import main
from qmimic.config import Recipe, fingerprint, load_recipe, recipe_from, save_recipe, settings
from qmimic.config.recipe import GONE
from qmimic.errors import InputError

RECIPES = Path(__file__).parents[1] / "recipes"
SCHEMA = RECIPES / "recipe.schema.json"
FILES = sorted(RECIPES.glob("*.yaml"))


def refusal(*overrides: str, path: Path | None = None) -> str:
    """The sentence that refuses a recipe."""
    with pytest.raises(InputError) as caught:
        load_recipe(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What is refused


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("student.step=3", "student.steps"),
        ("techer.steps=3", "teacher"),
        ("learning_rate=1", "teacher.learning_rate"),
        ("anchors=[[1, 2]]", "detector.anchors"),
        ("mimic.normalise=paper", "mimic.normalize"),
    ],
)
def test_an_unknown_key_names_the_near_one(override: str, near: str) -> None:
    message = refusal(override)
    assert f"unknown key {override.split('.')[0] if near == 'teacher' else override.split('=')[0]!r}" in message
    assert f"did you mean {near}?" in message


def test_an_unknown_key_without_a_near_one_leads_to_the_list() -> None:
    assert "`qmimic train --help` lists the keys" in refusal("xyzzy=3")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teacher.steps=many", "teacher.steps: "),
        ("teacher.steps=1.5", "teacher.steps: "),
        ("teacher.steps=0", "teacher.steps: "),
        ("teacher.steps=[3]", "teacher.steps: "),
        ("seed=yes", "seed: needs a value other than yes or no"),
        ("student.quantize_map=3", "student.quantize_map: "),
        ("data.size=64", "data.size: "),
        ("data.size=[64]", "data.size"),
        ("data.size=[64, 100]", "data.size: needs two multiples of 16"),
        ("data.size=[64, 8192]", "data.size: needs two multiples of 16"),
        ("detector.anchors=[]", "detector.anchors: "),
        ("detector.anchors=[[16, -16]]", "detector.anchors.0.1: "),
        ("detector.output_stride=32", "detector.output_stride: "),
        ("augment.scale=[1.2, 0.8]", "augment.scale needs"),
        ("mimic.mode=both", "Unknown mimic.mode 'both'; Known: none, mimic, quantization"),
        ("mimic.weight=.nan", "mimic.weight: "),
        ("mimic.weight=.inf", "mimic.weight: "),
        ("teacher=3", "teacher: "),
        ("name=../elsewhere", "name: "),
        ("baselines=[mimik]", "Unknown baselines 'mimik'; did you mean mimic?"),
        ("detector.roi_pooling=algn", "Unknown detector.roi_pooling 'algn'; did you mean align?"),
        ("mimic.mode=quantisation", "Unknown mimic.mode 'quantisation'; did you mean quantization? Known: none, mimic"),
        (
            "detector.architecture=fast_rcnn",
            "architecture: Unknown architecture 'fast_rcnn'; did you mean faster",
        ),
        ("teacher.detector=onestage", "teacher.detector: Unknown architecture 'onestage'; did you mean one_stage?"),
        (
            "student.backbone=resnet19/16",
            "student.backbone: Unknown backbone 'resnet19'; did you mean resnet18?",
        ),
        ("teacher.backbone=vgg16/0", "teacher.backbone: Backbone 'vgg16/0' needs a width divisor from 1 to 4096"),
        ("teacher.backbone=timm:resnet18/4", "teacher.backbone: timm has no network 'resnet18/4'; "),
        ("quantizer.kind=unifrom", "did you mean uniform?"),
        ("run.trackers=[tensorbord]", "Unknown run.trackers 'tensorbord'; did you mean tensorboard?"),
        ("student.optimizer=adam", "Unknown student.optimizer 'adam'; did you mean adamw? Known: adamw, sgd"),
        ("mimic.regions=[teacher]", "mimic.regions: "),
        ("data.root=", "data.root: "),
    ],
)
def test_a_wrong_value_names_its_key(override: str, says: str) -> None:
    assert says in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["data.val=train"], ["data.train", "data.val"]),
        (["mimic.map_steps=0.5", "mimic.last_step=0.4"], ["mimic.map_steps", "mimic.last_step"]),
        (
            ["student.quantize_map=true", "quantizer.per_channel=true"],
            ["student.quantize_map", "quantizer.per_channel"],
        ),
    ],
)
def test_settings_that_exclude_each_other_are_both_named(overrides: list[str], names: list[str]) -> None:
    message = refusal(*overrides)
    assert all(name in message for name in names)
    for override in overrides:
        if override != "data.val=train":
            load_recipe(None, [override.replace("0.4", "1")])  # each alone is good


def test_what_is_gone_is_left_out_where_it_says_what_holds_anyway(tmp_path: Path) -> None:
    assert not {one.key for one in settings()} & set(GONE)
    for key, value in GONE.items():
        assert load_recipe(None, [f"{key}={json.dumps(value)}"]) == Recipe()
        assert f"{key} is no longer a setting: it is always {value}; leave it out" in refusal(f"{key}=7")
    old: dict[str, dict[str, Any]] = {}
    for key, value in GONE.items():
        section, _, name = key.partition(".")
        old.setdefault(section, {})[name] = value
    assert Recipe.model_validate_json(json.dumps(old)) == Recipe()  # as a study's table keeps them
    assert load_recipe(written(tmp_path, yaml.safe_dump(old)), []) == Recipe()


# Overrides


def test_overrides_are_yaml_and_reach_into_sections(tmp_path: Path) -> None:
    path = written(tmp_path, "teacher: {steps: 7}\ndata: {root: photos}\n")
    overrides = [
        "teacher.learning_rate=2e-3",
        "student.steps=5",
        "data.size=[64, 96]",
        "data.root=other=photos",
        "detector.anchors=[[16, 16], [32.5, 16]]",
        "student.quantize_map=yes",
        "mimic={mode: none}",
        "mimic.weight=0.5",
        "seed=1",
        "seed=2",
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.teacher.steps, recipe.teacher.learning_rate, recipe.student.steps) == (7, 0.002, 5)
    assert recipe.data.size == (64, 96)
    assert recipe.data.root == "other=photos"
    assert recipe.detector.anchors == ((16, 16), (32.5, 16))
    assert recipe.student.quantize_map is True
    assert (recipe.mimic.mode, recipe.mimic.weight) == ("none", 0.5)
    assert recipe.seed == 2  # the last word counts


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed:3"])
def test_an_override_has_a_key_and_a_value(override: str) -> None:
    assert "is not an override; write key.sub=value" in refusal(override)


@pytest.mark.parametrize(
    "override",
    [
        "name=[",
        "name=2024-99-99",
        "seed=!!int x",
        "seed=!!bool x",
        "name=!!timestamp x",
        "name=a\x00",
        "seed=" + "1" * 9999,
    ],
)
def test_an_override_that_is_no_yaml_is_said_so(override: str) -> None:
    assert "is not valid YAML" in refusal(override)


def test_an_override_into_a_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 3\n")
    assert "seed is a value, not a section" in refusal("seed.x=3", path=path)
    assert "unknown key" in refusal("..=3")


# Files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_recipes_load(path: Path) -> None:
    recipe = load_recipe(path, [])
    assert recipe.name == path.stem
    assert recipe.folder == Path("runs") / path.stem


def test_there_are_recipes() -> None:
    assert {"demo", "bccd"} <= {path.stem for path in FILES}


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "{}"):
        assert load_recipe(written(tmp_path, text), []) == Recipe()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "it needs `key: value` lines"),
        ("just words", "it needs `key: value` lines"),
        ("seed: 1\nname: [a\n", "not valid YAML (line"),
        ("seed: 1\n\tname: a\n", "not valid YAML (line 2"),
        ("seed: 1\nname: a\nseed: 2\n", "not valid YAML (line 3: the key 'seed' is given twice)"),
        ("teacher: {steps: 1, steps: 2}", "the key 'steps' is given twice"),
        ("seed: !!python/object/apply:os.getpid []", "not valid YAML"),
        ("1: 2", "1"),
        (b"\xff\xfe\x00\x00\x01", "not valid YAML"),
        ("seed: " + "[" * 20_000, "not valid YAML"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = written(tmp_path, text)
    message = refusal(path=path)
    assert str(path) in message
    assert says in message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.yaml") in refusal(path=tmp_path / "no.yaml")
    assert str(tmp_path) in refusal(path=tmp_path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, "#" * (1 << 20) + "\nseed: 1\n")
    assert "over 1 MiB" in refusal(path=path)
    assert load_recipe(written(tmp_path, "seed: 1\n" + "#" * ((1 << 20) - 8)), []).seed == 1


@pytest.mark.parametrize("key", ["name: *i", "<<: *i"])
def test_a_yaml_bomb_does_not_go_off(tmp_path: Path, key: str) -> None:
    # Nine aliases a line, nine lines: 9^9 entries, were they ever expanded.
    listed = "<<: [{}]" if key.startswith("<<") else "x: [{}]"
    lines = ["a: &a {seed: 1}"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        content = listed.format(", ".join([f"*{before}"] * 9))
        lines.append(f"{name}: &{name} {{{content}}}")
    path = written(tmp_path, "\n".join([*lines, key]))
    start = time.monotonic()
    assert "line 2: aliases (*name) are refused" in refusal(path=path)
    assert time.monotonic() - start < 2


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    overrides = ["detector.anchors=[[16, 24.5]]", "data.root=Zürich/fotos", "mimic.mode=none", "run.dir=somewhere"]
    for recipe in (Recipe(), load_recipe(None, overrides), *(load_recipe(path, []) for path in FILES)):
        path = tmp_path / "run" / "recipe.yaml"
        save_recipe(recipe, path)
        assert load_recipe(path, []) == recipe
        # Resolved: every key is in the file, so that later defaults do not change an old run.
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(saved) == set(Recipe.model_fields)
        assert set(saved["student"]) == set(type(recipe.student).model_fields)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3


# Fingerprints


def test_equal_settings_have_equal_names() -> None:
    one = recipe_from({"teacher": {"learning_rate": 1, "steps": 30}, "data": {"size": [64, 64]}}, "here")
    other = recipe_from({"data": {"size": (64, 64)}, "teacher": {"steps": "30", "learning_rate": 1.0}}, "there")
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one, 3, "a") == fingerprint(other, 3, "a")
    assert len(fingerprint(one)) == 12
    assert int(fingerprint(one), 16) >= 0
    assert fingerprint(1, {"b": [1.5, None], "a": "ü"}) == fingerprint(1, {"a": "ü", "b": (1.5, None)})


def test_different_settings_have_different_names() -> None:
    recipes = [
        load_recipe(None, [override])
        for override in (
            "seed=0",
            "seed=1",
            "teacher.steps=3",
            "student.steps=3",
            "mimic.weight=0.1",
            "mimic.mode=none",
        )
    ]
    names = [fingerprint(recipe) for recipe in recipes]
    names += [fingerprint(recipes[0], 1), fingerprint(recipes[0], "1"), fingerprint(1, recipes[0])]
    names += [fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint(["ab", "c"])]
    assert len(set(names)) == len(names)


# Help and schema


def tree_keys(section: dict[str, Any], prefix: str = "") -> list[str]:
    """Every key of a recipe as plain values."""
    keys = []
    for name, value in section.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += tree_keys(value, f"{prefix}{name}.")
    return keys


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    keys = tree_keys(Recipe().model_dump())
    assert len(keys) > 80
    assert [key for key in listed if key in keys] == keys


def test_defaults_in_the_help_are_what_one_types(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    keys = tree_keys(Recipe().model_dump())
    overrides = []
    for line in capsys.readouterr().out.splitlines():
        key = line.split()[0] if line.startswith("  ") else ""
        if key in keys and line.endswith("]"):
            default = line[line.index(" [") + 2 : -1].split("; one of ")[0]
            overrides.append(f"{key}={default}")
    assert len(overrides) > 80
    assert load_recipe(None, overrides) == Recipe()


def test_an_optional_choice_names_its_choices() -> None:
    assert "'soft'; Known: none, sigmoid" in refusal("teacher.kind=onnx", "teacher.objectness_activation=soft")
    assert "Known: 16, 8" in refusal("detector.output_stride=soft")


def test_a_list_that_is_too_short_is_named() -> None:
    assert "teacher.size: needs more values than the 1 given" in refusal("teacher.kind=onnx", "teacher.size=[64]")


def test_the_schema_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert SCHEMA.read_text() == capsys.readouterr().out, "run `qmimic schema > recipes/recipe.schema.json`"


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value satisfies the parts of JSON Schema that the recipe's schema uses."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return any(fits(value, one, root) for one in schema["anyOf"])
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else int | float):
            return False
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind and not isinstance(value, kinds[kind]):
        return False
    if kind == "object":
        if "properties" not in schema:  # of any names
            return all(fits(one, schema["additionalProperties"], root) for one in value.values())
        known = schema["properties"]
        return set(value) <= set(known) and all(fits(value[key], known[key], root) for key in value)
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]] * len(value)
        return len(items) == len(value) and all(fits(v, one, root) for v, one in zip(value, items, strict=True))
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_recipes_satisfy_the_schema(path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA.name}\n")
    tree = yaml.safe_load(text)
    assert fits(tree, schema, schema)
    assert not fits(tree | {"sed": 1}, schema, schema)
    assert not fits(tree | {"teacher": {"steps": "many"}}, schema, schema)
    assert not fits(tree | {"mimic": {"mode": "both"}}, schema, schema)
    assert fits(json.loads(Recipe().model_dump_json()), schema, schema)
