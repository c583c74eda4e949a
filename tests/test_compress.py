"""`compress`: budgets are kept, symbols that fit are kept, and what is chosen is what the docstrings say."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

import budgetopt
from budgetopt import cli, compression, networks, requantization, sets, storing
from budgetopt.allocation import Allocation
from budgetopt.budget import Budget
from budgetopt.errors import InputError, OverBudget, TrialFailure
from budgetopt.given import prepare
from budgetopt.packing import pack, unpack
from budgetopt.protocol import PRESETS
from budgetopt.representation import InitialSet

PROTOCOL = PRESETS["glyph-1"].model_copy(update={"steps": 20, "width": 8})
SPACE = """
selection = ["random"]
transform = ["identity"]
label_bits = [0, 3]
[[quantizer]]
family = "uniform"
levels = [2, 3, 4, 8, 17]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """`digits.npz`: 200 real digits; `space.toml`: few ways; `quick.toml`: a protocol of 20 steps."""
    path = tmp_path_factory.mktemp("given")
    np.savez(path / "digits.npz", x=digits.train.x[:200], y=digits.train.y[:200])
    (path / "space.toml").write_text(SPACE)
    (path / "quick.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 20\n')
    return path


@pytest.fixture
def compress(folder):
    def run(budget, source="digits.npz", **options):
        chosen = {"space": str(folder / "space.toml"), "protocol": str(folder / "quick.toml")} | options
        return budgetopt.compress(folder / source, budget, **chosen)

    return run


@pytest.fixture(scope="module")
def given(digits):
    order = np.argsort(digits.train.y[:200], kind="stable")
    x, counts = digits.train.x[:200][order].astype(np.float32), np.bincount(digits.train.y[:200])
    spec = dataclasses.replace(digits.spec, class_counts=tuple(counts.tolist()))
    return storing.Given(InitialSet(x, spec.class_counts), spec, PROTOCOL)


# ----------------------------------------------------------------------------------------------------------------------
# what is chosen
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [200, 700, 1500, 3000, 20_000])
def test_budgets_are_kept_and_no_finer_way_holds_all_samples(compress, budget):
    found = compress(budget)
    assert found.bytes == len(found.data) <= budget
    packed = unpack(found.data)
    assert len(packed) == found.chosen.samples <= found.of == 200
    sizes = {levels: compress(10**6, levels=[levels]).bytes for levels in (2, 3, 4, 8, 17)}
    fitting = [levels for levels, size in sizes.items() if size <= budget]
    if fitting:
        assert found.chosen.samples == 200
        assert found.allocation.levels == max(fitting)
    else:
        assert 200 > found.chosen.samples >= compress(budget, levels=[2]).chosen.samples


def test_a_set_that_fits_losslessly_stays_what_it_is(compress, digits):
    x = unpack(compress(20_000).data).decode()
    np.testing.assert_array_equal(x, digits.train.x[:200][np.argsort(digits.train.y[:200], kind="stable")])


def test_what_is_left_out_is_the_end_of_each_class(compress, digits):
    packed = unpack(compress(1500, levels=[17]).data)
    for label, count in enumerate(packed.counts):
        members = digits.train.x[:200][digits.train.y[:200] == label]
        np.testing.assert_array_equal(packed.decode()[packed.labels() == label], members[:count])


def test_a_packed_file_that_fits_keeps_its_symbols(compress, folder):
    first = compress(700, out=folder / "first.bopt")
    again = compress(700, source="first.bopt")
    assert again.allocation is None
    assert again.data == first.data
    fewer = compress(400, source="first.bopt")
    assert fewer.bytes <= 400
    named = compress(700, source="first.bopt", levels=[2])
    assert named.allocation.levels == 2
    (folder / "first.bopt").unlink()


def test_too_small_a_budget(compress, folder):
    with pytest.raises(OverBudget, match=r"budget of 30 bytes .240 bits. is too small"):
        compress(30, out=folder / "never.bopt")
    assert not (folder / "never.bopt").exists()


