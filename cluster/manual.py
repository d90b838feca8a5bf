"""The manual page of a job: the keys of its run with defaults and comments, read from the source.

Reading the source in place of importing it keeps `drive JOB --help` instant (a job imports torch,
Ray or MetaDrive) and finds the comments, which a running program has lost. It follows
dataclasses of this project by their imports, and it does not know the types' meaning: the loader
(`cluster/config.py`) does.
"""

import ast
import importlib.util
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """A module's syntax tree, the comment of every line that has one, and where names are from."""

    tree: ast.Module
    comments: dict[int, str]
    lines: list[str]
    imported: dict[str, tuple[str, str]]
    classes: dict[str, ast.ClassDef]


def manual(module: str, schema: str, shipped: Sequence[Path]) -> str:
    """Write the page of the job in `module`, whose run is the dataclass `schema`."""
    source = read_source(module)
    parts = [ast.get_docstring(source.tree) or "", "Keys, with their defaults:"]
    parts.append("\n".join(describe(module, schema, "")))
    parts += [
        f"{path}:\n{textwrap.indent(path.read_text().rstrip(), '  ')}"
        for path in shipped
        if path.exists()
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(module: str, name: str, prefix: str) -> Iterator[str]:
    """Yield the lines for one dataclass: its docstring, then its keys and those below them."""
    source = read_source(module)
    schema = source.classes[name]
    if docstring := ast.get_docstring(schema):
        yield textwrap.indent(docstring, "    ")
    for node, following in zip(schema.body, [*schema.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        key = f"{prefix}{node.target.id}"
        default = f" = {default_text(node.value)}" if node.value else ", required"
        yield f"  {key}: {ast.unparse(node.annotation)}{default}"
        for comment in comments_of(source, node, following):
            yield f"      {comment}"
        for part in ast.walk(node.annotation):
            if found := dataclass_at(module, part):
                yield from describe(*found, f"{key}.")


def default_text(value: ast.expr) -> str:
    """Write a default as what it is made by, without `field(default_factory=...)` around it."""
    match value:
        case ast.Call(
            func=ast.Name(id="field"), keywords=[ast.keyword(arg="default_factory", value=factory)]
        ):
            if isinstance(factory, ast.Lambda):
                return ast.unparse(factory.body)
            return f"{ast.unparse(factory)}()"
    return ast.unparse(value)


def dataclass_at(module: str, part: ast.AST) -> tuple[str, str] | None:
    """Return the dataclass that `Name` or `package.Name` in an annotation of `module` means."""
    match part:
        case ast.Name(id=name):
            return resolve(module, name)
        case ast.Attribute(value=ast.Name(id=package), attr=name):
            found = read_source(module).imported.get(package)
            return resolve(".".join(found), name) if found else None
    return None


def comments_of(source: Source, node: ast.stmt, following: ast.stmt | None) -> Iterator[str]:
    """Yield what is written about a field: above it, beside it, or in a string below it."""
    first = node.lineno
    while source.lines[first - 2].lstrip().startswith("#"):
        first -= 1
    for line in range(first, (node.end_lineno or node.lineno) + 1):
        if line in source.comments:
            yield source.comments[line]
    match following:
        case ast.Expr(value=ast.Constant(value=str(text))):
            yield from inspect.cleandoc(text).splitlines()


def resolve(module: str, name: str) -> tuple[str, str] | None:
    """Return the module and name of a dataclass of this project, as seen from `module`."""
    source = read_source(module)
    if name in source.imported:
        return resolve(*source.imported[name])
    schema = source.classes.get(name)
    is_dataclass = schema is not None and any(
        "dataclass" in ast.unparse(decorator) for decorator in schema.decorator_list
    )
    return (module, name) if is_dataclass else None


@cache
def read_source(module: str) -> Source:
    """Parse a module without running it."""
    spec = importlib.util.find_spec(module)
    assert spec, module
    assert spec.origin, module
    text = Path(spec.origin).read_text()
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    project = Path(__file__).parent.parent
    return Source(
        tree=tree,
        comments={
            token.start[0]: token.string.lstrip("# ")
            for token in tokens
            if token.type == tokenize.COMMENT
        },
        lines=text.splitlines(),
        imported={
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if (project / node.module.partition(".")[0]).is_dir()
        },
        classes={node.name: node for node in tree.body if isinstance(node, ast.ClassDef)},
    )
