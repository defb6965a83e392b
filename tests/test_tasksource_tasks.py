"""The declarations of tasksource's tasks, and what they read from the data that is beside the repository."""

import ast
import importlib
import json
import pickle
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import seqio

from t0jax.data import sources
from t0jax.data.rows import DataError
from t0jax.data.structured.parts import find_part
from t0jax.data.structured.records import RecordError
from t0jax.data.structured.rows import StructuredRows
from t0jax.data.templates import TemplateError, load_templates
from tasks import bigbench_record, recycling, tasksource, tasksource_local, toy_tokens
from tasks.bigbench_rows import Example
from tasks.tasksource import audit, exams, names, nli, sizes

DATA = Path(__file__).parents[2] / "shared" / "data"
local_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")
RECORDS = tasksource.RECORDS


MODULES = [path.stem for path in Path(tasksource.__file__).parent.glob("[!_]*.py")]


def declarations(module):
    """(name, lines) of the records a module assigns."""
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            yield ast.unparse(node.targets[0]), node.end_lineno - node.lineno + 1


def test_a_task_is_declared_in_six_lines():
    lines = {name: n for module in tasksource.FAMILIES for name, n in declarations(module)}
    assert len(lines) >= len(tasksource.SINGLE)
    assert {name: n for name, n in lines.items() if n > 6} == {}


def test_enough_of_every_kind():
    kinds = Counter(record.kind for record in tasksource.SINGLE.values())
    least = {"classification": 60, "multiple_choice": 30, "token_classification": 5}
    assert all(kinds[kind] >= count for kind, count in least.items()), kinds
    assert kinds["regression"] >= 2
    assert kinds["multilabel"] >= 2
    assert len(tasksource.SINGLE) >= 100


@pytest.mark.parametrize("name", RECORDS)
def test_declaration_is_whole(name):
    record = RECORDS[name]
    head = record.head()
    assert head.task == name
    assert head.columns == (len(record.names) or 1)
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.columns, "it reads all columns of the data"
    assert any(record.splits)


def test_listing_tells_all():
    listed = tasksource.list_tasks()
    assert [task.id for task in listed] == list(RECORDS)
    checked = Counter(task.checked for task in listed if task.id in tasksource.SINGLE)
    assert set(checked) == {"rows", "card", "prompts", "reported"}
    assert checked.total() - checked["reported"] >= 60
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)+", task.dataset) for task in listed)
    told = {task.id: task.differs for task in listed}
    for name, word in {
        "art": "swapped",
        "super_glue/boolq": "passage",
        "bigbench/winowhy": "the last one",
        "glue/rte": "stays whole",
        "sciq": "test split stays",
        "social_i_qa": "with the context",
        "balanced-copa": "leave out to score super_glue/copa",
        "recast_white/dpr": "definite_pronoun_resolution",
        "rotten_tomatoes": "leave glue/sst2 out",
        "glue/sst2": "leave rotten_tomatoes out",
        "Sarcasm_News_Headline": "two versions of one set",
    }.items():
        assert word in told[name], name


TOLD_OF_SPLITS = {
    "the test split stays": lambda train, dev, test: test,
    "the official validation set stays whole": lambda train, dev, test: dev == "validation",
    "for the test labels are hidden": lambda train, dev, test: not test,
    "without the test split": lambda train, dev, test: not test,
    "test is left": lambda train, dev, test: not test,
    "validation is a tenth of train": lambda train, dev, test: find_part(dev).split == train[:5],
    "validation is about a fifth, by inputs": lambda train, dev, test: train and dev,
    "validation is the matched set, test the mismatched": lambda train, *both: [d[11:] for d in both]
    == ["matched", "mismatched"],
    "the challenge set is the test split": lambda train, dev, test: test == "challenge",
    "not trained on": lambda train, dev, test: not train,
}  # fmt: skip
TOLD_OF_OTHERS = r"""(?x) tasksource\ (has|drops|cuts|trains|reads)[^;]* | other\ data\ sets'\ training\ splits
    | where\ that\ one's\ test\ split | in\ \S+'s\ training\ split | has\ its\ test\ sentences
    | copy's\ train\ and\ test | by\ a\ wrong\ test"""


