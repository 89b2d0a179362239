"""Detection without torch: numpy, ONNX Runtime and Pillow.

    from qmimic.runtime import Detector
    detector = Detector("student.onnx", threads=1)
    found = detector("photo.jpg")

or `python -m qmimic.runtime student.onnx photo.jpg`.
"""

from qmimic.runtime.detector import Detector as Detector

__all__ = ["Detector"]
