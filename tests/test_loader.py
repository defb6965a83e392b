"""Loader: a mixture's name to batches, by index or through seqio; what is missing is told at once."""

import dataclasses
import json

import pytest
from test_reading import DATA, assert_same, take

from t0jax import config
from t0jax.data.loader import IndexLoader, make_loader
from t0jax.data.rows import DataUnavailable

PROMPTS = """\
dataset: pets
templates:
  {}: !Template
    id: {}
    name: who
    jinja: "{{{{name}}}} says {{{{sound}}}}. Which animal is it? ||| {{{{animal}}}}"
    answer_choices: null
    reference: ''
    metadata: !TemplateMetadata
      original_task: true
      choices_in_prompt: false
      metrics: [Accuracy]
      languages: [en]
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A by-index mixture, another with a data set that is not there, and a plain seqio task of the same examples."""
    seqio = pytest.importorskip("seqio")
    from t0jax.data import sources, vocabulary
    from t0jax.data.rows import DatasetSpec

    root = tmp_path_factory.mktemp("loader")
    patch = pytest.MonkeyPatch()
    patch.setenv("T0JAX_CACHE_DIR", str(root / "cache"))
    folder = root / "prompts" / "pets"
    folder.mkdir(parents=True)
    key = "0b5d0cd1-6f6d-4c5a-9d0a-3a4a6a0c0001"
    (folder / "templates.yaml").write_text(PROMPTS.format(key, key), encoding="utf-8")
    animals = ["cat", "dog", "owl", "cow", "hen"]
    rows = [
        {
            "name": f"Pet {i}",
            "sound": ["meow", "woof", "hoot", "moo", "cluck"][i % 5],
            "animal": animals[i % 5],
        }
        for i in range(60)
    ]
    for name in ("pets", "farm"):
        path = root / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [
        " ".join(row.values()) + f" says. Which animal is it? {i}" for i, row in enumerate(rows)
    ]
    pieces = vocabulary.train_sentencepiece(texts * 3, root / "pieces.model", 60)
    found = vocabulary.Pieces(pieces)

    def add(name, local):
        spec = DatasetSpec("pets", local=str(root / "data" / local))
        sources.add_prompt_task(name, spec, "who", prompts_root=str(root / "prompts"))

    add("loader_pets", "pets")
    add("loader_farm", "farm")
    add("loader_zoo", "zoo")
    seqio.MixtureRegistry.add("loader_index", [("loader_pets", 1), ("loader_farm", lambda task: 3)])
    seqio.MixtureRegistry.add("loader_some", [("loader_pets", 1), ("loader_zoo", 5)])

    def examples(split, shuffle_files, seed=None):
        import tensorflow as tf

        texts = {
            "inputs": [f"{r['name']} says {r['sound']}. Which animal is it?" for r in rows],
            "targets": [r["animal"] for r in rows],
        }
        return tf.data.Dataset.from_tensor_slices(texts)

    features = sources.output_features(seqio.SentencePieceVocabulary(str(pieces), extra_ids=100))
    seqio.TaskRegistry.add(
        "loader_plain",
        source=seqio.FunctionDataSource(examples, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=features,
    )
    yield dataclasses.replace(
        DATA, modules=(), vocabulary=str(found.path), input_length=64, target_length=8
    )
    patch.undo()
    for name in ("loader_index", "loader_some"):
        seqio.MixtureRegistry.remove(name)
    for name in ("loader_pets", "loader_farm", "loader_zoo", "loader_plain"):
        seqio.TaskRegistry.remove(name)


def token_segments(batch):
    """(inputs, targets) ids of every segment of a batch."""
    found = set()
    for i in range(len(batch["encoder_segment_ids"])):
        for segment in range(1, batch["encoder_segment_ids"][i].max(initial=0) + 1):
            inputs = batch["encoder_input_tokens"][i][batch["encoder_segment_ids"][i] == segment]
            targets = batch["decoder_target_tokens"][i][batch["decoder_segment_ids"][i] == segment]
            found.add((tuple(inputs.tolist()), tuple(targets.tolist())))
    return found


def test_a_mixture_of_prompts_is_read_by_index_in_proportion(registry):
    data = dataclasses.replace(registry, mixture="loader_index", workers=1)
    with make_loader(data) as loader:
        assert isinstance(loader, IndexLoader)
        batches = take(loader, 4)
    assert_same(batches, take(make_loader(dataclasses.replace(data, workers=0)), 4))
    rates = {task.name: task.rate for task in loader._stream.tasks}
    assert rates == {"loader_pets": 1.0, "loader_farm": 3.0}


@pytest.mark.parametrize("pack", [True, False])
def test_by_index_and_through_seqio_the_token_ids_are_the_same(registry, pack):
    by_index = make_loader(dataclasses.replace(registry, mixture="loader_pets", pack=pack))
    plain = make_loader(dataclasses.replace(registry, mixture="loader_plain", pack=pack))
    assert not isinstance(plain, IndexLoader)
    ours, theirs = take(by_index, 60), take(plain, 60)
    assert {n: (a.shape, a.dtype) for n, a in ours[0].items()} == {
        n: (a.shape, a.dtype) for n, a in theirs[0].items()
    }
    found, expected = (set().union(*map(token_segments, batches)) for batches in (ours, theirs))
    assert len(expected) == 60
    assert found == expected


@pytest.mark.parametrize("pack", [True, False])
def test_other_seqio_mixtures_resume_exactly(registry, pack):
    data = dataclasses.replace(registry, mixture="loader_plain", pack=pack)
    loader = make_loader(data)
    take(loader, 7)
    state = json.loads(json.dumps(loader.state()))
    assert state["iterator"], "tf.data could save this pipeline"
    rest = take(loader, 7)
    resumed = make_loader(data)
    resumed.restore(state)
    assert_same(take(resumed, 7), rest)
    counted = make_loader(data)
    counted.restore(state | {"iterator": None})
    assert_same(take(counted, 7), rest)
    with pytest.raises(config.ConfigError, match=r"data\.seed was 5, is 9"):
        make_loader(dataclasses.replace(data, seed=9)).restore(state)


def test_other_seqio_mixtures_are_cut_over_processes(registry):
    data = dataclasses.replace(registry, mixture="loader_plain", pack=False)
    parts = [make_loader(data, process_index=i, process_count=2) for i in range(2)]
    seen = [set().union(*(token_segments(next(part)) for _ in range(40))) for part in parts]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 60


def test_missing_data_sets_are_told_in_one_table(registry, caplog):
    data = dataclasses.replace(registry, mixture="loader_some")
    with pytest.raises(
        DataUnavailable, match=r"(?s)1 of 2 tasks.*pets +1 tasks .*zoo does not exist"
    ):
        make_loader(data)
    rest = make_loader(dataclasses.replace(data, available_only=True))
    assert [task.name for task in rest._stream.tasks] == ["loader_pets"]
    assert "going on with the other 1 tasks" in caplog.text
    with pytest.raises(config.ConfigError, match="none of the data sets of 'loader_zoo'"):
        make_loader(dataclasses.replace(data, mixture="loader_zoo", available_only=True))


def test_an_unknown_mixture_gets_a_suggestion(registry):
    with pytest.raises(config.ConfigError, match="no 'loader_pet'; did you mean 'loader_pets'"):
        make_loader(dataclasses.replace(registry, mixture="loader_pet"))
