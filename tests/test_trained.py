"""The use of a run's model afterwards: prediction and export."""

import concurrent.futures
import csv
import dataclasses
import io
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from conftest import REPOSITORY
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax
from tiny_net import TinyNet
from whole_run import figures

import crest_jax
from crest_jax import (
    accuracy,
    adjust,
    augment,
    evaluate,
    export,
    files,
    initial_weights,
    job,
    predict,
    self_training,
    trained,
)
from crest_jax.data import decode, loading, manifest
from crest_jax.data.views import View
from crest_jax.errors import ConfigError, DataError, Preempted, WorkdirError
from crest_jax.mesh import data_mesh, replicate
from crest_jax.rebalancing.logit_adjustment import adjustment
from crest_jax.report import __main__ as report_command


@pytest.fixture(scope="module")
def run(tiny_config, make_folder):
    """A run of two generations with DARP, whose state holds more than a model."""
    folder = make_folder("trained") / "run"
    job.run(tiny_config("rebalance=darp+crest"), folder)
    return folder


@pytest.fixture(scope="module")
def test_images(run):
    return loading.load_images(run / "splits" / "test")


@pytest.fixture(scope="module")
def pictures(test_images, make_folder):
    """A folder with the first test images, one in a folder of its own, and something else."""
    folder = make_folder("pictures")
    (folder / "more").mkdir()
    for number, image in enumerate(test_images.images[:7]):
        name = f"more/{number}.png" if number == 6 else f"{number}.png"
        Image.fromarray(image[..., 0]).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def logits_of(model, images):
    """Return the logits of images as evaluations see them."""
    mesh = data_mesh()
    return evaluate.make_logits(model.model, mesh, batch_size=200)(
        *replicate((model.params, model.batch_stats), mesh), images
    )


