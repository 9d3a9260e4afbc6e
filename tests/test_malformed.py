"""Malformed input of every kind, and the one line that each gets."""

import gzip
import importlib
import pickle
import shlex
import shutil
from pathlib import Path

import pytest

from configs import UserError
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST
from tests.finetune import samples
from tests.processes import Code

FILES = "text.source.kind=files text.source.paths="
LABELLED = "data.kind=labelled encoder.run=run data.label=target"
TRAIN = f"{LABELLED} data.train="
STEP = "checkpoints/step-000000001"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and with files that are wrong in many ways."""
    folder = tmp_path_factory.mktemp("home")
    made = samples.make_run(folder / "made")
    shutil.move(made, folder / "run")
    shutil.copy(folder / "run" / STEP / checkpoint.TOKENIZER, folder / "tokenizer.json")
    for name, file, content in (
        ("pickled-weights", checkpoint.WEIGHTS, pickle.dumps(Code())),
        ("pickled-manifest", MANIFEST, pickle.dumps(Code())),
        ("pickled-tokenizer", checkpoint.TOKENIZER, pickle.dumps(Code())),
        ("no-weights", checkpoint.WEIGHTS, None),
        ("cut-weights", checkpoint.WEIGHTS, b"\x10\0\0\0\0\0\0\0{}"),
        ("other-config", checkpoint.CONFIG, b"model: {encoder: {width: 32}}"),
    ):
        shutil.copytree(folder / "run", folder / name)
        path = folder / name / STEP / file
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
        "alone.tsv": b"the cat sits\tthe sits cat\nthe dog barks\n",
        "no-pairs.zip": b"PK\5\6" + bytes(18),
        "not-shards/file": b"a",
    }
    for name, content in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


CASES = {
    "mlm.pretrain": {
        "optim.lr=fast": "optim.lr = 'fast'",
        "optim.lr=-1": "optim.lr = '-1'",
        "optim.lr=nan": "optim.lr = 'nan'",
        "optim.lrr=1": "optim.lrr: | optim.lr?",
        "optim.kind=adam": "optim.kind | adamw, schedule_free, muon",
        "train.batch_rows=1.5": "train.batch_rows = '1.5'",
        "train.batch_rows=true": "train.batch_rows = 'true'",
        "masking.rate=1.5": "masking.rate = '1.5'",
        "model.encoder.heads=3": "model.encoder: | width 128 | heads 3",
        "text.heldout_share=1": "text.heldout_share = '1'",
        "name=../up": "name = '../up'",
        "parallel.kind=magic": "parallel.kind | replicated_data, sharded_data",
        "optim": ": optim | section.key=value",
        "a.yaml b.yaml": "a.yaml, b.yaml",
        "none.yaml": "none.yaml",
        "bad.yaml": "bad.yaml",
        "list.yaml": "list.yaml | list",
        "code.yaml": "code.yaml",
        "--fast": "--fast | python -m mlm.pretrain --help",
        "--resume nowhere": "nowhere | config.yaml",
        "--resume run optim.lr=1": "--resume",
        "--resume no-weights": "every checkpoint | no-weights",
        "--resume pickled-manifest": "every checkpoint | pickled-manifest",
        f"{FILES}none.txt": "none.txt",
        f"{FILES}table.doc": "table.doc | .txt",
        f"{FILES}blank.txt": "blank.txt is empty",
        f"{FILES}latin.txt": "latin.txt, line 1, byte 3 | UTF-8",
        f"{FILES}short.txt": "vocabulary | 262 | 2,048",
        f"{FILES}good.csv text.source.columns=tweet": "good.csv, line 1 | 'tweet' | id, text, target",
        f"{FILES}bad.jsonl text.source.columns=text": "bad.jsonl, line 2 | JSON",
        f"{FILES}broken.csv.gz text.source.columns=text": "broken.csv.gz",
        "start_from=nowhere": "start_from = nowhere",
        "start_from=pickled-weights": f"pickled-weights/{STEP}/weights.safetensors",
        "start_from=run model.encoder.width=32": "model.encoder.width = 32 | 16 | start_from = run",
        "data.tokenizer=tokenizer-list.json": "tokenizer-list.json",
        "data.tokenizer=none.json": "none.json",
    },
    "tokenizer.train": {
        "none.txt --output t.json": "none.txt",
        "short.txt --output tokenizer.json": "vocabulary | 262 | 2,048",
        "short.txt --output t.json --vocabulary 100": "vocabulary.size = '100' | 261",
    },
    "tokenizer.encode": {
        "short.txt --tokenizer none.json --output shards": "none.json",
        "short.txt --tokenizer tokenizer-list.json --output shards": "tokenizer-list.json",
        "empty.txt --tokenizer tokenizer.json --output shards": "empty.txt",
        "short.txt --tokenizer tokenizer.json --output not-shards": "not-shards",
    },
    "mlm.fill_mask": {
        "--run nowhere 'a [MASK]'": "nowhere",
        "--run run 'no blank'": "[MASK] | 'no blank'",
        "--run cut-weights 'a [MASK]'": f"cut-weights/{STEP}/weights.safetensors",
        "--run pickled-weights 'a [MASK]'": f"pickled-weights/{STEP}/weights.safetensors",
        "--run pickled-tokenizer 'a [MASK]'": f"pickled-tokenizer/{STEP}/tokenizer.json",
        "--run other-config 'a [MASK]'": f"other-config/{STEP}/config.yaml",
    },
    "mlm.evaluate": {
        "nowhere": "nowhere",
        "run --pairs none.tsv": "none.tsv",
        "run --pairs alone.tsv": "alone.tsv, line 2",
        "run --pairs no-pairs.zip": "no-pairs.zip",
        "run --pairs table.doc": "table.doc",
        "run --pairs --most 0": "--most | from 1 on",
    },
    "mlm.status": {"nowhere": "nowhere | config.yaml"},
    "finetune.cnn_head": {
        "encoder.run=nowhere": "nowhere",
        "encoder.run=run encoder.hub=a/b": "encoder.run | encoder.hub",
        "encoder.run=pickled-weights": f"pickled-weights/{STEP}/weights.safetensors",
        "head.width=3": "head.width: | head.widths?",
        LABELLED: "data.train | data.hub",
        f"{TRAIN}none.csv": "none.csv",
        f"{TRAIN}empty.csv": "empty.csv",
        f"{TRAIN}header.csv": "header.csv",
        f"{TRAIN}one-class.csv": "one-class.csv",
        f"{TRAIN}no-label.csv": "no-label.csv | row 2 | 0, 1",
        f"{TRAIN}ragged.csv": "ragged.csv, line 3 | 3 columns",
        f"{TRAIN}empty-texts.csv": "empty-texts.csv",
        f"{TRAIN}latin.csv": "latin.csv, line 2, byte 15",
        f"{TRAIN}columns.csv": "'text' | tweet, target",
        f"{TRAIN}twice.csv": "twice.csv | 'text'",
        f"{TRAIN}few.csv": "class '0' | 10 %",
        f"{TRAIN}bad.jsonl": "bad.jsonl, line 2 | JSON",
        f"{TRAIN}list.jsonl": "list.jsonl, line 1 | list",
        f"{TRAIN}bad.parquet": "bad.parquet",
        f"{TRAIN}broken.csv.gz": "broken.csv.gz",
        f"{TRAIN}table.doc": "table.doc",
        f"{TRAIN}good.csv data.text=target": "data: | label = target",
        f"{TRAIN}good.csv data.contradictions=keep": "data: | data.duplicates=keep",
    },
    "finetune.predict": {"nowhere text": "nowhere", "run text": "python -m finetune.cnn_head encoder.run=run"},
    "finetune.suite.__main__": {
        "nowhere encoder.run=run": "nowhere | glue, kim2014",
        "glue encoder.run=nowhere": "nowhere",
        "kim2014 encoder.run=run --data nowhere": "nowhere",
        "kim2014 encoder.run=run data.labels=x": "data.labels: | data.label?",
    },
    "finetune.compare": {"nowhere": "nowhere", "run": "run | results.json"},
}
"""The names that the one line must hold, separated by |, for each command and its arguments."""


@pytest.mark.parametrize(("entry", "words"), [(entry, words) for entry, cases in CASES.items() for words in cases])
def test_malformed_input_gets_one_line_with_its_names(
    entry: str, words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(UserError) as caught:
        importlib.import_module(entry).main(shlex.split(words))
    message = str(caught.value)
    assert [name for name in CASES[entry][words].split(" | ") if name not in message] == []
    assert "\n" not in message
    assert not (home / "ran").exists()
    assert not list(home.glob("runs/20*"))
