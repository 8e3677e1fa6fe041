"""A long text, cut into passages that can be found by words and by meaning.

In: a text, a query. Out: `Passage`s, best first. May import the ground (errors).

    text.py     `LongText` and its passages; windows, and cuts at borders of sentences
    words.py    words, stems, terms of a query
    bm25.py     `BM25`: counts of terms in spans, and their weights
    lexical.py  what is known of a text without a model; a long one is read in worker.py's process
    worker.py   that process
    index.py    `TextIndex`: BM25, embeddings, and both

Names are loaded when they are first used: the process that reads a text needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
