"""Malformed input of every kind, and the one line that each gets."""

import gzip
import importlib
import os
import pickle
import shutil
from pathlib import Path

import pytest

from configs import UserError
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST
from tests.finetune import samples

PRETRAIN, ENCODE, LEARN, FILL, EVALUATE, STATUS = (
    "mlm.pretrain",
    "tokenizer.encode",
    "tokenizer.train",
    "mlm.fill_mask",
    "mlm.evaluate",
    "mlm.status",
)
HEAD, PREDICT, COMPARE = "finetune.cnn_head", "finetune.predict", "finetune.compare"
FILES = "text.source.kind=files"
LABELLED = ("data.kind=labelled", "encoder.run=run", "data.label=target")
OUT = ("--tokenizer", "tokenizer.json", "--output", "shards")


class Code:
    """Something that would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and with files that are wrong in many ways."""
    folder = tmp_path_factory.mktemp("home")
    made = samples.make_run(folder / "made")
    shutil.move(made, folder / "run")
    step = "checkpoints/step-000000001"
    shutil.copy(folder / "run" / step / checkpoint.TOKENIZER, folder / "tokenizer.json")
    for name, file, content in (
        ("pickled-weights", checkpoint.WEIGHTS, pickle.dumps(Code())),
        ("pickled-manifest", MANIFEST, pickle.dumps(Code())),
        ("pickled-tokenizer", checkpoint.TOKENIZER, pickle.dumps(Code())),
        ("no-weights", checkpoint.WEIGHTS, None),
        ("cut-weights", checkpoint.WEIGHTS, b"\x10\0\0\0\0\0\0\0{}"),
        ("other-config", checkpoint.CONFIG, b"model: {encoder: {width: 32}}"),
    ):
        shutil.copytree(folder / "run", folder / name)
        path = folder / name / step / file
        path.unlink() if content is None else path.write_bytes(content)
    samples.write_csv(folder / "good.csv", 60)
    tables = {
        "empty.csv": b"",
        "header.csv": b"text,target\n",
        "one-class.csv": b"text,target\na b,1\nc d,1\n",
        "no-label.csv": b"text,target\na b,1\nc d,\ne f,0\n",
        "ragged.csv": b"text,target\na b,1\nc,d,0\n",
        "empty-texts.csv": b"text,target\n,1\n ,0\n",
        "latin.csv": "text,target\ncaf\u00e9,1\n".encode("latin-1"),
        "columns.csv": b"tweet,target\na,1\n",
        "twice.csv": b"text,text,target\na,b,1\n",
        "few.csv": b"text,target\na b,1\nc d,0\n",
        "bad.jsonl": b'{"text": "a", "target": 1}\n{"text": \n',
        "list.jsonl": b'["a", 1]\n',
        "bad.parquet": b"PAR1 no",
        "broken.csv.gz": gzip.compress(b"text,target\na b,1\n", mtime=0)[:-6],
        "table.doc": b"a",
        "blank.txt": b"\n\n \n",
        "empty.txt": b"",
        "latin.txt": "caf\u00e9\n".encode("latin-1"),
        "short.txt": b"one sentence.\n",
        "bad.yaml": b"optim: [\n",
        "list.yaml": b"- a\n",
        "code.yaml": b"name: !!python/object/apply:os.system ['touch ran']\n",
        "tokenizer-list.json": b"[]",
        "not-shards/file": b"a",
    }
    for name, content in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


