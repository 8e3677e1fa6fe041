"""Facts planted in long texts, with questions in other words and distractors in the same words."""

from __future__ import annotations

import gzip
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhc_model.recursion.search import cut, windows
from mhc_model.tokenizer import Tokenizer

# (fact, question, answer). {p}, {q} are people, {t} a town, {n} a number: invented, and another
# draw of them makes a distractor. A question repeats what it asks about and words the rest anew.
TEMPLATES = (
    ("{p}, the harbour master of {t}, kept the brass key beneath the third flagstone.",
     "Where did the harbour master at {t} hide his key?", "beneath the third flagstone"),
    ("Before the war {p} had earned a living as a glassblower.",
     "What was the trade of {p}?", "glassblower"),
    ("The strongroom in {t} opens to the combination {n}.",
     "Which number unlocks the strongroom at {t}?", "{n}"),
    ("It was {p} who paid for the new organ of the chapel in {t}.",
     "Whose money bought {t} its chapel organ?", "{p}"),
    ("{p} never drank anything but cold barley water after the fever.",
     "What did {p} drink since being ill?", "cold barley water"),
    ("The ferry to {t} leaves the eastern pier at {n} on the clock of the customs house.",
     "When does the boat for {t} depart?", "{n}"),
    ("Old {p} bequeathed the telescope to a niece named {q}.",
     "Who inherited the telescope of {p}?", "{q}"),
    ("{p} was christened in {t}, though the family denied it.",
     "In which town was {p} baptised?", "{t}"),
    ("The bridge at {t} is carried by {n} arches of red granite.",
     "How many arches hold up the bridge of {t}?", "{n}"),
    ("On Thursdays {p} taught the deaf children of {t} to play chess.",
     "Which game did the children in {t} learn from {p}?", "chess"),
    ("{p} lost the left thumb to a threshing machine.",
     "How was {p} injured in the hand?", "a threshing machine"),
    ("The parrot of {p} could recite the multiplication table in Portuguese.",
     "Which language did the bird owned by {p} speak?", "Portuguese"),
    ("{p} owed the saddler {q} exactly {n} guineas.",
     "How large was the debt of {p} to the saddler?", "{n} guineas"),
    ("The well in the market square of {t} was poisoned with arsenic by {q}.",
     "What was put into the drinking water of {t}?", "arsenic"),
    ("{p} walked to {t} in borrowed boots that were two sizes too large.",
     "What did {p} have on both feet while walking to {t}?", "borrowed boots"),
    ("The lighthouse at {t} shows a green lamp, and no other on that coast does.",
     "What colour is the light that ships see off {t}?", "green"),
    ("{p} proposed to {q} in the middle of a hailstorm.",
     "What was the weather when {p} asked {q} to marry?", "a hailstorm"),
    ("In {t} the bakers are forbidden by law to sell rye bread on Fridays.",
     "Which loaf may no baker of {t} offer at the end of the week?", "rye bread"),
    ("{p} sewed the banknotes into the lining of a violet umbrella.",
     "Where were the savings of {p} concealed?", "a violet umbrella"),
    ("The physician {p} prescribed quinine to the stationmaster of {t}.",
     "Which medicine was the stationmaster in {t} given?", "quinine"),
    ("{p} and {q} fell out over the ownership of a cherry orchard.",
     "What did {p} quarrel about with {q}?", "a cherry orchard"),
    ("The regiment quartered at {t} had lost {n} men to cholera by the autumn.",
     "How many soldiers at {t} died of cholera?", "{n}"),
    ("{p} plays the bassoon, badly, whenever rain is coming.",
     "Which instrument does {p} practise?", "the bassoon"),
    ("The seal on the charter of {t} shows a heron holding an eel.",
     "Which bird is depicted on the charter of {t}?", "a heron"),
)  # fmt: skip


def _listed(*lines: str) -> list[str]:
    return " ".join(lines).split()


_FIRST = _listed(
    "Ottoline Bertram Philippa Leopold Henrike Casimir Rosamund Thaddeus Ingeborg Auberon",
    "Clementia Dunstan Eudora Fergus Griselda Horatia Isidore Jocasta Kenelm Lavinia",
)
_HEAD = _listed(
    "Wex Quill Thorn Marl Brack Ister Gant Ul Pend Harg Scor Velm Drost Abern Fenn Krai"
)
_LAST = _listed("ley mount wick erby stone over dale quist ham rick ander wold sey combe")
_TOWN = _listed("iton borough haven mouth ford minster stead bury ness pool gate moor")
# Function words and plain ones for the generated text; the rest of its words are made up.
_COMMON = _listed(
    "the of and a to in he was that it his her with as had for she not at but be on him they by",
    "have which are you this were all so one there what when no would who their said from if been",
    "them is water town key number bridge boat children chapel light war hand bird week law bread",
)
_SYLLABLES = _listed("ba ce di fo gu la me ni po ru sa te vi zo ka le mi no pu ra")


