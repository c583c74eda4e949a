import itertools
import zlib
from dataclasses import replace
from fractions import Fraction

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetopt import inspection, load
from budgetopt.errors import PackedFileError
from budgetopt.packing import Identity, PackedSet, SoftLabels, UniformLevels, pack, sections, unpack
from budgetopt.packing.errors import BadHeader, BadPayload, Truncated
from budgetopt.packing.fields import Reader, Writer


def random_labels(counts, bits, seed=0, certain=0.5):
    """Rows of a teacher that is mostly sure of the class."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(len(counts)), counts)
    symbols = np.zeros((len(own), len(counts)), np.int64)
    for i, label in enumerate(own):
        symbols[i] = rng.multinomial((1 << bits) - 1, rng.dirichlet(np.full(len(counts), 0.3)))
        if rng.random() < certain:
            symbols[i] = ((1 << bits) - 1) * (np.arange(len(counts)) == label)
    return SoftLabels(symbols.astype(np.uint8), bits, int(rng.integers(0, 256)))


def packed(counts=(4, 3, 5), bits=3, seed=0):
    symbols = np.random.default_rng(seed).integers(0, 4, (sum(counts), 6)).astype(np.uint8)
    unit = np.ones(1, np.float32)
    soft = random_labels(counts, bits, seed)
    return PackedSet(symbols, (6,), counts, UniformLevels(4, 0, 5, 0), Identity(), 0 * unit, unit, 2, soft)


def coded(labels, counts):
    out = Writer()
    labels.write(out, np.repeat(np.arange(len(counts)), counts))
    return bytes(out.data)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("smoothing", [0, 1, 3, 255])
def test_targets_are_the_nearest_float32_of_the_fraction(bits, smoothing):
    labels = replace(random_labels((3, 3, 3, 3), bits, 1), smoothing=smoothing)
    whole = 16 * labels.parts + 4 * smoothing
    for row, wanted in zip(labels.targets(), labels.symbols.astype(int), strict=True):
        exact = [Fraction(16 * int(s) + smoothing, whole) for s in wanted]
        assert sum(exact) == 1
        assert row.tolist() == [float(np.float32(float(f))) for f in exact]
        assert row.dtype == np.float32


@pytest.mark.parametrize(("classes", "bits"), [(2, 3), (3, 2), (4, 2), (3, 3)])
def test_nearest_is_the_closest_of_all(classes, bits):
    """Against every way to share out the parts, for every smoothing up to the one after the best."""
    parts = (1 << bits) - 1
    every = np.array([s for s in itertools.product(range(parts + 1), repeat=classes) if sum(s) == parts])
    wanted = np.random.default_rng(0).dirichlet(np.full(classes, 0.7), 20)
    found = SoftLabels.nearest(wanted, bits)
    own = ((found.targets() - wanted) ** 2).sum(1)
    targets = (16 * every + found.smoothing) / (16 * parts + classes * found.smoothing)
    closest = ((targets[None] - wanted[:, None]) ** 2).sum(2).min(1)
    # with smoothing a row whose smallest probability is below it need not be the closest; it is at most close
    assert (own >= closest - 1e-6).all()
    assert own.sum() <= 1.05 * closest.sum() + 1e-6
    plain = ((every / parts)[None] - wanted[:, None]) ** 2
    assert own.sum() <= plain.sum(2).min(1).sum() + 1e-6  # smoothing never does harm


def test_certain_labels_stay_certain():
    found = SoftLabels.nearest(np.eye(5), 3)
    assert found.smoothing == 0
    assert np.array_equal(found.targets(), np.eye(5))


def test_small_probabilities_become_smoothing():
    found = SoftLabels.nearest(np.full((3, 10), 0.02) + 0.8 * np.eye(10)[:3], 2)
    assert found.smoothing > 0
    assert np.allclose(found.targets()[0], [0.82, *[0.02] * 9], atol=0.03)


@pytest.mark.parametrize("row", [[0, 0, 0], [7, 1, 0], [3, 3, 0], [255, 255, 9]])
def test_rows_that_do_not_add_up_are_no_labels(row):
    with pytest.raises(BadHeader, match=f"add up to 7, those of sample 1 to {sum(row)}"):
        SoftLabels(np.array([[7, 0, 0], row], np.uint8), 3)


@pytest.mark.parametrize(
    ("bits", "classes", "smoothing"), [(0, 2, 0), (9, 2, 0), (1, 1025, 0), (1, 2, 256), (1, 2, -1)]
)
def test_sizes_out_of_range(bits, classes, smoothing):
    with pytest.raises(BadHeader, match="soft labels"):
        SoftLabels(np.eye(1, classes, dtype=np.uint8), bits, smoothing)


# --- the coder -------------------------------------------------------------------------------------------------------


def naive(labels, counts):
    """The section, told in plain Python: dictionaries of counts, one symbol after the other."""
    seen, encoder, classes, parts = {}, constriction.stream.queue.RangeEncoder(), labels.symbols.shape[1], labels.parts

    def group(v):
        return v if v < 16 else 11 + v.bit_length()

    def draw(kind, coarse, fine, possible, value):
        if len(possible) == 1:
            return
        tables = [seen.setdefault((kind, *context), {}) for context in (("coarse", coarse), ("fine", fine))]
        wide = [tables[0].get(v, 0) * len(possible) + 8 for v in possible]
        weights = [tables[1].get(v, 0) * sum(wide) + 8 * w for v, w in zip(possible, wide, strict=True)]
        model = constriction.stream.model.Categorical(np.array(weights, np.float64), perfect=False)
        encoder.encode(possible.index(value), model)
        for table in tables:
            table[value] = table.get(value, 0) + 1
            if sum(table.values()) > 4096:
                for v in table:
                    table[v] //= 2

    starts = np.cumsum([0, *counts])
    for rank in range(max(counts)):
        for own in range(classes):
            if rank >= counts[own]:
                continue
            row = labels.symbols[starts[own] + rank].tolist()
            draw("own", 0, own, list(range(parts + 1)), row[own])
            left, last, at, free = parts - row[own], 0, -1, [c for c in range(classes) if c != own]
            for share, c in sorted(((row[c], c) for c in free if row[c]), key=lambda pair: (-pair[0], pair[1])):
                possible = list(range(-(-left // len(free)), min(left, last or left) + 1))
                draw("share", group(left), (group(left), group(last)), possible, share)
                draw("class", 0, own, [f for f in free if share != last or f > at], c)
                free.remove(c)
                left, last, at = left - share, share, c
    data = encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return bytes([labels.bits, labels.smoothing]) + leb128(len(data)) + data


def leb128(value):
    out = Writer()
    out.unsigned(value)
    return bytes(out.data)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("counts", [(1, 1), (9, 0, 4), (3,), (40, 25, 60, 1, 8)])
def test_bytes_against_a_naive_twin(bits, counts):
    labels = random_labels(counts, bits, 3)
    assert coded(labels, counts) == naive(labels, counts)


def test_halving_of_the_counts_against_the_naive_twin():
    counts = (3000, 1500)  # more than a context remembers
    labels = random_labels(counts, 2, 4)
    assert coded(labels, counts) == naive(labels, counts)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    st.integers(1, 8),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.9, 1.0]),
)
def test_round_trip(counts, bits, seed, certain):
    labels = random_labels(counts, bits, seed, certain)
    fields = Reader(coded(labels, counts) + b"rest")
    found = SoftLabels.read(fields, tuple(counts))
    assert np.array_equal(found.symbols, labels.symbols)
    assert (found.bits, found.smoothing, found.symbols.dtype) == (bits, labels.smoothing, np.uint8)
    assert fields.raw(fields.left) == b"rest"


def test_certainty_costs_almost_nothing():
    counts = (100,) * 10
    certain = SoftLabels.nearest(np.repeat(np.eye(10), 100, 0), 3)
    assert len(coded(certain, counts)) < 1000 * 0.2 / 8
    # 3 bits each, 30 bits a sample, as they stand; a few bits as coded
    assert len(coded(random_labels(counts, 3), counts)) < 1000 * 12 / 8


def test_many_certain_labels_keep_within_the_limits():
    """They would be shorter than a hostile file may claim: zeros are added, and decode to the same."""
    counts = (40_000, 5)
    labels = SoftLabels(np.repeat(np.eye(2, dtype=np.uint8), counts, 0), 1)
    data = coded(labels, counts)
    assert len(data) >= max((sum(counts) - (1 << 14)) / 256, (sum(counts) - (1 << 15)) / 32)
    assert np.array_equal(SoftLabels.read(Reader(data), counts).symbols, labels.symbols)


# --- in the file -----------------------------------------------------------------------------------------------------


def test_hard_labels_cost_nothing():
    """A file with soft labels is the file without them, one flag and one section more."""
    with_soft = packed()
    hard, soft = pack(replace(with_soft, soft=None)), pack(with_soft)
    section = coded(with_soft.soft, with_soft.counts)
    sizes = dict(sections(soft))
    assert sizes["soft labels"] == len(section) == len(soft) - len(hard)
    assert "soft labels" not in dict(sections(hard))
    assert hard[4] | 8 == soft[4] != hard[4]
    at = sum(size for name, size in itertools.takewhile(lambda part: part[0] != "soft labels", sections(soft)))
    assert soft[5:at] + soft[at + len(section) : -4] == hard[5:-4]
    assert soft[at : at + len(section)] == section


def test_golden_bytes():
    counts = (7, 2, 9)
    assert coded(random_labels(counts, 4, 5), counts).hex() == GOLDEN


GOLDEN = "04c20c40e9f5ff81898131c570766f"


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_pack_and_unpack(bits):
    original = packed(bits=bits)
    found = unpack(pack(original))
    assert found == original
    assert np.array_equal(found.soft.symbols, original.soft.symbols)
    assert np.array_equal(found.targets(), original.targets())
    assert unpack(pack(replace(original, soft=None))).targets() is None


def test_labels_of_another_set_are_refused():
    with pytest.raises(BadHeader, match=r"soft labels must be \(samples, classes\) = \(12, 3\), got \(11, 3\)"):
        pack(replace(packed(), soft=random_labels((4, 3, 4), 3)))


def test_what_a_receiver_gets(tmp_path):
    original = packed()
    (tmp_path / "a.bopt").write_bytes(pack(original))
    loaded = load(tmp_path / "a.bopt")
    targets = original.soft.targets()
    assert np.array_equal(loaded.targets, targets)
    assert np.array_equal(loaded.labels, original.labels())
    assert np.array_equal(np.concatenate([y for _, y in loaded.batches(5)]), targets)
    assert np.array_equal(loaded.to_torch().tensors[1].numpy(), targets)
    (tmp_path / "b.bopt").write_bytes(pack(replace(original, soft=None)))
    hard = load(tmp_path / "b.bopt")
    assert np.array_equal(hard.targets, np.eye(3, dtype=np.float32)[hard.labels])
    assert hard.to_torch().tensors[1].dtype.is_signed
    assert hard.to_torch().tensors[1].shape == (12,)
    assert next(hard.batches(5))[1].dtype == np.int64


def test_inspection():
    data = pack(packed())
    facts, parts = inspection.describe(data)
    size = dict(parts)["soft labels"]
    assert dict(facts)["soft labels"] == f"3 bits a probability, {8 * size / 12:.2f} bits a sample coded"
    assert "soft labels" not in dict(inspection.describe(pack(replace(packed(), soft=None)))[0])


# --- hostile bytes ---------------------------------------------------------------------------------------------------


def test_damaged_files_end_in_a_named_error():
    """Every byte of the section changed, the checksum made right again."""
    data = pack(packed((6, 5, 4), 3))
    sizes = sections(data)
    at = sum(size for name, size in itertools.takewhile(lambda part: part[0] != "soft labels", sizes))
    rng = np.random.default_rng(0)
    survived = 0
    for place in range(at, at + dict(sizes)["soft labels"]):
        for value in {0, 1, 255, *rng.integers(0, 256, 8).tolist()}:
            body = data[:place] + bytes([value]) + data[place + 1 : -4]
            try:
                found = unpack(body + zlib.crc32(body).to_bytes(4, "little"))
            except PackedFileError:
                continue
            survived += 1
            assert np.allclose(found.targets().sum(1), 1)
    assert survived


@given(st.binary(max_size=40), st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(any))
def test_random_bytes(data, counts):
    try:
        found = SoftLabels.read(Reader(data), tuple(counts))
    except PackedFileError:
        return
    assert found.symbols.shape == (sum(counts), len(counts))
    assert (found.symbols.sum(1, dtype=int) == found.parts).all()


@pytest.mark.parametrize(
    ("data", "counts", "error", "message"),
    [
        (b"\0\0\0", (1, 1), BadHeader, "1..8 bits, got 0"),
        (b"\x09\0\0", (1, 1), BadHeader, "1..8 bits, got 9"),
        (b"\3\0\0", (1,) * 1025, BadHeader, "1..1024 classes, got 1025"),
        (b"\3\0\5abc", (1, 1), Truncated, "5 more bytes"),
        (b"\3", (1, 1), Truncated, "1 more bytes"),
        (b"\3\0\1a", (1 << 28, 1), BadPayload, "cannot hold the soft labels of 268,435,457 samples"),
        (b"\3\0\1a", (1 << 17,) * 1024, BadPayload, "cannot hold"),
        (b"\3\0\xff\xff\xff\xff\x7f", (1, 1), BadHeader, "length of the soft labels"),
    ],
)
def test_impossible_claims_are_refused_before_memory_is_taken(data, counts, error, message):
    with pytest.raises(error, match=message):
        SoftLabels.read(Reader(data), counts)


def test_a_small_file_cannot_ask_for_much_time():
    """16,000 samples of 255 shares each are stopped after as many as the bytes may hold."""
    data = bytes([8, 0]) + leb128(64) + bytes(64)
    with pytest.raises(BadPayload, match="shares"):
        SoftLabels.read(Reader(data), (16,) * 1000)


def test_flags_of_version_1_are_unchanged():
    data = bytearray(pack(packed()))
    data[3] = 1
    data[-4:] = zlib.crc32(bytes(data[:-4])).to_bytes(4, "little")
    with pytest.raises(BadHeader, match="unknown flags"):
        unpack(bytes(data))