def test_what_is_told_of_splits_agrees_with_them():
    for record in RECORDS.values():
        own = re.sub(TOLD_OF_OTHERS, "", record.differs)
        for phrase, holds in TOLD_OF_SPLITS.items():
            if phrase in own:
                assert holds(*record.splits), f"{record.name}: {phrase}"
                own = own.replace(phrase, "")
        assert not re.search(r"split|\btest\b|valid|\btrain\b", own), f"no law for {own!r}"


def test_a_right_option_in_one_column_keeps_its_test_split_and_says_so():
    """tasksource takes a test split whose labels are all one for hidden, and drops it."""
    for record in RECORDS.values():
        if getattr(record, "label", None) == 0:
            assert ("the test split stays" in record.differs) == bool(record.splits[2]), record.name


def test_tables_name_tasks_that_are_there():
    assert set(sizes.SIZES) <= set(RECORDS)
    told = [*audit.ROWS, *audit.CARDS, *audit.PROMPTS]
    assert len(set(told)) == len(told)
    assert set(told) <= set(RECORDS)


def test_columns_are_those_that_promptsource_reads(release):
    for name in audit.PROMPTS:
        spec = RECORDS[name].spec
        folders = (spec.subset, None) if spec.subset else (None,)
        templates = next(
            found for s in folders if (found := find_prompts(release, spec.dataset, s))
        )
        fields = set().union(*(t.fields | t.optional_fields for t in templates.values()))
        assert RECORDS[name].columns <= fields, name


def find_prompts(root, dataset, subset):
    """The data set's prompts; none where promptsource has no such folder."""
    try:
        return load_templates(root, dataset, subset)
    except TemplateError:
        return {}


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (names.TREC_FINE, 50),
        (names.LEDGAR, 100),
        (names.NEWSGROUPS, 20),
        (names.CONLL_POS, 47),
        (names.CHUNKS, 23),
        (names.GO_EMOTIONS, 28),
        (names.EMOJI, 20),
        (names.DBPEDIA, 14),
        (names.YAHOO, 10),
        (names.LANGUAGES, 20),
        (names.WNUT, 13),
        (exams.SUBJECTS, 57),
    ],
)
def test_long_lists_have_as_many_names_as_the_data_set(found, count):
    assert len(set(found)) == len(found) == count


def test_an_id_declared_twice_is_named():
    with pytest.raises(ValueError, match="'snli'"):
        tasksource._by_id([nli.snli, nli.snli])


def test_heads_are_shared_by_names_in_the_same_order():
    groups = {name: record.head().group for name, record in RECORDS.items()}
    assert groups["glue/mnli"] == groups["snli"] == groups["anli/a1"] == groups["sick/label"]
    assert groups["super_glue/cb"] != groups["snli"], "the same names in another order"
    assert groups["rotten_tomatoes"] == groups["imdb"] == groups["glue/sst2"]
    assert groups["yelp_review_full"] == groups["app_reviews"]
    assert groups["conll2003/chunk_tags"] == groups["conll2000"] != groups["conll2003/ner_tags"]
    choices = {n for n, r in RECORDS.items() if r.kind == "multiple_choice"}
    assert {groups[name] for name in choices} == {"multiple_choice"}
    assert not any(groups[name] for name, r in RECORDS.items() if r.kind == "regression")


def test_import_asks_no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("t0jax.data.rows.hub_files", refuse)
    opened = []
    monkeypatch.setattr("t0jax.data.rows.open_rows", lambda *given: opened.append(given))
    declaring = {importlib.import_module(f"tasks.tasksource.{name}") for name in MODULES}
    assert {*tasksource.FAMILIES, exams} <= declaring
    for module in (*declaring, tasksource, tasksource_local, recycling):
        importlib.reload(module)
    assert not opened


