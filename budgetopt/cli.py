"""The command line: parse, call the API, print. Heavy imports happen inside the commands: `--help` is instant."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from budgetopt import cli_data, option_text, process, terminal
from budgetopt.cli_options import (
    Address,
    AllClasses,
    CompressSpace,
    DataRoot,
    Dataset,
    FileBudget,
    Init,
    Label,
    PackedFile,
    Protocol,
    RealData,
    Resize,
    Run,
    Seed,
    Spectrogram,
    TimeLimit,
    TrainedFiles,
    Trials,
    Verbose,
    Workers,
)
from budgetopt.errors import BudgetoptError, InputError, Interrupted, PackedFileError

app = typer.Typer(
    name="budgetopt",
    help="Which dataset of at most N bytes trains the best model?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_data.app, name="data")


@app.command()
def search(
    budget: Annotated[str, typer.Option(help="Largest packed file: 30kb = 30,000 bytes, 30KiB, 240kbit, or bytes.")],
    dataset: Dataset = "digits",
    objective: Annotated[
        list[str] | None, typer.Option(help="Name in objectives/ or TOML file; several allowed (default: coreset, dm).")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Name in search_spaces/ or TOML file (default: by the kind of data).")
    ] = None,
    protocol: Protocol = None,
    time_limit: TimeLimit = None,
    trials: Trials = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(help="Run folder, or its URL: s3://BUCKET/RUN, … (default: a new one under runs/).")
    ] = None,
    init: Init = None,
    sampler: Annotated[
        str | None, typer.Option(help="What proposes allocations: rate-distortion or tpe (default: rate-distortion).")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="End after so many proposals in a row that promise under 0.1 points (rate-distortion)."),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(help="A run to learn from, of any budget or dataset; several allowed (rate-distortion)."),
    ] = None,
    parents: Annotated[
        bool,
        typer.Option("--parents", help="Optimised sets start from the nearest finished one, in a third of the steps."),
    ] = False,
    storage: Annotated[
        str | None, typer.Option(help="URL that keeps the study (default: study.db in the run folder).")
    ] = None,
    address: Address = None,
    data_root: DataRoot = None,
    label: Label = None,
    resize: Resize = None,
    spectrogram: Spectrogram = None,
    verbose: Verbose = False,
) -> None:
    """Search the best dataset within a byte budget."""
    from budgetopt import api

    console = terminal.console()
    result = api.search(
        budget,
        dataset,
        objectives=tuple(objective or ()),
        space=space,
        protocol=protocol,
        time_limit=option_text.seconds(time_limit),
        trials=trials,
        workers=workers,
        seed=seed,
        out=out,
        init=init,
        sampler=sampler,
        patience=patience,
        warm_start=tuple(warm_start or ()),
        parents=parents,
        storage=storage,
        address=address,
        data_root=data_root,
        label=label,
        resize=resize,
        spectrogram=spectrogram,
        report=terminal.report(console),
        verbose=verbose,
    )
    terminal.print_front(console, result)


@app.command()
def resume(
    run: Run,
    time_limit: TimeLimit = None,
    trials: Trials = None,
    workers: Workers = None,
    address: Address = None,
    join: Annotated[
        bool, typer.Option("--join", help="Lend this machine's cores to the process that drives the run already.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run after an interruption; no finished trial is lost."""
    from budgetopt import api

    if join:
        others = {"--time-limit": time_limit, "--trials": trials, "--address": address}
        for name, value in others.items():
            if value is not None:
                raise InputError(f"{name} {value} is for the process that drives the run: --join takes --workers only")
        api.join(run, workers=workers, say=terminal.say)
        return
    console = terminal.console()
    found = api.resume(
        run,
        time_limit=option_text.seconds(time_limit),
        trials=trials,
        workers=workers,
        address=address,
        report=terminal.report(console),
        verbose=verbose,
    )
    terminal.print_front(console, found)


@app.command()
def front(run: Run) -> None:
    """Print the Pareto front of a run; of a running one, the front so far on validation."""
    from budgetopt import result
    from budgetopt.search.folder import RunFolder

    folder, console = RunFolder.existing(run), terminal.console()
    if result.is_final(folder.path):
        return terminal.print_front(console, result.read(folder.path))
    from budgetopt.report.tables import trials_table
    from budgetopt.search.progress import Progress
    from budgetopt.search.study import load, records

    progress = Progress(0.0, 1, ended=records(load(folder.study)))
    console.print(trials_table(progress.front(), most=1000))
    console.print("not finished: figures are estimates on validation, not yet retrained", highlight=False)
    return None


@app.command()
def explain(run: Run) -> None:
    """Print what the rate-distortion model makes of a run: expected front, sweet spots, gain of one more trial."""
    from budgetopt import api

    terminal.print_explanation(terminal.console(), api.explain(run))


@app.command()
def pick(
    run: Run,
    budget: Annotated[str, typer.Option(help="The largest file wanted.")],
    out: Annotated[Path | None, typer.Option(help="Where to copy it (default: the current folder).")] = None,
) -> None:
    """Copy the best finished file of a run within a budget."""
    from budgetopt.budget import Budget
    from budgetopt.picking import best_within
    from budgetopt.search.folder import RunFolder

    limit = Budget.parse(budget)
    source, line = best_within(run, limit)
    target = out or Path(f"{RunFolder(run).path.resolve().name}-{limit.bytes}B.bopt")
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InputError(f"{str(target)!r} exists already: name another file with --out")
    terminal.write(target, source.read_bytes())
    print(f"budget {limit}\n{target}: {line}")


