import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.sentences import collapse, split


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rains.", "The cat sleeps!", "Why?", "Nobody knows…", "Well?!", "Yes."],
        ["Mr. Smith met Dr. Jones, i.e. his doctor, on St. Mary's Rd.", "They talked."],
        ["J. R. R. Tolkien wrote it.", "George W. Bush read it."],
        ["The U.S. Army left the U.S.", "In 1990 it returned at 5 p.m.", "It stayed."],
        ["Pi is 3.14, not 3.", "Version 2.0 of example.org is e.g. slower.", "See Fig. 3 on p. 7."],
        ['"Really?" he asked.', '"Yes."', "“No!” she cried.", "(It was late.)", "[End.]"],
        ["He said, “Go.”", "‘Why?’ they said."],
        ["Wait... what?", "Nothing..."],
        ["1. The first heading.", "2. Another one.", "It has 12.", "Then 13."],
        ["Was it No. 5?", "No.", "It was not."],
        ["He went home (at last!) and slept.", "Good."],
        ["Apples, pears, etc. were eaten.", "Apples, pears, etc.", "They were eaten."],
        ["all of it is lower case.", "so is this!", "and this?"],
        ["안녕하세요.", '"정말?"', "그가 물었다.", "값이 3.5배 늘었다!!", "좋다…", "끝."],
        ["यह एक वाक्य है।", "यह दूसरा है।", "श्लोक यहाँ है॥ १ ॥", "अगला यहाँ है॥२॥", "अंत॥"],
        ["Ո՞վ է այնտեղ։", "Ես եմ, ավա՜ղ։", "Ժամը 10։30 է։"],
        ["هل جاء الضيف؟", "نعم، جاء."],
        ["وہ گھر گیا۔", "پھر سو گیا۔"],
        ["ང་བོད་ནས་ཡིན།", "ཁྱེད་ག་ནས་ཡིན།"],
    ],
)
def test_sentences_are_told_apart(sentences: list[str]) -> None:
    assert [part.lstrip(" ") for part in split(" ".join(sentences))] == sentences


def test_chinese_and_japanese_need_no_spaces() -> None:
    for sentences in (
        ["私は学生です。", "「行く？」と彼は言った。", "「来る。」", "「はい！」"],
        ["第一句！？", "第二句。", "三"],
    ):
        assert split("".join(sentences)) == sentences


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize(
    "sentences",
    [
        ["ዝናብ መጣ።", "ማን ነው፧", "እኔ ነኝ፨"],
        ["ልጁ፡ሄደ፡፡", "እናቱ፡ቀረች፡፡"],  # words are parted by the sign that ends a sentence where it is doubled
        ["မိုးရွာတယ်၊ အိမ်မှာနေတယ်။", "နေပူတယ်။"],
        ["ខ្ញុំទៅផ្សារ។", "ចប់៕", "«គាត់នៅផ្ទះ។»"],
        ["সে এল।", "সে গেল॥"],
    ],
    ids=["Ethiopic", "Ethiopic, typed", "Burmese", "Khmer", "Bengali"],
)
def test_scripts_that_may_leave_out_the_space(sentences: list[str], space: str) -> None:
    assert [part.lstrip(" ") for part in split(space.join(sentences))] == sentences


def test_a_blank_line_ends_a_sentence_and_a_line_break_does_not() -> None:
    assert split("A heading\n \nA line\nand another.\n\n\n") == ["A heading", " A line and another."]


def test_a_line_as_long_as_a_book_takes_no_longer_than_short_ones() -> None:
    sentence = "\"It is (e.g. here) no. 5.\" J. said: 'no...' and Mr. B. left. "
    assert len(split(sentence * 30_000)) == 2 * 30_000  # hours, if each looked at all that follows


@given(st.text(st.sampled_from("aB1 .!?…。！፡॥」\"'(\n\t\u00a0한")) | st.text())
def test_nothing_is_lost_or_added_but_white_space(text: str) -> None:
    assert "".join(split(text)) == collapse(text) == " ".join(text.split())
    assert all(part.strip() for part in split(text))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_end_sentences_whatever_ends_lines(end: str) -> None:
    assert split(f"A heading{end}{end}some text{end}on two lines{end} \t{end}the end") == [
        "A heading",
        " some text on two lines",
        " the end",
    ]
