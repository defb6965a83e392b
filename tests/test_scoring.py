"""Scores of prepared examples against PyTorch, and against themselves under batch sizes, neighbours and meshes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from pets import TINY, make_params, one_device

from t0jax import config as cfg
from t0jax import convert, evaluate, models, scoring, sharding
from t0jax.data import vocabulary
from t0jax.data.rows import DatasetSpec, PromptedRows
from t0jax.scoring import RankExample

SHARED = Path(__file__).parents[2] / "shared"
EOS = 1


def ragged_examples(count, seed=0, longest=60, wordy=4):
    """Examples with 2 to 5 choices of 1 to `wordy` tokens, in up to six compiled shapes."""
    rng = np.random.default_rng(seed)
    text = lambda length: rng.integers(2, TINY.vocab_size, length).astype(np.int32)  # noqa: E731
    examples = []
    for index in range(count):
        inputs = text(rng.integers(3, longest))
        targets = [np.append(text(rng.integers(0, wordy)), EOS) for _ in range(rng.integers(2, 6))]
        pairs = tuple((inputs, target) for target in targets)
        examples.append(RankExample(index, pairs, (0,)))
    return examples


def score(examples, params, mesh=None, **settings):
    scorer = scoring.Scorer(
        models.build(TINY), mesh or one_device(), cfg.Evaluate(**settings), row_tokens=256
    )
    return list(scorer.score(params, examples))


def torch_sums(hf_dir, examples):
    """Every choice on its own, without padding: the definition."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration.from_pretrained(hf_dir).eval()
    sums = []
    with torch.inference_mode():
        for example in examples:
            for inputs, targets in example.pairs:
                labels = torch.tensor(targets, dtype=torch.long)[None]
                logits = model(input_ids=torch.tensor(inputs)[None], labels=labels).logits
                log_probs = torch.log_softmax(logits.float(), dim=-1)
                sums.append(log_probs.gather(-1, labels[..., None]).double().sum().item())
    return np.array(sums)


def assert_torchs(examples, scored, config, params, tmp_path):
    hf_dir = convert.save_params(params, config, tmp_path / "hf")
    expected = torch_sums(hf_dir, examples)
    np.testing.assert_allclose(np.concatenate([s for _, s in scored]), expected, rtol=0, atol=1e-4)


def test_ragged_choices_score_as_in_torch(tmp_path):
    params, examples = make_params(TINY), ragged_examples(20)
    scored = score(examples, params)
    assert [example for example, _ in scored] == examples
    assert_torchs(examples, scored, TINY, params, tmp_path)


def test_one_input_a_choice_scores_as_in_torch(tmp_path):
    """The layout of flipped and channel views: K inputs a row, one target each."""
    params = make_params(TINY)
    examples = [
        RankExample(e.index, tuple((t, e.pairs[0][0]) for _, t in e.pairs), (0,))
        for e in ragged_examples(12, longest=20)
    ]
    assert_torchs(examples, score(examples, params), TINY, params, tmp_path)


@pytest.fixture(scope="module")
def by_batch_size():
    params, examples = make_params(TINY), ragged_examples(150, seed=3)
    return params, examples, {size: score(examples, params, batch_size=size) for size in (1, 7, 64)}


def test_scores_are_identical_for_every_batch_size(by_batch_size):
    _, examples, scored = by_batch_size
    for size in (1, 7):
        for (_, actual), (_, expected) in zip(scored[size], scored[64], strict=True):
            assert actual.tobytes() == expected.tobytes()
    assert [example.index for example, _ in scored[7]] == [example.index for example in examples]


def test_scores_are_identical_whatever_the_neighbours(by_batch_size):
    params, examples, scored = by_batch_size
    backwards = score(examples[::-1], params, batch_size=64)[::-1]
    alone = score(examples[40:41], params)
    for (_, actual), (_, expected) in zip(backwards, scored[64], strict=True):
        assert actual.tobytes() == expected.tobytes()
    assert alone[0][1].tobytes() == scored[64][40][1].tobytes()


def test_distinct_inputs_are_encoded_once_and_repeated_choices_tie():
    inputs, yes, no = (np.array(ids, np.int32) for ids in ([5, 6, 7], [8, EOS], [9, 10, EOS]))
    example = RankExample(0, ((inputs, yes), (inputs.copy(), no), (inputs, yes.copy())), (0,))
    launched = []
    scorer = scoring.Scorer(models.build(TINY), one_device(), cfg.Evaluate())
    launch = scorer._launch
    scorer._launch = lambda *args: launched.append(launch(*args)) or launched[-1]
    ((_, scores),) = scorer.score(make_params(TINY), [example])
    rows = [row for batch, _ in launched for row in batch]
    assert [len(row.targets) for row in rows] == [2]
    assert scores[0] == scores[2] != scores[1]


