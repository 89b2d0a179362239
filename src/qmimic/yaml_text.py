"""YAML from strangers: plain values, bounded in size, with nothing silently lost."""

import datetime
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from qmimic.errors import InputError
from qmimic.files import check_depth

PLAIN = (str, int, float, bool, type(None), datetime.date)
MAX_NUMBER = 64  # characters


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can grow without bound, and without duplicate keys, of which one would be lost."""

    def fetch_alias(self) -> None:
        raise ScannerError(None, None, "aliases (*name) are refused; write the values out", self.get_mark())

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """A scalar's text with surrogate pairs joined: programs that write JSON use them beyond 16 bits."""
        text = super().construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(text, str) else text

    def number(self, node: yaml.Node) -> Any:
        """An integer or a float of limited length: YAML's hexadecimal and base-60 numbers grow with their text."""
        if len(str(node.value)) > MAX_NUMBER:
            raise ConstructorError(None, None, f"a number has more than {MAX_NUMBER} characters", node.start_mark)
        kind = node.tag.rpartition(":")[2]
        return getattr(self, f"construct_yaml_{kind}")(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number)


class _Texts(_Loader):
    """The same, but every plain value is text: a class may be called 007, 1.10, yes or null."""


_Texts.yaml_implicit_resolvers = {}


def parse_yaml(text: str, source: str, texts: bool = False) -> Any:
    """The plain values of a YAML text.

    Args:
        text: YAML.
        source: its name in errors.
        texts: keep numbers, dates and truth values as text.

    Raises:
        InputError: it is not YAML, has an alias or a duplicate key, or holds anything but plain values of bounded size.
    """
    try:
        value = yaml.load(text, _Texts if texts else _Loader)  # SafeLoaders
        check_depth(value)
        _check_plain(value)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{source} is not valid YAML ({line}{error.problem}); correct it.") from error
    except _TooLargeError as error:
        raise InputError(f"{source} has {error}; correct it.") from error
    # PyYAML lets Python's own errors through for a tag whose value does not fit, such as `!!int x` or `!!set [a]`.
    except Exception as error:
        raise InputError(f"{source} is not valid YAML; correct it.") from error
    return value


class _TooLargeError(ValueError):
    """A number that no setting can hold."""


def _check_plain(value: Any) -> None:
    """Check that a value, itself of bounded depth, holds only what a recipe or a label file can mean.

    Raises:
        ValueError: a tag made it a set or bytes.
        _TooLargeError: an integer has more than 64 bits.
    """
    if isinstance(value, dict):
        for key, own in value.items():
            _check_plain(key)
            _check_plain(own)
    elif isinstance(value, list):
        for own in value:
            _check_plain(own)
    elif not isinstance(value, PLAIN):
        raise ValueError(f"{type(value).__name__} is not a plain value")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise _TooLargeError("a whole number of more than 64 bits")
