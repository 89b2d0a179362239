"""The installed extras of qmimic, from the installation's metadata, and the command that installs one."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

SOURCES = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
    "yaml": "pyyaml",
}
HIDDEN = ("dev",)  # for people who work on qmimic
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[([^]]*)\])?.*?(?:;.*extra\s*==\s*['\"]([^'\"]+)['\"])?\s*$")


@dataclass(frozen=True)
class Extra:
    """An extra of the installation.

    Attributes:
        name: in `pip install 'qmimic[NAME]'`; empty for what is always installed.
        packages: name to installed version, None if missing; without packages of other extras.
        needs: other extras that it includes.
    """

    name: str
    packages: dict[str, str | None]
    needs: tuple[str, ...]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'qmimic[{extra}]'"


def extras() -> list[Extra]:
    """All extras, first what every installation has."""
    packages: dict[str, dict[str, str | None]] = {"": {}}
    needs: dict[str, list[str]] = {"": []}
    for text in requires("qmimic") or []:
        found = _REQUIREMENT.match(text)
        if not found:
            continue
        package, others, extra = found[1], found[2] or "", found[3] or ""
        own = packages.setdefault(extra, {})
        if package.lower() == "qmimic":
            needs.setdefault(extra, []).extend(name.strip() for name in others.split(","))
        else:
            own[package] = version_of(package)
    return [Extra(name, own, tuple(needs.get(name, ()))) for name, own in packages.items() if name not in HIDDEN]


def extra_of(module: str) -> str:
    """The extra that includes a module; `train` if none is known."""
    package = SOURCES.get(module, module).lower()
    names = [extra.name for extra in extras() if extra.name and package in map(str.lower, extra.packages)]
    return "train" if "train" in names or not names else names[0]


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
