"""Direct, channel and flipped on real rows: every choice's score is what torch makes of the same strings."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from t0jax import config as cfg
from t0jax import convert, evaluate, models, scoring, sharding
from t0jax.data.encoding import PairEncoder
from t0jax.data.rows import DatasetSpec
from t0jax.data.templates import load_templates
from t0jax.data.views import VIEWS, candidates
from t0jax.data.vocabulary import Pieces, train_sentencepiece

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no local data beside the repository")

PROMPTED = (
    ("super_glue", "cb", "validation"), ("anli", None, "dev_r1"), ("anli", None, "dev_r2"),
    ("rotten_tomatoes", None, "validation"), ("dream", None, "validation"), ("quail", None, "validation"),
)  # fmt: skip
BIG_BENCH = (
    "disambiguation_qa", "formal_fallacies", "logical_deduction_three_objects", "movie_recommendation",
)  # fmt: skip
LONGEST = 2048
"""Tokens; no row is longer, so that no string is cut."""
SHORT = 200
"""Of the quick test, for which few shapes are compiled."""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    lines = (DATA / "dream" / "default" / "train.jsonl").read_text().splitlines()[:600]
    lines += (DATA / "quail" / "default" / "validation.jsonl").read_text().splitlines()[:60]
    return Pieces(train_sentencepiece(lines, tmp_path_factory.mktemp("sp") / "spiece.model", 2000))


def eligible(release, dataset, subset):
    """FLIPPED's prompts of a data set: those judged by accuracy over answer choices."""
    templates = load_templates(release, dataset, subset).values()
    return [t.name for t in templates if "Accuracy" in t.metadata.metrics and t.answer_choices]


def all_tasks(release, view):
    """Every eligible prompt of the local data as a rank task, seen through a view."""
    from t0jax.data.sources import PromptSource
    from tasks.bigbench import BigBenchSource, task_spec

    tasks = []
    for dataset, subset, split in PROMPTED:
        for prompt in eligible(release, dataset, subset):
            places = {
                "local_dir": str(DATA),
                "prompts_root": str(release),
                "splits": {split: split},
            }
            source = PromptSource(DatasetSpec(dataset, subset), prompt, **places)
            rows = source.rows(split, view=view)
            if view != "flipped" or rows.template.has_instruction:
                tasks.append(evaluate.RankTask(f"{dataset} {prompt}", rows, view))
    for name in BIG_BENCH:
        rows = BigBenchSource(task_spec(name), local_dir=str(DATA)).rows("validation", view=view)
        tasks.append(evaluate.RankTask(name, rows, view))
    return tasks


def examples_of(tasks, pieces, step, longest):
    """(example, its pairs as text) of every `step`-th row of each task that is not longer than `longest`."""
    encoder = evaluate.Encoder(
        pieces, cfg.Evaluate(max_input_length=LONGEST, max_target_length=LONGEST, input_eos=True)
    )
    for number, task in enumerate(tasks):
        for row in range(number % step, len(task.rows), step):
            rendered = task.rows[row]
            if rendered is not None:
                example = encoder.example(number, task, row, rendered)
                assert not example.cut
                if max(len(tokens) for pair in example.pairs for tokens in pair) <= longest:
                    yield example, candidates(VIEWS[task.view], rendered)


class TorchLoop:
    """Each string tokenised by transformers, each pair a padded row of a small batch: log-probabilities summed."""

    def __init__(self, params, config, pieces, folder):
        transformers = pytest.importorskip("transformers")
        convert.save_params(params, config, folder, tokenizer_path=pieces.path)
        self.model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = transformers.T5Tokenizer.from_pretrained(folder)

    def reads_as_sentencepiece(self, pairs, pieces):
        """False where transformers' tokenizer passes over a letter that SentencePiece calls unknown (control codes)."""
        texts = {text for pair in pairs for text in (pair.inputs, pair.targets)}
        return all(self.tokenizer(t).input_ids[:-1] == pieces.encode_spelled(t) for t in texts)

    def sums(self, pairs):
        import torch

        sides = [
            self.tokenizer([text or " " for text in texts], padding=True, return_tensors="pt")
            for texts in ([p.inputs for p in pairs], [p.targets for p in pairs])
        ]
        (inputs, targets), labels = sides, sides[1].input_ids
        with torch.inference_mode():
            logits = self.model(**inputs, labels=labels).logits
            each = torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
        return (each * targets.attention_mask).sum(-1).numpy()


