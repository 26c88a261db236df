"""Whether a command of the documents would be accepted. Nothing is executed: the real parsers read it.

    samr1 …                                    the typer application
    python benchmarks/….py, data, examples     the script's own typer function or argparse parser
    python -m verl.trainer.main_ppo …          Hydra composes it; the recipe's keys, reward and sizes are checked
    make TARGET                                the Makefile has the target
    pip install '.[EXTRA]'                     pyproject.toml has the extra
    pytest PATH                                the path exists
    bash examples/….sh …                       the shell can read the script
    a tool of OTHER_TOOLS                      not checked

Every other form is an error, so that no command is skipped unnoticed.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from samr1_verl.cli import app
from samr1_verl.config import samr1_config
from samr1_verl.preflight import checks
from samr1_verl.scoring.route import ScoreRequest
from samr1_verl.service.wire import SegmentRequest
from tests.composing import NAMES, compose_recipe
from tests.docs.pages import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OTHER_TOOLS = {"cd", "cp", "curl", "docker", "git", "hf", "pre-commit", "sha256sum", "source", "ssh", "uv", "vllm"}
OTHER_TOOLS |= {"vf-eval"}
OTHER_OPTIONS = {  # of vllm and trainers
    *("--generation-config", "--custom-rm-path", "--group-rm", "--remote_rm_url"),
    *("--max_pixels", "--reward_funcs", "--reward_weights", "--strict"),
}
OPERATORS = {"&&", "||", ";", "|", "&"}


class BadCommandError(Exception):
    """The command would not be accepted; the message says why."""


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block, without comments. A backslash or an open quotation continues a line."""
    result, pending = [], ""
    for line in block.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # an open quotation
            pending += "\n"
            continue
        pending = ""
        if words:
            result.append(words)
    if pending:
        raise BadCommandError(f"the block ends inside a command: {pending!r}")
    return result


def check(words: Sequence[str]) -> None:
    """Raises BadCommandError."""
    if operators := [word for word in words if word in OPERATORS or word.endswith(";")]:
        raise BadCommandError(f"write one command per line, found {operators[0]}")
    words = list(words)
    while words and re.match(r"[A-Z_][A-Z0-9_]*=", words[0]):
        words.pop(0)  # a variable of the environment
    if ">" in words:
        words = words[: words.index(">")]
    if not words:
        raise BadCommandError("no command")
    tool, *rest = words
    if tool == "curl":
        _check_request(rest)
    elif tool in CHECKS:
        CHECKS[tool](rest)
    elif tool not in OTHER_TOOLS:
        raise BadCommandError(f"{tool}: an unknown form of command, expected {', '.join([*CHECKS, *OTHER_TOOLS])}")


def check_samr1(words: Sequence[str]) -> None:
    """`samr1 WORDS` with all that the command requires."""
    command, name, rest = _samr1_command(words)
    if hasattr(command, "commands"):
        raise BadCommandError(f"{name}: which command? It has {', '.join(command.commands)}")
    _read(command, name, rest)


def check_samr1_name(words: Sequence[str]) -> None:
    """`samr1 WORDS` in running text: the command exists, and so do the options; arguments may be missing."""
    if "NAME" in words:  # stands for any command
        words = words[: list(words).index("NAME")]
    command, name, rest = _samr1_command(words)
    for word in rest:
        if word.startswith("--") and word not in {"--help", *_options(command)}:
            raise BadCommandError(f"{name}: no option {word}")


def check_option(option: str) -> None:
    """Some command of samr1 has the option, or it is one of another tool."""
    if option not in _all_options() | OTHER_OPTIONS:
        raise BadCommandError(f"no command has the option {option}")


@cache
def _all_options() -> frozenset[str]:
    waiting, options = [typer.main.get_command(app)], {"--help"}
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        options |= _options(command)
    return frozenset(options)


