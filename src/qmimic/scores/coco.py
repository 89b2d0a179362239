"""COCO mAP through faster-coco-eval."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

from qmimic.data.sample import Sample
from qmimic.detections import Detections


def coco_map(samples: Sequence[Sample], found: Mapping[str, Detections], classes: Sequence[str]) -> float:
    """COCO mAP (IoU 0.50 to 0.95, area all, 100 detections), 0..1; 0 where there is no box.

    Difficult boxes count as crowd: neither asked for nor held against a detection. Boxes without area are left out.
    """
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, sample in enumerate(samples, start=1):
        ignored = sample.difficult | sample.crowd
        for box, label, ignore in zip(sample.boxes.tolist(), sample.labels.tolist(), ignored.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            if width > 0 and height > 0:
                shape = {"bbox": [box[0], box[1], width, height], "area": width * height}
                own = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
                annotations.append({**own, **shape, "iscrowd": int(ignore)})
        one = found.get(sample.image_id)
        if one is not None:
            rows = zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
            for box, score, label in rows:
                shape = {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                results.append({"image_id": image, "category_id": label + 1, **shape, "score": score})
    if not annotations or not results:
        return 0.0
    truth = {
        "images": [{"id": image} for image in range(1, len(samples) + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
    }
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(truth)
        evaluation = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, float(evaluation.stats[0]))
