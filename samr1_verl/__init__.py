"""SAM-R1 as a plug-in of verl. Importing verl here would be circular: verl imports this package while it loads."""

__version__ = "0.1.0"
