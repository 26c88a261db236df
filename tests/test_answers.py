"""Answers: every dialect is read, every degenerate text has its one reason, and nothing raises or takes long."""

from __future__ import annotations

import json
import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samr1_verl.answers import Answer, Caps, Reason, Unusable, has_think_format, parse_answer, within
from samr1_verl.geometry.prompt import Prompt

SEG_ZERO = '{"bbox": [10, 20, 110.5, 220], "points_1": [30, 40], "points_2": [50, 60]}'
BOX = (10.0, 20.0, 110.5, 220.0)


def answer(json_text: str) -> str:
    return f"<think>It is left of the door.</think><answer>{json_text}</answer>"


def reason(text: str, **options) -> str | None:
    parsed = parse_answer(text, **options)
    return parsed.reason.value if isinstance(parsed, Unusable) else None


@pytest.mark.parametrize(
    ("json_text", "expected"),
    [
        (SEG_ZERO, [Prompt(BOX, ((30, 40), (50, 60)), (1, 1))]),
        ('{"bbox": [10, 20, 110.5, 220], "points": [[30, 40]]}', [Prompt(BOX, ((30, 40),), (1,))]),
        (
            '{"bbox": [10, 20, 110.5, 220], "points": [[30, 40], [5, 6]], "labels": [1, 0]}',
            [Prompt(BOX, ((30, 40), (5, 6)), (1, 0))],
        ),
        ('{"bbox_2d": [10, 20, 110.5, 220], "point_2d": [30, 40]}', [Prompt(BOX, ((30, 40),), (1,))]),
        (
            '[{"bbox_2d": [10, 20, 110.5, 220], "point_2d": [30, 40], "label": "cup"},'
            ' {"bbox_2d": [0, 0, 1, 1], "point_2d": [0.5, 0.5]}]',
            [Prompt(BOX, ((30, 40),), (1,)), Prompt((0, 0, 1, 1), ((0.5, 0.5),), (1,))],
        ),
        ("\n  " + SEG_ZERO + " \n", [Prompt(BOX, ((30, 40), (50, 60)), (1, 1))]),
    ],
    ids=["seg_zero", "sam_r1", "sam_r1 with labels", "qwen", "vision_reasoner", "white space"],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_every_dialect_gives_the_same_typed_answer(json_text, expected, lenient):
    assert parse_answer(answer(json_text), lenient=lenient) == Answer(tuple(expected))


# The corpus of degenerate answers: text inside <answer>, and why it cannot be used.
DEGENERATE = {
    "empty": ("", "not_json"),
    "empty list": ("[]", "no_target"),
    "empty object": ("{}", "missing_box"),
    "bare number": ("7", "no_object"),
    "null": ("null", "no_object"),
    "list of numbers": ("[10, 20, 30, 40]", "no_object"),
    "prose": ("the red circle", "not_json"),
    "code fence": (f"```json\n{SEG_ZERO}\n```", "not_json"),
    "single quotes": (SEG_ZERO.replace('"', "'"), "not_json"),
    "text after": (SEG_ZERO + " as I said", "not_json"),
    "two values": (SEG_ZERO + SEG_ZERO, "not_json"),
    "no points": ('{"bbox": [1, 2, 3, 4]}', "missing_points"),
    "empty points": ('{"bbox": [1, 2, 3, 4], "points": []}', "missing_points"),
    "one of two points": ('{"bbox": [1, 2, 3, 4], "points_1": [1, 2]}', "missing_points"),
    "no box": ('{"points_1": [1, 2], "points_2": [1, 2]}', "missing_box"),
    "two boxes": ('{"bbox": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4], "points": [[1, 2]]}', "bad_box"),
    "two kinds of points": ('{"bbox": [1, 2, 3, 4], "points": [[1, 2]], "point_2d": [1, 2]}', "bad_points"),
    "inverted box": ('{"bbox": [30, 20, 10, 40], "points": [[15, 25]]}', "empty_box"),
    "zero-area box": ('{"bbox": [10, 20, 10, 40], "points": [[10, 25]]}', "empty_box"),
    "three numbers": ('{"bbox": [1, 2, 3], "points": [[1, 2]]}', "bad_box"),
    "box of strings": ('{"bbox": ["1", "2", "3", "4"], "points": [[1, 2]]}', "bad_box"),
    "box of booleans": ('{"bbox": [false, false, true, true], "points": [[1, 2]]}', "bad_box"),
    "box with null": ('{"bbox": [1, 2, null, 4], "points": [[1, 2]]}', "bad_box"),
    "box is an object": ('{"bbox": {"x1": 1}, "points": [[1, 2]]}', "bad_box"),
    "NaN": ('{"bbox": [NaN, 2, 3, 4], "points": [[1, 2]]}', "not_json"),
    "Infinity": ('{"bbox": [1, 2, Infinity, 4], "points": [[1, 2]]}', "not_json"),
    "1e309 is infinite": ('{"bbox": [1, 2, 1e309, 4], "points": [[1, 2]]}', "bad_box"),
    "unicode digits": ('{"bbox": [\uff11, 2, 3, 4], "points": [[1, 2]]}', "not_json"),
    "point of three": ('{"bbox": [1, 2, 3, 4], "points": [[1, 2, 3]]}', "bad_points"),
    "flat points": ('{"bbox": [1, 2, 3, 4], "points": [1, 2]}', "bad_points"),
    "points is a string": ('{"bbox": [1, 2, 3, 4], "points": "1, 2"}', "bad_points"),
    "label 2 is SAM's box corner": ('{"bbox": [1, 2, 3, 4], "points": [[1, 2]], "labels": [2]}', "bad_points"),
    "a label too many": ('{"bbox": [1, 2, 3, 4], "points": [[1, 2]], "labels": [1, 1]}', "bad_points"),
    "label true": ('{"bbox": [1, 2, 3, 4], "points": [[1, 2]], "labels": [true]}', "bad_points"),
    "thousand points": (json.dumps({"bbox": [1, 2, 3, 4], "points": [[1, 2]] * 1000}), "many_points"),
    "121 objects": (json.dumps([json.loads(SEG_ZERO)] * 121), "many_objects"),
    "a list with a stranger": (f"[{SEG_ZERO}, 3]", "no_object"),
    "two answers": (f"{SEG_ZERO}</answer><answer>{SEG_ZERO}", "many_answers"),
    "nested tags": (f"<answer>{SEG_ZERO}</answer>", "many_answers"),
    "tag inside a JSON string": ('{"a": "</answer>", ' + SEG_ZERO[1:], "many_answers"),
    "null byte": (SEG_ZERO.replace("[10", "[\x0010"), "not_json"),
    "deep nesting": ("[" * 100_000, "not_json"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "not_json"),
    "100 kB of bracket pairs": ("[]" * 50_000, "not_json"),
    "a number of 100 kB": ('{"bbox": [' + "1" * 100_000 + ', 2, 3, 4], "points": [[1, 2]]}', "bad_box"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_answers_have_their_reason(name):
    inside, expected = DEGENERATE[name]
    assert reason(answer(inside)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no_answer"),
        (SEG_ZERO, "no_answer"),
        (f"<answer>{SEG_ZERO}", "no_answer"),
        (f"</answer>{SEG_ZERO}<answer>", "no_answer"),
        (f"<think><answer>a</answer></think><answer>{SEG_ZERO}</answer>", "many_answers"),
    ],
)
def test_strict_wants_exactly_one_answer(text, expected):
    assert reason(text) == expected


def test_the_corpus_meets_every_reason_that_parsing_can_give():
    met = {expected for _, expected in DEGENERATE.values()} | {"no_answer"}
    assert met == {one.value for one in Reason} - {"outside"}  # `within` gives that one


@pytest.mark.parametrize(
    "text",
    [
        f"<think>a</think><answer>```json\n{SEG_ZERO}\n```</answer>",
        f"<answer>{SEG_ZERO.replace(chr(34), chr(39))}</answer>",
        f"<think>I read <answer> twice</think><answer>wrong</answer><answer>{SEG_ZERO}</answer>",
        f"<think>a</think><answer>{SEG_ZERO}",
        f"<think>[1, 2]</think>{SEG_ZERO}",
        f"Sure! Here it is: {SEG_ZERO}. Anything else?",
        SEG_ZERO.replace("[10, 20, 110.5, 220]", '["10", "20", "110.5", "220"]'),
        answer(SEG_ZERO[:-1]),
        answer(SEG_ZERO.replace("}", ",}")),
    ],
)
def test_lenient_reads_what_an_untrained_model_writes(text):
    assert parse_answer(text, lenient=True) == Answer((Prompt(BOX, ((30, 40), (50, 60)), (1, 1)),))


def test_lenient_accepts_a_box_or_points_alone():
    assert parse_answer('[{"bbox_2d": [1, 2, 3, 4]}]', lenient=True) == Answer((Prompt((1, 2, 3, 4)),))
    assert parse_answer('{"points": [[1, 2]]}', lenient=True) == Answer((Prompt(None, ((1, 2),), (1,)),))
    assert reason('{"label": "cup"}', lenient=True) == "missing_box"


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", "no_answer"),
        ("the red circle", "not_json"),
        ('{"bbox": [30, 20, 10, 40]}', "empty_box"),
        ('{"bbox": ["a", 2, 3, 4]}', "bad_box"),
        ('{"bbox": ["nan", 2, 3, 4]}', "bad_box"),
        (json.dumps({"points": [[1, 2]] * 17}), "many_points"),
    ],
)
def test_lenient_still_refuses_what_means_nothing(inside, expected):
    assert reason(answer(inside), lenient=True) == expected


