"""verl's data set over parquet rows: it makes the prompt of a rollout, in the policy frame.

verl copies a row for each of its rollouts. Therefore an item has the image's path and digest and the ground truth as
compressed RLE, but no pixels. `process_multi_modal_info` opens the image in the agent loop, at the start of a rollout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from omegaconf import DictConfig
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

from samr1_verl.config import ConfigError, keep_rows_config, prompt_config
from samr1_verl.prompts.policy_image import PolicySize, load_policy_image
from samr1_verl.prompts.questions import item_of, messages_of
from samr1_verl.prompts.templates import SentenceError, load_prompt
from samr1_verl.rows.measured import kept_rows
from samr1_verl.rows.record import DataError, read_table, record_at, resolve_image
from samr1_verl.service.client import announce

logger = logging.getLogger(__name__)

_announcing: set[asyncio.Task[None]] = set()
_BATCH = 1024  # number of prompts that are tokenized together for the check of their lengths


class SegmentationDataset(RLHFDataset):
    """Rows of samr1_verl.rows.record for verl.

    To use it, set `data.custom_cls` to path pkg://samr1_verl.training.dataset and this name. It reads
    `data.segmentation` (policy_size, frame, prompt) and `data.keep_rows` (bounds of measured columns for the training
    files; None: all rows) in addition to verl's own keys. An item is a dict with

        raw_prompt: chat messages; the image item has an absolute path and the policy's size
        data_source: str
        reward_model: {"ground_truth": JSON string, see Record.ground_truth}
        extra_info: {"image": absolute path, "sha256": hex, "policy_size": [W, H], "frame", "index": row, "category",
            "sentence"}

    and the fields that verl's trainer expects of every data set.

    Raises:
        DataError: a file is invalid, or prompts are longer than data.max_prompt_length, so that verl would lose their
            rollouts one by one. data.filter_overlong_prompts=true leaves such rows out and logs their number. Or a
            column of data.keep_rows is not measured, or leaves no row.
        ConfigError: data.segmentation, data.keep_rows or the processor does not fit.
    """

    def _read_files_and_tokenize(self) -> None:
        """Read and check the files. RLHFDataset.__init__ calls it, also on resume, when the files are local."""
        if self.processor is None:
            raise ConfigError(
                "no_processor",
                "actor_rollout_ref.model.path",
                "the model has no processor, so it takes no images. Use a vision-language model such as "
                "Qwen/Qwen2.5-VL-7B-Instruct",
            )
        self._prompt = prompt_config(self.config)
        self._template = load_prompt(self._prompt.prompt)
        self._policy_size = PolicySize(self.processor, self._prompt.policy_size, dict(self.mm_processor_kwargs or {}))
        tables = [read_table(path) for path in self.data_files]
        self._table = pa.concat_tables(tables).combine_chunks()
        self._first_rows = np.cumsum([0, *(table.num_rows for table in tables)])
        self._rows = self._check_lengths(self._select(self._kept(tables)))
        logger.info("%d of %d rows of %s", len(self._rows), self._table.num_rows, list(self.data_files))

    def _kept(self, tables: Sequence[pa.Table]) -> np.ndarray:
        """The rows within `data.keep_rows`: of the training files, all of others."""
        bounds, training = keep_rows_config(self.config), self.config.get("train_files")
        if not bounds or list(self.original_data_files) != ([training] if isinstance(training, str) else training):
            return np.arange(self._table.num_rows)
        kept = [kept_rows(table, bounds, path) for table, path in zip(tables, self.data_files, strict=True)]
        rows = np.flatnonzero(np.concatenate(kept))
        logger.info("data.keep_rows: %d of %d rows are left", len(rows), self._table.num_rows)
        return rows

    def _select(self, rows: np.ndarray) -> np.ndarray:
        """The rows within verl's `data.{train,val}_max_samples`: random with data.shuffle, else the first."""
        if not 0 < self.max_samples < len(rows):
            return rows
        if not self.shuffle:
            return rows[: self.max_samples]
        chosen = np.random.default_rng(self.seed).choice(len(rows), size=self.max_samples, replace=False)
        return rows[chosen]

    def _check_lengths(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.concatenate([self._lengths(rows[i : i + _BATCH]) for i in range(0, len(rows), _BATCH)])
        overlong = np.flatnonzero(lengths > self.max_prompt_length)
        if len(overlong) == 0:
            return rows
        summary = (
            f"{len(overlong)} of {len(rows)} prompts are longer than {self.max_prompt_length} tokens; the first is "
            f"{self._where(rows[overlong[0]])} with {lengths[overlong[0]]}, the longest has {lengths.max()}"
        )
        if not self.filter_overlong_prompts or len(overlong) == len(rows):
            raise DataError(
                "prompts_too_long",
                "data.max_prompt_length",
                f"{summary}. Set data.max_prompt_length={lengths.max()}, or a smaller samr1.policy_size, or leave "
                "these rows out with data.filter_overlong_prompts=true",
            )
        logger.warning("data.max_prompt_length: %s. They are left out (data.filter_overlong_prompts).", summary)
        return np.delete(rows, overlong)

    def _lengths(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Number of tokens per prompt, [rows] int64. Opens no image."""
        texts, image_tokens = [], []
        columns = self._table.select(["sentence", "image", "width", "height"])
        for number, row in zip(rows, columns.take(pa.array(rows)).to_pylist(), strict=True):
            policy_wh = self._size_of(number, (row["width"], row["height"]))
            try:
                messages = messages_of(row["sentence"], row["image"], "", policy_wh, self._prompt, self._template)
            except SentenceError as error:
                raise DataError.within(self._where(number), error) from error
            texts.append(self._render(number, messages))
            image_tokens.append(self._policy_size.tokens(policy_wh))
        tokens = self.processor.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return np.array([len(ids) - 1 + extra for ids, extra in zip(tokens, image_tokens, strict=True)])

    def _render(self, row: int, messages: list[dict]) -> str:
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self.apply_chat_template_kwargs
        )
        count = text.count(self.processor.image_token)
        if count != 1:
            raise DataError(
                "image_token_count",
                self._where(row),
                f"its prompt holds {count} image tokens ({self.processor.image_token}), expected 1. Remove the token "
                "from the row's sentence, or use a model whose chat template has images",
            )
        return text

    def _size_of(self, row: int, original_wh: tuple[int, int]) -> tuple[int, int]:
        try:
            return self._policy_size(original_wh)
        except ValueError as error:
            raise DataError(
                "image_not_shown",
                self._where(row),
                f"an image of {original_wh[0]}x{original_wh[1]} pixels cannot be shown to the policy: {error}. Leave "
                "the row out, or set samr1.policy_size",
            ) from error

    def _locate(self, row: int) -> tuple[str, int]:
        """File, and row in that file, of a row of the concatenated table."""
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
        """The images of a prompt; None for videos and audios. verl's agent loop calls it when a rollout starts.

        Images have the policy's size, which the message gives (`image_patch_size` is not used), and are opened in a
        thread, so that other rollouts continue. Where `config` has a segmenter under `encode_ahead`, its service starts
        to encode each image; this call does not wait for it.

        Raises:
            DataError: the prompt has other media than images.
            ImageError: an image is missing or unreadable.
        """
        items = [item for message in messages for item in message["content"] if isinstance(item, dict)]
        shown = [item for item in items if item["type"] == "image"]
        other = {item["type"] for item in items} - {"image", "text"}
        if other:
            raise DataError(
                "other_media", "a prompt", f"holds {sorted(other)}; SegmentationDataset shows images and text only"
            )
        if config is not None and (segmenter := config.get("encode_ahead")) is not None:
            for item in shown:
                task = asyncio.create_task(announce(segmenter, item["image"], item["sha256"]))
                _announcing.add(task)  # an event loop keeps no reference to its tasks
                task.add_done_callback(_announcing.discard)
        loop = asyncio.get_running_loop()
        images = [
            await loop.run_in_executor(
                None, load_policy_image, item["image"], (item["resized_width"], item["resized_height"])
            )
            for item in shown
        ]
        return images or None, None, None