def compare(tasks, pieces, step, folder, longest=LONGEST):
    """Scores every `step`-th row of every task both ways; how many of how many tasks, and the largest difference."""
    config = cfg.Model(
        vocab_size=pieces.size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    network = models.build(config)
    params = network.init(jax.random.key(0))
    loop = TorchLoop(params, config, pieces, folder)
    mesh = sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])
    scorer = scoring.Scorer(
        network, mesh, cfg.Evaluate(max_input_length=LONGEST, max_target_length=LONGEST)
    )
    feed, kept = itertools.tee(examples_of(tasks, pieces, step, longest))
    scored = scorer.score(params, (example for example, _ in feed))
    worst, rows, counted, unlike = 0.0, 0, set(), 0
    for (example, scores), (_, pairs) in zip(scored, kept, strict=True):
        if not loop.reads_as_sentencepiece(pairs, pieces):
            unlike += 1
            continue
        theirs = loop.sums(pairs)
        # Sums of hundreds of tokens: relative to their size, and 1e-4 where that is small.
        worst = max(worst, float((np.abs(scores - theirs) / np.maximum(1.0, np.abs(theirs))).max()))
        rows += 1
        counted.add(example.task)
    assert unlike <= rows / 1000
    return rows, len(counted), worst


@pytest.mark.parametrize(
    "view", [*(pytest.param(v, marks=pytest.mark.slow) for v in ("direct", "channel")), "flipped"]
)
def test_scores_are_those_of_a_torch_loop_over_the_strings(release, pieces, view, tmp_path):
    tasks = all_tasks(release, view)[::3]
    rows, scored, worst = compare(tasks, pieces, 101, tmp_path / "hf", SHORT)
    assert rows > 50
    assert scored > len(tasks) / 2
    assert worst <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("view", ["direct", "channel", "flipped"])
def test_every_prompt_scores_as_a_torch_loop_over_the_strings(release, pieces, view, tmp_path):
    tasks = all_tasks(release, view)
    rows, scored, worst = compare(tasks, pieces, 40, tmp_path / "hf")
    assert rows > 1000
    assert scored == len(tasks)
    assert worst <= 1e-4


@pytest.mark.parametrize(
    "data", [d for d in PROMPTED if d[2] != "dev_r2"], ids=lambda data: data[0]
)
def test_choices_stay_apart_when_rows_are_cut_hard(release, pieces, data):
    """Every row's inputs differ from choice to choice, and in the answer alone, though little else is left."""
    from t0jax.data.sources import PromptSource

    dataset, subset, split = data
    label = lambda choice: pieces.encode(f"\n output: {choice}")  # noqa: E731
    for prompt in eligible(release, dataset, subset)[:4]:
        places = {"local_dir": str(DATA), "prompts_root": str(release), "splits": {split: split}}
        rows = PromptSource(DatasetSpec(dataset, subset), prompt, **places).rows(
            split, view="flipped"
        )
        cut = 0
        for row in range(0, len(rows), 7):
            rendered = rows[row]
            if rendered is None or not rows.template.has_instruction:
                continue
            room = 8 + sum(isinstance(part, int) for part in rendered.split.parts)
            length = (
                len(pieces.encode("input: ")) + max(map(len, map(label, rendered.choices))) + room
            )
            pairs = candidates(VIEWS["flipped"], rendered)
            encoded = PairEncoder(pieces, length, 64, input_eos=True).encode([pairs])[0]
            texts = [e.inputs.tolist() for e in encoded]
            cut += encoded[0].cut
            assert len({tuple(text) for text in texts}) == len(
                set(map(tuple, map(label, rendered.choices)))
            )
            bodies = {
                tuple(text[: -1 - len(label(choice))])
                for text, choice in zip(texts, rendered.choices, strict=True)
            }
            assert len(bodies) == 1, (prompt, row)
        assert cut > 0 or not rows.template.has_instruction