def test_classes_that_have_no_sample(tmp_path, compress, digits):
    some = np.isin(digits.train.y[:200], [1, 4])
    np.savez(tmp_path / "some.npz", x=digits.train.x[:200][some], y=digits.train.y[:200][some])
    packed = unpack(compress(20_000, source=tmp_path / "some.npz", classes=10).data)
    assert [c > 0 for c in packed.counts] == [label in (1, 4) for label in range(10)]
    assert len(unpack(compress(20_000, source=tmp_path / "some.npz").data).counts) == 5
    with pytest.raises(InputError, match=r"labels are 1\.\.4, expected 0\.\.2"):
        compress(20_000, source=tmp_path / "some.npz", classes=3)


def test_soft_labels_are_stored_where_the_space_has_bits_for_them(tmp_path, compress, digits):
    x, y = digits.train.x[:100].astype(np.float32), digits.train.y[:100]
    soft = 0.9 * torch.eye(10)[torch.from_numpy(y)] + 0.01
    torch.save({"images": torch.from_numpy(x), "labels": soft}, tmp_path / "soft.pt")
    found = compress(20_000, source=tmp_path / "soft.pt")
    assert found.allocation.label_bits == 3
    packed = unpack(found.data)
    ordered = soft.numpy()[np.argsort(y, kind="stable")]
    assert np.abs(packed.targets() - ordered).max() <= 1 / 7
    assert compress(20_000, levels=[2]).allocation.label_bits == 0


def test_the_same_input_gives_the_same_file(compress):
    assert compress(900).data == compress(900).data


# ----------------------------------------------------------------------------------------------------------------------
# with real data
# ----------------------------------------------------------------------------------------------------------------------
def test_validation_decides_where_there_is_data(compress):
    found = compress(900, dataset="digits", trials=3)
    assert all(t.accuracy is not None for t in found.tried)
    assert 2 <= len(found.tried) <= 3
    assert all(t.bytes <= 900 for t in found.tried)
    assert len({t.samples for t in found.tried}) == len(found.tried)  # finer ones hold fewer
    assert found.chosen in found.tried


def test_what_fails_on_the_way_does_not_cost_the_file_that_is_there(compress, monkeypatch):
    def fails(*_):
        raise TrialFailure("diverged: the loss is nan at step 1")

    said = []
    monkeypatch.setattr(requantization, "refine", fails)
    monkeypatch.setattr(requantization, "finetune", fails)
    found = compress(900, dataset="digits", trials=1, refine="after", finetune="dm", steps=2, say=said.append)
    assert [t.how for t in found.tried] == [""]
    assert [line for line in said if line.startswith("not ")] == [
        "not refined after: diverged: the loss is nan at step 1",
        "not fine-tuned by dm: diverged: the loss is nan at step 1",
    ]


def test_nothing_is_changed_after_the_time_limit(compress, monkeypatch):
    monkeypatch.setattr(requantization, "finetune", lambda *_: pytest.fail("tuned"))
    said = []
    found = compress(900, dataset="digits", time_limit=1e-6, finetune="dm", steps=2, say=said.append)
    assert found.bytes <= 900
    assert "not fine-tuned by dm: the time limit is over" in said


def test_methods_match_under_the_invariances_of_the_data(digits, folder):
    brought = sets.read(folder / "digits.npz")
    assert prepare(brought, "glyph-1", 0, digits).spec.invariances == digits.spec.invariances
    assert digits.spec.invariances


def test_options_of_data_that_are_not_there(compress):
    with pytest.raises(InputError, match="--resize 4 is for real data: name them with --dataset"):
        compress(900, resize="4")


def test_no_training_starts_after_the_time_limit(compress):
    found = compress(900, dataset="digits", time_limit=1e-6)
    assert found.tried[0].accuracy is not None
    assert all(t.accuracy is None for t in found.tried[1:])
    assert found.chosen is found.tried[0]


def test_refinement_brings_features_closer(given):
    """PTQ eq. 8–10: also in the features of networks that it has not seen."""
    distortion, allocation = storing.Distortion(given), Allocation(levels=2)
    plain = given.representation(allocation).packed()
    refined = requantization.refine(given, allocation, "after", 100, None, None).eval().packed()
    assert distortion.of(refined) < 0.95 * distortion.of(plain)


