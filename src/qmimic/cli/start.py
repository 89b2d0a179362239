"""What `qmimic` prints without arguments."""

from importlib.metadata import version

from qmimic.extras import install, version_of

TEXT = """qmimic {version}: from a folder of labelled images to a very tiny object detector,
trained, measured and ready to ship.

Three commands to start with:
  qmimic train demo            the whole method on drawn digits in minutes
  qmimic data check photos/    what is wrong with your labelled folder
  qmimic predict runs/demo/student.safetensors photo.jpg --out drawn/

`qmimic --help` lists all commands, `qmimic train --help` explains one, and
`qmimic doctor` checks this machine and this installation."""


def text() -> str:
    """What qmimic is, the commands to start with, and where to find help; at most 80 columns."""
    said = TEXT.format(version=version("qmimic"))
    if version_of("torch") is None:
        said += f"\n\nThese commands need more than is installed: {install('train')}"
    return said
