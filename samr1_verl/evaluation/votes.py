"""Several answers to one question combined into one mask, as StAR combines them (arXiv 2603.14382).

The source is `evaluation_scripts/evaluation_star.py` of github.com/ysj9909/StAR at commit 5499659, functions
`cluster_mask_candidates`, `aggregate_cluster_mask` and `main`, with their default values:

1. An unusable answer abstains. Where at least half of the other answers say that there is no such object, the result is
   an empty mask.
2. The objects of all answers form clusters: an object joins the first cluster whose first mask it overlaps with an IoU
   of at least 0.85, or starts a new one. A cluster has as many votes as answers have an object in it.
3. Clusters with votes of less than a fifth of the answers are left out, unless all are.
4. The result has the number of objects that most answers have. The clusters with the most votes win; equal ones are
   ordered by the mean of the IoUs that the segmenter predicts.
5. Each winner is the mask in its cluster with the highest predicted IoU, then with the most pixels.

One departure: StAR's script counts a response without <answer> as one that says "no such object". Here it abstains, as
every other unusable answer does there and here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from samr1_verl.geometry.masks import coco_rle

NO_OBJECT, SAME_OBJECT, FEWEST_VOTES = 0.5, 0.85, 0.2  # shares of answers, an IoU, and shares of answers


@dataclass(frozen=True)
class Candidate:
    """The mask of one object of one answer."""

    answer: int  # number of the answer
    mask: str  # compressed COCO RLE counts
    score: float  # IoU that the segmenter predicts for the mask


def elect(answers: Sequence[Sequence[tuple[str, float]] | None], size: tuple[int, int]) -> list[Candidate] | None:
    """The winning masks; none: the answers say that there is no such object. None: no answer is usable, so none votes.

    Args:
        answers: per answer its objects, each a mask (compressed COCO RLE counts) and the IoU that the segmenter
            predicts for it. No object: the answer says that there is none. None: the answer is unusable.
        size: (H, W) of the masks.
    """
    voters = [objects for objects in answers if objects is not None]
    if not voters:
        return None
    if sum(not objects for objects in voters) / len(voters) >= NO_OBJECT:
        return []
    candidates = [
        Candidate(number, *seen) for number, objects in enumerate(answers) if objects is not None for seen in objects
    ]
    clusters = _clusters(candidates, size)
    strong = [cluster for cluster in clusters if _votes(cluster) / len(voters) >= FEWEST_VOTES] or clusters
    strong.sort(key=lambda cluster: (_votes(cluster), _mean_score(cluster)), reverse=True)  # stable: the earlier first
    wanted = Counter(len(objects) for objects in voters if objects).most_common(1)[0][0]
    return [_best(cluster, size) for cluster in strong[:wanted]]


def _clusters(candidates: Sequence[Candidate], size: tuple[int, int]) -> list[list[Candidate]]:
    clusters: list[list[Candidate]] = []
    for candidate in candidates:
        firsts = [coco_rle(cluster[0].mask, size) for cluster in clusters]
        ious = coco_mask.iou([coco_rle(candidate.mask, size)], firsts, [0] * len(firsts))[0] if firsts else []
        joined = next((cluster for cluster, iou in zip(clusters, ious, strict=True) if iou >= SAME_OBJECT), None)
        if joined is None:
            clusters.append([candidate])
        else:
            joined.append(candidate)
    return clusters


def _votes(cluster: Sequence[Candidate]) -> int:
    return len({candidate.answer for candidate in cluster})


def _mean_score(cluster: Sequence[Candidate]) -> float:
    return float(np.mean([candidate.score for candidate in cluster]))


def _best(cluster: Sequence[Candidate], size: tuple[int, int]) -> Candidate:
    return max(cluster, key=lambda candidate: (candidate.score, int(coco_mask.area(coco_rle(candidate.mask, size)))))