@dataclass(frozen=True)
class Planted:
    """A fact within a text.

    Attributes:
        fact: the sentence, as it stands in the text.
        question: in other words.
        answer: part of the fact.
        at_boundary: whether it was put across the end of a passage.
    """

    fact: str
    question: str
    answer: str
    at_boundary: bool


def draw(template: int, rng: random.Random) -> tuple[str, str, str]:
    """(fact, question, answer) with names and numbers of their own."""

    def person() -> str:
        return f"{rng.choice(_FIRST)} {rng.choice(_HEAD)}{rng.choice(_LAST)}"

    values = {
        "p": person(),
        "q": person(),
        "t": rng.choice(_HEAD) + rng.choice(_TOWN),
        "n": str(rng.randrange(1100, 9900)),
    }
    fact, question, answer = (part.format(**values) for part in TEMPLATES[template])
    return fact, question, answer


def plant(
    text: str,
    templates: Sequence[int],
    seed: int,
    passage_chars: int,
    overlap_chars: int,
    distractors: int = 3,
    boundary_every: int = 4,
) -> tuple[str, list[Planted]]:
    """Puts one fact a template, and distractors, at places drawn from the seed.

    A distractor is the same sentence about others. Every `boundary_every`-th fact lies across the
    end of a passage of the cut that an index with these sizes makes; the others between sentences
    or words wherever the draw falls.

    Returns:
        The text with all of them in, and the facts in the order of their places.
    """
    rng = random.Random(seed)
    for template in templates:
        for _ in range(distractors):
            at = _gap(text, rng.randrange(len(text)))
            text = f"{text[:at]}{draw(template, rng)[0]} {text[at:]}"
    places = sorted(rng.randrange(len(text) - 2 * passage_chars) for _ in templates)
    planted = []
    shuffled = rng.sample(list(templates), len(templates))
    added = 0
    for number, (template, place) in enumerate(zip(shuffled, places, strict=True)):
        fact, question, answer = draw(template, rng)
        across = number % boundary_every == 0
        at = place + added
        if across:
            ends = [
                end for _, end in windows(cut(text, passage_chars, overlap_chars), passage_chars)
            ]
            at = ends[bisect_left(ends, at)] - len(fact) // 2
        at = _gap(text, at)
        text = f"{text[:at]}{fact} {text[at:]}"
        added += len(fact) + 1
        planted.append(Planted(fact, question, answer, across))
    return text, planted


def _gap(text: str, at: int) -> int:
    """The first place from `at` on that follows a space, or `at` if none is near."""
    near = text.find(" ", at, at + 100)
    return at if near < 0 else near + 1


def book_texts(directory: Path, tokenizer: Tokenizer, tokens: int, count: int) -> list[str]:
    """`count` parts of the books in a directory, each of `tokens` tokens, spread over all of them.

    Raises:
        FileNotFoundError: if there is no *.txt.gz.
    """
    books = []
    for path in sorted(directory.glob("*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            books.append(tokenizer.encode(file.read()))
    if not books:
        raise FileNotFoundError(f"{directory} holds no *.txt.gz")
    texts = []
    for number in range(count):
        book = books[number % len(books)]
        rounds = -(-count // len(books))
        first = number // len(books) * max(0, len(book) - tokens) // max(1, rounds - 1)
        texts.append(tokenizer.decode(book[first : first + tokens]))
    return texts


def generated_text(words: int, seed: int) -> str:
    """Sentences of common words and made-up ones whose frequencies follow Zipf's law."""
    rng = random.Random(seed)
    made = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))) for _ in range(4000)]
    vocabulary = _COMMON + made
    weights = [1 / (rank + 2) for rank in range(len(vocabulary))]
    drawn = rng.choices(vocabulary, weights, k=words)
    sentences, first = [], 0
    while first < words:
        size = rng.randint(6, 22)
        sentences.append(" ".join(drawn[first : first + size]).capitalize() + ".")
        first += size
    return " ".join(sentences)
