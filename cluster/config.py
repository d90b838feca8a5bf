"""How a run is written down: a YAML and `dotted.key=value` overrides in, a frozen dataclass out.

A key that is not given keeps the value it has in the schema's default *at that place*: with
`vehicle: Vehicle = Vehicle(speed=12)`, the override `vehicle.delay=0.2` leaves the speed at 12.
A union of dataclasses is told apart by its `kind`; without one, the default's kind is meant.
Values are not coerced: `true` is no number and `"5"` is none either.

It does not know what any key means: ranges are the dataclasses' own affair (`__post_init__`).
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cluster.plain_yaml import format_yaml, parse

Config = TypeVar("Config")

WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}


class ConfigError(ValueError):
    """A run that cannot be read: names the file or the command line, the key and the mend."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A dotted key and where it was written: on the command line if it was overridden there."""

    key: str = ""
    file: Path | None
    overridden: tuple[str, ...]

    def under(self, name: object) -> "Place":
        """Return the place of a key inside this one."""
        return dataclasses.replace(self, key=f"{self.key}.{name}" if self.key else str(name))

    def error(self, problem: str) -> ConfigError:
        """Return an error that begins with where the key was written."""
        is_overridden = any(f"{name}.".startswith(f"{self.key}.") for name in self.overridden)
        origin = "command line" if is_overridden or self.file is None else self.file
        return ConfigError(f"{origin}: {problem}")


