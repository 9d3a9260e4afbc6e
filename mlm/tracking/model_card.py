"""Write the model card of an exported model from the records of its run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Literal

from configs import dump
from configs.extras import PROJECT
from mlm.evaluation.results import bits_line, shown
from mlm.interop import onnx
from mlm.interop.comparison import LARGEST
from mlm.interop.export import Compared
from mlm.tracking.run_record import RunRecord
from tokenizer.sources import Documentation

Format = Literal["transformers", "onnx"]
READERS: Mapping[Format, str] = {"transformers": "transformers", "onnx": "onnxruntime"}
"""The library that an export in a format is compared by."""
ONNX = "ONNX"
"""The architecture of a folder that holds nothing else."""
FILE = "README.md"
"""Name of a model card in its folder."""
SECTIONS_SHOWN = ("vocabulary", "masking", "model", "optim", "schedule", "train")
"""Sections of a run's configuration that hold no paths."""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PAPERS = {
    "BERT": """@inproceedings{devlin2019bert,
  title = {{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding},
  author = {Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina},
  booktitle = {Proceedings of NAACL-HLT},
  year = {2019}
}""",
    "ModernBERT": """@misc{warner2024modernbert,
  title = {Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and Long
           Context Finetuning and Inference},
  author = {Warner, Benjamin and Chaffin, Antoine and Clavi\\'e, Benjamin and Weller, Orion and Hallstr\\"om, Oskar
            and others},
  year = {2024},
  eprint = {2412.13663},
  archivePrefix = {arXiv}
}""",
}
"""The paper of each architecture, as BibTeX."""


@dataclass(frozen=True)
class Facts:
    """The content of a model card."""

    architecture: str
    record: RunRecord
    parameters: int
    mask: str
    """The mask token."""
    cls_sep: bool
    """True if the tokenizer puts tokens before and behind a text."""
    lowercase: bool
    """True if the tokenizer reads all text in lower case."""
    compared: Mapping[Format, Compared]
    license: str | None
    language: str | None


def write(folder: Path, facts: Facts) -> None:
    """Write the model card into `folder`."""
    from huggingface_hub import ModelCard, ModelCardData

    record, has_head = facts.record, facts.record.has_head
    own_text = record.converted_from is None and isinstance(record.config.text.source, Documentation)
    by_head: dict[str, Any] = {"mask_token": facts.mask, "widget": [{"text": _example(facts)}]} if has_head else {}
    data = ModelCardData(
        license=facts.license,
        language=facts.language or ("en" if own_text and record.config.start_from is None else None),
        library_name="onnx" if facts.architecture == ONNX else "transformers",
        pipeline_tag="fill-mask" if has_head else "feature-extraction",
        tags=["masked-language-modeling" if has_head else "feature-extraction", facts.architecture.lower()],
        **by_head,
    )
    origin = (_text, _training, _results) if record.converted_from is None else (_origin,)
    sections = (_opening, _use, _onnx, *origin, _exactness, _limitations, _citation)
    body = "\n\n".join("\n".join(section(facts)) for section in sections)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / FILE)


def _example(facts: Facts) -> str:
    return f"Return the {facts.mask} of the list."


def _opening(facts: Facts) -> Iterator[str]:
    record, config = facts.record, facts.record.config
    if record.converted_from is not None:
        name = _public(record.converted_from["name"])
        yield f"# {name}\n"
        yield f"The published encoder {name}, its weights taken into another program and back, in the form of"
    else:
        yield f"# {config.name}\n"
        yield f"The encoder of the run `{config.name}`, pretrained from {_beginning(facts)} by masked language"
        yield "modelling, in the form of"
    if facts.architecture == ONNX:
        yield "ONNX."
    else:
        yield f"{facts.architecture} in transformers. It needs no code beside that of transformers."
    if not record.has_head:
        yield "\nIt is an encoder alone: the published one has no head that predicts hidden words."


def _public(name: str) -> str:
    """Return a name without folders, whose place is nobody else's business; on the hub it has at most one slash."""
    return name if _HUB_NAME.fullmatch(name) else PurePath(name).name


def _beginning(facts: Facts) -> str:
    """Return the weights that training began from, in words."""
    if facts.record.config.start_from is None:
        return "random weights"
    sha256 = facts.record.environment.get("started_from", {}).get("weights_sha256", "not recorded")
    published = facts.record.begun_from()
    earlier = "other weights" if published is None else f"those of the published encoder {_public(published)}"
    return f"{earlier} (SHA-256: {sha256})"


