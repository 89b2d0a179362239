"""A table refuses what it does not know, and names the nearest entry."""

import pytest

from qmimic.errors import InputError
from qmimic.tables import look_up

TABLE = {"squared": 1, "cell": 2}


def test_a_known_name_gives_its_entry() -> None:
    assert look_up(TABLE, "cell", "mimic.distance") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sqared", "Unknown mimic.distance 'sqared'; did you mean squared? Known: squared, cell."),
        ("xyz", "Unknown mimic.distance 'xyz'; Known: squared, cell."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        look_up(TABLE, name, "mimic.distance")
    assert str(caught.value) == said
