"""The command line `samr1`: one module per command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import typer

from samr1_verl.cli.compare import compare
from samr1_verl.cli.data import app as data_app
from samr1_verl.cli.doctor import doctor
from samr1_verl.cli.evaluate import evaluate
from samr1_verl.cli.playground import playground
from samr1_verl.cli.predict import predict
from samr1_verl.cli.regress import app as regress_app
from samr1_verl.cli.rehearse import rehearse
from samr1_verl.cli.report import report
from samr1_verl.cli.rescore import rescore
from samr1_verl.cli.serve import serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # a message stays whole: in rich's box, words break where the box ends
    help="SAM-R1 for verl: checks, data sets, evaluation, reports and the segmenter's server.",
)
app.add_typer(data_app, name="data")
app.add_typer(regress_app, name="regress")
app.command()(compare)
app.command()(doctor)
app.command("eval")(evaluate)
app.command()(predict)
app.command()(rehearse)
app.command()(report)
app.command()(rescore)
app.command()(playground)
app.command()(serve)
