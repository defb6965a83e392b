"""Loader: a mixture's name to batches, by index or through seqio; what is missing is told at once."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_reading import DATA, assert_same, take

from t0jax import config
from t0jax.data import iterators
from t0jax.data import loader as loader_lib
from t0jax.data import missing as missing_lib
from t0jax.data.loader import IndexLoader, make_loader
from t0jax.data.rows import DataUnavailable
from t0jax.data.vocabulary import Pieces

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
  {}: !Template
    id: {}
    name: which sound
    jinja: "What does {{{{name}}}} say? ||| {{{{sound}}}}"
    answer_choices: null
    reference: ''
    metadata: !TemplateMetadata {{original_task: false}}
  {}: !Template
    id: {}
    name: rare
    jinja: "{{% if name == 'Pet 59' %}} Who? ||| {{{{name}}}} {{% endif %}}"
    answer_choices: null
    reference: ''
    metadata: !TemplateMetadata {{original_task: false}}
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
    keys = [f"0b5d0cd1-6f6d-4c5a-9d0a-3a4a6a0c000{i}" for i in (1, 1, 2, 2, 3, 3)]
    (folder / "templates.yaml").write_text(PROMPTS.format(*keys), encoding="utf-8")
    animals = ["cat", "dog", "owl", "cow", "hen"]
    rows = [
        {
            "name": f"Pet {i}",
            "sound": ["meow", "woof", "hoot", "moo", "cluck"][i % 5],
            "animal": animals[i % 5],
        }
        for i in range(60)
    ]
    for name, count in (("pets", 60), ("farm", 40)):
        path = root / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
    texts = [
        " ".join(row.values()) + f" says. Which animal is it? {i}" for i, row in enumerate(rows)
    ]
    pieces = vocabulary.train_sentencepiece(texts * 3, root / "pieces.model", 60)
    found = vocabulary.Pieces(pieces)

    def add(name, local, prompt="who"):
        spec = DatasetSpec("pets", local=str(root / "data" / local))
        sources.add_prompt_task(name, spec, prompt, prompts_root=str(root / "prompts"))

    add("loader_pets", "pets")
    add("loader_farm", "farm")
    add("loader_zoo", "zoo")
    add("loader_sounds", "pets", "which sound")
    add("loader_rare", "pets", "rare")
    seqio.MixtureRegistry.add("loader_prompts", [("loader_pets", 1), ("loader_sounds", 1)])
    seqio.MixtureRegistry.add("loader_rarely", [("loader_pets", 1), ("loader_rare", 1)])
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
    for name in ("loader_index", "loader_some", "loader_prompts", "loader_rarely"):
        seqio.MixtureRegistry.remove(name)
    for name in ("pets", "farm", "zoo", "sounds", "rare", "plain"):
        seqio.TaskRegistry.remove(f"loader_{name}")


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


def test_rates_are_the_registered_ones_or_the_rows(registry):
    def rates(setting):
        data = dataclasses.replace(registry, mixture="loader_index", rates=setting)
        pieces = Pieces(registry.vocabulary)
        stream = loader_lib.make_stream(data, loader_lib.find_tasks(data), pieces)
        return {task.name: task.rate for task in stream.tasks}

    assert rates("registered") == {"loader_pets": 1.0, "loader_farm": 3.0}
    assert rates("rows") == {"loader_pets": 60.0, "loader_farm": 40.0}


def test_copies_of_the_data_have_the_same_position_and_other_data_has_not(registry):
    data = dataclasses.replace(registry, mixture="loader_pets")
    state = make_loader(data).state()
    path = Path(registry.vocabulary).parent / "data" / "pets" / "train.jsonl"
    content = path.read_text()
    try:
        path.write_text(content)  # a new time
        make_loader(data).restore(state)
        path.write_text(content.replace("meow", "purrs"))  # as many rows
        with pytest.raises(config.ConfigError, match="tasks was"):
            make_loader(data).restore(state)
    finally:
        path.write_text(content)


def prompted(data):
    """The tasks of the stream, by name."""
    stream = loader_lib.make_stream(data, loader_lib.find_tasks(data), Pieces(data.vocabulary))
    return {task.name: task for task in stream.tasks}


def test_a_few_shots_are_the_same_rows_for_all_prompts_of_a_data_set(registry):
    data = dataclasses.replace(registry, mixture="loader_prompts", num_shots=8)
    tasks = prompted(data)
    assert len(tasks) == 2
    assert {task.length for task in tasks.values()} == {8}
    (chosen,) = {task.chosen for task in tasks.values()}
    assert len(set(chosen)) == 8
    assert set(chosen) < set(range(60))
    fewer = prompted(dataclasses.replace(data, num_shots=5))["loader_pets"].chosen
    assert set(fewer) < set(chosen)
    others = [
        prompted(dataclasses.replace(data, seed=seed))["loader_pets"].chosen for seed in (6, 7)
    ]
    assert len({chosen, *others}) == 3
    with make_loader(dataclasses.replace(data, mixture="loader_pets", pack=False)) as loader:
        seen = set().union(*map(token_segments, take(loader, 25)))
    pieces, rows = Pieces(data.vocabulary), tasks["loader_pets"].rows
    expected = [
        (pieces.encode(rows[i].inputs), [*pieces.encode(rows[i].targets), 1]) for i in chosen
    ]
    assert seen == {(tuple(inputs), tuple(targets)) for inputs, targets in expected}


def test_shots_are_drawn_evenly():
    counts = [0] * 50
    for seed in range(400):
        for row in loader_lib.draw_shots("evenly", 50, 10, seed):
            counts[row] += 1
    # 400 draws of 10 out of 50: 80 each, and a standard deviation of 8
    assert max(abs(count - 80) for count in counts) < 32


def test_more_shots_than_rows_take_all_with_a_warning(registry, caplog):
    data = dataclasses.replace(registry, mixture="loader_pets", num_shots=1000)
    assert prompted(data)["loader_pets"].chosen == ()
    assert "pets/train has 60 rows, fewer than data.num_shots 1000: all are read" in caplog.text
    assert_same(
        take(make_loader(data), 3), take(make_loader(dataclasses.replace(data, num_shots=0)), 3)
    )


def test_resuming_with_other_shots_is_refused(registry):
    data = dataclasses.replace(registry, mixture="loader_pets", num_shots=8)
    loader = make_loader(data)
    batches = take(loader, 3)
    resumed = make_loader(data)
    resumed.restore(json.loads(json.dumps(loader.state())))
    assert_same(take(resumed, 2), take(loader, 2))
    assert_same(take(make_loader(dataclasses.replace(data, workers=2)), 3), batches)
    with pytest.raises(config.ConfigError, match=r"data\.num_shots was 8, is 9"):
        make_loader(dataclasses.replace(data, num_shots=9)).restore(loader.state())
    older = make_loader(dataclasses.replace(data, num_shots=0))
    state = older.state()
    del state["stream"]["data.num_shots"]
    older.restore(state)


def test_a_prompt_that_applies_to_none_of_its_shots_is_left_out(registry, caplog):
    """Of 60 rows its prompt applies to one; the other prompt goes on."""
    data = dataclasses.replace(registry, mixture="loader_rarely", num_shots=4)
    assert list(prompted(data)) == ["loader_pets"]
    assert "left out, for none of their 4 rows gives an example: loader_rare" in caplog.text
    with pytest.raises(config.ConfigError, match=r"none of the 4 rows.*raise data\.num_shots"):
        make_loader(dataclasses.replace(data, mixture="loader_rare"))
    with pytest.raises(config.ConfigError, match="num_shots=-1 must not be negative"):
        make_loader(dataclasses.replace(data, num_shots=-1))


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


@pytest.mark.parametrize(("pack", "positions"), [(True, (4, 11)), (False, (7,))])
def test_other_seqio_mixtures_resume_exactly(registry, pack, positions, monkeypatch):
    monkeypatch.setattr(iterators, "SNAPSHOT_EVERY", 4)
    data = dataclasses.replace(registry, mixture="loader_plain", pack=pack)
    loader = make_loader(data)
    states, batches = [loader.state()], []
    for _ in range(14):
        batches.append(next(loader))
        states.append(json.loads(json.dumps(loader.state())))
    places = [state["process 0 of 1"] for state in states]
    assert [place["batches_since"] for place in places] == [0, 1, 2, 3, 4, *[1, 2, 3, 4] * 2, 1, 2]
    assert [bool(place["snapshot"]) for place in places] == [False] * 5 + [True] * 10
    resumed = make_loader(data)
    for position in positions:
        resumed.restore(states[position])
        assert resumed.state() == states[position]
        assert_same(take(resumed, 3), batches[position : position + 3])
    resumed.restore({"process 0 of 1": places[7] | {"snapshot": None, "batches_since": 7}})
    assert_same(take(resumed, 7), batches[7:])
    with pytest.raises(config.ConfigError, match=r"data\.seed was 5, is 9"):
        make_loader(dataclasses.replace(data, seed=9)).restore(states[3])


def test_other_seqio_mixtures_are_cut_over_processes(registry):
    data = dataclasses.replace(registry, mixture="loader_plain", pack=False)
    parts = [make_loader(data, process_index=i, process_count=2) for i in range(2)]
    seen = [set().union(*(token_segments(next(part)) for _ in range(40))) for part in parts]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 60
    states = [part.state() for part in parts]
    merged = states[0] | states[1]
    assert list(merged) == ["process 0 of 2", "process 1 of 2"]
    for i, part in enumerate(parts):
        resumed = make_loader(data, process_index=i, process_count=2)
        resumed.restore(merged)
        assert_same([next(resumed)], [next(part)])
    with pytest.raises(config.ConfigError, match="none of process 0 of 1: it has process 0 of 2"):
        make_loader(data).restore(merged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": "rows"}, r"data\.rates=rows is only for tasks read by index"),
        ({"input_eos": True}, r"data\.input_eos=True is only"),
        ({"available_only": True}, r"data\.available_only=True is only"),
        ({"num_shots": 8}, r"data\.num_shots=8 is only"),
    ],
)
def test_what_seqio_cannot_follow_is_refused(registry, changes, message):
    with pytest.raises(config.ConfigError, match=message):
        make_loader(dataclasses.replace(registry, mixture="loader_plain", **changes))


def test_a_vocabulary_that_is_not_the_seqio_tasks_own(registry, tmp_path, caplog):
    data = dataclasses.replace(registry, mixture="loader_plain")
    copy = tmp_path / "copy.model"
    copy.write_bytes(Path(registry.vocabulary).read_bytes())
    make_loader(dataclasses.replace(data, vocabulary=str(copy)))
    assert "its task 'loader_plain' is not read by index" in caplog.text
    copy.write_bytes(b"another")
    with pytest.raises(config.ConfigError, match=r"copy\.model is not the vocabulary of the tasks"):
        make_loader(dataclasses.replace(data, vocabulary=str(copy)))


def test_a_vocabulary_with_other_extra_ids_is_refused(registry):
    import seqio

    from t0jax.data import sources

    own = seqio.SentencePieceVocabulary(registry.vocabulary, extra_ids=0)
    source = seqio.TaskRegistry.get("loader_pets").source
    sources.add_prompt_task("loader_bare", source.spec, "who", vocabulary=own)
    try:
        with pytest.raises(config.ConfigError, match=r"with 0 extra ids; declare 100"):
            loader_lib.find_vocabulary(config.Data(mixture="loader_bare", modules=()))
    finally:
        seqio.TaskRegistry.remove("loader_bare")


def test_missing_data_sets_are_told_in_one_table(registry, caplog):
    data = dataclasses.replace(registry, mixture="loader_some")
    with pytest.raises(
        DataUnavailable, match=r"(?s)1 data set \(1 of 2 tasks.*pets +1 task .*zoo does not exist"
    ):
        make_loader(data)
    rest = make_loader(dataclasses.replace(data, available_only=True))
    assert rest.tasks == ("loader_pets",)
    assert "going on with the other 1 task" in caplog.text
    caplog.clear()
    with pytest.raises(config.ConfigError, match="none of the data sets of 'loader_zoo'"):
        make_loader(dataclasses.replace(data, mixture="loader_zoo", available_only=True))
    assert "1 data set (1 of 1 task)" in caplog.text
    assert "going on" not in caplog.text


def test_the_way_out_of_missing_data_is_said_once(registry, monkeypatch):
    """Where it belongs, that no folder is set, and to go on with the rest only where there is one."""
    monkeypatch.delenv("T0JAX_DATA_DIR", raising=False)

    def message(rest):
        missing = {("pets", "not here", "put the data at <T0JAX_DATA_DIR>/pets.csv"): ["a", "b"]}
        with pytest.raises(DataUnavailable) as caught:
            missing_lib.report(config.Data(mixture="zoo"), missing, 2 + rest)
        return str(caught.value)

    head = "1 data set (2 of 2 tasks) of 'zoo' cannot be had:\n"
    line = "  pets    2 tasks  not here; <T0JAX_DATA_DIR>/pets.csv"
    way_out = "put the data there (T0JAX_DATA_DIR is not set)"
    assert message(0) == f"pets: {head}{line}; {way_out}"
    assert message(1).endswith(f"{way_out}, or go on with the rest by data.available_only: true")
    monkeypatch.setenv("T0JAX_DATA_DIR", "/here")
    assert "(T0JAX_DATA_DIR is /here)" in message(1)


def test_an_unknown_mixture_gets_a_suggestion(registry):
    with pytest.raises(config.ConfigError, match="no 'loader_pet'; did you mean 'loader_pets'"):
        make_loader(dataclasses.replace(registry, mixture="loader_pet"))
