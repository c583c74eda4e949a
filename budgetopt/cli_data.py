"""`budgetopt data …`: what a dataset is, before anything is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgetopt.cli_options import DataRoot, Label, Resize, Seed, Spectrogram

app = typer.Typer(help="What a dataset is, before anything is searched.", no_args_is_help=True)


@app.command("inspect")
def inspect_data(
    source: Annotated[str, typer.Argument(help="A dataset, as --dataset takes it.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
    data_root: DataRoot = None,
    label: Label = None,
    resize: Resize = None,
    spectrogram: Spectrogram = None,
) -> None:
    """Show what is understood of a dataset, what its samples cost, and what a search would take on this machine."""
    import json

    from budgetopt import data_inspection

    found = data_inspection.inspect(source, data_root, label, resize, spectrogram)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    for what, value in found.facts():
        print(f"{what:<18}{value}")


@app.command("beam")
def data_beam(
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and test.parquet.")],
    samples: Annotated[int, typer.Option(help="In all; every fifth of a class is for the test.")] = 30_000,
    seed: Seed = 0,
) -> None:
    """Simulate 3GPP beam management: which of 64 beams is best, of 32 measured ones (extra `wireless`)."""
    from budgetopt.data import beam

    beam.new_files(out)  # before the work
    x, y = beam.simulate(samples, seed, lambda done, total: print(f"{done:,} of {total:,} samples", flush=True))
    train, test = beam.write(out, x, y, seed)
    for line in beam.summary(train, test):
        print(line)
    print(f"{out}: label column 'beam'")


@app.command("cache")
def data_cache(
    clear: Annotated[
        list[str] | None, typer.Option(help="Remove this part, such as pictures; several allowed.")
    ] = None,
) -> None:
    """Show, or remove, what is kept between runs: targets, decoded pictures, downloads. It never decides a result."""
    from budgetopt import cache_folder

    if clear:
        print(f"{cache_folder.clear(clear):,} bytes freed")
    for name, what in cache_folder.PARTS.items():
        used = cache_folder.usage(name)
        if used.files:
            print(f"{name:<10}{used.bytes:>17,} bytes in {used.files:,} files in {cache_folder.part(name)}: {what}")
