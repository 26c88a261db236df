"""The adapter's frame is the processor's frame, only paths travel, and nothing is dropped without a word."""

import asyncio
import pickle

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import collate_fn, get_dataset_class
from verl.utils.tokenizer import build_multimodal_processor_inputs

from samr1_verl.config import ConfigError
from samr1_verl.geometry.images import ImageError
from samr1_verl.prompts.policy_image import PolicySize, load_policy_image
from samr1_verl.rows.measured import write_measured
from samr1_verl.rows.record import DataError
from samr1_verl.training import dataset as dataset_module
from samr1_verl.training.dataset import SegmentationDataset
from tests.errors import refused
from tests.processors import qwen_processor
from tests.row_files import make_record, write_rows

SIZES = [(64, 48), (640, 480), (17, 300), (1, 1), (5000, 900), (700, 700)]


def data_config(**changes):
    segmentation = {"policy_size": None, "frame": "absolute", "prompt": "seg_zero"}
    base = {
        "custom_cls": {"path": "pkg://samr1_verl.training.dataset", "name": "SegmentationDataset"},
        "segmentation": segmentation,
        "max_prompt_length": 3000,
        "filter_overlong_prompts": False,
        "shuffle": True,
        "seed": 3,
    }
    return OmegaConf.merge(base, OmegaConf.create(changes))


def dataset(files, processor=None, max_samples=-1, **changes) -> SegmentationDataset:
    processor = processor or qwen_processor()
    return create_rl_dataset(
        OmegaConf.create([str(f) for f in files]),
        data_config(**changes),
        processor.tokenizer,
        processor,
        max_samples=max_samples,
    )


def rollout_inputs(item, processor):
    """What verl's agent loop makes of an item: its images and the processor's tensors."""
    messages = list(item["raw_prompt"])
    cls = get_dataset_class(data_config())
    images, videos, audios = asyncio.run(cls.process_multi_modal_info(messages, image_patch_size=14, config=None))
    assert videos is None and audios is None
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return images, build_multimodal_processor_inputs(processor, text=[text], images=images)


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("size_wh", SIZES)
def test_smart_resized_frame_is_the_one_the_processor_makes(tmp_path, size_wh, patch_size):
    processor = qwen_processor(patch_size=patch_size)
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, size_wh=size_wh))
    item = dataset([path], processor)[0]
    images, inputs = rollout_inputs(item, processor)
    assert [images[0].size] == [tuple(item["extra_info"]["policy_size"])]
    _, grid_h, grid_w = inputs["image_grid_thw"][0].tolist()
    assert item["extra_info"]["policy_size"] == [grid_w * patch_size, grid_h * patch_size]
    untouched = processor.image_processor(images=[load_policy_image(tmp_path / "a.png", size_wh)], return_tensors="pt")
    assert untouched["image_grid_thw"].tolist() == inputs["image_grid_thw"].tolist()


def test_fixed_policy_size_stretches_every_image_to_it(tmp_path):
    processor = qwen_processor()
    records = [make_record(tmp_path, f"{i}.png", size) for i, size in enumerate(SIZES)]
    path = write_rows(tmp_path / "rows.parquet", *records)
    for item in dataset([path], processor, segmentation={"policy_size": [168, 112]}):
        images, inputs = rollout_inputs(item, processor)
        assert item["extra_info"]["policy_size"] == [168, 112] and images[0].size == (168, 112)
        assert inputs["image_grid_thw"].tolist() == [[1, 8, 12]]


@pytest.mark.parametrize(("policy_size", "wanted"), [([840, 850], "[840, 840]"), ([28, 28], "[56, 56]")])
def test_a_policy_size_the_processor_would_change_is_refused_with_the_one_it_keeps(tmp_path, policy_size, wanted):
    path = write_rows(tmp_path / "rows.parquet")
    named = f"samr1.policy_size={wanted}"
    with refused(ConfigError, "policy_size_resized", "samr1.policy_size: ", policy_size, named):
        dataset([path], segmentation={"policy_size": policy_size})


