"""A COCO instances file, LVIS included, to rows: the command `samr1 data convert coco` as a script.

    python data/coco.py --annotations instances_val2017.json --images val2017 --out data/coco/val.parquet
    python data/coco.py --annotations lvis_v1_val.json --images coco --out data/lvis/val.parquet --name lvis
    python data/coco.py --annotations mine.json --images images --out data/mine/train.parquet --column caption

The option --help lists the other options.
"""

import typer

from samr1_verl.cli.convert import coco

if __name__ == "__main__":
    typer.run(coco)
