"""SAM-R1's reward as a plug-in of ms-swift: examples/swift_grpo.sh names this file as `--external_plugins`.

It registers the reward functions `samr1` and `samr1_acc`. The second is a metric, with `--reward_weights 1 0`.
"""

import os

from swift.rewards import orms

from reward_fns.samr1 import compute_score
from reward_fns.swift import swift_rewards

SEGMENTER = {
    "backend": os.environ.get("SAM_BACKEND", "transformers"),
    "path": os.environ["SAM"],  # hub id or folder
    "device": "auto",
    "dtype": "float32",
    # Every training process has a segmenter of its own; mode http asks servers of `samr1 serve`.
    "service": {"mode": "embedded", "cache_gb": 8, "cache_dir": None},
}

orms.update(swift_rewards(compute_score, metrics=["acc"], segmenter=SEGMENTER))
