"""RefCOCO, RefCOCO+ or RefCOCOg to rows: the command `samr1 data convert refcoco` as a script.

    python data/refcoco.py --annotations refer/refcocog --split-by umd --images coco/train2014 \\
        --out data/refcocog --sample 3000 --seed 42

The option --help lists the other options.
"""

import typer

from samr1_verl.cli.convert import refcoco

if __name__ == "__main__":
    typer.run(refcoco)
