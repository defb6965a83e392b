"""T0's tasks and mixtures against the counts and rates of the release, and against the prompts themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import seqio

from t0jax.data.sources import members
from t0jax.data.templates import TemplateError, prompts_dir
from tasks import t0, t0_hub, t0_table

FACTS = Path(__file__).parents[2] / "shared" / "spec" / "t0_datasets.json"

COUNTS = {
    "t0_train": 313,
    "t0+_train": 392,
    "t0++_train": 464,
    "t0_eval_score_eval": 116,
    "t0_train_score_eval": 89,
    "t0_train_one_og_prompt": 35,
    "t0_train_all_og_prompts": 222,
    "bias_fairness_eval_score_eval": 16,
    "t0_all_score_eval": 383,
    "rotten_tomatoes_all_prompts": 10,
    "rotten_tomatoes_all_prompts_score_eval": 10,
    "super_glue_cb_all_prompts_score_eval": 15,
    "hellaswag_all_prompts": 11,
    "anli_all_prompts": 45,
    "anli_all_prompts_score_eval": 45,
}
RATES = {
    "t0_train": 17_277_798,
    "t0+_train": 20_672_671,
    "t0++_train": 23_118_591,
    "t0_train_one_og_prompt": 1_993_444,
    "t0_train_all_og_prompts": 12_527_831,
}
SCORED = {
    "ag_news": 7, "cos_e_v1.11": 6, "cosmos_qa": 10, "glue_mrpc": 5, "glue_qqp": 5, "qasc": 5, "quail": 10,
    "quartz": 8, "rotten_tomatoes": 10, "sciq": 4, "social_i_qa": 5, "wiki_qa": 5, "yelp_review_full": 7, "wiqa": 2,
}  # fmt: skip


def promptsource() -> Path:
    try:
        return prompts_dir()
    except (TemplateError, OSError) as error:
        pytest.skip(f"promptsource's prompts are not on this machine: {error}")


@pytest.mark.parametrize("mixture", COUNTS)
def test_mixtures_have_the_tasks_and_rates_of_the_release(mixture):
    rates = members(mixture)
    assert len(rates) == COUNTS[mixture]
    if mixture in RATES:
        assert sum(rates.values()) == RATES[mixture]


def test_rates_of_large_and_small_data_sets():
    rates = members("t0_train")
    assert rates["gigaword_TLDR"] == 500_000 // 9
    assert rates["rotten_tomatoes_Reviewer_Enjoyment"] == 8530
    assert members("t0_train_one_og_prompt")["gigaword_TLDR"] == 55_555
    share = sum(rate for name, rate in rates.items() if name.startswith("cnn_dailymail")) / sum(
        rates.values()
    )
    assert round(100 * share, 1) == 15.0


def test_mixtures_of_one_data_set():
    """Together they are all tasks; each prompt counts as in t0_train, each round of ANLI by its own size."""
    names = seqio.MixtureRegistry.names()
    scored = [name for name in names if name.endswith("_all_prompts_score_eval")]
    together = [task for name in scored for task in members(name)]
    assert sorted(together) == sorted(members("t0_all_score_eval"))
    one = members("rotten_tomatoes_all_prompts")
    assert one.items() <= members("t0_train").items()
    assert {f"{task}_score_eval" for task in one} == {
        *members("rotten_tomatoes_all_prompts_score_eval")
    }
    assert members("anli_all_prompts")["anli_GPT_3_style_r1"] == 16_946
    # Nothing to train on; no choices to score.
    assert "story_cloze_2016_all_prompts" not in names
    assert "samsum_all_prompts_score_eval" not in names


def test_scored_training_tasks_by_data_set():
    names = members("t0_train_score_eval")
    assert {d: sum(name.startswith(d + "_") for name in names) for d in SCORED} == SCORED


@pytest.mark.parametrize(
    ("dataset", "subset", "prompt", "name"),
    [
        ("super_glue", "copa", "…why? C1 or C2", "super_glue_copa__why_C1_or_C2"),
        ("super_glue", "rte", "GPT-3 style", "super_glue_rte_GPT_3_style"),
        ("cos_e", "v1.11", "aligned_with_common_sense", "cos_e_v1.11_aligned_with_common_sense"),
        (
            "dbpedia_14",
            None,
            "given_a_choice_of_categories ",
            "dbpedia_14_given_a_choice_of_categories_",
        ),
        (
            "imdb",
            None,
            "Reviewer Opinion bad good choices",
            "imdb_Reviewer_Opinion_bad_good_choices",
        ),
    ],
)
def test_names(dataset, subset, prompt, name):
    assert t0.task_name(dataset, subset, prompt) == name
    assert name in seqio.TaskRegistry.names()


def test_anli_rounds_read_their_own_splits():
    rounds = [name for name in members("t0_eval_score_eval") if name.startswith("anli_")]
    assert len(rounds) == 45
    source = seqio.TaskRegistry.get("anli_GPT_3_style_r2_score_eval").source
    assert source.rows("validation").split == "dev_r2"
    assert source.rows("train").split == "train_r2"


def test_the_table_agrees_with_the_facts_of_the_release():
    if not FACTS.is_file():
        pytest.skip("the facts of the release are not on this machine")
    facts = json.loads(FACTS.read_text())["datasets"]
    table = t0_table.load_table()
    assert len(table) == len(facts) == 66
    for entry, fact in zip(table, facts, strict=True):
        assert (entry.dataset, entry.subset, entry.cluster) == (
            fact["dataset"],
            fact["subset"],
            fact["task_cluster"],
        )
        assert (entry.train, entry.evaluation) == (fact["do_train"] or "", fact["do_eval"] or "")
        assert entry.size == (fact["train_size"] or 0)
        assert len(entry.prompts) == (fact["num_templates"] or 0)
        assert sum(prompt.original_task for prompt in entry.prompts) == fact["num_original_task"]
        if fact["per_template_rate"]:
            assert t0.task_rate(entry) == fact["per_template_rate"]


def test_the_table_agrees_with_the_prompts():
    assert t0_table.table_text(promptsource()) == t0_table.PATH.read_text(encoding="utf-8")


def test_every_prompt_reads_columns_the_recodes_know():
    """The renames are of columns that prompts do read."""
    from t0jax.data.templates import load_templates

    root = promptsource()
    for entry in t0_table.load_table():
        home = t0_hub.find_home(entry.dataset)
        if home.renames and entry.prompts:
            templates = load_templates(root, entry.dataset, entry.subset).values()
            fields = frozenset().union(*(template.fields for template in templates))
            assert {old for old, _ in home.renames} & fields
            assert not {new for _, new in home.renames} & fields


COARSE_2021 = ["DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"]
COARSE_NOW = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
FINE_2021 = """
manner cremat animal exp ind gr title def date reason event state desc count other letter religion food country color
termeq city body dismed mount money product period substance sport plant techmeth volsize instru abb speed word lang
perc code dist temp symbol ord veh weight currency
"""
FINE_NOW = """
ABBR:abb ABBR:exp ENTY:animal ENTY:body ENTY:color ENTY:cremat ENTY:currency ENTY:dismed ENTY:event ENTY:food
ENTY:instru ENTY:lang ENTY:letter ENTY:other ENTY:plant ENTY:product ENTY:religion ENTY:sport ENTY:substance
ENTY:symbol ENTY:techmeth ENTY:termeq ENTY:veh ENTY:word DESC:def DESC:desc DESC:manner DESC:reason HUM:gr HUM:ind
HUM:title HUM:desc LOC:city LOC:country LOC:mount LOC:other LOC:state NUM:code NUM:count NUM:date NUM:dist NUM:money
NUM:ord NUM:other NUM:period NUM:perc NUM:speed NUM:temp NUM:volsize NUM:weight
"""
"""Label names in the order of their numbers: the loading script of 2021 and the Hub's card of today."""