def run_command(module, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    try:
        module.main()
    except SystemExit as stopped:
        return stopped.code, capsys.readouterr()
    return 0, capsys.readouterr()


# The model of a generation


@pytest.mark.parametrize("generation", [1, 2])
def test_a_models_accuracy_is_that_of_its_last_evaluation(run, test_images, generation):
    model = trained.load(run, generation=generation)
    assert model.generation == generation
    predicted = logits_of(model, test_images.images).argmax(axis=1)
    confusion = accuracy.confusion_matrix(test_images.labels, predicted, 10)
    metrics = run / f"generation_0{generation - 1}" / "metrics.jsonl"
    *_, last = metrics.read_text().splitlines()
    assert confusion.tolist() == json.loads(last)["test"]["ema"]["confusion_matrix"]


def test_the_last_generation_is_taken_by_default(run):
    model = trained.load(run)
    assert model.generation == 2
    assert model.class_names == tuple("0123456789")
    assert model.image_shape == (8, 8, 1)


@pytest.mark.parametrize("generation", [1, 2])
def test_logits_are_adjusted_by_what_the_generation_was_trained_on(run, generation):
    here = run / f"generation_{generation - 1:02d}"
    counts = manifest.read(here / "labeled")["examples_per_class"]
    expected = np.array(counts) / sum(counts)
    model = trained.load(run, generation=generation)
    np.testing.assert_allclose(model.class_distribution, expected)
    recorded = json.loads((here / "result.json").read_text())["logit_adjustment"]
    np.testing.assert_allclose(recorded["class_distribution"], expected)
    if generation == 2:
        assert sum(counts) > sum(manifest.read(run / "splits" / "labeled")["examples_per_class"])


@pytest.mark.parametrize("generation", [1, 2])
def test_evaluations_adjust_as_that_model_does(run, test_images, generation):
    model = trained.load(run, generation=generation)
    logits = logits_of(model, test_images.images) - np.log(model.class_distribution)
    confusion = accuracy.confusion_matrix(test_images.labels, logits.argmax(axis=1), 10)
    *_, last = (run / f"generation_0{generation - 1}" / "metrics.jsonl").read_text().splitlines()
    recorded = json.loads(last)["test"]["ema"]["confusion_matrix_logit_adjusted"]
    assert confusion.tolist() == recorded


def test_from_python_a_run_is_what_its_files_say(run):
    saved = crest_jax.load(str(run))
    assert saved.results == crest_jax.load(pathlib.Path(run)).results
    assert saved.config.rebalance == "darp+crest"
    assert (saved.generations, saved.class_names) == (2, list("0123456789"))
    rows = saved.rows()
    assert [(row["generation"], row["class"]) for row in rows] == [
        (number, str(label)) for number in (1, 2) for label in range(10)
    ]
    first = saved.pseudo_labels(1)
    chosen = first.selected & (first.labels == 0)
    right = 100 * np.mean(first.truth[chosen] == 0) if chosen.any() else None
    assert rows[0]["selected"] == chosen.sum()
    assert rows[0]["right"] == (None if right is None else pytest.approx(right))
    labeled = loading.load_images(run / "generation_01" / "labeled").labels
    assert [row["labeled"] for row in rows[10:]] == np.bincount(labeled, minlength=10).tolist()
    assert rows[13]["recall"] == saved.results["generations"][1]["per_class_recall"][3]
    assert f"accuracy {saved.results['accuracy']:.1f} %" in repr(saved)
    for split in ("labeled", "unlabeled", "test", "validation"):
        ours, theirs = saved.images(split), loading.load_images(run / "splits" / split)
        assert ours.ids == theirs.ids
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        if theirs.ids:
            np.testing.assert_array_equal(ours.images, theirs.images)
        else:
            assert ours.images.shape == (0, 8, 8, 1)
    assert saved.images("unlabeled").ids == first.ids.tolist()
    assert [row["generation"] - 1 for row in rows[::10]] == [
        result["generation"] for result in saved.results["generations"]
    ]
    with pytest.raises(ConfigError, match="split='train' must be one of labeled, unlabeled"):
        saved.images("train")
    with pytest.raises(ConfigError, match="generation=3 must be between 1 and 2"):
        saved.pseudo_labels(3)
    with pytest.raises(crest_jax.WorkdirError, match=r"has no results\.json"):
        crest_jax.load(run / "splits")


def test_predictions_from_python_are_those_of_evaluations(run, test_images):
    model = crest_jax.load(run).model()
    predicted = model.predict(test_images.images)
    logits = logits_of(model, test_images.images)
    np.testing.assert_allclose(predicted.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(predicted.labels, logits.argmax(axis=1))
    np.testing.assert_allclose(predicted.confidence, softmax(logits, axis=1).max(axis=1), rtol=1e-5)
    adjusted = model.predict(test_images.images, tau=0.5)
    expected = logits - 0.5 * np.log(model.class_distribution)
    np.testing.assert_allclose(adjusted.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(adjusted.labels, expected.argmax(axis=1))
    assert model.predict(test_images.images[:0]).logits.shape == (0, 10)
    of_jax = model.predict(jnp.asarray(test_images.images))
    np.testing.assert_array_equal(of_jax.labels, predicted.labels)


def test_images_of_any_size_are_seen_as_the_runs_own_where_it_resizes(run, test_images):
    """They are compared with files of the same images, as evaluations read them."""
    images = test_images.images[:3].repeat(3, axis=1).repeat(2, axis=2)
    for crop in ("none", "central", "random"):
        view = View(8, crop, 1)
        model = dataclasses.replace(trained.load(run), view=view)
        seen = []
        for image in images:
            content = io.BytesIO()
            Image.fromarray(image[..., 0]).save(content, "png")
            seen.append(decode.decode_for_evaluation(content.getvalue(), view).numpy())
        np.testing.assert_array_equal(model._seen(images), np.stack(seen))
    whole = dataclasses.replace(trained.load(run), view=View(8, "none", 1))
    several = [images[0], test_images.images[1], images[2][..., 0]]
    expected = np.stack([*whole._seen(images[:1]), several[1], *whole._seen(images[2:])])
    np.testing.assert_array_equal(whole._seen(several), expected)
    assert whole.predict(np.zeros((0, 9, 9, 1), np.uint8)).labels.shape == (0,)
    np.testing.assert_array_equal(whole._seen(test_images.images), test_images.images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((2, 8, 8, 1), np.float32),
            r"image 0 of type float32 and shape \[8, 8, 1\] must be uint8",
        ),
        (np.zeros((8, 8, 8, 8), np.uint8), r"shape \[8, 8, 8\] must be uint8, .* \[8, 8, 1\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \[8, 8, 3\] must be"),
        ([np.zeros((8, 8), np.uint8), np.zeros((9, 8, 1), np.uint8)], r"image 1 of .* \[9, 8, 1\]"),
        ([[1]], r"image 0 of type int64 and shape \[1\]"),
        (np.float32(3.0), r"images=np\.float32\(3\.0\) must be an array, or a list of arrays"),
        ([[1, [2]]], r"image 0 is \[1, \[2\]\], and must be an array, or lists of which NumPy"),
        ("a.png", r"images='a\.png' must be an array, or a list of arrays"),
    ],
)
def test_images_that_a_model_cannot_take_are_refused(run, images, message):
    with pytest.raises(ConfigError, match=message):
        trained.load(run).predict(images)


@pytest.mark.parametrize("tau", [-1.0, float("nan"), float("inf"), "1", None])
def test_tau_is_a_number_of_at_least_0(run, test_images, monkeypatch, tau):
    monkeypatch.setattr(trained.Trained.predict, "__no_type_check__", True, raising=False)
    with pytest.raises(ConfigError, match=rf"tau={tau!r} must be a number of at least 0"):
        trained.load(run).predict(test_images.images, tau=tau)


class Listed(TinyNet):
    """A model that cannot be hashed, as a user's may be."""

    sizes: list[int] = dataclasses.field(default_factory=lambda: [16])


def test_a_model_need_not_be_hashable(run, test_images):
    model = trained.load(run)
    listed = dataclasses.replace(model, model=Listed(classes=10, batch_norm_momentum=0.8))
    with pytest.raises(TypeError):
        hash(listed.model)
    np.testing.assert_array_equal(
        listed.predict(test_images.images).logits, model.predict(test_images.images).logits
    )


def test_a_model_takes_the_weights_of_another_without_being_compiled_again(
    run, test_images, caplog
):
    model, other = (trained.load(run, generation=generation) for generation in (2, 1))
    expected = other.predict(test_images.images, tau=1.0)
    model.predict(test_images.images, tau=1.0)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        found = model.with_weights_of(other).predict(test_images.images, tau=1.0)
    assert not [each for each in caplog.records if each.getMessage().startswith("Compiling")]
    np.testing.assert_array_equal(found.logits, expected.logits)


ARCHIVED = REPOSITORY / "docs" / "results" / "cifar10" / "cifar10_lt-rebalance=crest-fold=0"


def test_an_archived_run_has_results_alone_and_says_so(tmp_path):
    archived = crest_jax.load(ARCHIVED)
    assert len(archived.rows()) == 10 * archived.generations
    assert archived.config.rebalance == "crest"
    message = "rebalance=crest-fold=0 has the results of a run alone, as archives have: its models"
    for use in (
        lambda: archived.model(),
        lambda: archived.pseudo_labels(1),
        lambda: archived.images("test"),
        lambda: adjust.adjust(ARCHIVED, [1.0]),
        lambda: export.export(ARCHIVED, tmp_path / "model"),
        lambda: initial_weights.read(ARCHIVED),
    ):
        with pytest.raises(WorkdirError, match=message):
            use()


@pytest.mark.parametrize("generation", [0, 3, "1", 1.0])
def test_a_generation_is_a_number_of_one_that_is_there(run, monkeypatch, generation):
    saved = crest_jax.load(run)
    for function in (crest_jax.SavedRun.pseudo_labels, crest_jax.SavedRun.model, trained.load):
        monkeypatch.setattr(function, "__no_type_check__", True, raising=False)
    with pytest.raises(ConfigError, match=rf"generation={generation!r} must be between 1 and 2"):
        saved.pseudo_labels(generation)
    with pytest.raises(ConfigError, match=rf"generation {generation!r} is not one of"):
        saved.model(generation)


def test_what_train_cannot_take_is_one_error(tiny_config, tmp_path, monkeypatch):
    for function in (crest_jax.train, crest_jax.load, crest_jax.experiment, files.given):
        monkeypatch.setattr(function, "__no_type_check__", True, raising=False)
    config, folder = tiny_config(), tmp_path / "run"
    data = crest_jax.arrays(np.zeros((4, 2, 2, 1), np.uint8), [0, 0, 1, 1])
    for wrong in ({"seed": 1}, "digits_lt", None):
        with pytest.raises(ConfigError, match=rf"^config={wrong!r} must be a ConfigDict"):
            crest_jax.train(wrong, folder, data=data)
    for wrong in ("x", 5, data.name):
        with pytest.raises(DataError, match=rf"^data={wrong!r} must be what crest_jax\.arrays"):
            crest_jax.train(config, folder, data=wrong)
    for wrong in ({}, {"data": 1}, {"data": {"name": 1, "test_split": 5}}):
        with pytest.raises(ConfigError, match="is missing"):
            crest_jax.train(ConfigDict(wrong), folder, data=data)
    for use in (lambda path: crest_jax.train(config, path), crest_jax.load):
        for wrong in (None, 5, b"run"):
            with pytest.raises(ConfigError, match=rf"^folder={wrong!r} must be a path"):
                use(wrong)
    with pytest.raises(ConfigError, match=r"^experiment=5 must be a path"):
        crest_jax.experiment(5)
    assert not folder.exists()


def test_a_quiet_run_prints_nothing(run, tiny_config, capsys):
    config = tiny_config("rebalance=darp+crest")
    crest_jax.train(config, run, quiet=True)
    assert capsys.readouterr().out == ""
    crest_jax.train(config, run)
    assert "generation 2: accuracy" in capsys.readouterr().out


def test_from_python_a_run_continues_on_any_thread(run, tiny_config):
    config = tiny_config("rebalance=darp+crest")
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        continued = threads.submit(crest_jax.train, config, str(run)).result()
    assert continued.results == crest_jax.load(run).results
    config.steps = 3
    with pytest.raises(crest_jax.WorkdirError, match="belongs to another config"):
        crest_jax.train(config, run)


def test_a_generation_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"generation 3 is not one of .* finished: 1, 2"):
        trained.load(run, generation=3)
    with pytest.raises(WorkdirError, match="is not a run"):
        trained.load(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(WorkdirError, match="no finished generation"):
        trained.load(tmp_path)


# Predictions


def test_every_image_has_its_class_and_confidence(
    run, pictures, test_images, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "predictions.csv"
    arguments = ["--workdir", run, "--images", pictures, "--output", output]
    status, printed = run_command(
        predict, monkeypatch, capsys, *arguments, "--logit-adjust", "--tau=1.5"
    )
    by = "adjusted by the class distribution that it was trained on"
    assert (status, printed.out) == (0, f"{output}: 7 images, generation 2, {by}\n")
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["file"] for row in rows] == [*(f"{n}.png" for n in range(6)), "more/6.png"]
    model = trained.load(run)
    logits = logits_of(model, test_images.images[:7])
    views = {"": logits, "adjusted_": logits - adjustment(model.class_distribution, 1.5)}
    for prefix, view in views.items():
        expected = softmax(view, axis=1)
        assert [row[f"{prefix}class"] for row in rows] == [str(k) for k in expected.argmax(axis=1)]
        confidence = [float(row[f"{prefix}confidence"]) for row in rows]
        np.testing.assert_allclose(confidence, expected.max(axis=1), atol=1e-5)

    run_command(predict, monkeypatch, capsys, *arguments, "--generation=1")
    (header, first, *_) = output.read_text().splitlines()
    assert header == "file,class,confidence"
    earlier = softmax(logits_of(trained.load(run, generation=1), test_images.images[:1]), axis=1)
    assert float(first.split(",")[2]) == pytest.approx(earlier.max(), abs=1e-5)


def test_images_of_any_kind_become_as_those_trained_on(tmp_path):
    colour = Image.fromarray(np.full((20, 30, 3), (200, 100, 50), np.uint8))
    colour.save(tmp_path / "colour.png")
    colour.convert("P").save(tmp_path / "palette.png")
    grey = predict.read_image(tmp_path / "colour.png", (8, 8, 1), View(), max_pixels=10**6)
    # Luma: 0.299 R + 0.587 G + 0.114 B.
    np.testing.assert_allclose(grey.pixels, 124, atol=1)
    for name in ("colour", "palette"):
        image, _ = predict.read_image(tmp_path / f"{name}.png", (4, 6, 3), View(), max_pixels=10**6)
        assert image.shape == (4, 6, 3)
        np.testing.assert_allclose(image[0, 0], (200, 100, 50), atol=26)  # a palette's nearest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--images": "nowhere"}, "--images=nowhere is not a folder"),
        (
            {"--output": "nowhere/out.csv"},
            "--output=nowhere/out.csv is in a folder that does not exist",
        ),
        ({"--output": "."}, "--output=. is a folder: name a file"),
        ({"--generation": "9"}, "generation 9 is not one of those that are finished: 1, 2"),
        ({"--tau": "-1"}, "--tau=-1.0 must be a number of at least 0"),
    ],
)
def test_a_mistake_is_one_readable_error(
    run, pictures, tmp_path, monkeypatch, capsys, change, message
):
    options = {"--workdir": run, "--images": pictures, "--output": tmp_path / "out.csv", **change}
    arguments = [f"{name}={value}" for name, value in options.items()]
    status, printed = run_command(predict, monkeypatch, capsys, *arguments)
    assert status in (1, 64)
    assert f"error: {message}" in printed.err
    assert not (tmp_path / "out.csv").exists()