def load(schema: type[Config], path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read `path` (none: the schema's own defaults), apply the overrides and build a `schema`.

    An override is `dotted.key=value` with a YAML value; a whole number in the key counts the
    items of a list. Raises `ConfigError`.
    """
    tree = read(path) if path else {}
    overridden = tuple(override_tree(tree, override) for override in overrides)
    return build_record(schema, tree, MISSING, Place(file=path, overridden=overridden))


def load_text(schema: type[Config], text: str) -> Config:
    """Build a `schema` from what `dump` wrote; ValueError when it is not of this schema."""
    tree = parse(text)
    if not isinstance(tree, dict):
        raise ConfigError(f"settings must be `key: value` lines, got {shorten(tree)}")
    return build_record(schema, tree, MISSING, Place(file=None, overridden=()))


@lru_cache(maxsize=1000)
def load_kept(schema: type[Config], text: str) -> Config | None:
    """Read settings that something was made with; None where they are not of this schema any more.

    A setting that there was not yet when they were written counts as having had its default: what
    is new has to be off unless it is asked for.
    """
    try:
        return load_text(schema, text)
    except ValueError:
        return None


def dump(config: object) -> str:
    """Write `config` as the YAML that `load` reads back to an equal value."""
    return format_yaml(TypeAdapter(type(config)).dump_python(config, mode="json"))


def read(path: Path) -> dict[str, Any]:
    """Parse one YAML file into a mapping, which may be empty."""
    try:
        tree = parse(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run's YAML") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text; give the path of a run's YAML") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: must hold `key: value` lines, holds {shorten(tree)}")
    return tree or {}


def override_tree(tree: dict[str, Any], override: str) -> str:
    """Set one `dotted.key=value` in `tree`, in place, and return the dotted key."""
    dotted, equals, text = override.partition("=")
    *parents, leaf = dotted.split(".")
    if not equals or not all((*parents, leaf)):
        raise ConfigError(f"command line: {override!r} is not of the form dotted.key=value")
    try:
        value = parse(text)
    except ValueError as error:
        raise ConfigError(f"command line: {dotted}: {error}") from None
    node: Any = tree
    for depth, part in enumerate(parents):
        index = index_of(node, part, ".".join(parents[:depth]))
        if isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]
    node[index_of(node, leaf, ".".join(parents))] = value
    return dotted


def index_of(node: Any, part: str, at: str) -> str | int:
    """Return what `part` of a dotted key means inside `node`, which stands at the key `at`."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"command line: {at} is {shorten(node)}, it has no key {part!r}")
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(
            f"command line: {at} has {len(node)} items, counted from 0; there is no {part!r}"
        )
    return int(part)


def build(annotation: Any, value: Any, default: Any, place: Place) -> Any:
    """Turn a YAML value into what `annotation` asks for; `default` is the value without it."""
    choices = get_args(annotation) if is_union(annotation) else (annotation,)
    records = [choice for choice in choices if dataclasses.is_dataclass(choice)]
    if len(records) == len(choices) and not isinstance(value, Mapping | None):
        raise place.error(f"{place.key} should hold keys of its own, got {shorten(value)}")
    if records and (isinstance(value, Mapping) or types.NoneType not in choices):
        value = value or {}
        return build_record(pick(records, value, default, place), value, default, place)
    if get_origin(annotation) is tuple and dataclasses.is_dataclass(get_args(annotation)[0]):
        return build_records(get_args(annotation)[0], value, default, place)
    return build_leaf(annotation, value, default, place)


def build_record(schema: Any, value: Mapping[Any, Any], default: Any, place: Place) -> Any:
    """Build the dataclass `schema`; what `value` lacks comes from `default`, else the schema."""
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    for name in value:
        if name not in fields:
            raise unknown_key(str(name), list(fields), place)
    values = {}
    for name, field in fields.items():
        fallback = getattr(default, name) if type(default) is schema else default_of(field)
        if name in value:
            values[name] = build(hints[name], value[name], fallback, place.under(name))
        elif fallback is MISSING:
            key = place.under(name).key
            raise place.error(f"{key} is missing, it should be {words(hints[name])}")
        else:
            values[name] = fallback
    try:
        return schema(**values)
    except ValueError as error:
        raise place.error(f"{place.key}: {error}" if place.key else str(error)) from error


def build_records(schema: Any, value: Any, default: Any, place: Place) -> tuple[Any, ...]:
    """Build a tuple of dataclasses; a mapping by number changes single items of the default."""
    if isinstance(value, Mapping):
        items = {str(index): item for index, item in enumerate(default or ())}
        for index, item in value.items():
            if index not in items:
                raise place.error(
                    f"{place.key} has {len(items)} items, counted from 0; there is no {index!r}"
                )
            items[index] = build(schema, item, items[index], place.under(index))
        return tuple(items.values())
    if not isinstance(value, list):
        raise place.error(f"{place.key} should be a list, got {shorten(value)}")
    return tuple(
        build(schema, item, MISSING, place.under(index)) for index, item in enumerate(value)
    )


def build_leaf(annotation: Any, value: Any, default: Any, place: Place) -> Any:
    """Check a value that holds no dataclass; only list -> tuple and text -> Path are converted.

    A path that begins with `~` begins with one's home folder, as does text that begins with `~/`.
    """
    if isinstance(value, dict) and isinstance(default, tuple):
        numbers = [str(index) for index in range(len(default))]
        if set(value) <= set(numbers):
            value = [value.get(number, default[int(number)]) for number in numbers]
    try:
        # Strict JSON mode is what knows that a list may become a tuple but "5" no number.
        found = TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        hint = did_you_mean(value, literals(annotation))
        raise place.error(
            f"{place.key} should be {words(annotation)}, got {shorten(value)}{hint}"
        ) from None
    # Where the default begins so it is a folder on another machine: its own shell knows whose.
    is_elsewhere = isinstance(default, str) and default.startswith("~/")
    try:
        return found if is_elsewhere else at_home(found)
    except RuntimeError as error:
        raise place.error(f"{place.key} is {shorten(value)}: {error}") from None


def at_home(value: Any) -> Any:
    """Put the home folder in the place of a `~` at the beginning of a path, also in lists."""
    match value:
        case Path():
            return value.expanduser()
        case str() if value.startswith("~/"):
            return str(Path(value).expanduser())
        case tuple():
            return tuple(map(at_home, value))
        case dict():
            return {key: at_home(item) for key, item in value.items()}
        case _:
            return value


def pick(records: list[Any], value: Mapping[Any, Any], default: Any, place: Place) -> Any:
    """Choose the dataclass of a union by `kind`, or the default's when `value` has none."""
    if len(records) == 1:
        return records[0]
    if "kind" not in value and type(default) in records:
        return type(default)
    kinds = {
        kind: record for record in records for kind in literals(get_type_hints(record).get("kind"))
    }
    kind, place = value.get("kind"), place.under("kind")
    if kind not in kinds:
        names = " or ".join(map(repr, kinds))
        hint = did_you_mean(kind, kinds)
        raise place.error(f"{place.key} should be {names}, got {shorten(kind)}{hint}")
    return kinds[kind]


def unknown_key(name: str, known: list[str], place: Place) -> ConfigError:
    """Say which key is not known, and which one may have been meant."""
    hint = did_you_mean(name, known) or f"; known keys are {', '.join(known)}"
    place = place.under(name)
    return place.error(f"unknown key {place.key!r}{hint}")


def did_you_mean(value: object, known: Iterable[object]) -> str:
    """Return a clause that names the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(str(value), map(str, known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def words(annotation: Any) -> str:
    """Describe a type as a person would."""
    if annotation in WORDS:
        return WORDS[annotation]
    if is_union(annotation):
        return " or ".join(words(choice) for choice in get_args(annotation))
    if choices := literals(annotation):
        return " or ".join(map(repr, choices))
    if get_origin(annotation) is tuple:
        first, *rest = get_args(annotation)
        if rest == [...]:
            return f"a list, each {words(first)}"
        return f"a list of {len(rest) + 1} ({', '.join(map(words, (first, *rest)))})"
    return getattr(annotation, "__name__", str(annotation))


def literals(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a `Literal` allows, also inside a union."""
    if is_union(annotation):
        return sum((literals(choice) for choice in get_args(annotation)), ())
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default, or `MISSING`."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def is_union(annotation: Any) -> bool:
    """Tell whether the annotation is `A | B`."""
    return get_origin(annotation) in (Union, types.UnionType)


def shorten(value: object) -> str:
    """Return the value's repr in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