def test_trec_label_numbers():
    old = FINE_2021.split()
    assert [COARSE_2021[k] for k in t0_hub.TREC_COARSE] == COARSE_NOW
    assert [old[k] for k in t0_hub.TREC_FINE] == [n.partition(":")[2] for n in FINE_NOW.split()]


def test_declared_label_columns_are_read_by_the_prompts():
    from t0jax.data.templates import load_templates

    root = promptsource()
    for entry in t0_table.load_table():
        labels = t0_hub.find_home(entry.dataset).labels
        if entry.prompts and labels != ("label",):
            templates = load_templates(root, entry.dataset, entry.subset).values()
            assert set(labels) <= frozenset().union(*(t.fields for t in templates)), entry.dataset


def test_registering_again_changes_nothing():
    before = (set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names()))
    t0.register()
    assert (set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names())) == before


def test_import_needs_neither_network_nor_data_nor_prompts(tmp_path):
    code = (
        "import socket, sys\n"
        "def refuse(*of, **named): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import tasks.t0\n"
        "heavy = ('torch', 'datasets', 'transformers')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    nowhere = str(tmp_path / "none")
    env = dict.fromkeys(("T0JAX_DATA_DIR", "T0JAX_PROMPTS_DIR", "T0JAX_CACHE_DIR", "HOME"), nowhere)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={"PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3", **env},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
