"""One JSON file of COCO's layout, read entry by entry: what is wrong with one does not refuse the rest."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from qmimic.config import explain
from qmimic.data.labels import bounds, finite, read_text
from qmimic.errors import InputError
from qmimic.files import parse_json

Id = Annotated[int, Field(strict=True)]  # a text is another id than the number that it shows


class _Image(BaseModel):
    id: Id | str
    file_name: str
    width: PositiveInt | None = None
    height: PositiveInt | None = None


class Annotation(BaseModel):
    """A box: COCO's fields, and what other programs add; of these nothing that is odd makes the box unreadable."""

    image_id: Id | str
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False
    difficult: bool = False
    ignore: Any = None
    attributes: Any = None

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2; of a box that is turned, as CVAT has them, those around it."""
        x, y, width, height = self.bbox
        box = x, y, x + width, y + height
        degrees = self.attributes.get("rotation") if isinstance(self.attributes, dict) else None
        return bounds(box, degrees) if isinstance(degrees, int | float) and finite(degrees) and degrees else box


class _Category(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: Id
    name: Annotated[str, StringConstraints(pattern=r"\S")]
    supercategory: str | None = None


class CocoFile(BaseModel):
    """COCO's layout, as far as detection uses it, read entry by entry.

    Attributes:
        images, annotations, categories: the entries that can be read.
        faults: what is wrong with the others, one sentence each.
        broken: ids of the images of which an annotation cannot be read.
        unread: (entries of `images`, annotations) that cannot be read.
    """

    images: list[_Image]
    annotations: list[Annotation] = []
    categories: list[_Category] = []
    faults: list[str] = []
    broken: set[int | str] = set()
    unread: tuple[int, int] = (0, 0)


def _mend_ids(read: dict[str, list[Any]], faults: list[str], broken: set[int | str]) -> None:
    """Leave out what an id does not tell: categories that share one, and annotations that write it as another kind."""
    names: dict[int, set[str]] = {}
    for category in read["categories"]:
        names.setdefault(category.id, set()).add(category.name)
    for category_id, own in names.items():
        if len(own) > 1:
            faults.append(
                f"The category {category_id} is {' and '.join(map(repr, sorted(own)))}; give each its own id."
            )
    read["categories"] = [one for one in read["categories"] if len(names[one.id]) == 1]
    # A category without a box may share a name: exporters list the data set's own beside a class that is called so.
    used = {annotation.category_id for annotation in read["annotations"]}
    ids: dict[str, list[int]] = {}
    for category in read["categories"]:
        if category.id in used and category.id not in ids.setdefault(category.name, []):
            ids[category.name].append(category.id)
    for name, several in ids.items():
        if len(several) > 1:
            numbers = " and ".join(map(str, several))
            faults.append(f"The categories {numbers} are all {name!r}; give each its own name, or their boxes one id.")
    listed = {image.id for image in read["images"]}
    texts = {str(number): number for number in listed}
    for annotation in read["annotations"]:
        meant = texts.get(str(annotation.image_id))
        if meant is not None and annotation.image_id not in listed and meant not in broken:
            faults.append(
                f"The image id {annotation.image_id!r} of an annotation is {meant!r} in `images`; write it so."
            )
            broken.add(meant)


def load(path: Path, root: Path) -> CocoFile:
    """One file of instances, entry by entry: what is wrong with one entry is said in `faults`.

    Raises:
        InputError: it is cut short or not of COCO's layout.
    """
    content = parse_json(read_text(path, root), str(path), strict=False)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path} is not of COCO's layout: it needs an object with the list `images`.")
    faults: list[str] = []
    broken: set[int | str] = set()
    unread = {"images": 0, "annotations": 0, "categories": 0}
    read: dict[str, list[Any]] = {}
    for key, kind in (("images", _Image), ("annotations", Annotation), ("categories", _Category)):
        entries = content.get(key) or []
        if not isinstance(entries, list):
            raise InputError(f"{path} is not of COCO's layout: `{key}` has to be a list.")
        read[key] = []
        for place, entry in enumerate(entries):
            try:
                read[key].append(kind.model_validate(entry))
            except ValidationError as error:
                faults.append(f"{key}[{place}] cannot be read: {explain(error)}")
                unread[key] += 1
                owner = entry.get("image_id") if isinstance(entry, dict) and key == "annotations" else None
                if isinstance(owner, int | str):
                    broken.add(owner)
    _mend_ids(read, faults, broken)
    return CocoFile.model_construct(
        images=read["images"],
        annotations=read["annotations"],
        categories=read["categories"],
        faults=faults,
        broken=broken,
        unread=(unread["images"], unread["annotations"]),
    )
