"""A data set: slides by name, the folds they are scored on, and the gene panel if one is given.

`load` turns the `data` section of a config into slides through one of the readers; it knows no
encoder, so features are there only where the files hold them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stfm_jax.data import alike, gene_names, simulate
from stfm_jax.data.expression import NORMALIZATIONS, most_variable_genes
from stfm_jax.data.folds import (
    Fold,
    leave_one_out,
    leave_patients_out,
    leave_sections_out,
)
from stfm_jax.data.image import Rules
from stfm_jax.data.panel import added_genes, find_genes
from stfm_jax.data.readers import (
    folders,
    h5ad,
    her2st,
    hest,
    hest1k,
    spatial_data,
    stimage,
    transcripts,
    zarr_store,
)
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
FOLDS = ("auto", "patient", "section", "published")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Slides and how they are split."""

    slides: dict[str, Slide]
    folds: tuple[Fold, ...]
    genes: tuple[str, ...] | None  # a published panel, or None: chosen on each training set
    folds_from: str  # how folds were made, one sentence for the report

    @property
    def all(self) -> list[Slide]:
        return list(self.slides.values())

    def with_slides(self, slides: Iterable[Slide]) -> Dataset:
        """The data set with changed slides of the same names, in the order they had."""
        changed = {slide.name: slide for slide in slides}
        return dataclasses.replace(self, slides={name: changed[name] for name in self.slides})

    def __getitem__(self, names: Sequence[str]) -> list[Slide]:
        return [self.slides[name] for name in names]


def load(
    data: Any,
    embeddings_dir: str | None = None,
    encoder: str | None = None,
    trained_on: bool = True,
) -> Dataset:
    """Reads the data set that a config's `data` section describes.

    Args:
      data: ConfigDict with `reader`, `dir` and what the reader needs (configs/base.py).
      embeddings_dir: root of precomputed embeddings in the HEST layout, if they are used.
      encoder: their name.
      trained_on: whether folds are needed; without, one slide is enough.

    Raises:
      InputError, FileNotFoundError: as the readers do; one slide alone; folds that the data
        cannot give.
    """
    if data.normalization not in NORMALIZATIONS:
        raise InputError(
            f"config.data.normalization must be one of {', '.join(NORMALIZATIONS)}, found "
            f"{data.normalization!r}."
        )
    if data.reader == "hest":
        dataset = _hest(data, embeddings_dir, encoder)
    elif data.reader in _OF_READER:
        dataset = _OF_READER[data.reader](data)
    else:
        raise InputError(
            f"config.data.reader must be one of {', '.join(READERS)}, found {data.reader!r}."
        )
    slides = gene_names.with_one_spelling(dataset.all, dataset.genes or ())
    dataset = dataset.with_slides(slides)
    dataset = _without_copies(dataset.with_slides(alike.with_one_spelling(dataset.slides).values()))
    dataset = _split(dataset, data.folds, data.reader)
    if trained_on and not dataset.folds:
        raise InputError(
            f"{next(iter(dataset.slides))}: one slide alone cannot be split into training and test "
            "slides; give at least two."
        )
    spots = sum(slide.num_spots for slide in dataset.slides.values())
    _LOG.info("%d slides, %d spots; %s", len(dataset.slides), spots, dataset.folds_from)
    _LOG.info("patients: %s", alike.told(dataset.slides))
    return dataset


def _without_copies(dataset: Dataset) -> Dataset:
    """Without slides that are others under another name.

    Raises:
      InputError: folds that the data set came with train on a slide and test it.
    """
    slides = dict(dataset.slides)
    for kept, copy in alike.copies(dataset.slides):
        for fold in dataset.folds:
            if {kept, copy} & set(fold.train) and {kept, copy} & set(fold.test):
                raise InputError(
                    f"{dataset.slides[copy].where}: is {dataset.slides[kept].where} under another "
                    "name, and a fold trains on one and tests the other; leave one out, or choose "
                    "--config.data.folds=patient and give both one patient."
                )
        if not dataset.folds and copy in slides and kept in slides:
            _LOG.warning(
                "%s: is %s under another name, and left out", slides[copy].where, slides[kept].where
            )
            del slides[copy]
    return dataclasses.replace(dataset, slides=slides)


def choose_genes(dataset: Dataset, train: Sequence[Slide], data: Any) -> list[str]:
    """The panel's genes that every slide has, or the training slides' most variable ones.

    With `data.missing_genes=drop` both are among those that every slide has.
    """
    if dataset.genes is None:
        others = dataset.all if data.missing_genes == "drop" else ()
        return most_variable_genes(train, data.num_genes, others)
    return find_genes(list(dataset.slides.values()), list(dataset.genes), data.missing_genes)


