"""SAM-R1 as a plug-in of verl. Importing verl here would be circular: verl imports this package while it loads."""

__version__ = "0.2.0"


class Samr1Error(Exception):
    """Base class of this package's errors: the message says what was found, what was expected and what to do next."""
