"""From a parquet row to the prompt that verl's rollout gets, in the policy's frame.

Only paths travel: a row is copied for each of its rollouts, so it carries the image's path and digest, and the ground
truth as compressed RLE. The image is opened at the start of a rollout, in the agent loop, by
`process_multi_modal_info`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jinja2 import Template
from omegaconf import DictConfig
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from verl.utils.dataset.rl_dataset import RLHFDataset

from samr1_verl.config import ConfigError, PromptConfig, prompt_config
from samr1_verl.geometry.frames import THOUSAND
from samr1_verl.geometry.images import open_image
from samr1_verl.prompts.templates import as_question, load_prompt
from samr1_verl.rows.record import DataError, Record, read_table, record_at, resolve_image
from samr1_verl.service.client import announce

logger = logging.getLogger(__name__)

_announcing: set[asyncio.Task[None]] = set()
_BATCH = 1024  # prompts tokenized together when their lengths are checked


class PolicySize:
    """The size of the image that the policy sees, decided once and asserted against the model's own processor.

    A Qwen processor rounds an image to multiples of patch_size x merge_size and keeps its area between two limits. The
    adapter resizes first, to a size that the processor then leaves alone, so that the prompt, the answer and the vision
    tower share one frame.
    """

    def __init__(self, processor: Any, fixed_wh: tuple[int, int] | None, processor_kwargs: dict[str, Any]):
        """
        Args:
            processor: the model's processor (Qwen2.5-VL, Qwen3-VL).
            fixed_wh: the size of every image, (W, H) pixels; None: each image gets the processor's own size.
            processor_kwargs: verl's `data.mm_processor_kwargs`; its min_pixels and max_pixels are the limits then.

        Raises:
            ConfigError: the processor would resize images of `fixed_wh` again, or has no limits to ask for.
        """
        image_processor = getattr(processor, "image_processor", None)
        if image_processor is None or not hasattr(image_processor, "merge_size"):
            raise ConfigError(
                "actor_rollout_ref.model.path: the model has no image processor with patches to merge. "
                "Use a Qwen2.5-VL or Qwen3-VL model"
            )
        limits = [processor_kwargs.get(name) for name in ("min_pixels", "max_pixels")]
        if None in limits and (any(limit is not None for limit in limits) or "size" in processor_kwargs):
            raise ConfigError(
                f"data.mm_processor_kwargs: set min_pixels and max_pixels together, found {dict(processor_kwargs)}; "
                "the processor ignores one without the other"
            )
        size = image_processor.size
        self.min_pixels = limits[0] or size["shortest_edge"]
        self.max_pixels = limits[1] or size["longest_edge"]
        self.factor = image_processor.patch_size * image_processor.merge_size
        self.fixed_wh = fixed_wh
        if fixed_wh is not None and self._processor_size(fixed_wh) != fixed_wh:
            wanted = list(self._processor_size(fixed_wh))
            raise ConfigError(
                f"samr1.policy_size: the model's processor would resize {list(fixed_wh)} to {wanted} (multiples of "
                f"{self.factor}, {self.min_pixels} to {self.max_pixels} pixels), so answers would be in another frame. "
                f"Set samr1.policy_size={wanted}"
            )

    def __call__(self, original_wh: tuple[int, int]) -> tuple[int, int]:
        """(W, H) of the resized image for an original of (W, H). Raises ValueError for ratios above 200:1."""
        return self.fixed_wh or self._processor_size(original_wh)

    def _processor_size(self, original_wh: tuple[int, int]) -> tuple[int, int]:
        width, height = original_wh
        new_height, new_width = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
        return new_width, new_height

    def tokens(self, policy_wh: tuple[int, int]) -> int:
        """Number of image tokens in the prompt for a resized image of (W, H)."""
        return (policy_wh[0] // self.factor) * (policy_wh[1] // self.factor)


def load_policy_image(path: str | Path, policy_wh: tuple[int, int]) -> Image.Image:
    """An image file as the policy sees it: RGB, EXIF-transposed, resized to (W, H) by the processors' bicubic filter.

    Raises:
        ImageError: the file is missing or is no image.
    """
    return open_image(path).resize(policy_wh, Image.Resampling.BICUBIC)


def messages_of(
    sentence: str, image: str, sha256: str, policy_wh: tuple[int, int], prompt: PromptConfig, template: Template
) -> list[dict]:
    """One user turn: the image, then the rendered prompt. `policy_wh` is (W, H) of the image as the policy sees it."""
    range_wh = policy_wh if prompt.frame == "absolute" else (int(THOUSAND), int(THOUSAND))
    text = template.render(sentence=as_question(sentence), frame=prompt.frame, width=range_wh[0], height=range_wh[1])
    # resized_width and resized_height are the names Qwen's own tools use for a size that the caller has decided.
    shown = {"type": "image", "image": image, "resized_width": policy_wh[0], "resized_height": policy_wh[1]}
    shown |= {"sha256": sha256}  # names the image to the segmenter's service when its rollouts start
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def item_of(
    record: Record, image: str, index: int, policy_wh: tuple[int, int], prompt: PromptConfig, template: Template
) -> dict[str, Any]:
    """What a rollout and a reward get of row `index`: raw_prompt, data_source, reward_model and extra_info."""
    return {
        "raw_prompt": messages_of(record.sentence, image, record.sha256, policy_wh, prompt, template),
        "data_source": record.data_source,
        "reward_model": {"style": "rule", "ground_truth": record.ground_truth()},
        "extra_info": {
            "image": image,
            "sha256": record.sha256,
            "policy_size": list(policy_wh),
            "frame": prompt.frame,
            "index": index,
            "category": record.category,
            "sentence": record.sentence,
        },
    }


class SegmentationDataset(RLHFDataset):
    """Rows of samr1_verl.rows.record for verl: set `data.custom_cls` to path pkg://samr1_verl.training.dataset and this name.

    Reads `data.segmentation` (policy_size, frame, prompt) beside verl's own keys. An item is a dict with

        raw_prompt: chat messages; the image item holds an absolute path and the policy's size
        data_source: str
        reward_model: {"ground_truth": JSON string, see Record.ground_truth}
        extra_info: {"image": absolute path, "sha256": hex, "policy_size": [W, H], "frame", "index": row, "category",
            "sentence"}

    and the fields verl's trainer expects of every data set.

    Raises:
        DataError: a file cannot be used, or prompts are longer than data.max_prompt_length (verl would lose their
            rollouts one by one; data.filter_overlong_prompts leaves them out and counts them in a warning).
        ConfigError: data.segmentation or the processor does not fit.
    """

    def _read_files_and_tokenize(self) -> None:
        """Called by RLHFDataset.__init__ and on resume, when files are local and the processor is known."""
        if self.processor is None:
            raise ConfigError(
                "actor_rollout_ref.model.path: the model has no processor, so it cannot see images. Use a "
                "vision-language model such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
        self._prompt = prompt_config(self.config)
        self._template = load_prompt(self._prompt.prompt)
        self._policy_size = PolicySize(self.processor, self._prompt.policy_size, dict(self.mm_processor_kwargs or {}))
        tables = [read_table(path) for path in self.data_files]
        self._table = pa.concat_tables(tables).combine_chunks()
        self._first_rows = np.cumsum([0, *(table.num_rows for table in tables)])
        self._rows = self._check_lengths(self._select(self._table.num_rows))
        logger.info("%d of %d rows of %s", len(self._rows), self._table.num_rows, list(self.data_files))

    def _select(self, total: int) -> np.ndarray:
        """Rows in use after verl's `data.{train,val}_max_samples`: random ones if data.shuffle, else the first."""
        if not 0 < self.max_samples < total:
            return np.arange(total)
        if not self.shuffle:
            return np.arange(self.max_samples)
        return np.asarray(np.random.default_rng(self.seed).choice(total, size=self.max_samples, replace=False))

    def _check_lengths(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.concatenate([self._lengths(rows[i : i + _BATCH]) for i in range(0, len(rows), _BATCH)])
        overlong = np.flatnonzero(lengths > self.max_prompt_length)
        if len(overlong) == 0:
            return rows
        summary = (
            f"{len(overlong)} of {len(rows)} prompts are longer than data.max_prompt_length={self.max_prompt_length} "
            f"tokens; the first is {self._where(rows[overlong[0]])} with {lengths[overlong[0]]}, the longest has "
            f"{lengths.max()}"
        )
        if not self.filter_overlong_prompts or len(overlong) == len(rows):
            raise DataError(
                f"{summary}. Set data.max_prompt_length={lengths.max()}, or a smaller samr1.policy_size, or leave "
                "these rows out with data.filter_overlong_prompts=true"
            )
        logger.warning("%s. They are left out (data.filter_overlong_prompts).", summary)
        return np.delete(rows, overlong)

    def _lengths(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens in each prompt, shape [rows], computed without opening an image."""
        texts, image_tokens = [], []
        columns = self._table.select(["sentence", "image", "width", "height"])
        for number, row in zip(rows, columns.take(pa.array(rows)).to_pylist(), strict=True):
            policy_wh = self._size_of(number, (row["width"], row["height"]))
            messages = messages_of(row["sentence"], row["image"], "", policy_wh, self._prompt, self._template)
            texts.append(self._render(number, messages))
            image_tokens.append(self._policy_size.tokens(policy_wh))
        tokens = self.processor.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return np.array([len(ids) - 1 + extra for ids, extra in zip(tokens, image_tokens, strict=True)])

    def _render(self, row: int, messages: list[dict]) -> str:
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self.apply_chat_template_kwargs
        )
        found = text.count(self.processor.image_token)
        if found != 1:
            raise DataError(
                f"{self._where(row)}: its prompt holds {found} image tokens ({self.processor.image_token}), expected "
                "1. Take the token out of the row's sentence, or use a model whose chat template shows images"
            )
        return text

    def _size_of(self, row: int, original_wh: tuple[int, int]) -> tuple[int, int]:
        try:
            return self._policy_size(original_wh)
        except ValueError as error:
            raise DataError(
                f"{self._where(row)}: an image of {original_wh[0]}x{original_wh[1]} pixels cannot be shown to the "
                f"policy: {error}. Leave the row out, or set samr1.policy_size"
            ) from error

    def _locate(self, row: int) -> tuple[str, int]:
        """File and row in that file of a row of the concatenated table."""
        index = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self.data_files[index], int(row - self._first_rows[index])

    def _where(self, row: int) -> str:
        path, row_in_file = self._locate(row)
        return f"{path}: row {row_in_file}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = int(self._rows[item])
        path, row_in_file = self._locate(row)
        record = record_at(self._table.slice(row - row_in_file), row_in_file, path)
        image = str(resolve_image(record, path))
        policy_wh = self._size_of(row, (record.width, record.height))
        return {
            **item_of(record, image, row, policy_wh, self._prompt, self._template),
            "index": row,
            "tools_kwargs": {},
            "interaction_kwargs": {},
            "dummy_tensor": torch.zeros(1, dtype=torch.uint8),  # verl wants a tensor in every batch
        }

    @classmethod
    async def process_multi_modal_info(
        cls, messages: list[dict], image_patch_size: int, config: DictConfig | None
    ) -> tuple[list[Image.Image] | None, None, None]:
        """Images, videos and audios of a prompt, called by verl's agent loop when a rollout starts.

        Images come back in the policy's frame, opened in a thread so that the other rollouts go on. The message says
        the size, not `image_patch_size`. Where `config` has `encode_ahead`, the segmenter's service is told of each
        image, and not waited for.
        """
        items = [item for message in messages for item in message["content"] if isinstance(item, dict)]
        shown = [item for item in items if item["type"] == "image"]
        other = {item["type"] for item in items} - {"image", "text"}
        if other:
            raise DataError(f"a prompt holds {sorted(other)}; SegmentationDataset shows images and text only")
        if config is not None and (service := config.get("encode_ahead")) is not None:
            for item in shown:
                told = asyncio.create_task(announce(service.segmenter, service.service, item["image"], item["sha256"]))
                _announcing.add(told)  # an event loop keeps no reference to its tasks
                told.add_done_callback(_announcing.discard)
        loop = asyncio.get_running_loop()
        images = [
            await loop.run_in_executor(
                None, load_policy_image, item["image"], (item["resized_width"], item["resized_height"])
            )
            for item in shown
        ]
        return images or None, None, None