def genes_beside(dataset: Dataset, panel: Sequence[str], data: Any) -> list[str]:
    """Those of `data.genes` that are not in a panel, as far as every slide has them.

    Raises:
      InputError: as `panel.added_genes`.
    """
    found = added_genes(dataset.all, data.genes, data.missing_genes)
    return [gene for gene in found if gene not in set(panel)]


def _split(dataset: Dataset, choice: str, reader: str) -> Dataset:
    """A data set with the folds that `data.folds` asks for.

    Args:
      dataset: with the folds that it came with, none where it has no splits of its own.
      choice: of FOLDS; `auto`: its own splits, else `leave_one_out`.
      reader: whose data set it is, for the message.

    Raises:
      InputError: the data cannot give them.
    """
    if choice not in FOLDS:
        raise InputError(f"config.data.folds must be one of {', '.join(FOLDS)}, found {choice!r}.")
    if choice == "published" and not dataset.folds:
        raise InputError(
            f"config.data.folds=published: a data set read by {reader!r} has no splits of its own, "
            "which come with 'hest' and 'tfds', and with 'simulated' by config.data.test_patients; "
            "choose patient, section or auto."
        )
    if choice == "published" or (choice == "auto" and dataset.folds):
        return dataset
    make = {"auto": leave_one_out, "patient": leave_patients_out, "section": leave_sections_out}
    folds, note = make[choice](dataset.slides)
    said = [] if dataset.folds else [dataset.folds_from]
    genes = "genes are the data set's own list, whatever slides it was chosen on"
    said += [note] + [genes] * (dataset.genes is not None)
    return dataclasses.replace(dataset, folds=folds, folds_from="; ".join(filter(None, said)))


def _hest(data, embeddings_dir, encoder) -> Dataset:
    root = _folder(data.dir, hest.how_to_get(data.task))
    folds = hest.published_folds(root, data.task)
    names = dict.fromkeys(name for train, test in folds for name in (*train, *test))
    slides = {
        name: hest.read(root, data.task, name, embed_root=embeddings_dir, encoder=encoder)
        for name in names
    }
    return Dataset(
        slides=slides,
        folds=tuple(Fold(tuple(train), tuple(test)) for train, test in folds),
        genes=tuple(hest.genes(root, data.task)),
        folds_from="HEST-bench's published folds (by patient) and its task-wide gene list, which "
        "was chosen on all slides",
    )


def _her2st(data) -> Dataset:
    root = _folder(data.dir, "get it from the public repository almaan/her2st")
    rules = Rules.of(data)
    slides = {
        name: her2st.read(root, name, rules=rules)
        for name in data.sections or her2st.sections(root)
    }
    return Dataset(slides, (), None, "")


def _anndata(data) -> Dataset:
    root = _folder(data.dir, "it should hold one .h5ad file per slide")
    paths = h5ad.slide_files(root)
    if not paths:
        raise InputError(f"{root}: expected one .h5ad or .zarr per slide, found none.")
    slides = {
        zarr_store.name_of(path): h5ad.read(
            path,
            features_key=data.features_key,
            spatial_unit=data.spatial_unit or None,
            um_per_px=data.um_per_px,
            tissue_mask=data.in_tissue,
            labels_key=data.labels_key,
        )
        for path in paths
    }
    if data.labels_key and all(slide.domains is None for slide in slides.values()):
        raise InputError(
            f"config.data.labels_key: none of the {len(slides)} files in {root} has the column "
            f"obs[{data.labels_key!r}]; name the one with a pathologist's labels, or none."
        )
    for path in filter(zarr_store.is_store, paths):
        name = zarr_store.name_of(path)
        if slides[name].features is None:
            slides[name] = spatial_data.with_image(slides[name], path, Rules.of(data))
    return Dataset(slides, (), None, "")


def _instruments(data) -> Dataset:
    root = _folder(data.dir, "it should hold one folder per slide, as the instrument wrote it")
    options = folders.Options(
        um_per_px=data.um_per_px,
        bin_um=data.bin_um,
        cells_um=data.cells_um,
        rules=Rules.of(data),
    )
    return Dataset(folders.read_all(root, data.reader, options), (), None, "")


