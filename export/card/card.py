"""The bundle's README.md, the model card."""

from __future__ import annotations

import re

from pruneport.documents import Json
from pruneport.export.bundle.bundle import MODEL_ONNX, PRECISIONS, onnx_name
from pruneport.export.card.front_matter import front_matter
from pruneport.export.card.precisions import precision_columns, precision_notes, precision_rows
from pruneport.export.card.provenance import fine_tuned, fine_tuned_before, provenance
from pruneport.export.card.summary import (
    comparisons,
    device_name,
    embedding_note,
    headline,
    onnx_example,
    own_code,
)
from pruneport.export.card.verdict import verdict, warnings_for
from pruneport.export.card.words import clean
from pruneport.export.onnx.form import ANY_BATCH, InputSizes
from pruneport.text import OPTION

__all__ = ["model_card"]


_UNTRAINED = (
    "**Architecture only.** No `checkpoint` and no `weights` were given: latency is meaningful, accuracy is not, "
    "unless the source itself loads trained weights. Put trained weights through the same command before using the "
    "outputs."
)
_MARKUP = r"[\\`*_\[\]<>#|~!&$@]|:(?=//)|(?<=www)\."


def model_card(plan: Json, verify: Json | None, bench: Json | None, sizes: InputSizes = ANY_BATCH) -> str:
    """Return the bundle's README.md.

    Args:
        plan: What ``plan.json`` holds.
        verify: What the verification found, or None where it was not run.
        bench: What ``bench.json`` holds, or None where latency was not measured.
        sizes: Which inputs the ONNX files take.

    Returns:
        Markdown, with YAML for the Hugging Face Hub at its head. Names that come from outside are escaped, so that
        they show as text in any renderer.
    """
    table = ["| | dense | pruned | change |", "|---|--:|--:|--:|"]
    table += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in comparisons(plan, verify, bench)]
    sections = [
        f"# {_code(plan['source']['spec'])}, pruned",
        f"**{_escape(headline(plan, verify, bench))}**",
        f"{_escape(verdict(plan, verify, bench))}.",
        *(f"> **Warning.** {_sentence(sentence)}" for sentence in warnings_for(plan, verify, bench)),
        *([] if plan["source"]["trained"] else [_UNTRAINED]),
        "## Before and after",
        "\n".join(table),
        *_precisions(plan, verify, bench),
        "## Load it",
        f"In ONNX Runtime, which takes {sizes}:",
        f"```python\n{onnx_example(plan, sizes, verify)}\n```",
        *([_escape(note)] if (note := embedding_note(sizes.embedded)) else []),
        "In torch, where `DIR` is this folder:",
        '```python\nimport pruneport\nnetwork = pruneport.load("DIR")\n```',
        *([_escape(how)] if (how := own_code(plan)) else []),
        "## How it was made",
        "\n".join(f"- {name}: {(_sentence if name == 'Note' else _escape)(text)}" for name, text in provenance(plan)),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in _limits(plan, verify, bench)),
    ]
    return f"{front_matter(plan, verify, bench).to_yaml()}\n" + "\n\n".join(sections) + "\n"


def _precisions(plan: Json, verify: Json | None, bench: Json | None) -> list[str]:
    """The table of precisions, where there are others than fp32."""
    columns, rows = precision_columns(verify, bench), precision_rows(verify, bench, trained=plan["source"]["trained"])
    if not rows:
        return []
    table = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    table += ["| " + " | ".join(_escape(cell) for cell in (row.label, *row.cells)) + " |" for row in rows]
    files = " · ".join(_code(onnx_name(MODEL_ONNX, column)) for column in PRECISIONS if column in columns)
    return [
        "## Precisions",
        f"Each is a file of its own, which takes and gives the same: {files}.",
        "\n".join(table),
        " ".join(map(_escape, precision_notes(verify, bench))),
    ]


def _limits(plan: Json, verify: Json | None, bench: Json | None) -> list[str]:
    """Sentences on what was not measured, and what the figures hold for."""
    accuracy = (verify or {}).get("accuracy")
    training = fine_tuned(plan)
    sentences = ["`plan.json` says which filters were removed; pruning itself trains nothing."]
    if training:
        sentences.append(
            f"Its outputs are the classes of {_code(training['task'])}, in the order in `plan.json`; the dense network "
            "beside it has the same head, untrained: compare latency with it, not accuracy."
        )
    elif fine_tuned_before(plan) and plan.get("dense_onnx") != "start":
        sentences.append(
            "It was fine-tuned before it was compressed further: the dense network beside it has the same head, "
            "untrained: compare latency with it, not accuracy."
        )
    if not plan["source"]["trained"]:
        sentences.append("Accuracy is left out: no `checkpoint` and no `weights` were given.")
    elif training and not accuracy:
        sentences.append(f"Accuracy was measured on {training['test_images']} test images of the task only.")
    elif accuracy:
        folder = _code(accuracy["folder"])
        sentences.append(f"Accuracy was measured on {accuracy['images']} images of {folder} only.")
    else:
        sentences.append("Accuracy was not measured: measure it on your own images before you deploy this.")
    if bench:
        device = device_name(bench) or "the device named in `bench.json`"
        sentences.append(f"Latency holds for {_escape(device)} and the settings in `bench.json`.")
    else:
        sentences.append("Latency was not measured.")
    if not verify:
        sentences.append("torch and ONNX Runtime were not compared; `pruneport verify` does that.")
    elif not verify["ok"]:
        failed = [_code(check["name"]) for check in verify["checks"] if not check["ok"]]
        sentences.append(f"**Verification failed**: {', '.join(failed) or 'see the report'}.")
    return sentences


def _escape(text: object) -> str:
    """Escape what Markdown, its autolinks and inline HTML would take for markup."""
    return re.sub(_MARKUP, r"\\\g<0>", clean(text))


def _sentence(text: str) -> str:
    """Escape a sentence of ours; the options that it names stay code spans."""
    either = f"{OPTION.pattern}|{_MARKUP}"
    return re.sub(either, lambda found: found[0] if found["name"] else f"\\{found[0]}", clean(text))


def _code(text: object) -> str:
    """Set text as a code span, with a fence longer than any run of backticks in it."""
    line = clean(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    padding = " " if "`" in line else ""
    return f"{fence}{padding}{line}{padding}{fence}"
