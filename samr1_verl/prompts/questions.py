"""From a row to the question that a policy gets: chat messages with the image, and the row's truth beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Template

from samr1_verl.config import ConfigError, PromptConfig
from samr1_verl.geometry.frames import THOUSAND
from samr1_verl.geometry.images import ImageError
from samr1_verl.prompts.policy_image import PolicySize
from samr1_verl.prompts.templates import as_question, load_prompt
from samr1_verl.rows.record import Record


class Questions:
    """Makes items, as `item_of`, from rows, for a policy outside a training.

    Args:
        prompt: template, frame and image size.
        processor: of the policy, held against the image size; None where it is out of reach, as behind a server.
        processor_kwargs: verl's `data.mm_processor_kwargs`.

    Raises:
        ConfigError: the processor would resize the images again, or is needed to say their size.
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
                "samr1.policy_size: found null, expected [W, H]: the policy's processor, which would say the size, is "
                "behind the server. Set it, for example to [840,840]"
            )

    def item(self, record: Record, image: Path, index: int = 0) -> dict[str, Any]:
        """A row as a question. Raises ImageError for an image of a shape that the processor cannot show."""
        original_wh = (record.width, record.height)
        try:
            policy_wh = self._fixed_wh if self._size is None else self._size(original_wh)
        except ValueError as error:
            raise ImageError(
                f"{image}: {original_wh[0]}x{original_wh[1]} pixels cannot be shown to the policy: {error}. "
                "Set samr1.policy_size"
            ) from error
        assert policy_wh is not None
        return item_of(record, str(image), index, policy_wh, self._prompt, self._template)


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
    """Row `index` as a rollout and a reward get it: raw_prompt, data_source, reward_model and extra_info."""
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
