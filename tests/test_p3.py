"""P3's rendered text beside the prompts it was rendered with: the same token ids, choices and answers."""

import dataclasses
import json
import pickle
from pathlib import Path

import jinja2
import pyarrow as pa
import pyarrow.parquet
import pytest
import seqio

from t0jax import config
from t0jax.data import sources, views
from t0jax.data.encoding import PairEncoder
from t0jax.data.loader import make_loader, make_stream
from t0jax.data.reading import render
from t0jax.data.registry import find_tasks
from t0jax.data.rows import DataError, DatasetSpec, DataUnavailable
from t0jax.data.templates import find_template
from t0jax.data.vocabulary import Pieces, train_sentencepiece
from t0jax.evaluate import tasks as evaluation
from tasks import p3, t0, t0_table

COPA = [
    {
        "premise": f"The {thing} broke",
        "choice1": f"it fell  on day {n}",
        "choice2": "we bought a new one",
        "question": ["cause", "effect"][n % 2],
        "label": n % 2,
        "idx": n,
    }
    for n, thing in enumerate(("cup", "lamp", "chair", "old clock", "gate"))
]
CLAIMS = [
    {"premise": f"It rained for {n} days.", "hypothesis": "It was wet. ", "label": n % 3, "idx": n}
    for n in range(4)
]
REVIEWS = [{"text": f"a  film of {n} ideas \n", "label": n % 2} for n in range(6)]
DATA = {
    ("super_glue", "copa", "train"): COPA,
    ("super_glue", "copa", "validation"): COPA[:4],
    ("super_glue", "cb", "validation"): CLAIMS,
    ("anli", None, "dev_r1"): CLAIMS[:2],
    ("rotten_tomatoes", None, "train"): REVIEWS,
    ("rotten_tomatoes", None, "test"): REVIEWS,
}
P3_SPLITS = {"dev_r1": "validation"}


def p3_row(template, row):
    """The row as P3 has it, or None: a plain Jinja environment, and parts that are not stripped."""
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    choices = None
    if template.answer_choices is not None:
        text = environment.from_string(template.answer_choices).render(**row)
        choices = [choice.strip() for choice in text.split("|||")]
    source = template.jinja.replace("}}", " | string | truncate(2048) }}")
    parts = environment.from_string(source).render(**row, answer_choices=choices).split("|||")
    if len(parts) != 2 or not parts[0].strip() or not parts[1].strip():
        return None
    ids = {"inputs": [1, 2], "targets": [3]}  # of no use: of another vocabulary
    text = {"inputs_pretokenized": parts[0], "targets_pretokenized": parts[1]}
    return ids | text | ({} if choices is None else {"answer_choices": choices})


