"""ImageNet127 end to end, on a miniature that looks to TFDS like ImageNet: JPEGs of many sizes."""

import csv
import io
import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import load_experiment
from etils.epath import Path
from PIL import Image
from tfds_miniature import store

from crest_jax import job, predict, program, trained
from crest_jax.data import loading, manifest, pseudo_labels, records
from crest_jax.data.views import View
from crest_jax.errors import ConfigError, DataError
from crest_jax.train_step import Constants, DeviceBatch

TABLE = Path(__file__).parent.parent / "third_party" / "imagenet127" / "classes.tsv"
MINIATURE = {
    "steps": 8,
    "eval_every": 4,
    "checkpoint_every": 4,
    "generations": 2,
    "batch_size": 16,
    "unlabeled_ratio": 2,
    "eval_batch_size": 64,
    "data.name": "imagenet_miniature",
    "data.image_size": 16,
    "data.shards": 8,
    "data.lanes": 4,
    "data.window": 64,
    "model.name": "tiny_net:TinyNet",
    "model.depth": 14,
    "augment.operations": ("Brightness", "Rotate"),
    "optimizer.warm_up": 2,
    "optimizer.drops": (4, 6),
    "optimizer.learning_rate": 0.05,
    "ema_decay": 0.5,
}


def picture(rng, number):
    """A JPEG of some size; every ninth is grey."""
    height, width = rng.integers(18, 60, 2)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))[:height, :width]
    file = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert("L") if number % 9 == 0 else image).save(file, "JPEG", quality=80)
    return file.getvalue()


def superclass_of():
    with TABLE.open() as file:
        return {row["wnid"]: row["superclass_name"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def data_dir(make_folder):
    """Images of all 127 superclasses, more of the first ones, from several of their classes."""
    folder = make_folder("tfds")
    rng = np.random.default_rng(0)
    names = tfds.builder("imagenet2012").info.features["label"].names
    groups: dict[str, list[int]] = {}
    for label, wnid in enumerate(names):
        groups.setdefault(superclass_of()[wnid], []).append(label)
    train = [
        members[copy % len(members)]
        for place, members in enumerate(groups.values())
        for copy in range(9 if place < 10 else 3)
    ]
    test = [members[-1] for members in groups.values()]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=names),
            "file_name": tfds.features.Text(),
        }
    )
    splits = {
        split: ([io.BytesIO(picture(rng, n)) for n in range(len(labels))], labels)
        for split, labels in (("train", train), ("validation", test))
    }
    store(folder, "imagenet_miniature", splits, features)
    return folder


def config_of(data_dir, **changes):
    fields = {"data.data_dir": str(data_dir), **MINIATURE, **changes}
    return load_experiment("imagenet127", "rebalance=crest_plus,beta=0.4", **fields)


@pytest.fixture(scope="module")
def finished(data_dir, make_folder):
    folder = make_folder("imagenet127") / "run"
    job.run(config_of(data_dir), folder)
    return folder


def results_of(folder):
    """Return results that must not depend on when a run was stopped."""
    results = json.loads((folder / "results.json").read_text())
    timed = ("seconds", "images_per_second", "environment")
    return [
        {key: value for key, value in each.items() if key not in timed}
        for each in results["generations"]
    ]


def test_it_has_127_classes_with_nature_s_sizes_of_which_a_part_is_labeled(finished):
    results = json.loads((finished / "results.json").read_text())
    assert len(results["class_names"]) == 127
    assert set(results["class_names"]) == set(superclass_of().values())
    first = results["generations"][0]
    sizes = np.add(first["labeled_per_class"], first["pseudo_labels"]["examples"])
    assert sorted(sizes.tolist()) == [3] * 117 + [9] * 10
    np.testing.assert_array_equal(first["labeled_per_class"], np.ceil(0.4 * sizes))
    recalls = first["per_class_recall"]
    assert first["accuracy"] == pytest.approx(np.mean(recalls))
    described = manifest.read(finished / "splits" / "test")
    assert described["examples_per_class"] == [1] * 127
    assert described["image_shape"] is None


