"""A study of seconds on a folder of noise."""

from pathlib import Path

from cli_cases import RECIPE, coco

STUDY = """
name: small
recipe: recipe.yaml
question: Does it run?
set: {data.root: DATA, data.cache_mib: 8}
arms:
  scratch: {mimic.mode: none}
  mimic: {mimic.mode: mimic}
  quantized: {mimic.mode: quantization, mimic.weight: 0.5}
seeds: [3, 4]
"""


def study_file(root: Path, text: str = STUDY) -> Path:
    """The study's file beside its recipe and data."""
    data = root / "data" if (root / "data").is_dir() else coco(root / "data")
    (root / "recipe.yaml").write_text(RECIPE)
    path = root / "study.yaml"
    path.write_text(text.replace("DATA", str(data)))
    return path
