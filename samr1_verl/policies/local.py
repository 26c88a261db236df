"""A policy in this process, through transformers, on the first accelerator or the CPU."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BatchFeature, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from samr1_verl.policies.base import GREEDY, PolicyError, Reply, Sampling
from samr1_verl.policies.checkpoints import Files
from samr1_verl.prompts.policy_image import shown_image


class LocalPolicy:
    """Answers greedily or samples at a temperature. The model's own generation settings are ignored.

    Args:
        files: the policy's files.
        max_new_tokens: maximum number of tokens per answer.
        sampling: how answers are drawn. Default: greedily.
        dtype: dtype of the weights, such as bfloat16; auto: the dtype in config.json. verl always writes bfloat16
            there, so use the rollout's dtype for a policy that verl trained.
        processor_kwargs, template_kwargs: keyword arguments of the processor and of the chat template.

    Raises:
        PolicyError: the model takes no images, or its weights do not fit its config.json.
    """

    parallel = 1  # one batch at a time: the questions of a batch are answered together

    def __init__(
        self,
        files: Files,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        dtype: str = "auto",
        processor_kwargs: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.processor = load_processor(files.model)
        self.model = _model(files, dtype).eval().to(device)
        self._processor_kwargs, self._template_kwargs = dict(processor_kwargs or {}), dict(template_kwargs or {})
        own = self.model.generation_config
        # The model's own settings may have a repetition penalty, which training does not use and greedy excludes.
        self.model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else self.processor.tokenizer.pad_token_id,
            suppress_tokens=_media(self.model.config),
            **_drawing(sampling),
        )

    async def answer(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Reply]:
        """As `Policy.answer`; in a thread, so that the event loop can ask the segmenter meanwhile."""
        return await asyncio.to_thread(self.generate, items, seed)

    @torch.inference_mode()
    def generate(self, items: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Reply]:
        """As `answer`, in the calling thread."""
        inputs = self.inputs(items).to(self.model.device)
        torch.manual_seed(seed)
        tokens = self.model.generate(**inputs)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        lengths = map(self._length, answers.tolist())
        return [Reply(text, length, ended) for text, (length, ended) in zip(texts, lengths, strict=True)]

    def _length(self, answer: list[int]) -> tuple[int, bool]:
        """Number of generated tokens with the end's, without padding; and whether the answer has an end."""
        config = self.model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        end = next((number for number, token in enumerate(answer, start=1) if token in ends), None)
        return (len(answer), False) if end is None else (end, True)

    def inputs(self, items: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """The model's inputs for a batch of questions: tokens [batch, length] padded on the left, and image patches.

        Raises:
            ImageError: an image is missing or unreadable.
        """
        chats = [item["raw_prompt"] for item in items]
        shown = [part for chat in chats for message in chat for part in message["content"] if part["type"] == "image"]
        texts = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=False, **self._template_kwargs
        )
        return self.processor(
            text=texts,
            images=list(map(shown_image, shown)),
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **self._processor_kwargs,
        )


def _media(config: Any) -> list[int]:
    """The tokens that stand for a part of an image or a video. No rollout of a training writes them either."""
    found = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token for token in found if token is not None]


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """The keyword arguments of GenerationConfig. transformers' own default draws from the 50 best tokens only."""
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }


def load_processor(model: Path | str) -> Any:
    """The processor of a vision-language model. Raises PolicyError where transformers cannot read it."""
    try:
        config = AutoConfig.from_pretrained(model)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise PolicyError(
                "takes_no_images",
                f"policy {model}",
                f"its architecture is {config.model_type!r}, which takes no images. Use a Qwen2.5-VL or Qwen3-VL model",
            )
        return AutoProcessor.from_pretrained(model)
    except PolicyError:
        raise
    except (OSError, ValueError) as error:  # transformers' errors for missing files and unknown architectures
        raise PolicyError(
            "unreadable_model", f"policy {model}", f"transformers cannot read it: {_first_lines(error)}"
        ) from error


def _model(files: Files, dtype: str) -> Any:
    try:
        model, loading = AutoModelForImageTextToText.from_pretrained(files.model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolicyError(
            "weights_not_loaded", f"policy {files.model}", f"its weights do not load: {_first_lines(error)}"
        ) from error
    # transformers raises no error for missing weights: it fills them with random numbers.
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, loading[kind])):
            raise PolicyError(
                "other_architecture",
                f"policy {files.model}",
                "its weights are of another architecture than its config.json: "
                f"{len(keys)} {kind.replace('_', ' ')}, the first is {keys[0]}",
            )
    return model if files.adapter is None else _adapted(model, files.adapter)


def _adapted(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # peft only warns about modules for which the adapter has no weights
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise PolicyError(
            "adapter_does_not_fit", f"{adapter}", f"this adapter does not fit its model: {_first_lines(error)}"
        ) from error


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
