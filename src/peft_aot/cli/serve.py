"""`peft-aot serve`: a folder of trained adapters on one backbone, behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from peft_aot.cli.quiet import quiet_libraries
from peft_aot.serving.limits import Limits

WATCH_SECONDS = 1.0
DEFAULTS = Limits()


def serve(
    model: Annotated[str, typer.Option(help="Backbone: hub id or path of a folder.")],
    tasks: Annotated[
        Path | None, typer.Option(help="Folder whose subfolders are trained adapters: each is a task.")
    ] = None,
    host: Annotated[str, typer.Option(help="Name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the folder: tasks come, change and go.")] = False,
    loading: Annotated[bool, typer.Option(help="Let calls load and unload tasks.")] = True,
    adapters: Annotated[
        list[Path] | None, typer.Option(help="Another folder that calls may load from; may be given several times.")
    ] = None,
    allow_hub: Annotated[
        list[str] | None, typer.Option(help="Hub id, org/name or org/*, that calls may load; several times.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the key; else PEFT_AOT_API_KEY.")] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help="File with the key for loading and unloading; else PEFT_AOT_ADMIN_KEY.")
    ] = None,
    placement: Annotated[
        str, typer.Option(help="Where rows are kept: auto, device, staged, ram, mmap or factors.")
    ] = "auto",
    memory_budget: Annotated[int | None, typer.Option(help="Bytes for the rows of all tasks together.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Of the backbone's weights; auto is bf16 where the hardware multiplies it."),
    ] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch at most.")] = DEFAULTS.batch_tokens,
    batch_examples: Annotated[int, typer.Option(help="Texts of a batch at most.")] = DEFAULTS.batch_examples,
    queue: Annotated[int, typer.Option(help="Texts that may wait at most.")] = DEFAULTS.queue,
    timeout: Annotated[float, typer.Option(help="Seconds that a call may take if it does not say.")] = 30.0,
    max_body: Annotated[int, typer.Option(help="Bytes of a call's body at most.")] = 1 << 20,
    drain_delay: Annotated[
        float, typer.Option(help="Seconds between SIGTERM and the end of listening, for balancers to notice.")
    ] = 0.0,
) -> None:
    """Serve a folder of trained adapters over HTTP, all on one backbone."""
    try:
        from peft_aot.serving.http.auth import check_exposure, read_keys
        from peft_aot.serving.http.running import serve as run
        from peft_aot.serving.http.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(
            f'expected {error.name} to be installed, got none; install it with `pip install "peft_aot[serve]"`'
        ) from error
    folders = tuple(adapters or ()) + (() if tasks is None else (tasks,))
    limits = Limits(batch_tokens=batch_tokens, batch_examples=batch_examples, queue=queue)
    settings = Settings(
        keys=read_keys(api_key_file, admin_key_file),
        loading=loading,
        adapters=folders,
        hub=tuple(allow_hub or ()),
        tasks=tasks,
        watch=WATCH_SECONDS if watch else None,
        max_body=max_body,
        max_texts=min(Settings.max_texts, limits.of_one_task),
        timeout=timeout,
        drain_delay=drain_delay,
    )
    check_exposure(host, settings.keys, settings.loading)  # before the backbone is loaded, which takes a while
    quiet_libraries()
    from peft_aot.serving.engine import Engine

    engine = Engine(
        model, limits=limits, placement=placement, memory_budget=memory_budget or "auto", precision=precision
    )
    try:
        run(engine, settings, host, port, lambda address: typer.echo(f"page, endpoints and /docs: {address}"))
    finally:
        engine.close(drain=False)
