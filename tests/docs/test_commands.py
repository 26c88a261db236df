"""Every command of the documents would be accepted where a reader types it."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.composing import NAMES
from tests.docs import commands
from tests.docs.pages import DOCUMENTS, blocks, inline_code

LANGUAGES = {"bash", "python", "yaml", "json", "text", "bibtex"}
SHELL = [piece for document in DOCUMENTS for piece in blocks(document) if piece.language == "bash"]
INLINE = [piece for document in DOCUMENTS for piece in inline_code(document)]
OTHER_OPTIONS = {"--generation-config"}  # of other tools
RECIPE_KEY = re.compile(r"\+?(samr1|data|actor_rollout_ref|reward|algorithm|trainer)\.[\w.]+(=.*)?")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language(document: str) -> None:
    for block in blocks(document):
        assert block.language in LANGUAGES, f"{block}: write ```bash, ```python, … before the block"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_accepted(block) -> None:
    typed = commands.commands(block.text)
    assert typed
    for words in typed:
        commands.check(words)


@pytest.mark.parametrize("piece", INLINE, ids=lambda piece: f"{piece} {piece.text[:40]}")
def test_commands_options_and_keys_in_running_text_exist(piece) -> None:
    tool, *rest = shlex.split(piece.text) if piece.text.count("'") % 2 == 0 else piece.text.split()
    if tool == "samr1" and rest:
        commands.check_samr1_name(rest)
    elif tool in ("make", "pip", "python") and rest:
        commands.check([tool, *rest])
    elif tool.startswith("--"):
        assert tool in commands.all_options() | OTHER_OPTIONS, f"{piece}: no command has the option {tool}"
    elif tool.startswith("+recipe="):
        assert tool.removeprefix("+recipe=") in NAMES
    elif RECIPE_KEY.fullmatch(piece.text):
        key, _, value = piece.text.partition("=")
        commands.compose(["+recipe=samr1", piece.text] if value else ["+recipe=samr1"])
        assert value or commands.has_key(key), f"{piece}: the recipe samr1 has no key {key}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("samr1 demo", "no such command"),
        ("samr1 data", "which command"),
        ("samr1 eval rows.parquet --protocol other", "other"),
        ("samr1 eval rows.parquet --no-such-option", "no-such-option"),
        ("samr1 predict image.png", "SENTENCE"),
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
        ("python -m verl.trainer.main_ppo +recipe=samr1 samr1.reward.terms.length=0.5", "length"),
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


def test_blocks_are_split_as_a_shell_does() -> None:
    block = "make demo   # comment\nsamr1 data check a \\\n    b\ncurl -d '{\n  1}'\n"
    assert commands.commands(block) == [["make", "demo"], ["samr1", "data", "check", "a", "b"], ["curl", "-d", "{\n  1}"]]
    with pytest.raises(commands.BadCommandError, match="ends inside"):
        commands.commands("make 'demo\n")
