"""Every command of the documents would be accepted where a reader types it."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.docs import commands
from tests.docs.pages import DOCUMENTS, blocks, inline_code

LANGUAGES = {"bash", "python", "yaml", "json", "text", "bibtex"}
SHELL = [piece for document in DOCUMENTS for piece in blocks(document) if piece.language == "bash"]
RECIPE_KEY = re.compile(r"(samr1|data|actor_rollout_ref|reward|algorithm|trainer)\.[\w.]+(=.*)?")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language(document: str) -> None:
    for block in blocks(document):
        assert block.language in LANGUAGES, f"{block}: write ```bash, ```python, … before the block"
        if block.language == "text":
            typed = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert not typed & {"$", *commands.CHECKS, *commands.OTHER_TOOLS}, f"{block}: commands belong into ```bash"


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_accepted(block) -> None:
    typed = commands.commands(block.text)
    assert typed
    for words in typed:
        commands.check(words)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_options_and_keys_in_running_text_exist(document: str) -> None:
    for piece in inline_code(document):
        try:
            check_inline(piece.text)
        except commands.BadCommandError as error:
            pytest.fail(f"{piece}: {error}")


def check_inline(text: str) -> None:
    """A command, an option, a recipe or a key between backticks; other code is not looked at."""
    tool, *rest = text.split()
    if tool == "samr1" and rest:
        commands.check_samr1_name(rest)
    elif tool in ("make", "pip", "python") and rest:
        commands.check(shlex.split(text))
    elif tool.startswith("--"):
        commands.check_option(tool)
    elif tool.startswith("+recipe="):
        commands.compose([tool])
    elif RECIPE_KEY.fullmatch(text):
        commands.check_key(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("samr1 demo", "no such command"),
        ("samr1 data", "which command"),
        ("samr1 eval rows.parquet --protocol other", "other"),
        ("samr1 eval rows.parquet --no-such-option", "no-such-option"),
        ("samr1 predict image.png", "Missing argument"),
        ("samr1 data convert refcocog --images coco --out data/x", "annotations"),
        ("python benchmarks/ablation.py --stepps 16", "stepps"),
        ("python benchmarks/service.py twice", "refused"),
        ("python benchmarks/service.py once --imagess 3", "refused"),
        ("python benchmarks/demo_plots.py", "cannot be checked"),
        ("python benchmarks/none.py", "no such script"),
        ("python -c pass", "unknown form"),
        ("python -m verl.trainer.main_ppo +recipe=samr2", "expected"),
        ("python -m verl.trainer.main_ppo +recipe=samr1 samr1.service.mode=ray", "samr1.service"),
        ("python -m verl.trainer.main_ppo +recipe=samr1 samr1.segmenter.service.mode=rai", "mode"),
        ("python -m verl.trainer.main_ppo +recipe=samr1 samr1.reward.terms.lenght=0.5", "lenght"),
        ("python -m verl.trainer.main_ppo +recipe=samr1 +samr1.reward.terms.lenght=0.5", "no such term"),
        ("python -m verl.trainer.main_ppo +recipe=vision_reasoner samr1.reward.thresholds={0.5:4}", "thresholds"),
        ("python -m verl.trainer.main_ppo +recipe=samr1 trainer.n_gpus_per_node=3", "rollouts at a time"),
        ("make demos", "no such target"),
        ("pip install '.[onyx]'", "no extra"),
        ("pip uninstall verl", "expected install"),
        ("pytest tests/none.py", "no such file"),
        ("wget http://localhost/x", "unknown form"),
        ("make venv && make test", "one command per line"),
        ("echo done", "unknown form"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, reason: str) -> None:
    (words,) = commands.commands(line)
    with pytest.raises(commands.BadCommandError, match=re.escape(reason)):
        commands.check(words)


@pytest.mark.parametrize(
    "text",
    ["samr1 demo", "samr1 eval --protocols", "make demos", "--policies", "+recipe=samr2", "samr1.service.mode",
     "samr1.segmenter.service.mode=rai", "python benchmarks/data.py", "pip install '.[onyx]'"],
)  # fmt: skip
def test_a_wrong_name_in_running_text_is_noticed(text: str) -> None:
    with pytest.raises(commands.BadCommandError):
        check_inline(text)


def test_blocks_are_split_as_a_shell_does() -> None:
    block = "make demo   # comment\nsamr1 data check a \\\n    b\ncurl -d '{\n  1}'\n"
    assert commands.commands(block) == [
        ["make", "demo"],
        ["samr1", "data", "check", "a", "b"],
        ["curl", "-d", "{\n  1}"],
    ]
    with pytest.raises(commands.BadCommandError, match="ends inside"):
        commands.commands("make 'demo\n")
