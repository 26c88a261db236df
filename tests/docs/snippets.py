"""Whether the Python and YAML of the documents fit the code. Nothing of a snippet is executed."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import yaml
from pydantic import BaseModel

from samr1_verl.config import Samr1Config, segmenter_config
from tests.docs.commands import check, commands

OURS = ("samr1_verl", "reward_fns", "recipes")
ELSEWHERE = {"swift"}  # in an environment of its own, whose checks import it: tests/trainers


def check_python(text: str) -> None:
    """It compiles (`await` may stand outside a function), its imports resolve, and our functions take its arguments.

    Raises SyntaxError, ImportError or TypeError.
    """
    compile(text, "snippet", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    tree = ast.parse(text)
    imported = dict(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported:
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            if starred or any(keyword.arg is None for keyword in node.keywords):
                continue
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(imported[node.func.id]).bind(*node.args, **keywords)


def _imports(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Names that a snippet imports from our packages, with their objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _resolve(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = _resolve(str(node.module))
            for alias in node.names if module is not None else ():
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
                yield alias.asname or alias.name, getattr(module, alias.name)


def _resolve(name: str) -> Any | None:
    """A module of ours; None for another one, which must be installed. Raises ImportError."""
    root = name.partition(".")[0]
    if root in OURS:
        return import_module(name)
    if root not in ELSEWHERE and find_spec(root) is None:
        raise ImportError(f"{name} is not installed")
    return None


def resolve_name(dotted: str) -> Any:
    """The module, class, function or attribute that a dotted name means. Raises ImportError or AttributeError."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if not dotted.startswith(str(error.name)):
                raise
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ImportError(dotted)


def check_yaml(text: str) -> None:
    """It parses, and its sections `samr1` and `reward` have valid keys and values; or its jobs have valid commands.

    Raises yaml.YAMLError, BadCommandError or ValueError (ours and pydantic's are of that class).
    """
    sections = yaml.safe_load(text)
    for job in sections.pop("jobs", {}).values():
        for command in commands("\n".join(step["run"] for step in job["steps"] if "run" in step)):
            check(command)
    if unknown := sections.keys() - {"samr1", "reward"}:
        raise ValueError(f"sections {', '.join(unknown)}: expected samr1 and reward only")
    for name, value in sections.get("samr1", {}).items():
        _check_section(name, value)
    if "reward" in sections:
        _check_reward(**sections["reward"])


def _check_section(name: str, value: Any) -> None:
    if name not in Samr1Config.model_fields:
        raise ValueError(f"samr1.{name}: no such key, expected one of {', '.join(Samr1Config.model_fields)}")
    kind = Samr1Config.model_fields[name].annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind.model_validate(value)


def _check_reward(custom_reward_function: dict[str, Any]) -> None:
    module = import_module(custom_reward_function["path"].removeprefix("pkg://"))
    function, arguments = getattr(module, custom_reward_function["name"]), custom_reward_function["reward_kwargs"]
    inspect.signature(function).bind("", "", "", {}, **arguments)
    if unknown := arguments.keys() - {"segmenter", "reward"}:
        raise ValueError(f"reward_kwargs {', '.join(unknown)}: expected segmenter and reward")
    references = {name: f"${{samr1.{name}}}" for name in arguments}
    if arguments["segmenter"] != references["segmenter"]:
        segmenter_config(arguments["segmenter"])
    if arguments["reward"] != references["reward"]:
        module.ARGUMENTS.read(arguments["reward"])