def check_make(words: Sequence[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for word in words or [""]:
        if word not in targets:
            raise BadCommandError(f"make {word}: no such target, the Makefile has {', '.join(targets)}")


def check_pip(words: Sequence[str]) -> None:
    verb, *rest = words
    if verb == "freeze":
        return
    if verb != "install":
        raise BadCommandError(f"pip {verb}: expected install or freeze")
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = tomllib.load(file)["project"]["optional-dependencies"]
    for word in rest:
        if word.startswith("-"):
            continue
        requirement = Requirement(re.sub(r"^\.", "samr1-verl", word))
        if requirement.name == "samr1-verl" and (unknown := requirement.extras - known.keys()):
            raise BadCommandError(f"{word}: no extra {', '.join(unknown)}, pyproject.toml has {', '.join(known)}")


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a training command, with its own section valid and its reward's arguments accepted."""
    first, *rest = overrides
    recipe = first.removeprefix("+recipe=")
    if first == recipe or recipe not in NAMES:
        raise BadCommandError(f"{first}: expected +recipe=, and one of {', '.join(NAMES)}")
    try:
        config = compose_recipe(recipe, *rest)
        samr1_config(config)
        reward = import_module(config.reward.custom_reward_function.path.removeprefix("pkg://"))
        reward.ARGUMENTS.read(config.samr1.reward)
    except Exception as error:  # Hydra's, OmegaConf's and ours
        raise BadCommandError(f"{' '.join(overrides)}: {error}") from error
    rules = (checks.check_types, checks.check_objective, checks.check_lengths, checks.check_micro_batches)
    if problems := [problem for rule in rules for problem in rule(config)]:
        raise BadCommandError(f"{' '.join(overrides)}: {'; '.join(problems)}")
    return config


def check_key(text: str) -> None:
    """`KEY` is a key of the recipe samr1, or of its dialogue; `KEY=VALUE` is an override of it that composes."""
    key, given, _ = text.partition("=")
    recipe = "samr1_refine" if key.startswith("samr1.refine") else "samr1"
    if given:
        compose([f"+recipe={recipe}", text])
        return
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(_recipe(recipe), parent)
    if not isinstance(section, DictConfig) or name not in section:
        raise BadCommandError(f"{key}: the recipe {recipe} has no such key")


@cache
def _recipe(name: str) -> DictConfig:
    return compose_recipe(name)


def check_python(words: Sequence[str]) -> None:
    if words[:2] == ["-m", "verl.trainer.main_ppo"]:
        if words[2:]:
            compose(words[2:])
        return
    script = ROOT / words[0]
    if not re.fullmatch(r"(benchmarks|data|examples)/[\w/]+\.py", words[0]):
        raise BadCommandError(f"python {words[0]}: an unknown form of command")
    if not script.is_file():
        raise BadCommandError(f"python {words[0]}: no such script")
    if not re.search(r"typer\.run\(|parser", script.read_text(encoding="utf-8")):
        raise BadCommandError(f"python {words[0]}: it has neither typer.run nor a parser, so it cannot be checked")
    _read_with_script(script, words[1:])


def check_pytest(words: Sequence[str]) -> None:
    if not words or not (ROOT / words[0]).exists():
        raise BadCommandError(f"pytest {' '.join(words)}: no such file")


def check_bash(words: Sequence[str]) -> None:
    if not re.fullmatch(r"examples/\w+\.sh", words[0]) or not (ROOT / words[0]).is_file():
        raise BadCommandError(f"bash {words[0]}: no such script")
    read = subprocess.run(["bash", "-n", ROOT / words[0]], capture_output=True, text=True)
    if read.returncode:
        raise BadCommandError(f"bash {words[0]}: {read.stderr}")


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "samr1": check_samr1,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "pytest": check_pytest,
    "bash": check_bash,
}


def _samr1_command(words: Sequence[str]) -> tuple[Any, str, list[str]]:
    """The command that the first words name, its name, and the other words."""
    command, name, rest = typer.main.get_command(app), "samr1", list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        word = rest.pop(0)
        if word not in command.commands:
            raise BadCommandError(f"{name} {word}: no such command, expected one of {', '.join(command.commands)}")
        command, name = command.commands[word], f"{name} {word}"
    return command, name, rest


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def _read(command: Any, name: str, words: Sequence[str]) -> None:
    """Let a typer command read its options and arguments."""
    try:
        command.make_context(name, list(words))
    except Exception as error:  # its class differs between versions of typer
        reason = error.format_message() if hasattr(error, "format_message") else error
        raise BadCommandError(f"{name} {' '.join(words)}: {reason}") from error


class _ParsedError(Exception):
    """Ends a script once its arguments were read."""


def _read_with_script(script: Path, words: Sequence[str]) -> None:
    def run(function: Callable[..., Any]) -> None:
        function.__annotations__ = get_type_hints(function, include_extras=True)
        for hint in function.__annotations__.values():
            for described in getattr(hint, "__metadata__", ()):
                described.exists = False  # a document may name a file that a reader has and this checkout does not
        alone = typer.Typer(add_completion=False)
        alone.command()(function)
        _read(typer.main.get_command(alone), script.name, words)
        raise _ParsedError

    def parse_args(self: argparse.ArgumentParser, *_: Any) -> None:
        if unknown := self.parse_known_args(list(words))[1]:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise _ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(script.parent))
        patch.setattr(typer, "run", run)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [str(script), *words])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except _ParsedError:
            return
        except SystemExit as error:
            raise BadCommandError(f"{script.name} {' '.join(words)}: refused by its parser") from error
    raise AssertionError(f"{script} ran without reading its arguments")


def _check_request(words: Sequence[str]) -> None:
    """A request to `samr1 serve`: an upload, or the JSON body of another one, whose digest may be an ellipsis."""
    if "-T" in words:
        if "/v1/images/" not in words[-1]:
            raise BadCommandError(f"an upload goes to /v1/images/<SHA-256>, found {words[-1]}")
        return
    body = json.loads(words[words.index("-d") + 1])
    if any(word.endswith("/v1/score") for word in words):
        ScoreRequest.model_validate(body)
        return
    body["image"]["sha256"] = body["image"]["sha256"].replace("…", "0" * 64)
    SegmentRequest.model_validate(body)
