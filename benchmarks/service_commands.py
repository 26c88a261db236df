"""The command line of the service's benchmarks: several commands in a file, each with one JSON object as its result."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Command = Callable[[argparse.Namespace, Path], dict[str, Any]]  # options and a folder to work in → result


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the description as it is written."""


def parser_of(description: str | None, commands: Mapping[str, Command], backend_of: str) -> argparse.ArgumentParser:
    """A parser with the options that these benchmarks share; `backend_of` is the command that reads `--backend`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Formatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "--backend", choices=("onnx", "segment_anything"), default="onnx", help=f"{backend_of}: the segmenter"
    )
    parser.add_argument("--images", type=int, default=16, help=f"{backend_of}: number of images")
    return parser


def run(benchmark: str, parser: argparse.ArgumentParser, commands: Mapping[str, Command]) -> None:
    """Run the command that the arguments name, with OMP_NUM_THREADS threads (default: 2), and print its result."""
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as temporary:
        result = commands[arguments.command](arguments, Path(temporary))
    print(json.dumps({"benchmark": f"{benchmark} {arguments.command}", **result}))
