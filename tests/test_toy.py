"""The toy data: the same everywhere, splits apart, prompts apart, answers among the choices."""

import json
import pickle

import pytest

from t0jax.data.rows import PromptedRows
from t0jax.data.vocabulary import Pieces
from tasks.toy_rows import make_rows


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The task module, with its files in the cache folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T0JAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        import tasks.toy

        yield tasks.toy


def member_names(mixture):
    import seqio

    return {task.name for task in seqio.MixtureRegistry.get(mixture).tasks}


def keys(rows):
    return {json.dumps(row, sort_keys=True) for row in rows}


def test_rows_are_a_pure_function():
    assert make_rows() == make_rows()


def test_rows_are_those_of_the_measured_score():
    # configs/toy.yaml states a score for exactly these rows.
    first = {name: splits["validation"][0] for name, splits in make_rows().items()}
    assert first["toy_reviews"] == {"text": "I was sorry I came. A really dull coffee!", "label": 1}
    assert first["toy_sizes"] == {"first": "green mouse", "second": "red dog", "label": 1}


@pytest.mark.parametrize("name", make_rows())
def test_splits_are_disjoint_and_every_label_occurs(name):
    splits = make_rows()[name]
    train, validation = keys(splits["train"]), keys(splits["validation"])
    assert len(train) == len(splits["train"])
    assert len(validation) == len(splits["validation"]) >= 80
    assert not train & validation
    labels = [row["label"] for row in splits["validation"]]
    expected = set(range(max(labels) + 1))
    assert set(labels) == expected == {row["label"] for row in splits["train"]}
    assert max(map(labels.count, expected)) / len(labels) < 1.3 / len(expected)


def test_held_out_prompts_are_in_no_training_mixture(toy):
    held = {toy.task_name(*prompt) for prompt in toy.prompt_names(held_out=True)}
    assert len(held) == 10
    assert member_names("toy_eval_score_eval") == {f"{name}_score_eval" for name in held}
    training = member_names("toy_train")
    assert member_names("toy_train_score_eval") == {f"{name}_score_eval" for name in training}
    assert len(training) == 53
    assert not training & held


def test_held_out_templates_differ_from_training_templates(toy):
    from t0jax.data.templates import load_templates

    for name, held in toy.HELD_OUT.items():
        wording = {
            t.name: " ".join(t.jinja.split()) for t in load_templates(toy.PROMPTS, name).values()
        }
        assert set(held) <= set(wording)
        assert len(set(wording.values())) == len(wording)


def test_every_prompt_renders_with_the_gold_among_the_choices(toy):
    rows = make_rows()
    for held_out in (True, False):
        for dataset, prompt in toy.prompt_names(held_out=held_out):
            prompted = PromptedRows(
                toy.SPECS[dataset], "validation", prompt, prompts_root=str(toy.PROMPTS)
            )
            assert len(prompted) == len(rows[dataset]["validation"])
            for index in range(0, len(prompted), 10 if held_out else 50):
                rendered = prompted[index]
                label = rows[dataset]["validation"][index]["label"]
                assert rendered.targets == rendered.choices[label]
                assert len(set(rendered.choices)) == len(rendered.choices) >= 2


def test_vocabulary_is_trained_once_and_spells_every_held_out_prompt(toy):
    path = toy.vocabulary_file()
    before = path.stat().st_mtime_ns
    toy.vocabulary_file.cache_clear()
    assert toy.vocabulary_file() == path
    assert path.stat().st_mtime_ns == before
    pieces = Pieces(path)
    assert pieces.size == toy.VOCABULARY_SIZE + 100
    for dataset, prompt in toy.prompt_names(held_out=True):
        prompted = PromptedRows(
            toy.SPECS[dataset], "validation", prompt, prompts_root=str(toy.PROMPTS)
        )
        rendered = pickle.loads(pickle.dumps(prompted))[0]
        assert pieces.unk_id not in pieces.encode(f"{rendered.inputs} {rendered.targets}")


def test_seqio_reads_the_same_example(toy):
    import seqio

    task = seqio.get_mixture_or_task(toy.task_name("toy_reviews", "liked it"))
    example = next(
        iter(task.get_dataset({"inputs": 64, "targets": 16}, "validation", shuffle=False))
    )
    pieces = Pieces(toy.vocabulary_file())
    assert pieces.decode(example["targets"].numpy().tolist()) in ("Yes", "No")
    assert "Did the writer like it?" in pieces.decode(example["inputs"].numpy().tolist())
