"""Options and arguments of the command line that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[
    str,
    typer.Option(
        help="`digits`, a torchvision dataset by name, hf:OWNER/NAME, a .npz with x_train, y_train, …, a .parquet or "
        ".csv table, or a folder: of pictures by class, of .npy files, of recordings (.wav, .flac), or with train* and "
        "test* tables"
    ),
]
Label = Annotated[
    str | None, typer.Option(help="The label column of a table (default: `label`, else the only one that can be it).")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder with torchvision's files (default: a cache folder).", envvar="BUDGETOPT_DATA"),
]
Resize = Annotated[
    str | None, typer.Option(help="Make all pictures one size, centre cropped: 32, 24x32 (height x width), 32:lanczos.")
]
Spectrogram = Annotated[
    str | None,
    typer.Option(
        help="Of recordings: mels=32,frames=48,seconds=2 or some of them (seconds: the longest that is used)."
    ),
]
Protocol = Annotated[str | None, typer.Option(help="Evaluation protocol: a preset's name or a TOML file.")]
Seed = Annotated[int, typer.Option(help="Of everything random: the same seed gives the same trials.")]
Init = Annotated[
    Path | None, typer.Option(help="Every method starts from this set: .npz, .pt, .bopt, or a folder of images.")
]
TimeLimit = Annotated[
    str | None,
    typer.Option(help="Time of the whole command: 90, 90s, 5min, 1h."),
]
Trials = Annotated[int | None, typer.Option(help="Stop after this many trials.")]
Patience = Annotated[
    int | None,
    typer.Option(help="End after so many proposals in a row that promise under 0.1 points (rate-distortion)."),
]
Candidates = Annotated[
    int | None,
    typer.Option(help="Files that are retrained at the end, at most, the front among them (default: 16)."),
]
Workers = Annotated[int | None, typer.Option(help="Trials at once (default: one per core, or four per GPU).")]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of the Ray cluster that runs the trials (default: this machine alone).")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Let Ray and Optuna print.")]
Run = Annotated[str, typer.Argument(help="A run folder, or its URL.")]
PackedFile = Annotated[Path, typer.Argument(help="A .bopt file.")]
FileBudget = Annotated[
    str, typer.Option("--budget", help="Largest file: 30kb = 30,000 bytes, 30KiB, 240kbit, or bytes.")
]
RealData = Annotated[str | None, typer.Option(help="Real data: accuracy on its validation part then decides.")]
CompressSpace = Annotated[str, typer.Option(help="Ways of storing: a name in search_spaces/ or a TOML file.")]
AllClasses = Annotated[int | None, typer.Option(help="Classes in all, where the set lacks the last ones.")]
TrainedFiles = Annotated[int | None, typer.Option(help="Files to train on, with --dataset (default: 6).")]
