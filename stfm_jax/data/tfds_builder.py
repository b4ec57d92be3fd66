"""HEST-bench as a tensorflow-datasets data set, without TensorFlow: for interchange and pipelines.

A slide is a split; its spots are spread over records of a few thousand, since one record must stay
below 2 GiB. Images are not included (embeddings are, where asked for). To build and read back:

    from stfm_jax.data import tfds_builder
    folder = tfds_builder.write(root, "IDC", "out", embed_root=embed, encoder="uni_v1_official")
    slide = tfds_builder.read_slide(folder, "TENX95")       # folder: out/hest_bench/IDC/1.0.0

and anywhere, without this project:

    import tensorflow_datasets as tfds
    records = tfds.builder_from_directory(folder).as_data_source(split="TENX95")

Training reads the HEST files themselves, which is seventeen times faster. What fails without
TensorFlow is avoided: tfrecord files, `tfds.load`, tensors with two unknown dimensions, and
sorting more than 1,000 MiB of a split through temporary files (so building holds the records of one
slide in memory: 2.5 GiB for 600,000 spots of 1,024 features).
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from stfm_jax.data.hdf5 import open_hdf5
from stfm_jax.data.readers import hest
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

SPOTS_PER_RECORD = 4096  # 16 MiB of 1,024 features
RECORD_BYTES = 2**31 - 2**24  # protocol buffers end at 2 GiB; the rest is for names and headers
_TEXTS = ("barcodes", "genes", "name", "spatial_unit", "encoder", "patient", "section", "source")


class HestBench(tfds.core.GeneratorBasedBuilder):
    """One HEST-bench task. Splits are sample ids, with `_` for what a split's name cannot hold.

    A record holds m neighbouring rows of one slide, the first of which is row `first_spot`:
    `coords_um`, `coords_in` [m, 2]; `features` [m, f] if built with embeddings; counts as a CSR
    matrix in `counts_data`, `counts_indices`, `counts_indptr`; `barcodes` and `genes`, one a line;
    `z_um` (NaN if not known), and the other texts of `Slide` (empty if not known).
    """

    VERSION = tfds.core.Version("1.0.0")
    # Found by tfds through importlib_resources otherwise, which it uses but does not require.
    code_path = tfds.core.Path(__file__)

    def __init__(
        self,
        *,
        root: str | Path,
        task: str,
        samples: Sequence[str] | None = None,
        embed_root: str | Path | None = None,
        encoder: str | None = None,
        spots_per_record: int = SPOTS_PER_RECORD,
        **options,
    ):
        """
        Args:
          root, task, embed_root, encoder: as `hest.read` takes them.
          samples: sample ids; all of the task's folds by default.
          spots_per_record: at most so many spots to a record.
          options: of `tfds.core.GeneratorBasedBuilder`.

        Raises:
          FileNotFoundError, InputError: as `hest.splits`; or two sample ids give one split name.
        """
        if spots_per_record < 1:
            raise InputError(f"spots_per_record must be at least 1, found {spots_per_record}.")
        self._samples = list(hest.samples(root, task) if samples is None else samples)
        names = {split_name(sample) for sample in self._samples}
        if not self._samples or len(names) < len(self._samples):
            raise InputError(
                f"task {task}: expected samples whose ids differ in letters and digits, found "
                f"{len(self._samples)} ids and {len(names)} different ones."
            )
        self._root, self._task, self._spots = root, task, spots_per_record
        self._embedding = {"embed_root": embed_root, "encoder": encoder}
        self._width = None
        if embed_root is not None and encoder is not None:
            self._width = _width(hest.embedding_path(embed_root, task, encoder, self._samples[0]))
        config = tfds.core.BuilderConfig(name=task, description=f"HEST-bench task {task}")
        super().__init__(config=config, file_format="array_record", **options)

    def download_and_prepare(self, **options) -> None:
        """Builds the data set; options as in tfds. `write` is the way to call it."""
        with _sorting_in_memory():
            super().download_and_prepare(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="HEST-bench: spots of one slide per split.",
            features=tfds.features.FeaturesDict(_fields(self._width)),
            homepage="https://github.com/mahmoodlab/HEST",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split_name(sample): self._generate_examples(sample) for sample in self._samples}

    def _generate_examples(self, sample: str) -> Iterator[tuple[int, dict]]:
        slide = hest.read(self._root, self._task, sample, **self._embedding)
        for first in range(0, slide.num_spots, self._spots):
            yield first, _record(slide, first, min(first + self._spots, slide.num_spots))


def write(root: str | Path, task: str, out_dir: str | Path, **options) -> Path:
    """Builds a task's data set; nothing is left of it where that fails.

    Args:
      root: the HEST-bench folder.
      out_dir: the data set goes to `<out_dir>/hest_bench/<task>/<version>`.
      options: keyword arguments of `HestBench`.

    Returns:
      the folder of the data set.

    Raises:
      FileNotFoundError, InputError: as `hest.read`; or the data set is already there; or a record
        would be larger than 2 GiB.
    """
    builder = HestBench(root=root, task=task, data_dir=out_dir, **options)
    folder = Path(builder.data_dir)
    if folder.exists():
        raise InputError(f"{folder}: is already there; delete it or choose another folder.")
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads)
    return folder


def read_slide(folder: str | Path, sample: str) -> Slide:
    """Puts a slide together again from its records; without patches.

    Raises:
      FileNotFoundError: no data set there.
      InputError: the data set has no such sample, or lost some of its records.
    """
    folder = Path(folder)
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(f"{folder}: no data set there; build one with tfds_builder.write.")
    builder = tfds.builder_from_directory(folder)
    split = split_name(sample)
    if split not in builder.info.splits:
        raise InputError(
            f"{folder}: has no sample {sample!r}; it has {', '.join(sorted(builder.info.splits))}."
        )
    records = sorted(builder.as_data_source(split=split), key=lambda item: item["first_spot"])
    ends = np.cumsum([len(item["coords_um"]) for item in records])
    if [item["first_spot"] for item in records] != [0, *ends[:-1]]:
        raise InputError(f"{folder}: records of {sample!r} are missing; build the data set again.")
    return _slide(records, str(folder))


def split_name(sample: str) -> str:
    """A sample id as the name of a split, which must be letters, digits and `_`."""
    return re.sub(r"\W", "_", sample)


@contextlib.contextmanager
def _sorting_in_memory() -> Iterator[None]:
    """Keeps tfds from sorting large splits through temporary files, which needs TensorFlow."""
    limit = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit


def _fields(width: int | None) -> dict:
    def tensor(dtype: type, *shape: int | None) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    fields = {
        "first_spot": np.int64,
        "z_um": np.float64,
        "coords_um": tensor(np.float64, None, 2),
        "coords_in": tensor(np.float64, None, 2),
        "counts_data": tensor(np.float32, None),
        "counts_indices": tensor(np.int32, None),
        "counts_indptr": tensor(np.int64, None),
        **{name: tfds.features.Text() for name in _TEXTS},
    }
    return fields if width is None else {**fields, "features": tensor(np.float32, None, width)}


def _record(slide: Slide, first: int, end: int) -> dict:
    """Rows `first` to `end` of a slide as one record."""
    counts = slide.counts[first:end]
    item = {
        "first_spot": first,
        "z_um": np.nan if slide.z_um is None else slide.z_um,
        "coords_um": np.ascontiguousarray(slide.coords_um[first:end], dtype=np.float64),
        "coords_in": np.ascontiguousarray(slide.coords_in[first:end], dtype=np.float64),
        "counts_data": counts.data.astype(np.float32),
        "counts_indices": counts.indices.astype(np.int32),
        "counts_indptr": counts.indptr.astype(np.int64),
        "barcodes": "\n".join(slide.barcodes[first:end]),
        "genes": "\n".join(slide.genes),
        **{name: getattr(slide, name) or "" for name in _TEXTS[2:]},
    }
    if slide.features is not None:
        item["features"] = np.ascontiguousarray(slide.features[first:end], dtype=np.float32)
    size = sum(value.nbytes for value in item.values() if isinstance(value, np.ndarray))
    if size > RECORD_BYTES:
        raise InputError(
            f"{slide.where}: {end - first} spots take {size / 2**30:.1f} GiB, but a record must "
            f"stay below 2 GiB; set spots_per_record below {(end - first) * RECORD_BYTES // size}."
        )
    return item


def _slide(records: list[dict], source: str) -> Slide:
    """A slide from its records, in order."""
    first = records[0]
    genes = np.array(first["genes"].decode().split("\n"), dtype=str)
    blocks = [
        sp.csr_matrix(
            (item["counts_data"], item["counts_indices"], item["counts_indptr"]),
            shape=(len(item["coords_um"]), len(genes)),
        )
        for item in records
    ]
    texts = {name: first[name].decode() for name in _TEXTS[2:]}

    def joined(key: str) -> np.ndarray:
        return np.concatenate([item[key] for item in records])

    return Slide(
        barcodes=np.array(b"\n".join(item["barcodes"] for item in records).decode().split("\n")),
        coords_um=joined("coords_um"),
        coords_in=joined("coords_in"),
        counts=sp.csr_matrix(sp.vstack(blocks)),
        genes=genes,
        features=joined("features") if "features" in first else None,
        z_um=None if np.isnan(first["z_um"]) else float(first["z_um"]),
        **{**texts, "encoder": texts["encoder"] or None, "source": texts["source"] or source},
    )


def _width(path: Path) -> int:
    """Width of stored embeddings."""
    with open_hdf5(path, ("embeddings",), "Embed the task first.", "embed it again.") as file:
        return int(file["embeddings"].shape[-1])
