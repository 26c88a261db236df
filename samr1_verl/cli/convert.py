"""`samr1 data convert`: published data sets become parquet files of rows."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from samr1_verl import Samr1Error
from samr1_verl.rows.convert.options import BoxFormat, Exif, RunOptions, Watcher

if TYPE_CHECKING:
    from samr1_verl.rows.convert.pipeline import Outcome

FAILED, SOME_LEFT_OUT, INTERRUPTED = 1, 3, 130  # exit statuses; 0: every row was written
SHOWN = 5  # problems printed; the report lists all
PACKAGES = ("cv2", "ijson")  # import names of the packages in the extra `data`
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    no_args_is_help=True,
    help="Convert a published data set to parquet files of rows.\n\n"
    "Files are read as their publishers ship them; only hub downloads. A record with a problem is left out, and "
    "NAME.problems.jsonl lists it. An interrupted command resumes when it is typed again.\n\n"
    "Exit status 0: every sentence became a row. 3: there is a list of problems. 1: nothing was written.",
)

ReferFolder = Annotated[
    Path, typer.Option(help="folder with refs(SPLIT_BY).p and instances.json; its name becomes the rows' data_source")
]
GrefFolder = Annotated[Path, typer.Option(help="folder with grefs(unc).json and instances.json")]
Train2014 = Annotated[Path, typer.Option(help="folder of COCO's train2014 images")]
OutFolder = Annotated[Path, typer.Option(help="folder for the parquet files, one per split")]
OutFile = Annotated[Path, typer.Option(help="parquet file to write")]
SplitBy = Annotated[str, typer.Option(help="authors of the splits: unc (RefCOCO, RefCOCO+), umd or google (RefCOCOg)")]
Splits = Annotated[list[str] | None, typer.Option(help="split to convert; repeatable; default: every split")]
SampleSize = Annotated[int | None, typer.Option(min=1, help="number of sentences to draw from train; default: all")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the sample")]
ExifChoice = Annotated[
    Exif,
    typer.Option(
        help="image that annotations were drawn on, where it has an EXIF orientation: applied, as viewers show it; "
        "stored, as the file holds it; auto: the annotation's size tells"
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="stop at the first problem and write nothing")]
Workers = Annotated[int, typer.Option(min=0, help="number of processes; 0: one per core")]
DataSource = Annotated[str, typer.Option(help="data_source of the rows: the name of the data set in metrics")]


@app.command(
    "refcoco+",
    help="Convert RefCOCO+ from the REFER toolkit: a row per sentence, about one object, without words of place.\n\n"
    "Example: samr1 data convert refcoco+ --annotations refer/refcoco+ --images coco/train2014 --out data/refcoco+",
)
@app.command()
def refcoco(
    annotations: ReferFolder,
    images: Train2014,
    out: OutFolder,
    split_by: SplitBy = "unc",
    split: Splits = None,
    sample: SampleSize = None,
    seed: Seed = 42,
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert RefCOCO from the REFER toolkit: a row per sentence, about one object.

    Example: samr1 data convert refcoco --annotations refer/refcoco --images coco/train2014 --out data/refcoco
    """
    from samr1_verl.rows.convert.refcoco import convert_refcoco
    from samr1_verl.rows.convert.referring import Sample

    drawn = None if sample is None else Sample(sample, seed)
    options = _options(strict, workers)
    report_and_exit(lambda: convert_refcoco(annotations, images, out, split_by, split or [], drawn, exif, options))