def _origin(facts: Facts) -> Iterator[str]:
    """Tell of a published encoder, whose training is not known here."""
    record = facts.record.converted_from
    assert record is not None
    known = {
        "published encoder": _public(record["name"]),
        "revision": record.get("revision"),
        "architecture in its config.json": record.get("model_type"),
        "parameters": f"{facts.parameters:,}",
        "row length": f"{facts.record.config.data.row_length} tokens",
        "words added to the vocabulary": record.get("added_words") or None,
    }
    yield "## Origin\n\nIts text and its training are described where it was published. It was converted as it is:\n"
    yield from _bullets({name: value for name, value in known.items() if value is not None})
    yield from (f"- {remark[:1].upper()}{remark[1:]}." for remark in record.get("remarks", ()))


def _use(facts: Facts) -> Iterator[str]:
    if facts.architecture == ONNX:
        return
    names, fill_mask = "AutoModel, AutoTokenizer", ""
    advice = "; train it\nbefore use" if facts.record.converted_from is None else ""
    if facts.record.has_head:
        names += ", pipeline"
        fill_mask = f"""fill_mask = pipeline("fill-mask", model=".")
print([guess["token_str"] for guess in fill_mask("{_example(facts)}")])

"""
    yield f"""## Use

In this folder:

```python
from transformers import {names}

{fill_mask}tokenizer = AutoTokenizer.from_pretrained(".")
encoder = AutoModel.from_pretrained(".")
inputs = tokenizer(["One sentence.", "Another, longer sentence."], padding=True, truncation=True, return_tensors="pt")
print(encoder(**inputs).last_hidden_state.shape)
```

For a classifier, `AutoModelForSequenceClassification.from_pretrained(".", num_labels=2)` gives a new head to train. For
sentence vectors, `SentenceTransformer(".")` of sentence-transformers takes the mean of the hidden states{advice}."""


def _onnx(facts: Facts) -> Iterator[str]:
    if "onnx" not in facts.compared:
        return
    outputs, shown_output = "hidden", "print(hidden.shape)"
    given = [f"`{name}`" for kind, name in onnx.OUTPUTS if kind in facts.compared["onnx"].differences]
    if facts.record.has_head:
        outputs = "scores, hidden"
        shown_output = f"""place = encoded.ids.index(tokenizer.token_to_id("{facts.mask}"))
print([tokenizer.decode([token]) for token in scores[0, place].argsort()[::-1][:5]])"""
    yield f"""## Use by onnxruntime

`{onnx.FILE.as_posix()}` takes any number and length of texts, and needs onnxruntime and tokenizers alone. In this
folder:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("{onnx.FILE.as_posix()}", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file("tokenizer.json")
encoded = tokenizer.encode("{_example(facts)}")
ids = np.array([encoded.ids], np.int64)
[{outputs}] = session.run(None, {{"input_ids": ids, "attention_mask": np.ones_like(ids)}})
{shown_output}
```

`attention_mask` is 0 at padding. Outputs: {", ".join(given)}."""


def _text(facts: Facts) -> Iterator[str]:
    text = facts.record.config.text
    yield "## Text\n"
    settings = text.model_dump(mode="json")
    source = settings.pop("source")
    if "parts" in source:
        source["parts"] = [part["name"] for part in source["parts"]]
    if "paths" in source:  # the folders are nobody else's business
        source["paths"] = [PurePath(path).name for path in source["paths"]]
    if packages := facts.record.environment.get("packages"):
        source["packages"] = [f"{package['name']} {package['version']}" for package in packages]
    yield from _bullets({f"source: {name}": value for name, value in source.items()} | settings)
    if facts.record.shards is None:
        yield "\nThe sizes of the text are not recorded here: its shards were not at hand."
        return
    manifest = facts.record.shards.manifest
    rows = [[side, *(f"{count:,}" for _, count in getattr(manifest, side))] for side in ("train", "heldout")]
    yield ""
    yield from _table(["side", *(name.replace("_", " ") for name in type(manifest.train).model_fields)], rows)
    yield from (f"\n{remark}" for remark in manifest.remarks())


