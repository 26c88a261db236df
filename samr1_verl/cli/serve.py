"""`samr1 serve`: a segmenter for other machines and other frameworks."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

GB = 1_000_000_000


def serve(
    backend: Annotated[str, typer.Option(help="onnx, segment_anything or transformers")],
    path: Annotated[str, typer.Option(help="weights: a folder, a file or a hub id, as the backend takes them")],
    root: Annotated[list[Path] | None, typer.Option(help="folder whose images may be named by path; repeat it")] = None,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8765,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    multimask: Annotated[bool, typer.Option(help="best of three masks; else the single mask")] = True,
    cache_gb: Annotated[float, typer.Option(help="bound of the embeddings in memory")] = 4.0,
    cache_dir: Annotated[str | None, typer.Option(help="folder that keeps embeddings for later runs")] = None,
    cache_dtype: Annotated[str, typer.Option(help="float32 or float16, of float32 embeddings when kept")] = "float32",
    max_body_mb: Annotated[float, typer.Option(help="bound of a request's body, uploads included")] = 64.0,
    max_megapixels: Annotated[float, typer.Option(help="bound of an image")] = 50.0,
    max_queue: Annotated[int, typer.Option(help="requests at once; more are asked to come again")] = 512,
    upload_gb: Annotated[float, typer.Option(help="bound of the uploads that are kept")] = 2.0,
) -> None:
    """Serve a segmenter over HTTP. A bearer token is taken from the environment variable SAMR1_TOKEN.

    Stops at SIGTERM or SIGINT after it has answered what it has accepted.
    """
    import uvicorn

    from samr1_verl.config import ConfigError, segmenter_config
    from samr1_verl.service.engine import engine_of
    from samr1_verl.service.http_server import Limits, create_app
    from samr1_verl.service.wire import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not _is_loopback(host):
        raise typer.BadParameter(f"{host} is reachable from elsewhere: set {TOKEN_VARIABLE} first", param_hint="--host")
    limits = Limits(int(max_body_mb * 1e6), int(max_megapixels * 1e6), max_queue, int(upload_gb * GB))
    try:
        config = segmenter_config(
            {
                "backend": backend,
                "path": path,
                "device": device,
                "dtype": dtype,
                "multimask": multimask,
                "service": {
                    "mode": "embedded",
                    "cache_gb": cache_gb,
                    "cache_dir": cache_dir,
                    "cache_dtype": cache_dtype,
                },
            }
        )
        engine = engine_of(config, limits.max_pixels)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        uvicorn.run(create_app(engine, root or [], token, limits), host=host, port=port, log_level="info")
    finally:
        engine.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
