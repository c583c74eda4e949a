"""Folders of recordings, WAV or FLAC: each becomes a log-mel spectrogram, and the file says how."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from budgetopt.data.carving import carved, carving_note
from budgetopt.data.dataset import Arrays, Source, Split
from budgetopt.errors import InputError, first_line
from budgetopt.options import Number, assignments, complete
from budgetopt.packing.log_mel import MOST_LENGTH, MOST_MELS, MOST_WINDOW, RATES, LogMel
from budgetopt.packing.preparation import Preparation

if TYPE_CHECKING:
    from budgetopt.data.resizing import Size

SUFFIXES = (".wav", ".flac")
# {label}_{speaker}_{index}: the Free Spoken Digit Dataset, whose recordings 0 to 4 of each speaker are its test part
TAKES = re.compile(r"[^_]+_[^_]+_(\d+)")
TEST_TAKES = 5
UNREADABLE = 0.01  # share of the recordings that may be skipped
MOST_ENTRIES = 200  # of a folder that are looked at to see what it holds
SHOWN = 8  # class names in a line

# Spectrograms, where no file says how they are made: tuned on half of the speakers of spoken digits
MOST_RATE = 16_000  # Hz
COVERED, MOST_SECONDS = 0.9, 10.0  # length: no shorter than this share of the recordings, within bounds
FRAMES, MELS, FLOOR = 24, 24, 40
SETTINGS = {  # that a user may choose; seconds: of rounded frames too, no more than a receiver prepares
    "mels": Number(MELS, 1, MOST_MELS, whole=True),
    "frames": Number(FRAMES, 1, 1 << 12, whole=True),
    "seconds": Number(MOST_SECONDS, 0.01, 0.95 * MOST_LENGTH // MOST_RATE),
}
OVERLAP = 2  # windows over each value
LOWEST = 60  # Hz


@dataclass(frozen=True)
class Spectrograms:
    """What a user may say of them. seconds: no longer than this, where recordings are."""

    mels: int = MELS
    frames: int = FRAMES
    seconds: float = MOST_SECONDS

    @classmethod
    def parse(cls, text: str) -> Spectrograms:
        """`mels=32,frames=48,seconds=2`, or some of them. Raises `InputError`."""
        example = "mels=32,frames=48,seconds=2, or some of them"
        given = assignments(text, f"--spectrogram {text}", example)
        if not given:
            raise InputError(f"cannot read --spectrogram {text!r}: write {example}")
        return cls(**complete(SETTINGS, tuple(given.items()), "--spectrogram"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Take:
    """A recording and the name of its class."""

    path: Path
    label: str


class Recordings(Source):
    """Classes are the sub-folders, or what file names have before their first `_`; in numerical order where all are
    numbers, else in alphabetical order. prepared: how spectrograms are made, as a packed file says; by default as suits
    the training part and is `asked` for."""

    path: Path
    protocol = "audio-1"
    space = "audio"

    def __init__(self, path: Path, prepared: LogMel | None = None, asked: Spectrograms = Spectrograms()) -> None:
        self.path, self.name = path, str(path)
        self._given, self._asked = prepared, asked
        self._skipped: list[str] = []
        self._train, self._test, self._how = _parts(path)

    @property
    def notes(self) -> tuple[str, ...]:
        said = [*self._how]
        if self._train:
            names = self._classes
            said.insert(1, f"{len(names)} classes: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}")
            said.append(self.preparation.summary)
        return (*said, *self._skipped)

    @cached_property
    def preparation(self) -> LogMel:  # type: ignore[override]
        """Sampling rate and length are those of the training part."""
        return self._given or _suitable(self._train, self.name, self._asked)

    def asked(self, spectrograms: Spectrograms) -> Recordings:
        """This source with such spectrograms."""
        return Recordings(self.path, self._given, spectrograms)

    def resized(self, size: Size) -> Source:
        raise InputError(f"{self.name}: --resize is for pictures: of recordings, --spectrogram mels=32,frames=32")

    def prepared_by(self, preparation: Preparation | None) -> Source:
        if not isinstance(preparation, LogMel):
            return super().prepared_by(preparation)
        return Recordings(self.path, preparation)

    def train_arrays(self) -> Arrays:
        if not self._train:
            raise InputError(f"{self.name}: no recordings to train on: it holds a folder test and no folder train")
        return self._arrays(self._train)

    def test_arrays(self) -> Arrays:
        return self._arrays(self._test)

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        if not self._test:
            raise InputError(f"{self.path / 'test'}: no recordings: the front is reported on a test part")
        self._numbers(self._test)
        bad = [take.path for take in self._test if _length(take.path) is None]
        if len(bad) > UNREADABLE * len(self._test):
            raise InputError(
                f"cannot read {len(bad)} of {len(self._test)} recordings of the test part, the first one is "
                f"{str(bad[0])!r}"
            )

    def checked_test(self, shape: tuple[int, ...], classes: int) -> Split:
        if self._train:  # else labels are the file's numbers
            self._check_numbering(classes, len(self._classes))
        return super().checked_test(shape, classes)

    @cached_property
    def _classes(self) -> list[str]:
        """Of the training part."""
        names = sorted({take.label for take in self._train})
        if len(names) == 1:
            raise InputError(f"{self.name}: one class only, {names[0]!r}: {KINDS}")
        return sorted(names, key=int) if all(map(_is_number, names)) else names

    def _numbers(self, takes: list[Take]) -> list[int]:
        """Of their classes. Raises `InputError` for a class that the training part lacks."""
        if not self._train:  # a receiver with a test part only: its labels are the file's numbers
            strange = next((take for take in takes if not _is_number(take.label)), None)
            if strange is not None:
                raise InputError(
                    f"{strange.path}: class {strange.label!r} is a name, and a packed file numbers its classes: put "
                    "the training part beside it"
                )
            return [int(take.label) for take in takes]
        numbers = {name: number for number, name in enumerate(self._classes)}
        for take in takes:
            if take.label not in numbers:
                raise InputError(f"{take.path}: class {take.label!r} is not in the training part")
        return [numbers[take.label] for take in takes]

    def _arrays(self, takes: list[Take]) -> Arrays:
        y, how = np.array(self._numbers(takes), np.int64), self.preparation
        x = np.empty((len(takes), *how.shape), np.uint8)
        read = np.ones(len(takes), bool)
        with threadpool_limits(1, "blas"):  # matrices so small that threads only wait for each other
            for at, take in enumerate(takes):
                try:
                    x[at] = how.prepare(*_read(take.path, how))
                except InputError as error:
                    read[at] = False
                    self._skip(take.path, error, int((~read).sum()), len(takes))
        return (x, y) if read.all() else (x[read], y[read])

    def _skip(self, path: Path, error: InputError, bad: int, count: int) -> None:
        if bad > UNREADABLE * count:
            raise InputError(f"cannot read {bad} of {count} recordings, the last one is {str(path)!r}: {error}")
        self._skipped.append(f"skipped {str(path)!r}: {error}")


KINDS = "classes are sub-folders, or what the names of the recordings have before their first _"


def holds_recordings(folder: Path) -> bool:
    """Whether recordings lie in a folder, in its sub-folders or in those of its train and test."""
    inside = [folder, *_folders(folder)]
    inside += [deeper for part in inside[1:] if part.name in ("train", "test") for deeper in _folders(part)]
    return any(_is_recording(entry) for place in inside for entry in _some(place))


def _parts(path: Path) -> tuple[list[Take], list[Take], list[str]]:
    """→ training part, test part, and what was understood, in words; the training part is empty where only a folder
    `test` is there."""
    train, test = path / "train", path / "test"
    if train.is_dir() or test.is_dir():
        listed = {part: _listing(part) if part.is_dir() else ([], "") for part in (train, test)}
        found, how = listed[train] if listed[train][0] else listed[test]
        if not found:
            raise InputError(f"{path}: no recordings ({', '.join(SUFFIXES)}) in its folders train and test")
        if listed[test][0] or not listed[train][0]:
            return listed[train][0], listed[test][0], [how, "test part: the folder test"]
        where = str(train)
    else:
        found, how = _listing(path)
        where = str(path)
        if not found:
            raise InputError(f"{path}: no recordings ({', '.join(SUFFIXES)}) in it; {KINDS}")
        takes = [TAKES.fullmatch(take.path.stem) for take in found if take.path.parent == path]
        if len(takes) == len(found) and all(takes):
            tested = [int(match[1]) < TEST_TAKES for match in takes if match]
            parts = [[take for take, test in zip(found, tested, strict=True) if test == wanted] for wanted in (0, 1)]
            if all(parts):
                said = f"test part: the {len(parts[1]):,} recordings with index 0 to {TEST_TAKES - 1} in their names"
                return parts[0], parts[1], [how, f"{said} ({{label}}_{{speaker}}_{{index}})"]
    names = sorted({take.label for take in found})
    rows = carved(np.array([names.index(take.label) for take in found]), where)
    return [found[i] for i in rows[0]], [found[i] for i in rows[1]], [how, carving_note(where)]


def _listing(folder: Path) -> tuple[list[Take], str]:
    """→ the recordings of one part in the order of their names, and where their labels come from."""
    classes = {place.name: _recordings(place) for place in _folders(folder)}
    inside = [Take(path, name) for name, paths in classes.items() for path in paths]
    loose = _recordings(folder)
    if inside and loose:
        raise InputError(f"{folder}: recordings both in sub-folders and beside them, as {loose[0].name}; {KINDS}")
    if inside:
        return inside, "labels: names of the sub-folders"
    for path in loose:
        if "_" not in path.stem:
            raise InputError(f"{path}: no _ in its name after the label; {KINDS}")
    return [Take(path, path.stem.split("_")[0]) for path in loose], "labels: names of the recordings up to the first _"


def _folders(folder: Path) -> list[Path]:
    """Sub-folders in the order of their names; those that begin with `_` or `.` hold something else (noise)."""
    try:
        return sorted(place for place in folder.iterdir() if place.is_dir() and place.name[0] not in "_.")
    except OSError as error:
        raise InputError(f"cannot read {str(folder)!r}: {error.strerror}") from None


def _recordings(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _is_recording(path))
    except OSError as error:
        raise InputError(f"cannot read {str(folder)!r}: {error.strerror}") from None


def _some(folder: Path) -> Iterator[Path]:
    try:
        for count, path in enumerate(folder.iterdir()):
            if count == MOST_ENTRIES:
                return
            yield path
    except OSError:  # whoever reads it will say so
        return


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _suitable(takes: list[Take], name: str, asked: Spectrograms) -> LogMel:
    """Spectrograms that suit these recordings, by their headers."""
    rates, seconds = Counter[int](), []
    for take in takes:
        found = _length(take.path)
        if found is not None:  # else it is skipped, or there are too many, when it is read
            rates[found[0]] += 1
            seconds.append(found[1] / found[0])
    if not rates:
        raise InputError(f"{name}: none of its {len(takes)} recordings for training can be read")
    rate = min(MOST_RATE, rates.most_common(1)[0][0])
    length = min(float(np.quantile(seconds, COVERED)), asked.seconds) * rate
    hop = max(1, round(length / (asked.frames - 1 + OVERLAP)))
    if hop > MOST_WINDOW:
        raise InputError(
            f"{name}: {asked.frames} frames over {length / rate:.3g} s lie too far apart: take --spectrogram "
            f"frames={math.ceil(length / MOST_WINDOW)} or more, or a smaller number of seconds"
        )
    window = min(OVERLAP * hop, MOST_WINDOW)
    how = LogMel(rate, window, hop, LOWEST, rate // 2, FLOOR, asked.mels, asked.frames)
    if asked != Spectrograms() and how.silent_mels:  # the default takes very short recordings as they are
        raise InputError(
            f"{name}: {how.silent_mels} of {asked.mels} mels are too narrow for frames of {1000 * window / rate:.3g} "
            "ms: take fewer mels or frames"
        )
    return how


def _length(path: Path) -> tuple[int, int] | None:
    """Sampling rate in Hz and number of values, by the header alone; None where it cannot be used."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as recording:
            rate, length = recording.samplerate, recording.frames
    except (soundfile.SoundFileError, OSError, RuntimeError):
        return None
    return (rate, length) if RATES[0] <= rate <= RATES[1] and length > 0 else None


def _read(path: Path, how: LogMel) -> tuple[np.ndarray, int]:
    """→ ((t, channels) of the middle of a recording, as much as `how` takes, its sampling rate in Hz)."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as recording:
            if not RATES[0] <= recording.samplerate <= RATES[1]:
                raise InputError(f"its sampling rate is {recording.samplerate} Hz")
            most = min(recording.frames, how.longest(recording.samplerate))
            recording.seek((recording.frames - most) // 2)
            return recording.read(most, always_2d=True), recording.samplerate
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise InputError(first_line(error)) from None
