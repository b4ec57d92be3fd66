"""The card of a model that is passed on: what it is, was made of, and is worth, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import stfm_jax
from stfm_jax.encoders import known
from stfm_jax.encoders.loading import STAIN_TEXTURE
from stfm_jax.models.method import SPLIT, STACK
from stfm_jax.report.tables import legend, text_table
from stfm_jax.store import Model

_TASKS = {
    SPLIT: "splits the counts of spots over finer spots within them",
    STACK: "predicts gene expression at the spots of an H&E-stained section from its image and the "
    "other sections of its stack",
    "slide": "predicts gene expression at the spots of an H&E-stained slide from its image",
}


def card(model: Model, config: Any, metrics: Mapping[str, Any], problem: Any) -> str:
    """The text of README.md.

    Args:
      model: as it is passed on.
      config: it was trained with.
      metrics: the workdir's metrics.json.
      problem: of `stfm_jax.problems`; says what scores are shown, and what they are.
    """
    sections = {
        "Data": _data(model, config, metrics),
        "Genes": _genes(model),
        "Encoder": _encoder(model),
        "Scores": _scores(model, metrics, problem),
        "Limits": _limits(model, metrics),
        "What it holds of single patients": _individual(model),
        "How to load it": _loading(),
        "Citation": _citation(model),
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return f"# {model.method.name}\n\n" + "\n".join(_head(model, metrics)) + f"\n\n{body}\n"


def _head(model: Model, metrics: Mapping[str, Any]) -> Iterator[str]:
    method = model.method
    of_slides = STACK if STACK in method.needs else "slide"
    kind = SPLIT if method.problem == SPLIT else of_slides
    trained = f" Epochs of training: {model.epochs}." if model.epochs else ""
    yield f"A model of stfm_jax that {_TASKS[kind]}: the method `{method.name}`.{trained}"
    yield ""
    yield f"Trained by stfm_jax {metrics['version']}, exported by {stfm_jax.__version__}."
    yield "The method's settings are in `config.json`."


def _data(model: Model, config: Any, metrics: Mapping[str, Any]) -> Iterator[str]:
    data, slides = config.data, model.slides
    task = f", task {data.task}" if data.task else ""
    yield f"- Reader: `{data.reader}`{task}; expression as `{data.normalization}`."
    if slides:
        spots = sum(about["spots"] for about in slides.values())
        yield f"- {len(slides)} slides (sections), {spots} spots, of {_patients(slides)}."
        yield f"- Slides: {', '.join(map(_literally, slides))}."
    else:
        yield "- An earlier version trained it, which kept no list of its slides."
    yield f"- Split for the scores: {metrics['split']}. The model itself is fitted to all slides."


def _literally(name: str) -> str:
    """A name that comes from a file, none of which is markup."""
    return re.sub(r"([\\`\[\]<>])", r"\\\1", " ".join(str(name).split()))


def _patients(slides: Mapping[str, Mapping[str, Any]]) -> str:
    found = {about["patient"] for about in slides.values()}
    if "" in found:
        return "patients that are not all named"
    return f"{len(found)} patient{'s' * (len(found) > 1)}"


def _genes(model: Model) -> Iterator[str]:
    genes = model.genes.scored
    use = "that it was trained on; it splits any" if model.method.problem == SPLIT else "predicted"
    yield f"<details><summary>{len(genes)} genes {use}</summary>"
    yield ""
    yield ", ".join(map(_literally, genes))
    yield ""
    yield "</details>"


def _encoder(model: Model) -> Iterator[str]:
    if not model.features:
        yield "None: it sees no image."
        return
    name = " and ".join(f"`{encoder}`" for encoder in model.encoders)
    yield f"{name if model.encoder else 'One that the data do not name'}, {model.features} features"
    yield "a spot. A slide to predict must be embedded by the same."
    yield ""
    yield from map(terms, model.encoders)


def terms(encoder: str) -> str:
    """Licence and citation of an encoder by the name that the data gave it."""
    if encoder.startswith(STAIN_TEXTURE):
        return "Made by hand in stfm_jax, without weights: licence Apache-2.0."
    found = known.named(encoder)
    if found is None:
        return "As the data name it; its licence and citation are not known to stfm_jax."
    gated = ", its terms to be accepted on its page" * found.gated
    return f"{found.name}: licence {found.licence}{gated}; {found.citation}."


def _scores(model: Model, metrics: Mapping[str, Any], problem: Any) -> Iterator[str]:
    rows, own = metrics["methods"], (model.method.name, model.method.draws_as)
    shown = [name for name in problem.shown if any(name in row for row in rows.values())]
    drawn = f", `{own[1]}` of its single draws" if own[1] else ""
    scored = f"is the row of its mean{drawn}; the others are there to compare it with"
    yield f"`{own[0]}` {scored if own[0] in rows else 'was not scored'}."
    yield ""
    yield "```"
    yield text_table(rows, shown)
    yield "```"
    yield ""
    counts = len(metrics["folds"]), metrics["folds_in_split"], len(metrics.get("seeds", ()))
    yield f"{legend(*counts)}, each"
    yield "of models that did not see its test slides; `*` is the best of a column."
    yield f"{problem.explained[0].upper()}{problem.explained[1:]}."


def _limits(model: Model, metrics: Mapping[str, Any]) -> Iterator[str]:
    yield "- Not for clinical use."
    yield f"- {_unseen_patients(model, metrics)}"
    yield "- Other organs, stains, scanners and platforms than it was trained on were not tried."
    yield "- It needs to know micrometres: coordinates in um, or pixels with their size."


def _unseen_patients(model: Model, metrics: Mapping[str, Any]) -> str:
    """Whether the scores are of patients that were not trained on, and what to expect of one."""
    patients = {name: about["patient"] for name, about in model.slides.items()}
    named = [
        [{patients.get(name, "") for name in fold[part]} for part in ("train", "test")]
        for fold in metrics["folds"]
    ]
    trained_on = f"Trained on {_patients(model.slides)}." if model.slides else ""
    if any("" in train | test for train, test in named):
        scored = "Whether the scores are of patients that were trained on is not known here."
    elif any(train & test for train, test in named):
        scored = "The scores are of slides whose patients have other slides among those trained on."
    else:
        scored = "The scores are of patients that were not trained on, and few."
    return f"{trained_on} {scored} Expect less on a patient never seen before.".strip()


def _individual(model: Model) -> Iterator[str]:
    held = model.individual_level
    if held:
        yield "Whoever passes this folder on passes these on (`model.json` lists them too):"
        yield ""
        for name, said in held.items():
            yield f"- `{name}`: {said}."
        yield ""
    yield "All else was computed from many spots together. What trained weights may have kept of"
    yield "single ones was not looked into."


def _loading() -> Iterator[str]:
    yield "```python"
    yield "import stfm_jax as stfm"
    yield ""
    yield 'model = stfm.load("PATH/TO/THIS/FOLDER")'
    yield 'predicted = model.predict("SLIDE.h5ad")'
    yield "```"
    yield ""
    yield "Or `python -m stfm_jax --mode=predict --workdir=PATH/TO/THIS/FOLDER"
    yield "--config.predict.input=SLIDE.h5ad --config.predict.output=OUT.h5ad`."


def _citation(model: Model) -> Iterator[str]:
    yield f"- stfm_jax {stfm_jax.__version__}, Apache-2.0: the code. The model's own licence is for"
    yield "  those to say who pass it on; data and encoder have theirs."
    for paper in model.method.papers:
        yield f"- {paper}: the method, as stfm_jax builds it."
