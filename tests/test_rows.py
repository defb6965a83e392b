"""Rows of local files against plain readers; what is missing or broken is said in words."""

import concurrent.futures
import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from t0jax import config
from t0jax.data import rows as rows_lib
from t0jax.data.rows import DataError, DatasetSpec, DataUnavailable, PromptedRows, open_rows
from t0jax.data.templates import TemplateError, load_templates
from t0jax.data.vocabulary import Pieces
from t0jax.evaluate.tasks import Encoder, RankTask
from t0jax.results import EvaluationError
from tasks import t0_hub

SHARED = Path(__file__).parents[2] / "shared" / "data"

PROMPTS = """\
dataset: reviews
templates:
  0f000000-0000-0000-0000-000000000001: !Template
    answer_choices: bad ||| good
    id: 0f000000-0000-0000-0000-000000000001
    jinja: '{{text}} Good or bad? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata {choices_in_prompt: true, metrics: [Accuracy], original_task: true, languages: [en]}
    name: good or bad
    reference: ''
  0f000000-0000-0000-0000-000000000002: !Template
    answer_choices: null
    id: 0f000000-0000-0000-0000-000000000002
    jinja: '{{ ["Say", "Write", "Tell", "Compose"] | choice }} something {{label}}. ||| {{text}}'
    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [BLEU], original_task: false, languages: [en]}
    name: at random
    reference: ''
  0f000000-0000-0000-0000-000000000003: !Template
    answer_choices: null
    id: 0f000000-0000-0000-0000-000000000003
    jinja: '{{text}} by whom? ||| {{author}}'
    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [], original_task: false, languages: [en]}
    name: by whom
    reference: ''
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("T0JAX_DATA_DIR", raising=False)


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts" / "reviews"
    folder.mkdir(parents=True)
    (folder / "templates.yaml").write_text(PROMPTS, encoding="utf-8")
    return str(tmp_path / "prompts")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def local(tmp_path, rows: list[dict], split: str = "train") -> DatasetSpec:
    write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    return DatasetSpec("reviews", local=str(tmp_path / "data"))


@pytest.mark.parametrize(
    "name", ["dream/default/train", "super_glue/cb/validation", "anli/default/dev_r1"]
)
def test_rows_equal_the_json_lines(name):
    if not SHARED.is_dir():
        pytest.skip("the shared data is not on this machine")
    dataset, subset, split = name.split("/")
    spec = DatasetSpec(dataset, None if subset == "default" else subset)
    rows = open_rows(spec, split, str(SHARED))
    with (SHARED / f"{name}.jsonl").open(encoding="utf-8") as lines:
        assert [rows[i] for i in range(len(rows))] == [json.loads(line) for line in lines]


def test_every_format_gives_the_same_rows(tmp_path):
    expected = [{"text": f"line {i}\n“two”", "label": i % 3, "score": i / 2} for i in range(20)]
    write_jsonl(tmp_path / "a" / "train.jsonl", expected)
    (tmp_path / "b").mkdir()
    for k in range(2):
        table = pa.Table.from_pylist(expected[10 * k : 10 * k + 10])
        pa.parquet.write_table(table, tmp_path / "b" / f"train-0000{k}-of-00002.parquet")
    (tmp_path / "c").mkdir()
    with (tmp_path / "c" / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, expected[0])
        writer.writeheader()
        writer.writerows(expected)
    for folder in "abc":
        rows = open_rows(DatasetSpec("x", local=str(tmp_path / folder)), "train")
        assert [rows[i] for i in range(len(rows))] == expected, folder


def test_json_lines_equal_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    mixed = [
        {"id": 1, "answers": {"text": ["a"], "start": [0]}, "date": "2020-01-01", "none": None},
        {"id": 2, "answers": {"text": [], "start": []}, "date": "2021-02-03", "none": None},
    ]
    spec = local(tmp_path, mixed)
    oracle = datasets.Dataset.from_list(mixed)
    rows = open_rows(spec, "train")
    assert [rows[i] for i in range(2)] == list(oracle)


def test_types_that_widen_late_and_fields_that_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr("t0jax.data.arrow.BATCH_ROWS", 4)
    written = [{"x": 1}] * 5 + [{"x": 2.5, "y": ["late"]}] + [{"x": None}] * 5
    rows = open_rows(local(tmp_path, written), "train")
    assert [rows[i] for i in range(len(written))] == [
        {"x": row["x"], "y": row.get("y")} for row in written
    ]


def test_rows_pickle_and_stay_lazy(tmp_path):
    rows = open_rows(local(tmp_path, [{"text": "a"}, {"text": "b"}]), "train")
    assert rows[1] == {"text": "b"}
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    assert pickle.loads(sent)[1] == {"text": "b"}
    with pytest.raises(IndexError, match="row 2 of 2"):
        rows[2]


def test_a_changed_file_is_read_again(tmp_path):
    spec = local(tmp_path, [{"text": "a"}])
    assert open_rows(spec, "train")[0] == {"text": "a"}
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"text": "longer"}, {"text": "c"}])
    assert open_rows(spec, "train")[0] == {"text": "longer"}
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 1


def test_several_processes_may_open_at_once(tmp_path):
    spec = local(tmp_path, [{"text": str(i)} for i in range(9_000)])
    code = "import pickle, sys; from t0jax.data.rows import open_rows; " \
        "print(len(open_rows(pickle.loads(bytes.fromhex(sys.argv[1])), 'train')))"  # fmt: skip
    command = [sys.executable, "-c", code, pickle.dumps(spec).hex()]
    root = Path(__file__).parents[1]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        runs = list(
            pool.map(
                lambda _: subprocess.run(command, cwd=root, capture_output=True, text=True),
                range(3),
            )
        )
    assert [run.stdout.strip() for run in runs] == ["9000"] * 3, runs[0].stderr
    assert [path.suffix for path in (tmp_path / "cache" / "rows").iterdir()] == [".arrow"]


def test_a_local_folder_wins_and_names_its_splits(tmp_path):
    write_jsonl(tmp_path / "ag_news" / "default" / "test.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(
        DataUnavailable, match=r"ag_news: no split 'train' in .*, which has test; add train.jsonl"
    ):
        open_rows(DatasetSpec("ag_news"), "train", str(tmp_path))
    with pytest.raises(
        DataUnavailable, match=r"the local data folder .* does not exist.*T0JAX_DATA_DIR"
    ):
        open_rows(DatasetSpec("ag_news"), "train", str(tmp_path / "none"))


def test_the_hub_out_of_reach_is_said_with_the_way_out():
    spec = DatasetSpec("story_cloze", "2016", "LSDSem/story_cloze", note="given out on request")
    with pytest.raises(DataUnavailable) as caught:
        open_rows(spec, "validation")
    assert caught.value.dataset == "story_cloze/2016"
    assert "story_cloze/2016/validation.jsonl" in str(caught.value)
    assert "given out on request" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_connection_is_found_out_once_for_all_data_sets(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    rows_lib.hub_unreachable.cache_clear()
    session, tried = hub.utils.get_session(), []

    def head(url, timeout):
        tried.append((url, timeout))
        raise ConnectionError("no route")

    monkeypatch.setattr(session, "head", head)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    for name in ("imdb", "xsum", "samsum"):
        with pytest.raises(DataUnavailable, match="the Hub cannot be reached"):
            open_rows(DatasetSpec(name), "train")
    rows_lib.hub_unreachable.cache_clear()
    assert tried == [("http://127.0.0.1:9", rows_lib.HUB_TIMEOUT_S)]


def test_what_the_hub_gave_is_remembered(tmp_path, monkeypatch):
    """The Hub's library writes Arrow streams; the second opening needs neither it nor a connection."""
    stream = tmp_path / "hub.arrow"
    table = pa.Table.from_pylist([{"label-coarse": k} for k in range(5)])
    with pa.OSFile(str(stream), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    asked = []
    monkeypatch.setattr(rows_lib, "hub_unreachable", lambda: "")
    monkeypatch.setattr(rows_lib, "_load_dataset", lambda *of: asked.append(of) or [str(stream)])
    for _ in range(2):
        rows = open_rows(DatasetSpec("trec", hub_id="CogComp/trec"), "train")
        assert [rows[i]["label_coarse"] for i in range(5)] == list(range(5))
    assert asked == [("CogComp/trec", None, "train", None)]
    (index,) = (tmp_path / "cache" / "hub").iterdir()
    index.write_text(index.read_text()[:40])  # a crash while it was written
    assert len(open_rows(DatasetSpec("trec", hub_id="CogComp/trec"), "train")) == 5
    assert len(asked) == 2


def test_an_error_of_the_hub_without_a_word(monkeypatch):
    def fail(*of):
        raise RuntimeError

    monkeypatch.setattr(rows_lib, "hub_unreachable", lambda: "")
    monkeypatch.setattr(rows_lib, "_load_dataset", fail)
    with pytest.raises(DataUnavailable, match=r"\(RuntimeError; as parquet: RuntimeError\)"):
        open_rows(DatasetSpec("imdb"), "train")


def test_a_repository_read_by_the_hubs_library(tmp_path, monkeypatch):
    """A folder stands for a repository: the files that `datasets` writes are opened without it."""
    datasets = pytest.importorskip("datasets")
    expected = [{"text": f"row {i}", "answers": {"text": ["a"] * (i % 3)}} for i in range(30)]
    write_jsonl(tmp_path / "repository" / "train.jsonl", expected)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(rows_lib, "hub_unreachable", lambda: "")
    spec = DatasetSpec("mine", hub_id=str(tmp_path / "repository"))
    rows = open_rows(spec, "train")
    assert [rows[i] for i in range(30)] == expected
    with pytest.raises(DataUnavailable, match=r"mine: .*cannot be read .*as parquet"):
        open_rows(spec, "validation")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write .*T0JAX_CACHE_DIR"):
        open_rows(local(tmp_path, [{"text": "a"}]), "train")


def test_a_parquet_file_damaged_in_the_middle(tmp_path):
    """The fault is the source's, not the cache folder's, and nothing half-written stays."""
    path = tmp_path / "data" / "train.parquet"
    path.parent.mkdir()
    rows = [{"text": f"row {i} of many, {i * i}"} for i in range(20_000)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 30_000] = b"\xff" * 30_000
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet is not a readable parquet") as caught:
        open_rows(DatasetSpec("mine", local=str(path.parent)), "train")
    assert "T0JAX_CACHE_DIR" not in str(caught.value)
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        open_rows(DatasetSpec("mine", local=str(tmp_path)), "train")


def test_renamed_columns_and_recoded_labels(tmp_path):
    renames, recodes = (("label_coarse", "coarse_label"),), (("label_coarse", (2, 1, 0)),)
    new = DatasetSpec("trec", renames=renames, recodes=recodes, local=str(tmp_path / "new"))
    old = DatasetSpec("trec", renames=renames, recodes=recodes, local=str(tmp_path / "old"))
    write_jsonl(tmp_path / "new" / "train.jsonl", [{"coarse_label": k} for k in (0, 1, 2, -1)])
    write_jsonl(tmp_path / "old" / "train.jsonl", [{"label-coarse": k} for k in (2, 1, 0, -1)])
    for spec in (new, old):
        rows = open_rows(spec, "train").select(["label_coarse"], spec)
        assert [rows[i]["label_coarse"] for i in range(4)] == [2, 1, 0, -1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"a": 1}\n{"a": \n', r"train.jsonl, line 2: not JSON"),
        ("train.jsonl", "[1, 2]\n", r"line 1: not an object but list"),
        (
            "train.jsonl",
            '{"b": 0, "a": 1}\n{"b": 0, "a": "x"}\n',
            r"jsonl, column 'a': .* types do not agree",
        ),
        ("train.jsonl", '{"a": 99999999999999999999}\n', r"types do not agree"),
        ("train.jsonl", "", "no rows"),
        ("train.parquet", "PAR", "not a readable parquet file"),
        ("train.csv", "a,b\n1,2,3\n", "not a readable CSV file"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_rows(DatasetSpec("mine", local=str(tmp_path)), "train")


def test_a_prompt_that_reads_a_missing_column(tmp_path, prompts):
    prompted = PromptedRows(
        local(tmp_path, [{"text": "a", "label": 0}]), "train", "by whom", 0, prompts
    )
    with pytest.raises(
        DataError,
        match=r"reviews/train: no column 'author'; the data has 'text', 'label'.*'by whom'",
    ):
        len(prompted)


def test_an_unknown_prompt_is_an_error(tmp_path, prompts):
    with pytest.raises(TemplateError, match="by wohm"):
        PromptedRows(local(tmp_path, [{"text": "a"}]), "train", "by wohm", 0, prompts)[0]


def test_prompted_rows_render_read_only_what_the_prompt_reads_and_pickle(tmp_path, prompts):
    spec = local(
        tmp_path,
        [
            {"text": "Fine.", "label": 1, "other": [1, 2]},
            {"text": "Poor.", "label": 0, "other": []},
        ],
    )
    prompted = PromptedRows(spec, "train", "good or bad", 0, prompts)
    assert prompted[0].inputs == "Fine. Good or bad?"
    assert (prompted[0].targets, prompted[0].choices) == ("good", ("bad", "good"))
    assert set(prompted.rows.columns) == {"text", "label"}
    sent = pickle.dumps(prompted)
    assert len(sent) < 1500
    assert pickle.loads(sent) == prompted
    assert pickle.loads(sent)[1].targets == "bad"


def test_hidden_labels_are_not_the_last_choice(tmp_path, prompts):
    spec = local(tmp_path, [{"text": "Fine.", "label": -1}, {"text": "Fine.", "label": 1}])
    prompted = PromptedRows(spec, "train", "good or bad", 0, prompts)
    assert [prompted[i].targets for i in range(2)] == ["", "good"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "the label is hidden; score a split with labels, or leave"),
        (2, r"label is 2, and answer_choices\[label\] wants 0 to 1; correct the labels, or leave"),
    ],
)
def test_scoring_says_why_a_row_has_no_answer(tmp_path, prompts, label, message):
    spec = local(tmp_path, [{"text": "Fine.", "label": label}])
    rows = PromptedRows(spec, "train", "good or bad", 0, prompts)
    encoder = Encoder(Pieces("none"), config.Evaluate())
    with pytest.raises(
        EvaluationError, match=f"row 0: no known answer in reviews train: {message}"
    ):
        encoder.example(0, RankTask("reviews", rows), 0, rows[0])


SENTENCES = """\
dataset: winogrande
templates:
  0f000000-0000-0000-0000-000000000004: !Template
    answer_choices: '{{option1}} ||| {{option2}}'
    id: 0f000000-0000-0000-0000-000000000004
    jinja: '{{sentence}} {% if hint is defined %}({{hint}}){% endif %} ||| {{ option1
      if answer == "1" else option2 }} {{label}}'
    metadata: !TemplateMetadata {choices_in_prompt: true, metrics: [Accuracy], original_task: true, languages: [en]}
    name: who
    reference: ''
"""


def test_label_columns_are_those_declared(tmp_path):
    """As in winogrande: the answer is in `answer`, and a `label` there means something else."""
    (tmp_path / "prompts" / "winogrande").mkdir(parents=True)
    (tmp_path / "prompts" / "winogrande" / "templates.yaml").write_text(SENTENCES)
    base = {"sentence": "The _ fell.", "option1": "cup", "option2": "cat", "hint": "see"}
    answers = [("1", "x"), ("2", ""), ("", "x"), ("2", "-1")]
    write_jsonl(
        tmp_path / "train.jsonl",
        [{**base, "answer": answer, "label": label} for answer, label in answers],
    )
    spec = DatasetSpec("winogrande", local=str(tmp_path), labels=("answer",))
    prompted = PromptedRows(spec, "train", "who", 0, str(tmp_path / "prompts"))
    assert [prompted[i].targets for i in range(4)] == ["cup x", "cat", "", "cat -1"]
    assert prompted[0].inputs == "The _ fell. (see)"  # a field that is read if it is there


STORY = {
    "InputStoryid": "138d5bfb-05cc-41e3-bf2c-fa85ebad14e2",
    "InputSentence1": "Rick grew up in a troubled household.",
    "InputSentence2": 'He never found good support in "family", and turned to gangs.',
    "InputSentence3": "It wasn't long before Rick got shot in a robbery.",
    "InputSentence4": "The incident caused him to turn a new leaf.",
    "RandomFifthSentenceQuiz1": "He is happy now.",
    "RandomFifthSentenceQuiz2": "He joined a gang.",
}
HUBS_NAMES = (
    "story_id",
    *(f"input_sentence_{n}" for n in (1, 2, 3, 4)),
    "sentence_quiz1",
    "sentence_quiz2",
)


@pytest.mark.parametrize("hubs_header", [False, True])
def test_story_cloze_from_its_authors_file(tmp_path, release, hubs_header):
    """All prompts read the CSV file with the header of the 2016 release, or of the Hub's loading script."""
    answers = (1, 2, 2)
    rows = [[*STORY.values(), answer] for answer in answers]
    header = [*HUBS_NAMES, "answer_right_ending"] if hubs_header else [*STORY, "AnswerRightEnding"]
    folder = tmp_path / "story_cloze" / "2016"
    folder.mkdir(parents=True)
    with (folder / "validation.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    spec = t0_hub.find_spec("story_cloze", "2016")
    prompts = load_templates(release, "story_cloze", "2016")
    assert len(prompts) == 6
    endings = ("He is happy now.", "He joined a gang.")
    for name in prompts:
        prompted = PromptedRows(spec, "validation", name, 0, str(release), str(tmp_path))
        rendered = [prompted[i] for i in range(len(prompted))]
        assert {r.choices for r in rendered} == {endings}
        assert [r.targets for r in rendered] == [endings[answer - 1] for answer in answers]
        assert all(STORY[f"InputSentence{n}"] in rendered[0].inputs for n in (1, 2, 3, 4))


def test_the_message_says_where_story_cloze_is_from():
    with pytest.raises(DataUnavailable) as caught:
        open_rows(t0_hub.find_spec("story_cloze", "2016"), "validation")
    for words in (
        "cs.rochester.edu/nlp/rocstories",
        "story_cloze/2016/validation",
        "spring2016*.csv",
    ):
        assert words in str(caught.value)


def test_random_prompts_are_a_function_of_seed_and_row(tmp_path, prompts):
    spec = local(tmp_path, [{"text": f"t{i}", "label": 0} for i in range(40)])
    texts = {
        seed: [PromptedRows(spec, "train", "at random", seed, prompts)[i].inputs for i in range(40)]
        for seed in (0, 1)
    }
    again = [
        PromptedRows(spec, "train", "at random", 0, prompts)[i].inputs for i in reversed(range(40))
    ]
    assert texts[0] == again[::-1]
    assert texts[0] != texts[1]
    assert len(set(texts[0])) == 4
