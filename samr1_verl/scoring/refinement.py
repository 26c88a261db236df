"""What the policy sees after a turn: the image with the mask of its answer drawn on it, and a text.

The training's agent loop and the policies outside a training use it, so that both show the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from samr1_verl.answers import CAPS, Caps, Unusable
from samr1_verl.config import RefineConfig
from samr1_verl.geometry.drawing import COLOURS, draw
from samr1_verl.prompts.policy_image import load_policy_image
from samr1_verl.prompts.questions import question_text
from samr1_verl.prompts.templates import load_prompt
from samr1_verl.scoring.rollout import image_of, read_rollout, union_of
from samr1_verl.scoring.turns import says_done

COLOUR = COLOURS[-1]


class Refinement:
    """Makes the messages that follow a turn.

    Args:
        refine: maximum number of turns, and the template of the text.
        segmenter: the recipe's `samr1.segmenter` or a client, as for `service.client.get_client`.
        caps: maximum number of points and objects of a usable answer, as in the reward.
        lenient: read answers leniently, as `answers.parse_answer` does.

    Raises:
        ConfigError: there is no such template, or it cannot be used.
    """

    def __init__(self, refine: RefineConfig, segmenter: Any, caps: Caps = CAPS, lenient: bool = False) -> None:
        self._max_turns, self._template = refine.max_turns, load_prompt(refine.look, "samr1.refine.look")
        self._segmenter, self._caps, self._lenient = segmenter, caps, lenient

    async def look(self, item: Mapping[str, Any], turns: Sequence[str]) -> dict[str, Any] | None:
        """The user's message after some turns: the image with the last answer's mask, then the text.

        Args:
            item: an item of SegmentationDataset, with `data_source`, `reward_model` and `extra_info`.
            turns: the texts of the turns so far, without special tokens.

        Returns:
            A chat message. Its image is a PIL image, RGB, of the policy's size. None: the last turn was the last one,
            since it says `done`, its answer is unusable (an empty list included), or no further turn is allowed.

        Raises:
            ConfigError, RowError, ImageError, SegmenterError: as `reward_fns.samr1.compute_score`.
        """
        if len(turns) >= self._max_turns or says_done(turns[-1]):
            return None
        row = (item["data_source"], turns[-1], item["reward_model"]["ground_truth"], item["extra_info"])
        rollout = read_rollout(*row, self._caps, lenient=self._lenient)
        if isinstance(rollout.answer, Unusable):
            return None
        mask = await union_of(rollout, self._segmenter)
        policy_wh = rollout.view.policy_size
        shown = await asyncio.to_thread(picture, image_of(rollout)[0], mask, policy_wh)
        text = question_text(item["extra_info"]["sentence"], rollout.view.frame, policy_wh, self._template)
        size = {"resized_width": policy_wh[0], "resized_height": policy_wh[1]}
        return {"role": "user", "content": [{"type": "image", "image": shown, **size}, {"type": "text", "text": text}]}


def picture(image: str, mask: np.ndarray, policy_wh: tuple[int, int]) -> Image.Image:
    """The image as the policy sees it, (W, H) pixels, with a mask drawn on it: a light tint with a line around it.

    Args:
        image: path. mask: HxW bool, original frame.
    """
    shown = load_policy_image(image, policy_wh)
    draw(shown, mask.shape[::-1], masks=[(mask, COLOUR)])
    return shown


def spoken(text: str) -> dict[str, Any]:
    """The chat message of a turn that the policy has spoken."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