def test_how_an_image_was_stored_does_not_show(tmp_path):
    """The images are turned by EXIF, 16 bits deep, or transparent."""
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("turned", "deep"):
        image, _ = predict.read_image(tmp_path / f"{name}.png", (4, 6, 1), View(), max_pixels=10**6)
        np.testing.assert_array_equal(image[..., 0], pixels)
    Image.new("RGBA", (6, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    clear = predict.read_image(tmp_path / "clear.png", (4, 6, 3), View(), max_pixels=10**6)
    assert (clear.pixels == 255).all()


def test_the_central_square_is_what_evaluation_sees(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image, _ = predict.read_image(
        tmp_path / "wide.png", (14, 14, 3), View(14, "central"), max_pixels=10**6
    )
    np.testing.assert_array_equal(image, pixels[1:15, 13:27])  # 7/8 of 16


def test_files_that_cannot_be_read_are_left_out_and_listed(
    run, pictures, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "some"
    shutil.copytree(pictures, folder)
    (folder / "0.png").write_bytes(b"no image")
    (folder / "._1.png").write_bytes(b"what macOS leaves")
    (folder / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "folder.png").mkdir()
    (folder / "2.png").rename(folder / "no ending")
    deep = np.asarray(Image.open(folder / "3.png")).astype(np.uint16) * 16
    Image.fromarray(deep).save(folder / "3.png")
    output = tmp_path / "out.csv"
    arguments = [f"--workdir={run}", f"--images={folder}", f"--output={output}"]
    status, printed = run_command(predict, monkeypatch, capsys, *arguments)
    assert (status, printed.out) == (0, f"{output}: 6 images, generation 2\n")
    left_out, notes, heic, count, guessed = printed.err.splitlines()
    assert left_out.startswith(f"left out: {folder}/0.png cannot be read as an image (it is none")
    assert heic.startswith(f"left out: {folder}/photo.HEIC cannot be read as an image (it is HEIC")
    assert notes.startswith(f"left out: {folder}/notes.txt cannot")
    assert count == "3 of 9 files are left out"
    assert guessed.startswith("1 pictures have 16 bits a channel and do not state")
    assert guessed.endswith("(1 have 12): 3.png")
    assert "\nno ending," in output.read_text()
    assert output.read_text().splitlines()[1].startswith("1.png,")
    for file in pathlib.Path(folder).rglob("*"):
        if file.is_file():
            file.write_bytes(b"no image")
    status, printed = run_command(predict, monkeypatch, capsys, *arguments)
    assert status == 1
    assert "holds no image that can be read" in printed.err


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no file"):
        predict.image_files(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image"):
        predict.read_image(tmp_path / "broken.png", (8, 8, 1), View(), max_pixels=10**6)


# Export


@pytest.fixture(scope="module")
def exported(run, make_folder):
    folder = make_folder("exported") / "model"
    export.export(run, folder)
    return folder


def test_an_exported_model_needs_nothing_of_this_package(run, exported, test_images, tmp_path):
    """It is loaded in another process, for batches of 1 and of 5."""
    np.save(tmp_path / "images.npy", test_images.images[:5])
    script = """
import pathlib, sys
import numpy as np
from jax import export
folder, work = map(pathlib.Path, sys.argv[1:])
model = export.deserialize((folder / "model.jax").read_bytes())
images = np.load(work / "images.npy")
np.savez(work / "logits.npz", five=model.call(images), one=model.call(images[:1]))
assert not {"crest_jax", "flax", "tensorflow"} & set(sys.modules)
assert set(model.platforms) == {"cpu", "cuda", "tpu"}
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, exported, tmp_path],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    logits = np.load(tmp_path / "logits.npz")
    expected = logits_of(trained.load(run), test_images.images[:5])
    np.testing.assert_allclose(logits["five"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits["one"], expected[:1], rtol=1e-4, atol=1e-5)


def test_the_weights_are_there_as_a_plain_checkpoint(run, exported):
    with ocp.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore((exported / "checkpoint").absolute())
    model = trained.load(run)
    expected = {"params": model.params, "batch_stats": model.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, weights, dict(expected))


def test_the_weights_are_there_by_name_for_any_reader_of_safetensors(run, exported):
    model = trained.load(run)
    expected = flatten_dict({"params": model.params, "batch_stats": model.batch_stats}, sep="/")
    found = safetensors.numpy.load_file(exported / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name])


def test_the_description_says_what_becomes_of_an_image(exported, test_images, run):
    described = json.loads((exported / "model.json").read_text())
    assert described["architecture"] == {
        "name": "tiny_net:TinyNet", "depth": 10, "width": 1, "classes": 10
    }  # fmt: skip
    view = described["input"]["view"]
    assert view == {"size": 0, "crop": "none", "channels": 1, "central_part": 0.875}
    scale, offset = described["input"]["scale"], described["input"]["offset"]
    images = test_images.images[:4]
    expected = augment.rescale(jnp.asarray(images))
    np.testing.assert_allclose(scale * images + offset, expected, atol=1e-6)


def test_the_description_says_what_the_logits_are(run, exported):
    described = json.loads((exported / "model.json").read_text())
    model = trained.load(run)
    assert described["class_names"] == list(model.class_names)
    assert described["image_shape"] == [8, 8, 1]
    assert described["generation"] == 2
    np.testing.assert_allclose(described["class_distribution"], model.class_distribution)
    assert described["config"]["rebalance"] == "darp+crest"


def test_a_run_whose_config_has_fewer_fields_can_still_be_used(run, tmp_path):
    """An earlier version of the same format has written such a config."""
    earlier = tmp_path / "run"
    shutil.copytree(run, earlier)
    content = files.read_json(earlier / "config.json")
    for field in ("lanes", "image_size"):
        del content["config"]["data"][field]
    del content["config"]["optimizer"]["warm_up"], content["config"]["precision"]
    files.write_json(earlier / "config.json", content)
    trained.load(earlier)
    shutil.rmtree(earlier / "generation_01" / "checkpoints")
    with pytest.raises(WorkdirError, match="checkpoints is missing"):
        trained.load(earlier)
    assert not (earlier / "generation_01" / "checkpoints").exists()


def test_a_run_in_a_folder_of_any_name_can_be_continued_and_used(
    run, pictures, tiny_config, tmp_path, monkeypatch, capsys
):
    """It was stopped while it scored the first generation, and ends as one with a plain name."""
    place = tmp_path / "My project [1] * \\ gs:"
    config = tiny_config("rebalance=darp+crest")

    def stopped(*_):
        raise Preempted("by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(self_training, "score_unlabeled", stopped)
        with pytest.raises(Preempted):
            job.run(config, place / "run?")
    job.run(config, place / "run?")
    assert figures(place / "run?") == figures(run)

    outputs = [place / f"p[{number}]" for number in range(4)]
    commands = {
        predict: [f"--images={pictures}", f"--output={outputs[0]}"],
        adjust: ["--tau", "0", f"--output={outputs[1]}"],
        report_command: [f"--output={outputs[2]}"],
        export: [f"--output={outputs[3]}"],
    }
    for command, arguments in commands.items():
        where = f"--workdir={place / 'run?'}"
        status, printed = run_command(command, monkeypatch, capsys, where, *arguments)
        assert status == 0, printed
    assert len(outputs[0].read_text().splitlines()) == 8
    adjusted = json.loads(outputs[1].read_text())["generations"][-1]["adjusted"][0]["accuracy"]
    assert adjusted == json.loads((run / "results.json").read_text())["accuracy"]
    (outputs[3] / "checkpoint").rename(tmp_path / "checkpoint")
    test_the_weights_are_there_as_a_plain_checkpoint(run, tmp_path)


def test_what_is_there_is_not_overwritten(run, exported, tmp_path, monkeypatch, capsys):
    status, printed = run_command(
        export, monkeypatch, capsys, f"--workdir={run}", f"--output={exported}"
    )
    assert status == 1
    assert "exists already" in printed.err
    other = tmp_path / "first"
    status, printed = run_command(
        export, monkeypatch, capsys, f"--workdir={run}", f"--output={other}", "--generation=1"
    )
    assert (status, printed.out) == (0, f"{other}: generation 1, 10 classes\n")
    assert json.loads((other / "model.json").read_text())["generation"] == 1
