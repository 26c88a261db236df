"""`samr1 serve`: a segmenter and its rewards for other machines and other frameworks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

GB = 1_000_000_000


def serve(
    backend: Annotated[str, typer.Option(help="onnx, segment_anything or transformers")],
    path: Annotated[str, typer.Option(help="weights: a folder, file or hub id, depending on the backend")],
    root: Annotated[
        list[Path] | None, typer.Option(help="folder whose images requests may name by path; may be repeated")
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="data file whose rows /v1/score may name by id, such as train:17; may be repeated"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; an address other than loopback requires a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8765,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    encoder_precision: Annotated[
        str, typer.Option(help="precision of the encoder alone: float32, tf32 (GPUs only) or bfloat16")
    ] = "float32",
    multimask: Annotated[
        bool, typer.Option(help="best of three masks by predicted IoU; --no-multimask: the single mask")
    ] = True,
    cache_gb: Annotated[float, typer.Option(help="maximum size of the embeddings in memory, in GB")] = 4.0,
    cache_dir: Annotated[
        str | None, typer.Option(help="folder that keeps embeddings for later runs; default: memory only")
    ] = None,
    cache_dtype: Annotated[str, typer.Option(help="dtype of cached embeddings: float32 or float16")] = "float32",
    max_body_mb: Annotated[float, typer.Option(help="maximum size of a request or an upload, in MB")] = 64.0,
    max_megapixels: Annotated[float, typer.Option(help="maximum number of megapixels per image")] = 50.0,
    max_queue: Annotated[int, typer.Option(help="maximum number of concurrent requests; more get status 503")] = 512,
    upload_gb: Annotated[
        float, typer.Option(help="maximum size of all kept uploads, in GB; the oldest go first")
    ] = 2.0,
    ssl_certfile: Annotated[Path | None, typer.Option(help="certificate; the server then speaks HTTPS only")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="the certificate's private key")] = None,
) -> None:
    """Serve a segmenter, and rewards that use it, over HTTP.

    The environment variable SAMR1_TOKEN sets the bearer token.

    SIGTERM or SIGINT stops the server after it has answered all accepted requests; a second one stops it at once.
    """
    from samr1_verl.config import ConfigError, segmenter_config
    from samr1_verl.rows.record import DataError
    from samr1_verl.scoring.route import RowFiles, score_route
    from samr1_verl.service.connections import run
    from samr1_verl.service.engine import engine_of
    from samr1_verl.service.guard import is_loopback
    from samr1_verl.service.http_server import Limits, create_app
    from samr1_verl.service.wire import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_loopback(host):
        message = f"{host} is reachable from other machines. Set {TOKEN_VARIABLE} to a token first"
        raise typer.BadParameter(message, param_hint="--host")
    for option, file in (("--ssl-certfile", ssl_certfile), ("--ssl-keyfile", ssl_keyfile)):
        if (ssl_certfile is None) != (ssl_keyfile is None):
            raise typer.BadParameter("HTTPS needs both --ssl-certfile and --ssl-keyfile", param_hint=option)
        if file is not None and not file.is_file():
            raise typer.BadParameter(f"{file} is no file", param_hint=option)
    limits = Limits(int(max_body_mb * 1e6), int(max_megapixels * 1e6), max_queue, int(upload_gb * GB))
    try:
        config = segmenter_config(
            {
                "backend": backend,
                "path": path,
                "device": device,
                "dtype": dtype,
                "encoder_precision": encoder_precision,
                "multimask": multimask,
                "service": {
                    "mode": "embedded",
                    "cache_gb": cache_gb,
                    "cache_dir": cache_dir,
                    "cache_dtype": cache_dtype,
                },
            }
        )
        files = RowFiles(rows or [])
        engine = engine_of(config, limits.max_pixels)
    except (ConfigError, DataError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        app = create_app(engine, root or [], token, limits, [score_route(files)])
        run(app, host=host, port=port, ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile)
    finally:
        engine.close()
