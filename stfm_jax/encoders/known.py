"""Published encoders of pathology: shape, pooling, images, scale and terms, a row each.

A row is found by the shape of a ViT's tensors; where several models share it, or it is that of a
general ViT, by the file's hash, the folder's name or the library. A row goes before the config
beside the weights: several configs hold the mean, standard deviation or crop of the
architecture, not the model's.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from stfm_jax.encoders.preprocess import HALF, IMAGENET, Preprocess
from stfm_jax.encoders.vit import Architecture, Pool


class Signature(NamedTuple):
    """What the shapes of a ViT's tensors tell, under timm's names."""

    patch: int
    width: int
    depth: int
    hidden: int
    swiglu: bool
    layer_scale: bool
    registers: int
    position_rows: int


@dataclasses.dataclass(frozen=True)
class Known:
    """A published encoder."""

    name: str
    words: str  # of a folder's name: joined by hyphens, alternatives by |
    shape: Signature | str  # str: a network that is no ViT
    pool: Pool | None  # None: the network pools its map of features
    preprocess: Preprocess
    licence: str
    citation: str
    seen: str  # where its preprocessing was read
    gated: bool = False  # its terms must be accepted on its page
    um_per_px: float = 0.5  # of the images behind `preprocess.resize`
    library: str | None = None  # the config's, where that tells two of one shape apart
    sha256: str = ""  # first 8 digits of the weights' file
    own_shape: bool = True  # False: general ViTs have this shape too

    @property
    def field_um(self) -> float:
        """Side of the patch to read, micrometres."""
        return self.preprocess.resize * self.um_per_px


def signature(a: Architecture) -> Signature:
    """The signature of an architecture."""
    return Signature(*(getattr(a, field) for field in Signature._fields))


def sharing(shape: Signature | str) -> tuple[Known, ...]:
    """Every known encoder of a shape."""
    return tuple(row for row in TABLE if row.shape == shape)


def find(
    shape: Signature | str, name: str = "", library: str | None = None, sha256: str = ""
) -> Known | None:
    """The known encoder that a file holds; None where that is open.

    Args:
      shape: of its tensors.
      name: of its folder; letters' case and separators do not matter.
      library: of its config.
      sha256: of its file, hexadecimal.
    """
    rows = sharing(shape)
    words = _hyphened(name)
    return (
        _only([row for row in rows if row.sha256 and sha256.startswith(row.sha256)])
        or _only([row for row in rows if re.search(f"-({row.words})-", words)])
        or _only([row for row in rows if row.own_shape and row.library in (None, library)])
    )


def named(name: str) -> Known | None:
    """The known encoder that data name, None where no row's words are in it.

    Of rows with other words in a name (`phikon_v2_112um`) it is the one with more of them; of rows
    with the same words (sizes of Kaiko's) the first: their terms are the same.
    """
    words = _hyphened(name)
    found = [(re.search(f"-({row.words})-", words), row) for row in TABLE]
    found = [(len(match[1]), row) for match, row in found if match]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _hyphened(name: str) -> str:
    return "-" + re.sub(r"[^a-z0-9]+", "-", name.lower()) + "-"


def _only(rows: list[Known]) -> Known | None:
    return rows[0] if len(rows) == 1 else None


# --- the table ------------------------------------------------------------------------------------


def _images(norm, interpolation: str, resize: int = 224, crop: int = 224) -> Preprocess:
    return Preprocess(resize, crop, *norm, interpolation)


_BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_HIBOU = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
_LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

_S16 = Signature(16, 384, 12, 1536, False, False, 0, 197)
_S8 = _S16._replace(patch=8, position_rows=785)
_B16 = Signature(16, 768, 12, 3072, False, False, 0, 197)
_B8 = _B16._replace(patch=8, position_rows=785)
_L16 = Signature(16, 1024, 24, 4096, False, True, 0, 197)
_L14_REGISTERS = Signature(14, 1024, 24, 4096, False, True, 4, 1369)
_VIRCHOW = Signature(14, 1280, 32, 3416, True, True, 0, 257)
_GIANT = Signature(14, 1536, 40, 4096, True, True, 4, 256)
_B14_REGISTERS = Signature(14, 768, 12, 2048, True, True, 4, 256)

_TIMM, _TRANSFORMERS = "timm", "transformers"
_NO_DERIVATIVES = "CC-BY-NC-ND-4.0"
_OWKIN = "Owkin non-commercial licence"
_HIBOU_PAPER = "Nechaev et al., arXiv 2406.05074 (2024)"
_REGISTRIES = "TRIDENT a91fa84; raw2features 079f877"
_RELEASE = "release; raw2features 079f877"

_KAIKO_ROW = Known(
    name="Kaiko",
    words="kaiko",
    shape=_S16,
    pool="cls",
    preprocess=_images(HALF, "bilinear"),
    licence="Kaiko non-commercial licence",
    citation="Aben et al., arXiv 2404.15217 (2024)",
    seen="its README",
    library=_TIMM,
    own_shape=False,
)
_LUNIT_ROW = Known(
    name="Lunit",
    words="lunit",
    shape=_S16,
    pool="cls",
    preprocess=_images(_LUNIT, "bicubic", resize=248),
    licence="Lunit non-commercial licence",
    citation="Kang et al., CVPR (2023)",
    seen="release; crop of its config",
    library=_TIMM,
    own_shape=False,
)

TABLE = (
    Known(
        name="UNI",
        words="uni|uni1",
        shape=_L16,
        pool="cls",
        preprocess=_images(IMAGENET, "bilinear"),
        licence=_NO_DERIVATIVES,
        gated=True,
        citation="Chen et al., Nature Medicine 30 (2024)",
        seen=_REGISTRIES,
        library=_TIMM,
        sha256="56ef09b4",
    ),
    Known(
        name="UNI2-h",
        words="uni2-h|uni2h|uni2",
        shape=Signature(14, 1536, 24, 4096, True, True, 8, 256),
        pool="cls",
        preprocess=_images(IMAGENET, "bilinear"),
        licence=_NO_DERIVATIVES,
        gated=True,
        citation="Chen et al., Nature Medicine 30 (2024)",
        seen=_REGISTRIES,
        sha256="6e077eda",
    ),
    Known(
        name="GigaPath",
        words="gigapath",
        shape=Signature(16, 1536, 40, 4096, True, True, 0, 197),
        pool="cls",
        preprocess=_images(IMAGENET, "bicubic", resize=256),
        licence="Apache-2.0 with terms",
        gated=True,
        citation="Xu et al., Nature 630 (2024)",
        seen="its README",
        sha256="87794721",
    ),
    Known(
        name="Virchow",
        words="virchow",
        shape=_VIRCHOW,
        pool="cls_mean",
        preprocess=_images(IMAGENET, "bicubic"),
        licence="Apache-2.0",
        gated=True,
        citation="Vorontsov et al., Nature Medicine 30 (2024)",
        seen=_RELEASE,
        sha256="3416891b",
    ),
    Known(
        name="Virchow2",
        words="virchow2",
        shape=_VIRCHOW._replace(registers=4, position_rows=261),
        pool="cls_mean",
        preprocess=_images(IMAGENET, "bicubic"),
        licence=_NO_DERIVATIVES,
        gated=True,
        citation="Zimmermann et al., arXiv 2408.00738 (2024)",
        seen=_RELEASE,
        sha256="8d6cea94",
    ),
    Known(
        name="H-optimus-0",
        words="h-optimus-0|hoptimus0",
        shape=_GIANT,
        pool="cls",
        preprocess=_images(_BIOPTIMUS, "bicubic"),
        licence="Apache-2.0",
        gated=True,
        citation="Saillard et al., H-optimus-0 (2024)",
        seen=_REGISTRIES,
        sha256="bf47b846",
    ),
    Known(
        name="H-optimus-1",
        words="h-optimus-1|hoptimus1",
        shape=_GIANT,
        pool="cls",
        preprocess=_images(_BIOPTIMUS, "bicubic"),
        licence=_NO_DERIVATIVES,
        gated=True,
        citation="Bioptimus, H-optimus-1 (2025)",
        seen=_REGISTRIES,
        sha256="c4f1e5b4",
    ),
    Known(
        name="H0-mini",
        words="h0-mini|h0mini",
        shape=_B14_REGISTERS,
        pool="cls",
        preprocess=_images(_BIOPTIMUS, "bicubic"),
        licence=_NO_DERIVATIVES,
        gated=True,
        citation="Filiot et al., arXiv 2501.16239 (2025)",
        seen="HEST afd42c3; raw2features 079f877",
        library=_TIMM,
        sha256="5e4de45a",
    ),
    Known(
        name="Phikon",
        words="phikon",
        shape=_B16,
        pool="cls",
        preprocess=_images(IMAGENET, "bilinear"),
        licence=_OWKIN,
        citation="Filiot et al., medRxiv 2023.07.21.23292757 (2023)",
        seen=_REGISTRIES,
        library=_TRANSFORMERS,
        sha256="d01642bf",
        own_shape=False,
    ),
    Known(
        name="Phikon-v2",
        words="phikon-v2|phikon2",
        shape=_L16,
        pool="cls",
        preprocess=_images(IMAGENET, "bicubic"),
        licence=_OWKIN,
        citation="Filiot et al., arXiv 2409.09173 (2024)",
        seen=_REGISTRIES,
        library=_TRANSFORMERS,
        sha256="261ae680",
    ),
    Known(
        name="Midnight-12k",
        words="midnight",
        shape=Signature(14, 1536, 40, 4096, True, True, 0, 1370),
        pool="cls_mean",
        preprocess=_images(HALF, "bilinear"),
        licence="MIT",
        citation="Karasikov et al., arXiv 2504.05186 (2025)",
        seen=_RELEASE,
        sha256="52c14f20",
        own_shape=False,
    ),
    Known(
        name="Hibou-B",
        words="hibou-b",
        shape=_B14_REGISTERS,
        pool="cls",
        preprocess=_images(_HIBOU, "bicubic"),
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU_PAPER,
        seen=_RELEASE,
        library=_TRANSFORMERS,
        sha256="2121db3c",
    ),
    Known(
        name="Hibou-L",
        words="hibou-l",
        shape=Signature(14, 1024, 24, 2736, True, True, 4, 256),
        pool="cls",
        preprocess=_images(_HIBOU, "bicubic"),
        licence="Apache-2.0",
        gated=True,
        citation=_HIBOU_PAPER,
        seen=_RELEASE,
        sha256="a63d1699",
    ),
    dataclasses.replace(_KAIKO_ROW, name="Kaiko-S16", shape=_S16),
    dataclasses.replace(_KAIKO_ROW, name="Kaiko-S8", shape=_S8),
    dataclasses.replace(_KAIKO_ROW, name="Kaiko-B16", shape=_B16),
    dataclasses.replace(_KAIKO_ROW, name="Kaiko-B8", shape=_B8),
    dataclasses.replace(_KAIKO_ROW, name="Kaiko-L14", shape=_L14_REGISTERS, sha256="149c8b21"),
    dataclasses.replace(_LUNIT_ROW, name="Lunit-S16", shape=_S16, sha256="a19eb37d"),
    dataclasses.replace(_LUNIT_ROW, name="Lunit-S8", shape=_S8, sha256="0b7e0236"),
    Known(
        name="EfficientNet-Lite0",
        words="efficientnet-lite0",
        shape="efficientnet_lite0",
        pool=None,
        preprocess=_images(((127 / 255,) * 3, (128 / 255,) * 3), "bicubic"),
        licence="Apache-2.0",
        citation="Tan and Le, ICML (2019)",
        seen="wheel 0.1.0",
        um_per_px=160 / 224,  # of the smaller field of two
    ),
    Known(
        name="ResNet18-Ciga",
        words="ciga|tenpercent",
        shape="resnet18",
        pool=None,
        preprocess=_images(IMAGENET, "bilinear"),
        licence="MIT",
        citation="Ciga et al., Machine Learning with Applications 7 (2022)",
        seen="ciga.json of HEST's encoders",
        own_shape=False,
    ),
    Known(
        name="ResNet50-HEST",
        words="resnet50",
        shape="resnet50",
        pool=None,
        preprocess=_images(IMAGENET, "bilinear"),
        licence="BSD-3-Clause",
        citation="He et al., CVPR (2016); Jaume et al., NeurIPS (2024)",
        seen="HEST afd42c3",
        own_shape=False,
    ),
)