def test_choices_beyond_the_longest_row_are_cut_into_several(tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, 96, 9).astype(np.int32)
    targets = [np.append(rng.integers(2, 96, 249), EOS).astype(np.int32) for _ in range(5)]
    examples = [RankExample(0, tuple((inputs, t) for t in targets), (0,))]
    params = make_params(TINY)
    scored = score(examples, params)
    np.testing.assert_allclose(
        scored[0][1],
        torch_sums(convert.save_params(params, TINY, tmp_path / "hf"), examples),
        rtol=1e-5,
    )


def test_length_normalised_scores_are_the_sums_over_their_tokens():
    params, examples = make_params(TINY), ragged_examples(5, longest=30)
    plain, normal = score(examples, params), score(examples, params, length_normalize=True)
    for (example, sums), (_, means) in zip(plain, normal, strict=True):
        lengths = np.array([len(targets) for _, targets in example.pairs], np.float32)
        np.testing.assert_allclose(means, sums / lengths, rtol=1e-6)


def test_long_inputs_and_targets_are_cut_at_the_right():
    params = make_params(TINY)
    short = ragged_examples(6, longest=30)
    cut = [
        RankExample(e.index, tuple((i[:8], t[:3]) for i, t in e.pairs), e.correct) for e in short
    ]
    limits = {"max_input_length": 8, "max_target_length": 3}
    actual, expected = score(short, params, **limits), score(cut, params, **limits)
    for (_, a), (_, b) in zip(actual, expected, strict=True):
        assert a.tobytes() == b.tobytes()


def test_empty_inputs_and_empty_choices_have_finite_scores():
    nothing, end = np.array([], np.int32), np.array([EOS], np.int32)
    word = np.array([7, EOS], np.int32)
    example = RankExample(0, ((nothing, end), (nothing, word)), (0,))
    ((_, scores),) = score([example], make_params(TINY))
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_every_mesh_gives_one_devices_scores(shape):
    params, examples = make_params(TINY), ragged_examples(40, longest=30, wordy=2)
    expected = score(examples, params)
    # A batch of 3 divides over none of them.
    actual = score(examples, params, sharding.make_mesh(cfg.Mesh(*shape)), batch_size=3)
    for (_, a), (_, b) in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_few_shapes_are_compiled():
    scorer = scoring.Scorer(models.build(TINY), one_device(), cfg.Evaluate())
    list(scorer.score(make_params(TINY), ragged_examples(100, seed=9)))
    assert len(scorer.compiled) <= 8


# ---------------------------------------------------------------------------------------------------------------------
# Real rows

REAL = [("dream", None, "baseline"), ("quail", None, "description_context_question_answer_text")]
REAL += [("super_glue", "cb", "GPT-3 style")]


@pytest.fixture(scope="module")
def real_pieces(tmp_path_factory):
    path = SHARED / "data" / "dream" / "default" / "train.jsonl"
    if not path.exists():
        pytest.skip("no local data beside the repository")
    lines = path.read_text().splitlines()[:400]
    text = [" ".join(json.loads(line)["dialogue"]) for line in lines]
    return vocabulary.Pieces(
        vocabulary.train_sentencepiece(text, tmp_path_factory.mktemp("sp") / "sp.model", 1000)
    )


def real_examples(pieces, count):
    encoder = evaluate.Encoder(pieces, cfg.Evaluate())
    examples = []
    for number, (dataset, subset, prompt) in enumerate(REAL):
        rows = PromptedRows(
            DatasetSpec(dataset, subset), "validation", prompt, local_dir=str(SHARED / "data")
        )
        task = evaluate.RankTask(f"{dataset}_{prompt}", rows)
        share = count // len(REAL) + (number < count % len(REAL))
        examples += [encoder.example(number, task, i, rows[i]) for i in range(share)]
    return examples


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_real_rows_score_as_in_torch(real_pieces, count, tmp_path):
    config = dataclasses.replace(TINY, vocab_size=1152, d_model=64, d_kv=16)
    params, examples = (
        models.build(config).init(jax.random.key(0)),
        real_examples(real_pieces, count),
    )
    scored = {
        size: list(
            scoring.Scorer(
                models.build(config), one_device(), cfg.Evaluate(batch_size=size), row_tokens=512
            ).score(params, examples)
        )
        for size in (1, 7, 64)
    }
    for size in (1, 7):
        for (_, a), (_, b) in zip(scored[size], scored[64], strict=True):
            assert a.tobytes() == b.tobytes()
    assert_torchs(examples, scored[64], config, params, tmp_path)
