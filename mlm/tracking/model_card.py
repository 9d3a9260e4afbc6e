"""Write the model card of an exported model from the records of its run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from configs import dump
from mlm.evaluation.results import shown
from mlm.interop import onnx
from mlm.interop.comparison import LARGEST
from mlm.interop.export import Compared
from mlm.tracking import run_directory
from mlm.tracking.run_record import RunRecord
from tokenizer.sources import Documentation

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

    name: str
    """Name of the exported folder."""
    architecture: str
    record: RunRecord
    parameters: int
    mask: str
    """The mask token."""
    cls_sep: bool
    """True if the tokenizer puts tokens before and behind a text."""
    compared: Compared
    onnx: Compared | None
    licence: str | None
    language: str | None


def write(folder: Path, facts: Facts) -> None:
    """Write the model card into `folder`."""
    language = "en" if isinstance(facts.record.config.text.source, Documentation) else None
    data = ModelCardData(
        license=facts.licence,
        language=facts.language or language,
        library_name="onnx" if facts.architecture == ONNX else "transformers",
        pipeline_tag="fill-mask",
        tags=["masked-language-modelling", facts.architecture.lower()],
        mask_token=facts.mask,
        widget=[{"text": _example(facts)}],
    )
    sections = (_opening, _use, _onnx, _text, _training, _results, _exactness, _limitations, _citation)
    body = "\n\n".join("\n".join(section(facts)) for section in sections)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / FILE)


def _example(facts: Facts) -> str:
    return f"Return the {facts.mask} of the list."


def _opening(facts: Facts) -> Iterator[str]:
    config, environment = facts.record.config, facts.record.environment
    yield f"# {config.name}\n"
    if origin := environment.get(run_directory.CONVERTED_FROM):
        # The place of a folder is nobody else's business; a name on the hub has at most one slash, and no dot first.
        name = origin["name"] if _HUB_NAME.fullmatch(origin["name"]) else PurePath(origin["name"]).name
        yield f"The published encoder {name}, its weights taken into another program and back, in the form of"
    else:
        start = environment.get("started_from", {}).get("weights_sha256")
        begun = f"from the weights with the SHA-256 {start}" if start else "from random weights"
        yield f"The encoder of the run `{config.name}`, pretrained {begun} by masked language modelling, in the form of"
    if facts.architecture == ONNX:
        yield "ONNX."
    else:
        yield f"{facts.architecture} in transformers. It needs no code beside that of transformers."


def _use(facts: Facts) -> Iterator[str]:
    if facts.architecture == ONNX:
        return
    yield f"""## Use

In the folder that holds this one:

```python
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

fill_mask = pipeline("fill-mask", model="{facts.name}")
print([guess["token_str"] for guess in fill_mask("{_example(facts)}")])

tokenizer = AutoTokenizer.from_pretrained("{facts.name}")
encoder = AutoModel.from_pretrained("{facts.name}")
inputs = tokenizer(["One sentence.", "Another, longer sentence."], padding=True, truncation=True, return_tensors="pt")
print(encoder(**inputs).last_hidden_state.shape)
```

For a classifier, `AutoModelForSequenceClassification.from_pretrained("{facts.name}", num_labels=2)` gives a new head to
train. For sentence vectors, `SentenceTransformer("{facts.name}")` of sentence-transformers takes the mean of the hidden
states; train it before use."""


def _onnx(facts: Facts) -> Iterator[str]:
    if facts.onnx is None:
        return
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
scores, hidden = session.run(["logits", "last_hidden_state"], {{"input_ids": ids, "attention_mask": np.ones_like(ids)}})
place = encoded.ids.index(tokenizer.token_to_id("{facts.mask}"))
print([tokenizer.decode([token]) for token in scores[0, place].argsort()[::-1][:5]])
```

`attention_mask` is 0 at padding. Compared with the run as below, by onnxruntime: the largest difference of a score is
{facts.onnx.differences["scores"]}, and that of a last hidden state {facts.onnx.differences["hidden states"]}."""


def _text(facts: Facts) -> Iterator[str]:
    text = facts.record.config.text
    yield "## Text\n"
    settings = text.model_dump(mode="json")
    source = settings.pop("source")
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
    if (bits := heldout.get("bits_per_byte")) is not None:
        yield f"\nBits per byte of hidden words: {bits:.3f}."


def _exactness(facts: Facts) -> Iterator[str]:
    found, reader = facts.compared, "onnxruntime" if facts.architecture == ONNX else "transformers"
    texts = "of the run's held-out text" if found.heldout else "general sentences"
    yield f"""## Compared with the run

At the export, {reader} read this folder and was compared with the run's own model in float32, on {found.texts} texts
({texts}), alone and padded:
"""
    yield from (f"- largest difference of {kind}: {difference}" for kind, difference in found.differences.items())
    yield f"\nAn export fails over {LARGEST:.0e}."


def _limitations(facts: Facts) -> Iterator[str]:
    config = facts.record.config
    encoder, length = config.model.encoder, config.data.row_length
    yield "## Limitations\n"
    yield f"- It was trained on texts of at most {length} tokens; longer ones are to be truncated (`truncation=True`)."
    yield "- It knows the language and the topics of the text above alone, and repeats the biases of that text."
    if config.vocabulary.lowercase and run_directory.CONVERTED_FROM not in facts.record.environment:
        yield "- It reads all text in lower case."
    if not facts.cls_sep:
        yield "- It was trained without tokens before and behind a text: take the mean of the hidden states for a text."
    if facts.architecture == "BERT":
        yield "- `AutoModel` warns that the pooler is new: masked language modelling trains none."
        yield "- Of a pair of texts both have the same token type."
    if facts.architecture == "ModernBERT" and not encoder.gated:
        yield "- The run's layers have no gates: here each has a constant gate of 1, which further training changes."
    if facts.architecture == "ModernBERT" and not config.model.transform:
        yield "- The run's head has no dense layer: here one changes nothing until it is trained further."
    if facts.licence is None:
        yield "- No licence was given at the export."


def _citation(facts: Facts) -> Iterator[str]:
    version = metadata.version("mlm")
    yield f"""## Citation

```bibtex
@software{{mlm,
  title = {{mlm: pretrain text encoders from scratch with masked language modelling}},
  author = {{{{The mlm authors}}}},
  version = {{{version}}}
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
