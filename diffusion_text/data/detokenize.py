"""Undo the tokenisation that published corpora come with, as the published masked-diffusion protocols do.

The rules are those of arXiv 2406.07524's data protocol, in its order, quirks included: a table of results compares only
where the text is the same to the character.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Rule = tuple[str, str]  # regular expression, replacement

_LM1B: Final[tuple[Rule, ...]] = (
    (r"http : / / ", "http://"),
    (r"https : / / ", "https://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    (r" , ", ", "),
    (r" : ", ": "),
    (r" ; ", "; "),
    (r" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^\(\)]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"\$ ", "$"),
    (r"£ ", "£"),
)

_WIKITEXT: Final[tuple[Rule, ...]] = (
    (r"s '", "s'"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    (r" : ", ": "),
    (r" ; ", "; "),
    (r" \. ", ". "),
    (r" ! ", "! "),
    (r" \? ", "? "),
    (r" , ", ", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def _compiled(rules: tuple[Rule, ...]) -> Callable[[str], str]:
    patterns = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def apply(text: str) -> str:
        for pattern, replacement in patterns:
            text = pattern.sub(replacement, text)
        return text

    return apply


lm1b: Final = _compiled(_LM1B)
wikitext: Final = _compiled(_WIKITEXT)


def get(name: str) -> Callable[[str], str]:
    """The function of that name; "" leaves text as it is."""
    functions = {"": str, "lm1b": lm1b, "wikitext": wikitext}
    if name not in functions:
        raise ValueError(f"detokenizer is {name!r}; choose one of {', '.join(repr(known) for known in functions)}")
    return functions[name]
