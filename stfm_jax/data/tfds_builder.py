"""A data set written with tensorflow-datasets, without TensorFlow: for interchange and pipelines.

`--mode=export` calls `write`, and `data.reader=tfds` reads it (`readers/tfds.py`). Anywhere else,
without this project:

    import tensorflow_datasets as tfds
    builder = tfds.builder_from_directory(folder)     # folder: .../stfm_slides/1.0.0
    records = builder.as_data_source(split="TENX95")  # as in tfds_layout.record_fields
    folds = builder.info.metadata["folds"]            # and the gene panel; see _metadata

What fails without TensorFlow is avoided: tfrecord files, `tfds.load`, tensors with two unknown
dimensions, and sorting more than 1,000 MiB of a split through temporary files (so building holds
the records of one slide in memory: 2.5 GiB for 600,000 spots of 1,024 features).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from stfm_jax.data import tfds_layout as layout
from stfm_jax.data.datasets import Dataset
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

SPOTS_PER_RECORD = 4096  # 16 MiB of 1,024 features


class Slides(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Any `Dataset` whose slides have counts. Splits are slides; records are as in `tfds_layout`.

    The metadata have what belongs to all slides: see `_metadata`.
    """

    name = layout.NAME
    VERSION = tfds.core.Version(layout.VERSION)
    # Found by tfds through importlib_resources otherwise, which it uses but does not require.
    code_path = tfds.core.Path(__file__)

    def __init__(self, *, dataset: Dataset, spots_per_record: int = SPOTS_PER_RECORD, **options):
        """
        Args:
          dataset: to be written.
          spots_per_record: at most so many spots to a record.
          options: of `tfds.core.GeneratorBasedBuilder`.

        Raises:
          InputError: features of different widths.
        """
        if spots_per_record < 1:
            raise InputError(f"spots_per_record must be at least 1, found {spots_per_record}.")
        self._dataset, self._spots = dataset, spots_per_record
        super().__init__(file_format="array_record", **options)

    def download_and_prepare(self, **options) -> None:
        """Builds the data set; options as in tfds. `write` is the way to call it."""
        with _sorting_in_memory():
            super().download_and_prepare(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Spatial transcriptomics: spots of one slide per split.",
            features=layout.record_fields(self._dataset.all),
            metadata=tfds.core.MetadataDict(_metadata(self._dataset)),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        slides = self._dataset.all
        return {layout.split_name(slide.name): self._generate_examples(slide) for slide in slides}

    def _generate_examples(self, slide: Slide) -> Iterator[tuple[int, dict]]:
        for first in range(0, slide.num_spots, self._spots):
            end = min(first + self._spots, slide.num_spots)
            yield first, layout.record(slide, first, end, self.info.features)


def _metadata(dataset: Dataset) -> dict[str, Any]:
    """Numbers of spots by slide, in order; folds; the gene panel, if any; how folds were made."""
    return {
        "slides": {slide.name: slide.num_spots for slide in dataset.all},
        "encoders": sorted({slide.encoder or "" for slide in dataset.all}),
        "folds": [dataclasses.asdict(fold) for fold in dataset.folds],
        "genes": dataset.genes,
        "folds_from": dataset.folds_from,
    }


def destination(dataset: Dataset, out_dir: str | Path) -> Path:
    """The folder that `write` makes: `<out_dir>/stfm_slides/<version>`.

    Raises:
      InputError: it is already there; or two slides give one split name.
    """
    splits: dict[str, str] = {}
    for name in dataset.slides:
        other = splits.setdefault(layout.split_name(name), name)
        if other != name:
            raise InputError(
                f"slides {other!r} and {name!r} cannot be told apart in a data set of "
                "tensorflow-datasets, where names have letters, digits and '_' only; rename one."
            )
    folder = Path(out_dir) / layout.NAME / layout.VERSION
    if folder.exists():
        raise InputError(
            f"{folder}: is already there; read it by --config.data.reader=tfds "
            "--config.data.dir=FOLDER, or delete it to export again."
        )
    return folder


def write(dataset: Dataset, out_dir: str | Path, **options) -> Path:
    """Writes a data set whole or not at all.

    Args:
      out_dir: see `destination`.
      options: keyword arguments of `Slides`.

    Returns:
      the folder of the data set.

    Raises:
      InputError: as `destination` and `Slides`; or a record would be larger than 2 GiB.
      OSError: the disk (or quota) is full.
    """
    folder = destination(dataset, out_dir)
    builder = Slides(dataset=dataset, data_dir=out_dir, **options)
    tfds.disable_progress_bar()
    said = contextlib.redirect_stdout(io.StringIO())  # that it downloads a data set
    with _whole_or_not_at_all(folder), said, tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads)
    return folder


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[None]:
    """Removes the two folders above, where a failure leaves them empty; tells of a full disk."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
        for code in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(code) in str(error):  # array_record raises RuntimeError
                raise OSError(code, os.strerror(code), str(folder)) from error
        raise


@contextlib.contextmanager
def _sorting_in_memory() -> Iterator[None]:
    """Keeps tfds from sorting large splits through temporary files, which needs TensorFlow."""
    limit = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit
