"""The demo's pictures: reward curves, and a sheet of test scenes with the masks before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from omegaconf import DictConfig

from benchmarks.demo_scores import predicted_mask
from samr1_verl.geometry.giou import PROTOCOLS, PixelCounts
from samr1_verl.geometry.images import open_image
from samr1_verl.report.run import read_curves
from samr1_verl.rows.ground_truth import GroundTruth
from samr1_verl.training.dataset import SegmentationDataset

BLUE, GREY, GREEN, ORANGE = "#2563eb", "#6b7280", "#16a34a", "#ea580c"
SMOOTH = 9  # steps of the running mean
VALIDATION_IOU = "val-core/shapes/acc/mean@1"


def reward_curves(run: Path, control: Path | None, out: Path) -> None:
    """Reward of the rollouts per step, and gIoU on the validation scenes; the control's beside them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for name, folder, colour in (("mask reward", run, BLUE), ("control: shuffled", control, GREY)):
        if folder is None:
            continue
        curves = read_curves(folder)
        rewards = curves.get("reward/score", {})
        steps, values = np.array(list(rewards)), np.array(list(rewards.values()))
        left.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        width = min(SMOOTH, len(values))
        left.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color=colour, label=name)
        validation = curves.get(VALIDATION_IOU, {})
        right.plot(list(validation), list(validation.values()), "o-", color=colour, markersize=4, label=name)
    left.set(xlabel="step", ylabel="mean reward (0 to 6)", title="Reward of the rollouts")
    right.set(xlabel="step", ylabel="gIoU", title="Validation scenes, greedy")
    for axes in (left, right):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(out, dpi=140)
    plt.close(figure)


def contact_sheet(
    rows: SegmentationDataset,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    recipe: DictConfig,
    out: Path,
) -> None:
    """Twelve test scenes: the image with its sentence, then cut out by three masks: before, after, truth."""
    count, across = 12, 2
    figure, grid = plt.subplots(count // across, 4 * across, figsize=(4 * across * 1.7, count // across * 2.05))
    for panel, row in enumerate(np.linspace(0, len(rows) - 1, count).astype(int)):
        cells = grid[panel // across, 4 * (panel % across) : 4 * (panel % across) + 4]
        item = rows[row]
        image = np.asarray(open_image(item["extra_info"]["image"]))
        truth, _ = GroundTruth.model_validate_json(item["reward_model"]["ground_truth"]).union_and_ignore()
        responses = [results[row]["response"] for results in (before, after)]
        masks = [predicted_mask(item, response, recipe) for response in responses]
        cells[0].imshow(image)
        cells[0].set_title(item["raw_prompt"][0]["content"][1]["text"], fontsize=9, loc="left")
        ious = [PROTOCOLS["segzero"].iou(PixelCounts.of(mask, truth, None)) for mask in masks]
        names = [f"{when} {iou:.2f}" for when, iou in zip(("before", "after"), ious, strict=True)]
        for cell, mask, name, colour in zip(
            cells[1:], [*masks, truth], [*names, "truth"], (ORANGE, BLUE, GREEN), strict=True
        ):
            cell.imshow(np.where(mask[..., None], image, image // 4))
            if mask.any():
                cell.contour(mask, levels=[0.5], colors=[colour], linewidths=1.5)
            cell.set_xlabel(name, fontsize=8, labelpad=2)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=100)
    plt.close(figure)
