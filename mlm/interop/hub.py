"""Fetch published encoders from the Hugging Face hub and read their files without trusting them.

Code in a checkpoint is never run, weights are never unpickled freely, and weights missing in the file are an error
instead of being random.
"""

import inspect
import json
import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from configs import UserError, listed
from configs.extras import require
from tokenizer.sources.hub import failure

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "config.json"
SECONDS_TO_CONNECT = 10

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WEIGHTS = (re.compile(r"model.*\.safetensors(\.index\.json)?"), re.compile(r"pytorch_model.*\.bin(\.index\.json)?"))
_SMALL_FILES = re.compile(r"[^/]+\.(json|txt|model|codes|bpe)")


def fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a published encoder: `name` itself, or the copy fetched from the hub or in its cache."""
    require("transformers", extra="hub", purpose="published encoders")
    folder = Path(name)
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(name):
            raise UserError(f"no such folder: {name}: give a folder with a {CONFIG}, or a name on the Hugging Face hub")
        folder = _download(name, revision)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name} is no published encoder: it has no {CONFIG} (name a pretraining run by encoder.run)")
    return folder


def _download(name: str, revision: str | None) -> Path:
    """Fetch the needed files, with weights in one format only.

    A single request without retries comes first: transformers itself retries for over a minute without a network.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_CONNECT)
    except Exception as error:  # errors of the HTTP library pass through
        with suppress(OSError, ValueError):
            # The cache holds some of the files only, so ask for no more than the configuration.
            return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=CONFIG))
        raise UserError(failure(name, error)) from error
    files = [file.rfilename for file in found.siblings or ()]
    weights = next((some for kind in _WEIGHTS if (some := [file for file in files if kind.fullmatch(file)])), [])
    wanted = [*weights, *filter(_SMALL_FILES.fullmatch, files)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # as above
        raise UserError(failure(name, error)) from error


def read_values(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json; a UserError if it is missing or damaged."""
    with reading(folder / CONFIG):
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("it holds no JSON object")
        return values


def read_config(folder: Path, dropout: float | None = None) -> "PreTrainedConfig":
    """Return the configuration of a published encoder, with every dropout inside it set to `dropout` unless None.

    A UserError if it is damaged, needs code of its own, or describes no text encoder.
    """
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig

    values = read_values(folder)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        code = ", and code in a checkpoint is never run" if "auto_map" in values else ""
        raise UserError(
            f"{folder / CONFIG}: transformers knows no model_type {model_type!r}{code}: take another checkpoint"
        )
    with reading(folder / CONFIG):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config._attn_implementation = None  # it may name code on the hub to fetch and run
    config.return_dict, config.chunk_size_feed_forward = True, 0  # as this project calls models; results are the same
    if config.is_encoder_decoder or getattr(config, "is_decoder", False) or type(config) not in MODEL_MAPPING:
        raise UserError(f"{folder} holds no encoder of text, but {model_type!r}: take one such as BERT or ELECTRA")
    for key in config.to_dict():
        if dropout is not None and "dropout" in key and not key.startswith(("classifier", "summary", "seq_classif")):
            setattr(config, key, dropout)
    return config


def read_tokenizer(folder: Path, config: "PreTrainedConfig") -> "PreTrainedTokenizerBase":
    """Return a folder's own tokenizer; a UserError if it is missing, damaged, or belongs to another encoder."""
    from transformers import AutoTokenizer

    with reading(f"the tokenizer in {folder}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    files = list(tokenizer.vocab_files_names.values())
    if not any((folder / name).is_file() for name in files):  # transformers would use an empty vocabulary
        raise UserError(f"{folder} has no tokenizer: there is none of {', '.join(files)}: put it beside the weights")
    if (needed := max(tokenizer.get_vocab().values(), default=0) + 1) > config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} needs {needed} rows for its tokens, over the encoder's {config.vocab_size}: it "
            "belongs to another encoder: put the right one there"
        )
    return tokenizer


def without_pooler(model_class: "type[PreTrainedModel]") -> dict[str, bool]:
    """Return the arguments that keep `model_class` from creating a pooler, which is not used here."""
    known = inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def read_weights(model_class: "type[PreTrainedModel]", folder: Path, config: "PreTrainedConfig") -> "PreTrainedModel":
    """Return a model of `model_class` with a folder's weights, in float32 and in evaluation mode.

    Weights of other heads are dropped. A UserError if the file is missing or damaged, needs free unpickling, or lacks
    weights of the model.
    """
    import torch

    with reading(f"the weights in {folder}"):
        load: Any = model_class.from_pretrained
        safe = {"weights_only": True, "trust_remote_code": False, "local_files_only": True}
        shape = {"config": config, "dtype": torch.float32, **without_pooler(model_class)}
        model, found = load(folder, **safe, **shape, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder} lacks weights of {model_class.__name__} ({listed(missing)}), which would be random: take a "
            "checkpoint that has them"
        )
    if strange := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(f"{folder}: weights that are not finite numbers, such as {strange[0]}: take another checkpoint")
    return cast("PreTrainedModel", model)


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Turn any error of transformers into one line, and silence its own reports."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **{**kwargs, "disable": True}))
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"refused {source}: the .bin file is damaged or holds more than tensors, and unpickling that could run any "
            "code: get the checkpoint as .safetensors"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot read {source} ({reason[:300]}): fetch the files again, or take another encoder"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.set_tqdm_hook(bars)