def test_pixel_limits_of_the_data_section_change_the_frame_as_they_change_the_processor(tmp_path):
    processor = qwen_processor()
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, size_wh=(640, 480)))
    limits = {"min_pixels": 3136, "max_pixels": 50_000}
    item = dataset([path], processor, mm_processor_kwargs=limits)[0]
    image = load_policy_image(tmp_path / "a.png", (640, 480))
    made = build_multimodal_processor_inputs(
        processor, text=[processor.image_token], images=[image], mm_processor_kwargs=limits
    )
    _, grid_h, grid_w = made["image_grid_thw"][0].tolist()
    assert item["extra_info"]["policy_size"] == [grid_w * 14, grid_h * 14]
    with refused(ConfigError, "pixel_limit_alone", "data.mm_processor_kwargs: ", "'max_pixels': 50000"):
        dataset([path], processor, mm_processor_kwargs={"max_pixels": 50_000})


def test_an_item_carries_paths_and_text_but_no_pixels(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, size_wh=(640, 480)))
    item = dataset([path])[0]
    assert item["extra_info"]["image"] == str(tmp_path / "a.png") == item["raw_prompt"][0]["content"][0]["image"]
    assert item["reward_model"]["ground_truth"].startswith('{"size": [480, 640], "masks": ["')
    assert item["data_source"] == "test" and item["extra_info"]["frame"] == "absolute"
    assert len(pickle.dumps(item)) < 4000
    (tmp_path / "a.png").unlink()
    again = dataset([path])[0]
    with refused(ImageError, "no_such_image", tmp_path / "a.png"):
        rollout_inputs(again, qwen_processor())


def test_prompt_shows_the_sentence_as_seg_zero_does_and_the_frame_of_the_answer(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, sentence=" The Red Rectangle. "))
    text = dataset([path], segmentation={"policy_size": [112, 168]})[0]["raw_prompt"][0]["content"][1]["text"]
    assert '"the red rectangle"' in text and "112 wide and 168 high" in text
    thousand = {"policy_size": [112, 168], "frame": "thousand"}
    item = dataset([path], segmentation=thousand)[0]
    text = item["raw_prompt"][0]["content"][1]["text"]
    assert "from 0 to 1000" in text and "168" not in text
    assert item["extra_info"]["frame"] == "thousand" and item["extra_info"]["policy_size"] == [112, 168]
    tiny = {"policy_size": [112, 168], "prompt": "tiny"}
    assert dataset([path], segmentation=tiny)[0]["raw_prompt"][0]["content"][1]["text"] == "segment the red rectangle"


def test_rows_of_several_files_keep_their_own_folders_and_numbers(tmp_path):
    first = write_rows(tmp_path / "one" / "rows.parquet", *[make_record_in(tmp_path / "one", i) for i in range(3)])
    second = write_rows(tmp_path / "two" / "rows.parquet", *[make_record_in(tmp_path / "two", i) for i in range(2)])
    rows = dataset([first, second])
    images = [row["extra_info"]["image"] for row in rows]
    assert images == [str(tmp_path / folder / f"{i}.png") for folder, n in (("one", 3), ("two", 2)) for i in range(n)]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert collate_fn(list(rows))["extra_info"].shape == (5,)


def make_record_in(folder, i):
    folder.mkdir(exist_ok=True)
    return make_record(folder, f"{i}.png")


def test_max_samples_takes_a_seeded_random_subset_when_shuffling_and_the_first_rows_otherwise(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", *[make_record_in(tmp_path, i) for i in range(20)])
    random_rows = [row["index"] for row in dataset([path], max_samples=5)]
    assert random_rows == [row["index"] for row in dataset([path], max_samples=5)]
    assert len(set(random_rows)) == 5 and random_rows != [0, 1, 2, 3, 4]
    assert [row["index"] for row in dataset([path], max_samples=5, shuffle=False)] == [0, 1, 2, 3, 4]


def test_rows_outside_the_bounds_are_left_out_of_the_training_files_alone(tmp_path):
    plain = write_rows(tmp_path / "plain.parquet", *[make_record_in(tmp_path, i) for i in range(10)])
    measured = tmp_path / "measured.parquet"
    write_measured(plain, measured, {"ceiling": np.linspace(0, 0.9, 10)})
    keep = {"keep_rows": {"ceiling": [0.45, 1.0]}, "shuffle": False}
    rows = dataset([measured], train_files=[str(measured)], **keep)
    assert [row["index"] for row in rows] == [5, 6, 7, 8, 9]
    assert [row["index"] for row in dataset([measured], 0, 2, train_files=str(measured), **keep)] == [5, 6]
    assert len(dataset([plain], train_files=[str(measured)], **keep)) == 10, "validation rows all stay"
    with refused(DataError, "not_measured", f"{plain}: column 'ceiling'", "10 of 10 rows"):
        dataset([plain], train_files=[str(plain)], **keep)


def test_counted_prompt_length_is_the_number_of_tokens_the_rollout_sends(tmp_path):
    processor = qwen_processor()
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, size_wh=(640, 480)))
    rows = dataset([path], processor)
    _, inputs = rollout_inputs(rows[0], processor)
    length = inputs["input_ids"].shape[1]
    assert len(dataset([path], processor, max_prompt_length=length)) == 1
    with refused(DataError, "prompts_too_long", f"data.max_prompt_length={length},", "samr1.policy_size"):
        dataset([path], processor, max_prompt_length=length - 1)


