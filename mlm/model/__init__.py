"""A transformer encoder written by hand, and its masked-language-model head.

Here: attention, feed-forward, encoder, head, and every initial weight.
Not here: data, losses, ranks, files; this package imports nothing of the project but `configs`.

Tensors carry their dimensions as a suffix:

    B rows         L positions of a row     M predicted tokens (beside B of a row, else of all rows)
    D width        F feed-forward width     E width of the embeddings (D unless set)     X any other
    H heads        K width of a head (k: half)      V vocabulary          C classes
    N any items    S steps

so `ids_BL` holds token ids, `hidden_BLD` hidden states, `query_BHLK` queries by head, `logits_MV` logits. `segments_BL`
tells the texts in a row apart: 1 for the first, 2 for the second. These are not BERT's segment ids (token types).
"""
