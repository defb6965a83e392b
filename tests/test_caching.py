"""A mixture that seqio's caching script wrote: the same token ids, and no other cache than the tasks' own."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_loader import token_segments
from test_reading import take

from t0jax import config
from t0jax.data.iterators import SeqioLoader
from t0jax.data.loader import make_loader
from t0jax.data.registry import open_cache
from t0jax.data.vocabulary import train_sentencepiece

MODULE = """\
import seqio
from t0jax.data.rows import DatasetSpec
from t0jax.data.sources import add_mixture, add_prompt_task

SPEC = DatasetSpec("cafe", local={data!r})
OPTIONS = {{
    "splits": {{"train": "train"}},
    "prompts_root": {prompts!r},
    "vocabulary": seqio.SentencePieceVocabulary({vocabulary!r}, extra_ids=100),
}}
for name, prompt in (("order", "order"), ("guest", "guest")):
    add_prompt_task(f"{prefix}_{{name}}", SPEC, prompt, **OPTIONS)
add_prompt_task("{prefix}_flipped", SPEC, "order", view="flipped", **OPTIONS)
add_mixture("{prefix}_all", {{"{prefix}_order": 1.0, "{prefix}_guest": 2.0}})
add_mixture("{prefix}_both", {{"{prefix}_flipped": 1.0, "{prefix}_order": 1.0}})
"""
PROMPTS = """\
dataset: cafe
templates:
  0f000000-0000-0000-0000-00000000000a: !Template
    answer_choices: tea ||| cake
    id: 0f000000-0000-0000-0000-00000000000a
    jinja: '{{guest}} is {{mood}}. Tea or cake? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata {original_task: true}
    name: order
    reference: ''
  0f000000-0000-0000-0000-00000000000b: !Template
    answer_choices: null
    id: 0f000000-0000-0000-0000-00000000000b
    jinja: '{% if label %} Who wants cake? {{mood}} ||| {{guest}} {% endif %}'
    metadata: !TemplateMetadata {original_task: false}
    name: guest
    reference: ''
"""
MOODS = ["hungry", "thirsty", "tired"]
TASKS = ("order", "guest", "flipped")


@pytest.fixture(scope="module")
def cafe(tmp_path_factory):
    """Writes a module of tasks whose names begin with a prefix, and imports it; everything is gone afterwards."""
    root = tmp_path_factory.mktemp("cafe")
    rows = [
        {"guest": f"guest {i}", "mood": MOODS[i % 3], "label": -1 if i == 4 else i % 2}
        for i in range(20)
    ]
    (root / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data" / "train.jsonl").write_text(lines)
    (root / "prompts" / "cafe").mkdir(parents=True)
    (root / "prompts" / "cafe" / "templates.yaml").write_text(PROMPTS)
    texts = [f"{row['guest']} is {row['mood']}. Tea or cake? Who wants cake?" for row in rows]
    vocabulary = train_sentencepiece(texts * 3, root / "spiece.model", 60)
    data = config.Data(
        input_length=48, target_length=12, batch_size=8, shards=2, pack=False, seed=1
    )

    def declare(prefix):
        places = {"data": root / "data", "prompts": root / "prompts", "vocabulary": vocabulary}
        text = MODULE.format(prefix=prefix, **{name: str(path) for name, path in places.items()})
        (root / f"{prefix}_module.py").write_text(text)
        return dataclasses.replace(data, mixture=f"{prefix}_all", modules=(f"{prefix}_module",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T0JAX_CACHE_DIR", str(root / "cache"))
        patch.syspath_prepend(str(root))
        yield declare


def write_cache(
    folder, prefix, change=lambda ids: ids, changed=("order", "guest"), examples_of=list
):
    """What seqio_cache_tasks leaves behind, written without Beam; the ids of some tasks' inputs are changed."""
    import seqio
    import tensorflow as tf

    for name in TASKS:
        task = seqio.TaskRegistry.get(f"{prefix}_{name}")
        own = folder / seqio.get_task_dir_from_name(task.name)
        own.mkdir(parents=True, exist_ok=True)
        dataset = task.source.get_dataset("train", shuffle=False)
        dataset = task.preprocess_precache(dataset)
        examples = examples_of(dataset.as_numpy_iterator())
        path = seqio.get_cached_tfrecord_prefix(str(own), "train") + "-00000-of-00001"
        with tf.io.TFRecordWriter(path) as writer:
            for example in examples:
                ids = {"inputs": change(example["inputs"])} if name in changed else {}
                writer.write(seqio.dict_to_tfexample(example | ids).SerializeToString())
        features = {
            key: {"shape": [None] * value.ndim, "dtype": value.dtype.name}
            if hasattr(value, "ndim")
            else {"shape": [], "dtype": "string"}
            for key, value in examples[0].items()
        }
        info = {"num_shards": 1, "features": features, "seqio_version": seqio.__version__}
        (own / "info.train.json").write_text(json.dumps(info))
        (own / "stats.train.json").write_text(json.dumps({"examples": len(examples)}))
        (own / "COMPLETED").write_text("")


def segments(loader, batches):
    return set().union(*map(token_segments, take(loader, batches)))


