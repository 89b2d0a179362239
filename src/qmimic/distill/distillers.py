"""All distillers by name."""

from qmimic.config import MimicConfig
from qmimic.distill.distiller import Distiller, Sides
from qmimic.distill.mimic import Mimic
from qmimic.tables import look_up

# What a student learns from its teacher; a recipe names one by `mimic.distiller`.
DISTILLERS: dict[str, type[Distiller]] = {
    "mimic": Mimic,
}


def build_distiller(config: MimicConfig, sides: Sides) -> Distiller:
    """The distiller of a recipe, with fresh weights.

    Raises:
        InputError: there is none of that name, or the two networks do not go together.
    """
    return look_up(DISTILLERS, config.distiller, "mimic.distiller")(config, sides)
