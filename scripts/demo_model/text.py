"""Cleaning of MedQuAD answers into short, self-contained English.

The corpus was scraped from web pages: bullet lists arrive on one line with ` - ` between the items, typographic
apostrophes and dashes are missing ("dont", "diseasea disorder"), and many answers carry page furniture (phone
numbers, "Key Points", tables). A small model reproduces whatever it is shown, so it is shown clean text only.
"""

from __future__ import annotations

import re
from collections import Counter

_CONTRACTIONS = {
    "dont": "don't", "doesnt": "doesn't", "didnt": "didn't", "isnt": "isn't", "arent": "aren't", "cant": "can't",
    "wont": "won't", "wasnt": "wasn't", "werent": "weren't", "hasnt": "hasn't", "havent": "haven't",
    "couldnt": "couldn't", "shouldnt": "shouldn't", "wouldnt": "wouldn't", "youre": "you're", "theyre": "they're",
    "youll": "you'll", "theyll": "they'll", "youve": "you've", "theyve": "they've", "thats": "that's",
    "bodys": "body's", "childs": "child's", "womans": "woman's", "womens": "women's",
    "mens": "men's", "childrens": "children's", "todays": "today's",
}  # fmt: skip
_CONTRACTION_RE = re.compile(r"\b(" + "|".join(_CONTRACTIONS) + r")\b", re.IGNORECASE)
_PRONUNCIATION = re.compile(r"\s?\((?=[^)]*-)(?=[^)]*\b[A-Z]{2,}\b)(?=[^)]*[a-z])[A-Za-z' ,-]{4,60}\)")
_LEADING_QUESTION = re.compile(
    r"^(?:What|How|Is|Are|Can|Who|Does|Do|Why|Will|Which|When|Where)\b[^.?!]{3,180}\?\s*"
)
_JUNK = re.compile(
    r"www\.|https?:|1-8\d\d|web ?site|\bclick\b|see the following|more detailed information|medical dictionary"
    r"|more information|more about|links? below|this summary|these resources|clinicaltrials|on this page|visit the"
    r"|\bvideo\b|learn more|PDQ|\[|\bfigure\b|see the|listed below|table below|Human Phenotype|Further Reading"
    r"|fact ?sheet|publication|this section|at this site|Orphanet|NCI |Read (?:the|our)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]?\s+(?=[A-Z\"(0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:Dr|Mr|Mrs|St|vs|e\.g|i\.e|U\.S|No|approx|[A-Z])\.)$")
_STARTERS = (
    "The|If|Most|Some|No|You|It|People|There|Doctors|Doctor|Treatment|Treatments|Other|In|A|An|Your|They|"
    "These|Many|Not|But|This|Anyone|Women|Men|Although|When|While|Symptoms|Talk|To|With|Early|Because|"
    "Genetic|Sometimes|Often|Usually|However|Having|Each|Medicines|Medicine|Children|For|Certain|Signs|"
    "Over|Only|Even|Several|One|Both|As|At|Since|We|Babies|Surgery|Later|Once|Using|Health|Scientists|"
    "Researchers|Without|Blood|Being|Risk|Causes|After|Before|Exercise"
)
_LIST_TAIL = re.compile(rf"(?<=[a-z0-9)\"'%]) (?=(?:{_STARTERS})\b)")
_GLUED_TAIL = (
    "the", "a", "an", "or", "and", "such", "including", "which", "usually", "called", "but", "is", "for", "in", "are", "as",
    "if", "that", "when", "also", "more", "most", "with", "not", "these", "especially", "particularly", "they",
    "sometimes", "often",
)  # fmt: skip
_GLUED_HEAD = ("from", "are", "the", "with", "and", "of", "that", "for", "these", "such", "your", "other")
_HEADING = re.compile(
    r"^(?!The |National )[A-Z][\w',-]*\??\s"
    r"(?:(?:[A-Z][\w',-]*\??|of|the|and|in|for|a|an|to|at|with|or|by|on)\s){1,8}(?=[A-Z][a-z]* [a-z(])"
)


def count_words(texts: list[str]) -> Counter[str]:
    """Word counts over the raw corpus, the evidence by which `unglue` recognises two words run together."""
    return Counter(w for t in texts for w in re.findall(r"[A-Za-z]+", t.lower()))


