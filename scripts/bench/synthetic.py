"""Stand-ins for the 54 data sets of T0++: the right columns and types, lengths like the real ones, random words.

Each entry of `COLUMNS` writes one row. Lengths are words, by memory of the real sets (a passage of SQuAD 120, a CNN
article 680, ...); the prompts cut a printed field at 2,048 characters.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

LETTERS = "ABCDEFGH"
PART = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""What prompts see for `|||`, which separates the articles of multi_news."""


class Writer:
    """Random text with a given frequency of words, and labels."""

    def __init__(self, words: list[str], shares: np.ndarray, seed: int = 0):
        self._words, self._rng = words, np.random.default_rng(seed)
        self._cumulative = np.cumsum(shares / shares.sum())

    def words(self, count: int) -> list[str]:
        found = np.searchsorted(self._cumulative, self._rng.random(count))
        return [self._words[i] for i in np.minimum(found, len(self._words) - 1)]

    def text(self, mean: float, spread: float = 0.45) -> str:
        """Sentences of about `mean` words in all (log-normal)."""
        count = max(1, round(mean * self._rng.lognormal(-spread * spread / 2, spread)))
        words = self.words(count)
        for start in range(0, count, 14):
            end = min(start + 14, count) - 1
            words[start], words[end] = words[start].capitalize(), words[end] + "."
        return " ".join(words)

    def name(self, count: int = 2) -> str:
        return " ".join(word.capitalize() for word in self.words(count))

    def label(self, count: int) -> int:
        return int(self._rng.integers(count))

    def texts(self, count: int, mean: float) -> list[str]:
        return [self.text(mean) for _ in range(count)]

    def letters(self, count: int, mean: float) -> dict[str, list[str]]:
        """Choices of the AI2 sets."""
        return {"text": self.texts(count, mean), "label": list(LETTERS[:count])}

    def spans(self, context: str, count: int = 1) -> dict[str, list[Any]]:
        """Answers of the SQuAD sets: words of the context."""
        words = context.split()
        starts = [self.label(len(words)) for _ in range(count)]
        found = [" ".join(words[s : s + 3]) for s in starts]
        return {"text": found, "answer_start": starts}


Row = dict[str, Any]


def _squad(w: Writer, words: float, answered: float = 1.0) -> Row:
    context = w.text(words)
    answers = w.spans(context, int(w.label(1000) < 1000 * answered))
    return {"title": w.name(), "context": context, "question": w.text(11), "answers": answers}


def _adversarial(w: Writer) -> Row:
    return _squad(w, 120) | {"metadata": {"split": "train", "model_in_the_loop": "dbert"}}


def _duorc(w: Writer, words: float) -> Row:
    no_answer = w.label(10) == 0
    answers = [] if no_answer else w.texts(1, 3)
    return {
        "plot": w.text(words), "title": w.name(), "question": w.text(9), "answers": answers, "no_answer": no_answer,
    }  # fmt: skip


def _arc(w: Writer) -> Row:
    return {"question": w.text(22), "choices": w.letters(4, 5), "answerKey": LETTERS[w.label(4)]}


def _race(w: Writer, words: float) -> Row:
    return {
        "article": w.text(words), "question": w.text(10), "options": w.texts(4, 6), "answer": LETTERS[w.label(4)],
    }  # fmt: skip


def _wsc(w: Writer) -> Row:
    words = w.words(20)
    return {
        "text": " ".join([*words[:10], "they", *words[10:]]), "span1_text": words[2], "span2_text": "they",
        "span2_index": 10, "label": w.label(2),
    }  # fmt: skip


def _record(w: Writer) -> Row:
    entities = [w.name() for _ in range(6)]
    passage = w.text(190) + "".join(f"\n@highlight\n\n{w.text(13)}" for _ in range(3))
    query = f"{w.text(8)} @placeholder {w.text(10)}"
    return {
        "passage": passage,
        "query": query,
        "entities": entities,
        "answers": entities[: 1 + w.label(2)],
    }


def _cos_e(w: Writer) -> Row:
    choices = [" ".join(w.words(2)) + f" {i}" for i in range(5)]
    return {
        "question": w.text(13), "choices": choices, "answer": choices[w.label(5)],
        "abstractive_explanation": w.text(9),
    }  # fmt: skip


