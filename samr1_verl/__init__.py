"""SAM-R1 as a plug-in of verl. This file must not import verl, because verl imports this package while it loads."""

__version__ = "0.2.0"


class Samr1Error(Exception):
    """Base class of this package's errors. The message has the faulty value, the expected value and the next step."""