@app.command()
def refcocog(
    annotations: ReferFolder,
    images: Train2014,
    out: OutFolder,
    split_by: SplitBy = "umd",
    split: Splits = None,
    sample: SampleSize = None,
    seed: Seed = 42,
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert RefCOCOg from the REFER toolkit: a row per sentence, about one object. The paper trains on 3,000 of them.

    Example: samr1 data convert refcocog --annotations refer/refcocog --images coco/train2014 --out data/refcocog
    """
    refcoco(annotations, images, out, split_by, split, sample, seed, exif, strict, workers)


@app.command()
def grefcoco(
    annotations: GrefFolder,
    images: Train2014,
    out: OutFolder,
    split: Splits = None,
    sample: SampleSize = None,
    seed: Seed = 42,
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert gRefCOCO: a row per sentence, about one object, several objects or none.

    Example: samr1 data convert grefcoco --annotations grefcoco --images coco/train2014 --out data/grefcoco
    """
    from samr1_verl.rows.convert.grefcoco import convert_grefcoco
    from samr1_verl.rows.convert.referring import Sample

    drawn = None if sample is None else Sample(sample, seed)
    options = _options(strict, workers)
    report_and_exit(lambda: convert_grefcoco(annotations, images, out, split or [], drawn, exif, options))


@app.command()
def reasonseg(
    folder: Annotated[Path, typer.Option(help="folder with train, val and test, each with NAME.jpg and NAME.json")],
    out: OutFolder,
    split: Splits = None,
    first_sentence: Annotated[
        bool,
        typer.Option(
            "--first-sentence", help="one row per image, with its first sentence, as papers evaluate val and test"
        ),
    ] = False,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert ReasonSeg: a row per sentence. Pixels that do not count become the ignore mask.

    Example: samr1 data convert reasonseg --folder ReasonSeg --out data/reasonseg
    """
    from samr1_verl.rows.convert.reasonseg import convert_reasonseg

    options = _options(strict, workers)
    report_and_exit(lambda: convert_reasonseg(folder, out, split or [], first_sentence, options))


@app.command()
def coco(
    annotations: Annotated[Path, typer.Option(help="instances file of COCO or LVIS, or of your own in their format")],
    images: Annotated[Path, typer.Option(help="folder of the images that the instances file names")],
    out: OutFile,
    sentence: Annotated[str, typer.Option(help="sentence of a row, where {category} stands for the category")] = (
        "the {category}"
    ),
    column: Annotated[
        str | None,
        typer.Option(help="field of an annotation with its sentence, or a list of them; default: a row per category"),
    ] = None,
    name: DataSource = "coco",
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert a COCO or LVIS instances file: a row per category of an image, or per described annotation.

    Example: samr1 data convert coco --annotations instances_val2017.json --images val2017 --out data/coco/val.parquet
    """
    from samr1_verl.rows.convert.coco import CocoConvert, convert_coco

    to = CocoConvert(annotations, images, out.parent, name, sentence, column, exif)
    options = _options(strict, workers)
    report_and_exit(lambda: convert_coco(to, out, options))


@app.command()
def hub(
    dataset: Annotated[str, typer.Option(help="id on the hub, folder, or parquet, json, jsonl, csv or arrow file")],
    image: Annotated[str, typer.Option(help="column of the image, or of its path")],
    sentence: Annotated[str, typer.Option(help="column of the sentence, or of a list of sentences")],
    out: OutFile,
    mask: Annotated[str | None, typer.Option(help="column of the mask: an image, or rows of pixels")] = None,
    segmentation: Annotated[
        str | None, typer.Option(help="column of the COCO polygons or RLE, or of a list per object")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="column of the box, or of a list of boxes; the rows then have no mask")
    ] = None,
    box_format: Annotated[BoxFormat, typer.Option(help="x1 y1 x2 y2, or x y width height")] = BoxFormat.xyxy,
    ignore_value: Annotated[
        int | None, typer.Option(help="value of mask pixels that do not count; default: every pixel counts")
    ] = None,
    category: Annotated[str | None, typer.Option(help="column of the category")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="column of the example's own id")] = None,
    images: Annotated[
        Path | None, typer.Option(help="folder that image paths may not leave; default: the data set's own folder")
    ] = None,
    config: Annotated[str | None, typer.Option(help="configuration of the data set")] = None,
    split: Annotated[str, typer.Option(help="split of the data set")] = "train",
    name: DataSource = "hub",
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert a Hugging Face data set, from the hub or from disk: a row per sentence. Options name its columns.

    Give exactly one of --mask, --segmentation and --box.

    Example: samr1 data convert hub --dataset ORG/NAME --image image --sentence text --mask mask --out rows.parquet
    """
    from samr1_verl.rows.convert.hub import Columns, HubConvert, convert_hub

    columns = Columns(image, sentence, mask, segmentation, box, category, id_column)
    to = HubConvert(dataset, images, columns, box_format, ignore_value, out.parent, name, exif)
    options = _options(strict, workers)
    report_and_exit(lambda: convert_hub(to, config, split, out, options))


class Terminal(Watcher):
    """Progress on standard error: a bar per file, and a line where an interrupted run is resumed."""

    def resumed(self, folder: Path) -> None:
        typer.echo(f"{folder}: going on with an interrupted run", err=True)

    @contextmanager
    def file(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # The speed that rich computes is of the last moments, and results come in bursts.
        return Text(f"{task.completed / task.elapsed:,.1f} images/s" if task.elapsed else "")


def _options(strict: bool, workers: int) -> RunOptions:
    return RunOptions(strict, workers, Terminal())


def report_and_exit(run: Callable[[], Sequence[Outcome]]) -> None:
    """Run a converter, print the result of each file, and end with the exit status that fits it."""
    try:
        outcomes = run()
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except (Samr1Error, OSError, sqlite3.OperationalError, BrokenProcessPool, ModuleNotFoundError) as error:
        message = _message(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(FAILED) from error
    for outcome in outcomes:
        typer.echo(f"{outcome.path}: {outcome.rows} rows")
        if outcome.problems:
            _show_problems(outcome)
    if any(outcome.problems for outcome in outcomes):
        raise typer.Exit(SOME_LEFT_OUT)


def _message(error: Exception) -> str | None:
    """The message for errors that a user can repair; None: the error is a fault of the program."""
    if isinstance(error, Samr1Error):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return (
            "a worker process was killed, as happens when memory runs out. Type the same command with fewer "
            "--workers; it goes on where this one stopped"
        )
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{error.name} is not installed. Type: pip install 'samr1-verl[data]'" if error.name in PACKAGES else None
        )
    if getattr(error, "errno", None) in _FULL or "disk is full" in str(error):
        return f"the disk is full ({error}). Make room; the same command then goes on where this one stopped"
    if isinstance(error, OSError) and error.filename is not None:  # as for an --out that may not be written
        return f"{error.filename}: {error.strerror}. Correct the option that names it, or the file's permissions"
    return None


def _show_problems(outcome: Outcome) -> None:
    from samr1_verl.rows.convert.pipeline import Problem

    counts = f"problems: {outcome.problems}, rows left out: {outcome.left_out}"
    typer.echo(f"  {counts}; all in {outcome.report}, the first:")
    with open(outcome.report, encoding="utf-8") as file:
        for _, line in zip(range(SHOWN), file, strict=False):
            typer.echo(f"  {Problem(**json.loads(line))}")