def _dream(w: Writer) -> Row:
    choice = [f"{w.text(5)} {i}" for i in range(3)]
    return {
        "dialogue": [f"{speaker}: {w.text(14)}" for speaker in "WMWMWM"], "question": w.text(8), "choice": choice,
        "answer": choice[w.label(3)],
    }  # fmt: skip


def _qasc(w: Writer) -> Row:
    return {
        "question": w.text(8), "choices": w.letters(8, 2), "answerKey": LETTERS[w.label(8)], "fact1": w.text(8),
        "fact2": w.text(8), "combinedfact": w.text(8),
    }  # fmt: skip


def _quarel(w: Writer) -> Row:
    first, second = w.words(2)
    return {
        "question": w.text(35), "answer_index": w.label(2), "world_literals": {"world1": [first], "world2": [second]},
    }  # fmt: skip


def _wiki_hop(w: Writer) -> Row:
    candidates = [f"{w.name()} {i}" for i in range(12)]
    question = f"{'_'.join(w.words(2))} {w.name()}"
    return {
        "question": question, "supports": w.texts(10, 80), "candidates": candidates,
        "answer": candidates[w.label(12)],
    }  # fmt: skip


def _wiqa(w: Writer) -> Row:
    label = w.label(3)
    return {
        "question_para_step": w.texts(6, 8), "question_stem": w.text(18), "answer_label_as_choice": "ABC"[label],
        "answer_label": ("more", "less", "no_effect")[label],
        "choices": {"text": ["more", "less", "no effect"], "label": ["A", "B", "C"]},
        "metadata_question_type": ("EXOGENOUS_EFFECT", "INPARA_EFFECT", "OUTOFPARA_DISTRACTOR")[w.label(3)],
    }  # fmt: skip


def _wiki_bio(w: Writer) -> Row:
    header = ["name", "birth_date", "occupation", "nationality", "article_title"]
    table = {
        "column_header": header,
        "content": w.texts(len(header), 3),
        "row_number": [1] * len(header),
    }
    return {"input_text": {"table": table, "context": w.name()}, "target_text": w.text(95)}


def _hellaswag(w: Writer) -> Row:
    first, second = w.text(30), w.text(5)
    return {
        "ctx_a": first, "ctx_b": second, "ctx": f"{first} {second}", "endings": w.texts(4, 22),
        "label": str(w.label(4)), "activity_label": w.name(),
    }  # fmt: skip


def _cosmos(w: Writer) -> Row:
    answers = {f"answer{i}": w.text(9) for i in range(4)}
    return {"context": w.text(70), "question": w.text(10), "label": w.label(4), **answers}


def _kilt(w: Writer) -> Row:
    return {"input": w.text(18), "output": [{"answer": w.name()}]}


