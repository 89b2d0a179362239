"""What programs send instead of a picture's bytes: forms are opened, and what cannot be read is named."""

from email.message import Message

from qmimic.serve.limits import RefusedError

FIX = "send the bytes of the file as the body: curl --data-binary @photo.jpg ADDRESS"
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC"}


def picture_of(content: bytes, kind: str) -> bytes:
    """The bytes of the picture in a request's body.

    Args:
        content: the body.
        kind: its `Content-Type`, which may be empty or wrong.

    Raises:
        RefusedError: the form does not hold exactly one file, or the body is not a picture.
    """
    header = Message()
    header["content-type"] = kind
    if header.get_content_type() == "multipart/form-data":
        content = _only_file(content, str(header.get_param("boundary", "")))
    what = _foreign(content)
    if what:
        raise RefusedError(415, f"This is {what}; {FIX}, of a JPEG, PNG, WebP, GIF, BMP or TIFF.")
    return content


def spoilt_by_curl(kind: str) -> str:
    """What may have spoilt a body that cannot be read, as the end of a message; empty if unknown."""
    form = kind.partition(";")[0].strip() == "application/x-www-form-urlencoded"
    return " If it was sent by curl -d, which removes line breaks, use --data-binary instead." if form else ""


def _only_file(content: bytes, boundary: str) -> bytes:
    files = []
    for part in content.split(b"--" + boundary.encode("latin-1", "replace"))[1:] if boundary else ():
        head, blank, body = part.partition(b"\r\n\r\n")
        if blank and b"filename" in head.lower():
            files.append(body.removesuffix(b"\r\n"))
    if len(files) != 1:
        raise RefusedError(422, f"This form has {len(files)} files; send one with a single file, or {FIX}.")
    return files[0]


def _foreign(content: bytes) -> str:
    """What a body is, if it begins like one of the things that people send but that are not accepted."""
    start = content[:64].lstrip()
    if content[4:8] == b"ftyp":
        return f"a picture in {BRANDS[content[8:12]]}" if content[8:12] in BRANDS else "a video"
    if start.startswith((b"{", b"[")):
        return "JSON"
    if start.startswith(b"data:"):
        return "a data address"
    if start.startswith((b"http://", b"https://", b"url=")):
        return "an address, from which the server does not fetch anything"
    if start.startswith(b"<"):
        return "text in angle brackets, such as SVG or HTML"
    return ""