def test_mixtures_weigh_by_capped_size():
    rates = sources.members("tasksource_30k")
    assert rates["snli"] == 30_000
    assert rates["super_glue_cb"] == 250
    assert sources.members("tasksource_train")["snli"] == 64_000
    trained = [record for record in RECORDS.values() if record.splits[0]]
    assert len(rates) == len(trained)
    assert not any(name.startswith("mmlu") for name in rates)


@pytest.mark.parametrize("cap", tasksource.CAPS.values())
def test_guessed_and_tiny_sets_are_drawn_little(cap):
    weighed = {
        n: min(sizes.SIZES.get(n, sizes.UNKNOWN), cap) for n, r in RECORDS.items() if r.splits[0]
    }
    total = sum(weighed.values())
    unknown = [name for name in weighed if name not in sizes.SIZES]
    assert len(unknown) < 20
    assert sum(weighed[name] for name in unknown) < 0.01 * total
    assert sum(w for name, w in weighed.items() if name.startswith("bigbench/")) < 0.06 * total
    assert weighed["bigbench/novel_concepts"] == 25


# ------------------------------------------------------------------------------------ rows as documented

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Fine?\n\nAssistant:"
DOCUMENTED = [
    (
        "super_glue/boolq",
        {"question": "is it", "passage": "it is", "label": 1, "idx": 0},
        (("is it", "it is"),),
        1,
    ),
    (
        "art",
        {
            "observation_1": "First",
            "observation_2": "last",
            "hypothesis_1": "x",
            "hypothesis_2": "y",
            "label": 2,
        },
        (("First\nlast", "x"), ("First\nlast", "y")),
        1,
    ),
    (
        "ai2_arc/ARC-Easy/challenge",
        {
            "question": "q",
            "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        (("q", "a"), ("q", "b"), ("q", "c")),
        2,
    ),
    (
        "commonsense_qa",
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": ""},
        None,
        None,
    ),
    ("hellaswag", {"ctx": "c", "endings": ["a", "b"], "label": "1"}, (("c", "a"), ("c", "b")), 1),
    ("hellaswag", {"ctx": "c", "endings": ["a", "b"], "label": ""}, None, None),
    (
        "winogrande/winogrande_xl",
        {"sentence": "s _", "option1": "a", "option2": "b", "answer": "2"},
        (("s _", "a"), ("s _", "b")),
        1,
    ),
    (
        "super_glue/copa",
        {"premise": "P.", "question": "cause", "choice1": "a", "choice2": "b", "label": 0},
        (("P. What was the cause?", "a"), ("P. What was the cause?", "b")),
        0,
    ),
    (
        "SHP",
        {"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
        (("h", "a"), ("h", "b")),
        0,
    ),
    (
        "hh-rlhf/harmless-base",
        {"chosen": f"{HH} Yes.", "rejected": f"{HH} No."},
        ((HH.removesuffix("\n\nAssistant:").strip(), "Yes."), (HH[: -len("\n\nAssistant:")].strip(), "No.")),
        0,
    ),
    (
        "hh-rlhf/harmless-base",
        {"chosen": f"{HH} Yes.", "rejected": f"{HH} Hm\n\nHuman: What?\n\nAssistant: No."},
        None,
        None,
    ),
    ("folio", {"premises": ["A.", "B."], "conclusion": "C", "label": "Uncertain"}, (("A. B.", "C"),), 1),
    ("snli", {"premise": "p", "hypothesis": "h", "label": -1}, None, None),
    ("app_reviews", {"review": "r", "star": 5}, (("r", None),), 4),
    ("go_emotions/simplified", {"text": "t", "labels": [27, 2]}, (("t", None),), (2, 27)),
    ("glue/stsb", {"sentence1": "a", "sentence2": "b", "label": 3.2}, (("a", "b"),), 3.2),
    ("parade", {"Definition1": "a", "Definition2": "b", "Binary labels": 1}, (("a", "b"),), 1),
    ("hate_speech18", {"text": "t", "label": 3}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "texts", "label"), DOCUMENTED)
def test_rows_as_the_cards_show_them(name, row, texts, label):
    example = RECORDS[name].example(row)
    assert (example.texts, example.label) == (texts, label) if texts else example is None


# --------------------------------------------------------------------------------------- the local data


@pytest.fixture(scope="module")
def read():
    """{(task, split): examples} of the local tasks."""
    return {
        (name, split): [example for example in rows if example is not None]
        for name, (record, _) in tasksource_local.ROWS.items()
        for split in record.splits_there(str(DATA))
        for rows in [
            [r[i] for r in [StructuredRows(record, split, str(DATA))] for i in range(len(r))]
        ]
    }


@local_data
def test_local_tasks_cover_their_labels_in_every_split(read):
    assert len({name for name, _ in read}) == 10
    for (name, split), examples in read.items():
        record, rows = tasksource_local.ROWS[name]
        if split == "train":
            assert abs(len(examples) - rows) <= 0.03 * rows, name
        found = np.concatenate([np.atleast_1d(example.label) for example in examples])
        count = len(record.names) or max(len(example.texts) for example in examples)
        assert set(found.tolist()) == set(range(count)), (name, split)


@local_data
def test_right_options_stand_anywhere(read):
    for (name, split), examples in read.items():
        if tasksource_local.ROWS[name][0].kind != "multiple_choice":
            continue
        count = len(examples[0].texts)
        share = np.bincount([e.label for e in examples], minlength=count) / len(examples)
        spread = 5 * np.sqrt((1 - 1 / count) / count / len(examples))  # five standard errors
        np.testing.assert_allclose(share, 1 / count, atol=spread, err_msg=f"{name}/{split}")


@local_data
def test_sentiment_tasks_share_no_sentence(read):
    letters = {
        name: {
            re.sub(r"\W+", "", e.texts[0][0].lower())
            for (n, _), examples in read.items()
            for e in examples
            if n == name
        }
        for name in ("local/sst2", "local/rotten_tomatoes")
    }
    assert not set.intersection(*letters.values())
    assert min(map(len, letters.values())) > 2500


@pytest.mark.parametrize("asked", ["one question", "a few", "many"])
def test_parts_of_big_bench_are_about_a_fifth_and_share_nothing(asked):
    number = {"one question": 1, "a few": 3, "many": 40}[asked]
    examples = [
        Example(f"Question {i % number}?", (f"one {i}", f"other {i}"), (1.0, 0.0))
        for i in range(160)
    ]
    stop, order = bigbench_record.cut(examples)
    assert sorted(order) == list(range(160))
    assert abs(stop - 128) <= 4
    if number == 40:
        train, validation = (
            {examples[n].input for n in part} for part in (order[:stop], order[stop:])
        )
        assert not train & validation
    with pytest.raises(DataError, match="cannot be cut"):
        bigbench_record.cut(examples[:1] * 5)


@local_data
@pytest.mark.parametrize("name", ["cb", "ag_news"])
def test_cuts_are_the_whole_set_once(name):
    record = tasksource_local.ROWS[f"local/{name}"][0]
    train, validation = (StructuredRows(record, s, str(DATA)) for s in ("train", "validation"))
    assert train.data_files() == validation.data_files()
    rows = Path(train.data_files()[0]).read_text(encoding="utf-8").splitlines()
    assert len(train) + len(validation) == len(rows)
    column = record.sentence1 if isinstance(record.sentence1, str) else "premise"
    for got, row in ((train[0], rows[0]), (validation[len(validation) - 1], rows[-1])):
        assert got.texts[0][0] == json.loads(row)[column]


@local_data
@pytest.mark.parametrize("name", ["local/anli_r1", "local/anli_r2"])
def test_parts_share_no_premise(read, name):
    train, validation = (
        [e.texts[0] for e in read[name, split]] for split in ("train", "validation")
    )
    letters = [
        {re.sub(r"\W+", "", a.lower())[:200] for a, _ in part} for part in (train, validation)
    ]
    assert not set.intersection(*letters)
    assert (len(train), len(validation)) == (800, 200)
    record = tasksource_local.ROWS[name][0]
    rows = (
        Path(record.files(find_part(record.splits[0]).split, str(DATA))[0])
        .read_text(encoding="utf-8")
        .splitlines()
    )
    told = [(row["premise"], row["hypothesis"]) for row in map(json.loads, rows)]
    assert sorted(train + validation) == sorted(told)


@pytest.mark.parametrize("split", ["train[:101%]", "train[50%:50%]", "train[:10]", "train]"])
def test_a_part_that_is_none_is_refused(split):
    with pytest.raises(RecordError, match=r"task 'snli'.*split 'train"):
        replace(nli.snli, splits=(split, None, None))


@pytest.mark.parametrize("rows", [1, 7, 556])
def test_parts_meet(rows):
    parts = [find_part(f"dev[{cut}]").numbers(rows) for cut in (":33%", "33%:80%", "80%:")]
    assert [number for part in parts for number in part] == list(range(rows))


@local_data
@pytest.mark.parametrize("task", ["disambiguation_qa", "movie_recommendation"])
def test_big_bench_has_its_own_gold(task):
    record = RECORDS[f"bigbench/{task}"]
    told = json.loads((DATA / "bigbench" / task / "task.json").read_text())["examples"]
    found = [e for part in big_bench_parts(record) for e in part]
    best = [(row["input"], max(row["target_scores"], key=row["target_scores"].get)) for row in told]
    assert sorted(e.texts[e.label] for e in found) == sorted(best)


def big_bench_parts(record):
    """Examples of train and of validation."""
    assert record.splits_there(str(DATA)) == ("train", "validation")
    rows = [StructuredRows(record, split, str(DATA)) for split in ("train", "validation")]
    return [[r[i] for i in range(len(r))] for r in rows]


@local_data
@pytest.mark.parametrize(
    ("task", "repeated"),
    [("logical_deduction_three_objects", 100), ("movie_recommendation", 1), ("disambiguation_qa", 0)],
)  # fmt: skip
def test_big_bench_parts_share_no_input(task, repeated):
    train, validation = (
        [e.texts[0][0] for e in part] for part in big_bench_parts(exams.big_bench(task))
    )
    assert not set(train) & set(validation)
    assert len(train) + len(validation) - len({*train, *validation}) >= repeated
    assert abs(len(validation) / (len(train) + len(validation)) - 0.2) < 0.02


# ------------------------------------------------------------------------------------------ other modules


def test_toy_tokens_need_their_sentence():
    rows = toy_tokens.make_rows()
    sentences = {split: {tuple(row["tokens"]) for row in found} for split, found in rows.items()}
    assert {split: len(found) for split, found in rows.items()} == toy_tokens.SIZES
    assert not sentences["train"] & sentences["validation"]
    assert not sentences["train"] & sentences["test"]
    tags = {word: set() for word in toy_tokens.BOTH}
    for row in rows["validation"]:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            tags.get(word, set()).add(toy_tokens.LABELS[tag])
    assert all(found == {"B-person", "B-place"} for found in tags.values()), tags
    assert seqio.TaskRegistry.get("toy_tokens").source.splits == ("train", "validation", "test")


def test_reader_processes_need_no_tensorflow():
    records = [*RECORDS.values(), *(record for record, _ in tasksource_local.ROWS.values())]
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); assert 'seqio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(records), check=True)