COLUMNS: dict[str, Callable[[Writer], Row]] = {
    "super_glue/wsc.fixed": _wsc,
    "super_glue/wic": lambda w: {
        "sentence1": w.text(9), "sentence2": w.text(9), "word": w.words(1)[0], "label": w.label(2),
    },
    "super_glue/boolq": lambda w: {"passage": w.text(105), "question": w.text(9), "label": w.label(2)},
    "super_glue/copa": lambda w: {
        "premise": w.text(7), "choice1": w.text(6), "choice2": w.text(6), "label": w.label(2),
        "question": ("cause", "effect")[w.label(2)],
    },
    "super_glue/multirc": lambda w: {
        "paragraph": w.text(250), "question": w.text(11), "answer": w.text(6), "label": w.label(2),
    },
    "super_glue/record": _record,
    "glue/mrpc": lambda w: {"sentence1": w.text(22), "sentence2": w.text(22), "label": w.label(2)},
    "glue/qqp": lambda w: {"question1": w.text(11), "question2": w.text(11), "label": w.label(2)},
    "paws/labeled_final": lambda w: {"sentence1": w.text(21), "sentence2": w.text(21), "label": w.label(2)},
    "ai2_arc/ARC-Challenge": _arc,
    "ai2_arc/ARC-Easy": _arc,
    "kilt_tasks/hotpotqa": _kilt,
    "trivia_qa/unfiltered": lambda w: {
        "question": w.text(15), "answer": {"aliases": [w.name() for _ in range(4)], "value": w.name()},
    },
    "web_questions": lambda w: {"question": w.text(7), "answers": [w.name()]},
    "wiki_qa": lambda w: {
        "question": w.text(7), "answer": w.text(25), "document_title": w.name(), "label": w.label(2),
    },
    "adversarial_qa/dbidaf": _adversarial,
    "adversarial_qa/dbert": _adversarial,
    "adversarial_qa/droberta": _adversarial,
    "duorc/SelfRC": lambda w: _duorc(w, 550),
    "duorc/ParaphraseRC": lambda w: _duorc(w, 900),
    "ropes": lambda w: _squad(w, 10) | {"background": w.text(115), "situation": w.text(80)},
    "squad_v2": lambda w: _squad(w, 120, answered=0.67),
    "quoref": lambda w: _squad(w, 320),
    "cos_e/v1.11": _cos_e,
    "cosmos_qa": _cosmos,
    "dream": _dream,
    "openbookqa/main": lambda w: {
        "question_stem": w.text(11), "choices": w.letters(4, 3), "answerKey": LETTERS[w.label(4)],
    },
    "qasc": _qasc,
    "quail": lambda w: {
        "context": w.text(330), "question": w.text(9), "answers": w.texts(4, 5), "correct_answer_id": w.label(4),
    },
    "quarel": _quarel,
    "quartz": lambda w: {
        "para": w.text(25), "question": w.text(20), "choices": w.letters(2, 2), "answerKey": LETTERS[w.label(2)],
    },
    "race/high": lambda w: _race(w, 310),
    "race/middle": lambda w: _race(w, 200),
    "sciq": lambda w: {
        "support": w.text(80), "question": w.text(13), "correct_answer": w.name(1), "distractor1": w.name(1),
        "distractor2": w.name(1), "distractor3": w.name(1),
    },
    "social_i_qa": lambda w: {
        "context": w.text(15), "question": w.text(6), "answerA": w.text(4), "answerB": w.text(4),
        "answerC": w.text(4), "label": str(1 + w.label(3)),
    },
    "wiki_hop/original": _wiki_hop,
    "wiqa": _wiqa,
    "piqa": lambda w: {"goal": w.text(8), "sol1": w.text(20), "sol2": w.text(20), "label": w.label(2)},
    "amazon_polarity": lambda w: {"title": w.name(4), "content": w.text(75), "label": w.label(2)},
    "app_reviews": lambda w: {"review": w.text(18), "star": 1 + w.label(5), "package_name": "org.app.name"},
    "imdb": lambda w: {"text": w.text(230), "label": w.label(2)},
    "rotten_tomatoes": lambda w: {"text": w.text(20), "label": w.label(2)},
    "yelp_review_full": lambda w: {"text": w.text(134), "label": w.label(5)},
    "hellaswag": _hellaswag,
    "common_gen": lambda w: {"concepts": w.words(4), "target": w.text(11)},
    "wiki_bio": _wiki_bio,
    "cnn_dailymail/3.0.0": lambda w: {"article": w.text(680), "highlights": w.text(50)},
    "gigaword": lambda w: {"document": w.text(31), "summary": w.text(8)},
    "multi_news": lambda w: {"document": PART.join(w.texts(3, 600)), "summary": f"- {w.text(215)}"},
    "samsum": lambda w: {
        "dialogue": "\r\n".join(f"{w.name(1)}: {w.text(8)}" for _ in range(11)), "summary": w.text(20),
    },
    "xsum": lambda w: {"document": w.text(375), "summary": w.text(21)},
    "ag_news": lambda w: {"text": w.text(38), "label": w.label(4)},
    "dbpedia_14": lambda w: {"title": w.name(), "content": w.text(47), "label": w.label(14)},
    "trec": lambda w: {"text": w.text(10), "label_coarse": w.label(6), "label_fine": w.label(47)},
}  # fmt: skip


def lexicon(texts: Iterable[str], limit: int = 60_000) -> tuple[list[str], np.ndarray]:
    """The commonest words of some texts and their counts; made-up words with Zipf's frequencies if there are none."""
    counts = Counter(word for text in texts for word in re.findall(r"[A-Za-z']+", text))
    if not counts:
        syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(limit)]
        return words, 1 / np.arange(1, limit + 1)
    words, found = zip(*counts.most_common(limit), strict=True)
    return list(words), np.array(found, float)


def write(folder: Path, writer: Writer, rows: int, split: str = "train") -> None:
    """`rows` rows of every data set, as `<dataset>/<subset or default>/<split>.parquet`."""
    for name, row in COLUMNS.items():
        dataset, _, subset = name.partition("/")
        path = folder / dataset / (subset or "default") / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([row(writer) for _ in range(rows)])
        pyarrow.parquet.write_table(table, path)