@pytest.mark.parametrize(("family", "clipping", "levels"), [("uniform", "learned", 4), ("apot", "half", 7)])
def test_refinement_after_a_refinement_trains_the_quantizer_too(given, monkeypatch, family, clipping, levels):
    """It is fitted anew in between, to parameters that an optimiser from before does not know."""
    seen = []
    run = requantization._run

    def watched(method, representation, steps):
        before = [p.detach().clone() for p in representation.quantizer.parameters()]
        run(method, representation, steps)
        after = list(representation.quantizer.parameters())
        seen.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])

    monkeypatch.setattr(requantization, "_run", watched)
    allocation = Allocation(quantizer=family, clipping=clipping, levels=levels)
    requantization.refine(given, allocation, "both", 3, None, None)
    assert len(seen) == 2
    assert all(any(moved) for moved in seen)


@pytest.mark.parametrize("when", ["before", "after", "both"])
def test_refinement_under_groups(given, when):
    """Without steps nothing changes; with steps what is fitted last is the quantizer of the file, groups and all."""
    allocation = Allocation(quantizer="patches", levels=2, quantizer_options=(("groups", 8), ("side", 4)))
    plain = given.representation(allocation)
    same = requantization.refine(given, allocation, when, 0, None, None)
    torch.testing.assert_close(same.latent, plain.latent)
    refined = requantization.refine(given, allocation, when, 2, None, None)
    assert not torch.allclose(refined.latent, plain.latent)
    packed = refined.eval().packed()
    assert len(packed.dequantizer.low) <= 8
    np.testing.assert_array_equal(unpack(pack(packed)).decode(), packed.decode())


def test_refinement_with_a_trained_network_and_with_a_given_one(tmp_path, compress, folder, digits):
    found = compress(900, dataset="digits", trials=1, refine="after", refine_steps=3)
    assert [t.how for t in found.tried] == ["", "refined after"]
    net = networks.build("convnet", (1, 8, 8), 10, 8, torch.Generator().manual_seed(0))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = compress(900, network=tmp_path / "net.pt", refine="before", refine_steps=3)
    assert found.bytes <= 900
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt' as weights of convnet, width 8: it is no state_dict"):
        compress(900, network=tmp_path / "other.pt", refine="before")


def test_finetuning_goes_on_from_the_set(compress):
    found = compress(700, dataset="digits", trials=1, finetune="dm", steps=2)
    assert [t.how for t in found.tried] == ["", "fine-tuned by dm"]
    assert all(t.bytes <= 700 for t in found.tried)
    assert found.tried[0].data != found.tried[1].data


# ----------------------------------------------------------------------------------------------------------------------
# pure parts
# ----------------------------------------------------------------------------------------------------------------------
def test_finer_and_finer_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ways = [storing.Way(None, float(b), float(d)) for b, d in rng.integers(0, 6, (8, 2))]
        found = storing.finer_and_finer(ways)
        beaten = {
            id(w)
            for w, v in itertools.permutations(ways, 2)
            if v.bytes <= w.bytes
            and v.distortion <= w.distortion
            and (v.bytes, v.distortion) != (w.bytes, w.distortion)
        }
        expected = sorted({(w.bytes, w.distortion) for w in ways if id(w) not in beaten})
        assert [(w.bytes, w.distortion) for w in found] == expected


@pytest.mark.parametrize(
    ("sizes", "samples", "bytes_"), [([(10, 130), (20, 230)], 100, 1030), ([(20, 230)], 40, 460), ([(5, 60)], 5, 60)]
)
def test_predicted_bytes(sizes, samples, bytes_):
    assert storing.predicted(sizes, samples) == bytes_


def test_predictions_are_near_what_is_packed(given):
    candidates = [Allocation(levels=levels) for levels in (2, 4, 8)]
    for way in storing.survey(given, candidates):
        assert way.bytes == pytest.approx(len(pack(given.representation(way.allocation).packed())), rel=0.1)


