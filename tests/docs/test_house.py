"""The house stands: no import leads up, and its picture can be drawn."""

from pathlib import Path

import defusedxml.ElementTree
import house
import pytest


def test_lower_never_imports_higher() -> None:
    floors, found = house.floors(house.PAGE.read_text(encoding="utf-8")), list(house.imports(house.PACKAGE))
    assert len(found) > 300
    assert house.upward(floors, found) == []
    listed = [module for floor in floors for module in floor.modules]
    there = {path.relative_to(house.PACKAGE).parts[0].removesuffix(".py") for path in house.PACKAGE.rglob("*.py")}
    assert sorted(listed) == sorted(there - house.OUTSIDE)
    assert all(floor.text for floor in floors)


def test_the_picture_shows_every_floor() -> None:
    floors, found = house.floors(house.PAGE.read_text(encoding="utf-8")), list(house.imports(house.PACKAGE))
    shown = "".join(defusedxml.ElementTree.fromstring(house.drawing(floors, found)).itertext())
    assert all(module in shown for floor in floors for module in floor.modules)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from qmimic.top import x", "ground imports top"),
        ("def f():\n    import qmimic.top.y", "ground imports top"),
        ("import qmimic.attic", "attic has no floor"),
        ("from qmimic.middle import z", "ground imports middle"),
    ],
)
def test_an_import_that_leads_up_is_found(tmp_path: Path, line: str, said: str) -> None:
    package = tmp_path / "qmimic"
    package.mkdir()
    (package / "top.py").write_text("from qmimic.ground import a\nfrom qmimic import middle\n")
    (package / "middle.py").write_text("from qmimic import ground\n")
    (package / "ground.py").write_text("")
    floors = house.floors("Text\n\n    top        above\n    middle     between\n    ground     below\n\n    code\n")
    assert house.upward(floors, list(house.imports(package))) == []
    (package / "ground.py").write_text(f"{line}\n")
    (wrong,) = house.upward(floors, list(house.imports(package)))
    assert said in wrong
