"""SAM-R1's reward in verifiers 0.4: a module that `vf-eval` loads by its name.

From the root of a checkout, after `make weights data`, with the policy behind any OpenAI-compatible server:

    samr1 data export data/shapes/val.parquet --for verifiers --recipe samr1_tiny --out runs/rows
    PYTHONPATH=examples vf-eval samr1_verifiers --env.taskset.path runs/rows/rows.jsonl --num-rollouts 8 \
        --model tiny_policy --client.base-url http://localhost:8000/v1 --client.api-key-var NONE --no-push
"""

from reward_fns.samr1 import compute_score
from reward_fns.verifiers import environment

SEGMENTER = {
    "backend": "onnx",
    "path": "data/weights/small_sam",
    "device": "cpu",
    "dtype": "float32",
    "service": {"mode": "embedded", "cache_gb": 1.0, "cache_dir": None},
}
REWARD = {"terms": {"s_measure": 0.0}}

Rows, OneRequest, InProcess = environment(compute_score, segmenter=SEGMENTER, reward=REWARD)

__all__ = ["InProcess", "OneRequest", "Rows"]
