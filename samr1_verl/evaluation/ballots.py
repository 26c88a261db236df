"""The stored answers of an evaluation with votes, and the sample that they elect together."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from samr1_verl.evaluation.judge import answered, judged
from samr1_verl.evaluation.votes import elect
from samr1_verl.geometry.masks import encode_rle, union_rle
from samr1_verl.scoring.sample import Sample
from samr1_verl.segmenters.base import Prediction


class VotedObject(BaseModel):
    """An object of an answer: its mask, compressed COCO RLE counts, and the IoU that the segmenter predicts for it."""

    model_config = ConfigDict(frozen=True)

    mask: str
    score: float


class Ballot(Sample):
    """One of several answers to a row, with the masks of its objects and its cost."""

    objects: tuple[VotedObject, ...]  # in the answer's order, equal ones as well
    # Shares of the time in which policy and segmenter worked; the latter with encode, decode and counts of pixels.
    policy_seconds: float
    segmenter_seconds: float

    @classmethod
    def of(
        cls,
        sample: Sample,
        predictions: Sequence[Prediction],
        policy_seconds: float,
        segmenter_seconds: float,
    ) -> Ballot:
        """From a judged sample and the segmenter's results for its objects."""
        return cls(
            **dict(sample),
            objects=tuple(VotedObject(mask=encode_rle(seen.mask), score=seen.score) for seen in predictions),
            policy_seconds=policy_seconds,
            segmenter_seconds=segmenter_seconds,
        )

    def vote(self) -> list[tuple[str, float]] | None:
        """The answer as `votes.elect` takes it."""
        if answered(self) == "unusable":
            return None
        return [(seen.mask, seen.score) for seen in self.objects]


def elected(ballots: Sequence[Ballot]) -> Sample:
    """The judged sample of a row: the winning masks' union, with the response and shapes of the first winner's answer.

    Where the answers agree that there is no object, it is the first that says so; where none is usable, the first. It
    has no turns, since its mask may come from several dialogues.

    Args:
        ballots: at least one answer to the row.
    """
    winners = elect([ballot.vote() for ballot in ballots], ballots[0].size)
    if winners:
        speaker = ballots[winners[0].answer]
        mask = encode_rle(union_rle([winner.mask for winner in winners], speaker.size))
    else:
        silent = (ballot for ballot in ballots if ballot.vote() == [])
        speaker = ballots[0] if winners is None else next(silent)
        mask = speaker.mask
    fields = {name: getattr(speaker, name) for name in Sample.model_fields}
    return judged(Sample(**{**fields, "mask": mask, "turns": (), "tokens": None}))
