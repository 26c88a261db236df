"""The prompts: Jinja templates. The recipe's `samr1.prompt` names one of this folder, or a file of the user's.

Fields of a template:

    sentence        the row's sentence as it is written, without white space at its ends
    frame           absolute: answers in pixels of the resized image; thousand: 0 to 1000
    width, height   range of the coordinates: the size of the resized image in pixels, or 1000 and 1000

A template itself changes the sentence, as its paper does before it asks: lower case, without some marks at the ends.
The image stands before the text without being named. Templates are rendered in Jinja's sandbox.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from importlib.resources import files
from pathlib import Path
from typing import get_args

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from samr1_verl.config import ConfigError
from samr1_verl.geometry.frames import Frame
from samr1_verl.rows.record import DataError

KEY = "samr1.prompt"
FIELDS = ("sentence", "frame", "width", "height")
SUFFIXES = (".jinja", ".txt")  # of a user's file
# As the tokenizers of Qwen and of many others write them: <|image_pad|>, <|im_end|>; <image> is LLaVA's and verl's.
_TOKENS = re.compile(r"<\|[^<>|\s]{1,64}\|>|<(?:image|video|audio)>", re.IGNORECASE)
_PACKAGE, _SUFFIX = "samr1_verl.prompts", ".jinja"
_TRIAL = "The zebra."  # sentence of the first rendering


class PromptTemplate:
    """A template that was rendered once without a fault.

    Args:
        text: the template's source.
        source: name of the template or path of the file, for messages.
        key: the recipe's key that names it, for messages.

    Raises:
        ConfigError: the text is no template, has an unknown field or a token of an image, or shows no sentence.
    """

    def __init__(self, text: str, source: str, key: str = KEY) -> None:
        self._source, self._key = source, key
        if (token := _TOKENS.search(text)) is not None:
            raise ConfigError(
                "token_in_template",
                self._at(text.count("\n", 0, token.start()) + 1),
                f"found the token {token[0]}, expected plain text: the image stands before the text already. Remove it",
            )
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            tree = environment.parse(text)
            self._check_fields(tree)
            code = environment.compile(tree, filename=source)
        except TemplateSyntaxError as error:
            place = self._at(error.lineno)
            raise ConfigError("template_malformed", place, f"no Jinja template: {error.message}. Correct it") from error
        self._template = Template.from_code(environment, code, environment.make_globals(None))
        for frame in get_args(Frame):
            if "zebra" not in self.render(sentence=_TRIAL, frame=frame, width=1000, height=1000).lower():
                raise ConfigError(
                    "template_without_sentence",
                    self._at(None),
                    f"found no sentence in the text for the frame {frame}, expected {{{{ sentence }}}} at least once. "
                    "Scripts of papers often write {Question} in its place",
                )

    def render(self, *, sentence: str, frame: str, width: int, height: int) -> str:
        """The text of a question. Raises ConfigError where the template fails."""
        try:
            return self._template.render(sentence=sentence, frame=frame, width=width, height=height)
        except Exception as error:  # a template may fail like any program
            lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == self._source]
            place, cause = self._at(lines[-1] if lines else None), f"{type(error).__name__}: {error}"
            raise ConfigError("template_fails", place, f"fails with {cause}. Correct the template") from error

    def _check_fields(self, tree: nodes.Template) -> None:
        unknown = meta.find_undeclared_variables(tree) - {*FIELDS}
        for name in tree.find_all(nodes.Name):
            if name.name in unknown:
                raise ConfigError(
                    "unknown_field",
                    self._at(name.lineno),
                    f"found the field {name.name!r}, expected one of {', '.join(FIELDS)}",
                )

    def _at(self, line: int | None) -> str:
        return f"{self._key}: {self._source}" + ("" if line is None else f": line {line}")


def prompt_names() -> list[str]:
    """The names of our templates, sorted."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in files(_PACKAGE).iterdir() if entry.name.endswith(_SUFFIX)
    )


def is_file(name: str) -> bool:
    """Whether a value of `samr1.prompt` is the path of a user's file."""
    return name.endswith(SUFFIXES)


def load_prompt(name: str, key: str = KEY) -> PromptTemplate:
    """The template of a value of `samr1.prompt`, or of another key: one of our names, or the path of a file.

    Raises:
        ConfigError: there is no such template or file, or it cannot be used; the message has the file and the line.
    """
    return PromptTemplate(prompt_text(name, key), name, key)


def prompt_text(name: str, key: str = KEY) -> str:
    """The source of a template. Raises ConfigError where there is no such template or file."""
    if is_file(name):
        path = Path(name).expanduser().absolute()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "template_unreadable",
                f"{key}: {path}",
                f"cannot be read as UTF-8 text ({error}). Expected a template, as docs/training.md describes it",
            ) from error
    if name not in prompt_names():
        raise ConfigError(
            "unknown_template",
            key,
            f"found {name!r}, expected one of {', '.join(prompt_names())}, or the path of a file of your own that ends "
            f"with {' or '.join(SUFFIXES)}. Set it in the recipe or as {key}=… on the command line",
        )
    return files(_PACKAGE).joinpath(name + _SUFFIX).read_text(encoding="utf-8")


def prompt_identity(name: str) -> dict[str, str]:
    """What tells a file of the user's from an earlier version of it, in JSON values; empty for our templates."""
    return {"prompt_sha256": hashlib.sha256(prompt_text(name).encode()).hexdigest()} if is_file(name) else {}


class SentenceError(DataError):
    """A sentence that a policy would not read as text."""


def as_question(sentence: str) -> str:
    """A row's sentence as templates get it: without white space at its ends.

    Raises:
        SentenceError: it holds a token of a chat or of an image, such as <|im_end|>.
    """
    if (token := _TOKENS.search(sentence)) is not None:
        raise SentenceError(
            "token_in_sentence",
            f"sentence {sentence[:80]!r}",
            f"holds {token[0]!r}, which policies read as a token and not as text. Remove it",
        )
    return sentence.strip()
