"""The tiny policy as a plug-in of ms-swift, and a reward whose segmenter fails."""

from __future__ import annotations

from typing import Any, NoReturn

from swift.rewards import orms
from swift.template import register_template
from swift.template.templates.qwen import Qwen2_5VLTemplate, QwenTemplateMeta

from reward_fns.samr1 import compute_score
from reward_fns.swift import swift_rewards
from samr1_verl.segmenters import SegmenterError


class TinyTemplate(Qwen2_5VLTemplate):
    """ms-swift has the numbers of Qwen's image and video tokens in its code."""

    image_token_id, video_token_id = 5, 6


class Broken:
    """A segmenter that fails."""

    async def overlap(self, *_: Any) -> NoReturn:
        raise SegmenterError("no_memory", "the segmenter", "out of memory")


register_template(QwenTemplateMeta("tiny", template_cls=TinyTemplate, default_system=None))
(_, broken) = swift_rewards(compute_score, segmenter=Broken()).popitem()
orms["broken"] = broken
