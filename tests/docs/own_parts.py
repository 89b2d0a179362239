"""The files and lines of docs/how-to/add-your-own.md, put into a copy of the package as a reader would."""

import re
from pathlib import Path

BLOCK = re.compile(r"^```(python|diff)\n# (src/\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def put_in(page: str, root: Path) -> list[str]:
    """Add the page's files to a clone at `root` and change its tables as the page's diffs say; returns the paths.

    A diff's lines with `+` go behind the file's line before them (` ` or `-`), or, where they come first, before the
    first import of the package; lines with `-` are taken out.
    """
    touched = []
    for kind, path, body in BLOCK.findall(page):
        file = root / path
        touched.append(path)
        if kind == "python":
            assert not file.exists(), f"{path} would be replaced"
            file.write_text(body, encoding="utf-8")
            continue
        lines = file.read_text(encoding="utf-8").splitlines()
        place = next(number for number, line in enumerate(lines) if line.startswith("from qmimic"))
        for change in body.splitlines():
            mark, line = change[:1], change[1:]
            if mark == "+":
                lines.insert(place, line)
                place += 1
                continue
            assert lines.count(line) == 1, f"{path} has no line {line!r} to change"
            place = lines.index(line)
            if mark == "-":
                del lines[place]
            else:
                place += 1
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return touched