@app.command("eval")
def evaluate(
    file: PackedFile,
    dataset: Annotated[str | None, typer.Option(help="Whose test split (may be left out inside a run folder).")] = None,
    network: Annotated[str | None, typer.Option(help="Override the protocol's network; several with commas.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Another recipe than the file's: a preset, or a path that ends in .toml.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Override the number of trainings.")] = None,
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
    """Write the decoded samples for other programs. In Python: `budgetopt.load(file).to_torch()` needs no export.

    npz, safetensors and torch hold x in raw units, y, mean, std, and targets where labels are soft. parquet is the
    Hugging Face image layout, or one column for each feature; values that are no whole 0…255 are rounded for its PNGs,
    which is said, and refused where that would change the pictures. webdataset keeps such values as .npy.
    """
    from budgetopt.exporting import export
    from budgetopt.packing import unpack_file

    exported = export(unpack_file(file)[1], to)
    target = out or Path(f"{file.stem}{exported.suffix}")
    terminal.write(target, exported.content)
    for note in exported.notes:
        print(f"note: {note}")
    print(f"{target}: {len(exported.content):,} bytes")


@app.command()
def trial(
    dataset: Dataset = "digits",
    method: Annotated[str, typer.Option(help="Objective: name in objectives/ or TOML file.")] = "coreset",
    ipc: Annotated[int, typer.Option(help="Samples a class.")] = 10,
    levels: Annotated[
        int | None, typer.Option(help="Distinct values of a stored number, 2 … 256 (default: 2).")
    ] = None,
    quantizer: Annotated[str, typer.Option(help="Family, with options as in uniform:surrogate=noise.")] = "uniform",
    clipping: Annotated[str | None, typer.Option(help="Of the quantizer (default: its first).")] = None,
    transform: Annotated[str, typer.Option(help="Name, with options as in dct:keep=0.25.")] = "identity",
    selection: Annotated[
        str,
        typer.Option(
            help="random, herding, herding:seen=decoded, k-centre, forgetting, memorable, crops (64 pixels or more)."
        ),
    ] = "random",
    label_bits: Annotated[int, typer.Option(help="Bits of a probability in soft labels; 0: hard labels.")] = 0,
    rate_weight: Annotated[float, typer.Option(help="Weight of the estimated file size in the loss.")] = 0.0,
    balance: Annotated[
        str, typer.Option(help="Samples of unequal classes: equal, sqrt (of their sizes), proportional.")
    ] = "equal",
    label_temperature: Annotated[float, typer.Option(help="Divides the logits of the teacher of soft labels.")] = 4.0,
    rdoq: Annotated[float, typer.Option(help="Weight of a bit against the error when symbols are chosen.")] = 0.0,
    budget: Annotated[str | None, typer.Option(help="Make it fit this many bytes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Override the objective's distillation steps.")] = None,
    protocol: Protocol = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the packed file here.")] = None,
    init: Init = None,
    data_root: DataRoot = None,
    label: Label = None,
    resize: Resize = None,
    spectrogram: Spectrogram = None,
) -> None:
    """Run one allocation by hand in this process, without Ray and Optuna."""
    from budgetopt import single

    if out is not None and not out.resolve().parent.is_dir():
        raise InputError(f"cannot write {str(out)!r}: no such folder")
    reports = single.run(
        dataset=dataset,
        method=method,
        allocation=single.allocation(
            method,
            selection,
            ipc,
            transform,
            quantizer,
            levels,
            clipping,
            label_bits,
            rate_weight,
            balance,
            label_temperature,
            rdoq,
        ),
        budget=budget,
        steps=steps,
        protocol_name=protocol,
        seed=seed,
        init=init,
        data_root=data_root,
        label=label,
        resize=resize,
        spectrogram=spectrogram,
    )
    last = None
    for last in reports:
        accuracies = ", ".join(f"{a:.2%}" for a in last.evaluation.accuracies)
        loss = "" if math.isnan(last.loss) else f", loss {last.loss:.4g}"
        full = "full protocol" if last.last else "short training"
        print(f"step {last.step}: {len(last.data):,} bytes, validation {accuracies} ({full}){loss}", flush=True)
    if out is not None and last is not None:
        terminal.write(out, last.data)
        print(f"{out}: {len(last.data):,} bytes")


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
        str, typer.Option(help="Match features through the quantizer: before or after it groups, both, none.")
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


@app.command()
def dashboard(
    run: Run, port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8080
) -> None:
    """Optuna Dashboard on the run's study, read-only, also while the search runs."""
    from budgetopt.report.dashboard import HOST, server
    from budgetopt.search.folder import RunFolder

    serving = server(RunFolder.existing(run), port)
    print(f"http://{HOST}:{serving.server_port}/dashboard (Ctrl-C ends it)", flush=True)
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        serving.server_close()


def main() -> NoReturn:
    """Entry point. Errors for users end in one line; exit code 2: wrong input, 1: a run that failed, 130: Ctrl-C."""
    process.set_up()
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C into the code 130
    except (InputError, PackedFileError) as error:
        _exit(error, 2)
    except BudgetoptError as error:
        _exit(error, 130 if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: unknown option, missing argument
            message = error.format_message() + _given(error)
            sys.exit(2) if not message else _exit(message, 2)
        raise
    if code == 130:
        _exit("interrupted", 130)
    sys.exit(code or 0)


def _given(error: Any) -> str:
    """The value that an option was given: typer's messages leave it out."""
    for option in getattr(getattr(error, "param", None), "opts", []):
        for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
            if word == option or word.startswith(f"{option}="):
                return f", got {word.partition('=')[2] or following!r}"
    return ""


def _exit(error: object, code: int) -> NoReturn:
    print(f"budgetopt: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
