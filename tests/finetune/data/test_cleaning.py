from dataclasses import replace

import pytest

from configs import read
from finetune.data.cleaning import Cleaning, RowReader, duplicate_key
from tokenizer.sources.readers import TableConfig


@pytest.mark.parametrize(
    ("settings", "text", "cleaned"),
    [
        ([], " a\n b\u00a0&amp; http://t.co/x ", "a b &amp; http://t.co/x"),
        (["html_entities=true"], "a &amp; b &lt;3", "a & b <3"),
        (["urls=replace"], "see http://t.co/Ab1, (https://a.b/c?d=e). WWW.x.org", "see URL, (URL). URL"),
        (["urls=remove"], "see http://t.co/Ab1 now", "see now"),
        (["urls=replace"], "http://naver.com/a를 보다", "URL를 보다"),
        (["urls=replace"], "awww. no url", "awww. no url"),
        (["mentions=replace"], "@bbc: mail me@x.org @ 5", "@user: mail me@x.org @ 5"),
        (["mentions=remove"], "hi @some_one!", "hi !"),
        (["hashtags=split"], "#ForestFire2015 in #USAToday &#39; #a_b", "Forest Fire 2015 in USA Today &#39; a b"),
        (["hashtags=split"], "#हिंदी_दिवस #Cafe\u0301Noir ने#टैग", "हिंदी दिवस Cafe\u0301Noir ने#टैग"),
        (["hashtags=split"], "#שלום\u200f #Soft\u00adHyphen", "שלום\u200f Soft\u00adHyphen"),
        (["mentions=replace"], "@नीलिमा, @re\u0301mi! माही@x", "@user, @user! माही@x"),
        (["longest_repeat=3"], "sooooo!!!!!! 100000", "sooo!!! 100000"),
        (["longest_repeat=1"], "aab", "ab"),
        (["lower_case=true", "urls=replace"], "At HTTP://T.co/X", "at url"),
    ],
)
def test_each_setting_changes_what_it_names(settings: list[str], text: str, cleaned: str) -> None:
    assert read(Cleaning, None, settings).clean(text) == cleaned


def test_prefixes_stand_before_the_first_text_where_there_are_any() -> None:
    cleaning = Cleaning(prefix=("keyword", "location"), urls="replace")
    row = {"text": "Run!  http://a.b", "keyword": "forest%20fire", "location": "", "other": "x"}
    one = RowReader(("text",), "label", cleaning, TableConfig())
    assert one.texts(row) == ("forest fire: Run! URL",)
    assert replace(one, columns=("text", "other")).texts(row) == ("forest fire: Run! URL", "x")
    assert one.texts({"text": "Run!"}) == ("Run!",)
    assert one.texts(row | {"text": " "}) == ("",)


def test_texts_are_the_same_whatever_their_addresses_mentions_and_case() -> None:
    same = ["Fire &amp; smoke http://t.co/1", "fire &  SMOKE", "@bbc Fire & smoke https://t.co/2"]
    assert len({duplicate_key([text]) for text in same}) == 1
    assert duplicate_key(["@मीरा आग लगी"]) == duplicate_key(["@रवि आग लगी"])
    assert duplicate_key(["Fire", "a"]) != duplicate_key(["Fire", "b"])


def test_texts_of_nothing_but_addresses_differ_by_them() -> None:
    assert duplicate_key(["http://t.co/1"]) != duplicate_key(["http://t.co/2"])
