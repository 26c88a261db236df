"""SAM-R1 as a plug-in of verl. This file must not import verl, because verl imports this package while it loads."""

from __future__ import annotations

from typing import TypeVar

__version__ = "0.2.0"

E = TypeVar("E", bound="Samr1Error")


class Samr1Error(Exception):
    """Base class of this package's errors.

    Args:
        code: name of the fault, for programs: `no_such_file`. It keeps its meaning when a sentence is reworded.
        where: file, row, key or option at fault, as a reader finds it: `train.parquet: row 3`.
        problem: the value found, the value expected, and the next step, in words.
    """

    def __init__(self, code: str, where: str, problem: str) -> None:
        super().__init__(code, where, problem)
        self.code, self.where, self.problem = code, where, problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"

    @classmethod
    def within(cls: type[E], place: str, error: Samr1Error) -> E:
        """Return the same fault as an error of this class, which names the place around it as well."""
        return cls(error.code, f"{place}: {error.where}", error.problem)
