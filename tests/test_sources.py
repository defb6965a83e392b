"""`PromptSource` as seqio sees it, beside the rows and pieces that need no seqio; the rank metric beside sklearn."""

import pickle

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t0jax.data import sources, views
from t0jax.data.ranking import rank_classification
from t0jax.data.rows import DatasetSpec, DataUnavailable
from t0jax.data.vocabulary import Pieces, train_sentencepiece

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
    answer_choices: '{{options | join("|||")}}'
    id: 0f000000-0000-0000-0000-000000000002
    jinja: '{% if text %} Which: {{text}} ||| {{options[label]}} {% endif %}'
    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [], original_task: false, languages: [en]}
    name: which
    reference: ''
  0f000000-0000-0000-0000-000000000003: !Template
    answer_choices: null
    id: 0f000000-0000-0000-0000-000000000003
    jinja: 'Repeat {{text}} ||| {{text}}'
    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [], original_task: false, languages: [en]}
    name: repeat
    reference: ''
"""
LENGTHS = {"inputs": 64, "targets": 8}


def row(i: int) -> dict:
    """Row 7 has no text, row 9 a hidden label, row 11 a repeated choice."""
    text = "" if i == 7 else f"review {i} said {'well ' * (i % 5)}done ünder"
    options = ["one", "two", "one"] if i == 11 else ["one", "two", "three"][: 2 + i % 2]
    return {"text": text, "label": -1 if i == 9 else i % 2, "options": options}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A prompts folder, a data set of 25 rows and a vocabulary."""
    import json

    root = tmp_path_factory.mktemp("world")
    (root / "prompts" / "reviews").mkdir(parents=True)
    (root / "prompts" / "reviews" / "templates.yaml").write_text(PROMPTS, encoding="utf-8")
    (root / "data").mkdir()
    lines = [json.dumps(row(i)) + "\n" for i in range(25)]
    (root / "data" / "train.jsonl").write_text("".join(lines))
    (root / "data" / "dev_r1.jsonl").write_text("".join(lines[:3]))
    texts = [row(i)["text"] + " Good or bad? one two three which repeat" for i in range(25)]
    train_sentencepiece(texts, root / "spiece.model", 38)
    return root


@pytest.fixture(autouse=True)
def surroundings(world, monkeypatch):
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(world / "cache"))
    monkeypatch.setenv("T0JAX_VOCABULARY", str(world / "spiece.model"))
    monkeypatch.delenv("T0JAX_DATA_DIR", raising=False)


def spec(world) -> DatasetSpec:
    return DatasetSpec("reviews", local=str(world / "data"))


def source(world, prompt: str, **more) -> sources.PromptSource:
    return sources.PromptSource(spec(world), prompt, prompts_root=str(world / "prompts"), **more)


def elements(dataset: tf.data.Dataset) -> list[dict]:
    return list(dataset.as_numpy_iterator())


def test_ids_equal_rows_and_pieces(world):
    name = "reviews_good_or_bad"
    task = sources.add_prompt_task(
        name, spec(world), "good or bad", prompts_root=str(world / "prompts")
    )
    found = elements(seqio.get_mixture_or_task(name).get_dataset(LENGTHS, "train", shuffle=False))
    rows, pieces, expected = task.source.rows("train"), Pieces(world / "spiece.model"), []
    for i in range(len(rows)):
        lesson = views.lesson(views.VIEWS["direct"], rows[i])
        if lesson is not None:
            targets = [*pieces.encode(lesson.right.targets), pieces.eos_id]
            expected.append((pieces.encode(lesson.right.inputs)[:64], targets[:8]))
    assert [(e["inputs"].tolist(), e["targets"].tolist()) for e in found] == expected
    assert len(expected) == 24  # the hidden label; an empty text still makes an input here
    assert found[0]["inputs"].dtype == np.int32


def test_targets_longer_than_their_length_lose_their_end(world):
    name = "reviews_repeat"
    sources.add_prompt_task(name, spec(world), "repeat", prompts_root=str(world / "prompts"))
    found = elements(
        seqio.get_mixture_or_task(name).get_dataset({"inputs": 64, "targets": 3}, "train")
    )
    assert {len(e["targets"]) for e in found} == {3}
    assert all(1 not in e["targets"] for e in found)