def proper_words(texts: list[str]) -> set[str]:
    """Words that the corpus writes with a capital even inside a sentence: names of people and places."""
    upper: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for text in texts:
        upper.update(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
        lower.update(re.findall(r"(?<= )[a-z]{3,}", text))
    return {w for w, n in upper.items() if n > 2 * lower[w.lower()]}


def unglue(text: str, counts: Counter[str]) -> str:
    """Put back dashes that the corpus lost between words ("metabolismthe way" becomes "metabolism - the way")."""

    def fix(match: re.Match[str]) -> str:
        word = match.group(0)
        low = word.lower()
        for tail in _GLUED_TAIL:
            head = low[: -len(tail)]
            if (
                low.endswith(tail)
                and len(head) >= 4
                and counts[head] >= 20
                and counts[low] <= max(4, counts[head] / 100)
            ):
                return f"{word[: -len(tail)]}, {word[-len(tail) :]}"
        for head in _GLUED_HEAD:
            tail = low[len(head) :]
            if low.startswith(head) and len(tail) >= 5 and counts[tail] >= 40 and counts[low] <= 3:
                return f"{word[: len(head)]} {word[len(head) :]}"
        return word

    return re.sub(r"[A-Za-z]{6,}", fix, text)


def _join_items(items: list[str]) -> str:
    """Render list items: short ones as an English enumeration, long ones as bullet lines."""
    items = [i.strip().rstrip(".;,") for i in items]
    items = [re.sub(r",? (?:and|or)$", "", i) for i in items if i]
    if all(len(i.split()) <= 10 and not re.search(r"[.:;]", i) for i in items):
        low = [i[0].lower() + i[1:] if len(i) > 1 and i[1:2].islower() else i for i in items]
        if len(low) == 1:
            return low[0]
        sep = "; " if any("," in i for i in low) else ", "
        return sep.join(low[:-1]) + f"{sep}and {low[-1]}"
    return "\n- " + "\n- ".join(items)


def inline_lists(text: str) -> str:
    """Turn `include - Fever - Chills Most people ...` into `include fever and chills. Most people ...`."""
    parts = re.split(r"(?:^|\s+)-\s+", re.sub(r"\s+--+\s+", ", ", text))
    if len(parts) < 3:
        return " ".join(parts)
    out = ""
    lead, items = parts[0], parts[1:]
    run: list[str] = []

    def flush(lead_text: str, run_items: list[str]) -> str:
        joined = _join_items(run_items)
        lead_text = lead_text.strip().lstrip("- ")
        if not lead_text and any("." in i or len(i.split()) > 10 for i in run_items):
            return " ".join(i.strip().rstrip(".") + "." for i in run_items)
        if lead_text and lead_text[-1] in ".!?":
            return lead_text + " " + " ".join(i.strip().rstrip(".") + "." for i in run_items)
        if not lead_text:
            return joined.lstrip() + "."
        if joined.startswith("\n"):
            return lead_text.rstrip(":,") + ":" + joined + "."
        return lead_text.rstrip(":") + " " + joined + "."

    for index, item in enumerate(items):
        tail = _LIST_TAIL.search(item) or re.search(r"(?<=[.!?]) (?=[A-Z])", item)
        last = index == len(items) - 1
        if tail and (last or len(item) - tail.end() > 25):
            run.append(item[: tail.start()])
            if run:
                flat = " ".join(i.strip(" .") for i in run)
                rest = item[tail.end() :]
                out += flush(lead, run) + "\n\n" if "\n-" in _join_items(run) else flush(lead, run) + " "
                lead = rest[len(flat) :] if rest.lower().startswith(flat.lower()) else rest
            run = []
        else:
            run.append(item)
    out += flush(lead, run) if run else lead
    return out


def split_sentences(text: str) -> list[str]:
    """Split into sentences, keeping bullet lines attached to the sentence that introduces them."""
    out: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if out and _ABBREVIATION.search(out[-1]):
            out[-1] += " " + piece
        else:
            out.append(piece.strip())
    return [s for s in out if s]


def clean_answer(text: str, counts: Counter[str]) -> list[str]:
    """Clean one answer into a list of sentences without page furniture or repetitions."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^(?:Espaol|Summary :|Overview|Common Symptoms|Prevention)\s+", "", text)
    text = text.split("The Human Phenotype Ontology provides")[0]
    text = re.sub(r"\s*NIH: .*$", "", text)
    text = re.sub(
        r"\b(?:Centers for Disease Control and Prevention|National Institutes? of [A-Z][\w ,]+)$", "", text
    )
    text = _LEADING_QUESTION.sub("", text)
    if text.startswith("Key Points"):
        text = re.sub(r"^Key Points\s*-?\s*", "", text).replace(". - ", ". ")
    text = _PRONUNCIATION.sub("", text)
    text = re.sub(r"(?<=[a-z])\.\d\d?(?= |$)", ".", text)  # footnote marks
    text = re.sub(r"\s+([.,;:?!])", r"\1", text)
    text = re.sub(r"([.!?])(?=[A-Z][a-z])", r"\1 ", text)
    text = re.sub(r",(?=[a-z])", ", ", text)
    text = text.replace("fromgenesor", "from genes or").replace("systemactivity", "system activity")
    text = _CONTRACTION_RE.sub(lambda m: m.group(0)[0] + _CONTRACTIONS[m.group(0).lower()][1:], text)
    text = re.sub(r"\b([Ii])ts (?=(?:not|important|a|the|best|also|common|possible|very)\b)", r"\1t's ", text)
    text = unglue(text, counts)
    seen: set[str] = set()
    kept: list[str] = []
    for raw in split_sentences(inline_lists(text)):
        sentence = _HEADING.sub("", raw)
        key = re.sub(r"\W+", " ", sentence.lower()).strip()
        if key in seen or _JUNK.search(sentence) or len(key) < 3 or sentence.endswith(("?", ":")):
            continue
        seen.add(key)
        kept.append(sentence if sentence[-1] in ".!?\"')" else sentence + ".")
    return kept


def shorten(sentences: list[str], max_words: int) -> str:
    """The leading sentences that fit in `max_words`, so that an answer ends where a sentence ends."""
    out: list[str] = []
    used = 0
    for sentence in sentences:
        n = len(sentence.split())
        if used + n > max_words and (out or n > max_words * 1.5):
            break
        out.append(sentence)
        used += n
    answer = "".join(s + ("\n\n" if "\n- " in s else " ") for s in out).strip()
    answer = re.sub(r"\.{2,}$", ".", answer).replace(" \n", "\n")
    if answer and answer[0].islower():
        answer = answer[0].upper() + answer[1:]
    return answer
