import pytest

from tokenizer.sources import prose


def read(documentation: str) -> list[str]:
    return list(prose.sentences(documentation))


def test_wrapped_lines_are_joined_and_paragraphs_cut_into_sentences() -> None:
    text = """Return the mean of the values
        along an axis.  It is never    negative! Is it
        the same as before?

        The second paragraph is here.
        """
    assert read(text) == [
        "Return the mean of the values along an axis.",
        "It is never negative!",
        "Is it the same as before?",
        "The second paragraph is here.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Some names, e.g. The Beatles, i.e. a band, are kept vs. Others that are not.",
        "The array of numpy.array type is shown in Fig. 3 of the report.",
        "It was described by D. E. Knuth (cf. Vol. 2) and others.",
        'The "quoted" word stays (as does this).',
        "A value of -1 means that the last axis of __getitem__ is used.",
    ],
)
def test_abbreviations_and_dotted_names_end_no_sentence(sentence: str) -> None:
    assert read(sentence) == [sentence]


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("The ``x`` of :func:`f` is used.", "The x of f is used."),
        ("The :class:`~a.b.Tensor` and :py:meth:`.Axes.plot` are used.", "The Tensor and Axes.plot are used."),
        ("The *first* of **all** items is used.", "The first of all items is used."),
        ("See the `guide <https://x.org/y.html>`_ for the details.", "See the guide for the details."),
        ("See the `guide`_ and Knuth_ for more of it [3]_.", "See the guide and Knuth for more of it."),
        ("See the [guide](https://x.org) and [`Model`][a.Model] for it.", "See the guide and Model for it."),
        ("A list of :class:`Tensor`\\s and ``Node`` s is given.", "A list of Tensors and Nodes is given."),
        ("The `name' argument is the name of it.", "The 'name' argument is the name of it."),
        ("There are :math:`n` of them in the list.", "There are n of them in the list."),
    ],
)
def test_inline_markup_becomes_plain_text(markup: str, plain: str) -> None:
    assert read(markup) == [plain]


@pytest.mark.parametrize(
    "block",
    [
        ">>> This is a code line of the session.\nThis is the output of the line.",
        "An example follows::\n\n    This is not a sentence of the text.\n\n    Nor is this a sentence of it.",
        "```python\nThis is not a sentence of the text.\n\nNor is this a sentence of it.\n```",
        ".. code-block:: python\n   :linenos:\n\n   This is not a sentence of the text.",
        ".. math::\n    This is not a sentence of the text.",
        ".. [1] This is a reference that is not kept.",
        "====  ====\nThis is the head of a table.\n====  ====\nThis is a row of a table.\n====  ====",
        "| This is a | row of the table. |",
        "This Is the Heading.\n--------------------",
        "Args:",
        "x : This is the type of an argument.",
        "call(This is the signature of a function.)",
    ],
)
def test_code_tables_headings_and_signatures_are_dropped(block: str) -> None:
    assert read(f"The first one is kept.\n\n{block}\n\nThe last one is kept.") == [
        "The first one is kept.",
        "The last one is kept.",
    ]


def test_the_prose_of_lists_of_parameters_is_kept() -> None:
    google = """Args:
            first (list of int, optional): The numbers that are added
                to the sum of it.
            *rest: All the others that there are.
        Returns:
            Dict[str, int]: A mapping of the names to numbers.
        """
    numpydoc = """Parameters
        ----------
        first : array_like, optional
            The numbers that are averaged
            over the axis.
        """
    fields = ":param int first: The number that it begins with.\n:rtype: int"
    assert read(google) == [
        "The numbers that are added to the sum of it.",
        "All the others that there are.",
        "A mapping of the names to numbers.",
    ]
    assert read(numpydoc) == ["The numbers that are averaged over the axis."]
    assert read(fields) == ["The number that it begins with."]


def test_admonitions_and_bullets_keep_their_prose() -> None:
    text = """.. note:: This is not safe to use
            with many threads at once.

        .. versionchanged:: 3.3
           The argument may be a string.

        - The first item of the list
          goes on here.
        - not a sentence
        2. The second item is the last.

        Note: this is a sentence of its own.
        """
    assert read(text) == [
        "This is not safe to use with many threads at once.",
        "The argument may be a string.",
        "The first item of the list goes on here.",
        "The second item is the last.",
        "Note: this is a sentence of its own.",
    ]


@pytest.mark.parametrize(
    "fragment",
    [
        "Too short this.",
        "this one does not begin with a capital letter.",
        "This one does not end as a sentence should",
        "This one (is not balanced in its brackets.",
        'This one is not "balanced in its quotes.',
        "See https://example.org/a.html for more of it.",
        "The value is :math:`x^2 + y^2` of the two.",
        "The value of $x$ is returned by it.",
        "Set x = y in the body of the function.",
        "Returns foo_bar, baz_qux, 1.5e-3, and x.y.z of it.",
        "Batch rows per chunk, many columns per stripe.",
        "If the two shapes do not match.",
        "TODO: write the rest of this sentence.",
        "Copyright (c) 2001 by the authors of it.",
        "It is one of the following: 1.",
        " ".join(["The", *["very"] * 80, "end."]),
    ],
)
def test_what_is_no_complete_sentence_is_dropped(fragment: str) -> None:
    assert read(fragment) == []


def test_a_near_duplicate_is_not_new_and_leaves_no_trace() -> None:
    seen: set[int] = set()
    assert prose.is_new("Note that this function returns a copy of torch.abs when it is called.", seen)
    before = set(seen)
    assert not prose.is_new("note that this function returns a copy of torch.exp when it is called!", seen)
    assert not prose.is_new("Note that this function returns a copy of LSTM when it is not.", seen)
    assert seen == before
    assert prose.is_new("The parser reads all lines of a file until it finds the end.", seen)
    assert prose.is_new("It is short.", seen)
    assert not prose.is_new("It is short.", seen)
