"""ReasonSeg to rows: the command `samr1 data convert reasonseg` as a script.

    python data/reasonseg.py --folder ReasonSeg --out data/reasonseg

The option --help lists the other options.
"""

import typer

from samr1_verl.cli.convert import reasonseg

if __name__ == "__main__":
    typer.run(reasonseg)
