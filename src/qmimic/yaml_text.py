"""YAML from strangers: plain values, nothing that grows without bound, nothing that is lost unseen."""

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

from qmimic.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which can grow without bound, and without keys given twice, of which one would be lost."""

    def fetch_alias(self) -> None:
        raise ScannerError(None, None, "aliases (*name) are refused, write the values out", self.get_mark())

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Texts(_Loader):
    """The same, where every plain value is text: a class may be called 007, 1.10, yes or null."""


_Texts.yaml_implicit_resolvers = {}


def parse_yaml(text: str, source: str, texts: bool = False) -> Any:
    """The plain values of a YAML text.

    Args:
        text: YAML.
        source: how an error calls it.
        texts: leave every number, date and truth value as the text that it is.

    Raises:
        InputError: it is not YAML, has an alias, or gives a key twice.
    """
    try:
        return yaml.load(text, _Texts if texts else _Loader)  # SafeLoaders
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{source} is not valid YAML ({line}{error.problem}); correct it.") from error
    # PyYAML lets Python's own errors through for what looks like a date or a number but is none.
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is not valid YAML; correct it.") from error
