"""Python, YAML and JSON of the documents fit the code."""

from __future__ import annotations

import json
import re

import pytest

from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.rows.record import parse_record
from tests.docs import snippets
from tests.docs.commands import BadCommandError
from tests.docs.pages import DOCUMENTS, ROOT, blocks, inline_code

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
NAME = re.compile(r"(samr1_verl|reward_fns)(\.\w+)+")
FILE = re.compile(
    r"(samr1_verl|reward_fns|recipes|tests|benchmarks|data|docs|examples|\.ci)/[\w./-]*|[\w-]+\.(md|toml|txt|yaml)"
)
MADE = ("data/shapes/", "data/weights/", "checksums.txt")  # by commands, so a checkout need not have them


def of(language: str) -> list:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles_and_its_imports_and_arguments_exist(block) -> None:
    snippets.check_python(block.text)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_valid_configuration(block) -> None:
    snippets.check_yaml(block.text)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_a_row_or_a_ground_truth(block) -> None:
    value = json.loads(block.text)
    if "size" in value:
        GroundTruth.model_validate(value)
    else:
        parse_record(value, block.document, block.line)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_and_files_in_running_text_exist(document: str) -> None:
    for piece in inline_code(document):
        if NAME.fullmatch(piece.text):
            snippets.resolve_name(piece.text)
        elif FILE.fullmatch(piece.text) and not piece.text.startswith(MADE):
            assert (ROOT / piece.text).exists(), f"{piece}: no {piece.text}"


@pytest.mark.parametrize(
    "text",
    [
        "from samr1_verl.rows.record import Recording",
        "from samr1_verl.record import Record",
        "import no_such_package",
        "from samr1_verl.policies.load import config_for\nconfig_for('runs/samr1', recipes=None)",
        "from samr1_verl.rows.record import write_records\nwrite_records('a')",
        "def rows(:",
    ],
)
def test_wrong_python_is_noticed(text: str) -> None:
    with pytest.raises((SyntaxError, ImportError, AttributeError, TypeError)):
        snippets.check_python(text)


REWARD = "reward: {custom_reward_function: {path: pkg://reward_fns.samr1, name: compute_score, reward_kwargs: %s}}"


@pytest.mark.parametrize(
    "text",
    [
        "samr1: {service: {mode: ray}}",
        "samr1: {reward: {max_points: 3}}",
        "samr1: {segmenter: {backend: onnx, path: x, device: cpu, dtype: float32}}",
        "trainer: {seed: 1}",
        "a: [",
        REWARD % "{segmenter: '${samr1.segmenter}', reward: {terms: {lenght: 1}}}",
        REWARD % "{segmenter: '${samr1.segmenter}', reward: '${samr1.reward}', service: {}}",
        REWARD % "{segmenter: {backend: onnx}, reward: '${samr1.reward}'}",
        "jobs: {test: {steps: [{run: samr1 regres}]}}",
    ],
)
def test_wrong_yaml_is_noticed(text: str) -> None:
    with pytest.raises((snippets.yaml.YAMLError, ValueError, TypeError, BadCommandError)):
        snippets.check_yaml(text)
