"""The tiny world: sentences mean exactly one shape, masks are the drawn shapes, splits share no scene, seeds repeat."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.tiny_world import shapes
from samr1_verl.geometry.images import open_image, sha256_of
from samr1_verl.geometry.masks import decode_rle
from samr1_verl.rows.record import read_table, record_at, resolve_image


def make_scene(*described: tuple[str, str, float, float, float]) -> shapes.Scene:
    members = tuple(shapes.Shape(kind, colour, (x, y), radius) for colour, kind, x, y, radius in described)
    return shapes.Scene(np.empty(0), members, ())


def test_names_and_reasoning_mean_one_shape() -> None:
    scene = make_scene(("red", "circle", 50, 60, 30), ("blue", "square", 120, 180, 45), ("red", "square", 200, 60, 20))
    named, reasoned = (dict(phrases) for phrases in shapes.references(scene))
    assert named == {"red circle": 0, "blue square": 1, "red square": 2}
    assert reasoned["only circle"] == 0
    assert reasoned["largest shape"] == 1
    assert reasoned["smallest square"] == 2
    assert reasoned["leftmost shape"] == 0
    assert reasoned["shape left of the blue square"] == 0
    assert reasoned["shape right of the blue square"] == 2
    assert "shape below the red circle" not in reasoned, "the red square is hardly higher than the circle"
    assert "highest shape" not in reasoned, "the circle and the red square are equally high"
    assert "shape right of the red circle" not in reasoned, "two shapes are"


def test_twins_are_named_by_reasoning_only() -> None:
    scene = make_scene(("red", "circle", 50, 60, 20), ("red", "circle", 150, 60, 40))
    named, reasoned = (dict(phrases) for phrases in shapes.references(scene))
    assert named == {}
    assert reasoned["largest circle"] == 1
    sentences = {shapes.ask(scene, np.random.default_rng(i))[0] for i in range(20)}
    assert all("red" not in sentence for sentence in sentences)


def test_masks_are_where_the_colour_is() -> None:
    scene, _ = shapes.scene("train", seed=5, index=3)
    for shape, mask in zip(scene.shapes, scene.masks, strict=True):
        inside = np.median(scene.image[mask], axis=0)
        assert np.abs(inside - shapes.COLOURS[shape.colour]).max() <= 2
    assert np.sum(scene.masks, axis=0).max() == 1, "no two shapes overlap"


AREAS = {"circle": np.pi, "square": 1.6**2, "triangle": 1.6625, "cross": 2.2576}


@pytest.mark.parametrize(("kind", "area"), AREAS.items())
def test_mask_areas_are_those_of_the_outlines(kind: str, area: float) -> None:
    # cross: two bars of 2 x 0.68 less the square where they meet, 2 * 1.36 - 0.68 ** 2 = 2.2576
    mask = shapes._coverage(shapes.Shape(kind, "red", (120.0, 120.0), 40.0)) >= 0.5
    assert mask.sum() == pytest.approx(area * 40**2, rel=0.03)


def test_sentences_reason_in_about_the_share_asked_for() -> None:
    reasoned = 0
    for index in range(200):
        scene, rng = shapes.scene("train", seed=0, index=index)
        named, _ = shapes.references(scene)
        sentence, target = shapes.ask(scene, rng)
        assert 0 <= target < len(scene.shapes)
        reasoned += not any(name in sentence and not any(w in sentence for w in shapes.RELATIONS) for name, _ in named)
    assert 40 <= reasoned <= 90


def test_files_are_true_and_splits_do_not_meet(drawn: Path) -> None:
    digests = {}
    for split in shapes.SPLITS:
        table = read_table(drawn / f"{split}.parquet")
        for index in range(table.num_rows):
            record = record_at(table, index, split)
            image = resolve_image(record, drawn / "any.parquet")
            assert sha256_of(image) == record.sha256
            assert open_image(image).size == (record.width, record.height)
            assert decode_rle(record.masks[0], (record.height, record.width)).any()
            digests.setdefault(split, set()).add(record.sha256)
    assert len(digests["train"]) == 8, "four sentences a scene"
    assert not digests["train"] & digests["test"] and not digests["val"] & digests["test"]


def test_same_seed_same_files(drawn: Path, tmp_path: Path) -> None:
    shapes.main(tmp_path, train=8, val=4, test=4, seed=0)
    for split in shapes.SPLITS:
        assert pq.read_table(tmp_path / f"{split}.parquet").equals(pq.read_table(drawn / f"{split}.parquet"))
