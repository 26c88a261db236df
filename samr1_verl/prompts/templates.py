"""The prompts: one jinja template per prompt; the recipe's `samr1.prompt` names it."""

import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from samr1_verl.config import ConfigError
from samr1_verl.rows.record import DataError

# As the tokenizers of Qwen and of many others write them: <|image_pad|>, <|im_end|>; <image> is LLaVA's and verl's.
_TOKENS = re.compile(r"<\|[^<>|\s]{1,64}\|>|<(?:image|video|audio)>", re.IGNORECASE)
_PACKAGE, _SUFFIX = "samr1_verl.prompts", ".jinja"


def prompt_names() -> list[str]:
    """The valid values of `samr1.prompt`, sorted."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in files(_PACKAGE).iterdir() if entry.name.endswith(_SUFFIX)
    )


def load_prompt(name: str) -> Template:
    """The template of a prompt, with the variables sentence, frame, width and height; a missing variable is an error.

    Raises:
        ConfigError: there is no prompt of this name.
    """
    if name not in prompt_names():
        raise ConfigError(
            f"samr1.prompt: found {name!r}, expected one of {', '.join(prompt_names())}. Set it in the recipe or as "
            "samr1.prompt=… on the command line"
        )
    text = files(_PACKAGE).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, autoescape=False).from_string(text)


class SentenceError(DataError):
    """A sentence that a policy would not read as text."""


def as_question(sentence: str) -> str:
    """A row's sentence in the form that prompts show: lower case, without its final dot, as in Seg-Zero's code.

    Raises:
        SentenceError: it holds a token of a chat or of an image, such as <|im_end|>.
    """
    if (token := _TOKENS.search(sentence)) is not None:
        raise SentenceError(
            f"sentence {sentence[:80]!r}: holds {token[0]!r}, which policies read as a token and not as text. Remove it"
        )
    return sentence.strip().lower().removesuffix(".")
