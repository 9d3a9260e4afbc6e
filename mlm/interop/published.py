"""Read published checkpoints of the architectures that we have, exactly or not at all."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from torch import Tensor

from configs import UserError, listed
from mlm.checkpoint import weights
from mlm.interop import bert, hub, modernbert
from mlm.interop.architecture import Architecture, check
from mlm.interop.bert_relatives import DISTILBERT, ELECTRA, ROBERTA
from mlm.interop.renaming import pairs, to_ours
from mlm.model.heads import MaskedLanguageModel, ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": bert.ARCHITECTURE,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": ELECTRA,
    "distilbert": DISTILBERT,
    "modernbert": modernbert.ARCHITECTURE,
}
"""By the model_type in config.json; MiniLM and its like are BERT's."""
LONGEST_ROTARY = 512
"""Row length for positions without a table, unless the model is for shorter texts."""
_SAFE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHER = ("*.h5", "*.msgpack")


@dataclass(frozen=True)
class Published:
    """A published encoder under our names."""

    folder: Path
    model_type: str
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    """Ours, in float32; those of the head are missing if the checkpoint has no masked-LM head."""
    has_head: bool
    row_length: int
    """Positions that the encoder has, or a usual length for those without a table."""
    max_positions: int
    """The longest text that it is for."""
    remarks: tuple[str, ...]
    """Losses and differences, each a sentence."""
    their_config: "PreTrainedConfig"
    their_tokenizer: "PreTrainedTokenizerBase"


def read(name: str, revision: str | None = None) -> Published:
    """Return the encoder in a folder or on the hub, or raise a UserError that names what we cannot read or do."""
    folder = located(name, revision)
    model_type = hub.read_values(folder).get("model_type")
    if str(model_type) not in ARCHITECTURES:
        raise UserError(
            f"{folder} holds the architecture {model_type!r}, which we lack: we have {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[str(model_type)]
    theirs = hub.read_config(folder)
    config = _our_config(folder, architecture, theirs)
    found, dropped = _in_full_names(_read_safetensors(folder), architecture, theirs)
    _check_tables(found, architecture, config, theirs, folder)
    remarks = tuple(_remarks(found, dropped, architecture, theirs))
    _check_tied(found, architecture, folder)
    tensors = architecture.prepared(found, theirs)
    has_head = any(
        other in tensors for own, others in pairs(architecture.names, 1) for other in others if _is_head(own)
    )
    if has_head and architecture.head_activation is not None:
        head = architecture.head_activation(theirs)
        if head != (own := bert.THEIR_ACTIVATIONS[config.encoder.activation]):
            raise UserError(
                f"{folder}: the activation of its head is {head}, and that of its layers {own}: ours are one"
            )
    positions = tensors.get(_their_positions(architecture), torch.empty(0)).shape[0] or theirs.max_position_embeddings
    model = _empty_model(config, theirs.vocab_size, positions)
    _check_tensors(tensors, model, architecture, config, has_head=has_head, folder=folder)
    stored = to_ours(tensors, architecture.names, config.encoder.layers)
    ours = {own: tensor.float() for own, tensor in stored.items() if tensor.is_floating_point()}
    if strange := [own for own in stored if own not in ours or not ours[own].isfinite().all()]:
        raise UserError(
            f"{folder}: weights that are not finite floating-point numbers: {listed(strange)}: take another checkpoint"
        )
    learned = config.encoder.positions.kind == "learned"
    row_length = positions if learned else min(LONGEST_ROTARY, positions)
    tokenizer = hub.read_tokenizer(folder, theirs)
    return Published(folder, str(model_type), config, ours, has_head, row_length, positions, remarks, theirs, tokenizer)


def located(name: str, revision: str | None) -> Path:
    """Return the folder with the configuration: `name`, a folder inside it, or a copy fetched from the hub."""
    folder = Path(name)
    if folder.is_dir() and not (folder / hub.CONFIG).is_file():
        inside = sorted(path.parent for path in folder.glob(f"*/{hub.CONFIG}"))
        if len(inside) != 1:
            several = f"several: {', '.join(map(str, inside))}: name one" if inside else "none"
            raise UserError(f"{folder} is no published model: of folders with a {hub.CONFIG} it holds {several}")
        (folder,) = inside
    return hub.fetch(str(folder), revision)


def _our_config(folder: Path, architecture: Architecture, theirs: "PreTrainedConfig") -> ModelConfig:
    try:
        check(theirs, {"vocab_size": range(1, 2**31), "max_position_embeddings": range(8, 2**31)})
        return architecture.our_config(theirs)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{folder}: its config.json has impossible sizes: {where}: {first['msg']}".replace(": :", ":")
        ) from error
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, or of several by their index; nothing is ever unpickled."""
    if (folder / _SAFE).is_file():
        return weights.read(folder / _SAFE)
    if (folder / _INDEX).is_file():
        try:
            files = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            paths = [folder / file for file in sorted(files)]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / _INDEX} is damaged ({error}): fetch it again") from error
        if strays := [str(path) for path in paths if path.parent != folder or path.name == ".."]:
            raise UserError(f"{folder / _INDEX} names {listed(strays)}, outside of its folder: take another checkpoint")
        if lacking := [path.name for path in paths if not path.is_file()]:
            raise UserError(f"{folder} lacks {listed(lacking)}, which {_INDEX} names: fetch the files again")
        return {name: tensor for path in paths for name, tensor in weights.read(path).items()}
    if pickled := [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]:
        raise UserError(
            f"refused {folder / pickled[0]}: pickled weights can run any code, and there is no {_SAFE}: get the"
            " checkpoint as safetensors (on the hub often as --revision refs/pr/N), or make it yourself where nothing"
            " can be harmed: AutoModelForMaskedLM (AutoModel if it has no masked-LM head) and AutoTokenizer, each"
            " .from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), the model with weights_only=True"
        )
    found = ", ".join(path.name for pattern in _OTHER for path in folder.glob(pattern))
    raise UserError(f"{folder} has no weights in {_SAFE}{f', but {found}' if found else ''}: put them there")


def _in_full_names(
    found: Mapping[str, Tensor], architecture: Architecture, theirs: "PreTrainedConfig"
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by the names that a model with a head gives them, and the parts that ours has no use for.

    Classifiers of ModernBERT have layers of the names of its masked-LM head, and no scores of the vocabulary.
    """
    trunk = architecture.trunk
    whole = any(name.startswith(trunk) for name in found)
    wanted = {
        other.replace("*", "")
        for own in architecture.names.values()
        for other in ([own] if isinstance(own, str) else own)
    }
    heads = tuple({name for name in wanted if not name.startswith(trunk)} | set(architecture.tied))
    scores = (architecture.names["output_bias"], *architecture.tied)
    if not any("MaskedLM" in name for name in theirs.architectures or ()) and not any(name in found for name in scores):
        heads = ()
    tensors, dropped = dict[str, Tensor](), set[str]()
    for name, tensor in found.items():
        full = name.replace(".gamma", ".weight").replace(".beta", ".bias")  # names of TensorFlow's checkpoints
        full = full if whole or full.startswith(heads) else trunk + full
        if any(part in full for part in architecture.unused):
            continue
        if "pooler" in full or not full.startswith((trunk, *heads)):
            dropped.add(".".join(name.split(".")[: 1 + name.startswith((trunk, "cls."))]))
            continue
        tensors[full] = tensor
    return tensors, sorted(dropped)


