"""Inputs that escape in every way, for the test of the program that counts them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np


class Attempt:
    """The input of each number is the same for every seed."""

    def __call__(self, rng: np.random.Generator) -> str:
        number = rng.bit_generator.seed_seq.entropy[1]
        if number == 2:
            raise KeyError("second")
        if number == 4:
            os.abort()
        if number == 6:
            Path(os.environ["HANGS"]).touch()
            time.sleep(600)
        return "accepted" if number % 2 else "refused"
