"""Probe texts on which tokenizers often differ. The parity gate compares llama.cpp's ids with Hugging Face's."""

from __future__ import annotations

from collections.abc import Sequence

from compact.vocabulary.language_costs import SENTENCES

_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "Hello, world!",
    "It's we'll they've I'M YOU'RE don't 'tis ''quoted''",
    "The year 1234567890, 3.14159, 1,000,000.00, 0x1F600, 1e-10, ½ ¾ ² ₃ ٣ ४",
    "  leading and trailing  ",
    "two  spaces   three    four     \t\ttabs\n\nnewlines\n\n\n\r\nCRLF\r\n\r\n   \n  \n",
    "\u00a0no-break\u2003em space\u200bzero width\u3000ideographic\u2028line\u2029paragraph",
    "naïve café e\u0301 A\u030a\u0327 o\u0308\u0323 Ǻ ﬁ ﬀ ㍿ Å Å",
    "e\u0301\u0301\u0301\u0301\u0301\u0301 Z\u0351\u036b\u0343a\u0363\u0348\u0353l\u0320\u035ag\u0331\u0349o\u0322",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇯🇵👍🏽❤️☺️ 🤷🏻‍♀️ 1️⃣ ©®™",
    "Ελληνικά עִבְרִית ไทยภาษาไทย বাংলা தமிழ் తెలుగు ខ្មែរ မြန်မာ አማርኛ ქართული հայերեն",
    "한국어 문장입니다. 한글 띄어쓰기 ㅋㅋㅋㅋ 日本語テキスト。ｶﾀｶﾅ 漢字𠀀𪚥 简体繁體",
    "def f(x):\n    return {k: v for k, v in x.items() if v}  # comment\n\n\tif (a && b || !c) { y->z(); }\n",
    '<html><body class="x">&amp;&lt;</body></html> https://example.org/a/b?q=1&r=%20#frag user@example.org',
    "SELECT * FROM t WHERE a<>'b''c' -- x\n$HOME/${PATH} `cmd` \\d+\\.\\w* [a-z]{2,} C:\\Users\\x",
    "\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "nul\x00inside\x00",
    "\ufffd\ufffd \ufeffBOM \ufffe \uffff \U0010ffff \ue000",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "................................................................ !!!!!!???? ---- ==== ____ ~~~~",
    "ΑΒΓ ǅ ŉ ß ẞ İ ı ſ K Ω ꙮ Ａｂｃ１２３",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis Donaudampfschifffahrtsgesellschaft",
    "‘curly’ “quotes” „low“ «guillemets» — – … • ‣ · ′ ″ ∑ ∫ √ ∞ ≠ ≤ → ⇒ ∀ ∃ ∈ £ € ¥ ₿",
    " one space before, \u2581marks\u2581 and \u2581\u2581, <0x41> and <0x0A> as text",
    f"{' ' * 40}forty{chr(9) * 40}of{chr(10) * 40}each{' ' * 33}\n {' ' * 7}\t \t  \n\n \n",
    "mixed العربية and English ١٢٣ 123 ‏rtl‎ ltr",
)


def probe_texts(special_tokens: Sequence[str]) -> list[str]:
    """Return the built-in texts, one sentence per language, and up to 64 special tokens, alone and inside text."""
    named = [token for token in special_tokens if token][:64]
    inside = [f"before {token}after {token} {token}\n{token}" for token in named]
    broken = [f"{token[:-1]} {token[1:]} {token} " for token in named[:8] if len(token) > 2]
    return [*_TEXTS, *SENTENCES.values(), *named, *inside, *broken, "".join(named)]
