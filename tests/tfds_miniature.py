"""Small data sets in TFDS' own prepared form."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

FILES = 2  # of each split


def store(data_dir, name, splits, features):
    """Lays a data set down as TFDS does when it prepares one: shards of each split, and metadata.

    Args:
      data_dir: TFDS' folder.
      name: of the data set.
      splits: images and labels of each split, and ids where `features` has them; images as arrays,
        or encoded.
      features: `image` and `label`, or one of them, or more that are then text.
    """
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    for split, arrays in splits.items():
        rows = [
            {
                key: {"image": image, "label": int(label), "id": "".join(ids)}.get(key, "text")
                for key in features
            }
            for image, label, *ids in zip(*arrays, strict=True)
        ]
        for shard, part in enumerate(np.array_split(np.arange(len(rows)), FILES)):
            path = folder / f"{name}-{split}.tfrecord-{shard:05d}-of-{FILES:05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for row in part:
                    example = features.encode_example(rows[row])
                    writer.write(features.serialize_example(example))
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=tfds.folder_dataset.compute_split_info(
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, filetype_suffix="tfrecord"
            )
        ),
    )