@pytest.mark.parametrize(("shards", "shuffle"), [(1, True), (3, False), (3, True), (27, False)])
def test_shards_hold_every_row_once(world, shards, shuffle):
    read = source(world, "good or bad")
    parts = [
        elements(
            read.get_dataset(
                "train", shuffle=shuffle, seed=1, shard_info=seqio.ShardInfo(k, shards)
            )
        )
        for k in range(shards)
    ]
    whole = elements(read.get_dataset("train", shuffle=False))
    assert sorted(e["inputs"] for part in parts for e in part) == sorted(e["inputs"] for e in whole)


def test_a_shuffle_is_a_function_of_its_seed(world):
    read = source(world, "good or bad")
    orders = [
        [e["inputs"] for e in elements(read.get_dataset("train", seed=seed))] for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_the_iterator_position_can_be_saved(world, tmp_path):
    mixture = sources.add_mixture(
        "reviews_train", {"reviews_good_or_bad": 2.0, "reviews_repeat": 1.0}
    )
    assert sources.members("reviews_train") == {"reviews_good_or_bad": 2.0, "reviews_repeat": 1.0}

    def begin():
        return iter(mixture.get_dataset(LENGTHS, "train", seed=5, num_epochs=None))

    there = begin()
    for _ in range(10):
        next(there)
    path = tf.train.Checkpoint(iterator=there).write(str(tmp_path / "position"))
    expected = [next(there)["inputs"].numpy().tolist() for _ in range(20)]
    again = begin()
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    assert [next(again)["inputs"].numpy().tolist() for _ in range(20)] == expected


def test_rank_rows_have_seqios_layout(world):
    name = "reviews_which"
    task = sources.add_rank_task(name, spec(world), "which", prompts_root=str(world / "prompts"))
    assert task.name == "reviews_which_score_eval"
    found = elements(task.get_dataset(LENGTHS, "train", shuffle=False))
    kept = [i for i in range(25) if i not in (7, 9)]
    assert [e["idx"].tolist() for e in found] == [
        [i, k] for i in kept for k in range(len(row(i)["options"]))
    ]
    for e in found:
        i, k = e["idx"]
        assert e["targets_pretokenized"].decode() == row(i)["options"][k]
        assert bool(e["is_correct"]) == (row(i)["options"][k] == row(i)["options"][row(i)["label"]])
        assert e["weight"] == 1.0
    assert sum(e["is_correct"] for e in found if e["idx"][0] == 11) == 1
    assert {e["inputs_pretokenized"] for e in found if e["idx"][0] == 3} == {
        b"Which: " + row(3)["text"].encode()
    }


def test_seqios_evaluator_loop_gives_the_metric(world):
    """Targets postprocessed and scored the way seqio's evaluator does."""
    task = sources.add_rank_task(
        "reviews_good", spec(world), "good or bad", prompts_root=str(world / "prompts")
    )
    found = elements(task.get_dataset(LENGTHS, "train", shuffle=False))
    targets = [task.postprocess_fn(e["targets"], example=e, is_target=True) for e in found]
    (metric,) = task.score_metric_fns
    perfect = metric(targets, [float(correct) for _, correct, _, _ in targets])
    assert (perfect["accuracy"], perfect["f1"], perfect["auc-roc"]) == (100, 100, 100)
    assert metric(targets, [-float(correct) for _, correct, _, _ in targets])["accuracy"] == 0


def test_rank_task_of_a_prompt_without_choices(world):
    read = source(world, "repeat", rank=True)
    with pytest.raises(ValueError, match="prompt 'repeat' of reviews has no answer choices"):
        read.get_dataset("train")


def test_splits_of_local_data_are_those_with_files(world):
    assert source(world, "which").splits == ("train", "dev_r1")
    rounds = source(world, "which", splits={"train": "train_r1", "validation": "dev_r1"})
    assert rounds.splits == ("validation",)
    assert rounds.rows("validation").split == "dev_r1"
    assert rounds.num_input_examples("validation") == 3
    with pytest.raises(DataUnavailable, match="reviews: no split 'test'; it has validation"):
        rounds.rows("test")


def test_nothing_is_opened_until_it_is_read():
    away = sources.PromptSource(DatasetSpec("nowhere", local="/no/such/folder"), "no prompt")
    assert away.splits == ("train", "validation", "test")
    assert away.num_input_examples("train") is None
    with pytest.raises(DataUnavailable, match="nowhere: its folder /no/such/folder does not exist"):
        away.get_dataset("train")


def test_sources_pickle_and_compare_by_what_they_read(world):
    one, same = source(world, "which"), pickle.loads(pickle.dumps(source(world, "which")))
    assert one == same
    assert hash(one) == hash(same)
    assert one != source(world, "which", rank=True)
    first = next(same.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert first["inputs"].startswith(b"Which")


def test_declaring_again_is_allowed_and_another_meaning_is_not(world):
    root = str(world / "prompts")
    task = sources.add_prompt_task("reviews_twice", spec(world), "which", prompts_root=root)
    assert sources.add_prompt_task("reviews_twice", spec(world), "which", prompts_root=root) is task
    with pytest.raises(ValueError, match="'reviews_twice' is already registered as PromptSource"):
        sources.add_prompt_task("reviews_twice", spec(world), "repeat", prompts_root=root)
    mixture = sources.add_mixture("reviews_once", {"reviews_twice": 1.0})
    assert sources.add_mixture("reviews_once", {"reviews_twice": 1.0}) is mixture
    assert sources.add_mixture("reviews_once", {"reviews_twice": lambda task: 1}) is mixture
    with pytest.raises(ValueError, match="'reviews_once' is already registered with other tasks"):
        sources.add_mixture("reviews_once", {"reviews_good_or_bad": 1.0})
    with pytest.raises(ValueError, match="'reviews_once' is already registered with other rates"):
        sources.add_mixture("reviews_once", {"reviews_twice": 2.0})
    own = seqio.SentencePieceVocabulary(str(world / "spiece.model"), extra_ids=100)
    with pytest.raises(ValueError, match="'reviews_twice' is already registered with another"):
        sources.add_prompt_task(
            "reviews_twice", spec(world), "which", prompts_root=root, vocabulary=own
        )
    with pytest.raises(ValueError, match=r"unknown view 'sideways'; there are: .*direct"):
        sources.add_prompt_task("reviews_sideways", spec(world), "which", view="sideways")


def test_rows_for_readers_without_seqio(world):
    rows = seqio.TaskRegistry.get("reviews_which_score_eval").source.rows("train")
    assert rows[0].choices == ("one", "two")
    assert rows[7] is None
    assert sources.members("reviews_which_score_eval") == {"reviews_which_score_eval": 1.0}
    with pytest.raises(ValueError, match="no task or mixture 'nothing_of_that_name'"):
        sources.members("nothing_of_that_name")


@pytest.mark.parametrize("classes", [2, 4])
def test_rank_metric_equals_sklearn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(classes)
    gold, log_probs = draw.integers(classes, size=60), draw.integers(-12, 0, size=(60, classes)) / 4
    weights = draw.uniform(0.5, 2, size=60)
    rows = [((i, k), bool(gold[i] == k), weights[i], 3) for i in range(60) for k in range(classes)]
    order = draw.permutation(len(rows))
    found = rank_classification([rows[j] for j in order], log_probs.ravel()[order], classes)
    best = log_probs.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(
        100 * metrics.accuracy_score(gold, best, sample_weight=weights)
    )
    if classes == 2:
        probability = np.exp(log_probs[:, 1]) / np.exp(log_probs).sum(axis=1)
        ranked = {"y_score": probability.round(9), "sample_weight": weights}
        assert found["f1"] == pytest.approx(
            100 * metrics.f1_score(gold, best, sample_weight=weights)
        )
        assert found["auc-roc"] == pytest.approx(100 * metrics.roc_auc_score(gold, **ranked))
        assert found["auc-pr"] == pytest.approx(
            100 * metrics.average_precision_score(gold, **ranked)
        )
    else:
        macro = metrics.f1_score(gold, best, average="macro", sample_weight=weights)
        assert found["mean_4class_f1"] == pytest.approx(100 * macro)


def test_rank_metric_with_ragged_and_repeated_choices():
    rows = [((0, 0), True, 1.0, 1), ((0, 1), True, 1.0, 1), ((1, 0), False, 1.0, 1), ((1, 1), False, 1.0, 1),
            ((1, 2), True, 1.0, 1)]  # fmt: skip
    assert rank_classification(rows, [0.0, 1.0, 2.0, 2.0, 1.0]) == {"accuracy": 50.0}
    assert rank_classification(rows[:2], [1.0, 1.0], 2) == {"accuracy": 100.0}
    with pytest.raises(ValueError, match="expected 2 choices"):
        rank_classification(rows, [0.0] * 5, 2)
    with pytest.raises(ValueError, match="no rows to score"):
        rank_classification([], [])
