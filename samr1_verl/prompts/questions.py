"""The question of a row: chat messages with image and prompt, together with the row's ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samr1_verl.config import ConfigError, PromptConfig
from samr1_verl.geometry.frames import THOUSAND, Frame
from samr1_verl.geometry.images import ImageError
from samr1_verl.prompts.policy_image import PolicySize
from samr1_verl.prompts.templates import PromptTemplate, as_question, load_prompt
from samr1_verl.rows.record import Record


class Questions:
    """Makes items from rows, as `item_of` does, for a policy outside a training.

    Args:
        prompt: template, frame and image size.
        processor: the policy's processor, for a check of the image size; None: the policy is behind a server.
        processor_kwargs: verl's `data.mm_processor_kwargs`.

    Raises:
        ConfigError: the processor would resize the images again, or neither it nor the recipe gives their size.
    """

    def __init__(self, prompt: PromptConfig, processor: Any | None, processor_kwargs: dict[str, Any]) -> None:
        self._prompt = prompt
        self._template = load_prompt(prompt.prompt)
        self._fixed_wh = prompt.policy_size
        self._size = None
        if processor is not None:
            self._size = PolicySize(processor, self._fixed_wh, processor_kwargs)
        elif self._fixed_wh is None:
            raise ConfigError(
                "policy_size_missing",
                "samr1.policy_size",
                "found null, expected [W, H], because the policy's processor is behind the server. Set it, for example "
                "to [840,840]",
            )

    def item(self, record: Record, image: Path, index: int = 0) -> dict[str, Any]:
        """The item of a row.

        Args:
            image: path of the image. index: number of the row.

        Raises:
            ImageError: the processor does not accept the image's aspect ratio.
            SentenceError: the sentence holds a token.
        """
        original_wh = (record.width, record.height)
        try:
            policy_wh = self._fixed_wh if self._size is None else self._size(original_wh)
        except ValueError as error:
            raise ImageError(
                "image_not_showable",
                f"{image}",
                f"{record.width}x{record.height} pixels cannot be shown to the policy: {error}. Set samr1.policy_size",
            ) from error
        assert policy_wh is not None
        return item_of(record, str(image), index, policy_wh, self._prompt, self._template)


def messages_of(
    sentence: str, image: str, sha256: str, policy_wh: tuple[int, int], prompt: PromptConfig, template: PromptTemplate
) -> list[dict]:
    """Chat messages with one user turn: the image, then the rendered prompt.

    Args:
        image: path of the image file. sha256: digest of the file.
        policy_wh: (W, H) of the resized image.
    """
    text = question_text(sentence, prompt.frame, policy_wh, template)
    # Qwen's tools use resized_width and resized_height for a size that the caller chose.
    shown = {"type": "image", "image": image, "resized_width": policy_wh[0], "resized_height": policy_wh[1]}
    shown |= {"sha256": sha256}  # the segmenter's service starts to encode the image when its rollouts start
    return [{"role": "user", "content": [shown, {"type": "text", "text": text}]}]


def question_text(sentence: str, frame: Frame, policy_wh: tuple[int, int], template: PromptTemplate) -> str:
    """A template's text about a row's sentence. policy_wh: (W, H) of the resized image."""
    width, height = policy_wh if frame == "absolute" else (int(THOUSAND), int(THOUSAND))
    return template.render(sentence=as_question(sentence), frame=frame, width=width, height=height)


def item_of(
    record: Record, image: str, index: int, policy_wh: tuple[int, int], prompt: PromptConfig, template: PromptTemplate
) -> dict[str, Any]:
    """The item of row `index` for rollout and reward: raw_prompt, data_source, reward_model and extra_info.

    Args:
        image: path of the image file.
        policy_wh: (W, H) of the resized image.
    """
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
