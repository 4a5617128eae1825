"""Runs on one's own images: the model's inputs, and results where the truth is not known."""

import csv
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import TINY, load_experiment
from PIL import Image
from sklearn.datasets import load_digits

from crest_jax import batches, job, plan, predict, program, report, trained
from crest_jax.data import loading, pseudo_labels, records, views
from crest_jax.data.sources import UNKNOWN
from crest_jax.errors import DataError
from crest_jax.layout import RunFolder
from crest_jax.program import Run

LABELED = (24, 18, 9, 4)
UNLABELED = 17  # of each class


@pytest.fixture(scope="module")
def photos(make_folder):
    """Digits 0 to 3 as pictures of several kinds and sizes."""
    folder = make_folder("photos")
    bunch = load_digits()
    for label, count in enumerate(LABELED):
        rows = np.flatnonzero(bunch.target == label)[: count + UNLABELED]
        for number, row in enumerate(rows):
            grey = Image.fromarray((bunch.images[row] * (255 / 16)).astype(np.uint8))
            image = grey.resize((16 + number % 5, 16)).convert("RGB" if number % 2 else "L")
            ending = ("png", "jpg", "webp")[number % 3]
            name = f"labeled/{label}" if number < count else "unlabeled"
            path = folder / name / f"{row}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(pathlib.Path(path))
    return folder


@pytest.fixture(scope="module")
def config_of(photos):
    def load(arguments="", **overrides):
        own = {"data.labeled": f"{photos}/labeled", "data.image_size": 12}
        return load_experiment("image_folder", arguments, **{**TINY, **own, **overrides})

    return load


@pytest.fixture(scope="module")
def unlabeled(photos):
    return {"data.unlabeled": f"{photos}/unlabeled", "long_tail.beta": 1.0}


@pytest.fixture(scope="module")
def run(config_of, unlabeled, make_folder):
    folder = make_folder("own") / "run"
    job.run(config_of(**unlabeled), folder)
    return folder


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} has {constant}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# What was read


