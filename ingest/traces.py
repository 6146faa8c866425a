"""What names a sample in a file: its key, and the address of its medium; a search for them in any bytes.

    traces = Traces({"urls_m1_0"}, {"http://example.org/m1"})
    traces.find(b"preview/urls_m1_0/drawn")                 # {"urls_m1_0"}

One pass over the bytes, however many keys there are. A key counts where no letter or digit goes on before or
after it: `urls_m1_100` is not in `urls_m1_1000`. Addresses count as whole words, escaped for HTML or not.
Not found: what has neither name (a picture that was renamed), and what is compressed.
"""

import html
import mmap
import re
from collections.abc import Iterable, Iterator

from ingest.sample import without_tokens

# what ends an address in HTML, CSV, JSON, YAML and Markdown
WORD = re.compile(rb"[^\s\"'<>,()\\\x00]{4,2000}")
ENDS = ".;]}"
MAX_ADDRESS_CHARS = 300  # attribution lists cut them there


class Traces:
    """Keys and addresses to look for."""

    def __init__(self, keys: Iterable[str], addresses: Iterable[str] = ()):
        self.keys = frozenset(keys)
        self.lengths = sorted({len(key) for key in self.keys})
        self.pattern = re.compile(rb"[A-Za-z0-9_-]{%d,}" % max(1, min(self.lengths, default=1)))
        normal = {normalised(address) for address in addresses if address}
        self.addresses = {address for address in normal if WORD.fullmatch(address.encode())}
        # with blanks or commas, as files of people have them: looked for as they are
        self.phrases = {address.encode() for address in normal - self.addresses}

    def find(self, data: bytes | mmap.mmap) -> set[str]:
        """The keys and addresses in these bytes (or in a mapped file)."""
        found = set(self.keys_in(data)) if self.keys else set()
        if self.addresses:
            words = (match[0].decode("utf-8", "replace") for match in WORD.finditer(data))
            found |= {normalised(word) for word in words if "/" in word} & self.addresses
        return found | {phrase.decode() for phrase in self.phrases if data.find(phrase) >= 0}

    def keys_in(self, data: bytes | mmap.mmap) -> Iterator[str]:
        """Every key, as often as it is there."""
        for match in self.pattern.finditer(data):
            text = match[0].decode("ascii")
            for start in range(len(text) - self.lengths[0] + 1):
                if start and text[start - 1].isalnum():
                    continue
                yield from self._keys_at(text, start)

    def _keys_at(self, text: str, start: int) -> Iterator[str]:
        for length in self.lengths:
            end = start + length
            if text[start:end] in self.keys and not text[end : end + 1].isalnum():
                yield text[start:end]


def normalised(address: str) -> str:
    """As attribution lists and indexes write it: without what gives access, cut at 300 characters."""
    return without_tokens(html.unescape(address))[:MAX_ADDRESS_CHARS].rstrip(ENDS)