def test_caps_are_the_callers():
    three = '{"bbox": [1, 2, 3, 4], "points": [[1, 2], [1, 2], [1, 2]]}'
    assert reason(answer(three), caps=Caps(points=3)) is None
    assert reason(answer(three), caps=Caps(points=2)) == "many_points"
    assert reason(answer(f"[{three}, {three}]"), caps=Caps(objects=1)) == "many_objects"


def test_minus_zero_and_1e308_are_numbers():
    parsed = parse_answer(answer('{"bbox": [-0, -1e308, 1e308, 4], "points": [[-0.0, 0]]}'))
    assert isinstance(parsed, Answer)
    clipped = within(parsed, (840.0, 840.0))
    assert isinstance(clipped, Answer) and clipped.objects_policy[0].box == (0.0, 0.0, 840.0, 4.0)


@pytest.mark.parametrize(
    ("box", "point", "expected"),
    [
        ((-5, 10, 50, 900), (20, 20), (0, 10, 50, 840)),  # overshoots two borders: clipped to the image
        ((0, 0, 840, 840), (840, 840), (0, 0, 840, 840)),  # the border belongs to the image
        ((-50, 10, 0, 20), (20, 20), None),  # touches the image, shares no area
        ((841, 0, 900, 20), (20, 20), None),
        ((0, 0, 10, 10), (840.5, 5), None),
        ((0, 0, 10, 10), (5, -0.1), None),
    ],
)
def test_boxes_are_clipped_to_the_image_and_what_misses_it_is_outside(box, point, expected):
    found = within(Answer((Prompt(box, (point,), (1,)),)), (840.0, 840.0))
    if expected is None:
        assert isinstance(found, Unusable) and found.reason is Reason.OUTSIDE
    else:
        assert found == Answer((Prompt(expected, (point,), (1,)),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think>a\nb</think> \n\t<answer>b\n</answer>", True),
        ("<think></think><answer></answer>", True),
        ("<think>a</think><answer>b</answer>\n", False),
        (" <think>a</think><answer>b</answer>", False),
        ("<think>a</think>so<answer>b</answer>", False),
        ("<think>a<answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think></think><answer><answer>b</answer></answer>", True),  # the published rule lets this pass
        ("<think></think><answer>", False),
        ("", False),
    ],
)
def test_think_format_is_seg_zeros_rule(text, expected):
    assert has_think_format(text) is expected


