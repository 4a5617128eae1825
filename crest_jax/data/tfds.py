"""The data sets of TensorFlow Datasets (TFDS)."""

import socket
import string
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils.epath import Path
from jaxtyping import Int

from crest_jax import files
from crest_jax.data.sources import Example, Source
from crest_jax.data.tensorflow import tf
from crest_jax.errors import DataError

# The namespaces of the data sets that the community maintains, as TFDS 4.9 registers them.
NAMESPACES = ("huggingface", "kubric", "robotics")
_PATIENCE = 5.0  # seconds in which a host of a data set must answer
_HOSTS = 3  # the number of hosts of a data set that are tried


def source(name: str, *, data_dir: str, download: bool, test_split: str) -> Source:
    """Return a data set of TensorFlow Datasets (TFDS).

    The ids of its examples are those of TFDS, which name a shard and a position in it.

    Args:
      name: the TFDS name.
      data_dir: as for `catalog.load`.
      download: as for `catalog.load`.
      test_split: as for `catalog.load`.

    Raises:
      DataError: As for `catalog.load`. The source's `labels` raises it if an image has a label
        that is not a class; its `order` raises it if the ids do not number the images of a class.
    """
    import tensorflow_datasets as tfds

    # The default of TFDS begins with `~` if there is no home folder.
    where = files.given(data_dir or tfds.core.constants.DATA_DIR, "data.data_dir")
    try:
        builder = tfds.builder(name, data_dir=str(where) if data_dir else None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise DataError(
            f"data.name={name!r}: TFDS knows no such data set or version, and {where} holds none; "
            "see https://www.tensorflow.org/datasets/catalog for the names"
        ) from error
    if not builder.is_prepared():
        if not download:
            raise DataError(
                f"data set {name!r} is not in {where}: set --config.data.data_dir to the folder "
                "that holds it, or --config.data.download=True to fetch it"
            )
        try:
            _check_reachable(builder.url_infos or (), where / "downloads")
            builder.download_and_prepare()
        except Exception as error:  # downloads raise many kinds: network, disk, checksum
            raise DataError(
                f"data set {name!r} is not in {where} and could not be downloaded "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                "prepare it where there is a network, and set --config.data.data_dir to the folder "
                "that holds it; with --config.data.download=False no download is tried"
            ) from error
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    missing = kinds.keys() - set(builder.info.features)
    if missing:
        raise DataError(
            f"data set {name!r} has no {' and no '.join(sorted(missing))}; it has "
            f"{', '.join(builder.info.features)}: choose one of images with a class each"
        )
    if not all(isinstance(builder.info.features[key], kind) for key, kind in kinds.items()):
        raise DataError(
            f"data set {name!r} does not have images that belong to one class each: choose another"
        )
    _check_splits(name, test_split, list(builder.info.splits))
    stored_as = {"train": "train", "test": test_split}
    mend = {"train": "prepare it without them", "test": "choose another --config.data.test_split"}
    class_names = tuple(builder.info.features["label"].names)

    def read(
        split: str, features: set[str], decoders: dict[str, Any] | None = None
    ) -> tf.data.Dataset:
        return builder.as_dataset(
            split=stored_as[split],
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(features, decoders=decoders),
            read_config=tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        )

    def labels(split: str) -> Int[np.ndarray, " examples"]:
        chunks = read(split, {"label"}).batch(1000).as_numpy_iterator()
        found = np.concatenate([chunk["label"] for chunk in chunks])
        strange = found[(found < 0) | (found >= len(class_names))]
        if len(strange):
            raise DataError(
                f"data set {name!r}: {len(strange)} of the {len(found)} images of its split "
                f"{stored_as[split]!r} have a label that is not a class, such as {strange[0]}, "
                f"with which TFDS marks images of unknown class: {mend[split]}"
            )
        return found

    def examples(split: str) -> Iterator[Example]:
        skip = {"image": tfds.decode.SkipDecoding()}
        for row in read(split, {"image", "label"}, skip).as_numpy_iterator():
            yield Example(row["tfds_id"].decode(), row["image"], int(row["label"]))

    def order() -> Int[np.ndarray, " examples"]:
        """Return the rows, sorted by the number at the end of their ids, such as train_00042."""
        ids = [row["id"].decode() for row in read("train", {"id"}).as_numpy_iterator()]
        prefixes = [each.rstrip(string.digits) for each in ids]
        numbers = [each[len(prefix) :] for each, prefix in zip(ids, prefixes, strict=True)]
        # All images of a class must have the same prefix; several classes may share one.
        of_classes = set(zip(labels("train").tolist(), prefixes, strict=True))
        repeated = len(set(ids)) < len(ids)
        if not all(numbers) or repeated or len(of_classes) > len(class_names):
            raise DataError(
                f"the ids of data set {name!r}, such as {ids[0]!r}, do not number the images of a "
                "class, so that their original order is not known: set "
                "--config.long_tail.split=random"
            )
        return np.argsort([int(number) for number in numbers], kind="stable")

    return Source(
        name,
        class_names,
        labels,
        examples,
        order=order if "id" in builder.info.features else None,
        channels=1 if builder.info.features["image"].shape[-1] == 1 else 3,
    )


def _check_reachable(urls: Iterable[str], downloads: Path) -> None:
    """Check that there is a network, since TFDS tries for minutes to download without one.

    Nothing is checked where a proxy reaches the hosts, or where files were downloaded before.

    Args:
      urls: what TFDS would download, as far as it is known.
      downloads: the folder in which TFDS keeps what it has downloaded.

    Raises:
      ConnectionError: None of the hosts can be reached.
    """
    ports = {"http": 80, "https": 443}
    parsed = map(urllib.parse.urlsplit, urls)
    hosts = {
        (url.hostname, url.port or ports[url.scheme])
        for url in parsed
        if url.hostname and url.scheme in ports
    }
    has_some = any(any(downloads.glob(pattern)) for pattern in ("*.INFO", "*/*.INFO"))
    if not hosts or urllib.request.getproxies() or has_some:
        return
    # TFDS looks for some data sets in its own bucket first.
    tried = [*sorted(hosts)[:_HOSTS], ("storage.googleapis.com", 443)]
    for host in tried:
        try:
            socket.create_connection(host, timeout=_PATIENCE).close()
        except OSError as error:
            reason = files.reason(error)
        else:
            return
    raise ConnectionError(f"{tried[0][0]} cannot be reached: {reason}")


def _check_splits(name: str, test_split: str, there: Sequence[str]) -> None:
    """Check that a TFDS data set has the splits to train and test on.

    Args:
      name: the name of the data set.
      test_split: the split to test on; empty to test on a part of `train`.
      there: the splits of the data set.

    Raises:
      DataError: There is no `train` split, or `test_split` is `train` or does not exist.
    """
    if "train" not in there:
        raise DataError(
            f"data set {name!r} has no split 'train' to train on; it has {', '.join(there)}"
        )
    others = [split for split in there if split != "train"]
    if test_split and test_split not in others:
        why = "is trained on" if test_split == "train" else "is none of its splits"
        rest = f"there is {', '.join(others)}" if others else "it has no split but 'train'"
        raise DataError(
            f"data set {name!r} cannot be tested on data.test_split={test_split!r}, which {why}: "
            f"{rest}; and --config.data.test_split= holds out data.test_fraction of each class of "
            "'train'"
        )
