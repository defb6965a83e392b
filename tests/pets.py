"""A small data set of one's own with five prompts, a vocabulary, and evaluations of it."""

import dataclasses
import json

import jax

from t0jax import config as cfg
from t0jax import evaluate, models, sharding
from t0jax.data import vocabulary
from t0jax.data.rows import DatasetSpec

TINY = cfg.Model(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


def make_params(config, seed=1):
    """Random parameters, a little larger than at initialisation so that scores differ."""
    params = models.build(config).init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def one_device():
    return sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])


PROMPTS = """
dataset: pets
templates:
  1: !Template
    {{id: '1', name: fixed, answer_choices: 'cat ||| dog', reference: '', metadata: {meta},
     jinja: 'Which animal says {{{{ sound }}}}? ||| {{{{ answer_choices[label] }}}}'}}
  2: !Template
    {{id: '2', name: ragged, answer_choices: '{{{{ options | join("|||") }}}}', reference: '', metadata: {meta},
     jinja: '{{{{ sound }}}} is said by ||| {{{{ options[label] }}}}'}}
  3: !Template
    {{id: '3', name: partly, answer_choices: 'cat ||| dog', reference: '', metadata: {meta},
     jinja: '{{% if label == 0 %}} {{{{ sound }}}} ||| {{{{ answer_choices[label] }}}} {{% endif %}}'}}
  4: !Template
    {{id: '4', name: open, answer_choices: null, reference: '', metadata: {meta},
     jinja: '{{{{ sound }}}} ||| {{{{ label }}}}'}}
  5: !Template
    {{id: '5', name: outside, answer_choices: 'cow ||| hen', reference: '', metadata: {meta},
     jinja: '{{{{ sound }}}} ||| {{{{ options[label] }}}}'}}
""".format(
    meta="!TemplateMetadata {choices_in_prompt: false, languages: [en], metrics: [], original_task: true}"
)


def make_pets(root):
    """Writes the data set, its prompts and the vocabulary into a folder."""
    sounds = ["meow", "purr", "woof", "bow wow"]
    rows = [
        {
            "sound": f"{sounds[i % 4]} {'loud ' * (i % 7)}",
            "label": i % 4 // 2,
            "options": ["cat", "dog", "bird", "old fish"][: 2 + i % 3],
        }
        for i in range(31)
    ]
    data, prompts = root / "data" / "pets" / "default", root / "prompts" / "pets"
    data.mkdir(parents=True)
    prompts.mkdir(parents=True)
    hidden = [*rows[:5], {**rows[0], "label": -1}]
    for split, content in (("validation", rows), ("test", hidden)):
        lines = (json.dumps(row) for row in content)
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    (prompts / "templates.yaml").write_text(PROMPTS)
    ghosts = prompts.parent / "ghosts"
    ghosts.mkdir()
    (ghosts / "templates.yaml").write_text(PROMPTS.replace("dataset: pets", "dataset: ghosts"))
    text = [f"{row['sound']} {' '.join(row['options'])} Which animal says" for row in rows]
    vocabulary.train_sentencepiece(text, root / "sp.model", 28)


def evaluations(pets, monkeypatch):
    """A function that builds an evaluator of some of the prompts, with parameters for it."""
    monkeypatch.setenv("T0JAX_DATA_DIR", str(pets / "data"))
    monkeypatch.setenv("T0JAX_PROMPTS_DIR", str(pets / "prompts"))
    monkeypatch.setenv("T0JAX_CACHE_DIR", str(pets / "cache"))
    config = dataclasses.replace(TINY, vocab_size=160)

    def build(
        *prompts, split="validation", available_only=False, missing=False, view="", **settings
    ):
        from t0jax.data import sources

        names = [
            sources.add_rank_task(f"pets_{prompt}", DatasetSpec("pets"), prompt).name
            for prompt in prompts
        ]
        if missing:
            names.append(sources.add_rank_task("ghosts", DatasetSpec("ghosts"), "fixed").name)
        mixture = "_".join(["mix", *names])
        sources.add_mixture(mixture, dict.fromkeys(names, 1.0))
        data = cfg.Data(
            modules=(),
            eval_split=split,
            vocabulary=str(pets / "sp.model"),
            available_only=available_only,
            view=view,
        )
        network = models.build(config)
        evaluator = evaluate.Evaluator(
            network, one_device(), data, cfg.Evaluate(**settings), mixture
        )
        return evaluator, make_params(config)

    return build
