"""The prompts: one jinja template per prompt; the recipe's `samr1.prompt` names it."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from samr1_verl.config import ConfigError

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


def as_question(sentence: str) -> str:
    """A row's sentence in the form that prompts show: lower case, without its final dot, as in Seg-Zero's code."""
    return sentence.strip().lower().removesuffix(".")
