"""YAML as people expect it, the 1.2 core schema: `1e-3` is a number, `off` is text, no key twice.

PyYAML speaks YAML 1.1, where the three are text, false and the last one wins. What this module
writes it reads back to an equal value. It does not know what the text is about.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
}


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class PlainDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes the text that `PlainLoader` would take for a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _tag, (_pattern, _first) in CORE_SCHEMA.items():
    for _class in (PlainLoader, PlainDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
        )
# PyYAML reads a leading 0 as octal; the core schema does not.
PlainLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
PlainLoader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(node.value.replace(".inf", "inf").replace(".nan", "nan")),
)


def parse(text: str) -> Any:
    """Parse one YAML document. Raises ValueError with the line and the problem."""
    try:
        return yaml.load(text, Loader=PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"not valid YAML, line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def format_yaml(tree: Any) -> str:
    """Write lists, mappings, text, numbers, booleans and None as YAML, keys in their order."""
    return yaml.dump(tree, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