def _training(facts: Facts) -> Iterator[str]:
    record, environment = facts.record, facts.record.environment
    reached = {**record.progress, **record.results}
    known = {
        "steps": f"{record.manifest.step:,}",
        "tokens": shown(reached.get("tokens"), ",d"),
        "seconds": shown(reached.get("seconds"), ",.0f"),
        "device": environment.get("device"),
        "processes": environment.get("processes"),
        "precision of matrix products": environment.get("precision"),
        "begun": environment.get("started"),
        "versions": ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items()),
        "parameters": f"{facts.parameters:,}",
        "row length": f"{record.config.data.row_length} tokens",
    }
    yield "## Training\n"
    yield from _bullets({name: value for name, value in known.items() if value not in (None, "", "-")})
    if missing := [name for name, value in known.items() if value in (None, "", "-")]:
        yield f"- not recorded: {', '.join(missing)}"
    yield "\nSettings:\n\n```yaml"
    for name in SECTIONS_SHOWN:
        if name == "vocabulary" and record.config.data.tokenizer is not None:
            continue  # no vocabulary was learned
        section = getattr(record.config, name)
        yield f"{name}:\n" + "\n".join(f"  {line}" for line in dump(section).rstrip("\n").splitlines())
    yield "```"


def _results(facts: Facts) -> Iterator[str]:
    yield "## Held-out results\n"
    results = facts.record.results
    if not results:
        loss = facts.record.manifest.heldout_loss
        yield f"Masked loss: {loss:.3f} nats." if loss is not None else "These weights were not evaluated."
        yield "Baselines are measured at the end of a run, of which these weights are not."
        return
    heldout, baselines = results["heldout"], results["baselines"]
    scores = {"this encoder": heldout, "bigram (Kneser-Ney)": baselines["bigram"], "unigram": baselines["unigram"]}
    if "heldout_at_start" in results:
        scores["initial weights"] = results["heldout_at_start"]
    rows = [[name, shown(one["loss"], ".3f"), shown(one["accuracy"], ".1%")] for name, one in scores.items()]
    yield from _table(["masked tokens of held-out text", "loss (nats)", "accuracy"], rows)
    if heldout.get("bits_per_byte") is not None:
        yield f"\nBits per byte of hidden words: {bits_line(heldout)}."


def _exactness(facts: Facts) -> Iterator[str]:
    found = next(iter(facts.compared.values()))
    texts = "of the run's held-out text" if found.heldout else "general sentences"
    yield f"""## Compared with the run

At the export, this folder was read and compared with the run's own model in float32, on {found.texts} texts ({texts}),
alone and padded:
"""
    for name, compared in facts.compared.items():
        for kind, difference in compared.differences.items():
            yield f"- largest difference of {kind} in {READERS[name]}: {difference}"
    yield f"\nAn export fails over {LARGEST:.0e}."


def _limitations(facts: Facts) -> Iterator[str]:
    config = facts.record.config
    encoder, length = config.model.encoder, config.data.row_length
    yield "## Limitations\n"
    yield f"- It takes texts of at most {length} tokens; longer ones are to be truncated (`truncation=True`)."
    if converted := facts.record.converted_from is not None:
        yield "- License, uses and biases are those of the published encoder."
    else:
        text = "the text above" if config.start_from is None else "the text above and of that of its first weights"
        yield f"- It knows the language and the topics of {text} alone, and repeats the biases of that text."
    if facts.lowercase:
        yield "- It reads all text in lower case."
    if not facts.cls_sep and not converted:
        yield "- It was trained without tokens before and behind a text: take the mean of the hidden states for a text."
    if facts.architecture == "BERT":
        yield "- `AutoModel` warns that the pooler is new: masked language modelling trains none."
        yield "- Of a pair of texts both have the same token type."
    if facts.architecture == "ModernBERT" and not encoder.gated:
        yield "- The run's layers have no gates: here each has a constant gate of 1, which further training changes."
    if facts.architecture == "ModernBERT" and not config.model.transform:
        yield "- The run's head has no dense layer: here one changes nothing until it is trained further."
    if facts.license is None and not converted:
        yield "- No license was given at the export."


def _citation(facts: Facts) -> Iterator[str]:
    version = ""
    with suppress(metadata.PackageNotFoundError):  # a checkout need not be installed
        version = f",\n  version = {{{metadata.version(PROJECT)}}}"
    yield f"""## Citation

```bibtex
@software{{mlm,
  title = {{mlm: pretrain text encoders from scratch with masked language modelling}},
  author = {{{{The mlm authors}}}}{version}
}}

{_PAPERS.get(facts.architecture, "")}
```"""


def _bullets(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        listed = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield f"- {name.replace('_', ' ')}: {'none' if listed is None else listed}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
