"""The command line: parse, call the API, print. Heavy imports happen inside the commands: `--help` is instant."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from budgetopt import __version__, cli_data, cli_files, option_text, process, terminal
from budgetopt.cli_options import (
    Address,
    Candidates,
    DataRoot,
    Dataset,
    Init,
    Label,
    Patience,
    Protocol,
    Resize,
    Run,
    Seed,
    Spectrogram,
    TimeLimit,
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


def print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback(no_args_is_help=True)
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Which dataset of at most N bytes trains the best model?"""


app.add_typer(cli_files.app)  # without a name: its commands are of this level
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
    patience: Patience = None,
    candidates: Candidates = None,
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
        candidates=candidates,
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
    patience: Patience = None,
    candidates: Candidates = None,
    address: Address = None,
    join: Annotated[
        bool, typer.Option("--join", help="Lend this machine's cores to the process that drives the run already.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run after an interruption; no finished trial is lost."""
    from budgetopt import api

    if join:
        others = {"--time-limit": time_limit, "--trials": trials, "--patience": patience, "--candidates": candidates}
        others["--address"] = address
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
        patience=patience,
        candidates=candidates,
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