def _hest1k(data) -> Dataset:
    root = _folder(data.dir, hest1k.HOW_TO_GET)
    found = hest1k.slides(root, data.task, data.sections)
    patients, rules = hest1k.patients(found), Rules.of(data)
    slides = {
        name: hest1k.read(
            root, name, about, patient=patients[name], um_per_px=data.um_per_px, rules=rules
        )
        for name, about in found.items()
    }
    return Dataset(slides, (), None, "")


def _stimage(data) -> Dataset:
    root = _folder(data.dir, stimage.HOW_TO_GET)
    found = stimage.slides(root, data.task)
    slides = {
        name: stimage.read(root, name, *about, Rules.of(data)) for name, about in found.items()
    }
    note = "studies stand for patients, which the data set does not tell"
    return Dataset(slides, (), None, note)


def _transcripts(data) -> Dataset:
    root = _folder(data.dir, "it should hold one table of molecules per slide")
    slides = {
        name: transcripts.read(path, name, data.bin_um)
        for name, path in transcripts.tables(root).items()
    }
    return Dataset(slides, (), None, "")


def _simulated(data) -> Dataset:
    slides = simulated_slides(data.tissue, data.seeds)
    if data.unseen:
        slides = dict(list(slides.items())[: -data.unseen])
    if not data.test_patients:
        return Dataset(slides, (), None, "simulated tissue")
    return _kept_apart(slides, len(data.seeds), data.test_patients, data.folds)


def _kept_apart(slides: dict[str, Slide], patients: int, tested: int, choice: str) -> Dataset:
    """Simulated patients with the last of them kept apart: tested by the one fold there is.

    With other folds (`data.folds=patient`, `section`) they are left out altogether.
    """
    if not 0 < tested < patients:
        raise InputError(
            f"config.data.test_patients must leave a patient to train on, found {tested} of the "
            f"{patients} of config.data.seeds."
        )
    first = {f"P{i + 1}" for i in range(patients - tested)}
    train = tuple(name for name, slide in slides.items() if slide.patient in first)
    test = tuple(name for name in slides if name not in train)
    if choice in ("patient", "section"):
        return Dataset({name: slides[name] for name in train}, (), None, "simulated tissue")
    if not test:
        raise InputError("config.data.unseen leaves no section of config.data.test_patients.")
    note = f"trained on {patients - tested} of {patients} patients, tested on the others"
    return Dataset(slides, (Fold(train, test),), None, f"simulated tissue; {note}")


def _tfds(data) -> Dataset:
    from stfm_jax.data.readers import tfds  # imports tensorflow-datasets, which takes a second

    slides, about = tfds.read(_folder(data.dir, tfds.HOW_TO_GET))
    folds = tuple(Fold(tuple(fold["train"]), tuple(fold["test"])) for fold in about["folds"])
    genes = None if about["genes"] is None else tuple(about["genes"])
    return Dataset(slides, folds, genes, about["folds_from"])


def simulated_slides(tissue: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Slide]:
    """Sections of one volume for each seed, by name."""
    volumes = simulate.cohort(_tissue(tissue), list(seeds), keep_mean=False)
    return {slide.name: slide for volume in volumes for slide in volume.slides}


def unseen(data: Any) -> list[Slide]:
    """The last `data.unseen` simulated sections, which `load` leaves out: slides to predict."""
    if data.reader != "simulated" or not data.unseen:
        return []
    return list(simulated_slides(data.tissue, data.seeds).values())[-data.unseen :]


def _tissue(fields: Mapping[str, Any]) -> simulate.TissueParams:
    known = [field.name for field in dataclasses.fields(simulate.TissueParams)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InputError(
            f"config.data.tissue has no field {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(known)}."
        )
    return simulate.TissueParams(**fields)


def _folder(path: str | None, how_to_get: str) -> Path:
    if not path:
        raise InputError(f"--config.data.dir is not set; {how_to_get}.")
    folder = Path(os.path.expanduser(path))
    if folder.is_file():
        raise InputError(f"{folder}: --config.data.dir is a file, expected a folder; {how_to_get}.")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected the data folder there (--config.data.dir), found none; "
            f"{how_to_get}."
        )
    return folder


_OF_READER = {  # beside `hest`, whose embeddings may lie elsewhere
    "her2st": _her2st,
    "anndata": _anndata,
    **dict.fromkeys(folders.PLATFORMS, _instruments),
    "hest1k": _hest1k,
    "stimage": _stimage,
    "transcripts": _transcripts,
    "simulated": _simulated,
    "tfds": _tfds,
}
READERS = ("hest", *_OF_READER)
