"""Folders of recordings: labels, parts, spectrograms that a receiver repeats, bad input."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from refusals import refused

import budgetopt
from budgetopt import api, cli, single, space
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, open_source
from budgetopt.data.audio import COVERED, FLOOR, FRAMES, MELS, Recordings
from budgetopt.errors import InputError
from budgetopt.inspection import describe
from budgetopt.packing import Identity, PackedSet, UniformLevels, pack, unpack
from budgetopt.packing.log_mel import LogMel
from budgetopt.protocol import Protocol
from budgetopt.search.candidates import SpaceCandidates
from budgetopt.sets import packed_file

HOW = LogMel(rate=8000, window=200, hop=90, lowest=60, highest=4000, floor=40, mels=7, frames=9)


@pytest.fixture(scope="session")
def spoken_digits():
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BUDGETOPT_DATA") or beside) / "fsdd" / "recordings"
    if not folder.is_dir():
        pytest.skip("spoken digits are not here: name the folder that holds fsdd/recordings in BUDGETOPT_DATA")
    return folder


def tone(hertz, seconds=0.3, rate=8000, seed=0):
    """(t,) a tone in a little noise, as loud in its middle as anywhere."""
    t = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * hertz * t) + 0.01 * np.random.default_rng(seed).normal(size=len(t))


def write(path, waveform, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate)


def tones(folder, count=8, classes=(300, 900, 2500), rate=8000, suffix="wav"):
    """A sub-folder for each tone, called by its frequency, with `count` recordings."""
    for hertz in classes:
        for i in range(count):
            write(folder / f"{hertz} Hz" / f"take {i}.{suffix}", tone(hertz, 0.2 + 0.02 * i, rate, i), rate)
    return folder


def notes_of(source):
    return "\n".join(source.notes)


# --- spectrograms ----------------------------------------------------------------------------------------------------


def naive(how, waveform):
    """FORMAT.md, literally, of a recording at the right rate: one number after another."""
    n, length = len(waveform), (how.frames - 1) * how.hop + how.window
    if n > length:
        waveform = waveform[(n - length) // 2 :][:length]
    else:
        before = (length - n) // 2
        waveform = [0.0] * before + list(waveform) + [0.0] * (length - n - before)
    largest = max(abs(v) for v in waveform)
    bins = 1
    while bins < 2 * how.window:
        bins *= 2
    top, bottom = (2595 * math.log10(1 + f / 700) for f in (how.highest, how.lowest))
    edges = [700 * (10 ** ((bottom + i * (top - bottom) / (how.mels + 1)) / 2595) - 1) for i in range(how.mels + 2)]
    sums = np.zeros((how.mels, how.frames))
    for t in range(how.frames):
        frame = np.zeros(bins)
        for i in range(how.window):
            hann = 0.5 - 0.5 * math.cos(2 * math.pi * i / how.window)
            frame[i] = hann * waveform[t * how.hop + i] / largest
        power = np.abs(np.fft.fft(frame)[: bins // 2 + 1]) ** 2
        for k, (e, f, g) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            for b in range(bins // 2 + 1):
                hertz = b * how.rate / bins
                sums[k, t] += power[b] * max(0.0, min((hertz - e) / (f - e), (g - hertz) / (g - f)))
    decibels = 10 * np.log10(np.maximum(sums / sums.max(), 1e-30)) + how.floor
    return np.round(np.maximum(decibels, 0))[None]


@pytest.mark.parametrize("seconds", [0.03, 0.1, 0.115, 0.4])
def test_spectrograms_are_those_of_the_specification(seconds):
    waveform = tone(700, seconds) * np.linspace(0.01, 1, round(8000 * seconds))
    made, wanted = HOW.prepare(waveform, 8000), naive(HOW, waveform)
    assert made.shape == (1, 7, 9)
    assert made.dtype == np.float32
    assert len(np.unique(wanted)) > 10
    assert (made != wanted).mean() < 0.02  # rounding at an edge
    assert np.abs(made - wanted).max() <= 1


def test_a_tone_is_loudest_at_its_frequency_and_silence_is_zero():
    for hertz, highest in ((100, 0), (3500, 6)):
        made = HOW.prepare(tone(hertz), 8000)[0]
        assert made.max() == HOW.floor
        assert made.mean(1).argmax() == highest
    assert not HOW.prepare(np.zeros(500), 8000).any()


def test_loudness_and_channels_do_not_matter():
    waveform = tone(700)
    made = HOW.prepare(waveform, 8000)
    assert np.array_equal(made, HOW.prepare(0.01 * waveform, 8000))
    assert np.array_equal(made, HOW.prepare(np.stack([waveform, waveform], 1), 8000))
    whole = np.round(waveform * 32767).astype(np.int16)
    assert np.abs(made - HOW.prepare(whole, 8000)).mean() < 0.5


@pytest.mark.parametrize("rate", [11025, 16000, 44100])
def test_recordings_at_other_rates_give_the_same_spectrograms(rate):
    silent = np.sin(np.pi * np.arange(round(0.3 * rate)) / (0.3 * rate)) ** 2  # fades in and out
    other = HOW.prepare(silent * tone(700, 0.3, rate), rate)
    same = np.sin(np.pi * np.arange(2400) / 2400) ** 2
    loud = (mine := HOW.prepare(same * tone(700, 0.3), 8000)) > 30  # where the tone is, not the noise
    assert np.abs(other - mine)[loud].max() <= 1


@pytest.mark.parametrize(
    ("waveform", "rate", "said"),
    [
        (np.zeros((2, 2, 2)), 8000, r"\(2, 2, 2\)"),
        (np.zeros(0), 8000, r"\(0,\)"),
        (np.full(500, np.nan), 8000, "NaN"),
        (np.zeros(9), 10, "1000..384000 Hz, got 10"),
        (np.zeros(9), 1 << 31, "got 2147483648"),
    ],
)
def test_what_is_no_recording(waveform, rate, said):
    with pytest.raises(InputError, match=said):
        HOW.prepare(waveform, rate)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sub_folders_are_classes(tmp_path, suffix):
    folder = tones(tmp_path / "töne und so", suffix=suffix)
    write(folder / "_background_" / f"noise.{suffix}", tone(50, 2))
    source = open_source(str(folder))
    dataset = Dataset.prepare(source, 0)
    assert (source.protocol, source.space) == ("audio-1", "audio")
    assert dataset.spec.shape == (1, MELS, FRAMES)
    assert dataset.train.x.dtype == np.uint8
    assert dataset.train.x.max() == FLOOR
    assert len(dataset.train) + len(dataset.val) == 16
    assert sorted(np.bincount(dataset.load_test().y)) == [2, 3, 3]
    assert "labels: names of the sub-folders" in notes_of(source)
    assert "3 classes: 2500 Hz, 300 Hz, 900 Hz" in notes_of(source)
    assert "no test part: 30% of" in notes_of(source)
    peak = [dataset.train.x[dataset.train.y == c].mean((0, 1, 3)).argmax() for c in range(3)]
    assert peak[0] > peak[2] > peak[1]  # as the tones are


def test_numbers_are_in_numerical_order_and_the_part_before_the_first_underscore(tmp_path):
    for label in (10, 9):
        for i in range(4):
            write(tmp_path / f"{label}_of_many_{i}x.wav", tone(100 * label))
    source = open_source(str(tmp_path))
    source.train_arrays()
    assert "2 classes: 9, 10" in notes_of(source)
    assert "up to the first _" in notes_of(source)
    assert "no test part" in notes_of(source)


def test_takes_0_to_4_of_a_speaker_are_the_test_part(tmp_path):
    for label in "ab":
        for speaker in ("x", "y"):
            for index in range(9):
                write(tmp_path / f"{label}_{speaker}_{index}.wav", tone(300 if label == "a" else 900))
    source = open_source(str(tmp_path))
    assert len(source.train_arrays()[1]) == 16
    assert len(source.test_arrays()[1]) == 20
    assert "the 20 recordings with index 0 to 4" in notes_of(source)


def test_folders_train_and_test(tmp_path):
    tones(tmp_path / "train"), tones(tmp_path / "test", 2)
    source = open_source(str(tmp_path))
    assert len(source.train_arrays()[1]) == 24
    assert source.test_arrays()[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert "test part: the folder test" in notes_of(source)
    source.check_test_part((1, MELS, FRAMES))


def test_the_length_covers_most_recordings_and_the_rate_is_the_usual_one(tmp_path):
    tones(tmp_path, 20, rate=22050)
    write(tmp_path / "300 Hz" / "other.wav", tone(300, 9.0, 4000), 4000)
    how = Recordings(tmp_path).preparation
    assert how.rate == 16000
    durations = np.quantile([0.2 + 0.02 * i for i in range(20)], COVERED)
    assert how.length / how.rate == pytest.approx(durations, rel=0.1)
    assert (how.mels, how.frames, how.highest) == (MELS, FRAMES, 8000)


def test_a_receiver_repeats_what_the_file_says(tmp_path):
    """Also where its own recordings would suggest another rate and length."""
    dataset = Dataset.prepare(open_source(str(tones(tmp_path / "sender"))), 0)
    path = tmp_path / "set.bopt"
    path.write_bytes(small_file(dataset))
    loaded = budgetopt.load(path)
    assert loaded.preparation == dataset.spec.preparation
    theirs = tones(tmp_path / "receiver" / "test", 3, rate=11025)
    for number, name in enumerate(("2500 Hz", "300 Hz", "900 Hz")):
        (theirs / name).rename(theirs / str(number))
    source = open_source(str(tmp_path / "receiver")).prepared_by(loaded.preparation)
    test = source.checked_test(loaded.packed.shape, 3)
    waveform, rate = soundfile.read(theirs / "1" / "take 2.wav")
    assert np.array_equal(test.x[5].astype(np.float32), loaded.prepare(waveform, rate))
    assert test.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(InputError, match=r"needs its sampling rate in Hz: prepare\(waveform, rate\)"):
        loaded.prepare(waveform)
    found = budgetopt.evaluate(path, str(tmp_path / "receiver"), seeds=1)
    assert found.samples == 9


def test_a_receiver_with_fewer_classes_is_refused(tmp_path):
    source = open_source(str(tones(tmp_path / "two", classes=(300, 900))))
    refused(lambda: source.checked_test(source.preparation.shape, 3), "2 classes, the file has 3", "put it beside")


def test_unreadable_test_recordings_are_found_before_the_search(tmp_path):
    root = tones(tmp_path / "d" / "train").parent
    tones(root / "test", 3)
    broken = root / "test" / "300 Hz" / "take 1.wav"
    broken.write_bytes(b"RIFF")
    source = open_source(str(root))
    refused(lambda: source.check_test_part(source.preparation.shape), "cannot read 1 of 9", str(broken))


def small_file(dataset):
    """Two recordings a class, losslessly."""
    rows = np.concatenate([np.flatnonzero(dataset.train.y == c)[:2] for c in range(dataset.spec.classes)])
    return pack(
        PackedSet(
            symbols=dataset.train.x[rows].reshape(len(rows), -1),
            shape=dataset.spec.shape,
            counts=(2,) * dataset.spec.classes,
            dequantizer=UniformLevels(FLOOR + 1, 0, 1, 0),
            inverse=Identity(),
            mean=dataset.spec.mean,
            std=dataset.spec.std,
            protocol=Protocol(network="convnet", width=4, steps=5).to_bytes(),
            preparation=dataset.spec.preparation,
        )
    )


def test_a_file_of_recordings_is_inspected_and_brought_along(tmp_path):
    data = small_file(Dataset.prepare(open_source(str(tones(tmp_path / "t"))), 0))
    facts = dict(describe(data)[0])
    assert "log-mel spectrograms" in facts["made of"]
    assert dict(describe(data)[1])["preparation"] < 16
    (tmp_path / "a.bopt").write_bytes(data)
    assert packed_file.read(tmp_path / "a.bopt").preparation == unpack(data).preparation


def test_a_file_of_other_data_is_refused(tmp_path):
    source = open_source(str(tones(tmp_path)))
    with pytest.raises(InputError, match="the file was made of values as they are"):
        source.prepared_by(None)
    with pytest.raises(InputError, match="the file was made of log-mel spectrograms"):
        open_source("digits").prepared_by(HOW)


def test_preparing_needs_neither_torch_nor_soundfile():
    code = (
        "import sys, numpy as np; from budgetopt.packing.log_mel import LogMel\n"
        "LogMel(8000, 200, 90, 60, 4000, 40, 7, 9).prepare(np.ones(4000), 16000)\n"
        "assert not {'torch', 'soundfile', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what the user asks for ------------------------------------------------------------------------------------------


def test_bands_and_frames_that_are_asked_for(tmp_path):
    folder = str(tones(tmp_path))
    plain, asked = open_source(folder), open_source(folder, spectrogram="mels=32, frames=12")
    how = asked.preparation
    assert (how.mels, how.frames, how.rate) == (32, 12, plain.preparation.rate)
    assert how.length / how.rate == pytest.approx(plain.preparation.length / plain.preparation.rate, rel=0.05)
    dataset = Dataset.prepare(asked, 0)
    assert dataset.spec.shape == dataset.load_test().x.shape[1:] == (1, 32, 12)
    assert dataset.spec.preparation == how
    assert "12 frames" in notes_of(asked)
    assert "32 mels" in notes_of(asked)
    assert open_source(folder, spectrogram=f"mels={MELS}").preparation == plain.preparation


def test_the_longest_duration_that_is_asked_for(tmp_path):
    folder = str(tones(tmp_path))  # of 0.2 to 0.34 s
    for seconds, wanted in ((0.1, 0.1), (5, 0.33)):
        how = open_source(folder, spectrogram=f"seconds={seconds}").preparation
        assert how.length / how.rate == pytest.approx(wanted, rel=0.05)


def test_long_recordings_in_few_frames(tmp_path):
    """Frames may lie further apart than the longest window, and no further than a file can say."""
    for name in ("a", "b"):
        for i in range(3):
            write(tmp_path / name / f"{i}.wav", tone(300, 12, 16000), 16000)
    how = open_source(str(tmp_path)).preparation
    assert how.length / how.rate == pytest.approx(10, rel=0.05)
    assert Dataset.prepare(open_source(str(tmp_path), spectrogram="seconds=12"), 0).spec.preparation.hop > how.hop
    source = open_source(str(tmp_path), spectrogram="seconds=12,frames=9")
    assert "9 frames over 12 s lie too far apart: take --spectrogram frames=24" in refusal(source.train_arrays)
    assert open_source(str(tmp_path), spectrogram="seconds=12,frames=24").preparation.frames == 24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mels=0", "--spectrogram: mels must be in 1..256, got 0"),
        ("mels=31.5", "mels must be a whole number, got 31.5"),
        ("frames=5000", "frames must be in 1..4096, got 5000"),
        ("seconds=nan", "seconds must be in 0.01..249, got nan"),
        ("bands=3", "unknown option of --spectrogram 'bands'"),
        ("32x32", "cannot read '32x32' in '--spectrogram 32x32': write mels=32,frames=48,seconds=2"),
        ("", "cannot read --spectrogram ''"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, text, said):
    folder = str(tones(tmp_path, 2))
    assert said in refusal(lambda: open_source(folder, spectrogram=text))


def test_bands_that_would_hear_nothing(tmp_path):
    folder = str(tones(tmp_path))
    source = open_source(folder, spectrogram="mels=64,frames=400")
    assert "34 of 64 mels are too narrow for frames of 1.75 ms" in refusal(source.train_arrays)


def test_only_recordings_have_spectrograms_and_they_are_not_resized(tmp_path):
    said = refusal(lambda: open_source("digits", spectrogram="mels=32"))
    assert said == "--spectrogram mels=32 is for folders of recordings (.wav, .flac); digits is none"
    folder = str(tones(tmp_path))
    assert "--spectrogram mels=32,frames=32" in refusal(lambda: open_source(folder, resize="8"))


@pytest.mark.long
def test_inspection_trial_compress_and_merge_take_what_is_asked_for(tmp_path, capsys, monkeypatch):
    folder, asked = str(tones(tmp_path / "t", 12)), "mels=12,frames=10"
    (tmp_path / "p.toml").write_text('network = "convnet"\nsteps = 5\nwidth = 4\nsearch_seeds = 1\n')
    monkeypatch.setattr(sys, "argv", ["budgetopt", "data", "inspect", folder, "--json", "--spectrogram", asked])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["shape"] == [1, 12, 10]
    arguments = (folder, "coreset", Allocation(ipc=2, levels=41), None, None, str(tmp_path / "p.toml"), 0, None, None)
    data = list(single.run(*arguments, spectrogram=asked))[-1].data
    assert unpack(data).shape == (1, 12, 10)
    (tmp_path / "a.bopt").write_bytes(data)
    one = tmp_path / "space.toml"
    one.write_text(
        'selection = ["random"]\ntransform = ["identity"]\n[[quantizer]]\nfamily = "uniform"\nlevels = [41]\n'
    )
    settings = {"budget": "2kb", "dataset": folder, "trials": 1, "space": str(one)}
    found = api.compress(tmp_path / "a.bopt", spectrogram=asked, **settings)
    assert unpack(found.data).preparation == unpack(data).preparation
    assert "(1, 24, 24)" in refusal(lambda: api.compress(tmp_path / "a.bopt", **settings))
    (tmp_path / "b.bopt").write_bytes(data)
    both = [tmp_path / "a.bopt", tmp_path / "b.bopt"]
    merged = api.merge(both, spectrogram=asked, **settings)
    assert unpack(merged.data).preparation == unpack(data).preparation


@pytest.mark.long
def test_a_run_keeps_what_was_asked_for(tmp_path):
    """In its configuration, when it goes on, and in its files, which are evaluated without being told."""
    folder, asked = str(tones(tmp_path / "t", 20)), "mels=12,frames=10"
    (tmp_path / "p.toml").write_text('network = "convnet"\nsteps = 30\nwidth = 4\nsearch_seeds = 1\n')
    settings = {"protocol": str(tmp_path / "p.toml"), "objectives": ["coreset"], "workers": 1, "out": tmp_path / "r"}
    found = api.search("900", folder, spectrogram=asked, trials=2, **settings)
    config = tmp_path / "r" / "config.json"
    assert json.loads(config.read_text())["spectrogram"] == asked
    for name in ("front.json", "front.csv", "front.png"):  # as if it had been killed before them
        (tmp_path / "r" / name).unlink()
    again = api.resume(tmp_path / "r")
    assert again.best.bytes == found.best.bytes
    assert unpack(again.best.path.read_bytes()).shape == (1, 12, 10)
    for dataset in (folder, None):
        assert api.evaluate(again.best.path, dataset).accuracy == pytest.approx(again.best.accuracy)
    with pytest.raises(InputError, match="holds a different run"):
        api.search("900", folder, trials=2, **settings)


# --- bad input -------------------------------------------------------------------------------------------------------


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_few_unreadable_recordings_are_named_and_skipped(tmp_path):
    tones(tmp_path / "train", 60, (300, 900)), tones(tmp_path / "test", 2, (300, 900))
    broken = tmp_path / "train" / "300 Hz" / "bröken take.wav"
    broken.write_bytes(b"this is no recording at all")
    source = open_source(str(tmp_path))
    assert len(source.train_arrays()[1]) == 120
    assert f"skipped '{broken}': " in notes_of(source)
    assert len(source.test_arrays()[1]) == 4
    (tmp_path / "train" / "900 Hz" / "too.wav").write_bytes(b"")
    said = refusal(open_source(str(tmp_path)).train_arrays)
    assert "cannot read 2 of 122 recordings" in said
    assert "too.wav" in said


def test_recordings_that_hold_nothing_or_nonsense(tmp_path):
    tones(tmp_path / "train", 3)
    for name, waveform in (("empty", np.zeros(0)), ("nan", np.full(4000, np.nan))):
        folder = tmp_path / name
        tones(folder / "train", 3)
        path = folder / "train" / "300 Hz" / "bad.wav"
        soundfile.write(path, waveform, 8000, subtype="FLOAT")
        assert str(path) in refusal(open_source(str(folder)).train_arrays)
    for path in (tmp_path / "train").rglob("*.wav"):
        path.write_bytes(b"RIFF")
    assert "none of its 6 recordings" in refusal(open_source(str(tmp_path)).train_arrays)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a/1.wav", "a/2.wav"], "one class only, 'a'"),
        (["a_1.wav", "a_2.wav", "a_3.wav"], "one class only, 'a'"),
        (["a/1.wav", "b_1.wav"], "both in sub-folders and beside them, as b_1.wav"),
        (["a_1.wav", "hello.wav"], "no _ in its name after the label"),
        (["train/a/1.wav", "train/b/1.wav", "test/a/1.wav", "test/c/1.wav"], "class 'c' is not in the training part"),
        (["test/a/1.wav", "test/b/1.wav"], "class 'a' is a name, and a packed file numbers its classes"),
        (["a/1.wav", "b/1.wav", "c/1.wav"], "no test part can be carved from 3 samples"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, files, said):
    for name in files:
        write(tmp_path / name, tone(300))

    def read():
        source = open_source(str(tmp_path))
        source.check_test_part((1, MELS, FRAMES))
        source.train_arrays()

    assert said in refusal(read)


def test_empty_folders(tmp_path):
    assert "no recordings (.wav, .flac) in it" in refusal(lambda: Recordings(tmp_path))
    (tmp_path / "train").mkdir()
    assert "in its folders train and test" in refusal(lambda: Recordings(tmp_path))
    assert "it holds train" in refusal(lambda: open_source(str(tmp_path)))


def test_a_test_part_alone_cannot_be_searched_on(tmp_path):
    write(tmp_path / "test" / "0" / "a.wav", tone(300))
    assert "no folder train" in refusal(open_source(str(tmp_path)).train_arrays)


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_the_search_space_of_recordings_can_be_enumerated():
    found = SpaceCandidates(space.resolve("audio"), {"coreset": 0, "dm": 100}, (1, MELS, FRAMES), 100, 0)
    assert 500 < len(found.kinds([], 0)) <= 2500
    assert found.kinds([], 0) == found.kinds([], 1)
    assert FLOOR + 1 in space.resolve("audio").quantizer[0].levels  # holds them losslessly


def test_spoken_digits(spoken_digits):
    source = open_source(str(spoken_digits))
    dataset = Dataset.prepare(source, 0)
    assert "the 300 recordings with index 0 to 4" in notes_of(source)
    assert dataset.spec.classes == 10
    assert dataset.spec.preparation.rate == 8000
    assert len(dataset.train) + len(dataset.val) == 2700
    test = dataset.load_test()
    assert np.bincount(test.y).tolist() == [30] * 10
    # the nearest training recording says the digit, far above chance
    x, seen = (part.x.reshape(len(part), -1).astype(np.float32) for part in (test, dataset.train))
    nearest = (x**2).sum(1)[:, None] + (seen**2).sum(1) - 2 * x @ seen.T
    assert (dataset.train.y[nearest.argmin(1)] == test.y).mean() > 0.8