def _remarks(
    found: Mapping[str, Tensor], dropped: list[str], architecture: Architecture, theirs: "PreTrainedConfig"
) -> Iterable[str]:
    """Yield what is lost or differs."""
    types_ND = found.get(f"{architecture.trunk}embeddings.token_type_embeddings.weight")
    if types_ND is not None and not torch.equal(types_ND, types_ND[:1].expand_as(types_ND)):
        yield (
            "it was trained on pairs of texts: the vectors of token types other than 0 are lost, and every text has"
            " type 0"
        )
    if dropped:
        yield f"heads that have no use here are left out: {', '.join(dropped)}"
    used, *others = architecture.dropouts
    for key in others:
        if (value := getattr(theirs, key)) != getattr(theirs, used):
            yield f"its {key} = {value} becomes {getattr(theirs, used)}, the {used}: ours is one for all parts"


def _check_tied(found: Mapping[str, Tensor], architecture: Architecture, folder: Path) -> None:
    for name, other in architecture.tied.items():
        if name in found and other in found and not torch.equal(found[name], found[other]):
            raise UserError(f"{folder}: its {name} differs from {other}, and our output is tied to the embedding")


def _check_tables(
    found: Mapping[str, Tensor],
    architecture: Architecture,
    config: ModelConfig,
    theirs: "PreTrainedConfig",
    folder: Path,
) -> None:
    """Raise a UserError that names a wrongly shaped table of positions or token types, which are folded into one."""
    rows = {"position": theirs.max_position_embeddings, "token_type": max(getattr(theirs, "type_vocab_size", 1), 1)}
    width = config.encoder.embedding_width or config.encoder.width
    tables = {f"{architecture.trunk}embeddings.{kind}_embeddings.weight": count for kind, count in rows.items()}
    _check_shapes(found, {name: torch.Size([count, width]) for name, count in tables.items() if name in found}, folder)


def _check_tensors(
    tensors: Mapping[str, Tensor],
    model: MaskedLanguageModel,
    architecture: Architecture,
    config: ModelConfig,
    *,
    has_head: bool,
    folder: Path,
) -> None:
    """Raise a UserError that names missing, surplus and wrongly shaped tensors."""
    expected = {own: tensor.shape for own, tensor in model.state_dict().items() if has_head or not _is_head(own)}
    shapes = {
        other: torch.Size([expected[own][0] // len(others), *expected[own][1:]])
        for own, others in pairs(architecture.names, config.encoder.layers)
        if own in expected
        for other in others
    }
    _refuse(folder, "lacks tensors", [name for name in shapes if name not in tensors])
    surplus = [name for name in tensors if name not in shapes and name not in architecture.tied]
    _refuse(folder, "has surplus tensors", surplus)
    _check_shapes(tensors, shapes, folder)


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], folder: Path) -> None:
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if tensors[name].shape != shape
    ]
    _refuse(folder, "has tensors of other shapes than its config.json says", wrong)


def _refuse(folder: Path, fault: str, names: list[str]) -> None:
    if names:
        raise UserError(f"{folder} {fault}: {listed(names)}: take a whole checkpoint")


def _empty_model(config: ModelConfig, vocabulary_size: int, positions: int) -> MaskedLanguageModel:
    with torch.device("meta"):
        return MaskedLanguageModel(config, vocabulary_size, positions)


def _their_positions(architecture: Architecture) -> str:
    name = architecture.names.get("encoder.embeddings.positions")
    return f"{name}.weight" if isinstance(name, str) else ""


def _is_head(own: str) -> bool:
    return not own.startswith("encoder.")