def test_results_name_what_was_read_whatever_a_later_command_says(
    run, config_of, unlabeled, photos, tmp_path, capsys
):
    """Data may move within a run; it is not read again."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "results.json").unlink()
    job.run(config_of(**unlabeled | {"data.unlabeled": "/nowhere"}), folder)
    before, after = strict_json(run / "results.json"), strict_json(folder / "results.json")
    assert after["data"] == f"image_folder {photos}/labeled {photos}/unlabeled"
    assert before == after
    assert "nowhere" not in (folder / "report.html").read_text()


# Where the truth is not known


def test_results_say_what_is_known_and_nothing_else(run):
    results = strict_json(run / "results.json")
    assert results["class_names"] == list("0123")
    sizes = results["splits"]
    held_out = [round(0.2 * count) for count in LABELED]
    assert sizes["test"] == {"images": sum(held_out), "per_class": held_out, "held_out": True}
    labeled = [count - out for count, out in zip(LABELED, held_out, strict=True)]
    assert sizes["labeled"] == {"images": sum(labeled), "per_class": labeled}
    assert sizes["unlabeled"] == {"images": 4 * UNLABELED, "per_class": None}
    for generation in results["generations"]:
        said = generation["pseudo_labels"]
        assert sum(said["predicted"]) == 4 * UNLABELED
        for name in ("examples", "precision", "selected_precision", "recall"):
            assert said[name] == [None] * 4
        assert None not in generation["per_class_recall"]
    for path in run.glob("generation_*/result.json"):
        strict_json(path)


def test_the_truth_of_pseudo_labels_is_unknown_and_they_are_trained_on_all_the_same(run):
    scored = pseudo_labels.read(run / "generation_00" / "pseudo_labels")
    assert set(scored.truth.tolist()) == {UNKNOWN}
    chosen = np.flatnonzero(scored.selected)
    assert len(chosen)
    labeled = {e.id: e.label for e in records.read(run / "generation_01" / "labeled")}
    for row in chosen:
        assert labeled[scored.ids[row].decode()] == scored.labels[row]
    assert UNKNOWN not in labeled.values()
    original = {e.id for e in records.read(run / "splits" / "labeled")}
    assert len(labeled) == len(original) + len(chosen)


def test_the_report_claims_no_precision(run, tmp_path):
    report.write(tmp_path / "page.html", [run])
    page = (tmp_path / "page.html").read_text()
    assert "classes of the unlabeled images are not known" in page
    assert "held out of those given as labeled" in page
    assert "right (%)" not in page
    assert "nan" not in page.lower()


@pytest.mark.parametrize("stream", [False, True])
def test_the_unlabeled_stream_is_all_training_images(config_of, unlabeled, run, stream):
    """As in the paper, it includes the labeled images, whose classes are known."""
    config = config_of(**unlabeled, **{"data.stream": stream})
    loaded = loading.load(config.data, run / "splits")
    built = program.build(config, loaded)
    found = list(batches.on_host(Run(RunFolder(run), loaded, built), 0)(start=0))
    seen = {image.tobytes() for batch in found for image in batch.unlabeled}
    everything = records.joined([loaded.labeled.images, loaded.unlabeled.images])
    # 12 steps of 16 images are more than an epoch.
    assert seen == {image.tobytes() for image in everything.images}
    assert {label for batch in found for label in batch.labels} == set(range(4))


# Dry runs


UNLABELED_TOO = {"data.unlabeled": "{photos}/unlabeled", "long_tail.beta": 1.0}
HELD_OUT = [round(0.2 * count) for count in LABELED]
REST = [count - out for count, out in zip(LABELED, HELD_OUT, strict=True)]
NOT_KNOWN = ["?"] * 4


@pytest.mark.parametrize(
    ("given", "table"),
    [
        (UNLABELED_TOO, {"labeled": REST, "unlabeled": NOT_KNOWN, "test": HELD_OUT}),
        (
            {**UNLABELED_TOO, "data.test": "{photos}/all.csv", "data.stream": True},
            {"labeled": LABELED, "unlabeled": NOT_KNOWN, "test": LABELED},
        ),
        (
            {**UNLABELED_TOO, "data.validation_fraction": 0.5},
            {
                "labeled": [-(-count // 2) for count in REST],
                "unlabeled": NOT_KNOWN,
                "test": HELD_OUT,
                "validation": [count // 2 for count in REST],
            },
        ),
        (
            {"long_tail.beta": 0.5},
            {
                "labeled": [-(-count // 2) for count in REST],
                "unlabeled": [count // 2 for count in REST],
                "test": HELD_OUT,
            },
        ),
    ],
)
def test_a_dry_run_counts_by_class_what_is_known(
    config_of, photos, tmp_path, monkeypatch, capsys, given, table
):
    rows = [f"labeled/{path.parent.name}/{path.name},{path.parent.name}"
            for path in (photos / "labeled").glob("*/*")]  # fmt: skip
    (photos / "all.csv").write_text("\n".join(["path,label", *rows]))
    fields = {
        name: value.format(photos=photos) if isinstance(value, str) else value
        for name, value in given.items()
    }
    monkeypatch.setattr(plan, "measure", lambda *_: plan.Pace(1.0, 1.0, 1.0, 1))
    job.dry_run(config_of(**fields), tmp_path / "run")
    printed = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(printed) if line.startswith("class"))
    shown = printed[start : start + 5]
    assert len(set(map(len, shown))) == 1, "columns are aligned"
    counts = zip(*table.values(), strict=True)
    expected = [["class", *table], *([str(label), *map(str, c)] for label, c in enumerate(counts))]
    assert [line.split() for line in shown] == expected


# What a model sees


@pytest.mark.parametrize("crop", ["none", "central", "random"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_is_seen_by_prediction_as_by_evaluation(
    config_of, unlabeled, run, photos, crop, stream
):
    config = config_of(**unlabeled, **{"data.crop": crop, "data.stream": stream})
    loaded = loading.load(config.data, run / "splits")
    view = views.view_of(config.data, 3)
    for split in (loaded.unlabeled, loaded.test):
        for name, evaluated in zip(split.images.ids, split.images.images, strict=True):
            seen = predict.read_image(photos / name, loaded.image_shape, view, max_pixels=10**6)
            np.testing.assert_array_equal(seen.pixels, evaluated)


def test_predictions_are_those_of_the_scoring(run, photos, tmp_path, monkeypatch):
    output = tmp_path / "predictions.csv"
    arguments = [f"--workdir={run}", f"--images={photos}/unlabeled", f"--output={output}"]
    monkeypatch.setattr("sys.argv", ["predict", *arguments])
    predict.main()
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    found = {f"unlabeled/{row['file']}": (row["class"], float(row["confidence"])) for row in rows}
    scored = pseudo_labels.read(run / "generation_01" / "pseudo_labels")
    assert len(found) == len(scored.ids)
    for name, label, confidence in zip(scored.ids, scored.labels, scored.confidence, strict=True):
        assert found[name.decode()] == (str(label), pytest.approx(confidence, abs=1e-4))


def test_a_picture_of_too_many_pixels_is_not_predicted(photos):
    path = next((photos / "labeled" / "0").iterdir())
    with pytest.raises(DataError, match=r"pixels are more than data\.max_pixels=99"):
        predict.read_image(path, (12, 12, 3), views.View(12), max_pixels=99)


# Where the truth is known


def test_without_unlabeled_images_a_part_of_the_labels_is_put_aside(config_of, tmp_path):
    config = config_of("beta=0.4,rebalance=crest+rs", **{"data.crop": "random"})
    job.run(config, tmp_path / "run")
    assert trained.load(tmp_path / "run").view == views.View(12, "random")
    results = strict_json(tmp_path / "run" / "results.json")
    train = [count - round(0.2 * count) for count in LABELED]
    labeled = np.ceil(0.4 * np.array(train)).astype(int).tolist()
    assert results["splits"]["labeled"]["per_class"] == labeled
    aside = [count - kept for count, kept in zip(train, labeled, strict=True)]
    assert results["splits"]["unlabeled"]["per_class"] == aside
    assert results["pseudo_labels"]["examples"] == aside


def test_images_as_they_are_stored_must_be_of_one_shape_in_all_splits(config_of, tmp_path):
    labeled = [(f"labeled/{label}/{number}", 8) for label in range(2) for number in range(2)]
    for name, side in [*labeled, ("unlabeled/1", 9)]:
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side)).save(pathlib.Path(path))
    where = {"data.labeled": f"{tmp_path}/labeled", "data.unlabeled": f"{tmp_path}/unlabeled"}
    config = config_of(**where, **{"long_tail.beta": 1.0, "data.image_size": 0})
    with pytest.raises(DataError, match=r"labeled \(8, 8, 1\), unlabeled \(9, 9, 1\), test "):
        job.run(config, tmp_path / "run")