PIECES = ["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a", "{", "]", '"']


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_think_format_equals_the_published_regular_expression(text):
    published = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
    assert has_think_format(text) is (published is not None)


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.booleans() | st.text(max_size=3)
values = st.recursive(
    st.none() | numbers,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["bbox", "bbox_2d", "points", "points_1", "points_2", "point_2d", "labels"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
texts = st.text(max_size=60) | values.map(json.dumps) | values.map(repr)


@given(st.sampled_from(["<answer>{}</answer>", "<think>{}", "{}"]), texts, st.booleans())
@settings(max_examples=500, deadline=None)
def test_nothing_raises_and_what_is_usable_is_well_formed(frame, inside, lenient):
    text = frame.replace("{}", inside)
    parsed = parse_answer(text, lenient=lenient)
    assert parse_answer(text, lenient=lenient) == parsed
    if isinstance(parsed, Unusable):
        assert parsed.reason in Reason and parsed.detail
        return
    for target in parsed.objects_policy:
        assert len(target.points) == len(target.labels)
        assert target.points or (lenient and target.box)
        assert all(type(number) is float and math.isfinite(number) for point in target.points for number in point)
        if target.box is not None:
            assert target.box[0] < target.box[2] and target.box[1] < target.box[3]
        else:
            assert lenient


LONG = ["[", "[]", "{", '"', "\\", "<answer>", "</think>\n<answer>", "</answer>", "1", "{'a': ", "1, ", '{"a" b "c" ']


@pytest.mark.parametrize("unit", LONG)
@pytest.mark.parametrize("lenient", [False, True])
def test_eight_megabytes_of_anything_take_linear_work(unit, lenient):
    part = unit * (4_000_000 // len(unit))
    text = f"<think>{part}</think><answer>{part}</answer>"
    start = time.process_time()
    parse_answer(text, lenient=lenient)
    has_think_format(text)
    assert time.process_time() - start < 64, "10 ms; quadratic work takes minutes on any machine"