def test_a_cached_task_has_the_ids_of_the_rows(cafe, tmp_path):
    data = dataclasses.replace(cafe("cafe_ids"), mixture="cafe_ids_order")
    expected = segments(make_loader(data), 60)
    write_cache(tmp_path, "cafe_ids")
    loader = make_loader(dataclasses.replace(data, cache_dir=str(tmp_path)))
    assert isinstance(loader, SeqioLoader)
    assert segments(loader, 60) == expected
    assert len(expected) == 19
    (place,) = loader.state().values()
    assert place["stream"]["read from a cache"] is True


def test_a_view_that_shortens_is_cached_as_text(cafe, tmp_path):
    """Tokenised after the cache, for the lengths of the run."""
    import seqio

    data = dataclasses.replace(cafe("cafe_flip"), mixture="cafe_flip_flipped")
    expected = segments(make_loader(data), 60)
    write_cache(tmp_path, "cafe_flip")
    open_cache(dataclasses.replace(data, cache_dir=str(tmp_path)))
    task, lengths = seqio.TaskRegistry.get(data.mixture), {"inputs": 48, "targets": 12}
    cached = task.get_dataset(lengths, "train", use_cached=True).as_numpy_iterator()
    found = {tuple(tuple(row[side].tolist()) for side in ("inputs", "targets")) for row in cached}
    assert found == expected


def test_what_the_cache_does_not_hold_is_named(cafe, tmp_path):
    data = cafe("cafe_part")
    cached = dataclasses.replace(data, cache_dir=str(tmp_path))
    with pytest.raises(
        config.ConfigError, match=r"no split 'train' of 2 of the 2 tasks .*seqio_cache_tasks"
    ):
        make_loader(cached)
    write_cache(tmp_path, "cafe_part")
    with pytest.raises(config.ConfigError, match=r"no split 'test' of 2 of the 2 tasks"):
        make_loader(dataclasses.replace(cached, split="test"))
    with pytest.raises(
        config.ConfigError, match=r"num_shots=3 .* read them without data\.cache_dir"
    ):
        make_loader(dataclasses.replace(cached, num_shots=3))
    loader = make_loader(cached)
    ((name, place),) = loader.state().items()
    uncached = {name: place | {"stream": place["stream"] | {"read from a cache": False}}}
    with pytest.raises(config.ConfigError, match="read from a cache was False, is True"):
        loader.restore(uncached)


def test_a_position_of_the_rows_is_none_of_the_cache(cafe, tmp_path):
    data = cafe("cafe_place")
    by_index = make_loader(data)
    write_cache(tmp_path, "cafe_place")
    cached = make_loader(dataclasses.replace(data, cache_dir=str(tmp_path)))
    with pytest.raises(config.ConfigError, match=r"read by index, which is now read through seqio"):
        cached.restore(by_index.state())
    with pytest.raises(config.ConfigError, match=r"read through seqio, which is now read by index"):
        by_index.restore(cached.state())


@pytest.mark.parametrize(
    ("mixture", "changed"), [("all", "guest"), ("all", "order"), ("both", "order")]
)
def test_a_cache_of_another_vocabulary_is_refused(cafe, tmp_path, mixture, changed):
    """Whichever task it wrote: the first or the last by name, and beside one that is cached as text."""
    prefix = f"cafe_{mixture}_{changed}"
    data = dataclasses.replace(cafe(prefix), mixture=f"{prefix}_{mixture}")
    make_loader(data)
    write_cache(tmp_path, prefix, lambda ids: ids[::-1], (changed,))
    with pytest.raises(
        config.ConfigError,
        match=rf"another vocabulary.*T0JAX_VOCABULARY.*{prefix}_{changed} .*--overwrite",
    ):
        open_cache(dataclasses.replace(data, cache_dir=str(tmp_path)))


def test_a_position_of_a_cache_is_none_of_another(cafe, tmp_path):
    """Not of one with the same examples in another order either."""
    data = cafe("cafe_anew")
    make_loader(data)
    write_cache(tmp_path, "cafe_anew")
    cached = dataclasses.replace(data, cache_dir=str(tmp_path))
    state = make_loader(cached).state()
    make_loader(cached).restore(state)
    write_cache(tmp_path, "cafe_anew", examples_of=lambda rows: [*rows][::-1])
    with pytest.raises(
        config.ConfigError, match=r"content of data\.cache_dir was \w+, is \w+\. Go back.*weights"
    ):
        make_loader(cached).restore(state)


@pytest.mark.slow
def test_seqio_cache_tasks_writes_what_is_read_back(cafe, tmp_path):
    """seqio's own script with Beam's DirectRunner, which the extra `cache` brings."""
    pytest.importorskip("apache_beam", reason="apache-beam is not installed: the extra `cache`")
    data = cafe("cafe_beam")
    command = [
        sys.executable,
        "-c",
        "from seqio.scripts.cache_tasks_main import console_entry_point as run; run()",
        "--module_import=cafe_beam_module",
        "--tasks=cafe_beam_.*",
        f"--output_cache_dir={tmp_path}",
        "--min_shards=2",
    ]
    path = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    for mixture in ("cafe_beam_all", "cafe_beam_flipped"):
        chosen = dataclasses.replace(data, mixture=mixture)
        expected = segments(make_loader(chosen), 60)
        cached = dataclasses.replace(chosen, cache_dir=str(tmp_path))
        assert segments(make_loader(cached), 90) == expected
