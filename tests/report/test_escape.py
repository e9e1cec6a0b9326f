from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from causaltrace.report.escape import block, code, one_line, plain
from tests.report import mutated

texts = st.text(st.sampled_from("`|*_[]()<>&@#$~\\!:/a1 \n\r\u2028é"), max_size=30) | st.sampled_from(
    mutated.TEXTS
)
page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown(source: str) -> str:
    """What a reader sees of Markdown, with white space as one blank."""
    tokens = [t for token in page.parse(source) for t in (token.children or [token])]
    assert not {t.type for t in tokens} & {
        "html_inline",
        "html_block",
        "image",
        "link_open",
        "em_open",
        "strong_open",
    }
    return " ".join("".join(t.content for t in tokens).replace("\u200b", "").split())


@given(texts)
def test_plain_text_is_seen_as_it_is(text):
    source = plain("x" + text + "x")
    assert shown(source) == " ".join(one_line("x" + text + "x").split())


@given(texts)
def test_plain_text_stays_in_its_cell(text):
    lines = ["| a | b |", "|---|---|", f"| x{plain(text)}x | y |"]
    cells = [t for t in page.parse("\n".join(lines)) if t.type == "td_open"]
    assert len(cells) == 2


@given(texts)
def test_code_is_one_span(text):
    (inline,) = [t for t in page.parse(f"at {code(text)} here") if t.type == "inline"]
    assert [t.type for t in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content.strip() == (one_line(text) or " ").strip()


@given(st.lists(texts, max_size=4))
def test_a_block_ends_where_it_should(lines):
    tokens = page.parse("\n".join([*block(lines), "after"]))
    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content.splitlines() == [one_line(line) for line in lines]


@pytest.mark.parametrize("text", ["@octocat", "see #12", "http://x.example"])
def test_nobody_is_notified_and_nothing_is_linked(text):
    assert text not in plain(text)
    assert html.unescape(plain(text)).replace("\u200b", "") == text


def test_long_text_is_cut():
    assert len(one_line("x" * 5_000)) < 300
