"""A client of /v1/score that needs nothing but Python: copy it into a trainer of your own.

    samr1 serve --backend transformers --path facebook/sam2-hiera-large --root /data --rows data/refcocog/train.parquet

`score` raises where the server refuses the request or its segmenter fails, so a fault never becomes a reward.
"""

import json
import os
import urllib.request


def score(address: str, reward: str, rows: list[dict], answers: list[dict], config: dict | None = None) -> list[dict]:
    """Per answer `score` and the reward's other keys. `answers`: {"row": index in `rows`, "response": text} each."""
    body = json.dumps({"reward": reward, "config": config, "rows": rows, "answers": answers}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('SAMR1_TOKEN', '')}"}
    request = urllib.request.Request(f"{address}/v1/score", body, headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)["scores"]