@pytest.fixture(scope="module")
def world(tmp_path_factory, release):
    """Local data, P3's parquet files made of it by promptsource's prompts, and a vocabulary."""
    root = tmp_path_factory.mktemp("p3")
    for (dataset, subset, split), rows in DATA.items():
        path = root / "data" / dataset / (subset or "default") / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = []
    for entry in t0_table.load_table():
        for prompt in entry.prompts:
            texts += _write_p3(root / "data", release, entry, prompt)
    pieces = train_sentencepiece(texts, root / "spiece.model", 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T0JAX_CACHE_DIR", str(root / "cache"))
        patch.setenv("T0JAX_DATA_DIR", str(root / "data"))
        patch.setenv("T0JAX_PROMPTS_DIR", str(release))
        yield config.Data(
            modules=("tasks.p3",), vocabulary=str(pieces), available_only=True, rates="rows"
        )


def _write_p3(root, release, entry, prompt):
    texts = []
    for split in ("train", "validation", "dev_r1"):
        rows = DATA.get((entry.dataset, entry.subset, split), ())
        name = t0.task_names(entry, prompt)[0]
        template = rows and find_template(release, entry.dataset, entry.subset, prompt.name)
        found = [found for row in rows if (found := p3_row(template, row))]
        if found:
            path = root / p3.HUB_ID / name / f"{P3_SPLITS.get(split, split)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pa.parquet.write_table(pa.Table.from_pylist(found), path)
        texts += [row[key] for row in found for key in row if key.endswith("_pretokenized")]
    return texts


def lessons(world, mixture, **changes):
    """{task: [(input ids, target ids)] of its rows}, tasks named without P3's prefix."""
    data = dataclasses.replace(world, mixture=mixture, **changes)
    stream = make_stream(data, find_tasks(data), Pieces(data.vocabulary))
    encoder, found = stream.pair_encoder(), {}
    for task in stream.tasks:
        taught = [render(task, row, 0, data) for row in range(task.length)]
        pairs = [[lesson.right] for lesson in taught if lesson]
        ids = [encoded[0] for encoded in encoder.encode(pairs)]
        found[task.name.removeprefix(p3.PREFIX)] = [
            (pair.inputs.tolist(), pair.targets.tolist()) for pair in ids
        ]
    return found


@pytest.mark.parametrize("view", ["direct", "channel"])
def test_training_examples_have_the_ids_of_the_prompts(world, view):
    found = lessons(world, "p3_t0++_train", view=view)
    assert found == lessons(world, "t0++_train", view=view)
    assert {name.rpartition("_")[0] for name in found} >= {"rotten_tomatoes_Reviewer"}
    assert len(found) == 10 + 12
    applies = [len(found[f"super_glue_copa_{end}"]) for end in ("exercise", "_why_C1_or_C2")]
    assert applies == [5, 3]


@pytest.mark.parametrize("view", ["direct", "channel"])
def test_rank_candidates_have_the_ids_of_the_prompts(world, view):
    pieces = Pieces(world.vocabulary)
    encoder = PairEncoder(pieces, 256, 64, None)

    def scored(mixture):
        data = dataclasses.replace(world, view=view)
        tasks, _ = evaluation.find_tasks(mixture, data, "validation,test")
        return {
            task.name.removeprefix(p3.PREFIX): (
                task.dataset,
                task.rows.template_name,
                task.rows.template.fixed_answer_choices,
                [_candidates(encoder, view, row) for row in map(task.rows.__getitem__, range(len(task.rows))) if row],
            )
            for task in tasks
        }  # fmt: skip

    found, expected = scored("p3_t0_eval_score_eval"), scored("t0_eval_score_eval")
    assert found == expected
    assert len(found) == 15 + 12 + 15
    assert {dataset for dataset, *_ in found.values()} == {
        "super_glue/cb",
        "super_glue/copa",
        "anli/dev_r1",
    }


def _candidates(encoder, view, rendered):
    pairs = encoder.encode([views.candidates(views.VIEWS[view], rendered)])[0]
    ids = [(pair.inputs.tolist(), pair.targets.tolist()) for pair in pairs]
    return ids, views.correct_choices(rendered)


def test_what_is_missing_is_told_by_data_set(world):
    with pytest.raises(DataUnavailable) as caught:
        make_loader(dataclasses.replace(world, mixture="p3_t0_train", available_only=False))
    lines = str(caught.value).splitlines()
    assert "37 data sets (303 of 313 tasks) of 'p3_t0_train' cannot be had" in lines[0]
    assert "<T0JAX_DATA_DIR>/bigscience/P3/<task>/train.jsonl" in lines[1]
    _, missing = evaluation.find_tasks("p3_t0_eval_score_eval", world, "validation")
    stories = [reason for name, reason in missing.items() if "story_cloze" in name]
    assert len(stories) == 5
    assert all("P3 has no Story Cloze" in reason for reason in stories)


def test_what_rendered_text_cannot_do_is_refused(world):
    source = seqio.TaskRegistry.get("p3_rotten_tomatoes_Movie_Expressed_Sentiment").source
    with pytest.raises(config.ConfigError, match=r"'flipped' needs the prompt's own words.*P3"):
        source.rows("train", view="flipped")
    with pytest.raises(config.ConfigError, match="label words cannot be put into text"):
        source.rows("train", label_words={"yes": "agree"})
    with pytest.raises(DataUnavailable, match="rotten_tomatoes: no split 'test'; it has train"):
        source.rows("test")
    rows = seqio.TaskRegistry.get("p3_rotten_tomatoes_Writer_Expressed_Sentiment").source.rows(
        "train"
    )
    assert pickle.loads(pickle.dumps(rows))[0] == rows[0]


def test_seqio_gives_the_same_elements(world):
    """Text and rank tasks of text of one's own: columns with other names, rows without a label, choices in CSV."""
    root = Path(world.vocabulary).parent
    vocabulary = seqio.SentencePieceVocabulary(world.vocabulary, extra_ids=100)
    (root / "own").mkdir()
    rows = [
        {"inputs": " one film ", "targets": "good\n"},
        {"inputs": "two", "targets": "<NO LABEL>"},
    ]
    (root / "own" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "own" / "validation.csv").write_text(
        "inputs,targets,answer_choices\nfilm,bad,bad ||| good\n"
    )
    renames = (("inputs_pretokenized", "inputs"), ("targets_pretokenized", "targets"))
    home = DatasetSpec("own", local=str(root / "own"), renames=renames)
    text = sources.add_text_source("p3_own", sources.RenderedSource(home), vocabulary=vocabulary)
    rank = sources.add_rank_source("p3_own", sources.RenderedSource(home, rank=True), vocabulary)
    lengths = {"inputs": 32, "targets": 8}
    try:
        (row,) = text.get_dataset(lengths, "train", shuffle=False).as_numpy_iterator()
        assert row["inputs"].tolist() == vocabulary.encode("one film")
        assert row["targets"].tolist() == [*vocabulary.encode("good"), 1]
        found = list(rank.get_dataset(lengths, "validation", shuffle=False).as_numpy_iterator())
        assert [bool(choice["is_correct"]) for choice in found] == [True, False]
        with pytest.raises(ValueError, match="own/train: no column answer_choices, so rank"):
            rank.source.get_dataset("train")
    finally:
        seqio.TaskRegistry.remove("p3_own")
        seqio.TaskRegistry.remove("p3_own_score_eval")


def test_numbers_that_csv_took_for_text_are_refused(world, tmp_path):
    (tmp_path / "train.csv").write_text("inputs_pretokenized,targets_pretokenized\nhow many?,4\n")
    rows = sources.RenderedSource(DatasetSpec("own", local=str(tmp_path))).rows("train")
    with pytest.raises(
        DataError, match=r"own/train, row 0: targets_pretokenized is 4, int, not text"
    ):
        rows[0]


def test_choices_of_csv_without_their_separator_are_refused(world, tmp_path):
    """One choice that is the target, or a row without a label, says nothing."""
    head = "inputs_pretokenized,targets_pretokenized,answer_choices\n"
    lines = 'film,red,"red, green, blue"\nfilm,<NO LABEL>,"red, green"\nfilm,red,red\n'
    (tmp_path / "train.csv").write_text(head + lines)
    rows = sources.RenderedSource(DatasetSpec("own", local=str(tmp_path))).rows("train")
    with pytest.raises(
        DataError, match=r"'red, green, blue'.*\|\|\| separates choices: bad \|\|\|"
    ):
        rows[0]
    assert [rows[k].choices for k in (1, 2)] == [("red, green",), ("red",)]


def test_mixtures_are_those_of_t0():
    for name, rates in p3.p3_mixtures(t0_table.load_table()).items():
        theirs = sources.members(name.removeprefix(p3.PREFIX))
        assert (
            sources.members(name)
            == {p3.PREFIX + task: rate for task, rate in theirs.items()}
            == rates
        )


def test_a_configuration_of_the_hub(world, tmp_path, monkeypatch):
    """A folder stands for the repository: its card names a folder of parquet files for each configuration."""
    datasets = pytest.importorskip("datasets")
    name = "rotten_tomatoes_Movie_Expressed_Sentiment"
    card = f"configs:\n- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    (tmp_path / name).mkdir()
    local = Path(world.vocabulary).parent / "data" / p3.HUB_ID / name / "train.parquet"
    (tmp_path / name / "train-00000-of-00001.parquet").write_bytes(local.read_bytes())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr("t0jax.data.rows.hub_unreachable", lambda: "")
    monkeypatch.setenv("T0JAX_DATA_DIR", str(tmp_path))
    rows = sources.RenderedSource(DatasetSpec(p3.HUB_ID, name, str(tmp_path))).rows("train")
    monkeypatch.setenv("T0JAX_DATA_DIR", str(local.parents[3]))
    expected = seqio.TaskRegistry.get(f"p3_{name}").source.rows("train")
    assert [rows[i] for i in range(len(rows))] == [expected[i] for i in range(len(expected))]