CASES: list[tuple[str, tuple[str, ...], str]] = [
    (PRETRAIN, ("optim.lr=fast",), "optim.lr = 'fast': input should be a valid number, unable to parse string as a"),
    (PRETRAIN, ("optim.lr=-1",), "optim.lr = '-1': input should be greater than 0 (command line)"),
    (PRETRAIN, ("optim.lr=nan",), "optim.lr = 'nan': input should be a finite number (command line)"),
    (PRETRAIN, ("optim.lrr=1",), "unknown key optim.lrr: did you mean optim.lr? (command line)"),
    (PRETRAIN, ("optim.kind=adam",), "optim.kind must be one of adamw, schedule_free, muon (command line)"),
    (
        PRETRAIN,
        ("train.batch_rows=1.5",),
        "train.batch_rows = '1.5': input should be a valid integer, unable to parse string",
    ),
    (
        PRETRAIN,
        ("train.batch_rows=true",),
        "train.batch_rows = 'true': input should be a valid integer, unable to parse string",
    ),
    (PRETRAIN, ("masking.rate=1.5",), "masking.rate = '1.5': input should be less than 1 (command line)"),
    (PRETRAIN, ("model.encoder.heads=3",), "model.encoder: width 128 is not divisible by heads 3 (command line)"),
    (PRETRAIN, ("text.heldout_share=1",), "text.heldout_share = '1': input should be less than 1 (command line)"),
    (PRETRAIN, ("name=../up",), "name = '../up': string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$' (command"),
    (PRETRAIN, ("optim",), "no such configuration file: optim"),
    (PRETRAIN, ("a.yaml", "b.yaml"), "one YAML file at the most, not a.yaml, b.yaml"),
    (PRETRAIN, ("none.yaml",), "no such configuration file: none.yaml"),
    (PRETRAIN, ("bad.yaml",), "bad.yaml is not valid YAML: while parsing a flow node expected the node content,"),
    (PRETRAIN, ("list.yaml",), "list.yaml must hold sections with keys (such as 'optim:'), not a list"),
    (PRETRAIN, ("code.yaml",), "code.yaml is not valid YAML: could not determine a constructor for the tag"),
    (PRETRAIN, ("--fast",), "unrecognized arguments: --fast: see python -m mlm.pretrain --help"),
    (PRETRAIN, ("--resume", "nowhere"), "nowhere is no run: it has no config.yaml"),
    (
        PRETRAIN,
        ("--resume", "run", "optim.lr=1"),
        "--resume goes on with the run's own configuration: leave out everything but the run",
    ),
    (PRETRAIN, ("--resume", "no-weights"), "every checkpoint in no-weights is damaged: start a new run"),
    (PRETRAIN, ("--resume", "pickled-manifest"), "every checkpoint in pickled-manifest is damaged: start a new run"),
    (PRETRAIN, ("parallel.kind=magic",), "parallel.kind must be one of replicated_data, sharded_data (command line)"),
    (
        PRETRAIN,
        (FILES, "text.source.paths=none.txt"),
        "none.txt: no such file, and no file matches it as a pattern: name files, or a",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=table.doc"),
        "cannot tell the format of table.doc by its name: it must end in one of .txt,",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=blank.txt"),
        "the text is empty: after cleaning, no training sentence is left: name another source",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=latin.txt"),
        "latin.txt, line 1, byte 3: invalid UTF-8: convert the file, or set",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=short.txt"),
        "a corpus too small for the vocabulary: its text gives 262 tokens, not 2,048: set",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=good.csv", "text.source.columns=tweet"),
        "good.csv, line 1: no column 'tweet'; there are: id, text, target: name the text's",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=bad.jsonl", "text.source.columns=text"),
        "bad.jsonl, line 2: not valid JSON (Expecting value: line 2 column 1 (char 10)):",
    ),
    (
        PRETRAIN,
        (FILES, "text.source.paths=broken.csv.gz", "text.source.columns=text"),
        "broken.csv.gz is truncated or damaged (Compressed file ended before the",
    ),
    (PRETRAIN, ("start_from=nowhere",), "start_from = nowhere: no such run: name the directory of one, such as runs/x"),
    (
        PRETRAIN,
        ("start_from=pickled-weights",),
        "pickled-weights/checkpoints/step-000000001/weights.safetensors is truncated or was",
    ),
    (
        PRETRAIN,
        ("start_from=run", "model.encoder.width=32"),
        "model.encoder.width = 32 differs from 16, which is taken from start_from = run with",
    ),
    (
        PRETRAIN,
        ("data.tokenizer=tokenizer-list.json",),
        "tokenizer-list.json is no valid tokenizer.json (invalid type: sequence, expected",
    ),
    (PRETRAIN, ("data.tokenizer=none.json",), "no such tokenizer: none.json"),
    (
        LEARN,
        ("none.txt", "--output", "t.json"),
        "none.txt: no such file, and no file matches it as a pattern: name files, or a",
    ),
    (
        LEARN,
        ("short.txt", "--output", "tokenizer.json"),
        "a corpus too small for the vocabulary: its text gives 262 tokens, not 2,048: set",
    ),
    (
        LEARN,
        ("short.txt", "--output", "t.json", "--vocabulary", "100"),
        "vocabulary.size = '100': input should be greater than or equal to 261 (command line)",
    ),
    (ENCODE, ("short.txt", "--tokenizer", "none.json", "--output", "shards"), "no such tokenizer: none.json"),
    (
        ENCODE,
        ("short.txt", "--tokenizer", "tokenizer-list.json", "--output", "shards"),
        "tokenizer-list.json is no valid tokenizer.json (invalid type: sequence, expected",
    ),
    (ENCODE, ("empty.txt", *OUT), "empty.txt is empty: name a file with text"),
    (
        ENCODE,
        ("short.txt", "--tokenizer", "tokenizer.json", "--output", "not-shards"),
        "not-shards exists and holds no token shards: name another folder",
    ),
    (FILL, ("--run", "nowhere", "a [MASK]"), "no such run: nowhere"),
    (FILL, ("--run", "run", "no blank"), "no [MASK] in 'no blank': write [MASK] where a word is to be filled in"),
    (
        FILL,
        ("--run", "cut-weights", "a [MASK]"),
        "cut-weights/checkpoints/step-000000001/weights.safetensors is truncated or was",
    ),
    (
        FILL,
        ("--run", "pickled-weights", "a [MASK]"),
        "pickled-weights/checkpoints/step-000000001/weights.safetensors is truncated or was",
    ),
    (
        FILL,
        ("--run", "pickled-tokenizer", "a [MASK]"),
        "pickled-tokenizer/checkpoints/step-000000001/tokenizer.json is truncated or was",
    ),
    (
        FILL,
        ("--run", "other-config", "a [MASK]"),
        "other-config/checkpoints/step-000000001/config.yaml is truncated or was changed:",
    ),
    (EVALUATE, ("nowhere",), "no such run: nowhere"),
    (STATUS, ("nowhere",), "nowhere is no run: it has no config.yaml"),
    (HEAD, ("encoder.run=nowhere",), "no such run: nowhere"),
    (
        HEAD,
        ("encoder.run=run", "encoder.hub=a/b"),
        "encoder: encoder.run and encoder.hub are both set: choose one (command line)",
    ),
    (
        HEAD,
        ("encoder.run=pickled-weights",),
        "pickled-weights/checkpoints/step-000000001/weights.safetensors is truncated or was",
    ),
    (HEAD, ("head.width=3",), "unknown key head.width: did you mean head.widths? (command line)"),
    (HEAD, (*LABELLED,), "no training data is named: set data.train to a labelled file, or data.hub to a data"),
    (HEAD, (*LABELLED, "data.train=none.csv"), "no such file: none.csv"),
    (HEAD, (*LABELLED, "data.train=empty.csv"), "empty.csv is empty"),
    (HEAD, (*LABELLED, "data.train=header.csv"), "header.csv has no rows: name a file with labelled texts"),
    (
        HEAD,
        (*LABELLED, "data.train=one-class.csv"),
        "one-class.csv",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=no-label.csv"),
        "no-label.csv: no label in row 2 (known: 0, 1)",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=ragged.csv"),
        "ragged.csv, line 3: 3 columns",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=empty-texts.csv"),
        "empty-texts.csv",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=latin.csv"),
        "latin.csv, line 2, byte 15",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=columns.csv"),
        "'text'; there are: tweet, target",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=twice.csv"),
        "twice.csv: the column 'text'",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=few.csv"),
        "class '0' has 1 texts, and a part of 10.0% takes 2 of each class: add some, merge",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=bad.jsonl"),
        "bad.jsonl, line 2: not valid JSON",
    ),
    (HEAD, (*LABELLED, "data.train=list.jsonl"), "list.jsonl, line 1: a JSON list, not an object with named columns"),
    (
        HEAD,
        (*LABELLED, "data.train=bad.parquet"),
        "bad.parquet",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=broken.csv.gz"),
        "broken.csv.gz is truncated or damaged (Compressed file ended before the",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=table.doc"),
        "table.doc",
    ),
    (
        HEAD,
        (*LABELLED, "data.train=good.csv", "data.text=target"),
        "data: label = target is among the columns of the text: that gives the answer away",
    ),
    (PREDICT, ("nowhere", "text"), "no such run: nowhere"),
    (PREDICT, ("run", "text"), "python -m finetune.cnn_head encoder.run=run"),
    (COMPARE, ("nowhere",), "no such run: nowhere"),
    (COMPARE, ("run",), "no results.json in run"),
]


@pytest.mark.parametrize(("entry", "words", "line"), CASES, ids=lambda value: " ".join(value) if value else None)
def test_malformed_input_gets_one_line(
    entry: str, words: tuple[str, ...], line: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(UserError) as caught:
        importlib.import_module(entry).main(words)
    message = str(caught.value)
    assert line in message
    assert "\n" not in message
    assert not (home / "ran").exists()
    assert not list(home.glob("runs/20*"))