def test_distortion_of_nothing_changed_is_zero(given):
    distortion = storing.Distortion(given)
    assert distortion.between(given.initial.x, given.initial.x) == 0
    mean = np.broadcast_to(given.initial.x.mean(0), given.initial.x.shape).copy()
    assert distortion.between(given.initial.x, mean) > 0.5


def test_a_file_cut_short_holds_the_first_samples(given):
    packed = given.representation(Allocation(levels=4)).packed()
    short = storing.shortened(packed, 3)
    again = unpack(pack(short))
    rows = storing.first_of_each(packed.counts, 3)
    np.testing.assert_array_equal(again.decode(), packed.decode()[rows])
    np.testing.assert_array_equal(again.labels(), packed.labels()[rows])


# ----------------------------------------------------------------------------------------------------------------------
# the command
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder → (exit code, standard output, standard error)."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["budgetopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


def test_the_command_writes_a_file_that_every_other_command_takes(run, folder, tmp_path):
    code, out, err = run("compress", folder / "digits.npz", "--budget", "1kb", "--space", folder / "space.toml")
    assert (code, err) == (0, "")
    assert "budget 1,000 bytes (8,000 bits)" in out
    assert "digits-1000B.bopt: " in out
    path = tmp_path / "empty" / "digits-1000B.bopt"
    assert path.stat().st_size <= 1000
    assert run("inspect", path)[0] == 0
    assert run("export", path, "--to", "npz")[0] == 0
    code, out, err = run("compress", folder / "digits.npz", "--budget", "1kb")
    assert code == 2
    assert "exists already" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "x"], "cannot read the budget 'x'"),
        (["--refine", "later"], "--refine must be one of none, before, after, both, got 'later'"),
        (["--finetune", "dm"], "--finetune dm needs real data"),
        (["--finetune", "coreset", "--dataset", "digits"], "has no steps"),
        (["--steps", "3"], "--steps are those of --finetune"),
        (["--network", "a.pt"], "--network is what --refine matches"),
        (["--levels", "5"], "offers nothing of 5 levels"),
        (["--levels", "a"], "cannot read --levels 'a'"),
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "0.5,x", "--std", "1"], "cannot read --mean '0.5,x'"),
        (["--space", "nowhere"], "unknown search space 'nowhere'"),
        (["--protocol", "nowhere"], "unknown protocol 'nowhere'"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--trials", "0"], "the trials must be positive, got 0"),
        (["--classes", "0"], "the number of classes must be positive, got 0"),
        (["--seed", "-1"], "the seed must not be negative, got -1"),
        (["--out", "absent/a.bopt"], "no such folder"),
        (["--out", "absent/a.bopt", "--time-limit", "soon"], "cannot read the time 'soon'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(run, folder, tmp_path, options, message):
    given = [] if "--budget" in options else ["--budget", "1kb"]
    space = [] if "--space" in options else ["--space", folder / "space.toml"]
    code, _, err = run("compress", folder / "digits.npz", *given, *space, *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())


def test_a_set_of_another_shape_than_the_data(run, tmp_path, folder):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 5, 5)), y=np.arange(4))
    code, _, err = run("compress", tmp_path / "a.npz", "--budget", 900, "--dataset", "digits")
    assert code == 2
    assert "samples have shape (1, 5, 5), those of digits (1, 8, 8)" in err


@pytest.mark.parametrize("command", ["compress", "merge"])
def test_help_imports_nothing_heavy(command):
    program = (
        f"import sys; sys.argv = ['budgetopt', '{command}', '--help']\n"
        "from budgetopt import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('heavy', {'torch', 'ray', 'optuna', 'numpy', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.endswith("heavy set()\n")
    assert "--budget" in done.stdout


def test_settings_and_units_are_reachable_from_python(given):
    found = compression.compress(
        sets.SampleSet("mine", given.initial.x, given.labels), Budget(900), compression.Settings(levels=(2,))
    )
    assert found.path is None
    assert found.bytes <= 900
