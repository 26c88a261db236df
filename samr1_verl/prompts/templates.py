"""The prompts: one jinja template each, named by the recipe's `samr1.prompt`."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

_SUFFIX = ".jinja"


def prompt_names() -> list[str]:
    """Names that `samr1.prompt` may have, sorted."""
    return sorted(
        entry.name.removesuffix(_SUFFIX) for entry in files(__name__).iterdir() if entry.name.endswith(_SUFFIX)
    )


def load_prompt(name: str) -> Template:
    """The template of a prompt. It renders the variables sentence, frame, width and height; a missing one is an error.

    Raises:
        ValueError: there is no prompt of this name.
    """
    if name not in prompt_names():
        raise ValueError(f"no prompt named {name!r}; samr1.prompt is one of {', '.join(prompt_names())}")
    text = files(__name__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, autoescape=False).from_string(text)


def as_question(sentence: str) -> str:
    """A row's sentence as prompts show it: lower case, without its final dot, as Seg-Zero trains and evaluates."""
    return sentence.strip().lower().removesuffix(".")
