"""gRefCOCO to rows: the command `samr1 data convert grefcoco` as a script.

    python data/grefcoco.py --annotations grefcoco --images coco/train2014 --out data/grefcoco

The option --help lists the other options.
"""

import typer

from samr1_verl.cli.convert import grefcoco

if __name__ == "__main__":
    typer.run(grefcoco)
