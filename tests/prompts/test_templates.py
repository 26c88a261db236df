"""Questions in our templates and in a user's file: the sentence as its paper shows it, and what is refused."""

from pathlib import Path

import pytest

from samr1_verl.config import ConfigError, PromptConfig
from samr1_verl.policies.inference_config import InferenceConfig
from samr1_verl.policies.load import PolicyChoice, other_words
from samr1_verl.preflight.callback import examine_config
from samr1_verl.prompts.answer_form import like
from samr1_verl.prompts.questions import messages_of
from samr1_verl.prompts.templates import load_prompt, prompt_identity, prompt_names
from tests.composing import compose_recipe
from tests.errors import refused

ASIDE = {"frame": "absolute", "width": 840, "height": 840}


def question(prompt: str, sentence: str, frame: str = "absolute") -> str:
    config = PromptConfig(policy_size=(840, 560), frame=frame, prompt=prompt)
    (message,) = messages_of(sentence, "a.png", "0" * 64, (840, 560), config, load_prompt(prompt))
    return message["content"][1]["text"]


def in_its_code(prompt: str, sentence: str) -> str:
    """The sentence as the authors' scripts show it: lower case, without these marks at both ends."""
    marks = {"seg_zero": ".", "vision_reasoner": '."?!', "star": '."?!'}[prompt]
    return sentence.lower().strip(marks)


@pytest.mark.parametrize("prompt", ["seg_zero", "vision_reasoner", "star"])
@pytest.mark.parametrize(
    "sentence",
    [
        "the Red cup",
        "The red cup.",
        "The red cup...",
        "What can hold water?",
        'Which one says "stop"?!',
        '"Mind the gap."',
        ".hidden",
        "Is it e.g. 3.5 m wide?",
        "What is this ?",
    ],
)
def test_each_paper_removes_its_own_marks(prompt: str, sentence: str) -> None:
    assert f'that "{in_its_code(prompt, sentence)}" describes' in question(prompt, sentence)


@pytest.mark.parametrize("prompt", prompt_names())
def test_a_question_without_such_marks_is_what_it_was(prompt: str) -> None:
    assert question(prompt, " The red cup. ") == question(prompt, "the red cup")
    assert "the red cup" in question(prompt, "The red cup.") and "red cup." not in question(prompt, "The red cup.")
    assert question("tiny", "The red square.") == "segment the red square"


def test_a_file_of_the_user_is_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.txt"
    file.write_text('Find "{{ sentence.upper() }}" in {{ width }}x{{ height }} ({{ frame }}): {"bbox": [1, 2, 3, 4]}\n')
    assert question(str(file), "A cup?") == 'Find "A CUP?" in 840x560 (absolute): {"bbox": [1, 2, 3, 4]}'
    assert question(str(file), "A cup?", "thousand").startswith('Find "A CUP?" in 1000x1000 (thousand)')
    monkeypatch.chdir(tmp_path)
    assert question("mine.txt", "a") == question(str(file), "a"), "relative to the working directory"
    before = prompt_identity("mine.txt")
    file.write_text("{{ sentence }}")
    assert before != prompt_identity("mine.txt") and prompt_identity("seg_zero") == {}


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("Find\n{{ sentense }}", "unknown_field", "line 2: found the field 'sentense'"),
        ("Find\n\n{{ sentence", "template_malformed", "line 3: "),
        ("{% if frame %}{{ sentence }}", "template_malformed", "line 1: "),
        ("a\n{{ sentence | shout }}", "template_malformed", "line 2: no Jinja template: No filter named 'shout'"),
        ("a\nb\n{{ sentence }} {{ sentence.nothing }}", "template_fails", "line 3: fails with UndefinedError"),
        ("{{ sentence }}\n{{ ''.__class__.__mro__ }}", "template_fails", "line 2: fails with SecurityError"),
        ("{{ sentence }}\n{% include '/etc/passwd' %}", "template_fails", "line 2: fails with TypeError"),
        ("Please find {Question} with bbox", "template_without_sentence", "frame absolute"),
        (
            "{% if frame == 'absolute' %}{{ sentence }}{% endif %}",
            "template_without_sentence",
            "frame thousand",
        ),
        ("x\n<image>\n{{ sentence }}", "token_in_template", "line 2: found the token <image>"),
        ("<|image_pad|>{{ sentence }}", "token_in_template", "line 1: found the token <|image_pad|>"),
    ],
)
def test_a_file_that_makes_no_question_is_refused_with_its_line(
    text: str, code: str, named: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(text)
    with refused(ConfigError, code, f"samr1.prompt: {file}: ", named):
        load_prompt(str(file))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with refused(ConfigError, "template_unreadable", f"samr1.prompt: {tmp_path / 'gone.jinja'}: "):
        load_prompt(str(tmp_path / "gone.jinja"))
    (tmp_path / "latin.txt").write_bytes("{{ sentence }} für".encode("latin-1"))
    with refused(ConfigError, "template_unreadable", f"samr1.prompt: {tmp_path / 'latin.txt'}: ", "UTF-8"):
        load_prompt(str(tmp_path / "latin.txt"))
    with refused(ConfigError, "unknown_template", "samr1.prompt: found 'seg_one'", "seg_zero", ".jinja or .txt"):
        load_prompt("seg_one")


def test_a_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("one\n{{ sentense }}")

    def problems() -> list[str]:
        config = compose_recipe("samr1_tiny", f"samr1.prompt={file}")
        return next(problems for subject, _, problems in examine_config(config) if subject == "prompt")

    assert f"{file}: line 2: " in problems()[0] and "'sentense'" in problems()[0]
    file.write_text("one {{ sentence }}")
    assert problems() == []


@pytest.mark.parametrize(
    ("text", "form"),
    [("bbox", "seg_zero"), ("bbox_2d, point_2d", "vision_reasoner"), ("label, bbox_2d, point_2d", "star")],
)
def test_a_rehearsal_answers_in_the_form_that_a_file_asks_for(text: str, form: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(f"{{{{ sentence }}}}: {text}")
    assert like(str(file)) == form and like("tiny") == "tiny"


def test_a_published_policy_that_gets_our_words_is_noticed(tmp_path: Path) -> None:
    for policy in ("Ricky06662/Seg-Zero-7B", "models/VisionReasoner-7B/", "sj9909/StAR-8B"):
        notice = other_words(policy, "vision_reasoner")
        assert notice is not None and "other words" in notice and "samr1.prompt=FILE" in notice
    assert other_words("Ricky06662/Seg-Zero-7B", "mine.jinja") is None
    assert other_words("Qwen/Qwen2.5-VL-7B-Instruct", "seg_zero") is None and other_words(None, "seg_zero") is None


def test_the_notice_is_given_once_when_the_policy_loads(
    tmp_path: Path, warm_policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = tmp_path / "Seg-Zero-7B"
    published.symlink_to(warm_policy)
    for prompt, notices in (("tiny", 1), (str(tmp_path / "mine.txt"), 0)):
        (tmp_path / "mine.txt").write_text("segment {{ sentence }}")
        config = InferenceConfig.of(compose_recipe("samr1_tiny", f"samr1.prompt={prompt}"))
        caplog.clear()
        PolicyChoice(config, str(published)).load()
        assert caplog.text.count("in other words") == notices
