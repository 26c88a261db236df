"""A Hugging Face data set, from the hub or from disk, to rows: the command `samr1 data convert hub` as a script.

    python data/hub.py --dataset Ricky06662/ReasonSeg_val --split test --image image --sentence text --mask mask \\
        --out data/reasonseg_hub/val.parquet
    python data/hub.py --dataset mine.parquet --image photo --sentence question --box bbox --out data/mine/train.parquet

The option --help lists the other options.
"""

import typer

from samr1_verl.cli.convert import hub

if __name__ == "__main__":
    typer.run(hub)
