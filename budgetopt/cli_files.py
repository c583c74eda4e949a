"""`budgetopt eval`, `inspect`, `export`, `compress`, `merge`: what is done with packed files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from budgetopt import option_text, terminal
from budgetopt.cli_options import (
    AllClasses,
    CompressSpace,
    DataRoot,
    FileBudget,
    Label,
    PackedFile,
    Protocol,
    RealData,
    Resize,
    Seed,
    Spectrogram,
    TimeLimit,
    TrainedFiles,
)
from budgetopt.errors import InputError

app = typer.Typer()


@app.command("eval")
def evaluate(
    file: PackedFile,
    dataset: Annotated[str | None, typer.Option(help="Whose test split (may be left out inside a run folder).")] = None,
    network: Annotated[str | None, typer.Option(help="Override the protocol's network; several with commas.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Another recipe than the file's: a preset, or a path that ends in .toml.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings, 1 to 1000 (default: the protocol's, at least 5).")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="The recall of every class too.")] = False,
    data_root: DataRoot = None,
    label: Label = None,
) -> None:
    """Train on the packed file alone and report test accuracy."""
    from budgetopt import api, networks

    names = networks.names_in(network) if network else [None]
    settings: dict[str, Any] = {"seeds": seeds, "data_root": data_root, "label": label, "protocol": protocol}
    if len(names) == 1:
        found = api.evaluate(file, dataset, network=names[0], **settings)
        return terminal.print_evaluation(terminal.console(), network, found, file.stat().st_size, per_class)
    rows = api.compare(file, dataset, networks=names, **settings)
    return terminal.print_compared(terminal.console(), rows, file.stat().st_size, per_class)


@app.command()
def inspect(
    file: PackedFile,
    fisher: Annotated[
        bool, typer.Option("--fisher", help="Fisher information of every class, beside that of the training data.")
    ] = False,
    dataset: Annotated[str | None, typer.Option(help="With --fisher (default: that of the run folder).")] = None,
    data_root: DataRoot = None,
    label: Label = None,
) -> None:
    """Show header, allocation, protocol, and where every byte goes."""
    from budgetopt import inspection
    from budgetopt.packing import unpack_file

    data, _ = unpack_file(file)
    facts, parts = inspection.describe(data)
    allocation = inspection.allocation_of(file, data)
    if allocation is not None:
        facts.append(("allocation", str(allocation)))
    for what, value in facts:
        print(f"{what:<18}{value}")
    print("\nbytes")
    for name, size in parts:
        print(f"  {size:>9,}  {name}")
    print(f"  {sum(size for _, size in parts):>9,}  in all")
    if fisher:
        from budgetopt import api

        terminal.print_fisher(terminal.console(), api.fisher(file, dataset, data_root=data_root, label=label))


@app.command()
def export(
    file: PackedFile,
    to: Annotated[
        str,
        typer.Option(help="npz, safetensors, torch (.pt), parquet, webdataset (.tar), or png (a sheet to look at)."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Target file (default: the file's name in the current folder).")
    ] = None,
) -> None:
    """Write the decoded samples for other programs. In Python `budgetopt.load(file).to_torch()` needs no export.

    npz, safetensors, torch: x in raw units, y, mean, std, and targets where labels are soft.

    parquet: the Hugging Face image layout, or one column a feature. Values other than 0…255 are rounded for its PNGs, which is said, and refused where that would change the pictures.

    webdataset: such values are kept as .npy.
    """  # noqa: E501 - a line of the help is a paragraph
    from budgetopt.exporting import export
    from budgetopt.packing import unpack_file

    exported = export(unpack_file(file)[1], to)
    target = out or Path(f"{file.stem}{exported.suffix}")
    if target.exists():
        raise InputError(f"{str(target)!r} exists already: name another file with --out")
    terminal.write(target, exported.content)
    for note in exported.notes:
        print(f"note: {note}")
    print(f"{target}: {len(exported.content):,} bytes")


@app.command()
def compress(
    source: Annotated[
        Path, typer.Argument(help="The set: .npz, .pt, .pth, .bopt, or a folder of images, a subfolder for each class.")
    ],
    budget: FileBudget,
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: NAME-BYTESB.bopt in the current folder).")
    ] = None,
    dataset: RealData = None,
    space: CompressSpace = "compress",
    levels: Annotated[str | None, typer.Option(help="Only these, with commas: 2,4,16.")] = None,
    refine: Annotated[
        str,
        typer.Option(help="Match features through the quantizer: none, before or after it groups patches, both."),
    ] = "none",
    refine_steps: Annotated[int, typer.Option(help="Steps of each refinement.")] = 100,
    network: Annotated[
        Path | None, typer.Option(help="Weights of the protocol's network whose features --refine matches.")
    ] = None,
    finetune: Annotated[
        str | None, typer.Option(help="Go on with this objective, the quantizer in its loop; needs --dataset.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of --finetune (default: the objective's own).")] = None,
    mean: Annotated[
        str | None, typer.Option(help="The set was standardised by this mean: a number per channel.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="The standard deviation that belongs to it.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The values are in raw units: undo nothing.")] = False,
    classes: AllClasses = None,
    protocol: Protocol = None,
    trials: TrainedFiles = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    label: Label = None,
    resize: Resize = None,
    spectrogram: Spectrogram = None,
) -> None:
    """Pack a set that exists already, distilled or real, within a budget."""
    from budgetopt import api
    from budgetopt.budget import Budget

    limit, console = Budget.parse(budget), terminal.console()
    target = out or Path(f"{source.resolve().stem}-{limit.bytes}B.bopt")
    print(f"budget {limit}", flush=True)
    found = api.compress(
        source,
        limit,
        out=target,
        dataset=dataset,
        space=space,
        levels=[int(n) for n in option_text.numbers(levels, "--levels") or ()],
        refine=refine,
        refine_steps=refine_steps,
        network=network,
        finetune=finetune,
        steps=steps,
        mean=option_text.numbers(mean, "--mean"),
        std=option_text.numbers(std, "--std"),
        raw=raw,
        classes=classes,
        protocol=protocol,
        trials=trials,
        time_limit=option_text.seconds(time_limit),
        seed=seed,
        data_root=data_root,
        label=label,
        resize=resize,
        spectrogram=spectrogram,
        say=terminal.say,
    )
    terminal.print_compressed(console, found)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Two .bopt files or more, of samples of one shape.")],
    budget: FileBudget,
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: merged-BYTESB.bopt in the current folder).")
    ] = None,
    dataset: RealData = None,
    space: CompressSpace = "compress",
    classes: AllClasses = None,
    protocol: Protocol = None,
    trials: TrainedFiles = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    label: Label = None,
    resize: Resize = None,
    spectrogram: Spectrogram = None,
) -> None:
    """Join the packed files of several nodes into one within a budget."""
    from budgetopt import api
    from budgetopt.budget import Budget

    limit, console = Budget.parse(budget), terminal.console()
    print(f"budget {limit}", flush=True)
    found = api.merge(
        files,
        limit,
        out=out or Path(f"merged-{limit.bytes}B.bopt"),
        dataset=dataset,
        space=space,
        classes=classes,
        protocol=protocol,
        trials=trials,
        time_limit=option_text.seconds(time_limit),
        seed=seed,
        data_root=data_root,
        label=label,
        resize=resize,
        spectrogram=spectrogram,
        say=terminal.say,
    )
    terminal.print_compressed(console, found)
