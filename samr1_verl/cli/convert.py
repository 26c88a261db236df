"""`samr1 data convert`: published data sets become parquet files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samr1_verl.cli.conversion import report_and_exit, run_options
from samr1_verl.rows.convert.options import BoxFormat, Exif

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
QuestionFile = Annotated[Path, typer.Option(help="JSON file of one split: a list of images with questions and answers")]
CocoImages = Annotated[Path, typer.Option(help="folder of COCO's images, with train2014, train2017 and val2017")]
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
    options = run_options(strict, workers)
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
    options = run_options(strict, workers)
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

    options = run_options(strict, workers)
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
    options = run_options(strict, workers)
    report_and_exit(lambda: convert_coco(to, out, options))


@app.command()
def muse(
    annotations: QuestionFile,
    images: CocoImages,
    out: OutFile,
    name: DataSource = "muse",
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert MUSE as PixelLM reads it: a row per question, about one or several objects.

    Example: samr1 data convert muse --annotations muse_val.json --images coco --out data/muse/val.parquet
    """
    from samr1_verl.rows.convert.multi_target import MultiTargetConvert, convert_multi_target

    to = MultiTargetConvert(annotations, images, out.parent, name, exif)
    options = run_options(strict, workers)
    report_and_exit(lambda: convert_multi_target(to, out, options))


@app.command()
def mmr(
    annotations: QuestionFile,
    images: CocoImages,
    out: OutFile,
    name: DataSource = "mmr",
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert MMR as its authors read it: a row per question, about objects and parts of objects.

    Example: samr1 data convert mmr --annotations MMR_val.json --images coco --out data/mmr/val.parquet
    """
    muse(annotations, images, out, name, exif, strict, workers)


@app.command("refcoco-m")
def refcoco_m(
    out: OutFile,
    dataset: Annotated[str, typer.Option(help="id on the hub, folder or parquet file")] = "moondream/refcoco-m",
    split: Annotated[str, typer.Option(help="split of the data set")] = "validation",
    name: DataSource = "refcoco-m",
    exif: ExifChoice = Exif.auto,
    strict: Strict = False,
    workers: Workers = 0,
) -> None:
    """Convert RefCOCO-M, from the hub or from disk: a row per sentence, about one object.

    Example: samr1 data convert refcoco-m --out data/refcoco-m/val.parquet
    """
    from samr1_verl.rows.convert.refcoco_m import RefcocoMConvert, convert_refcoco_m

    to = RefcocoMConvert(dataset, out.parent, name, exif)
    options = run_options(strict, workers)
    report_and_exit(lambda: convert_refcoco_m(to, split, out, options))


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
    options = run_options(strict, workers)
    report_and_exit(lambda: convert_hub(to, config, split, out, options))