def test_overlong_prompts_are_an_error_or_counted_when_filtering_is_asked_for(tmp_path, caplog):
    records = [make_record(tmp_path), make_record(tmp_path, sentence="long " * 400), make_record(tmp_path)]
    path = write_rows(tmp_path / "rows.parquet", *records)
    with refused(DataError, "prompts_too_long", "data.max_prompt_length", "1 of 3", "1200", f"{path}: row 1 with "):
        dataset([path], max_prompt_length=1200)
    rows = dataset([path], max_prompt_length=1200, filter_overlong_prompts=True)
    assert [row["index"] for row in rows] == [0, 2]
    assert "1 of 3 prompts" in caplog.text and "left out" in caplog.text


def test_a_sentence_with_an_image_token_is_refused_with_its_row(tmp_path):
    records = [make_record(tmp_path), make_record(tmp_path, sentence="a <|image_pad|> b")]
    path = write_rows(tmp_path / "rows.parquet", *records)
    with refused(DataError, "token_in_sentence", f"{path}: row 1: sentence 'a <|image_pad|> b'", "'<|image_pad|>'"):
        dataset([path])


def test_an_image_too_narrow_for_the_processor_is_refused_with_its_row(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", make_record(tmp_path, size_wh=(900, 4)))
    with refused(DataError, "image_not_shown", f"{path}: row 0", "900x4", "samr1.policy_size"):
        dataset([path])


def test_a_model_without_an_image_processor_is_refused(tmp_path):
    path = write_rows(tmp_path / "rows.parquet")
    tokenizer = qwen_processor().tokenizer
    with refused(ConfigError, "no_processor", "actor_rollout_ref.model.path"):
        create_rl_dataset([str(path)], data_config(), tokenizer, None)
    with refused(ConfigError, "no_image_processor", "actor_rollout_ref.model.path: ", "image processor"):
        PolicySize(tokenizer, None, {})


def test_the_segmenters_service_is_told_of_an_image_when_its_rollout_starts(tmp_path, monkeypatch):
    told = []

    async def announce(segmenter, image, sha256):
        told.append((segmenter.backend, segmenter.service.mode, image, sha256))

    monkeypatch.setattr(dataset_module, "announce", announce)
    item = dataset([write_rows(tmp_path / "rows.parquet", make_record(tmp_path))])[0]
    config = OmegaConf.create({"encode_ahead": {"backend": "onnx", "service": {"mode": "ray"}}})
    asyncio.run(SegmentationDataset.process_multi_modal_info(item["raw_prompt"], 14, config))
    assert told == [("onnx", "ray", item["extra_info"]["image"], item["extra_info"]["sha256"])]


def test_videos_are_refused_instead_of_ignored():
    messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    with refused(DataError, "other_media", "['video']"):
        asyncio.run(SegmentationDataset.process_multi_modal_info(messages, 14, None))


def test_policy_image_is_oriented_by_its_exif_tag_before_it_is_resized(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to show
    image.save(tmp_path / "turned.jpg", exif=exif)
    shown = load_policy_image(tmp_path / "turned.jpg", (56, 112))
    assert shown.size == (56, 112)
    assert shown.getpixel((28, 10))[0] > 200 and shown.getpixel((28, 100))[0] < 50