def test_jpegs_are_copied_as_they_are_stored(finished, data_dir):
    stored = {
        tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]
        for file in data_dir.glob("imagenet_miniature/1.0.0/*-train.tfrecord-*")
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    }
    chosen = pseudo_labels.read(finished / "generation_00" / "pseudo_labels")
    selected = {chosen.ids[row].decode() for row in np.flatnonzero(chosen.selected)}
    assert selected
    labeled = list(records.read(finished / "generation_01" / "labeled"))
    assert all(example.image in stored for example in labeled)
    original = {example.id for example in records.read(finished / "splits" / "labeled")}
    assert {example.id for example in labeled} == original | selected


def test_a_run_that_was_stopped_in_the_middle_ends_with_the_same_figures(
    finished, data_dir, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in ("results.json", "generation_01/result.json"):
        (folder / path).unlink()
    for path in ("generation_01/pseudo_labels", "generation_01/checkpoints/8"):
        shutil.rmtree(folder / path)
    job.run(config_of(data_dir), folder)
    assert results_of(folder) == results_of(finished)


def test_its_model_sees_the_middle_of_ones_own_images(finished, tmp_path):
    (tmp_path / "image.jpg").write_bytes(picture(np.random.default_rng(1), 1))
    model = trained.load(finished)
    assert (model.image_shape, model.view) == ((16, 16, 3), View(16, "random"))
    files, logits, wrong = predict.logits_of(model, [tmp_path / "image.jpg"])
    assert (len(files), logits.shape, wrong) == (1, (1, 127), [])


def test_the_papers_own_step_of_resnet_50_gives_the_state_that_it_takes(finished, data_dir):
    """The step is traced and not compiled, at the paper's sizes on 8 devices."""
    config = load_experiment("imagenet127")
    config.data.image_size = MINIATURE["data.image_size"]
    loaded = loading.load(config.data, finished / "splits")
    config.data.image_size = 224
    built = program.build(config, loaded._replace(image_shape=(224, 224, 3)))
    key = jax.random.key(0)
    state = jax.eval_shape(built.new_state, key)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sizes == 23_768_255  # ResNet-50 with 127 classes
    labeled, unlabeled = 1024, 5 * 1024
    batch = DeviceBatch(
        jax.ShapeDtypeStruct((1, labeled, 224, 224, 3), np.uint8),
        jax.ShapeDtypeStruct((1, labeled), np.int32),
        jax.ShapeDtypeStruct((1, unlabeled, 224, 224, 3), np.uint8),
        jax.ShapeDtypeStruct((1, unlabeled), np.int32),
    )
    number = jax.ShapeDtypeStruct((), np.float32)
    by_class = jax.ShapeDtypeStruct((127,), np.float32)
    inputs = Constants(jax.eval_shape(lambda: key), number, by_class, by_class)
    after, metrics = jax.eval_shape(built.train_steps, state, batch, inputs)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {"loss", "above_threshold"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.lanes": 3}, "batch_size=16 must be divisible by data.lanes=3"),
        ({"data.shards": 6}, "data.shards=6 must be divisible by data.lanes=4"),
        ({"data.stream": False}, "data.lanes=4 must be 1 unless data.stream=True"),
        ({"optimizer.drops": (6, 4)}, "optimizer.drops=.* must be steps in ascending order"),
        ({"optimizer.drops": (4, 8)}, "optimizer.drops=.* between 1 and 7"),
        ({"optimizer.warm_up": 9}, "optimizer.warm_up=9 must be at most steps=8"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_any_work(data_dir, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        job.run(config_of(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_different_sizes_need_one_to_be_resized_to(data_dir, tmp_path):
    as_stored = {"data.image_size": 0, "data.crop": "none"}
    with pytest.raises(DataError, match=r"images differ in shape: set --config.data.image_size"):
        job.run(config_of(data_dir, **as_stored), tmp_path / "run")
