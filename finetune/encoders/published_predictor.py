"""Fill in blanks with a published masked language model, for the replacement of words by its predictions."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from configs import UserError
from finetune.encoders.encoder import Tokens
from finetune.encoders.hub import fetch, read_config, read_tokenizer, read_weights
from finetune.encoders.published import pad_id, position_limit, takes_types, tokenise
from mlm.distributed.device import autocast
from mlm.distributed.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORD_BEGINS = ("Ġ", "▁")
_WORD_GOES_ON = "##"


class PublishedPredictor(nn.Module):
    """The masked language model of the transformers library that a checkpoint holds, in evaluation mode."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", world: World) -> None:
        """Predict on the world's device and in its precision; the tokenizer has a mask token."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.mask_text, self._mask_id = str(tokenizer.mask_token), int(tokenizer.mask_token_id)
        self.longest = int(min(position_limit(model), tokenizer.model_max_length))
        self._takes_types, self._pad_id = takes_types(model), pad_id(model, tokenizer)
        self.world = world
        self.train(False)
        self.to(world.device)

    @cached_property
    def words(self) -> Sequence[str | None]:
        """What each vocabulary entry is as a whole word, without white space; None if it is no word of letters."""
        size = len(self.tokenizer)
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(size)))
        special = set(self.tokenizer.all_special_ids)
        # Vocabularies mark either how words begin (byte-level, SentencePiece) or how they go on (WordPiece).
        marked = [token is not None and token.startswith(_WORD_BEGINS) for token in tokens]
        going_on = [token is None or token.startswith(_WORD_GOES_ON) for token in tokens]
        begins = marked if sum(marked) > sum(going_on) else [not rest for rest in going_on]
        texts = [text.strip() for text in self.tokenizer.batch_decode([[index] for index in range(size)])]
        return [
            text if begins[index] and index not in special and text.isalpha() else None
            for index, text in enumerate(texts)
        ]

    def encoder_tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[Tokens]:
        """Return the tokens as `PublishedEncoder.tokenise` does."""
        return tokenise(self.tokenizer, texts, longest)

    @torch.no_grad()
    def masked_scores(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the scores of the vocabulary at the masks, row by row, (M, V); no others are computed."""
        masked_BL = ids_BL == self._mask_id
        types = {"token_type_ids": types_BL} if self._takes_types else {}

        def masked_only(_: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (hidden[0][masked_BL],)

        into_vocabulary: nn.Module = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hook = into_vocabulary.register_forward_pre_hook(masked_only)
        try:
            with autocast(self.world.device, self.world.dtype):
                scores_MV: Tensor = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), **types).logits
        finally:
            hook.remove()
        return scores_MV

    def predict(self, texts: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Return for each example the scores of the vocabulary at its masks, in order, (masks, V). float32, on CPU."""
        if not texts:
            return []
        rows = self.encoder_tokenise(texts, self.longest)
        ids_BL = _padded([row.ids for row in rows], self._pad_id)
        real_BL = _padded([(1,) * len(row.ids) for row in rows], 0).bool()
        types_BL = _padded([row.types for row in rows], 0)
        scores_MV = self.masked_scores(*(part.to(self.world.device) for part in (ids_BL, real_BL, types_BL)))
        masks = (ids_BL == self._mask_id).sum(dim=1).tolist()
        return list(torch.split(scores_MV.float().cpu(), masks))


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def load_published_predictor(name_or_folder: str, revision: str | None, world: World) -> PublishedPredictor:
    """Return a published masked language model, with the head that it was pretrained with.

    Raises:
        UserError: as `load_published`; also where the checkpoint has no such head, or its tokenizer no mask.

    """
    folder = fetch(name_or_folder, revision)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or tokenizer.mask_token is None:
        raise UserError(
            f"{name_or_folder} predicts no hidden words ({config.model_type}): take a masked language model such as "
            "BERT, or do without contextual replacement"
        )
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_MASKED_LM_MAPPING[type(config)])
    return PublishedPredictor(read_weights(model_class, folder, config), tokenizer, world)
